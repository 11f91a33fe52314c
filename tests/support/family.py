"""Every method on real ranks, against all workers in one process: what the checks of both adapters share.

Which methods these are, and in which settings, is in method_cases.on_ranks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from rank import by_length

from horovod_dgc import exchange
from horovod_dgc.methods.base import FloatArray as Array
from horovod_dgc.methods.base import Method, Outputs, Plan

# Of the optimizers in these checks, where the method takes momentum over from them.
MOMENTUM = 0.5

# Twice as many as sums that feed back can be compared for, see below.
STEPS = by_length(16, long=50)


def reduced_alone(
    method: Method,
    feeds: Sequence[Sequence[Sequence[Array]]],
    *,
    outputs: Outputs = "first",
    factor: float = 1.0,
    aggregated: bool = True,
) -> list[list[Array]]:
    """For each step and tensor what the workers give their optimizers, worked out in one process.

    Args:
        feeds: gradients by step, rank and tensor.
        outputs: which axis counts output units, as in :meth:`Method.plan`.
        factor: what the reduction makes of the mean.
        aggregated: whether momentum that follows the reduction is the adapter's, too, not the optimizer's.
    """
    shapes = [np.shape(grad) for grad in feeds[0][0]]
    states = [[method.init(shape, outputs) for _ in feeds[0]] for shape in shapes]
    momentum = MOMENTUM if method.corrects_momentum else 0.0
    velocities = [np.zeros(math.prod(shape), np.float32) for shape in shapes]
    steps = []
    for step, ranks in enumerate(feeds):
        results = []
        for number, shape in enumerate(shapes):
            local = method.plan(shape, step, outputs).momentum == "local"
            grads = [grads[number].ravel() for grads in ranks]
            result = exchange(method, grads, states[number], tensor=number, momentum=momentum if local else 0.0)
            result = result * np.float32(factor)
            if momentum and aggregated and not local:
                velocities[number] = np.float32(momentum) * velocities[number] + result
                result = velocities[number]
            results.append(result)
        steps.append(results)
    return steps


def dropped_globally(density: float, feeds: Sequence[Sequence[Sequence[Array]]]) -> list[list[Array]]:
    """What gradient dropping with one threshold makes of gradients by step, rank and tensor: means by step and tensor.

    For tensors small enough to be looked at as a whole, and payloads with room for all.
    """
    residuals = [[np.zeros_like(grad) for grad in grads] for grads in feeds[0]]
    steps = []
    for ranks in feeds:
        sent = []
        for residual, grads in zip(residuals, ranks):
            for r, grad in zip(residual, grads):
                r += grad
            magnitudes = np.sort(np.abs(np.concatenate([r.ravel() for r in residual])))
            threshold = magnitudes[-math.ceil(density * magnitudes.size)]
            sent.append([np.where(np.abs(r) >= threshold, r, np.float32(0)) for r in residual])
            for r, s in zip(residual, sent[-1]):
                r -= s
        steps.append([np.mean(tensors, axis=0) for tensors in zip(*sent)])
    return steps


def compared_steps(plans: Iterable[Plan]) -> float:
    """For how many steps a job can be held against its workers in one process, to rounding.

    What a collective sums up in the opening round is rounded in another order than in one process, and a codec that
    goes on from its own sums, as PowerSGD's power iteration does, carries that from step to step.
    """
    feeds_back = any(plan.codec.memory and plan.opening_nbytes for plan in plans)
    return 8 if feeds_back else math.inf
