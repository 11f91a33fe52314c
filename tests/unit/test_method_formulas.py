"""Every method on NumPy arrays against a transcription of its formula, and what follows from the formulas."""

from __future__ import annotations

import math
from collections.abc import Callable

import method_cases as cases
import numpy as np
import pytest
from method_cases import CASES, Case, F

from horovod_dgc import (
    METHODS,
    CountSketch,
    FixedProportion,
    Method,
    OneBitSGD,
    Plan,
    PowerSGD,
    TernGrad,
    VarianceBased,
)

every_case = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
MOMENTUM = 0.9


def momentum_of(method: Method) -> float:
    return MOMENTUM if method.corrects_momentum else 0.0


def gradients(shape: tuple[int, ...], steps: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((steps, math.prod(shape))).astype(F) * rng.lognormal(0, 0.5, math.prod(shape)).astype(F)


def test_no_method_is_left_out() -> None:
    assert {type(case.method) for case in CASES} == set(METHODS.values())


def test_what_each_method_keeps() -> None:
    def names(kept: Callable[[Plan], bool]) -> set[str]:
        return {case.name for case in CASES if kept(case.method.plan(case.shape))}

    corrected = {name for name in (case.name for case in CASES) if "momentum" in name} | {"dgc", "signum"}
    corrected |= {"dryden no feedback"}
    assert names(lambda plan: plan.momentum == "local") == corrected
    # Nothing is cleared where that would make a bias, or where every coordinate is sent.
    cleared = corrected - {"topk momentum unmasked", "randomk unbiased momentum", "signum", "efsignsgd momentum"}
    assert names(lambda plan: plan.masking) == cleared
    without = {case.name for case in CASES if "no feedback" in case.name or "unbiased" in case.name}
    quantised = {case.name for case in CASES if case.draws == "own"}
    kept_nothing = without | quantised | {"signsgd", "signum", "fp16", "bf16", "powersgd 1"}
    assert names(lambda plan: not plan.residual) == kept_nothing


@every_case
def test_steps_follow_the_formula(case: Case) -> None:
    method, plan = case.method, case.method.plan(case.shape)
    state, worker = method.init(case.shape), cases.Worker(case.shape)
    momentum = momentum_of(method)
    assert (plan.momentum == "local") is method.corrects_momentum
    assert (state.residual is not None) is plan.residual
    for g in gradients(case.shape, 8, 1):
        _, seen, opened = cases.step(method, state, g, momentum=momentum)
        worker.u = F(momentum) * worker.u + g
        part = worker.u if plan.momentum else g
        v = worker.r + part if plan.residual else part
        sent = case.formula(cases.Look(v, part, worker, seen, opened))
        np.testing.assert_allclose(seen, sent, rtol=0, atol=case.tolerance * np.abs(v).max())
        if plan.residual:
            np.testing.assert_array_equal(state.residual, v - seen)
            worker.r = v - seen
        if plan.masking and not plan.every_coordinate:
            worker.u[seen != 0] = 0
        if plan.momentum:
            np.testing.assert_array_equal(state.velocity, worker.u)
        if plan.codec.wants_squares:
            np.testing.assert_allclose(state.memory, worker.s, rtol=1e-6, atol=1e-6)
            worker.s = state.memory.copy()


@every_case
def test_sent_and_residual_make_up_what_was_accumulated(case: Case) -> None:
    method = case.method
    if not method.plan(case.shape).residual:
        assert method.init(case.shape).residual is None
        return
    state = method.init(case.shape)
    # Exact in every sum, so that all there is to lose is the rounding of what is sent.
    fed, received = np.zeros(600), np.zeros(600)
    for g in np.rint(gradients(case.shape, 40, 2) * 1024).astype(F) / 1024:
        received += cases.step(method, state, g)[1]
        fed += g
    np.testing.assert_allclose(received + state.residual, fed, rtol=0, atol=2e-4)
    assert np.abs(state.residual).max() > 0 or case.name.endswith("whole")


@pytest.mark.parametrize(
    "name", ["topk float32", "randomk", "countsketch", "strom", "vgc", "vgc float32", "powersgd whole"]
)
def test_nothing_is_lost_to_the_last_bit(name: str) -> None:
    case = next(case for case in CASES if case.name == name)
    state = case.method.init(case.shape)
    fed, received = np.zeros(600), np.zeros(600)
    for g in np.rint(gradients(case.shape, 40, 2) * 4).astype(F) / 2:
        received += cases.step(case.method, state, g)[1]
        fed += g
    np.testing.assert_array_equal(received + state.residual, fed)


UNBIASED = [case for case in CASES if case.neighbours]


def test_what_is_called_unbiased() -> None:
    kinds = {"qsgd", "terngrad unclipped", "terngrad shared", "dorefa", "natural", "randomk unbiased"}
    assert kinds <= {case.name for case in UNBIASED}


@pytest.mark.parametrize("case", UNBIASED, ids=[case.name for case in UNBIASED])
def test_the_mean_over_many_steps_is_the_gradient(case: Case) -> None:
    draws = 3_000
    v = gradients(case.shape, 1, 3)[0]
    state = case.method.init(case.shape)
    total = np.zeros(v.size)
    for _ in range(draws):
        total += cases.step(case.method, state, v)[1]
    assert state.step == draws
    low, high = case.neighbours(v)
    deviation = np.sqrt(np.abs((high - v) * (v - low)) / draws)
    rounding = 1e-6 * np.abs(v).max()
    # Of 600 elements, one in 3,000 files would be more than five standard errors away.
    assert (np.abs(total / draws - v) <= 5 * deviation + rounding).all()


def test_clipping_is_at_standard_deviations_and_equal_values_are_not_clipped() -> None:
    v = gradients((20, 30), 1, 4)[0]
    method = TernGrad(clip=1.0)
    _, sent, _ = cases.step(method, method.init((20, 30)), v)
    assert np.abs(sent).max() == pytest.approx(v.astype(float).std(), rel=1e-6)
    for n in (3, 1000):
        same = np.full(n, 0.1, F)
        np.testing.assert_array_equal(cases.step(method, method.init((1, n)), same)[1], same)


def test_a_shared_scale_is_the_largest_of_all_workers() -> None:
    method = TernGrad(clip=None, shared_scale=True)
    v = gradients((20, 30), 1, 5)[0]
    seen = cases.step(method, method.init((20, 30)), v, opened=np.array([9.0], F))[1]
    assert set(np.unique(np.abs(seen))) == {0.0, 9.0}


def test_columns_are_output_units_where_the_framework_has_them_last() -> None:
    first, last = (OneBitSGD().plan((4, 6, 5), outputs=outputs) for outputs in ("first", "last"))
    assert first.payload_nbytes == 4 * 2 * 4 + 120 // 8
    assert last.payload_nbytes == 5 * 2 * 4 + 120 // 8
    assert PowerSGD(1).plan((4, 6, 5), outputs="first").payload_nbytes == 4 * 30
    assert PowerSGD(1).plan((4, 6, 5), outputs="last").payload_nbytes == 4 * 5


def test_one_coordinate_goes_to_the_larger_sign() -> None:
    method = FixedProportion(0.001)
    state = method.init((10, 10))
    sent = [cases.step(method, state, np.where(np.arange(100) % 2, F(1), F(-2)))[1].sum() for _ in range(3)]
    assert sent[0] == -2 and sent[1] == -4


def test_the_first_gradient_alone_is_ambiguous() -> None:
    method = VarianceBased(cap=1.0, values="float32")
    state = method.init((10, 10))
    g = np.arange(1, 101, dtype=F)
    assert not cases.step(method, state, g)[1].any()
    np.testing.assert_array_equal(cases.step(method, state, g)[1], 2 * g)


def test_second_moments_of_samples_are_used_where_they_are_known() -> None:
    method = VarianceBased(cap=1.0, values="float32")
    g = np.ones(100, F)
    squares = np.where(np.arange(100) < 30, F(0.5), F(1.5))
    state = method.init((10, 10))
    method.encode(g, state, squares=squares)
    assert np.count_nonzero(state.residual == 0) == 30
    np.testing.assert_array_equal(state.memory, np.where(np.arange(100) < 30, F(0), F(0.999) * F(1.5)))


@pytest.mark.parametrize("threshold", [None, 2.0])
def test_one_step_out_of_all_proportion_does_not_silence_a_coordinate_for_ever(threshold: float | None) -> None:
    method = VarianceBased(cap=1.0, values="float32", threshold=threshold)
    state = method.init((1, 4))
    cases.step(method, state, np.full(4, 1e25, F))
    for _ in range(3):
        sent = cases.step(method, state, np.full(4, 1.0, F))[1]
        assert np.isfinite(state.memory).all()
    assert sent.all() or np.abs(state.residual).max() < 1e20


def test_the_sketch_finds_heavy_coordinates_of_the_sum_over_workers() -> None:
    rng = np.random.default_rng(6)
    method = CountSketch(0.0006, rows=9, columns=60)
    heavy = rng.choice(10_000, 6, replace=False)
    parts = rng.standard_normal((3, 10_000)).astype(F) * F(0.01)
    # Heavy in the sum only: on worker 0, other coordinates are larger.
    parts[:, heavy] += F(1)
    parts[0, (heavy + 1) % 10_000] += F(2)
    parts[1, (heavy + 1) % 10_000] -= F(2)
    states = [method.init((100, 100)) for _ in parts]
    opened = np.sum([method.open(g, s) for g, s in zip(parts, states)], axis=0)
    for g, state in zip(parts, states):
        sent = cases.step(method, state, g, opened=opened)[1]
        np.testing.assert_array_equal(np.flatnonzero(sent), np.sort(heavy))
        np.testing.assert_array_equal(sent[heavy], g[heavy])


def test_power_iteration_converges_to_the_best_approximation_of_its_rank() -> None:
    rng = np.random.default_rng(7)
    matrix = rng.standard_normal((20, 3)) @ np.diag([9, 5, 1]) @ rng.standard_normal((3, 30))
    left, sizes, right = np.linalg.svd(matrix)
    best = (left[:, :2] * sizes[:2]) @ right[:2]
    method = PowerSGD(2, error_feedback=False)
    state = method.init((20, 30))
    for _ in range(30):
        sent = cases.step(method, state, matrix.astype(F).ravel())[1]
    np.testing.assert_allclose(sent.reshape(20, 30), best, atol=1e-3)


def test_power_iteration_survives_one_step_out_of_all_proportion() -> None:
    method = PowerSGD()
    state = method.init((20, 30))
    for size in (1e25, 1.0, 1e-25, 1.0):
        sent = cases.step(method, state, gradients((20, 30), 1, 8)[0] * F(size))[1]
        assert np.isfinite(sent).all() and np.isfinite(state.memory).all()
