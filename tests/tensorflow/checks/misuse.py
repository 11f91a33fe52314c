"""Invariant 7: a table of wrong uses, each a clear sentence on every rank within seconds, and what is warned of."""

from __future__ import annotations

import gc
import time
import warnings
from collections.abc import Callable
from typing import Any

import horovod.tensorflow as hvd
import numpy as np
import tensorflow as tf

from checks.common import Dense, Trainer, assert_same_trajectory, batch, keras, keras_model, sgd
from horovod_dgc import DGC, FP16, AdaComp, ThresholdQuantization
from horovod_dgc.tensorflow import Compression, DistributedOptimizer
from horovod_dgc.tensorflow.takeover import KERAS_3

METHOD = DGC(density=0.05)
SECONDS = 30
LossScaleOptimizer = keras.optimizers.LossScaleOptimizer if KERAS_3 else keras.mixed_precision.LossScaleOptimizer


def tape(compression: Any, model: Dense | None = None, optimizer: Any = None, **options: Any) -> None:
    """One step through a tape, in a graph."""
    model = Dense() if model is None else model

    @tf.function
    def step(inputs: Any) -> None:
        with tf.GradientTape() as tape:
            loss = model.loss(inputs)
        tape = hvd.DistributedGradientTape(tape, compression=compression, **options)
        gradients = tape.gradient(loss, model.variables)
        if optimizer is not None:
            optimizer.apply_gradients(zip(gradients, model.variables))

    step(batch(0))


def fit(given: Any, distributed: Any) -> None:
    """A Compression made with one optimizer, and given to another."""
    model = keras_model()
    compression = Compression(METHOD, given, model)
    model.compile(DistributedOptimizer(distributed, compression=compression), loss="mse")


def distributed_already() -> None:
    optimizer = DistributedOptimizer(sgd())
    Compression(METHOD, optimizer, keras_model())


def without_its_compression() -> None:
    optimizer = sgd()
    kept = Compression(METHOD, optimizer, keras_model())
    assert kept
    DistributedOptimizer(optimizer)


def scaled_around() -> None:
    model, optimizer = Dense(), sgd()
    compression = Compression(METHOD, optimizer, model.variables)
    scaled = LossScaleOptimizer(optimizer)
    if KERAS_3:
        scaled.build(model.variables)
    tape(compression, model, scaled)


def function_as_a_rate() -> None:
    model, optimizer = Dense(), sgd(learning_rate=lambda: 0.1)
    Trainer(model, METHOD, optimizer, eager=True).run(1)


def functions_run_eagerly() -> None:
    model, optimizer = Dense(), sgd()
    compression = Compression(METHOD, optimizer, model.variables)
    tf.config.run_functions_eagerly(True)
    try:
        tape(compression, model)
    finally:
        tf.config.run_functions_eagerly(False)


