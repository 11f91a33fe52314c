"""What holds for every method alike: sizes, seeds, awkward tensors, faults, and all workers of a job together."""

from __future__ import annotations

import copy
import dataclasses
import math

import method_cases as cases
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from method_cases import CASES, Case, F

from horovod_dgc import (
    BF16,
    DGC,
    FP16,
    QSGD,
    AdaComp,
    DoReFa,
    EFSignSGD,
    Int8,
    Method,
    NaturalCompression,
    OneBitSGD,
    SignSGD,
    State,
    TernGrad,
    ThresholdQuantization,
    VarianceBased,
    exchange,
    traffic,
)

every_case = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
SHAPES = [(1, 1), (1, 7), (7, 1), (3, 2, 2, 2), (40, 30)]


def normal(shape: tuple[int, ...], count: int, seed: int, size: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, math.prod(shape))).astype(F) * F(size)


def index_bytes(method: Method, n: int, k: int) -> int:
    if method.indices == "int32":
        return 4 * k
    low = math.floor(math.log2(n / k))
    return math.ceil(k * low / 8) + math.ceil((k + ((n - 1) >> low)) / 8)


def same_state(a: State, b: State) -> bool:
    arrays = ((a.residual, b.residual), (a.velocity, b.velocity), (a.memory, b.memory))
    return a.step == b.step and all(
        (x is None) is (y is None) and (x is None or x.tobytes() == y.tobytes()) for x, y in arrays
    )


@every_case
def test_bytes_are_those_counted_by_hand_whatever_the_data(case: Case) -> None:
    method = case.method
    indices = 0 if case.coordinates is None else index_bytes(method, 600, case.coordinates)
    assert method.payload_nbytes(case.shape) == case.bits / 8 + indices
    assert method.plan(case.shape).opening_nbytes == 4 * case.opening
    for g in (*normal(case.shape, 2, 1), np.zeros(600, F), np.full(600, 2.0, F)):
        assert cases.step(method, method.init(case.shape), g)[0].nbytes == method.payload_nbytes(case.shape)


@pytest.mark.parametrize(
    ("method", "nbytes"),
    [
        (SignSGD(), 10 + 4),
        (EFSignSGD(), 10 + 4),
        (OneBitSGD(), 10 + 7 * 2 * 4),
        (QSGD(4, 10), 39 + 8 * 4),
        (TernGrad(), 16 + 2 * 4),
        (DoReFa(3), 29 + 4),
        (NaturalCompression(), 10 + 77),
        (FP16(), 2 * 77),
        (BF16(), 2 * 77),
        (Int8(), 77 + 4),
        (ThresholdQuantization(cap=1.0), 16 + 2 * 4),
        (AdaComp(), 1 + 2 * 4 + math.ceil(5 * 3 / 8) + math.ceil((5 + (76 >> 3)) / 8)),
        (VarianceBased(cap=1.0), 39 + 4),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Method) else "",
)
def test_bytes_of_a_tensor_of_odd_size(method: Method, nbytes: int) -> None:
    assert method.payload_nbytes((7, 11)) == nbytes


@every_case
def test_biases_are_sent_whole(case: Case) -> None:
    per_element = {DGC: 2, FP16: 2, BF16: 2, Int8: 1}.get(type(case.method), 4)
    scales = 4 * 2 if isinstance(case.method, Int8) else 0
    plan = case.method.plan((300,))
    assert plan.payload_nbytes == 300 * per_element + scales and plan.every_coordinate
    assert plan.momentum == ("aggregated" if case.method.corrects_momentum else None)
    state = case.method.init((300,))
    g = normal((300,), 1, 2)[0]
    _, sent, _ = cases.step(case.method, state, g)
    np.testing.assert_allclose(sent, g, rtol=2**-8, atol=np.abs(g).max() / 250 if scales else 0)
    assert not case.method.plan(()).codec.opening[0] and case.method.plan((0, 3)).payload_nbytes == 0


