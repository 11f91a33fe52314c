"""Every method on real ranks, against all workers in one process: what the checks of both adapters share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from method_cases import on_ranks
from rank import by_length

from horovod_dgc import exchange
from horovod_dgc.methods.base import FloatArray as Array
from horovod_dgc.methods.base import Method, Outputs, Plan

# Of the optimizers in these checks, where the method takes momentum over from them.
MOMENTUM = 0.5
# Twice as many as sums that feed back can be compared for.
STEPS = by_length(16, long=50)


def exchanged_alone(
    feeds: Sequence[Sequence[Sequence[Array]]],
    rank: int,
    gather: Callable[[Any], list[Any]],
    outputs: Outputs = "first",
) -> dict[Method, list[list[Array]]]:
    """For each method that runs on ranks, by step and tensor, what all workers come to in one process, on average.

    Each rank works out its share of the methods, and all get all.

    Args:
        feeds: gradients by step, rank and tensor.
        gather: from an object to the objects of all ranks.
        outputs: which axis counts output units, as in :meth:`Method.plan`.
    """
    share = on_ranks()[rank :: len(feeds[0])]
    shares = gather({method: _exchanged(method, feeds, outputs) for method in share})
    return {method: means for share in shares for method, means in share.items()}


def _exchanged(method: Method, feeds: Sequence[Sequence[Sequence[Array]]], outputs: Outputs) -> list[list[Array]]:
    shapes = [np.shape(grad) for grad in feeds[0][0]]
    states = [[method.init(shape, outputs) for _ in feeds[0]] for shape in shapes]
    steps = []
    for step, ranks in enumerate(feeds):
        means = []
        for number, shape in enumerate(shapes):
            local = method.plan(shape, step, outputs).momentum == "local"
            grads = [grads[number].ravel() for grads in ranks]
            used = MOMENTUM if local else 0.0
            means.append(exchange(method, grads, states[number], tensor=number, momentum=used))
        steps.append(means)
    return steps


def reduced(
    method: Method,
    means: Sequence[Sequence[Array]],
    shapes: Sequence[Sequence[int]],
    *,
    outputs: Outputs = "first",
    factor: float = 1.0,
    aggregated: bool = True,
) -> list[list[Array]]:
    """For each step and tensor what the workers give their optimizers, of what :func:`exchanged_alone` found.

    Args:
        factor: what the reduction makes of the mean.
        aggregated: whether momentum that follows the reduction is the adapter's, too, not the optimizer's.
    """
    velocities = [np.zeros(math.prod(shape), np.float32) for shape in shapes]
    steps = []
    for step, tensors in enumerate(means):
        results = []
        for number, (shape, mean) in enumerate(zip(shapes, tensors)):
            result = mean * np.float32(factor)
            if aggregated and method.plan(shape, step, outputs).momentum == "aggregated":
                velocities[number] = result = np.float32(MOMENTUM) * velocities[number] + result
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
