"""Mixed precision: runs whose steps overflow now and then end where they would have ended without."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import horovod.tensorflow as hvd
import numpy as np
import tensorflow as tf
from rank import by_length

from checks.common import Dense, Trainer, assert_ranks_identical, batch, keras, sgd, vector
from horovod_dgc import DGC

BATCHES = 12


class Mixed(Dense):
    """Variables in float32, and the arithmetic of both passes in another type."""

    def __init__(self, dtype: tf.DType) -> None:
        super().__init__()
        self._dtype = dtype

    def loss(self, batch: Sequence[tf.Tensor]) -> tf.Tensor:
        images, labels = batch
        kernel, first, second, bias = (tf.cast(v, self._dtype) for v in self.variables)
        hidden = tf.nn.relu(tf.nn.conv2d(tf.cast(images, self._dtype), kernel, 1, "SAME"))
        hidden = tf.nn.relu(tf.reshape(hidden, (-1, 144)) @ first)
        logits = tf.cast(hidden @ second + bias, tf.float32)
        return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))


@dataclass(frozen=True)
class End:
    variables: np.ndarray
    loss: float
    scales: set[float]


def loss_of(model: Mixed) -> float:
    return float(np.mean([model.loss(batch(step)) for step in range(BATCHES)]))


def train(dtype: tf.DType, steps: int, overflowing: bool) -> End:
    """Train until so many steps have not been skipped; each has the batch that it would have without overflows."""
    # Attempts that overflow on one rank.
    overflows = {0, 1, *range(7, steps, 13)} if overflowing else set()
    model = Mixed(dtype)
    # Without overflows the scale must not grow into some of its own.
    growth = 8 if overflows else 10 * steps
    scaled = keras.optimizers.LossScaleOptimizer(sgd(), initial_scale=2.0**10, dynamic_growth_steps=growth)
    scaled.build(model.variables)
    trainer = Trainer(model, DGC(density=0.05), scaled, settings={"transport": "gather"})
    scales, done = set(), 0
    for attempt in itertools.count():
        images, labels = batch(done % BATCHES)
        bad = attempt in overflows and hvd.rank() == attempt % hvd.size()
        before = float(scaled.dynamic_scale.value)
        trainer.step((images * np.inf if bad else images, labels))
        scales.add(before)
        skipped = float(scaled.dynamic_scale.value) < before
        assert skipped == (attempt in overflows), f"attempt {attempt} at scale {before}: skipped {skipped}"
        done += not skipped
        if done == steps:
            break
    assert trainer.compression.stats().total.skipped == attempt + 1 - steps
    assert_ranks_identical(model.variables, f"{dtype} with {len(overflows)} overflows")
    return End(vector(model.variables), loss_of(model), scales)


def check_bfloat16_with_overflows_ends_where_it_would_have_ended() -> None:
    """The scale is a power of two and bfloat16 has float32's range: to the last bit."""
    steps = by_length(80, long=300)
    undisturbed, disturbed = (train(tf.bfloat16, steps, overflowing) for overflowing in (False, True))
    assert len(disturbed.scales) > 3, "the scale hardly changed: nothing is shown"
    assert np.array_equal(undisturbed.variables, disturbed.variables)


def check_float16_with_overflows_ends_where_it_would_have_ended() -> None:
    """What is below float16's range depends on the scale: the losses differ by 2 % of the first at most."""
    undisturbed, disturbed = (train(tf.float16, 300, overflowing) for overflowing in (False, True))
    start = loss_of(Mixed(tf.float16))
    assert undisturbed.loss < 0.6 * start, f"{start} -> {undisturbed.loss}: nothing was learnt"
    assert abs(disturbed.loss - undisturbed.loss) < 0.02 * start, f"{undisturbed} {disturbed}"
