"""Every method of the family, in the adapter, against all workers in one process."""

from __future__ import annotations

import math
from typing import Any

import horovod.tensorflow as hvd
import numpy as np
import tensorflow as tf
from family import MOMENTUM, STEPS, compared_steps, dropped_globally, reduced_alone
from method_cases import on_ranks

from checks.common import Fed, Trainer, assert_ranks_identical, keras, sgd
from horovod_dgc import GradientDropping, Method, VarianceBased
from horovod_dgc.tensorflow import Compression, DistributedOptimizer, SecondMoments
from horovod_dgc.tensorflow.takeover import KERAS_3, raw


def follow(method: Method, transport: str, op: Any) -> None:
    model = Fed()
    feeds = [[model.feed(step, rank) for rank in range(hvd.size())] for step in range(STEPS)]
    factor = 1.0 if op == hvd.Average else float(hvd.size())
    expected = reduced_alone(method, feeds, outputs="last", factor=factor, aggregated=False)
    compared = compared_steps([method.plan(v.shape, STEPS, "last") for v in model.variables])
    optimizer = sgd(learning_rate=1.0, momentum=MOMENTUM if method.corrects_momentum else 0.0)
    trainer = Trainer(model, method, optimizer, settings={"transport": transport}, op=op)
    for step in range(STEPS):
        gradients = trainer.step([tf.constant(g) for g in model.feed(step, hvd.rank())])
        for gradient, result in zip(gradients, expected[step] if step < compared else ()):
            difference = np.abs(gradient.numpy().ravel() - result).max()
            scale = max(1.0, np.abs(result).max())
            assert difference <= 2e-5 * scale, f"{method} by {transport}, step {step}: {difference} of {scale}"
    assert_ranks_identical(model.variables, f"{method} by {transport}")
    if transport == "gather":
        plans = [method.plan(v.shape, STEPS, "last") for v in model.variables]
        sent = trainer.compression.stats().last.sent
        assert sent == sum(plan.payload_nbytes + plan.opening_nbytes for plan in plans)


def check_every_method_by_gathered_payloads() -> None:
    for method in on_ranks():
        follow(method, "gather", hvd.Average)


def check_every_method_by_allreduce() -> None:
    for method in on_ranks():
        follow(method, "allreduce", hvd.Sum)


class Several:
    """Variables of two dimensions whose gradients are whatever they are fed."""

    def __init__(self) -> None:
        shapes = ((20, 30), (40, 25), (20, 30))
        self.variables = [tf.Variable(tf.zeros(shape), name=f"weight{i}") for i, shape in enumerate(shapes)]

    def loss(self, gradients: list[tf.Tensor]) -> tf.Tensor:
        return tf.add_n([tf.reduce_sum(v * g) for v, g in zip(self.variables, gradients)])


def check_variables_share_a_threshold() -> None:
    rng = [np.random.default_rng(rank) for rank in range(hvd.size())]
    shapes = [tuple(v.shape) for v in Several().variables]
    # Of very different size, so that thresholds of their own would send something else.
    feeds = [
        [[size * r.standard_normal(s).astype(np.float32) for s, size in zip(shapes, (1, 8, 2))] for r in rng]
        for _ in range(6)
    ]
    expected = dropped_globally(0.02, feeds)
    method = GradientDropping(0.02, "float32", scope="global", cap=0.5)
    trainer = Trainer(Several(), method, sgd(learning_rate=0.1), settings={"transport": "gather"})
    for ranks, results in zip(feeds, expected):
        gradients = trainer.step([tf.constant(g) for g in ranks[hvd.rank()]])
        for gradient, result in zip(gradients, results):
            np.testing.assert_allclose(gradient.numpy(), result, rtol=1e-6, atol=1e-6)
    assert trainer.compression.stats().last.nonzero == math.ceil(0.02 * 2200)


