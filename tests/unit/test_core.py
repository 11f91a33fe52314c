"""The binding `horovod_dgc._core`: argument checks, ownership, and its results against NumPy."""

import sys
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from horovod_dgc import _core as core

INDICES = list(core.IndexCoder)
VALUES = [core.ValueCoder(name) for name in ("float32", "float16", "bfloat16", "int8", "int4")]
FLOAT32, FLOAT16, BFLOAT16, INT8, INT4 = VALUES
ELIAS_FANO = core.IndexCoder.elias_fano


def normal(n, seed=0):
    return np.random.default_rng(seed).standard_normal(n).astype(np.float32)


def layout(n=1000, k=10, indices=ELIAS_FANO, values=FLOAT32):
    return core.Layout(n, k, indices, values)


def best(values, k):
    """The k coordinates of largest magnitude, ties to the lower index."""
    return np.sort(np.argsort(-np.abs(values), kind="stable")[:k])


def bfloat16(values):
    """Bit patterns of float32 values cut to bfloat16, and the values that they stand for."""
    bits = (values.view(np.uint32) >> 16).astype(np.uint16)
    return bits, (bits.astype(np.uint32) << 16).view(np.float32)


def test_layout_is_a_value():
    a, b = layout(), layout()
    assert a == b and hash(a) == hash(b)
    assert a != layout(k=11) and a != "layout"
    assert (a.n, a.k, a.indices, a.values) == (1000, 10, ELIAS_FANO, FLOAT32)
    assert repr(a) == (
        f"Layout(n=1000, k=10, indices=IndexCoder.elias_fano, values=ValueCoder('float32'), nbytes={a.nbytes})"
    )
    with pytest.raises(AttributeError):
        a.n = 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((10, 0), "k is 0; allowed: 1 to n = 10"),
        ((10, 11), "k is 11"),
        ((0, 1), "k is 1; allowed: 0 to n = 0"),
        ((2**32, 1), "n is 4294967296"),
    ],
)
def test_layout_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        core.Layout(*arguments, ELIAS_FANO, FLOAT16)


def test_update_refuses_what_is_not_finite():
    with pytest.raises(ValueError, match="unscale is nan"):
        core.Update(unscale=float("nan"))
    with pytest.raises(ValueError, match=r"momentum is -0\.9"):
        core.Update(momentum=-0.9)
    update = core.Update(0.5, 0.25, 0.9, 0.125, True)
    assert (update.unscale, update.weight_decay, update.momentum) == (0.5, 0.25, 0.9)
    assert (update.dampening, update.nesterov) == (0.125, True)


