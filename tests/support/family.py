"""One instance of every method, and of every variant that travels in another way, for checks on real ranks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from horovod_dgc import METHODS, exchange, method
from horovod_dgc.method import FloatArray as Array
from horovod_dgc.method import Method, Outputs, Plan

# Of the optimizers in these checks, where the method takes momentum over from them.
MOMENTUM = 0.5

# Settings under which a small tensor shows what each method does; a method without an entry is taken as it is.
VARIANTS: dict[str, list[dict[str, object]]] = {
    "dgc": [{"density": 0.01, "values": "int8"}, {"density": 0.01, "momentum_correction": False}],
    "topk": [{"density": 0.02}, {"density": 0.02, "error_feedback": False}],
    "gradient-dropping": [{"density": 0.02}],
    "randomk": [{"density": 0.05}, {"density": 0.05, "error_feedback": False, "values": "float16"}],
    "terngrad": [{}, {"shared_scale": True}],
    "strom": [{"threshold": 40.0, "cap": 0.1}],
    "dryden": [{"density": 0.02}],
    "adacomp": [{"cap": 0.1}],
    "vgc": [{"cap": 0.1}, {"cap": 0.1, "threshold": 30.0, "values": "float32"}],
    "powersgd": [{"rank": 1}, {"rank": 3}],
    "countsketch": [{"density": 0.01}],
}


def family() -> list[Method]:
    """Every registered method, in each of its variants."""
    return [method(name, **settings) for name in METHODS for settings in VARIANTS.get(name, [{}])]


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


def compared_steps(plans: Iterable[Plan]) -> float:
    """For how many steps a job can be held against its workers in one process, to rounding.

    What a collective sums up in the opening round is rounded in another order than in one process, and a codec that
    goes on from its own sums, as PowerSGD's power iteration does, carries that from step to step.
    """
    feeds_back = any(plan.codec.memory and plan.opening_nbytes for plan in plans)
    return 8 if feeds_back else math.inf
