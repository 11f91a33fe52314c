"""DGC on NumPy arrays against a transcription of the paper's formulas."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from horovod_dgc import DGC, Warmup
from horovod_dgc.coding import coordinates_to_send

VALUES = ("float32", "float16", "bfloat16", "int8", "int4")
INDICES = ("elias-fano", "runlength16", "int32")
F = np.float32


class Reference:
    """u = m u + g, v = v + u (equation 5; Nesterov as torch defines it), top-k by magnitude then index, masking."""

    def __init__(self, numel: int) -> None:
        self.u, self.v = np.zeros(numel, F), np.zeros(numel, F)

    def step(self, g: np.ndarray, k: int, *, momentum: float, nesterov: bool, masking: bool) -> np.ndarray:
        self.u = F(momentum) * self.u + g
        self.v = self.v + (g + F(momentum) * self.u if nesterov else self.u)
        order = np.lexsort((np.arange(g.size), -np.abs(self.v)))
        chosen = order[:k]
        sent = np.zeros_like(g)
        sent[chosen] = self.v[chosen]
        self.v[chosen] = 0
        if masking and k < g.size:
            self.u[chosen] = 0
        return sent


def decoded(method: DGC, payload: np.ndarray, numel: int, step: int | None = None) -> np.ndarray:
    return method.decode(payload[None], np.zeros(numel, F), step=step)


@pytest.mark.parametrize("indices", INDICES)
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("masking", [False, True])
@pytest.mark.parametrize("density", [0.001, 0.01, 0.3, 1.0])
def test_steps_follow_the_formulas(indices: str, nesterov: bool, masking: bool, density: float) -> None:
    numel = 20_011
    rng = np.random.default_rng(3)
    method = DGC(density=density, values="float32", indices=indices, factor_masking=masking)
    state, reference = method.init(numel), Reference(numel)
    assert state.velocity is not None
    for _ in range(5):
        g = rng.standard_normal(numel).astype(F) * rng.lognormal(0, 2, numel).astype(F)
        payload = method.encode(g, state, momentum=0.9, nesterov=nesterov)
        sent = reference.step(g, math.ceil(density * numel), momentum=0.9, nesterov=nesterov, masking=masking)
        np.testing.assert_array_equal(decoded(method, payload, numel), sent)
        np.testing.assert_array_equal(state.residual, reference.v)
        np.testing.assert_array_equal(state.velocity, reference.u)


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("indices", INDICES)
def test_sent_and_residual_make_up_what_was_accumulated(values: str, indices: str) -> None:
    numel, steps = 5_000, 20
    rng = np.random.default_rng(4)
    method = DGC(density=0.02, values=values, indices=indices)
    state = method.init(numel)
    fed, received = np.zeros(numel), np.zeros(numel)
    for _ in range(steps):
        g = rng.standard_normal(numel).astype(F)
        received += decoded(method, method.encode(g, state), numel)
        fed += g
    np.testing.assert_allclose(received + state.residual, fed, atol=1e-5)


@settings(max_examples=150, deadline=None)
@given(
    gradients=st.integers(1, 200).flatmap(
        lambda n: hnp.arrays(
            np.float32, (3, n), elements=st.floats(-(2.0**50), 2.0**50, width=32, allow_subnormal=False)
        )
    ),
    values=st.sampled_from(VALUES),
    indices=st.sampled_from(INDICES),
    density=st.floats(0.001, 1.0),
)
def test_residual_is_what_decoding_leaves(gradients: np.ndarray, values: str, indices: str, density: float) -> None:
    """For any finite input: residual after = residual before + gradient - sent, to one rounding each."""
    numel = gradients.shape[1]
    method = DGC(density=density, values=values, indices=indices)
    state = method.init(numel)
    for g in gradients:
        accumulated = state.residual + g
        sent = decoded(method, method.encode(g, state), numel)
        assert np.count_nonzero(sent) <= coordinates_to_send(numel, density)
        np.testing.assert_array_equal(state.residual, accumulated - sent)


def test_several_workers_payloads_add_up_in_order() -> None:
    numel = 3_000
    rng = np.random.default_rng(5)
    method = DGC(density=0.1, values="float32")
    payloads, expected = [], np.zeros(numel, F)
    for _ in range(5):
        payload = method.encode(rng.standard_normal(numel).astype(F), method.init(numel))
        payloads.append(payload)
        expected += decoded(method, payload, numel) * F(0.2)
    out = method.decode(np.stack(payloads), np.zeros(numel, F), scale=0.2)
    np.testing.assert_array_equal(out, expected)


def test_weight_decay_is_local_and_before_momentum() -> None:
    numel = 1_000
    rng = np.random.default_rng(6)
    g, w = rng.standard_normal((2, numel)).astype(F)
    method = DGC(density=1.0, values="float32")
    with_decay, by_hand = method.init(numel), method.init(numel)
    for _ in range(3):
        a = method.encode(g, with_decay, momentum=0.9, weight_decay=0.1, weights=w)
        b = method.encode(g + F(0.1) * w, by_hand, momentum=0.9)
        np.testing.assert_array_equal(a, b)


def test_the_first_step_is_not_dampened() -> None:
    g = np.arange(1, 11, dtype=F)
    method = DGC(density=1.0, values="float32")
    state = method.init(10)
    first = decoded(method, method.encode(g, state, momentum=0.5, dampening=0.25), 10)
    second = decoded(method, method.encode(g, state, momentum=0.5, dampening=0.25), 10)
    np.testing.assert_array_equal(first, g)
    np.testing.assert_allclose(second, 0.5 * g + 0.75 * g)


@pytest.mark.parametrize("workers", [1, 4, 9])
def test_clipping_is_local_with_the_threshold_times_root_n(workers: int) -> None:
    g = np.full(400, 3.0, F)
    method = DGC(density=1.0, values="float32", clip_norm=6.0)
    sent = decoded(method, method.encode(g, method.init(400), workers=workers), 400)
    assert np.linalg.norm(sent) == pytest.approx(6.0 * math.sqrt(workers), rel=1e-5)
    small = np.full(400, 1e-3, F)
    np.testing.assert_array_equal(decoded(method, method.encode(small, method.init(400), workers=workers), 400), small)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("density", [0.01, 1.0])
def test_a_gradient_that_is_not_finite_is_seen_and_changes_nothing(bad: float, values: str, density: float) -> None:
    rng = np.random.default_rng(7)
    method = DGC(density=density, values=values)
    state = method.init(3_000)
    method.encode(rng.standard_normal(3_000).astype(F), state, momentum=0.9)
    before = dataclasses.replace(state, residual=state.residual.copy(), velocity=np.copy(state.velocity))
    g = rng.standard_normal(3_000).astype(F)
    g[2_999] = bad
    kept = g.copy()
    payload = method.encode(g, state, momentum=0.9, zero_grad=True)
    assert payload.size == method.payload_nbytes(3_000)
    assert np.isnan(decoded(method, payload, 3_000)).any()
    np.testing.assert_array_equal(g, kept)
    np.testing.assert_array_equal(state.residual, before.residual)
    np.testing.assert_array_equal(state.velocity, before.velocity)
    assert state.step == before.step


@pytest.mark.parametrize("dtype", [np.float16, "bfloat16"])
def test_half_precision_gradients_are_taken_exactly(dtype: object) -> None:
    rng = np.random.default_rng(8)
    wide = rng.standard_normal(2_000).astype(F)
    if dtype == "bfloat16":
        half = (wide.view(np.uint32) >> 16).astype(np.uint16)
        exact = (half.astype(np.uint32) << 16).view(F)
    else:
        half = wide.astype(np.float16)
        exact = half.astype(F)
    method = DGC(density=0.05, values="float32")
    a, b = method.init(2_000), method.init(2_000)
    np.testing.assert_array_equal(method.encode(half, a, momentum=0.9), method.encode(exact, b, momentum=0.9))
    np.testing.assert_array_equal(a.residual, b.residual)


def test_zero_grad_leaves_the_gradient_zeroed() -> None:
    g = np.ones(1_000, F)
    DGC().encode(g, DGC().init(1_000), zero_grad=True)
    assert not g.any()


def test_sampling_changes_nothing_but_speed() -> None:
    rng = np.random.default_rng(9)
    g = rng.standard_normal(300_000).astype(F)
    payloads = {DGC(sample_ratio=ratio).encode(g, DGC().init(g.size)).tobytes() for ratio in (0.001, 0.01, 0.3, 1.0)}
    assert len(payloads) == 1


def test_threads_change_nothing_but_speed() -> None:
    rng = np.random.default_rng(10)
    g = rng.standard_normal(3_000_000).astype(F)
    results = []
    for threads in (1, 2, 3):
        state = DGC().init(g.size)
        payload = DGC().encode(g, state, momentum=0.9, threads=threads)
        out = DGC().decode(np.stack([payload] * 3), np.zeros(g.size, F), threads=threads)
        results.append((payload.tobytes(), state.residual.tobytes(), out.tobytes()))
    assert results[0] == results[1] == results[2]


def test_warmup_follows_the_paper() -> None:
    method = DGC(density=0.001, warmup=Warmup(epochs=4, steps_per_epoch=100))
    densities = [method.density_at(step) for step in (0, 99, 100, 199, 200, 299, 300, 399, 400, 10**6)]
    assert densities == [0.25, 0.25, 0.0625, 0.0625, 0.015625, 0.015625, 0.004, 0.004, 0.001, 0.001]
    assert method.density_at(None) == 0.001
    assert DGC(density=0.1, warmup=Warmup(steps=8)).density_at(5) == 0.1
    assert DGC(warmup=lambda step: 0.5 / (step + 1)).density_at(4) == 0.1


def test_payloads_follow_the_warmup() -> None:
    method = DGC(density=0.001, values="float32", indices="int32", warmup=Warmup(steps=4))
    state = method.init(10_000)
    lengths = [method.encode(np.ones(10_000, F), state).nbytes for _ in range(6)]
    assert lengths == [8 * k for k in (2500, 625, 157, 40, 10, 10)]


@pytest.mark.parametrize(("numel", "density", "k"), [(3000, 0.001, 3), (1, 0.001, 1), (0, 0.5, 0), (1001, 0.001, 2)])
def test_number_of_coordinates(numel: int, density: float, k: int) -> None:
    assert coordinates_to_send(numel, density) == k


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"density": 0}, ("density", "0", "(0, 1]")),
        ({"density": 1.5}, ("density", "1.5")),
        ({"density": math.nan}, ("density", "nan")),
        ({"density": "1%"}, ("density", "'1%'")),
        ({"values": "int5"}, ("values", "int5", "int4", "float16")),
        ({"indices": "elias_fano"}, ("indices", "did you mean 'elias-fano'")),
        ({"exempt_values": "f16"}, ("exempt_values", "f16", "float16")),
        ({"clip_norm": -1.0}, ("clip_norm", "-1.0")),
        ({"clip_norm": math.inf}, ("clip_norm", "inf")),
        ({"clip_scope": "layer"}, ("clip_scope", "layer", "tensor")),
        ({"sample_ratio": 0.0}, ("sample_ratio", "0.0")),
        ({"factor_masking": 1}, ("factor_masking", "True or False")),
        ({"momentum_correction": None}, ("momentum_correction", "None")),
        ({"warmup": 5}, ("warmup", "5", "Warmup")),
    ],
)
def test_wrong_options_are_refused_at_construction(options: dict[str, object], words: tuple[str, ...]) -> None:
    with pytest.raises(ValueError) as caught:
        DGC(**options)  # type: ignore[arg-type]
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"steps": 0},
        {"steps": 5, "epochs": 1},
        {"epochs": 4},
        {"epochs": 0, "steps_per_epoch": 10},
        {"steps": 5, "densities": ()},
        {"steps": 5, "densities": (0.5, 2)},
    ],
)
def test_wrong_warmups_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        Warmup(**options)  # type: ignore[arg-type]


def test_a_schedules_wrong_answer_is_refused() -> None:
    with pytest.raises(ValueError, match=r"warmup\(3\) must be in \(0, 1\], got 2"):
        DGC(warmup=lambda step: 2.0).density_at(3)


def test_wrong_arrays_are_refused() -> None:
    method = DGC(density=0.1)
    state = method.init(100)
    good = np.zeros(100, F)
    for grad in (good.astype(np.float64), np.zeros(99, F), good.reshape(10, 10), np.zeros(200, F)[::2]):
        with pytest.raises(ValueError, match="grad"):
            method.encode(grad, state)
    with pytest.raises(ValueError, match="weights"):
        method.encode(good, state, weight_decay=0.1)
    payload = method.encode(good, state)
    with pytest.raises(ValueError, match="payloads"):
        method.decode(payload[None, :-1], good)
    with pytest.raises(ValueError, match="momentum"):
        DGC(momentum_correction=False).encode(good, DGC(momentum_correction=False).init(100), momentum=0.9)
    with pytest.raises(ValueError, match="runlength16"):
        DGC(density=1e-6, indices="runlength16").payload_nbytes(10**7)


def test_configuration_names_functions_without_addresses() -> None:
    text = DGC(warmup=coordinates_to_send).configuration()  # type: ignore[arg-type]
    assert "horovod_dgc.coding.coordinates_to_send" in text and "0x" not in text
