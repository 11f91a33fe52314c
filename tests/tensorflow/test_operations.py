"""The compiled operations one by one, in one process, against the core and the formulas."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from horovod_dgc import FP16, SignSGD, VarianceBased, _core, transport
from horovod_dgc.building import on_demand, places
from horovod_dgc.coding import Coding, divided
from horovod_dgc.tensorflow import operations
from horovod_dgc.tensorflow.operations import COUNTS, PROGRESS, library, names

NUMEL, SENT = 3000, 40
NOT_OPENED = tf.zeros(0)
OWN_SQUARES = tf.zeros(0)
NOTHING_RETURNED = tf.zeros(0)


class Variable:
    """One variable with its state, and the operations bound to it."""

    def __init__(
        self, codec: _core.Codec, corrected: bool = True, starts: tuple[int, ...] = (0,), rank: int = 0
    ) -> None:
        self.codec = codec
        self.model = tf.Variable(tf.zeros(codec.n))
        self.residual = tf.Variable(tf.zeros(codec.n))
        self.counts = tf.Variable(tf.zeros((2, len(COUNTS)), tf.int64))
        self.velocity = tf.Variable(tf.zeros(codec.n))
        self.rate = tf.Variable(0.0)
        self.memory = tf.Variable(tf.zeros(codec.memory))
        self.kept = ["residual", *(["velocity", "rate"] if corrected else []), *(["memory"] if codec.memory else [])]
        self.state = [self.counts.handle, *(getattr(self, name).handle for name in self.kept)]
        self.coding = {"codecs": [codec.description] * len(starts), "seed": 0, "number": 0, "rank": rank}
        self.starts = list(starts)

    def counted(self, row: int) -> dict[str, int]:
        return dict(zip(COUNTS, self.counts.numpy()[row].tolist()))

    def propose(
        self,
        gradient: Any,
        *,
        momentum: float = 0.9,
        rate: float = 0.1,
        nesterov: bool = False,
        pauses: bool = False,
        squares: Any = OWN_SQUARES,
    ) -> Any:
        return library.horovod_dgc_propose(
            gradient,
            self.model.handle,
            tf.constant(0.5, tf.float64),
            tf.constant(momentum, tf.float64),
            tf.constant(rate, tf.float64),
            NOT_OPENED,
            squares,
            self.state,
            kept=self.kept,
            identity=int(library.horovod_dgc_identity(self.model.handle)),
            label="w",
            starts=self.starts,
            nesterov=nesterov,
            pauses=pauses,
            sample_ratio=0.01,
            **self.coding,
        )

    def finish(self, gradient: Any, proposed: Any, received: Any, **options: Any) -> Any:
        values = {"skipped": False, "workers": 1, "masking": True, "nesterov": False, **options}
        return library.horovod_dgc_finish(
            gradient,
            received,
            *proposed,
            tf.constant(values.pop("skipped")),
            tf.constant([values.pop("factor", 1.0)]),
            tf.constant(values.pop("loss_scale", 1.0), tf.float64),
            NOT_OPENED,
            values.pop("squares", OWN_SQUARES),
            values.pop("returned", NOTHING_RETURNED),
            self.state,
            kept=self.kept,
            messages=[values.pop("message", "payloads")] * len(self.starts),
            carried=False,
            **values,
            **self.coding,
        )


def gradient(seed: int = 0, dtype: Any = tf.float32) -> Any:
    return tf.cast(tf.random.stateless_normal((NUMEL,), (seed, 5)), dtype)


def as_core(values: Any) -> np.ndarray:
    return tf.bitcast(values, tf.uint16).numpy() if values.dtype == tf.bfloat16 else values.numpy()


@pytest.mark.parametrize("dtype", [tf.float32, tf.float16, tf.bfloat16])
@pytest.mark.parametrize("nesterov", [False, True])
def test_steps_equal_the_cores_bit_for_bit(dtype: Any, nesterov: bool) -> None:
    for values, indices in itertools.product(("float32", "float16", "int8", "int4"), ("elias-fano", "runlength16")):
        codec = Coding(values, indices).codec(NUMEL, SENT)
        ours = Variable(codec)
        residual, velocity = np.zeros(NUMEL, np.float32), np.zeros(NUMEL, np.float32)
        for step in range(4):
            g = gradient(step, dtype)
            update = _core.Update(unscale=0.5, momentum=0.9, nesterov=nesterov)
            expected = _core.propose(codec, update, as_core(g), residual, velocity)
            proposed = ours.propose(g, nesterov=nesterov)
            assert proposed[0].numpy().tobytes() == expected.payload.tobytes()
            assert np.array_equal(ours.residual.numpy(), residual), "a proposal changed the state"
            expected.commit(update, as_core(g), residual, velocity)
            result = ours.finish(g, proposed, proposed[0], nesterov=nesterov)
            decoded = np.zeros(NUMEL, np.float32)
            codec.decode_add(expected.payload, decoded)
            assert np.array_equal(result.numpy(), tf.cast(decoded, dtype).numpy())
            assert ours.residual.numpy().tobytes() == residual.tobytes()
            assert ours.velocity.numpy().tobytes() == velocity.tobytes()


@pytest.mark.parametrize("nesterov", [False, True])
def test_at_rate_0_a_gradient_counts_for_nothing_and_momentum_moves_on(nesterov: bool) -> None:
    ours = Variable(Coding("float32").codec(NUMEL, SENT))
    for step in range(2):
        proposed = ours.propose(gradient(step), nesterov=nesterov)
        ours.finish(gradient(step), proposed, proposed[0], masking=False, nesterov=nesterov)
    before, residual = ours.velocity.numpy(), ours.residual.numpy()
    proposed = ours.propose(gradient(2), rate=0.0, nesterov=nesterov)
    result = ours.finish(gradient(2), proposed, proposed[0], masking=False, nesterov=nesterov).numpy()
    np.testing.assert_allclose(ours.velocity.numpy(), 0.9 * before, rtol=1e-6)
    moved = (0.9 if nesterov else 1.0) * ours.velocity.numpy()
    np.testing.assert_allclose(result + ours.residual.numpy(), residual + moved, rtol=1e-5, atol=1e-6)
    assert float(ours.rate) == np.float32(0.1)
    infinite = ours.propose(gradient(3) * np.inf, rate=0.0)
    assert library.horovod_dgc_nonfinite([infinite[2]])[0] == 1, "unseen at rate 0"


def test_a_momentum_of_0_pauses_or_clears_the_velocity() -> None:
    for pauses in (True, False):
        ours = Variable(Coding("float32").codec(NUMEL, SENT))
        proposed = ours.propose(gradient(), rate=0.1)
        ours.finish(gradient(), proposed, proposed[0], masking=False)
        before, residual = ours.velocity.numpy(), ours.residual.numpy()
        proposed = ours.propose(gradient(1), momentum=0.0, rate=0.2, pauses=pauses)
        result = ours.finish(gradient(1), proposed, proposed[0], masking=False).numpy()
        fed = 0.5 * gradient(1).numpy()
        np.testing.assert_allclose(result + ours.residual.numpy(), residual + fed, rtol=1e-5, atol=1e-6)
        expected = (before, np.float32(0.1)) if pauses else (fed, np.float32(0.2))
        assert np.array_equal(ours.velocity.numpy(), expected[0]) and float(ours.rate) == expected[1]


def test_values_that_have_been_replaced_are_noticed() -> None:
    variables = [tf.Variable(tf.zeros(5)), tf.Variable(tf.zeros(3))]

    @tf.function
    def replaced() -> Any:
        return library.horovod_dgc_replaced([variable.handle for variable in variables])

    assert replaced() and not replaced()
    variables[1].assign(tf.ones(3))
    assert replaced() and not replaced()
    variables[0].assign(tf.zeros(5))
    variables[0].assign(tf.zeros(5))
    assert replaced() and not replaced()


def test_halves_are_summed_as_parts_that_cannot_overflow() -> None:
    workers, largest = 3, 65504.0
    plan = FP16().plan((4, 1))
    scale = transport.summand_scale(plan, workers)
    ours = Variable(plan.codec, corrected=False)
    # The variable's gradients are scaled by 2.
    fed = tf.constant([2 * largest, -2 * largest, 1.0, 0.0])
    proposed = ours.propose(fed)
    halves = tf.bitcast(tf.reshape(proposed[0], [-1, 2]), tf.float16) * tf.constant(scale, tf.float16)
    received = tf.bitcast(halves + halves + halves, tf.uint8)
    options = {"message": "float16", "workers": workers, "summand_scale": scale, "loss_scale": 2.0}
    result = ours.finish(fed, proposed, tf.reshape(received, [-1]), **options)
    np.testing.assert_allclose(result, fed, rtol=workers * 2.0**-11)


def test_second_moments_reach_the_codec() -> None:
    codec = VarianceBased(alpha=1.0, cap=0.1, values="float32").plan((1, NUMEL)).codec
    ours = Variable(codec, corrected=False)
    residual, memory = np.zeros(NUMEL, np.float32), np.zeros(NUMEL, np.float32)
    payloads = []
    for step, known in enumerate((True, False, True)):
        g, squares = gradient(step), tf.square(gradient(step + 10)) / 4 if known else OWN_SQUARES
        update, given = _core.Update(unscale=0.5), squares.numpy() if known else None
        expected = _core.propose(codec, update, g.numpy(), residual, memory=memory, squares=given)
        proposed = ours.propose(g, squares=squares)
        assert proposed[0].numpy().tobytes() == expected.payload.tobytes()
        expected.commit(update, g.numpy(), residual, memory=memory, squares=given)
        ours.finish(g, proposed, proposed[0], squares=squares)
        assert ours.residual.numpy().tobytes() == residual.tobytes()
        assert ours.memory.numpy().tobytes() == memory.tobytes()
        payloads.append(expected.payload.tobytes())
    assert len(set(payloads)) == 3 and memory.any()


def test_velocity_follows_the_learning_rate() -> None:
    """u' = momentum * (rate before / rate now) * u + g: which the optimizer multiplies by the rate; at 0 no g."""
    codec = Coding("float32").codec(NUMEL, SENT)
    ours = Variable(codec)
    u = np.zeros(NUMEL)
    before = None
    for step, rate in enumerate((0.1, 0.1, 0.02, 0.0, 0.3)):
        g = gradient(step)
        proposed = ours.propose(g, rate=rate)
        result = ours.finish(g, proposed, proposed[0], masking=False).numpy()
        assert np.count_nonzero(result) == SENT
        ratio = before / rate if before and rate else 1.0
        # At rate 0 a gradient is worth nothing.
        u = 0.9 * ratio * u + (0.5 * g.numpy() if rate else 0.0)
        np.testing.assert_allclose(ours.velocity.numpy(), u, rtol=1e-4, atol=1e-5)
        before = rate or before