def test_traffic_counts_the_opening_round() -> None:
    method = next(case.method for case in CASES if case.name == "powersgd")
    assert traffic([(20, 30), (30,)], method).sparse == 30 * 2 * 4 + 20 * 2 * 4


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", ["zero", "constant", "one element", "huge", "subnormal", "negative zero"])
@every_case
def test_awkward_tensors(case: Case, kind: str, shape: tuple[int, ...]) -> None:
    method, numel, workers = case.method, math.prod(shape), 2
    states = [method.init(shape) for _ in range(workers)]
    fed, received = np.zeros(numel), np.zeros(numel)
    for step in range(3):
        one = np.zeros((workers, numel), F)
        one[:, numel // 2] = -3
        grads = {
            "zero": np.zeros((workers, numel), F),
            "negative zero": np.full((workers, numel), -0.0, F),
            "constant": np.full((workers, numel), 0.1, F),
            "one element": one,
            "huge": normal(shape, workers, step, 1e36),
            "subnormal": normal(shape, workers, step, 1e-42),
        }[kind]
        result = exchange(method, list(grads), states)
        assert np.isfinite(result).all()
        assert all(x is None or np.isfinite(x).all() for s in states for x in (s.residual, s.velocity, s.memory))
        if "zero" in kind:
            assert (result == (1 if method.plan(shape).codec.votes else 0)).all()
        fed += grads.sum(axis=0, dtype=float)
        received += workers * result.astype(float)
    if method.plan(shape).residual:
        left = np.sum([s.residual for s in states], axis=0, dtype=float)
        # Subnormal velocities become 0.
        rounding = 1e-38 if states[0].velocity is not None else 1e-43
        np.testing.assert_allclose(received + left, fed, rtol=0, atol=1e-5 * np.abs(fed).max() + rounding)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@every_case
def test_what_is_not_finite_is_told_and_changes_nothing(case: Case, bad: float) -> None:
    method = case.method
    momentum = 0.9 if method.corrects_momentum else 0.0
    states = [method.init(case.shape) for _ in range(2)]
    for grads in normal(case.shape, 6, 3).reshape(3, 2, 600):
        exchange(method, list(grads), states, momentum=momentum)
    before = copy.deepcopy(states)
    grads = normal(case.shape, 2, 4)
    grads[1, -1] = bad
    openings = [method.open(g, s, rank=r, momentum=momentum) for r, (g, s) in enumerate(zip(grads, states))]
    opened = None if openings[0] is None else np.sum(openings, axis=0)
    shared = {"opened": opened, "momentum": momentum}
    payloads = [method.encode(g, s, rank=r, **shared) for r, (g, s) in enumerate(zip(grads, states))]
    assert same_state(states[1], before[1])
    assert opened is None or same_state(states[0], before[0])
    place = {"step": before[0].step, "shape": case.shape, "opened": opened}
    assert np.isnan(method.decode(payloads[1][None], np.zeros(600, F), **place)).any()
    assert np.isnan(method.decode(np.stack(payloads), np.zeros(600, F), **place)).any()


def variants(case: Case) -> list[Method]:
    return [dataclasses.replace(case.method, seed=seed) for seed in (0, 0, 1)]


def test_what_draws_has_a_seed_and_what_does_not_has_none() -> None:
    for case in CASES:
        named = "seed" in {field.name for field in dataclasses.fields(case.method)}
        assert named or case.draws is None


@pytest.mark.parametrize("case", [c for c in CASES if c.draws is None], ids=lambda case: case.name)
def test_without_random_numbers_rank_and_step_change_nothing(case: Case) -> None:
    g = normal(case.shape, 1, 5)[0]
    payloads = set()
    for rank, step in ((0, 0), (1, 0), (0, 7)):
        state = case.method.init(case.shape)
        state.step = step
        payloads.add(cases.step(case.method, state, g, rank=rank)[0].tobytes())
    assert len(payloads) == 1


@pytest.mark.parametrize("case", [c for c in CASES if c.draws == "own"], ids=lambda case: case.name)
def test_workers_draw_on_their_own(case: Case) -> None:
    g = normal(case.shape, 1, 5)[0]
    first, again, other = (cases.step(m, m.init(case.shape), g)[0].tobytes() for m in variants(case))
    assert first == again != other
    method, state = variants(case)[0], case.method.init(case.shape)
    assert cases.step(method, state, g)[0].tobytes() == first
    assert cases.step(method, state, g)[0].tobytes() != first
    assert cases.step(method, method.init(case.shape), g, rank=1)[0].tobytes() != first
    opened = method.open(g, method.init(case.shape))
    assert method.encode(g, method.init(case.shape), tensor=1, opened=opened).tobytes() != first


@pytest.mark.parametrize("case", [c for c in CASES if c.draws == "shared"], ids=lambda case: case.name)
def test_workers_draw_alike(case: Case) -> None:
    """Where the drawing decides about coordinates, these are the same on all; where about a basis, that is."""
    mine, theirs = normal(case.shape, 2, 6)
    methods = variants(case)
    supports, openings = [], []
    for method, g, rank in ((methods[0], mine, 0), (methods[1], theirs, 1), (methods[2], mine, 0)):
        state = method.init(case.shape)
        opened = method.open(mine, state, rank=rank)
        supports.append(tuple(np.flatnonzero(cases.step(method, state, g, rank=rank, opened=opened)[1])))
        openings.append(None if opened is None else opened.tobytes())
    assert supports[0] == supports[1] and openings[0] == openings[1]
    assert (supports[0], openings[0]) != (supports[2], openings[2])


@every_case
def test_all_workers_get_the_mean_of_what_each_sent_or_its_sign(case: Case) -> None:
    method, plan, workers = case.method, case.method.plan(case.shape), 3
    momentum = 0.9 if method.corrects_momentum else 0.0
    together, apart = ([method.init(case.shape) for _ in range(workers)] for _ in range(2))
    for step, grads in enumerate(normal(case.shape, 5 * workers, 7).reshape(5, workers, -1)):
        result = exchange(method, list(grads), together, momentum=momentum)
        openings = [method.open(g, s, rank=r, momentum=momentum) for r, (g, s) in enumerate(zip(grads, apart))]
        opened = None
        if openings[0] is not None:
            opened = (np.max if plan.codec.opening[1] else np.sum)(openings, axis=0).astype(F)
        payloads, sent = [], []
        for rank, (g, state) in enumerate(zip(grads, apart)):
            payloads.append(method.encode(g, state, rank=rank, opened=opened, momentum=momentum))
            out = np.zeros(g.size, F)
            sent.append(method.decode(payloads[-1][None], out, step=step, shape=case.shape, opened=opened))
        for state in apart:
            if state.memory is not None:
                plan.codec.absorb(np.stack(payloads), state.memory)
        total = np.sum(sent, axis=0, dtype=float)
        expected = np.sign(total) if plan.codec.votes else total / workers
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6 * np.abs(total).max())
        assert all(same_state(a, b) for a, b in zip(together, apart))
    if case.name.startswith("powersgd") and plan.codec.memory:
        assert len({s.memory.tobytes() for s in together}) == 1 and together[0].memory.any()


@settings(max_examples=300, deadline=None)
@given(
    case=st.sampled_from(CASES),
    shape=st.lists(st.integers(1, 9), min_size=2, max_size=4).map(tuple),
    outputs=st.sampled_from(["first", "last"]),
    seed=st.integers(0, 2**32),
)
def test_any_shape(case: Case, shape: tuple[int, ...], outputs: str, seed: int) -> None:
    method, numel = case.method, math.prod(shape)
    plan = method.plan(shape, outputs=outputs)
    assert plan.numel == numel and 1 <= plan.sent <= numel
    state, fed, received = method.init(shape), np.zeros(numel), np.zeros(numel)
    for g in normal(shape, 3, seed):
        payload, sent, _ = cases.step(method, state, g)
        assert payload.nbytes == method.plan(shape).payload_nbytes
        assert np.isfinite(sent).all() and np.count_nonzero(sent) <= plan.sent
        fed += g
        received += sent
    if plan.residual:
        np.testing.assert_allclose(received + state.residual, fed, rtol=0, atol=1e-4)
