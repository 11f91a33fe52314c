"""How fast methods encode and decode: assumed from published measurements, or measured here."""

from __future__ import annotations

import statistics
import time

import numpy as np

from horovod_dgc import _core
from horovod_dgc.cost import Rates
from horovod_dgc.methods.base import Method
from horovod_dgc.registry import METHODS, name_of
from horovod_dgc.simulation import opened

_ELEMENTS = 25.6e6
# docs/performance.md, "Value coders": a plain copy of 25.6 million values, one thread.
_COPY = 15.4e-3 / _ELEMENTS
# docs/performance.md, "Compress and decompress of one tensor", 25.6 M elements, one thread: the rows "propose" and
# "commit", and "decode_add, N = 16", whose payloads hold 25,600 coordinates each.
_PROPOSE = 28.13e-3 / _ELEMENTS
_COMMIT = 24.46e-3 / _ELEMENTS
_DECODE = 8.35e-3 / (16 * 25_600)
# docs/performance.md, "The whole exchange": 161 tensors of no size to speak of, DGC and dense.
_TENSOR = 30.82e-3 / 161
_DENSE_TENSOR = 5.93e-3 / 161

# docs/methods/README.md, "All of them, measured": encode and decode of one payload, in copies of the tensor.
_COPIES: dict[str, tuple[float, float]] = {
    "topk": (1.78, 0.06),
    "gradient-dropping": (2.67, 0.29),
    "randomk": (6.44, 3.29),
    "signsgd": (1.63, 1.56),
    "signum": (4.27, 1.54),
    "efsignsgd": (3.63, 0.85),
    "1bit": (3.31, 0.87),
    "qsgd": (1.96, 0.96),
    "terngrad": (2.98, 1.34),
    "dorefa": (2.17, 0.93),
    "natural": (1.70, 1.03),
    "strom": (8.11, 0.29),
    "dryden": (8.36, 0.29),
    "adacomp": (6.48, 0.29),
    "vgc": (19.38, 0.30),
    "powersgd": (9.56, 0.82),
    "countsketch": (206.66, 144.97),
    "fp16": (1.84, 0.91),
    "bf16": (1.69, 0.82),
    "int8": (3.30, 0.89),
}
_MATRIX = (5000, 5120)
# Where the two passes of the adapters have been measured, and not Method.encode.
_PASSES = {"dgc": Rates(encode=_PROPOSE, commit=_COMMIT, decode=_DECODE, tensor=_TENSOR)}


def assumed(method: Method | None) -> Rates:
    """What this package's own documentation measured: one thread of a 2-core x86-64 VM with AVX-512, on the CPU.

    For DGC the two passes of the adapters. For the others the time of ``Method.encode``, to which the adapters'
    second pass over the state is added as DGC has it. A method's settings are taken to change bytes, not rates.

    Raises:
        ValueError: a method that is not registered.
    """
    if method is None:
        return Rates(tensor=_DENSE_TENSOR)
    name = name_of(method)
    if name in _PASSES:
        return _PASSES[name]
    if name not in _COPIES:
        raise ValueError(f"method must be a registered one to have known rates, got {method!r}: measure its rates")
    encode, decode = _COPIES[name]
    plan = METHODS[name]().plan(_MATRIX)
    return Rates(
        encode=encode * _COPY,
        commit=_COMMIT,
        decode=decode * _COPY * plan.numel / plan.sent,
        tensor=_TENSOR,
    )


def measured(
    method: Method | None, shape: tuple[int, int] = (2000, 2000), *, payloads: int = 16, repeats: int = 3
) -> Rates:
    """Rates on this machine, one thread, by the same two passes as in the adapters; a second or so for a method.

    Gradients are Gaussian and the state has been through a step. ``tensor``, which only a job can show, is the
    assumed one. Medians of ``repeats``.

    Args:
        payloads: as many as are decoded at a time, where they cannot be summed on the way.
    """
    if method is None:
        return assumed(None)
    state = method.init(shape)
    rng = np.random.default_rng(0)
    grad = rng.standard_normal(shape[0] * shape[1], dtype=np.float32)
    plan = method.plan(shape)
    momentum = 0.9 if plan.momentum == "local" else 0.0
    update = _core.Update(momentum=momentum)
    seconds: dict[str, list[float]] = {"encode": [], "commit": [], "decode": []}
    out = np.zeros(grad.size, np.float32)
    count = 1 if plan.summable is not None else payloads
    for repeat in range(repeats + 1):
        began = time.perf_counter()
        known = opened(plan, [method.open(grad, state, momentum=momentum)])[0]
        proposal = _core.propose(
            plan.codec,
            update,
            grad,
            state.residual,
            state.velocity,
            randomness=method.randomness(0, state.step, 0),
            opened=known,
            memory=state.memory,
            sample_ratio=plan.sample_ratio,
        )
        encoded = time.perf_counter()
        proposal.commit(update, grad, state.residual, state.velocity, memory=state.memory, mask_velocity=plan.masking)
        committed = time.perf_counter()
        received = np.repeat(proposal.payload[None], count, axis=0)
        copied = time.perf_counter()
        method.decode(received, out, step=state.step, shape=shape, opened=known, state=state)
        decoded = time.perf_counter()
        state.step += 1
        if repeat:
            seconds["encode"].append(encoded - began)
            seconds["commit"].append(committed - encoded)
            seconds["decode"].append(decoded - copied)
    return Rates(
        encode=statistics.median(seconds["encode"]) / plan.numel,
        commit=statistics.median(seconds["commit"]) / plan.numel,
        decode=statistics.median(seconds["decode"]) / (count * plan.sent),
        tensor=_TENSOR,
    )
