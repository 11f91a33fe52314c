"""Invariant 1 through ``DistributedGradientTape``: with density 1 the trajectory is that of uncompressed Horovod."""

from __future__ import annotations

from typing import Any

import horovod.tensorflow as hvd
import tensorflow as tf

from checks.common import (
    EXACT_VALUES,
    Dense,
    Trainer,
    assert_ranks_identical,
    assert_same_trajectory,
    keras,
    sgd,
)
from horovod_dgc import DGC

EXACT = DGC(**EXACT_VALUES)


def same_as_dense(build: Any, *, transports: tuple[str, ...] = ("gather", "allreduce"), **options: Any) -> None:
    dense = Trainer(Dense(), None, build(), built=False, **options)
    expected = dense.run()
    for name in transports:
        model = Dense()
        ours = Trainer(model, EXACT, build(), built=False, settings={"transport": name}, **options).run()
        assert_ranks_identical(model.variables, name)
        assert_same_trajectory(ours, expected)


def check_dense_momentum_and_nesterov() -> None:
    same_as_dense(lambda: sgd())
    same_as_dense(lambda: sgd(nesterov=True))


def check_dense_without_momentum() -> None:
    same_as_dense(lambda: sgd(momentum=0.0))


def check_dense_in_eager_mode() -> None:
    same_as_dense(lambda: sgd(nesterov=True), eager=True)


def check_dense_weight_decay() -> None:
    """It stays with the optimizer, which applies it to the weights outside momentum."""
    same_as_dense(lambda: sgd(weight_decay=0.01))


def check_dense_schedules_of_the_learning_rate() -> None:
    """Momentum is worth what the rate was when it was gathered, through falls and rises of the rate."""
    schedules = keras.optimizers.schedules
    same_as_dense(lambda: sgd(learning_rate=schedules.ExponentialDecay(0.1, 2, 0.5)))
    steps = schedules.PiecewiseConstantDecay([2, 5], [0.02, 0.2, 0.01])
    same_as_dense(lambda: sgd(learning_rate=steps, nesterov=True))


def check_dense_learning_rate_that_is_assigned() -> None:
    trajectories = []
    for method in (EXACT, None):
        trainer = Trainer(Dense(), method, sgd(momentum=0.8))
        trajectory = []
        for part, rate in enumerate((0.02, 0.1, 0.005)):
            trainer.optimizer.learning_rate = rate
            trajectory += trainer.run(steps=3, first=3 * part)
        trajectories.append(trajectory)
    assert_same_trajectory(*trajectories)


def check_dense_adam() -> None:
    same_as_dense(lambda: keras.optimizers.Adam(0.01))


def check_dense_sum_predivide_and_groups() -> None:
    same_as_dense(lambda: sgd(learning_rate=0.01), op=hvd.Sum)
    same_as_dense(lambda: sgd(), gradient_predivide_factor=2.0)
    same_as_dense(lambda: sgd(), groups=2)


def check_dense_explicit_groups() -> None:
    trajectories = []
    for method in (EXACT, None):
        model = Dense()
        groups = [[model.kernel, model.bias], [model.second]]
        trajectories.append(Trainer(model, method, sgd(), groups=groups).run())
    assert_same_trajectory(*trajectories)


def check_dense_float64() -> None:
    trajectories = [Trainer(Dense(dtype=tf.float64), method, sgd()).run() for method in (EXACT, None)]
    assert_same_trajectory(*trajectories)
