"""Several Compressions in one process: nothing that one of them sends meets what another sends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import horovod.tensorflow as hvd
import numpy as np
import tensorflow as tf
from rank import raises

from checks.common import EXACT_VALUES, assert_ranks_identical, assert_same_trajectory, keras, sgd, vector
from horovod_dgc import DGC
from horovod_dgc.tensorflow import Compression, DistributedOptimizer
from horovod_dgc.tensorflow.takeover import KERAS_3

EXACT = DGC(**EXACT_VALUES)
CORRECTED = DGC(density=0.9, factor_masking=False)
STEPS = 5


class Adversaries:
    """Two networks of equal shapes, each with an optimizer and a Compression of its own, one step for both."""

    def __init__(self, method: DGC | None, *, eager: bool = False, **settings: Any) -> None:
        def normal(number: int) -> tf.Variable:
            return tf.Variable(0.3 * tf.random.stateless_normal((12, 12), (5, number)), name="weight")

        self.nets = [[normal(2 * i), normal(2 * i + 1), tf.Variable(tf.zeros(12), name="bias")] for i in range(2)]
        self.optimizers = [sgd(), sgd(learning_rate=0.02, nesterov=True)]
        self.compressions = [
            hvd.Compression.none if method is None else Compression(method, optimizer, net, **settings)
            for optimizer, net in zip(self.optimizers, self.nets)
        ]
        for optimizer, net in zip(self.optimizers, self.nets):
            optimizer.build(net)
        self.step = self._step if eager else tf.function(self._step)

    @staticmethod
    def _through(net: Sequence[tf.Variable], x: tf.Tensor) -> tf.Tensor:
        return tf.tanh(x @ net[0]) @ net[1] + net[2]

    def _step(self, x: tf.Tensor) -> None:
        with tf.GradientTape() as first, tf.GradientTape() as second:
            made = self._through(self.nets[0], x)
            told = tf.reduce_mean(tf.nn.softplus(self._through(self.nets[1], made)))
            losses = (told, -told + tf.reduce_mean(tf.square(self._through(self.nets[1], x) - x)))
        tapes = [
            hvd.DistributedGradientTape(tape, compression=compression)
            for tape, compression in zip((first, second), self.compressions)
        ]
        gradients = [tape.gradient(loss, net) for tape, loss, net in zip(tapes, losses, self.nets)]
        for optimizer, found, net in zip(self.optimizers, gradients, self.nets):
            optimizer.apply_gradients(zip(found, net))

    def run(self, steps: int = STEPS) -> list[np.ndarray]:
        trajectory = []
        for number in range(steps):
            x = np.random.default_rng((number, hvd.rank())).standard_normal((8, 12)).astype(np.float32)
            self.step(tf.constant(x))
            trajectory.append(vector([variable for net in self.nets for variable in net]))
        assert_ranks_identical([variable for net in self.nets for variable in net], "adversaries")
        return trajectory


def check_adversaries_in_one_step() -> None:
    for eager in (False, True):
        dense = Adversaries(None, eager=eager).run()
        for transport in ("gather", "allreduce"):
            ours = Adversaries(EXACT, eager=eager, transport=transport, check_sync=2)
            assert_same_trajectory(ours.run(), dense)
            assert [c.stats().total.steps for c in ours.compressions] == [STEPS, STEPS]
        Adversaries(CORRECTED, eager=eager).run()


def check_one_network_overflows() -> None:
    """Its step is skipped, on all ranks, and the other's is not."""
    both = Adversaries(CORRECTED)
    both.run(2)
    steps = [tensor.steps for tensor in both.compressions[1].tensors]

    @tf.function
    def step(factor: tf.Tensor) -> list[Any]:
        found = []
        for net, compression, scale in zip(both.nets, both.compressions, (tf.ones(()), factor)):
            with tf.GradientTape() as tape:
                loss = scale * tf.add_n([tf.reduce_sum(v * v) for v in net])
            found.append(hvd.DistributedGradientTape(tape, compression=compression).gradient(loss, net))
        return found

    first, second = step(tf.constant(np.inf if hvd.rank() == 0 else 1.0, tf.float32))
    assert all(np.isfinite(g.numpy()).all() for g in first) and any(np.isnan(g.numpy()).any() for g in second)
    assert [c.stats().total.skipped for c in both.compressions] == [0, 1]
    assert [tensor.steps for tensor in both.compressions[1].tensors] == steps


def check_two_optimizers_over_one_model() -> None:
    """Each of them applies the gradients of a part of it, in one step of one loss."""
    if not KERAS_3:
        return
    for kinds in ((sgd, sgd), (sgd, lambda: keras.optimizers.Adam(0.01))):
        assert_same_trajectory(in_two_parts(EXACT, kinds), in_two_parts(None, kinds))


def in_two_parts(method: DGC | None, kinds: Sequence[Any]) -> list[np.ndarray]:
    keras.utils.set_random_seed(5)
    model = keras.Sequential([keras.layers.Dense(12, "tanh"), keras.layers.Dense(12)])
    model.build((None, 12))
    parts = model.trainable_variables[:2], model.trainable_variables[2:]
    optimizers = []
    for kind, part in zip(kinds, parts):
        optimizer = kind()
        compression = None if method is None else Compression(method, optimizer, part)
        optimizers.append(DistributedOptimizer(optimizer, compression=compression))
        optimizer.build(part)

    @tf.function
    def step(x: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(x) - tf.reverse(x, [1])))
        found = tape.gradient(loss, [v.value for part in parts for v in part])
        for optimizer, part, gradients in zip(optimizers, parts, (found[:2], found[2:])):
            optimizer.apply(gradients, part)

    trajectory = []
    for number in range(STEPS):
        x = np.random.default_rng((number, hvd.rank())).standard_normal((8, 12)).astype(np.float32)
        step(tf.constant(x))
        trajectory.append(vector(model.trainable_variables))
    return trajectory


def check_orders_that_differ_between_ranks() -> None:
    """Nobody waits for another: all ranks say so at once."""
    both = Adversaries(CORRECTED)
    if hvd.rank() == hvd.size() - 1:
        both.nets.reverse()
        both.optimizers.reverse()
        both.compressions.reverse()
    with raises(ValueError, "compression number", "in the same order"):
        both.run(1)
