"""Keras's ``fit``, in graph and eager mode, with Keras 2 and 3: the optimizer, its options and the callbacks."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import horovod.tensorflow as hvd
import numpy as np
import tensorflow as tf

from checks.common import (
    EXACT_VALUES,
    assert_ranks_identical,
    crossentropy,
    data,
    keras,
    keras_model,
    same,
    sgd,
    state,
    vector,
)
from horovod_dgc import DGC, Warmup
from horovod_dgc.tensorflow import (
    BroadcastGlobalVariablesCallback,
    Compression,
    DistributedOptimizer,
    LearningRateWarmupCallback,
    MetricAverageCallback,
)
from horovod_dgc.tensorflow.takeover import KERAS_3

EXACT = DGC(**EXACT_VALUES)
SPARSE = DGC(density=0.05)


def fit(
    method: DGC | None, optimizer: Any, *, eager: bool = False, epochs: int = 2, model: Any = None, **options: Any
) -> tuple[Any, Any, np.ndarray]:
    """Train the small model on this rank's data; returns model, compression and trainable variables."""
    model = model or keras_model(batch_norm=False)
    compression = Compression(method, optimizer, model.trainable_variables) if method else None
    distributed = DistributedOptimizer(optimizer, compression=compression, **options)
    model.compile(distributed, loss=crossentropy(), run_eagerly=eager)
    images, labels = data()
    model.fit(images, labels, batch_size=8, epochs=epochs, shuffle=False, verbose=0)
    assert_ranks_identical(model.trainable_variables, f"{method} eager={eager} {options}")
    return model, compression, vector(model.trainable_variables)


def same_as_dense(build: Any, **options: Any) -> None:
    start = vector(keras_model(batch_norm=False).trainable_variables)
    dense = fit(None, build(), **options)[2]
    ours = fit(EXACT, build(), **options)[2]
    assert np.abs(dense - start).max() > 1e-2, "the dense run hardly moved: nothing is shown"
    np.testing.assert_allclose(ours, dense, rtol=2e-5, atol=2e-5)


def check_reduction_without_compression() -> None:
    """The mean gradient of all ranks, as one worker would compute it from all the data."""
    _, _, ours = fit(None, sgd(), epochs=1)
    alone = keras_model(batch_norm=False)
    alone.compile(sgd(), loss=crossentropy())
    parts = [data(rank=rank) for rank in range(hvd.size())]
    images = np.concatenate([x[i : i + 8] for i in range(0, 48, 8) for x, _ in parts])
    labels = np.concatenate([y[i : i + 8] for i in range(0, 48, 8) for _, y in parts])
    alone.fit(images, labels, batch_size=8 * hvd.size(), epochs=1, shuffle=False, verbose=0)
    np.testing.assert_allclose(ours, vector(alone.trainable_variables), rtol=1e-4, atol=1e-5)


def check_dense_fit_in_graph_mode() -> None:
    same_as_dense(lambda: sgd(nesterov=True))
    same_as_dense(lambda: keras.optimizers.Adam(0.01))


def check_dense_fit_in_eager_mode() -> None:
    same_as_dense(lambda: sgd(nesterov=True), eager=True, epochs=1)


def check_dense_older_optimizers() -> None:
    if not KERAS_3:
        legacy = keras.optimizers.legacy.SGD
        same_as_dense(lambda: legacy(0.05, momentum=0.9, nesterov=True))
        decay = keras.optimizers.schedules.ExponentialDecay(0.1, 2, 0.7)
        same_as_dense(lambda: legacy(decay, momentum=0.9))


def check_dense_schedule() -> None:
    decay = keras.optimizers.schedules.ExponentialDecay(0.1, 3, 0.6)
    same_as_dense(lambda: sgd(learning_rate=decay))


def check_dense_gradient_clipping_of_keras() -> None:
    """Keras clips what the exchange returns, which with momentum correction includes the momentum."""
    same_as_dense(lambda: sgd(momentum=0.0, clipnorm=0.1))


def check_dense_options() -> None:
    same_as_dense(lambda: sgd(learning_rate=0.01), op=hvd.Sum)
    same_as_dense(lambda: sgd(), groups=2)
    same_as_dense(lambda: sgd(), gradient_predivide_factor=2.0)


