"""Invariants 2, 3 and 5 through ``DistributedGradientTape``, clipping, loss scaling and counts."""

from __future__ import annotations

import itertools

import horovod.tensorflow as hvd
import numpy as np
import tensorflow as tf
from rank import LONG

from checks.common import (
    EXACT_VALUES,
    Dense,
    Fed,
    Trainer,
    assert_ranks_identical,
    batch,
    keras,
    same,
    sgd,
    state,
    vector,
)
from horovod_dgc import DGC, Warmup, traffic, transport
from horovod_dgc.tensorflow.takeover import KERAS_3

VALUES = ("float32", "float16", "bfloat16", "int8", "int4")
INDICES = ("elias-fano", "runlength16", "int32")
TRANSPORTS = ("gather", "allreduce", "sparse-allreduce")
# Not in step with INDICES.
NEXT = ("gather", "allreduce", "sparse-allreduce", "allreduce")
SKIPPED = (
    (DGC(density=0.05), "gather"),
    (DGC(density=0.05), "allreduce"),
    (DGC(density=0.05, values="int4", exempt_values="float16"), "auto"),
    (DGC(density=0.05, values="int8", clip_norm=1.0), "gather"),
    (DGC(density=0.05, clip_norm=1.0, clip_scope="tensor"), "allreduce"),
    (DGC(density=0.05), "sparse-allreduce"),
)


def check_half_precision_models() -> None:
    """Ranks stay identical and the loss falls; float32 state means that small gradients still arrive."""
    for dtype, name in itertools.product((tf.float16, tf.bfloat16), ("gather", "allreduce")):
        model = Dense(dtype=dtype)
        trainer = Trainer(model, DGC(density=0.1), sgd(), settings={"transport": name})
        before = float(model.loss(batch(0, rank=0)))
        trainer.run(steps=25, inputs=lambda _: batch(0, rank=0))
        assert_ranks_identical(model.variables, f"{dtype} {name}")
        after = float(model.loss(batch(0, rank=0)))
        assert after < 0.5 * before, f"{dtype} {name}: loss {before} -> {after}"


def conserve(method: DGC, name: str, exact: bool, steps: int = 20) -> None:
    """sent + residual = accumulated, per coordinate, summed over ranks and steps."""
    model = Fed()
    trainer = Trainer(model, method, sgd(learning_rate=1.0, momentum=0.0), settings={"transport": name}, op=hvd.Sum)
    trainer.run(steps=steps)
    for position, (variable, tensor) in enumerate(zip(model.variables, trainer.compression.tensors)):
        kept = tensor.residual is not None
        waiting = hvd.allreduce(tensor.residual.read_value(), op=hvd.Sum).numpy() if kept else 0.0
        fed = sum(model.feed(s, r)[position] for s in range(steps) for r in range(hvd.size()))
        lost = np.abs(-variable.numpy().ravel() + waiting - fed.ravel()).max()
        allowed = 0.0 if exact else 1e-6 * 99 * steps * hvd.size()
        assert lost <= allowed, f"{method} {name} {tensor.label}: {lost} lost"
    assert_ranks_identical(model.variables, f"{method} {name}")


def check_nothing_is_lost_exactly() -> None:
    for indices, name in itertools.product(INDICES, TRANSPORTS):
        conserve(DGC(density=0.02, values="float32", indices=indices), name, exact=True)


def check_nothing_is_lost_with_rounded_values() -> None:
    for values, name in itertools.product(VALUES[1:], TRANSPORTS):
        conserve(DGC(density=0.02, values=values), name, exact=False)


def check_nothing_is_lost_in_warmup() -> None:
    conserve(DGC(density=0.01, values="float32", warmup=Warmup(steps=12)), "auto", exact=True)