def test_a_skipped_step_writes_nothing_but_its_count() -> None:
    codec = Coding().codec(NUMEL, SENT)
    ours = Variable(codec)
    first = ours.propose(gradient(0))
    ours.finish(gradient(0), first, first[0])
    before = ours.residual.numpy(), ours.velocity.numpy()
    bad = tf.tensor_scatter_nd_update(gradient(1), [[7]], [np.nan])
    proposed = ours.propose(bad)
    assert proposed[0].numpy().tobytes() == codec.poison().tobytes()
    good = ours.propose(gradient(1))
    counted = library.horovod_dgc_nonfinite([proposed[2], good[2], proposed[2]])
    assert counted.numpy().tolist() == [2.0]
    for received, poisoned in ((tf.concat([good[0], proposed[0]], 0), True), (tf.concat([good[0]] * 2, 0), False)):
        result = ours.finish(bad, proposed, received, skipped=True, workers=2).numpy()
        assert np.isnan(result).all() if poisoned else not result.any()
    assert np.array_equal(before[0], ours.residual.numpy()) and np.array_equal(before[1], ours.velocity.numpy())
    counts = ours.counted(0)
    assert (counts["steps"], counts["skipped"]) == (1, 2)


def test_counts_stand_where_their_names_say() -> None:
    """Every one of them, by a value that no other has."""
    codec = VarianceBased(alpha=0.5, cap=0.02, values="float16").plan((1, NUMEL)).codec
    ours = Variable(codec, corrected=False)
    g = gradient(dtype=tf.float16)
    expected = _core.propose(
        codec, _core.Update(unscale=0.5), g.numpy(), np.zeros(NUMEL, np.float32), memory=ours.memory.numpy()
    )
    assert expected.overflow > 0
    proposed = ours.propose(g)
    ours.finish(g, proposed, proposed[0])
    ours.finish(g, proposed, proposed[0], skipped=True)
    total, last = ours.counted(0), ours.counted(1)
    assert last == {
        "steps": 1,
        "skipped": 0,
        "sent": codec.nbytes,
        "control": 4,
        "dense": 2 * NUMEL,
        "nonzero": expected.nonzero,
        "overflow": expected.overflow,
        "encode": last["encode"],
        "decode": last["decode"],
    }
    assert len({*last.values()}) == len(COUNTS)
    assert (total["steps"], total["skipped"], total["sent"]) == (1, 1, 2 * codec.nbytes)
    # What Propose measured is told to Finish, which measures itself.
    applied = proposed[2].numpy()
    assert last["encode"] in applied and 0 < last["decode"] not in applied


