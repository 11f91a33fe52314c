"""Second moments of the gradient over samples, against the gradients of the samples one by one, in one process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from horovod_dgc import VarianceBased
from horovod_dgc.tensorflow import Compression, SecondMoments
from horovod_dgc.tensorflow.takeover import KERAS_3, raw

keras = tf.keras
layers = keras.layers
BATCH = 19


def normal(*shape: int, seed: int = 0) -> tf.Tensor:
    return tf.random.stateless_normal((BATCH, *shape), (seed, 1))


def words(*shape: int, count: int) -> tf.Tensor:
    return tf.random.stateless_uniform((BATCH, *shape), (5, 1), 0, count, tf.int32)


def built(*stack: Any, inputs: tf.Tensor) -> Any:
    keras.utils.set_random_seed(1)
    model = keras.Sequential(list(stack))
    model(inputs[:1])
    return model


def per_sample(model: Any, inputs: tf.Tensor) -> tf.Tensor:
    """A loss whose curvature makes each sample's gradient depend on all layers."""
    outputs = tf.cast(model(inputs), tf.float32)
    return tf.reduce_sum(tf.reshape(tf.square(outputs) + outputs, [tf.shape(outputs)[0], -1]), 1)


def weights_of(model: Any) -> list[Any]:
    return [raw(v) for v in model.trainable_variables if len(v.shape) > 1]


def one_by_one(model: Any, inputs: tf.Tensor) -> list[np.ndarray]:
    """Sum of squares of the weights' gradients, each from a backward pass of its own."""
    sums = [np.zeros(w.shape, np.float32) for w in weights_of(model)]
    for sample in inputs:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(per_sample(model, sample[None])) / len(inputs)
        for total, gradient in zip(sums, tape.gradient(loss, weights_of(model))):
            total += np.square(tf.convert_to_tensor(gradient).numpy())
    return sums


def gradients_of_the_mean(model: Any, inputs: tf.Tensor) -> list[tf.Tensor]:
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(per_sample(model, inputs))
    return tape.gradient(loss, weights_of(model))


def assert_moments(moments: SecondMoments, model: Any, expected: list[np.ndarray], tolerance: float = 2e-5) -> None:
    for weight, sums in zip(weights_of(model), expected):
        assert sums.any()
        taken = moments.take(weight).numpy()
        assert taken.dtype == np.float32
        np.testing.assert_allclose(taken, sums.ravel(), rtol=tolerance, atol=tolerance * sums.max())
        assert moments.take(weight).shape == (0,), "what was taken is there again"


