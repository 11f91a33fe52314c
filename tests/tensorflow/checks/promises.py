"""Invariant 1 where it is put to the test: every optimizer, rates and momentum that come to 0, changed gradients.

Twice: where everything is sent, momentum is the optimizer's, and where all that is not zero is sent, it is applied
before compression.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import horovod.tensorflow as hvd
import numpy as np
import tensorflow as tf
from rank import raises

from checks.common import EXACT_VALUES, assert_ranks_identical, assert_same_trajectory, keras, sgd, vector
from horovod_dgc import DGC, Method
from horovod_dgc.tensorflow import Compression, DistributedOptimizer
from horovod_dgc.tensorflow.takeover import KERAS_3, raw

EXACT = DGC(**EXACT_VALUES)
# 582 coordinates of 600, of which 20 never have a gradient.
CORRECTED = DGC(density=0.97, values="float32", factor_masking=False)
METHODS = (EXACT, CORRECTED)
STEPS = 8
SCHEDULE = keras.optimizers.schedules.LearningRateSchedule


@keras.utils.register_keras_serializable()
class Rates(SCHEDULE):  # type: ignore[misc,valid-type]
    """The rate of each step."""

    def __init__(self, rates: Sequence[float]) -> None:
        self.rates = list(rates)

    def __call__(self, step: Any) -> tf.Tensor:
        return tf.gather(tf.constant(self.rates, tf.float32), tf.minimum(tf.cast(step, tf.int32), len(self.rates) - 1))

    def get_config(self) -> dict[str, Any]:
        return {"rates": self.rates}


def linear(dtype: str | None = None) -> Any:
    """One layer of 600 weights and 20 biases."""
    keras.utils.set_random_seed(3)
    model = keras.Sequential([keras.layers.Dense(20, activation="tanh", dtype=dtype)])
    model.build((None, 30))
    return model


def batches(steps: int = STEPS) -> tuple[np.ndarray, np.ndarray]:
    """This rank's data: real numbers, the first feature of every sample zero."""
    generator = np.random.default_rng(hvd.rank())
    inputs = generator.standard_normal((8 * steps, 30)).astype(np.float32)
    inputs[:, 0] = 0
    return inputs, generator.standard_normal((8 * steps, 20)).astype(np.float32)


def train(
    method: Method | None,
    optimizer: Any,
    *,
    how: str = "fit",
    at: Callable[[int, Any], None] = lambda step, optimizer: None,
    change: Callable[[list[Any]], list[Any]] = list,
    dtype: str | None = None,
) -> list[np.ndarray]:
    """The model's weights after each step.

    Args:
        how: "fit" or "tape", in a graph, or "eager fit" or "eager tape".
        at: called before each step with its number and the optimizer.
        change: what becomes of a tape's gradients on their way to the optimizer.
    """
    model, trajectory = linear(dtype), []
    compression = hvd.Compression.none if method is None else Compression(method, optimizer, model)
    inputs, targets = batches()
    if how.endswith("fit"):
        distributed = DistributedOptimizer(optimizer, compression=compression)

        class Watch(keras.callbacks.Callback):
            def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
                at(batch, self.model.optimizer)

            def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
                trajectory.append(vector(model.trainable_variables))

        options = {"jit_compile": False} if KERAS_3 else {}
        model.compile(distributed, loss="mse", run_eagerly=how.startswith("eager"), **options)
        model.fit(inputs, targets, batch_size=8, shuffle=False, verbose=0, callbacks=[Watch()])
    else:
        variables = [raw(variable) for variable in model.trainable_variables]
        optimizer.build(model.trainable_variables)

        def step(x: Any, y: Any) -> None:
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.square(tf.cast(model(x), tf.float32) - y))
            tape = hvd.DistributedGradientTape(tape, compression=compression)
            gradients = change(tape.gradient(loss, variables))
            optimizer.apply_gradients(zip(gradients, model.trainable_variables))

        run = step if how.startswith("eager") else tf.function(step)
        for number in range(STEPS):
            at(number, optimizer)
            run(*(tf.constant(part[8 * number : 8 * number + 8]) for part in (inputs, targets)))
            trajectory.append(vector(variables))
    assert_ranks_identical(model.trainable_variables, f"{method} {how}")
    return trajectory


def same_as_dense(build: Callable[[], Any], methods: tuple[Method, ...] = METHODS, **options: Any) -> None:
    dense = train(None, build(), **options)
    for method in methods:
        assert_same_trajectory(train(method, build(), **options), dense)