def test_progress_stands_where_its_names_say() -> None:
    ours = Variable(Coding().codec(NUMEL, SENT))
    applied = [ours.propose(gradient())[2]]
    progress = tf.Variable(tf.zeros(len(PROGRESS), tf.int64))
    for nonfinite in (0.0, 1.0, 1.0):
        skipped = library.horovod_dgc_conclude(tf.constant([nonfinite]), applied, progress.handle)
        assert bool(skipped) == bool(nonfinite)
    made = dict(zip(PROGRESS, progress.numpy().tolist()))
    assert (made["steps"], made["skipped"]) == (1, 2)
    assert made["wait"] > made["last_wait"] > 0


def test_other_names_are_refused() -> None:
    with pytest.raises(KeyError, match="applied"):
        names("applied")
    ours = Variable(Coding().codec(NUMEL, SENT))
    proposed = ours.propose(gradient())
    with pytest.raises(
        tf.errors.InvalidArgumentError, match=r"'messages'.*gossip.*\"payloads\", \"dense\", .*\"ranges\""
    ):
        ours.finish(gradient(), proposed, proposed[0], message="gossip")
    ours.kept[0] = "residue"
    with pytest.raises(
        tf.errors.InvalidArgumentError, match=r"'kept'.*residue.*\"residual\", \"velocity\", \"rate\", \"memory\""
    ):
        ours.propose(gradient())


