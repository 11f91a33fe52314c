"""What follows from the formulas of single methods; the battery has the formulas themselves."""

from __future__ import annotations

import math

import numpy as np
import pytest
from method_cases import ENTRIES, F

from horovod_dgc import CountSketch, FixedProportion, OneBitSGD, PowerSGD, TernGrad, VarianceBased
from horovod_dgc.testing import send


def gradients(shape: tuple[int, ...], steps: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((steps, math.prod(shape))).astype(F) * rng.lognormal(0, 0.5, math.prod(shape)).astype(F)


@pytest.mark.parametrize(
    "name",
    ["topk float32", "randomk 5 %", "countsketch 2 %", "strom sparse", "vgc 10 %", "vgc float32", "powersgd whole"],
)
def test_nothing_is_lost_to_the_last_bit(name: str) -> None:
    case = next(case for case in ENTRIES if case.name == name)
    state = case.method.init(case.shape)
    fed, received = np.zeros(600), np.zeros(600)
    for g in np.rint(gradients(case.shape, 40, 2) * 4).astype(F) / 2:
        received += send(case.method, state, g).values
        fed += g
    np.testing.assert_array_equal(received + state.residual, fed)


def test_what_is_called_unbiased() -> None:
    kinds = {"qsgd", "terngrad unclipped", "terngrad shared", "dorefa", "natural", "randomk unbiased"}
    assert kinds <= {case.name for case in ENTRIES if case.neighbours}


def test_clipping_is_at_standard_deviations_and_equal_values_are_not_clipped() -> None:
    v = gradients((20, 30), 1, 4)[0]
    method = TernGrad(clip=1.0)
    sent = send(method, method.init((20, 30)), v).values
    assert np.abs(sent).max() == pytest.approx(v.astype(float).std(), rel=1e-6)
    for n in (3, 1000):
        same = np.full(n, 0.1, F)
        np.testing.assert_array_equal(send(method, method.init((1, n)), same).values, same)


def test_a_shared_scale_is_the_largest_of_all_workers() -> None:
    method = TernGrad(clip=None, shared_scale=True)
    v = gradients((20, 30), 1, 5)[0]
    seen = send(method, method.init((20, 30)), v, opening=np.array([9.0], F)).values
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
    sent = [send(method, state, np.where(np.arange(100) % 2, F(1), F(-2))).values.sum() for _ in range(3)]
    assert sent[0] == -2 and sent[1] == -4


def test_the_first_gradient_alone_is_ambiguous() -> None:
    method = VarianceBased(cap=1.0, values="float32")
    state = method.init((10, 10))
    g = np.arange(1, 101, dtype=F)
    assert not send(method, state, g).values.any()
    np.testing.assert_array_equal(send(method, state, g).values, 2 * g)


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
    send(method, state, np.full(4, 1e25, F))
    for _ in range(3):
        sent = send(method, state, np.full(4, 1.0, F)).values
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
        sent = send(method, state, g, opening=opened).values
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
        sent = send(method, state, matrix.astype(F).ravel()).values
    np.testing.assert_allclose(sent.reshape(20, 30), best, atol=1e-3)


def test_power_iteration_survives_one_step_out_of_all_proportion() -> None:
    method = PowerSGD()
    state = method.init((20, 30))
    for size in (1e25, 1.0, 1e-25, 1.0):
        sent = send(method, state, gradients((20, 30), 1, 8)[0] * F(size)).values
        assert np.isfinite(sent).all() and np.isfinite(state.memory).all()