MODELS: dict[str, tuple[Callable[[], list[Any]], tf.Tensor]] = {
    "dense": (lambda: [layers.Dense(5, activation="tanh"), layers.Dense(3, use_bias=False)], normal(7)),
    "dense over time": (lambda: [layers.Dense(5, activation="sigmoid"), layers.Dense(3)], normal(4, 7)),
    "dense over space": (
        lambda: [layers.Dense(5, activation="relu"), layers.Flatten(), layers.Dense(2)],
        normal(3, 2, 7),
    ),
    "an activation that is a layer": (
        lambda: [layers.Dense(5, activation=layers.LeakyReLU()), layers.Dense(2)],
        normal(7),
    ),
    "convolutions": (
        lambda: [
            layers.Conv2D(4, 3, padding="same", activation="relu"),
            layers.Conv2D(6, (3, 2), strides=(2, 1), use_bias=False, activation="tanh"),
            layers.Flatten(),
            layers.Dense(3),
        ],
        normal(8, 9, 2),
    ),
    "strides that do not fit, padded": (lambda: [layers.Conv2D(3, 4, strides=3, padding="same")], normal(8, 11, 2)),
    "dilation, padded": (lambda: [layers.Conv2D(3, (3, 2), dilation_rate=(2, 3), padding="same")], normal(8, 9, 2)),
    "dilation": (lambda: [layers.Conv2D(3, 3, dilation_rate=2, activation="elu")], normal(8, 9, 2)),
    "groups": (lambda: [layers.Conv2D(6, 3, groups=3, strides=2, activation="tanh")], normal(8, 7, 6)),
    "one dimension": (
        lambda: [
            layers.Conv1D(3, 3, dilation_rate=2, padding="same", activation="relu"),
            layers.Conv1D(4, 4, strides=2),
            layers.Conv1D(4, 2, groups=2, use_bias=False),
        ],
        normal(16, 2),
    ),
    "causal": (
        lambda: [
            layers.Conv1D(3, 3, padding="causal", dilation_rate=2),
            layers.Conv1D(2, 2, padding="causal", strides=2),
        ],
        normal(10, 2),
    ),
    "embedding": (lambda: [layers.Embedding(9, 4), layers.Reshape((24,)), layers.Dense(2)], words(6, count=9)),
    "embedding of two axes": (
        lambda: [layers.Embedding(50, 4), layers.Reshape((60,)), layers.Dense(2)],
        words(3, 5, count=9),
    ),
    "one word each": (lambda: [layers.Embedding(9, 4)], words(count=9)),
    "masked words": (
        lambda: [layers.Embedding(5, 4, mask_zero=True), layers.GlobalAveragePooling1D(), layers.Dense(2)],
        tf.concat([words(6, count=5), tf.zeros((BATCH, 2), tf.int32), tf.ones((BATCH, 1), tf.int32)], 1),
    ),
}
if KERAS_3:
    # Keras 2 has them on GPUs only.
    MODELS["channels first"] = (
        lambda: [
            layers.Conv2D(4, (3, 2), padding="same", strides=2, groups=2, data_format="channels_first"),
            layers.Reshape((4, 12)),
            layers.Conv1D(3, 2, data_format="channels_first"),
        ],
        normal(4, 6, 7),
    )


@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("kind", MODELS)
def test_exact_moments_are_those_of_the_samples(kind: str, graph: bool) -> None:
    build, inputs = MODELS[kind]
    model = built(*build(), inputs=inputs)
    expected = one_by_one(model, inputs)
    moments = SecondMoments(model)
    step = tf.function(gradients_of_the_mean) if graph else gradients_of_the_mean
    gradients = step(model, inputs)
    plain = built(*build(), inputs=inputs)
    plain.set_weights(model.get_weights())
    for ours, theirs in zip(gradients, gradients_of_the_mean(plain, inputs)):
        np.testing.assert_allclose(tf.convert_to_tensor(ours), tf.convert_to_tensor(theirs), rtol=1e-5, atol=1e-6)
    assert_moments(moments, model, expected)


@pytest.mark.skipif(KERAS_3, reason="Keras 3 has one batch axis")
def test_batch_axes_beyond_the_first_belong_to_the_sample() -> None:
    for layer, inputs in ((layers.Conv1D(3, 2), normal(3, 6, 4)), (layers.Conv2D(3, 2), normal(2, 5, 4, 2))):
        model = built(layer, inputs=inputs)
        expected = one_by_one(model, inputs)
        moments = SecondMoments(model)
        gradients_of_the_mean(model, inputs)
        assert_moments(moments, model, expected)


@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
def test_each_use_in_a_pass_counts_samples_of_its_own(graph: bool) -> None:
    """Also where the backward pass is a function that TensorFlow makes of the forward pass, in no given order."""
    model = built(layers.Dense(40, activation="tanh"), layers.Dense(3), inputs=normal(30))
    inputs = [normal(30, seed=seed) for seed in range(4)]
    expected = [np.sum(sums, 0) for sums in zip(*(one_by_one(model, x) for x in inputs))]
    moments = SecondMoments(model)

    def forward() -> tf.Tensor:
        return tf.add_n([tf.reduce_mean(per_sample(model, x)) for x in inputs])

    loss_of = tf.function(forward) if graph else forward
    for _ in range(5):
        with tf.GradientTape() as tape:
            loss = loss_of()
        tape.gradient(loss, weights_of(model))
        assert_moments(moments, model, expected)