class OneLayer:
    """A Keras layer under mean(sum(output**2) / 2), whose samples' gradients are told without a tape."""

    def __init__(self) -> None:
        keras.utils.set_random_seed(3)
        self.model = keras.Sequential([keras.layers.Dense(20, use_bias=False)])
        self.model.build((None, 30))
        self.variables = [raw(self.model.layers[0].kernel)]
        self.method = VarianceBased(alpha=1.0, cap=0.2, values="float32")
        self._states = [self.method.init((30, 20), outputs="last") for _ in range(hvd.size())]

    @staticmethod
    def loss(outputs: tf.Tensor) -> tf.Tensor:
        return tf.reduce_mean(tf.reduce_sum(tf.square(outputs), 1)) / 2

    def samples(self, step: int, rank: int) -> np.ndarray:
        return np.random.default_rng((rank, 5)).standard_normal((6, 30)).astype(np.float32) + np.float32(0.1 * step)

    def reduced_alone(self, passes: list[int], *, per_pass: bool = False) -> np.ndarray:
        """What all workers together make of the sum over these passes' gradients, worked out in this process alone.

        Args:
            per_pass: whether each pass counts as a sample, and not what it consists of.
        """
        total, kernel = np.zeros(600, np.float32), self.variables[0].numpy()
        for rank, state in enumerate(self._states):
            gradient, squares = np.zeros(600, np.float32), np.zeros(600, np.float32)
            for step in passes:
                x = self.samples(step, rank)
                own = np.einsum("zi,zo->zio", x, x @ kernel).reshape(len(x), -1) / len(x)
                gradient += own.sum(0)
                squares += np.square(own.sum(0, keepdims=True) if per_pass else own).sum(0)
            payload = self.method.encode(gradient, state, rank=rank, squares=squares)
            self.method.decode(payload, total, scale=1 / hvd.size())
        return total


def assert_reduced(found: np.ndarray, expected: np.ndarray, what: str) -> None:
    difference = np.abs(found.ravel() - expected).max()
    assert difference < 1e-4 * max(1.0, np.abs(expected).max()), f"{what}: {difference}"


def check_second_moments_reach_the_method() -> None:
    """Of a scaled loss; and what a step has seen that overflows on one rank counts in no other."""
    for eager in (False, True):
        layer = OneLayer()
        scaler = keras.optimizers if KERAS_3 else keras.mixed_precision
        rate = 0.1 if KERAS_3 else 0.1 / 2**8  # Keras 2 leaves it to the caller to take the scale out
        optimizer = scaler.LossScaleOptimizer(sgd(learning_rate=rate, momentum=0.0), initial_scale=2.0**8)
        if KERAS_3:
            optimizer.build(layer.variables)
        moments = SecondMoments(layer.model)

        class Loss:
            variables = layer.variables

            @staticmethod
            def loss(inputs: tf.Tensor, model: Any = layer.model) -> tf.Tensor:
                return OneLayer.loss(model(inputs))

        settings = {"second_moments": moments, "transport": "gather"}
        trainer = Trainer(Loss, layer.method, optimizer, eager=eager, settings=settings)
        sent = 0
        for step in range(7):
            x = layer.samples(step, hvd.rank())
            scale = float(optimizer.dynamic_scale.value if KERAS_3 else optimizer.loss_scale)
            if step == 3:
                assert np.isnan(trainer.step(tf.constant(x * np.inf if hvd.rank() == 0 else x))[0]).all()
                continue
            expected = layer.reduced_alone([step])
            (gradient,) = trainer.step(tf.constant(x))
            assert_reduced(gradient.numpy() / scale, expected, f"eager={eager}, step {step}")
            sent += np.count_nonzero(expected)
        assert 0 < sent < 6 * 600, "everything or nothing was unambiguous"
        assert moments.take(layer.variables[0]).shape == (0,)


def check_second_moments_of_several_passes() -> None:
    """Keras's fit, whose passes are added up or averaged before the exchange."""
    for samples in ("exact", "micro-batches") if KERAS_3 else ("exact",):
        for average in (False, True):
            layer = OneLayer()
            optimizer = keras.optimizers.SGD(1e-2)
            compression = Compression(
                layer.method,
                optimizer,
                layer.model.trainable_variables,
                second_moments=SecondMoments(layer.model, samples=samples),
                transport="gather",
            )
            options = {"backward_passes_per_step": 2, "average_aggregated_gradients": average}
            distributed = DistributedOptimizer(optimizer, compression=compression, **options)
            layer.model.compile(distributed, loss=lambda _, outputs: OneLayer.loss(outputs))
            sent = 0
            for step in range(0, 8, 2):
                before = layer.variables[0].numpy()
                expected = layer.reduced_alone([step, step + 1], per_pass=samples == "micro-batches")
                x = np.concatenate([layer.samples(step + i, hvd.rank()) for i in range(2)])
                layer.model.fit(x, np.zeros((12, 20)), batch_size=6, shuffle=False, verbose=0)
                found = (before - layer.variables[0].numpy()) * (200 if average else 100)
                assert_reduced(found, expected, f"{samples}, average={average}, step {step}")
                sent += np.count_nonzero(expected)
            assert 0 < sent < 4 * 600, "everything or nothing was unambiguous"
            assert_ranks_identical(layer.variables, samples)
