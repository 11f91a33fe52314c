"""Parts of the battery: what is sent, and what is kept."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from horovod_dgc.methods.base import FloatArray, Method, Outputs
from horovod_dgc.testing.case import COMPRESSED, EXEMPT, OUTPUTS, Case, F, Look, clipping, close, hold, send


def check_formula(case: Case) -> None:
    """What is sent, kept and cleared is, step by step, what the formula says."""
    if case.formula is None:
        return
    method, state = case.method, case.method.init(case.shape)
    residual, velocity = np.zeros(case.numel, F), np.zeros(case.numel, F)
    for step, grad in enumerate(case.gradients(8, 1)):
        plan = method.plan(case.shape, step)
        memory = None if state.memory is None else state.memory.copy()
        _, seen, opening = send(method, state, grad, momentum=case.momentum)
        grad = F(clipping(method, grad)) * grad
        velocity = F(case.momentum) * velocity + grad
        part = velocity if plan.momentum == "local" else grad
        v = residual + part if plan.residual else part
        sent = case.formula(Look(v, part, case.shape, seen, opening, memory))
        close(f"what is sent in step {step}", seen, sent, case.tolerance * np.abs(v).max())
        if state.residual is not None:
            residual = v - seen
            close(f"the residual after step {step}", state.residual, residual)
        if plan.masking and not plan.every_coordinate:
            velocity[seen != 0] = 0
        if state.velocity is not None:
            close(f"the velocity after step {step}", state.velocity, velocity)
        if plan.codec.wants_squares and memory is not None and state.memory is not None:
            close(f"the memory after step {step}", state.memory, memory, 1e-6 * (case.size**2 + np.abs(memory)))


def check_conservation(case: Case) -> None:
    """What is sent and what is kept make up what was accumulated, at every coordinate, and something is sent."""
    method, rng = case.method, np.random.default_rng(2)
    normal = case.gradients(40, 2)
    state, plain = method.init(case.shape), 0.0
    for grad in normal:
        plain += float(np.abs(send(method, state, grad).values).sum())
    hold(
        plain > 0,
        f"something must be sent in 40 steps of gradients of size {case.size:g}: does the size suit the settings?",
    )
    magnitudes = 10 ** rng.uniform(-35, 35, (6, case.numel)) * rng.choice([-1.0, 1.0], (6, case.numel))
    sparse = normal * (rng.random(normal.shape) < 0.02)
    for gradients in (normal, magnitudes, 1e-42 * normal[:6], sparse[:6]):
        for momentum in {0.0, case.momentum}:
            conserved(method, case.shape, gradients.astype(F), momentum=momentum)
    conserved(method, case.shape, normal, momentum=case.momentum, rank=1)
    for shape in (*COMPRESSED, *EXEMPT):
        for outputs in OUTPUTS:
            conserved(method, shape, rng.standard_normal((3, math.prod(shape))).astype(F), outputs=outputs)
    for shape in EXEMPT:
        grad, state = rng.standard_normal(math.prod(shape)).astype(F), method.init(shape)
        if state.residual is None:
            # As exact as 8 bits, of which one is the sign.
            whole = f"what is sent of a tensor of shape {shape}, none of which is kept,"
            grad *= F(clipping(method, grad))
            close(whole, send(method, state, grad).values, grad, np.abs(grad).max() / 250)


def conserved(
    method: Method,
    shape: Sequence[int],
    gradients: FloatArray,
    *,
    momentum: float = 0.0,
    outputs: Outputs = "first",
    rank: int = 0,
) -> None:
    """Raise AssertionError unless, to float32's rounding, nothing of these gradients is lost where there is a residual.

    Args:
        gradients: float32, shape (steps, numel), finite, and so small that their sums are finite, too.
        momentum: of the worker; for plans that apply it to its gradient.
        outputs: as for :meth:`Method.plan`.
        rank: of the worker.
    """
    state = method.init(shape, outputs)
    for step, grad in enumerate(gradients):
        local = method.plan(shape, step, outputs).momentum == "local"
        used = momentum if local else 0.0
        kept = np.zeros(grad.size) if state.residual is None else state.residual.astype(float)
        before = np.zeros(grad.size) if state.velocity is None else used * state.velocity.astype(float)
        payload, sent, _ = send(method, state, grad, rank=rank, momentum=used)
        hold(payload.size == method.plan(shape, step, outputs).payload_nbytes, "a payload must be as long as planned")
        hold(np.isfinite(sent).all(), f"what is sent of finite gradients must be finite, step {step} of {shape}")
        count, most = np.count_nonzero(sent), method.plan(shape, step, outputs).sent
        hold(count <= most, f"no more than {most} coordinates must be sent, got {count}")
        if state.residual is None:
            continue
        grad = clipping(method, grad) * grad.astype(float)
        missing = state.residual + sent.astype(float) - (kept + before + grad)
        # Four roundings, each by at most half a unit in the last place. A subnormal velocity becomes 0.
        rounding = 2.0**-22 * (np.abs(kept) + np.abs(before) + np.abs(grad) + np.abs(sent))
        rounding += 2.0**-125 if local else 2.0**-148
        at = int(np.argmax(np.abs(missing) - rounding)) if missing.size else 0
        if missing.size and abs(missing[at]) > rounding[at]:
            hold(
                False,
                f"sent + residual must be what was accumulated, step {step} of {tuple(shape)}: at coordinate {at} "
                f"{sent[at]:g} + {state.residual[at]:g} of {(kept + before + grad)[at]:g}",
            )


def check_unbiased(case: Case) -> None:
    """The mean of what is sent of a value in many steps is the value, of a method that says so."""
    if case.neighbours is None:
        return
    draws, v, state = 3_000, case.gradients(1, 3)[0], case.method.init(case.shape)
    total = np.zeros(v.size)
    for _ in range(draws):
        total += send(case.method, state, v).values
    hold(state.step == draws, f"the state's step must be {draws}, got {state.step}")
    low, high = case.neighbours(v)
    deviation = np.sqrt(np.abs((high - v) * (v - low)) / draws)
    # Of 600 elements, one in 3,000 files would be more than five standard errors away.
    close(f"the mean over {draws} steps", total / draws, v, 5 * deviation + 1e-6 * np.abs(v).max())
