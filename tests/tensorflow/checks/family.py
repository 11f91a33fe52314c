"""Every method of the family, in the adapter, against all workers in one process."""

from __future__ import annotations

import math
from typing import Any

import horovod.tensorflow as hvd
import numpy as np
import tensorflow as tf
from family import MOMENTUM, compared_steps, dropped_globally, family, reduced_alone

from checks.common import Fed, Trainer, assert_ranks_identical, sgd
from horovod_dgc import GradientDropping, Method

STEPS = 50


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
    for method in family():
        follow(method, "gather", hvd.Average)


def check_every_method_by_allreduce() -> None:
    for method in family():
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
