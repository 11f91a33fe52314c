"""Every method of the family, in the adapter, against all workers in one process."""

from __future__ import annotations

from typing import Any

import horovod.tensorflow as hvd
import numpy as np
import tensorflow as tf
from family import MOMENTUM, compared_steps, family, reduced_alone

from checks.common import Fed, Trainer, assert_ranks_identical, sgd
from horovod_dgc import Method

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