def rates(*values: float, **settings: Any) -> Callable[[], Any]:
    return lambda: sgd(learning_rate=Rates(values), **settings)


def check_rates_that_begin_at_0() -> None:
    """A gradient seen at rate 0 is worth nothing, ever."""
    same_as_dense(rates(0, 0.02, 0.05, 0.1))
    same_as_dense(rates(0, 0, 0, 0.05, nesterov=True))
    same_as_dense(rates(0, 0.05), how="tape")


def check_rates_that_come_to_0_and_rise_again() -> None:
    """At rate 0 the weights go on moving by the momentum that there is."""
    same_as_dense(rates(0.05, 0.05, 0, 0, 0.02, 0.05))
    same_as_dense(rates(0.05, 0.02, 0, 0, 0, 0, 0, 0, nesterov=True))
    same_as_dense(rates(0.05, 1e-38, 0.05, 1e-40, 0.05), how="tape")


def check_schedules_of_keras() -> None:
    schedules = keras.optimizers.schedules
    same_as_dense(lambda: sgd(learning_rate=schedules.CosineDecay(0.1, 4)))
    same_as_dense(lambda: sgd(learning_rate=schedules.CosineDecayRestarts(0.1, 3)))
    same_as_dense(lambda: sgd(learning_rate=schedules.CosineDecay(0.0, 5, warmup_target=0.1, warmup_steps=3)))


def check_a_rate_of_0_that_is_assigned() -> None:
    def freeze(step: int, optimizer: Any) -> None:
        optimizer.learning_rate = 0.0 if 2 <= step < 5 else 0.05

    for how in ("fit", "eager tape"):
        same_as_dense(sgd, at=freeze, how=how)


def check_momentum_that_comes_to_0_and_back() -> None:
    """Keras 3 leaves its momentum alone meanwhile, Keras 2 clears it; without a graph both see a change at once."""

    def change(step: int, optimizer: Any) -> None:
        optimizer.momentum = (0.9, 0.9, 0.9, 0.0, 0.0, 0.5, 0.9, 0.9)[step]

    for how in ("eager fit", "eager tape"):
        same_as_dense(sgd, at=change, how=how)


def check_in_a_graph_momentum_is_what_it_was_when_it_was_traced() -> None:
    def change(step: int, optimizer: Any) -> None:
        optimizer.momentum = 0.9 if step < 3 else 0.0

    same_as_dense(sgd, at=change)


def check_every_optimizer() -> None:
    found = {
        kind
        for kind in vars(keras.optimizers).values()
        if isinstance(kind, type) and issubclass(kind, keras.optimizers.Optimizer)
    }
    others = {"Optimizer", "LossScaleOptimizer", "MultiOptimizer", "SGD"}
    kinds = sorted((kind for kind in found if kind.__name__ not in others), key=lambda kind: kind.__name__)
    assert len(kinds) > 8
    for kind in kinds:
        rate = 1.0 if kind.__name__ == "Adadelta" else 0.05
        same_as_dense(lambda kind=kind, rate=rate: kind(learning_rate=rate), (EXACT,), how="tape")


