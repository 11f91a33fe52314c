"""All workers of a job in one process, through the same encoding and decoding as in separate ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from horovod_dgc.coding import opened_by_quantile
from horovod_dgc.methods.base import FloatArray, Method, Plan, State, checked


def opened(plan: Plan, openings: Sequence[FloatArray | None]) -> list[FloatArray | None]:
    """What the opening round of a tensor comes to on each of N workers, from :meth:`Method.open` of each.

    None without one. A threshold that a worker's tensors have in common is the one that it would have if this were
    all of the model.
    """
    parts = [part for part in openings if part is not None]
    if not parts:
        return [None] * len(openings)
    reduction = plan.codec.opening[1]
    if reduction == "quantile":
        return [opened_by_quantile([plan.codec], [part]) for part in parts]
    reduced = np.asarray((np.max if reduction == "maximum" else np.sum)(parts, axis=0), np.float32)
    return [reduced] * len(openings)


def exchange(
    method: Method, grads: Sequence[FloatArray], states: Sequence[State], *, tensor: int = 0, **arithmetic: Any
) -> FloatArray:
    """One exchange of one tensor among N workers: what each of them would give to its optimizer.

    Args:
        grads: N gradients, float32, shape (numel,), one for each worker.
        states: N states of :meth:`Method.init` of the same shape and step; updated in place.
        tensor: number of the tensor in the model, for random numbers.
        arithmetic: momentum and so on, as for :meth:`Method.encode`; ``workers`` is N.

    Returns:
        float32, shape (numel,): the mean over the workers of what they sent, or, by majority vote, its sign.

    Raises:
        ValueError: arguments that do not fit; a gradient that is not finite, which a job would skip.
    """
    checked(method)
    if not grads or len(grads) != len(states):
        raise ValueError(f"grads and states must be as many, and at least 1 each, got {len(grads)} and {len(states)}")
    step, shape, outputs = states[0].step, states[0].shape, states[0].outputs
    for rank, (grad, state) in enumerate(zip(grads, states)):
        if (state.step, state.shape) != (step, shape):
            raise ValueError(f"states[{rank}] must be of step {step} and shape {shape}, like states[0]")
        if not np.isfinite(grad).all():
            raise ValueError(f"grads[{rank}] must be finite: a job skips a step in which one is not")
    arithmetic = {**arithmetic, "workers": len(grads), "tensor": tensor}
    plan = method.plan(shape, step, outputs)
    openings = [method.open(g, s, rank=rank, **arithmetic) for rank, (g, s) in enumerate(zip(grads, states))]
    known = opened(plan, openings)
    payloads = np.stack(
        [
            method.encode(g, s, rank=rank, opened=o, **arithmetic)
            for rank, (g, s, o) in enumerate(zip(grads, states, known))
        ]
    )
    for state in states:
        if state.memory is not None:
            plan.codec.absorb(payloads, state.memory)
    return method.decode(
        payloads,
        np.zeros(plan.numel, np.float32),
        scale=1.0 if plan.codec.votes else 1.0 / len(grads),
        step=step,
        shape=shape,
        outputs=outputs,
        tensor=tensor,
        opened=known[0],
    )