@pytest.mark.parametrize(
    ("message", "dtype"), [("dense", np.float32), ("float32", np.float32), ("float16", np.float16)]
)
def test_a_sum_is_poisoned_if_any_value_is_not_finite(message: str, dtype: Any) -> None:
    codec = Coding("float16" if message == "float16" else "float32").codec(NUMEL, NUMEL)
    ours = Variable(codec)
    proposed = ours.propose(gradient())
    for where, value in itertools.product((0, 7, NUMEL - 1), (np.nan, np.inf, -np.inf, 1.0)):
        total = np.ones(NUMEL, dtype)
        total[where] = value
        result = ours.finish(gradient(), proposed, total.view(np.uint8), skipped=True, message=message).numpy()
        if np.isfinite(value):
            assert not result.any()
        else:
            assert _core.sum_poisoned(total) and np.isnan(result).all()


def test_votes_are_the_cores() -> None:
    """Of sums with ties, zeros of both signs and what is not finite, times what the user's options ask for."""
    codec = SignSGD().plan((1, NUMEL)).codec
    ours = Variable(codec, corrected=False)
    ours.kept, ours.state = [], ours.state[:1]
    proposed = ours.propose(gradient())
    total = gradient(3).numpy()
    total[:7] = 0.0, -0.0, np.nan, np.inf, -np.inf, 1e-30, -2.0
    expected = total.copy()
    _core.vote(expected)
    assert expected[5:7].tolist() == [1.0, -1.0] and not expected[:2].any() and np.isnan(expected[2:5]).all()
    result = ours.finish(
        gradient(), proposed, total.view(np.uint8), message="dense", factor=2.0, loss_scale=4.0, workers=3
    )
    np.testing.assert_array_equal(result.numpy(), 8 * expected)
    rows = [ours.propose(gradient(seed))[0] for seed in range(4)]
    result = ours.finish(gradient(), proposed, tf.concat(rows, 0), workers=4, factor=2.0)
    votes = np.zeros(NUMEL, np.float32)
    codec.decode_votes(np.stack([row.numpy() for row in rows]), votes, 2.0)
    assert set(votes) == {-2.0, 0.0, 2.0}
    np.testing.assert_array_equal(result.numpy(), votes)