def check_backward_passes_per_step() -> None:
    for eager in (False, True):
        for average in (False, True):
            rate = 0.05 if average else 0.02
            options = {"backward_passes_per_step": 3, "average_aggregated_gradients": average, "eager": eager}
            same_as_dense(lambda rate=rate: sgd(learning_rate=rate), **options)
    _, compression, _ = fit(SPARSE, sgd(), backward_passes_per_step=3)
    assert compression.stats().total.steps == 4


def check_sparse_fit() -> None:
    """Also with batch normalisation, whose statistics stay local, and several steps in one call."""
    for optimizer in (sgd(nesterov=True), keras.optimizers.Adam(0.01)):
        method = DGC(density=0.05, warmup=Warmup(steps=4), clip_norm=2.0)
        _, compression, _ = fit(method, optimizer, model=keras_model())
        stats = compression.stats()
        assert stats.total.steps == 12 and stats.last.sent < stats.last.dense / 10


def check_steps_per_execution() -> None:
    ends = []
    for steps in (1, 3):
        model = keras_model(batch_norm=False)
        optimizer = sgd()
        compression = Compression(EXACT, optimizer, model.trainable_variables)
        distributed = DistributedOptimizer(optimizer, compression=compression)
        model.compile(distributed, loss=crossentropy(), steps_per_execution=steps)
        images, labels = data()
        model.fit(images, labels, batch_size=8, epochs=1, shuffle=False, verbose=0)
        assert compression.stats().total.steps == 6
        ends.append(vector(model.trainable_variables))
    assert np.allclose(*ends, rtol=1e-5, atol=1e-6)


def check_embeddings() -> None:
    ends = []
    words = np.random.default_rng(hvd.rank()).integers(0, 30, (32, 6))
    for method, dense in ((EXACT, True), (None, True), (EXACT, False), (None, False)):
        keras.utils.set_random_seed(5)
        layers = keras.layers
        model = keras.Sequential([layers.Input((6,)), layers.Embedding(30, 4), layers.Flatten(), layers.Dense(5)])
        optimizer = sgd(nesterov=True)
        compression = Compression(method, optimizer, model.trainable_variables) if method else None
        distributed = DistributedOptimizer(optimizer, compression=compression, sparse_as_dense=dense)
        model.compile(distributed, loss=crossentropy())
        model.fit(words, words.sum(1) % 5, batch_size=8, epochs=2, shuffle=False, verbose=0)
        assert_ranks_identical(model.trainable_variables, f"{method} {dense}")
        ends.append(vector(model.trainable_variables))
    np.testing.assert_allclose(ends[0], ends[1], rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(ends[2], ends[3], rtol=2e-5, atol=2e-5)


def check_mixed_precision() -> None:
    """Steps that overflow on one rank are skipped by all, and the run ends where it ends without them."""
    ends = []
    for poisoned in (False, True):
        model = keras_model(batch_norm=False)
        inner = sgd()
        compression = Compression(SPARSE, inner, model.trainable_variables, transport="gather")
        if KERAS_3:
            scaled = keras.optimizers.LossScaleOptimizer(inner, initial_scale=2.0**10)
            distributed = DistributedOptimizer(scaled, compression=compression)
        else:
            wrap = keras.mixed_precision.LossScaleOptimizer
            distributed = wrap(DistributedOptimizer(inner, compression=compression), initial_scale=2.0**10)
        model.compile(distributed, loss=crossentropy())
        images, labels = data()
        for first in range(0, 48, 8):
            batch = images[first : first + 8], labels[first : first + 8]
            if poisoned and first == 16:
                before = state(compression), vector(model.trainable_variables)
                poison = batch[0] * (np.inf if hvd.rank() == 0 else 1)
                model.train_on_batch(poison, batch[1])
                assert same(before[0], state(compression))
                assert np.array_equal(before[1], vector(model.trainable_variables))
                assert compression.stats().total.skipped == 1
            model.train_on_batch(*batch)
        scale = distributed.dynamic_scale.value if KERAS_3 else distributed.loss_scale
        ends.append((vector(model.trainable_variables), float(scale)))
        assert_ranks_identical(model.trainable_variables, "mixed precision")
    assert ends[0][1] == 2.0**10 and ends[1][1] == 2.0**9
    assert np.array_equal(ends[0][0], ends[1][0])


def check_mixed_float16_policy() -> None:
    policy = keras.mixed_precision
    policy.set_global_policy("mixed_float16")
    try:
        model = keras_model(batch_norm=False)
    finally:
        policy.set_global_policy("float32")
    if KERAS_3:
        scaled = keras.optimizers.LossScaleOptimizer(sgd())
        compression = Compression(SPARSE, scaled, model.trainable_variables)
        distributed = DistributedOptimizer(scaled, compression=compression)
    else:
        optimizer = sgd()
        compression = Compression(SPARSE, optimizer, model.trainable_variables)
        distributed = keras.mixed_precision.LossScaleOptimizer(DistributedOptimizer(optimizer, compression=compression))
    model.compile(distributed, loss=crossentropy())
    images, labels = data()
    model.fit(images, labels, batch_size=8, epochs=2, verbose=0)
    assert_ranks_identical(model.trainable_variables, "mixed_float16")
    assert compression.stats().total.steps > 0
    assert np.isfinite(vector(model.trainable_variables)).all()


def check_broadcast_metrics_and_warmup_callbacks() -> None:
    model = keras_model(seed=10 + hvd.rank())
    optimizer = sgd(learning_rate=0.08)
    compression = Compression(SPARSE, optimizer, model.trainable_variables)
    model.compile(DistributedOptimizer(optimizer, compression=compression), loss=crossentropy())

    rates, before = [], []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            rates.append(float(tf.convert_to_tensor(self.model.optimizer.learning_rate)))
            before.append(vector(self.model.trainable_variables))

    images, labels = data()
    history = model.fit(
        images,
        labels,
        batch_size=8,
        epochs=3,
        verbose=0,
        callbacks=[
            BroadcastGlobalVariablesCallback(0),
            MetricAverageCallback(),
            LearningRateWarmupCallback(0.08, warmup_epochs=2),
            Watch(),
        ],
    )
    expected = vector(keras_model(seed=10).trainable_variables)
    assert np.array_equal(before[0], expected), "training began with other weights than those of rank 0"
    assert_ranks_identical(model.trainable_variables, "after the broadcast")
    share = [min(1.0, i / 12) for i in range(18)]
    np.testing.assert_allclose(rates, [0.08 * (1 + s * (hvd.size() - 1)) / hvd.size() for s in share], rtol=1e-5)
    losses = tf.constant([history.history["loss"]], tf.float64)
    everyone = hvd.allgather(losses).numpy()
    assert (everyone == everyone[0]).all() and everyone.shape == (hvd.size(), 3)


def check_broadcast_to_a_model_that_its_first_batch_builds() -> None:
    keras.utils.set_random_seed(20 + hvd.rank())
    model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(5)])
    model.compile(DistributedOptimizer(sgd()), loss=crossentropy())
    images, labels = data()
    model.fit(images, labels, batch_size=8, epochs=1, verbose=0, callbacks=[BroadcastGlobalVariablesCallback(0)])
    assert_ranks_identical(model.trainable_variables, "a model built by its first batch")


