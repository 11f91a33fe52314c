"""Parts of the battery: tensors and gradients out of the ordinary."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Iterator
from typing import Any, cast

import numpy as np

from horovod_dgc.methods.base import FloatArray, Method
from horovod_dgc.simulation import exchange
from horovod_dgc.testing.case import (
    COMPRESSED,
    EMPTY,
    EXEMPT,
    Case,
    F,
    clipping,
    close,
    encoded,
    hold,
    refused,
    same_state,
    send,
)


def check_odd_tensors(case: Case) -> None:
    """Tensors of no or one element, zeros, equal or extreme values; other types; arrays that must be refused."""
    for shape in (*COMPRESSED, *EXEMPT, *EMPTY):
        for kind, gradients in _odd(shape):
            _check_odd_tensor(case.method, shape, kind, gradients)
    _check_types(case)


def _odd(shape: tuple[int, ...]) -> Iterator[tuple[str, FloatArray]]:
    """By name, float32 gradients of shape (steps, workers, numel)."""
    size = (3, 2, math.prod(shape))
    normal = np.random.default_rng(4).standard_normal(size)
    one, spike = np.zeros(size), normal.copy()
    if size[2]:
        one[..., size[2] // 2] = -3
        spike[..., size[2] // 2] = 1e30
    values = {"zeros": 0 * np.abs(normal), "negative zeros": np.full(size, -0.0), "equal values": np.full(size, 0.1)}
    values |= {"one element": one, "one huge element": spike, "huge": 1e36 * normal, "subnormal": 1e-42 * normal}
    for kind, value in values.items():
        yield kind, value.astype(F)


def _check_odd_tensor(method: Method, shape: tuple[int, ...], kind: str, gradients: FloatArray) -> None:
    what = f"{kind}, shape {shape}"
    states = [method.init(shape) for _ in range(2)]
    fed, received = np.zeros(gradients.shape[2]), np.zeros(gradients.shape[2])
    for grads in gradients:
        result = exchange(method, list(grads), states)
        kept = [x for s in states for x in (s.residual, s.velocity, s.memory) if x is not None]
        finite = all(np.isfinite(x).all() for x in (result, *kept))
        hold(finite, f"what is sent and kept of {what}, must be finite")
        if "zeros" in kind:
            expected = 1 if method.plan(shape).codec.votes else 0
            hold((result == expected).all(), f"what comes of {what}, must be {expected} everywhere, got {result}")
        fed += np.sum([clipping(method, grad, 2) * grad.astype(float) for grad in grads], axis=0)
        received += 2 * result.astype(float)
    if states[0].residual is not None:
        left = np.sum([s.residual.astype(float) for s in states if s.residual is not None], axis=0)
        # Subnormal velocities become 0.
        rounding = 1e-38 if states[0].velocity is not None else 1e-43
        most = np.abs(fed).max(initial=0)
        close(f"sent and residual of {what}", received + left, fed, 1e-5 * most + rounding)


def _check_types(case: Case) -> None:
    method, plan = case.method, case.method.plan(case.shape)
    grad = case.gradients(1, 5)[0]
    half = grad.astype(np.float16)
    bits = (grad.view(np.uint32) >> 16).astype(np.uint16)
    for name, narrow, wide in (
        ("float16", half, half.astype(F)),
        ("bfloat16", bits, (bits.astype(np.uint32) << 16).view(F)),
    ):
        payloads = [
            send(method, method.init(case.shape), cast(FloatArray, g)).payload.tobytes() for g in (narrow, wide)
        ]
        hold(payloads[0] == payloads[1], f"a gradient in {name} must give the payload of its values in float32")
    for what, wrong in (
        ("of every other element of an array", np.repeat(grad, 2)[::2]),
        ("in float64", grad.astype(float)),
        ("of another length", grad[:-1].copy()),
        ("of two dimensions", grad.reshape(1, -1)),
    ):
        state = method.init(case.shape)
        known = np.zeros(plan.codec.opening[0], F) if plan.codec.opening[0] else None
        before = copy.deepcopy(state)
        refused(functools.partial(method.encode, cast(FloatArray, wrong), state, opened=known), f"a gradient {what}")
        hold(same_state(state, before), f"a gradient {what} must leave the state unchanged")


def check_not_finite(case: Case) -> None:
    """A gradient with NaN or Inf decodes to NaN on every worker and leaves the state of its own as it was."""
    method = case.method
    for shape in (case.shape, (37,)):
        place: dict[str, Any] = {"shape": shape}
        plan, numel = method.plan(shape), math.prod(shape)
        rng = np.random.default_rng(6)
        for bad in (np.nan, np.inf, -np.inf):
            for at in (0, numel - 1):
                momentum = case.momentum if plan.momentum == "local" else 0.0
                states = [method.init(shape) for _ in range(2)]
                for _ in range(3):
                    exchange(
                        method, list(case.size * rng.standard_normal((2, numel)).astype(F)), states, momentum=momentum
                    )
                before = copy.deepcopy(states)
                grads = (case.size * rng.standard_normal((2, numel))).astype(F)
                grads[1, at] = bad
                payloads, known = encoded(method, grads, states, momentum=momentum)
                what = f"{bad} at coordinate {at} of shape {shape}"
                hold(same_state(states[1], before[1]), f"{what} must leave the state unchanged")
                # What all workers have to agree upon is spoilt for all of them.
                agreed = plan.opening_nbytes > 0
                hold(
                    not agreed or same_state(states[0], before[0]), f"{what} must leave every worker's state unchanged"
                )
                place = {"step": before[0].step, "shape": shape, "opened": known[0]}
                for received in (payloads[1][None], np.stack(payloads)):
                    told = np.isnan(method.decode(received, np.zeros(numel, F), **place)).any()
                    hold(told, f"{what} must decode to NaN, so that every worker skips the step")