@pytest.mark.parametrize("indices", INDICES)
@pytest.mark.parametrize("values", VALUES)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_pack_and_unpack_are_inverse(indices, values, data):
    n = data.draw(st.integers(1, 70000), label="n")
    least = -(-n // 65536) if indices is core.IndexCoder.runlength16 else 1
    k = data.draw(st.integers(least, n), label="k")
    rng = np.random.default_rng(data.draw(st.integers(0, 99), label="seed"))
    lay = layout(n, k, indices, values)
    chosen = np.sort(rng.choice(n, k, replace=False)).astype(np.uint32)
    payload, sent = lay.pack(chosen, rng.standard_normal(k).astype(np.float32))
    assert payload.shape == (lay.nbytes,) and payload.dtype == np.uint8
    got, decoded = lay.unpack(payload)
    dense, expected = np.zeros(n, np.float32), np.zeros(n, np.float32)
    dense[got] = decoded
    expected[chosen] = sent
    np.testing.assert_array_equal(dense, expected)
    assert (np.diff(got.astype(np.int64)) > 0).all()


def test_pack_refuses_indices_that_are_out_of_order_or_range():
    lay = layout(10, 3)
    values = normal(3)
    for bad in ([1, 1, 2], [2, 1, 3], [1, 2, 10]):
        with pytest.raises(ValueError, match=r"indices\[\d\] is \d+; allowed: strictly increasing, below n = 10"):
            lay.pack(np.array(bad, np.uint32), values)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_bytes_from_elsewhere_are_refused_or_decode_in_range(data):
    n = data.draw(st.integers(1, 300), label="n")
    k = data.draw(st.integers(1, n), label="k")
    lay = layout(n, k, data.draw(st.sampled_from(INDICES)), data.draw(st.sampled_from(VALUES)))
    payload = np.frombuffer(data.draw(st.binary(min_size=lay.nbytes, max_size=lay.nbytes)), np.uint8)
    try:
        lay.validate(payload)
    except ValueError as error:
        assert "payloads[0]" in str(error)
        with pytest.raises(ValueError):
            lay.unpack(payload)
        return
    indices, _ = lay.unpack(payload)
    assert (indices < n).all() and (np.diff(indices.astype(np.int64)) > 0).all()


def test_validate_says_which_payload_and_what():
    lay = layout(1000, 2, core.IndexCoder.int32)
    payloads = np.stack([lay.poison()] * 3)
    lay.validate(payloads)
    payloads[1, 8:12] = 255
    with pytest.raises(ValueError, match=r"payloads\[1\]: coordinate \d+ is not above the one before it"):
        lay.validate(payloads.ravel())
    out = np.zeros(1000, np.float32)
    with pytest.raises(ValueError, match=r"payloads\[1\]"):
        lay.decode_add(payloads, out)
    assert not out.any()


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_decode_add_adds_in_payload_order(threads):
    lay = layout(200003, 50000, values=FLOAT16)
    out = normal(200003)
    expected = out.copy()
    payloads = []
    for seed in range(4):
        chosen = np.sort(np.random.default_rng(seed).choice(200003, 50000, replace=False)).astype(np.uint32)
        payload, sent = lay.pack(chosen, normal(50000, seed))
        payloads.append(payload)
        expected[chosen] += np.float32(0.5) * sent
    lay.decode_add(np.stack(payloads), out, scale=0.5, threads=threads)
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("threads", [1, 3])
def test_a_step_follows_the_formula_both_ways(kind, nesterov, threads):
    n, k = 100003, 100
    grad, weights = normal(n, 1), normal(n, 2)
    residual, velocity = normal(n, 3), normal(n, 4)
    exact_grad, exact_weights = grad, weights
    if kind == "float16":
        grad, weights = grad.astype(np.float16), weights.astype(np.float16)
        exact_grad, exact_weights = grad.astype(np.float32), weights.astype(np.float32)
    elif kind == "bfloat16":
        grad, exact_grad = bfloat16(grad)
        weights, exact_weights = bfloat16(weights)
    f32 = np.float32
    ghat = f32(0.5) * exact_grad + f32(0.01) * exact_weights
    u = f32(0.9) * velocity + f32(1 - 0.25) * ghat
    v = residual + (ghat + f32(0.9) * u if nesterov else u)

    lay = layout(n, k, values=FLOAT16)
    update = core.Update(0.5, 0.01, 0.9, 0.25, nesterov)
    before = [a.copy() for a in (grad, residual, velocity, weights)]
    proposal = core.propose(lay, update, grad, residual, velocity, weights, threads=threads)
    for array, copy in zip((grad, residual, velocity, weights), before):
        np.testing.assert_array_equal(array, copy)
    chosen = best(v, k)
    sent = v[chosen].astype(np.float16).astype(np.float32)
    assert proposal.finite
    np.testing.assert_array_equal(proposal.indices, chosen)
    np.testing.assert_array_equal(proposal.sent, sent)

    encoded_grad, encoded_residual, encoded_velocity = grad.copy(), residual.copy(), velocity.copy()
    encoded = core.encode(
        lay, update, encoded_grad, encoded_residual, encoded_velocity, weights, zero_grad=True, threads=threads
    )
    proposal.commit(update, grad, residual, velocity, weights, zero_grad=True, threads=threads)
    v[chosen] -= sent
    u[chosen] = 0
    np.testing.assert_array_equal(residual, v)
    np.testing.assert_array_equal(velocity, u)
    assert not grad.any() and not encoded_grad.any()
    np.testing.assert_array_equal(encoded.payload, proposal.payload)
    np.testing.assert_array_equal(encoded_residual, residual)
    np.testing.assert_array_equal(encoded_velocity, velocity)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_selection_is_exact_whatever_the_data(data):
    n = data.draw(st.integers(1, 40000), label="n")
    k = data.draw(st.integers(1, n), label="k")
    seed = data.draw(st.integers(0, 1000), label="seed")
    levels = data.draw(st.sampled_from([0, 1, 2, 10, 1000]), label="distinct magnitudes")
    residual = np.random.default_rng(seed).integers(-levels, levels + 1, n).astype(np.float32)
    grad = np.zeros(n, np.float32)
    threads = data.draw(st.integers(1, 4), label="threads")
    proposal = core.propose(layout(n, k), core.Update(), grad, residual, threads=threads)
    np.testing.assert_array_equal(proposal.indices, best(residual, k))
    np.testing.assert_array_equal(proposal.sent, residual[proposal.indices])


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("k", [20, 20000])
def test_what_is_not_finite_changes_nothing_and_is_seen_by_the_receiver(values, bad, k):
    n = 20000
    lay = layout(n, k, values=values)
    update = core.Update(momentum=0.9)
    grad, residual, velocity = normal(n, 1), normal(n, 2), normal(n, 3)
    grad[12345] = bad
    before = [a.copy() for a in (grad, residual, velocity)]
    proposal = core.propose(lay, update, grad, residual, velocity)
    encoded = core.encode(lay, update, grad, residual, velocity, zero_grad=True)
    for array, copy in zip((grad, residual, velocity), before):
        np.testing.assert_array_equal(array, copy)
    with pytest.raises(ValueError, match="proposal is not finite"):
        proposal.commit(update, grad, residual, velocity)
    out, masked = np.zeros(n, np.float32), np.empty(n, np.float32)
    for p in (proposal, encoded):
        assert not p.finite
        np.testing.assert_array_equal(p.payload, lay.poison())
        lay.decode_add(p.payload, out)
        p.masked(masked)
        np.testing.assert_array_equal(np.isnan(out), np.arange(n) < k)
        np.testing.assert_array_equal(np.isnan(masked), np.arange(n) < k)


def test_all_coordinates_and_no_coordinates():
    n = 3000
    lay = layout(n, n)
    grad, residual, velocity = normal(n, 1), normal(n, 2), normal(n, 3)
    v = residual + (np.float32(0.9) * velocity + grad)
    p = core.encode(lay, core.Update(momentum=0.9), grad, residual, velocity)
    np.testing.assert_array_equal(p.indices, np.arange(n))
    np.testing.assert_array_equal(p.sent, v)
    assert not residual.any() and velocity.all()
    empty = np.zeros(0, np.float32)
    p = core.propose(layout(0, 0), core.Update(), empty, empty)
    assert p.finite and p.payload.size == 0 and p.indices.size == 0
    layout(0, 0).decode_add(p.payload, empty)


def test_results_outlive_the_proposal():
    p = core.propose(layout(), core.Update(), normal(1000), np.zeros(1000, np.float32))
    payload, sent, copy = p.payload, p.sent, p.payload.copy()
    del p
    np.testing.assert_array_equal(payload, copy)
    assert sent.shape == (10,) and np.isfinite(sent).all()


def read_only(array):
    array.flags.writeable = False
    return array


N = 1000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grad": normal(N - 1)}, r"grad is an array .* shape \(999,\); allowed: shape \(1000,\)"),
        ({"grad": normal(N).astype(np.float64)}, "grad is an array of dtype float64.*float16"),
        ({"grad": normal(2 * N)[::2]}, "grad .* not C-contiguous"),
        ({"grad": normal(N).reshape(1, N)}, "grad .* one dimension"),
        ({"grad": normal(N).astype(">f4")}, "grad .* dtype float32"),
        ({"grad": [0.0] * N}, "grad is <class 'list'>; allowed: a NumPy array"),
        ({"residual": normal(N).astype(np.float16)}, "residual .* dtype float32"),
        ({"residual": read_only(normal(N))}, "residual .* read-only"),
        ({"velocity": normal(N + 1)}, r"velocity .* shape \(1000,\)"),
        ({"velocity": read_only(normal(N))}, "velocity .* read-only"),
        ({"weights": normal(N)}, "weights is given; allowed: None exactly where weight_decay is 0"),
        ({"threads": 0}, "threads is 0"),
        ({"sample_ratio": 0.0}, "sample_ratio is 0"),
        ({"sample_ratio": float("nan")}, "sample_ratio is nan"),
        ({"grad": read_only(normal(N)), "zero_grad": True}, "grad .* read-only"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    arguments = {"grad": normal(N), "residual": normal(N), "velocity": normal(N), **change}
    with pytest.raises(ValueError, match=message):
        core.encode(layout(), core.Update(momentum=0.9), **arguments)


def test_weights_are_needed_with_weight_decay():
    with pytest.raises(ValueError, match="weights is None"):
        core.propose(layout(), core.Update(weight_decay=0.1), normal(N), normal(N))


def test_arrays_that_share_memory_are_refused():
    both = normal(2 * N)
    with pytest.raises(ValueError, match="residual is memory of grad"):
        core.encode(layout(), core.Update(), both[:N], both[N // 2 : N // 2 + N])
    core.encode(layout(), core.Update(), both[:N], both[N:])


def test_propose_takes_read_only_arrays():
    p = core.propose(layout(), core.Update(), read_only(normal(N)), read_only(normal(N)), read_only(normal(N)))
    assert p.finite


@pytest.mark.parametrize("shape", [(7,), (2, 7), (1, 2, 50)])
def test_payloads_of_another_length_are_refused(shape):
    with pytest.raises(ValueError, match=r"payloads is .* allowed: shape \(N, \d+\)"):
        layout().decode_add(np.zeros(shape, np.uint8), np.zeros(N, np.float32))


def test_reductions():
    x = normal(300001)
    assert core.sum_squares(x) == pytest.approx(np.square(x, dtype=np.float64).sum(), rel=1e-12)
    assert core.sum_squares(x) == core.sum_squares(x, threads=3)
    assert core.sum_squares(np.full(10, 300, np.float16)) == 10 * 300.0**2
    assert core.sum_squares(bfloat16(np.ones(10, np.float32))[0]) == 10
    for bad in (np.nan, np.inf, -np.inf):
        y = x.copy()
        y[300000] = bad
        assert not np.isfinite(core.sum_squares(y))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_sum_is_poisoned_if_any_value_is_not_finite(dtype):
    sums = normal(300001).astype(dtype)
    assert not core.sum_poisoned(sums) and not core.sum_poisoned(sums[:0])
    for bad in (np.nan, np.inf, -np.inf):
        for where in (0, 1000, 300000):
            wrong = sums.copy()
            wrong[where] = bad
            assert core.sum_poisoned(wrong)


def test_payloads_are_poisoned_if_one_is():
    codec = core.Codec(layout())
    good = core.propose(codec, core.Update(), normal(N, 1), normal(N, 2)).payload
    assert not codec.poisoned(np.stack([good, good]))
    for where in range(3):
        rows = np.stack([good] * 3)
        rows[where] = codec.poison()
        assert codec.poisoned(rows)


def test_vote_is_the_sign_of_a_sum_and_nan_where_it_is_not_finite():
    sums = np.array([3, -0.5, 0, -0.0, 1e-45, -1e38, np.nan, np.inf, -np.inf], np.float32)
    core.vote(sums)
    np.testing.assert_array_equal(sums, np.array([1, -1, 0, 0, 1, -1, np.nan, np.nan, np.nan], np.float32))
    assert not np.signbit(sums[2:4]).any()


@pytest.mark.parametrize("nesterov", [False, True])
def test_apply_momentum(nesterov):
    g, u = normal(501, 1), normal(501, 2)
    buffer = np.float32(0.9) * u + np.float32(0.75) * g
    step = g + np.float32(0.9) * buffer if nesterov else buffer
    core.apply_momentum(g, u, core.Update(momentum=0.9, dampening=0.25, nesterov=nesterov))
    np.testing.assert_array_equal(u, buffer)
    np.testing.assert_array_equal(g, step)


def test_the_gil_is_released():
    n = 4_000_000
    grad, residual, velocity = normal(n, 1), normal(n, 2), normal(n, 3)
    ticks = 0
    stop = threading.Event()

    def work():
        for _ in range(10):
            core.encode(layout(n, 4000), core.Update(momentum=0.9), grad, residual, velocity)
        stop.set()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(100)  # only a released lock lets this thread run
    try:
        thread = threading.Thread(target=work)
        thread.start()
        while not stop.wait(0.0001):
            ticks += 1
        thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert ticks > 10


class TestParts:
    codec = core.Codec("ranges n=100 k=10 parts=4 indices=int32 values=float32")

    def parts(self) -> np.ndarray:
        rng = np.random.default_rng(0)
        residuals = [rng.standard_normal(100).astype(np.float32) for _ in range(3)]
        payloads = [
            core.encode(self.codec, core.Update(), np.zeros(100, np.float32), residual).payload
            for residual in residuals
        ]
        return np.stack(payloads).reshape(3, 4, -1)

    def test_what_is_reduced_and_returned_is_the_sum(self) -> None:
        parts, total = self.parts(), np.zeros(100, np.float32)
        self.codec.decode_add(parts.reshape(3, -1), total)
        reduced = [self.codec.reduce(part, np.ascontiguousarray(parts[:, part])) for part in range(4)]
        assert [begin for _, begin, _ in reduced] == [0, 25, 50, 75]
        kept = np.zeros(100, np.float32)
        self.codec.decode_add(np.concatenate([payload for payload, _, _ in reduced]), kept)
        assert 0 < np.count_nonzero(kept) <= self.codec.sent < np.count_nonzero(total)
        np.testing.assert_array_equal(kept + np.concatenate([returned for _, _, returned in reduced]), total)

    def test_refuses_wrong_parts(self) -> None:
        one = np.ascontiguousarray(self.parts()[:, 0])
        with pytest.raises(ValueError, match=r"part.* 4"):
            self.codec.reduce(4, one)
        with pytest.raises(ValueError, match=r"part.* 0"):
            core.Codec("coordinates n=100 k=10 indices=int32 values=float32 select=largest").reduce(0, one)
        with pytest.raises(ValueError, match=r"payloads|received"):
            self.codec.reduce(0, one.ravel()[:-1].copy())
        one[1, -1] = 0xFF
        with pytest.raises(ValueError, match="1"):
            self.codec.reduce(0, one)

    @pytest.mark.parametrize("parts", [0, 101])
    def test_refuses_wrong_numbers_of_parts(self, parts: int) -> None:
        with pytest.raises(ValueError, match=rf"parts is '?{parts}'?; allowed"):
            core.Codec(f"ranges n=100 k=10 parts={parts} indices=int32 values=float32")
