"""``Compression`` with the model itself, whose variables are read when they are first needed."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import horovod.tensorflow as hvd
import numpy as np
import tensorflow as tf
from rank import raises

from checks.common import (
    EXACT_VALUES,
    assert_ranks_identical,
    assert_same_trajectory,
    crossentropy,
    data,
    keras,
    sgd,
    vector,
)
from horovod_dgc import DGC
from horovod_dgc.tensorflow import (
    BroadcastGlobalVariablesCallback,
    Compression,
    DistributedOptimizer,
    load_checkpoint,
    save_checkpoint,
)
from horovod_dgc.tensorflow.takeover import KERAS_3, raw

EXACT = DGC(**EXACT_VALUES)
SPARSE = DGC(density=0.05)
layers = keras.layers


class Subclassed(keras.Model):  # type: ignore[misc]
    """Layers that are made at once, and get their weights with the first batch."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = layers.Dense(16, activation="relu")
        self.out = layers.Dense(5)

    def call(self, inputs: Any) -> Any:
        return self.out(self.hidden(tf.reshape(inputs, (-1, 36))))


def sequential() -> Any:
    return keras.Sequential(
        [layers.Conv2D(4, 3, activation="relu"), layers.Flatten(), layers.Dense(16, activation="relu"), layers.Dense(5)]
    )


MODELS: tuple[Callable[[], Any], ...] = (sequential, Subclassed)


def make(build: Callable[[], Any]) -> Any:
    keras.utils.set_random_seed(11)
    return build()


def fit(model: Any, compression: Any, optimizer: Any, *, eager: bool = False) -> np.ndarray:
    """Six steps as in Horovod's own example of Keras."""
    distributed = DistributedOptimizer(optimizer, compression=compression)
    options = {"jit_compile": False} if KERAS_3 else {}
    model.compile(distributed, loss=crossentropy(), run_eagerly=eager, **options)
    images, labels = data()
    callbacks = [BroadcastGlobalVariablesCallback(0)]
    model.fit(images, labels, batch_size=8, epochs=1, shuffle=False, verbose=0, callbacks=callbacks)
    assert_ranks_identical(model.trainable_variables, model.name)
    return vector(model.trainable_variables)


def check_fit() -> None:
    for build in MODELS:
        for eager in (False, True):
            dense = fit(make(build), None, sgd(), eager=eager)
            model, optimizer = make(build), sgd()
            compression = Compression(EXACT, optimizer, model)
            assert not compression.tensors
            ours = fit(model, compression, optimizer, eager=eager)
            assert_same_trajectory([0 * dense, ours], [0 * dense, dense])
            assert len(compression.tensors) == len(model.trainable_variables)
    model, optimizer = make(sequential), sgd()
    compression = Compression(SPARSE, optimizer, model)
    fit(model, compression, optimizer)
    stats = compression.stats()
    assert stats.total.steps == 6 and stats.last.sent < stats.last.dense / 3
    assert all(tensor.corrected for tensor in compression.tensors if len(tensor.shape) > 1)


def taped(model: Any, compression: Any, *, graph: bool) -> list[np.ndarray]:
    """As in Horovod's own example of TensorFlow: all that is broadcast, after the first batch."""
    optimizer, loss_of, trajectory = compression.optimizer, crossentropy(), []
    images, labels = data()

    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = loss_of(y, model(x, training=True))
        tape = hvd.DistributedGradientTape(tape, compression=compression.given)
        gradients = tape.gradient(loss, [raw(variable) for variable in model.trainable_variables])
        optimizer.apply_gradients(zip(gradients, model.trainable_variables))

    if graph:
        step = tf.function(step)
    for first in range(0, 48, 8):
        step(*(tf.constant(part[first : first + 8]) for part in (images, labels)))
        trajectory.append(vector(model.trainable_variables))
    assert_ranks_identical(model.trainable_variables, model.name)
    return trajectory


class With:
    """An optimizer, and the compression that is made with it and a model."""

    def __init__(self, method: DGC | None, model: Any) -> None:
        self.optimizer = sgd()
        self.given = hvd.Compression.none if method is None else Compression(method, self.optimizer, model)


def check_tape_and_function() -> None:
    for build in MODELS:
        for graph in (True, False):
            dense = make(build)
            expected = taped(dense, With(None, dense), graph=graph)
            ours = make(build)
            assert_same_trajectory(taped(ours, With(EXACT, ours), graph=graph), expected)


def check_models_that_are_built_already() -> None:
    model = make(sequential)
    model.build((None, 6, 6, 1))
    compression = Compression(SPARSE, sgd(), model)
    assert [tensor.label for tensor in compression.tensors] == [
        getattr(v, "path", None) or v.name for v in model.trainable_variables
    ]


def check_layers_that_are_unfrozen_later() -> None:
    """The model gets more trainable variables; all ranks agree anew."""
    trajectories = []
    for method in (EXACT, None):
        model = make(sequential)
        model.build((None, 6, 6, 1))
        # Keras's optimizers know all variables from the beginning.
        everything = model.trainable_variables
        model.layers[0].trainable = False
        having = With(method, model)
        having.optimizer.build(everything)
        taped(model, having, graph=True)
        model.layers[0].trainable = True
        trajectories.append(taped(model, having, graph=True))
        if method is not None:
            assert len(having.given.tensors) == 6 and having.given.tensors[-1].steps == 6
    assert_same_trajectory(*trajectories)


def check_checkpoints() -> None:
    """What is saved is restored into a Compression that has read no variables yet, and goes on bit for bit."""
    with tempfile.TemporaryDirectory() as folder:
        model = make(sequential)
        having = With(SPARSE, model)
        taped(model, having, graph=True)
        parts = {"model": model, "compression": having.given, "optimizer": having.optimizer}
        path = tf.train.Checkpoint(**parts).write(str(Path(folder) / f"rank{hvd.rank()}"))
        expected = taped(model, having, graph=True)

        again = make(sequential)
        other = With(SPARSE, again)
        again.build((None, 6, 6, 1))
        other.optimizer.build(again.trainable_variables)
        parts = {"model": again, "compression": other.given, "optimizer": other.optimizer}
        status = tf.train.Checkpoint(**parts).read(path)
        assert not other.given.tensors
        resumed = taped(again, other, graph=True)
        status.assert_existing_objects_matched()
        assert all(np.array_equal(a, b) for a, b in zip(resumed, expected))


def check_what_needs_variables_says_so() -> None:
    model = make(Subclassed)
    compression = Compression(SPARSE, sgd(), model)
    assert compression.stats().total.steps == 0
    with tempfile.TemporaryDirectory() as folder:
        with raises(ValueError, "no variables yet", "save_checkpoint()"):
            save_checkpoint(folder, compression)
        with raises(ValueError, "no variables yet", "load_checkpoint()"):
            load_checkpoint(folder, compression)