WRONG: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    "the class of a method": (lambda: Compression(DGC, sgd(), keras_model()), ("method", "write DGC()")),
    "the class of an optimizer": (
        lambda: Compression(METHOD, keras.optimizers.SGD, keras_model()),
        ("optimizer", "Keras", "SGD"),
    ),
    "swapped": (lambda: Compression(sgd(), METHOD, keras_model()), ("method", "DGC(density=0.001)")),
    "no variables": (lambda: Compression(METHOD, sgd(), []), ("variables", "empty", "model itself")),
    "None for variables": (lambda: Compression(METHOD, sgd(), None), ("variables", "a model", "None")),
    "text for variables": (lambda: Compression(METHOD, sgd(), "model"), ("variables", "a model", "'model'")),
    "another SGD": (lambda: fit(sgd(), sgd()), ("another optimizer", "SGD", "give both the same")),
    "an Adam given": (lambda: fit(keras.optimizers.Adam(), sgd()), ("another optimizer", "Adam", "SGD")),
    "an SGD given": (lambda: fit(sgd(), keras.optimizers.Adam()), ("another optimizer", "Adam", "SGD")),
    "distributed already": (
        distributed_already,
        ("optimizer", "about to be distributed", "make the Compression first"),
    ),
    "not its compression": (without_its_compression, ("belongs to a Compression", "compression=compression")),
    "a method for an optimizer": (
        lambda: DistributedOptimizer(sgd(), compression=METHOD),
        ("compression", "Compression(DGC(density=0.001), optimizer, model)"),
    ),
    "the class of Compression": (
        lambda: DistributedOptimizer(sgd(), compression=Compression),
        ("compression", "made with this optimizer"),
    ),
    "a method for a tape": (lambda: tape(METHOD), ("compression", "Compression(DGC(), optimizer, model)")),
    "a scale that is not known": (
        scaled_around,
        ("loss is scaled", "LossScaleOptimizer", "Compression(method, scaled"),
    ),
    "functions run eagerly": (functions_run_eagerly, ("run_functions_eagerly", "run_eagerly=True")),
    "transport": (lambda: Compression(METHOD, sgd(), keras_model(), transport=None), ("transport", "'auto'", "None")),
}
if KERAS_3:
    WRONG["a function as a rate, without a graph"] = (function_as_a_rate, ("learning_rate", "schedule of Keras"))


def check_wrong_uses() -> None:
    silent, unclear, late = [], [], []
    for name, (call, words) in WRONG.items():
        began = time.monotonic()
        try:
            call()
            silent.append(name)
        except ValueError as error:
            if not all(word in str(error) for word in words):
                unclear.append((name, str(error)))
        if time.monotonic() - began > SECONDS:
            late.append(name)
    assert not silent and not unclear and not late, (silent, unclear, late)


def check_a_refusal_leaves_the_optimizer_as_it_was() -> None:
    model, optimizer = Dense(), sgd()
    kind = type(optimizer)
    for wrong in ({"transport": "ring"}, {"check_sync": -1}, {"agreement_timeout": 0}, {"hierarchical": "yes"}):
        try:
            Compression(METHOD, optimizer, model.variables, **wrong)
        except ValueError:
            continue
        raise AssertionError(f"{wrong} was accepted")
    assert type(optimizer) is kind
    assert Compression(METHOD, optimizer, model.variables).tensors[0].corrected


def warned(call: Callable[[], Any], word: str) -> list[str]:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        call()
        gc.collect()
    return [str(w.message) for w in said if word in str(w.message)]


def check_a_compression_that_is_never_used() -> None:
    def make() -> None:
        Compression(METHOD, sgd(), Dense().variables)

    gc.collect()
    assert len(warned(make, "never used")) == 1
    assert not warned(lambda: Trainer(Dense(), METHOD, sgd()).run(1), "never used")


def check_gradients_that_pass_by_their_compression() -> None:
    model, optimizer = Dense(), sgd()
    compression = Compression(METHOD, optimizer, model.variables)
    optimizer.build(model.variables)
    for _ in range(2):
        tape(hvd.Compression.none, model, optimizer)
    said = warned(lambda: tape(hvd.Compression.none, model, optimizer), "not passed through")
    assert not said, "it is said once"
    assert not compression.stats().total.steps
    model, optimizer = Dense(), sgd()
    compression = Compression(METHOD, optimizer, model.variables)
    optimizer.build(model.variables)
    assert len(warned(lambda: tape(hvd.Compression.none, model, optimizer), "not passed through")) == 1


def check_a_loss_scale_around_what_was_given() -> None:
    """The scale is found wherever it is: around a distributed optimizer's, or in the optimizer that was given."""
    for outside in (True, False):
        model = keras_model(batch_norm=False)
        inner = sgd()
        scaled = LossScaleOptimizer(inner, initial_scale=2.0**8)
        compression = Compression(METHOD, scaled if outside else inner, model)
        if KERAS_3:
            distributed = DistributedOptimizer(scaled, compression=compression)
        elif outside:
            continue
        else:
            distributed = LossScaleOptimizer(DistributedOptimizer(inner, compression=compression))
        model.compile(distributed, loss="mse", **({"jit_compile": False} if KERAS_3 else {}))
        images, _ = batch(0)
        model.fit(images, np.ones((8, 5), np.float32), verbose=0)
        assert compression.stats().total.steps == 1