def test_a_layer_in_a_while_loop() -> None:
    layer = layers.Dense(5, activation="tanh")
    inputs = normal(5)
    layer(inputs)
    moments = SecondMoments(layer)
    kernel = raw(layer.kernel)

    def step() -> tf.Tensor:
        with tf.GradientTape() as tape:
            turns = tf.while_loop(lambda i, _: i < 3, lambda i, y: (i + 1, layer(y)), (0, inputs))
            loss = tf.reduce_mean(tf.square(turns[1]))
        return tape.gradient(loss, kernel)

    step()
    eager = moments.take(kernel)
    tf.function(step)()
    np.testing.assert_allclose(moments.take(kernel), eager, rtol=2e-5, atol=1e-8)


def test_taken_once_per_turn_of_a_loop_in_the_graph() -> None:
    model = built(layers.Dense(5, activation="tanh"), layers.Dense(3), inputs=normal(7))
    inputs = tf.stack([normal(7, seed=seed) for seed in range(6)])
    expected = [[sums.ravel() for sums in one_by_one(model, x)] for x in inputs]
    moments = SecondMoments(model)
    weights = weights_of(model)

    def turn(i: tf.Tensor) -> list[tf.Tensor]:
        for half in range(2):
            gradients = gradients_of_the_mean(model, inputs[2 * i + half])
        taken = []
        for weight, gradient in zip(weights, gradients):
            with tf.control_dependencies([gradient]):
                taken.append(tf.ensure_shape(moments.take(weight), [np.prod(weight.shape)]))
        return taken

    @tf.function
    def turns() -> list[tf.Tensor]:
        return tf.map_fn(turn, tf.range(3), fn_output_signature=[tf.float32] * len(weights), parallel_iterations=1)

    for position, taken in enumerate(turns()):
        for i in range(3):
            both = expected[2 * i][position] + expected[2 * i + 1][position]
            np.testing.assert_allclose(taken[i], both, rtol=2e-5, atol=2e-5 * both.max())