def check_transport_follows_the_cost_in_each_stage() -> None:
    """From a dense allreduce to gathered payloads as the density falls, within one graph."""
    warmup = Warmup(steps=4, densities=(0.95, 0.9))
    method = DGC(density=0.05, values="float32", warmup=warmup)
    model = Fed()
    ways = {transport.choose(method.plan((40, 50), step), hvd.size()) for step in (0, 9)}
    assert len(ways) == 2, ways
    trainer = Trainer(model, method, sgd(momentum=0.0))
    traced = []
    for step in range(7):
        trainer.run(steps=1, first=step)
        traced.append(trainer.traced)
        expected = 0
        for variable in model.variables:
            plan = method.plan(variable.shape, step)
            expected += transport.message_nbytes(plan, transport.choose(plan, hvd.size()))
        assert trainer.compression.stats().last.sent == expected, f"step {step}"
    assert traced[0] == traced[-1]
    conserve(method, "auto", exact=True)


def check_ranks_identical_for_every_coding_and_transport() -> None:
    codings = list(zip(VALUES, itertools.cycle(INDICES)))
    # Short, each value with one transport, and each transport with several.
    everything = list(itertools.product(codings, TRANSPORTS)) if LONG else list(zip(codings, itertools.cycle(NEXT)))
    for (values, indices), name in everything:
        model = Dense()
        method = DGC(density=0.05, values=values, indices=indices)
        Trainer(model, method, sgd(nesterov=True), settings={"transport": name}).run(steps=4)
        assert_ranks_identical(model.variables, f"{values} {indices} {name}")


def check_groups_of_sparse_and_exempt_variables() -> None:
    """Horovod's grouped collectives take one dtype only, and exempt variables travel in another than the rest."""
    ends = []
    for groups in (lambda model: None, lambda model: 1, lambda model: [model.variables]):
        model = Fed()
        settings = {"transport": "auto"}
        Trainer(model, DGC(density=0.05), sgd(), settings=settings, groups=groups(model), op=hvd.Sum).run(steps=5)
        assert_ranks_identical(model.variables, "groups")
        ends.append(vector(model.variables))
    assert np.array_equal(ends[0], ends[1]) and np.array_equal(ends[0], ends[2])


def check_a_skipped_step_changes_nothing() -> None:
    # Short, each transport and way of clipping with one of these.
    poisons = itertools.cycle([[("weight", -np.inf)], [("bias", np.nan)]])
    if LONG:
        poisons = itertools.repeat([("weight", -np.inf), ("bias", np.nan)])
    for (method, name), poison in zip(SKIPPED, poisons):
        undisturbed = _poisoned_run(None, method, name, 0.0)
        for where, value in poison:
            disturbed = _poisoned_run(where, method, name, value)
            # The order of an allreduce's sums depends on what Horovod happens to fuse.
            tolerance = 1e-4 if name == "allreduce" else 0.0
            assert np.abs(disturbed - undisturbed).max() <= tolerance, f"{method} {name} {where}"


def _poisoned_run(where: str | None, method: DGC, name: str, value: float) -> np.ndarray:
    """Train 6 steps; before the fourth, one step's gradient of ``where`` is poisoned on the last rank."""
    model = Fed()
    trainer = Trainer(model, method, sgd(learning_rate=1 / 64), settings={"transport": name})
    trainer.run(steps=3)
    if where is not None:
        before = state(trainer.compression)
        gradients = dict(zip(("weight", "bias"), model.feed(99, hvd.rank())))
        if hvd.rank() == hvd.size() - 1:
            gradients[where].reshape(-1)[1] = value
        seen = dict(zip(gradients, trainer.gradients([tf.constant(g) for g in gradients.values()])))
        for label, gradient in seen.items():
            if label == where:
                assert np.isnan(gradient.numpy()).any(), f"{where} = {value}: not seen on this rank"
            else:
                assert not gradient.numpy().any(), f"{where} = {value}: {label} has a gradient in a skipped step"
        assert same(before, state(trainer.compression)), f"{where} = {value}: the skipped step changed state"
        stats = trainer.compression.stats()
        assert stats.total.skipped == 1 and stats.total.steps == 3
    trainer.run(steps=3, first=3)
    residuals = [value for key, value in state(trainer.compression).items() if key.endswith("residual")]
    return np.concatenate([vector(model.variables), *residuals])