def check_counts_in_total_are_sums() -> None:
    for method in (ThresholdQuantization(), AdaComp()):
        trainer = Trainer(Dense(), method, sgd(momentum=0.0))
        trainer.run(6)
        stats = trainer.compression.stats()
        assert stats.total.overflow == sum(tensor.overflow for tensor in stats.tensors.values()) > 0


def check_sums_in_float16() -> None:
    """Whatever finite gradients are fed: no sum is infinite, and nothing is lost where there is a residual."""

    class Fed:
        def __init__(self) -> None:
            self.variables = [tf.Variable(tf.zeros((30, 20)), name="w"), tf.Variable(tf.zeros(500), name="b")]

        def loss(self, gradients: Any) -> tf.Tensor:
            return tf.add_n([tf.reduce_sum(v * g) for v, g in zip(self.variables, gradients)])

    def feed(size: float, step: int) -> list[tf.Tensor]:
        generator = np.random.default_rng((step, hvd.rank()))
        return [tf.constant(size * generator.standard_normal(s), tf.float32) for s in ((30, 20), (500,))]

    def full(size: float, step: int) -> list[tf.Tensor]:
        return [tf.fill(s, tf.constant(size, tf.float32)) for s in ((30, 20), (500,))]

    for values, make, size in (
        ("float16", feed, 1.0),
        ("float16", feed, 1e-6),
        ("float16", feed, 3e4),
        ("bfloat16", feed, 1.0),
        ("int8", feed, 1.0),
        ("float16", full, 65504.0),
        ("float16", full, 1e6),
    ):
        trainer = Trainer(Fed(), DGC(density=0.1, exempt_values=values), sgd(momentum=0.0))
        fed = [np.zeros(s) for s in ((30, 20), (500,))]
        applied = [np.zeros(s) for s in ((30, 20), (500,))]
        for step in range(10):
            gradients = make(size, step)
            for i, result in enumerate(trainer.gradients(gradients)):
                fed[i] += gradients[i].numpy()
                applied[i] += result.numpy()
        for i, tensor in enumerate(trainer.compression.tensors):
            waiting = (
                0.0 if tensor.residual is None else tensor.residual.numpy().astype(np.float64).reshape(fed[i].shape)
            )
            total, waits = (hvd.allreduce(tf.constant(v + 0 * fed[i]), name=f"{i}").numpy() for v in (fed[i], waiting))
            error = np.abs(applied[i] + waits - total).max() / np.abs(total).max()
            assert error < 1e-5, (values, size, i, error)
    for make, size, expected in ((full, 65504.0, 65504.0), (full, 1e6, 65504.0), (full, 40000.0, 40000.0)):
        trainer = Trainer(Fed(), FP16(), sgd(momentum=0.0))
        results = trainer.gradients(make(size, 0))
        assert all(np.allclose(r.numpy(), expected, rtol=1e-3) for r in results), (
            size,
            [r.numpy().max() for r in results],
        )
    half = Trainer(Fed(), FP16(), sgd(momentum=0.0)).gradients(feed(1.0, 0))
    exact = Trainer(Fed(), None, sgd(momentum=0.0)).gradients(feed(1.0, 0))
    for ours, dense in zip(half, exact):
        np.testing.assert_allclose(ours.numpy(), dense.numpy(), rtol=4e-3, atol=2e-3)
    dense, ours = (Trainer(Dense(), m, sgd()).run(4) for m in (None, FP16()))
    assert_same_trajectory(ours, dense, tolerance=5e-4)