@pytest.mark.parametrize("eager", [False, True])
def test_fit_adds_up_its_batches(eager: bool) -> None:
    model = built(
        layers.Conv1D(4, 3, activation="relu"),
        layers.Flatten(),
        layers.Dense(2, activation="tanh"),
        inputs=normal(8, 2),
    )
    inputs = normal(8, 2)
    halves = [one_by_one(model, inputs[first : first + 10]) for first in (0, 10)]
    moments = SecondMoments(model)

    def loss(_: Any, outputs: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum(tf.square(outputs) + outputs, 1)

    model.compile(keras.optimizers.SGD(0.0), loss=loss, run_eagerly=eager)
    model.fit(inputs, tf.zeros((BATCH, 2)), batch_size=10, shuffle=False, verbose=0)
    model.evaluate(inputs, tf.zeros((BATCH, 2)), verbose=0)
    assert_moments(moments, model, [first + second for first, second in zip(*halves)])


def test_a_scaled_loss_in_half_precision_squares_its_scale() -> None:
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        stack = [layers.Embedding(9, 6), layers.Conv1D(5, 2, activation="relu"), layers.Dense(4, activation="tanh")]
        inputs = words(5, count=9)
        model = built(*stack, layers.Reshape((16,)), layers.Dense(3), inputs=inputs)
    finally:
        keras.mixed_precision.set_global_policy("float32")
    expected = one_by_one(model, inputs)
    moments = SecondMoments(model)
    with tf.GradientTape() as tape:
        loss = 2.0**13 * tf.reduce_mean(per_sample(model, inputs))
    tape.gradient(loss, weights_of(model))
    assert_moments(moments, model, [2.0**26 * sums for sums in expected], tolerance=2e-2)


def test_what_is_not_known() -> None:
    model = built(layers.Dense(5), layers.Dense(3), inputs=normal(7))
    moments = SecondMoments(model)
    kernel = weights_of(model)[0]
    assert moments.take(kernel).shape == (0,), "something was seen before the first pass"
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(normal(7) @ kernel)
    tape.gradient(loss, kernel)
    assert moments.take(kernel).shape == (0,), "what happens past the layer was seen"
    assert moments.take(model.layers[0].bias) is None


def test_frozen_layers_are_not_looked_at() -> None:
    model = built(layers.LSTM(4), layers.Dense(3), inputs=normal(5, 7))
    model.layers[0].trainable = False
    expected = one_by_one(model, normal(5, 7))
    moments = SecondMoments(model)
    gradients_of_the_mean(model, normal(5, 7))
    assert_moments(moments, model, expected)


def test_models_are_saved_and_copied_as_if_nobody_looked(tmp_path: Path) -> None:
    model = built(layers.Dense(5, activation="tanh"), layers.Dense(3), inputs=normal(7))
    names = [weight.name for weight in model.weights]
    moments = SecondMoments(model)
    gradients_of_the_mean(model, normal(7))
    assert [weight.name for weight in model.weights] == names
    path = tf.train.Checkpoint(model=model).write(str(tmp_path / "checkpoint"))
    assert not [name for name, _ in tf.train.list_variables(path) if "moments" in name or "uses" in name]
    model.save(tmp_path / "model.keras")
    model.export(str(tmp_path / "exported"))
    exported = tf.saved_model.load(str(tmp_path / "exported"))
    for copy in (keras.models.load_model(tmp_path / "model.keras"), exported.serve):
        np.testing.assert_allclose(copy(normal(7)), model(normal(7)), rtol=1e-4, atol=1e-5)
    assert moments.take(weights_of(model)[0]).shape == (35,)


@pytest.mark.skipif(not KERAS_3, reason="Horovod's optimizer, used with Keras 2, shows nobody the passes")
def test_micro_batches_count_each_backward_pass() -> None:
    model = built(layers.LSTM(4), layers.Dense(3), inputs=normal(5, 7))
    moments = SecondMoments(model, samples="micro-batches")
    expected = [np.zeros(w.shape, np.float32) for w in weights_of(model)]
    for seed in range(3):
        gradients = gradients_of_the_mean(model, normal(5, 7, seed=seed))
        moments.count_pass(weights_of(model), gradients)
        expected = [total + np.square(gradient) for total, gradient in zip(expected, gradients)]
    assert_moments(moments, model, expected)


class Subclass(layers.Dense):  # type: ignore[misc]
    pass


def test_refuses_what_it_cannot_look_into() -> None:
    instead = 'samples must be "micro-batches" for this model' if KERAS_3 else "model must have no other weights"
    nested = keras.Sequential([layers.Conv1D(3, 2, name="c"), keras.Sequential([layers.LSTM(4, name="l")])])
    nested(normal(5, 7))
    with pytest.raises(
        ValueError, match=rf"^{instead}: \S*l/lstm_cell\S* \(LSTMCell\), \S* \(LSTMCell\) belong to no "
    ):
        SecondMoments(nested)
    assert "call" not in nested.layers[0].__dict__, "a layer of a refused model is looked into"
    for layer in (Subclass(3, name="s"), layers.DepthwiseConv2D(2, name="s"), layers.Conv2DTranspose(2, 2, name="s")):
        model = built(layer, inputs=normal(4, 4, 2))
        with pytest.raises(
            ValueError, match=rf"s/\S*kernel\S* \({type(layer).__name__}\) belong to no Dense, Conv1D, Conv2D or"
        ):
            SecondMoments(model)
    model = built(layers.Dense(3), inputs=normal(7))
    with pytest.raises(ValueError, match="samples must be one of 'exact', 'micro-batches', got 'exakt'"):
        SecondMoments(model, samples="exakt")
    with pytest.raises(ValueError, match=r"model must be a Keras model or layer, got \[\]"):
        SecondMoments([])
    with pytest.raises(ValueError, match="model must be built, so that it has weights: 's' is not"):
        SecondMoments(keras.Sequential([layers.Dense(3)], name="s"))
    if not KERAS_3:
        with pytest.raises(ValueError, match='samples must be "exact" under Keras 2, got "micro-batches"'):
            SecondMoments(model, samples="micro-batches")
    with pytest.raises(ValueError, match="second_moments must be a SecondMoments or None, got True"):
        Compression(VarianceBased(), keras.optimizers.SGD(), model.trainable_variables, second_moments=True)
    moments = SecondMoments(model)
    with pytest.raises(ValueError, match="must be a dense tensor for its second moments, got a SparseTensor"):
        model.layers[-1](tf.sparse.from_dense(normal(7)))
    assert moments.take(weights_of(model)[0]).shape == (0,)