def check_what_keras_does_to_gradients() -> None:
    for clip in ({"clipnorm": 0.05}, {"global_clipnorm": 0.05}, {"clipvalue": 0.002}):
        same_as_dense(lambda clip=clip: sgd(**clip), (EXACT,))
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            same_as_dense(lambda clip=clip: sgd(**clip), (CORRECTED,))
        assert sum("momentum stays with" in str(w.message) and "clip_norm" in str(w.message) for w in said) == 1
    ema = {"use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 3}
    same_as_dense(lambda: sgd(weight_decay=0.05, **ema))


def check_options_that_are_set_too_late() -> None:
    optimizer = sgd()

    def late(step: int, given: Any) -> None:
        optimizer.clipnorm = 0.1

    with raises(ValueError, "clipnorm", "when Compression was made"):
        train(CORRECTED, optimizer, how="tape", at=late)


class Centralized(keras.optimizers.SGD):  # type: ignore[misc]
    """Its own arithmetic comes before that of SGD."""

    def update_step(self, gradient: Any, variable: Any, *rest: Any) -> Any:
        gradient = tf.sign(gradient) * tf.sqrt(tf.abs(gradient))
        return super().update_step(gradient, variable, *rest)


class Settings(keras.optimizers.SGD):  # type: ignore[misc]
    """Nothing of its own but how it is made."""

    def __init__(self, learning_rate: float = 0.05, **settings: Any) -> None:
        super().__init__(learning_rate, momentum=0.9, nesterov=True)

    def get_config(self) -> dict[str, Any]:
        return super().get_config()


def check_subclasses_with_arithmetic_of_their_own_keep_their_momentum() -> None:
    same_as_dense(lambda: Centralized(0.01, momentum=0.9), (EXACT,), how="tape")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        same_as_dense(lambda: Centralized(0.01, momentum=0.9), (CORRECTED,), how="tape")
    assert ["update_step() is its own" in str(w.message) for w in said].count(True) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer = Settings()
        compression = Compression(CORRECTED, optimizer, linear())
    assert compression.tensors[0].corrected
    same_as_dense(Settings)


def check_gradients_that_are_changed_on_their_way() -> None:
    """As without compression where everything is sent; otherwise it is said, once."""

    def clip(gradients: list[Any]) -> list[Any]:
        return tf.clip_by_global_norm(gradients, 0.05)[0]

    def halve(gradients: list[Any]) -> list[Any]:
        return [gradient / 2 for gradient in gradients]

    for how in ("tape", "eager tape"):
        same_as_dense(sgd, (EXACT,), how=how, change=clip)
    for change, expected in ((clip, 1), (halve, 0), (list, 0)):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            train(CORRECTED, sgd(), how="tape", change=change)
        about = [str(w.message) for w in said if "changed between" in str(w.message)]
        assert len(about) == expected and all("clip_norm" in message for message in about), about
    same_as_dense(sgd, how="tape", change=halve)


def momentum(shape: Any) -> np.ndarray:
    """For a variable, as if gathered with :func:`batches`."""
    values = np.random.default_rng(7).standard_normal(shape).astype(np.float32) / 50
    if len(shape) > 1:
        values[0] = 0
    return values


def check_momentum_that_is_loaded_later() -> None:
    """What is loaded into the optimizer counts, and the velocity that there was goes."""

    def load(step: int, optimizer: Any) -> None:
        if step == 3:
            for buffer in optimizer.momentums:
                buffer.assign(momentum(buffer.shape))

    for how in ("fit", "eager tape"):
        same_as_dense(sgd, at=load, how=how)
    same_as_dense(rates(0.05, 0.05, 0.05, 0, 0, 0.05), at=load)


def check_momentum_that_is_there_at_first_while_the_rate_is_0() -> None:
    def load(step: int, optimizer: Any) -> None:
        if step == 0:
            for buffer in optimizer.momentums:
                buffer.assign(momentum(buffer.shape))

    same_as_dense(rates(0, 0, 0.05), at=load, how="tape")


def check_default_dtypes() -> None:
    """Keras's float type decides about models, not about what is kept here."""
    before = keras.backend.floatx()
    for name in ("float64", "float16", *(["bfloat16"] if KERAS_3 else [])):
        keras.backend.set_floatx(name)
        try:
            # Horovod sums no bfloat16.
            for dtype in ("float32", *([name] if name != "bfloat16" else [])):
                build = lambda: sgd(nesterov=True)  # noqa: E731
                dense = train(None, build(), how="tape", dtype=dtype)
                tolerance = 2e-5 if dtype == "float32" or name == "float64" else 2e-2
                for method in METHODS:
                    ours = train(method, build(), how="tape", dtype=dtype)
                    assert max(np.abs(a - b).max() for a, b in zip(ours, dense)) < tolerance, (name, dtype, method)
        finally:
            keras.backend.set_floatx(before)


def check_exceptions_leave_the_optimizer_as_it_is() -> None:
    """The user's values are in place, and training goes on as without compression."""
    trajectories = []
    for method in (*METHODS, None):
        model = linear()
        optimizer = sgd()
        compression = hvd.Compression.none if method is None else Compression(method, optimizer, model)
        variables = [raw(variable) for variable in model.trainable_variables]
        optimizer.build(model.trainable_variables)
        inputs, targets = batches()
        trajectory = []
        for number in range(6):
            x, y = (tf.constant(part[8 * number : 8 * number + 8]) for part in (inputs, targets))
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.square(model(x) - y))
            tape = hvd.DistributedGradientTape(tape, compression=compression)
            gradients = tape.gradient(loss, variables)
            if number == 3:
                with raises(BaseException):
                    optimizer.apply_gradients([(g, None) for g in gradients])
                assert optimizer.momentum == 0.9 and optimizer.get_config()["momentum"] == 0.9
            optimizer.apply_gradients(zip(gradients, model.trainable_variables))
            trajectory.append(vector(variables))
        trajectories.append(trajectory)
    for ours in trajectories[:-1]:
        assert_same_trajectory(ours, trajectories[-1])
