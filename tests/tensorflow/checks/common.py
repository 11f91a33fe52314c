"""What the checks share: models with known data, training through each of Horovod's paths, and comparisons."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import horovod.tensorflow as hvd
import numpy as np
import tensorflow as tf

from horovod_dgc import Method
from horovod_dgc.tensorflow import Compression
from horovod_dgc.tensorflow.takeover import raw

keras = tf.keras
EXACT_VALUES = {"density": 1.0, "values": "float32"}


class Fed:
    """Variables whose gradients are whatever they are fed: the loss is the inner product with them."""

    def __init__(self, name: str = "") -> None:
        self.weight = tf.Variable(tf.zeros((40, 50)), name=f"{name}weight")
        self.bias = tf.Variable(tf.zeros(37), name=f"{name}bias")
        self.variables = [self.weight, self.bias]

    def feed(self, step: int, rank: int) -> list[np.ndarray]:
        """Whole numbers, so that float32 sums are exact in any order."""
        generator = np.random.default_rng((step, rank))
        return [generator.integers(-99, 100, v.shape).astype(np.float32) for v in self.variables]

    def loss(self, gradients: Sequence[tf.Tensor]) -> tf.Tensor:
        return tf.add_n([tf.reduce_sum(v * g) for v, g in zip(self.variables, gradients)])


class Dense:
    """A small network of two and four dimensions and biases, on raw variables."""

    def __init__(self, seed: int = 7, dtype: tf.DType = tf.float32) -> None:
        def normal(shape: tuple[int, ...], number: int) -> tf.Tensor:
            return tf.cast(0.2 * tf.random.stateless_normal(shape, (seed, number)), dtype)

        self.kernel = tf.Variable(normal((3, 3, 1, 4), 0), name="kernel")
        self.first = tf.Variable(normal((144, 16), 1), name="first")
        self.second = tf.Variable(normal((16, 5), 2), name="second")
        self.bias = tf.Variable(tf.zeros(5, dtype), name="bias")
        self.variables = [self.kernel, self.first, self.second, self.bias]

    def loss(self, batch: Sequence[tf.Tensor]) -> tf.Tensor:
        images, labels = batch
        hidden = tf.nn.relu(tf.nn.conv2d(tf.cast(images, self.kernel.dtype), self.kernel, 1, "SAME"))
        hidden = tf.nn.relu(tf.reshape(hidden, (-1, 144)) @ self.first)
        logits = tf.cast(hidden @ self.second + self.bias, tf.float32)
        return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))


def batch(step: int, rank: int | None = None, size: int = 8) -> tuple[tf.Tensor, tf.Tensor]:
    """A batch that depends on the step and the rank alone."""
    generator = np.random.default_rng((step, hvd.rank() if rank is None else rank, 1))
    images = generator.standard_normal((size, 6, 6, 1)).astype(np.float32)
    return tf.constant(images), tf.constant(generator.integers(0, 5, size), tf.int64)


def sgd(**settings: Any) -> Any:
    return keras.optimizers.SGD(**{"learning_rate": 0.05, "momentum": 0.9, **settings})


class Trainer:
    """Trains a model's variables through ``DistributedGradientTape``.

    Args:
        model: with ``variables`` and ``loss(inputs)``.
        method: None for Horovod without compression.
        eager: leave ``tf.function`` out.
        built: let the optimizer make its variables at once, as Keras' ``fit`` does. Otherwise it makes them while the
            step is traced, which TensorFlow then does once more.
        settings: of the Compression; options: of the tape.
    """

    def __init__(
        self,
        model: Any,
        method: Method | None,
        optimizer: Any,
        *,
        eager: bool = False,
        built: bool = True,
        settings: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self.model, self.optimizer = model, optimizer
        if built:
            optimizer.build(model.variables)
        self.compression: Any = hvd.Compression.none
        if method is not None:
            self.compression = Compression(method, optimizer, model.variables, **(settings or {}))
        self._options = options
        self.traced = 0
        self.step: Callable[..., Any] = self._step if eager else tf.function(self._step)
        self.gradients = self._gradients if eager else tf.function(self._gradients)

    def _gradients(self, inputs: Any) -> list[tf.Tensor]:
        self.traced += 1
        with tf.GradientTape() as tape:
            loss = self.model.loss(inputs)
            scale = getattr(self.optimizer, "scale_loss", None) or getattr(self.optimizer, "get_scaled_loss", None)
            if scale is not None:
                loss = scale(loss)
        tape = hvd.DistributedGradientTape(tape, compression=self.compression, **self._options)
        return tape.gradient(loss, self.model.variables)

    def _step(self, inputs: Any) -> list[tf.Tensor]:
        gradients = self._gradients(inputs)
        self.optimizer.apply_gradients(zip(gradients, self.model.variables))
        return gradients

    def run(self, steps: int = 8, first: int = 0, inputs: Callable[[int], Any] | None = None) -> list[np.ndarray]:
        """Train and return all variables as one vector after each step."""
        trajectory = []
        for step in range(first, first + steps):
            if inputs is not None:
                self.step(inputs(step))
            elif isinstance(self.model, Fed):
                self.step([tf.constant(g) for g in self.model.feed(step, hvd.rank())])
            else:
                self.step(batch(step))
            trajectory.append(vector(self.model.variables))
        return trajectory


def vector(variables: Sequence[Any]) -> np.ndarray:
    return np.concatenate([raw(v).numpy().astype(np.float64).ravel() for v in variables])


def state(compression: Compression) -> dict[str, np.ndarray]:
    """Everything that a skipped step must leave alone."""
    found = {}
    for tensor in compression.tensors:
        for name in ("residual", "velocity", "rate"):
            variable = getattr(tensor, name)
            if variable is not None:
                found[f"{tensor.label}.{name}"] = variable.numpy()
    return found


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[k], other[k]) for k in one)


def assert_same_trajectory(ours: Sequence[np.ndarray], dense: Sequence[np.ndarray], tolerance: float = 2e-5) -> None:
    """Equal after every step, to float rounding relative to the size of the variables."""
    moved = np.abs(dense[-1] - dense[0]).max()
    assert moved > 100 * tolerance, f"the dense run moved by {moved} only: nothing is shown"
    assert len(ours) == len(dense)
    for step, (a, b) in enumerate(zip(ours, dense)):
        error = (np.abs(a - b) / (1 + np.abs(b))).max()
        assert error < tolerance, f"step {step}: variables differ by {error:.3g}"


def assert_ranks_identical(variables: Sequence[Any], what: str) -> None:
    sha = hashlib.sha256(b"".join(raw(v).numpy().tobytes() for v in variables)).digest()
    mine = tf.constant([list(sha)], tf.uint8)
    digests = hvd.allgather(mine).numpy()
    assert (digests == digests[0]).all(), f"{what}: the ranks' variables differ"


def keras_model(seed: int = 3, batch_norm: bool = True) -> Any:
    """A built Keras model with the same weights on every rank."""
    keras.utils.set_random_seed(seed)
    layers = [
        keras.layers.Conv2D(4, 3, padding="same", use_bias=False),
        *([keras.layers.BatchNormalization()] if batch_norm else []),
        keras.layers.ReLU(),
        keras.layers.Flatten(),
        keras.layers.Dense(16, activation="relu"),
        keras.layers.Dense(5),
    ]
    model = keras.Sequential(layers)
    model.build((None, 6, 6, 1))
    return model


def data(size: int = 48, rank: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    images, labels = batch(1000, rank, size)
    return images.numpy(), labels.numpy()


def crossentropy() -> Any:
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)