def test_masked_is_the_dense_form_of_the_payload() -> None:
    codec = Coding("float16").codec(NUMEL, SENT)
    ours = Variable(codec)
    payload, stage, _ = ours.propose(gradient())
    dense = library.horovod_dgc_masked(payload, stage, NOT_OPENED, **ours.coding).numpy()
    expected = np.zeros(NUMEL, np.float32)
    codec.decode_add(payload.numpy(), expected)
    assert np.array_equal(dense, expected) and np.count_nonzero(dense) == SENT


def test_stage_follows_the_steps_committed() -> None:
    ours = Variable(Coding().codec(NUMEL, SENT), starts=(0, 2, 3))
    stages = []
    for step in range(5):
        ours.counts[0, COUNTS.index("steps")].assign(step)
        stages.append(int(ours.propose(gradient())[1]))
    assert stages == [0, 0, 1, 2, 2]


def test_sum_of_squares() -> None:
    for dtype in (tf.float32, tf.float16, tf.bfloat16):
        g = gradient(3, dtype)
        expected = np.square(tf.cast(g, tf.float64).numpy()).sum()
        np.testing.assert_allclose(float(library.horovod_dgc_sum_squares(g)), expected, rtol=1e-12)


def test_errors_say_what_is_wrong() -> None:
    ours = Variable(Coding().codec(NUMEL, SENT))
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"gradient of w has 10 elements; allowed: 3000"):
        ours.propose(tf.zeros(10))
    proposed = ours.propose(gradient())
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"payloads of 2 ranks must have .* got"):
        ours.finish(gradient(), proposed, proposed[0], workers=2)
    damaged = tf.concat([proposed[0][:-40], tf.fill([40], tf.constant(255, tf.uint8))], 0)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"payloads\[0\]"):
        ours.finish(gradient(), proposed, damaged)
    wrong = r"squares has 10 elements; allowed: 3000, or 0 for the gradient's own"
    with pytest.raises(tf.errors.InvalidArgumentError, match=wrong):
        ours.propose(gradient(), squares=tf.zeros(10))
    with pytest.raises(tf.errors.InvalidArgumentError, match=wrong):
        ours.finish(gradient(), proposed, proposed[0], squares=tf.zeros(10))
    ours.residual = tf.Variable(tf.zeros(7))
    ours.state[1] = ours.residual.handle
    with pytest.raises(tf.errors.InvalidArgumentError, match="residual has 7 elements; allowed: 3000"):
        ours.propose(gradient())
    other = Variable(Coding().codec(NUMEL, SENT))
    other.model, known = tf.Variable(tf.zeros(NUMEL)), other.model
    assert int(library.horovod_dgc_identity(known.handle)) != int(library.horovod_dgc_identity(other.model.handle))