def check_saved_models_load_without_horovod() -> None:
    # What Keras 2 saves is Horovod's own optimizer, which loads through Horovod.
    if not KERAS_3:
        return
    model, _, expected = fit(SPARSE, sgd(nesterov=True))
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / f"model{hvd.rank()}.keras")
        model.save(path)
        loaded = keras.models.load_model(path)
    assert np.array_equal(vector(loaded.trainable_variables), expected)
    config = loaded.optimizer.get_config()
    assert config["momentum"] == 0.9 and config["nesterov"] is True
    assert type(loaded.optimizer) is keras.optimizers.SGD
    images, labels = data()
    loaded.fit(images, labels, batch_size=8, verbose=0)


def check_local_variables() -> None:
    """A registered variable's gradient is not reduced, only divided by the number of workers."""
    ends = []
    for method in (None, EXACT):
        model = keras_model(batch_norm=False)
        optimizer = sgd(momentum=0.0)
        last = model.trainable_variables[-1]
        compression = Compression(method, optimizer, model.trainable_variables) if method else None
        distributed = DistributedOptimizer(optimizer, compression=compression)
        distributed.register_local_var(last)
        model.compile(distributed, loss=crossentropy())
        images, labels = data()
        model.fit(images, labels, batch_size=8, epochs=1, shuffle=False, verbose=0)
        assert_ranks_identical(model.trainable_variables[:-1], "all but the local variable")
        ends.append(vector(model.trainable_variables))
    np.testing.assert_allclose(*ends, rtol=2e-5, atol=2e-5)
    everyone = hvd.allgather(tf.constant(ends[0][None, -5:])).numpy()
    assert not np.array_equal(everyone[0], everyone[-1]), "the local variable was reduced"
