"""Parts of the battery: several workers, what each of them draws, and what an adapter makes of a plan."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple, cast

import numpy as np

from horovod_dgc import _core
from horovod_dgc.methods.base import ByteArray, FloatArray, Method, State
from horovod_dgc.simulation import exchange, opened
from horovod_dgc.testing.case import Case, F, clipping, close, encoded, hold, same_state, send

_FOLLOWED = "adapters follow plan() and randomness(), and never call open, encode or decode"


class _Drawn(NamedTuple):
    """All that can follow from random numbers: payload, coordinates, and what a worker opens with."""

    payload: bytes
    coordinates: tuple[int, ...]
    opening: bytes | None
    lossless: bool


def _drawn(case: Case, *, other: int = 0, seed: int = 0, step: int = 0, rank: int = 0, tensor: int = 0) -> _Drawn:
    """Of the case's first or ``other`` gradient, with another seed if ``seed`` is added; the opening is the first's."""
    method, grads = case.method, case.gradients(2, 7)
    if seed:
        method = dataclasses.replace(cast(Any, method), seed=(method.seed + seed) % 2**64)
    state = method.init(case.shape)
    state.step = step
    own = method.open(grads[0], state, rank=rank, tensor=tensor)
    known = opened(method.plan(case.shape, step), [own])[0]
    payload = method.encode(grads[other], state, rank=rank, tensor=tensor, opened=known)
    place: dict[str, Any] = {"step": step, "shape": case.shape, "tensor": tensor, "opened": known}
    values = method.decode(payload[None], np.zeros(case.numel, F), **place)
    coordinates, lossless = tuple(np.flatnonzero(values).tolist()), bool((values == grads[other]).all())
    return _Drawn(payload.tobytes(), coordinates, None if own is None else own.tobytes(), lossless)


def check_seeds(case: Case) -> None:
    """The same seed draws the same; another seed, and where workers draw on their own another rank, something else."""
    method, first = case.method, _drawn(case)
    has_seed = any(field.name == "seed" for field in dataclasses.fields(cast(Any, method)))
    hold(first == _drawn(case), "the same settings must send the same of the same gradient")
    by_rank, by_tensor, by_step = _drawn(case, rank=1), _drawn(case, tensor=1), _drawn(case, step=7)
    if case.draws == "nothing":
        unchanged = first == by_rank == by_tensor == by_step
        hold(unchanged, "payloads must not depend on rank, step or tensor of a method that draws nothing")
        return
    if not has_seed:
        drawing = case.draws is not None or not first == by_rank == by_tensor
        hold(not drawing, "a method that draws, by rank or tensor, must have a seed among its settings")
        return
    other = _drawn(case, seed=1)
    # What is sent as it is needs no random numbers, whatever the seed.
    lossless = first.lossless and case.draws is None
    hold(first != other or lossless, "another seed must draw something else")
    if case.draws == "own" or (case.draws is None and first != by_rank):
        for name, changed in (("rank", by_rank), ("tensor", by_tensor), ("step", by_step)):
            hold(changed.payload != first.payload, f"another {name} must draw something else")
        state, grad = method.init(case.shape), case.gradients(1, 7)[0]
        sent = [send(method, state, grad).payload.tobytes() for _ in range(2)]
        hold(sent[0] != sent[1], "the next step must draw something else")
    if case.draws == "shared":
        theirs = _drawn(case, other=1, rank=1)
        alike = (first.coordinates, first.opening) == (theirs.coordinates, theirs.opening)
        hold(alike, "the coordinates and the opening round must be drawn alike by all workers")
        changed_too = (first.coordinates, first.opening) != (other.coordinates, other.opening)
        hold(changed_too, "another seed must draw other coordinates, or another opening round")


def check_workers(case: Case) -> None:
    """All workers get the mean of what each of them sent, or its sign where they vote, and it fits their states."""
    method, plan, workers = case.method, case.method.plan(case.shape), 3
    together, apart = ([method.init(case.shape) for _ in range(workers)] for _ in range(2))
    for step, grads in enumerate(case.gradients(5 * workers, 8).reshape(5, workers, -1)):
        result = exchange(method, list(grads), together, momentum=case.momentum)
        payloads, known = encoded(method, grads, apart, momentum=case.momentum)
        place: dict[str, Any] = {"step": step, "shape": case.shape}
        sent = [
            method.decode(payload[None], np.zeros(case.numel, F), opened=o, **place)
            for payload, o in zip(payloads, known)
        ]
        for state in apart:
            if state.memory is not None:
                plan.codec.absorb(np.stack(payloads), state.memory)
        total = np.sum(sent, axis=0, dtype=float)
        expected = np.sign(total) if plan.codec.votes else total / workers
        rounding = 1e-5 * np.abs(expected) + 1e-6 * np.abs(total).max()
        close(f"what {workers} workers get in step {step}", result, expected, rounding)
        hold(all(map(same_state, together, apart)), f"states after step {step} must follow from what each worker did")
    if plan.codec.memory and plan.codec.opening[0]:
        memories = {s.memory.tobytes() for s in together if s.memory is not None}
        learnt = all(s.memory is not None and s.memory.any() for s in together)
        hold(len(memories) == 1 and learnt, "what workers have agreed upon must be kept, the same by all of them")


def check_sparse_allreduce(case: Case) -> None:
    """Where payloads can be divided among workers, what they get and what they keep make up what all accumulated."""
    method, workers = case.method, 3
    plan = method.plan(case.shape).divided(workers)
    if plan is None:
        return
    codec, states = plan.codec, [method.init(case.shape) for _ in range(workers)]
    hold(codec.parts == workers, f"a plan divided among {workers} workers must have as many parts, got {codec.parts}")
    fed, received = np.zeros(case.numel), np.zeros(case.numel)
    for step, grads in enumerate(case.gradients(4 * workers, 10).reshape(4, workers, -1)):
        payloads = []
        for rank, (grad, state) in enumerate(zip(grads, states)):
            factor = clipping(method, grad, workers)
            update, kept = _core.Update(unscale=factor), (state.residual, state.velocity)
            proposal = _core.propose(codec, update, grad, *kept, randomness=method.randomness(0, step, rank))
            proposal.commit(update, grad, *kept)
            payloads.append(proposal.payload.reshape(workers, -1))
            fed += factor * grad.astype(float)
        sums = []
        for rank, state in enumerate(states):
            parts = np.stack([payload[rank] for payload in payloads])
            part, begin, left = codec.reduce(rank, parts, method.randomness(0, step, rank))
            if state.residual is not None:
                state.residual[begin : begin + left.size] += left
            sums.append(part)
        total = np.zeros(case.numel, F)
        codec.decode_add(np.concatenate(sums), total)
        received += total
    left_over = np.sum([state.residual.astype(float) for state in states if state.residual is not None], axis=0)
    close("sent and residual of all workers", received + left_over, fed, 1e-5 * np.abs(fed).max())


def check_adapters(case: Case) -> None:
    """The adapters follow ``plan`` alone, in two passes and on several threads: they must send and keep the same."""
    method, rng = case.method, np.random.default_rng(9)
    for shape in (case.shape, (37,)):
        numel, ours, theirs = math.prod(shape), method.init(shape), method.init(shape)
        for step in range(4):
            grad = (case.size * rng.standard_normal(numel)).astype(F)
            momentum = case.momentum if method.plan(shape, step).momentum == "local" else 0.0
            sent = send(method, ours, grad, momentum=momentum)
            payload, values = _as_adapters_do(method, theirs, grad, momentum)
            for what, same in (
                ("the payload", sent.payload.tobytes() == payload.tobytes()),
                ("what is decoded", sent.values.tobytes() == values.tobytes()),
                ("the state", same_state(ours, theirs)),
            ):
                hold(same, f"{what} of step {step}, shape {shape}, must be what an adapter makes of it: {_FOLLOWED}")


def _as_adapters_do(method: Method, state: State, grad: FloatArray, momentum: float) -> tuple[ByteArray, FloatArray]:
    """Payload and the values it decodes to, by plan() and randomness() alone; updates ``state``."""
    plan, randomness = method.plan(state.shape, state.step), method.randomness(0, state.step, 0)
    update = _core.Update(momentum=momentum, unscale=clipping(method, grad))
    kept, known = (state.residual, state.velocity), None
    if plan.codec.opening[0]:
        _, own = _core.open(plan.codec, update, grad, *kept, randomness=randomness, memory=state.memory)
        known = opened(plan, [own])[0]
    proposal = _core.propose(
        plan.codec,
        update,
        grad,
        *kept,
        randomness=randomness,
        opened=known,
        memory=state.memory,
        sample_ratio=plan.sample_ratio,
        threads=3,
    )
    proposal.commit(update, grad, *kept, memory=state.memory, mask_velocity=plan.masking)
    state.step += 1
    values, payload = np.zeros(grad.size, F), proposal.payload
    if plan.codec.votes:
        plan.codec.decode_votes(payload, values)
    else:
        plan.codec.decode_add(payload, values, randomness=randomness, opened=known)
    if state.memory is not None:
        plan.codec.absorb(payload, state.memory)
    return payload, values