def test_large_tensors_use_several_threads_with_the_same_result() -> None:
    numel = (1 << 20) + 77
    codec = Coding("int8").codec(numel, 1000)
    ours = Variable(codec)
    g = tf.random.stateless_normal((numel,), (1, 1))
    residual, velocity = np.zeros(numel, np.float32), np.zeros(numel, np.float32)
    update = _core.Update(unscale=0.5, momentum=0.9)
    expected = _core.propose(codec, update, g.numpy(), residual, velocity)
    proposed = ours.propose(g)
    assert proposed[0].numpy().tobytes() == expected.payload.tobytes()
    ours.finish(g, proposed, proposed[0])
    expected.commit(update, g.numpy(), residual, velocity)
    assert ours.residual.numpy().tobytes() == residual.tobytes()


def test_a_sparse_allreduce_returns_the_rest_to_the_residual() -> None:
    """Of two workers of which this is the second; the first sends the same."""
    layout = Coding("float32").codec(NUMEL, SENT).layout
    assert layout is not None
    codec = divided(layout, 2)
    ours = Variable(codec, rank=1)
    g = gradient()
    proposed = ours.propose(g, momentum=0.0)
    parts = tf.reshape(proposed[0], (2, -1))
    twice = tf.concat([parts[1], parts[1]], 0)
    part, returned = library.horovod_dgc_reduce(twice, proposed[1], **ours.coding)
    expected, begin, rest = codec.reduce(1, twice.numpy())
    np.testing.assert_array_equal(part, expected)
    np.testing.assert_array_equal(returned, rest)
    returned = returned + 0.25
    received = tf.concat([parts[0], part], 0)
    options = {"workers": 2, "message": "ranges", "masking": False}
    with pytest.raises(tf.errors.InvalidArgumentError, match="returned has 0 elements; allowed: 1500"):
        ours.finish(g, proposed, received, **options)
    result = ours.finish(g, proposed, received, returned=returned, **options).numpy()
    sent = np.zeros(NUMEL, np.float32)
    codec.decode_add(proposed[0].numpy(), sent)
    kept = 0.5 * g.numpy() - sent
    kept[begin:] += returned.numpy()
    np.testing.assert_allclose(ours.residual.numpy(), kept, atol=1e-6)
    total = np.zeros(NUMEL, np.float32)
    codec.decode_add(received.numpy(), total)
    np.testing.assert_allclose(result, total / 2, rtol=1e-6)
    assert ours.counted(0)["sent"] == codec.nbytes + codec.nbytes // 2


def test_operations_that_are_not_there_are_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "find", lambda folder, name: None)
    with pytest.raises(ImportError, match=f"no operations for TensorFlow {tf.__version__}: .* Run once: .*build tenso"):
        operations._find()


def test_operations_that_do_not_load_are_named_with_the_command(tmp_path: Path) -> None:
    (tmp_path / "broken.so").write_bytes(b"no library")
    with pytest.raises(ImportError, match=r"do not load into TensorFlow .*build tensorflow --force"):
        operations._load(tmp_path / "broken.so")


def test_what_build_tries_at_the_end_needs_no_adapter() -> None:
    assert on_demand._failure(f"import sys; sys.modules['horovod'] = None; {on_demand.LOADS_OPERATIONS}") is None
