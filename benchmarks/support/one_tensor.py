"""Time of one tensor's encoding and decoding by any method, against a plain copy of the same array."""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np

from horovod_dgc import Method

# Of the made-up gradients: near the threshold of threshold quantisation, so that it selects as in training.
DEVIATION = 0.003
# Gradients of different steps are windows of one noise array at different offsets.
OFFSET = 1 << 12
STEPS_BEFORE = 2


class Gradients:
    """Made-up gradients of one matrix, normally distributed."""

    def __init__(self, shape: tuple[int, int], steps: int) -> None:
        self.shape = shape
        self._numel = shape[0] * shape[1]
        noise = np.random.default_rng(0).standard_normal(self._numel + OFFSET * (steps + 1), dtype=np.float32)
        self._noise = np.multiply(noise, np.float32(DEVIATION), out=noise)

    def __getitem__(self, step: int) -> np.ndarray:
        return self._noise[step * OFFSET : step * OFFSET + self._numel]


def encode_and_decode(method: Method, gradients: Gradients, rounds: int) -> dict[str, Any]:
    """Medians of the rounds' ratios to a copy; an opening round's work counts as encoding.

    It is this process's processor time that is taken, all on one thread: time given to other programs does not count.
    Copy, encoding and decoding take turns. Momentum is 0.9 where it belongs to the method.
    """
    state = method.init(gradients.shape)
    plan = method.plan(gradients.shape)
    momentum = 0.9 if plan.momentum == "local" else 0.0
    copy, out = np.zeros_like(gradients[0]), np.zeros_like(gradients[0])
    copies: list[float] = []
    encodes: list[float] = []
    decodes: list[float] = []
    for step in range(STEPS_BEFORE + rounds):
        gradient = gradients[step]
        times = [time.process_time()]
        np.copyto(copy, gradient)
        times.append(time.process_time())
        opened = method.open(gradient, state, momentum=momentum)
        payload = method.encode(gradient, state, momentum=momentum, opened=opened)
        times.append(time.process_time())
        method.decode(payload, out, step=step, shape=gradients.shape, opened=opened, state=state)
        times.append(time.process_time())
        if step >= STEPS_BEFORE:
            for taken, begin, end in zip((copies, encodes, decodes), times, times[1:]):
                taken.append(end - begin)
    return {
        "copy_ms": 1000 * statistics.median(copies),
        "encode": statistics.median(e / c for e, c in zip(encodes, copies)),
        "decode": statistics.median(d / c for d, c in zip(decodes, copies)),
        "nbytes": plan.payload_nbytes + plan.opening_nbytes,
    }