def check_clipping_follows_the_formula() -> None:
    """Each gradient g becomes g * min(1, L / |g|) with L = C sqrt(N) before it is averaged, C / sqrt(N) for a sum."""
    for scope, op in itertools.product(("global", "tensor"), (hvd.Average, hvd.Sum)):
        clip = 0.2
        model = Dense()
        method = DGC(**EXACT_VALUES, clip_norm=clip, clip_scope=scope)
        start = [v.numpy() for v in model.variables]
        with tf.GradientTape() as tape:
            loss = model.loss(batch(0))
        local = [g.numpy() for g in tape.gradient(loss, model.variables)]
        Trainer(model, method, sgd(learning_rate=1.0, momentum=0.0), op=op).run(steps=1)
        limit = clip * np.sqrt(hvd.size()) if op == hvd.Average else clip / np.sqrt(hvd.size())
        whole = np.sqrt(sum(np.square(g.astype(np.float64)).sum() for g in local))
        assert whole > limit, "nothing was clipped: nothing is shown"
        for before, variable, gradient in zip(start, model.variables, local):
            norm = whole if scope == "global" else np.linalg.norm(gradient)
            clipped = gradient * min(1.0, limit / norm)
            expected = before - hvd.allreduce(tf.constant(clipped, tf.float32), op=op).numpy()
            np.testing.assert_allclose(variable.numpy(), expected, atol=1e-6)


def check_loss_scale_of_a_tape() -> None:
    """The scale changes, steps overflow on one rank; residuals are in unscaled units."""
    if not KERAS_3:
        return
    ends = []
    for overflows in ((), (0, 3, 4)):
        model = Dense()
        scaled = keras.optimizers.LossScaleOptimizer(sgd(), initial_scale=2.0**12, dynamic_growth_steps=3)
        scaled.build(model.variables)
        trainer = Trainer(model, DGC(density=0.05), scaled, settings={"transport": "gather"})
        done = attempt = 0
        while done < 8:
            images, labels = batch(done)
            bad = attempt in overflows and hvd.rank() == 0
            before = state(trainer.compression)
            trainer.step((images * np.inf if bad else images, labels))
            skipped = attempt in overflows
            assert not skipped or same(before, state(trainer.compression))
            done += not skipped
            attempt += 1
        stats = trainer.compression.stats()
        assert stats.total.skipped == len(overflows) and stats.total.steps == 8
        assert_ranks_identical(model.variables, "LossScaleOptimizer")
        ends.append((vector(model.variables), float(scaled.dynamic_scale.value)))
    assert ends[0][1] != ends[1][1], "the scale was the same: nothing is shown"
    assert np.array_equal(ends[0][0], ends[1][0])


def check_stats_agree_with_traffic_and_with_what_was_sent() -> None:
    method = DGC(density=0.05, warmup=Warmup(steps=4))
    model = Dense()
    trainer = Trainer(model, method, sgd(), settings={"transport": "gather"})
    assert "no exchange" in str(trainer.compression.stats())
    trainer.run(steps=6)
    stats = trainer.compression.stats()
    shapes = {v.name: tuple(v.shape) for v in model.variables}
    assert set(stats.tensors) == set(shapes)
    expected = sum(traffic(shapes, method, step).total for step in range(6))
    assert stats.total.sent == expected == sum(t.sent for t in stats.tensors.values())
    assert stats.last.sent == traffic(shapes, method).total
    assert stats.total.dense == 6 * traffic(shapes, method).dense
    assert stats.total.control == 6 * 4 * (len(shapes) + 1)
    assert stats.total.steps == 6 and stats.last.steps == 1
    for seconds in (stats.total.encode, stats.total.wait, stats.total.decode):
        assert 0 < seconds < 60
    norms = [float(np.linalg.norm(t.residual.numpy())) for t in trainer.compression.tensors if t.residual is not None]
    assert abs(stats.total.residual_norm - np.hypot.reduce(norms)) < 1e-5 * stats.total.residual_norm
    assert all(0 < t.density <= 0.25 for name, t in stats.tensors.items() if len(shapes[name]) > 1)
