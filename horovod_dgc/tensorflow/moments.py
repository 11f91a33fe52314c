"""Second moments of the gradient over samples, for methods that weigh a gradient by them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
from tensorflow.python.ops.control_flow_v2_func_graphs import WhileBodyFuncGraph
from tensorflow.python.saved_model.save_context import in_save_context

from horovod_dgc import _checks
from horovod_dgc.tensorflow.takeover import KERAS_3, raw

# Samples whose gradients of a dense layer are held at a time.
SAMPLES_AT_A_TIME = 16
KINDS = "Dense, Conv1D, Conv2D or Embedding"


class SecondMoments:
    """For each weight of a model, the sum over samples z of (g_z)**2 in the backward passes since it was last taken.

    What g_z is follows from the loss: with a mean over B samples, its gradient is (1/B) times the sample's own, as
    variance-based compression wants it (Tsuzuku et al. 2018). Give it to ``Compression(second_moments=...)``.

    ``samples="exact"`` looks into every Keras ``Dense``, ``Conv1D``, ``Conv2D`` and ``Embedding`` at each sample's own
    gradient, at the cost of one more pass of the kind that makes the weight's gradient. The first axis of a layer's
    inputs counts samples. A layer that is used several times in one pass counts each use as a sample of its own. Every
    gradient that is taken through a layer counts, also one for the sake of something else (of the inputs, or twice
    from a persistent tape). A weight that is used past its layer's call counts there for nothing; where its layer is
    never called, the step's gradient is one sample.

    ``samples="micro-batches"`` takes each backward pass as one sample, in any model, at the cost of a multiplication;
    it needs several passes per step (``backward_passes_per_step``) to tell a gradient from its noise, and Keras 3:
    under Keras 2 it is Horovod's own optimizer that adds up the passes, where nobody sees them one by one.

    The sums are float32, on the CPU, one for each element of a weight. They are no part of the model, its checkpoints
    or those of ``Compression``. With a scaled loss they carry the square of the scale; ``Compression`` takes it out.

    Args:
        model: a built Keras model or layer, whose trainable weights of more than one dimension are looked at.
        samples: "exact" or "micro-batches".

    Raises:
        ValueError: an option out of range, or a model that is not built; for "exact", a weight of another kind of
            layer, naming it, and in the first pass inputs that are sparse or ragged.
    """

    def __init__(self, model: Any, *, samples: str = "exact") -> None:
        _checks.one_of("samples", samples, ("exact", "micro-batches"))
        if not isinstance(model, tf.keras.layers.Layer):
            raise ValueError(f"model must be a Keras model or layer, got {model!r}")
        self._per_pass = samples == "micro-batches"
        if self._per_pass and not KERAS_3:
            raise ValueError(
                'samples must be "exact" under Keras 2, got "micro-batches": Horovod\'s optimizer adds up the passes '
                "where nobody sees them one by one"
            )
        if not model.built:
            raise ValueError(f"model must be built, so that it has weights: {model.name!r} is not")
        weights = {raw(v).ref(): raw(v) for v in model.trainable_variables if len(v.shape) > 1}
        if not self._per_pass:
            layers = list(model._flatten_layers())
            observed = {raw(_weight(layer)).ref(): layer for layer in layers if type(layer) in _kinds() and layer.built}
            _refuse({key for key in weights if key not in observed}, layers)
        self._sums = {key: _Sum(math.prod(variable.shape)) for key, variable in weights.items()}
        if not self._per_pass:
            for key, total in self._sums.items():
                _observe(observed[key], total)

    def take(self, variable: Any) -> tf.Tensor | None:
        """The sums for this weight, float32 and flat, and begin anew; None for a variable that is not looked at.

        In a graph, an operation that belongs after the weight's gradient. Without elements if nothing has been seen.
        """
        known = self._sums.get(raw(variable).ref())
        return None if known is None else known.take()

    def count_pass(self, variables: Sequence[Any], gradients: Sequence[Any]) -> None:
        """Take note of one backward pass; of use for "micro-batches" only."""
        if not self._per_pass:
            return
        for variable, gradient in zip(variables, gradients):
            total = self._sums.get(raw(variable).ref())
            if gradient is not None and total is not None:
                total.add(tf.square(tf.cast(tf.convert_to_tensor(gradient), tf.float32)), total.handles())


class _Sum:
    """The moments of one weight, and how many uses of its layer have been added up."""

    def __init__(self, numel: int) -> None:
        self._numel = numel
        with tf.device("CPU:0"):
            self._moments = tf.Variable(tf.zeros(numel), trainable=False, name="second_moments")
            self._uses = tf.Variable(0, trainable=False, name="uses")

    def handles(self) -> list[tf.Tensor]:
        """The variables, as the gradient of the current graph knows them."""
        handles = [self._moments.handle, self._uses.handle]
        # The gradient of a loop's body finds only what the body has captured. Elsewhere that must not be: models that
        # refer to variables of nobody's cannot be exported.
        graph = tf.compat.v1.get_default_graph()
        return [graph.capture(handle) for handle in handles] if _in_a_loop(graph) else handles

    def add(self, moments: tf.Tensor, handles: list[tf.Tensor]) -> Any:
        """Add one use of the layer; a context for what comes after."""
        # By additions alone: uses may be added at the same time, in a function whose operations nobody puts in order.
        values = (tf.reshape(moments, [self._numel]), tf.ones((), tf.int32))
        add = tf.raw_ops.AssignAddVariableOp
        return _after(*(add(resource=handle, value=value) for handle, value in zip(handles, values)))

    def take(self) -> tf.Tensor:
        uses, moments = self._uses.read_value(), self._moments.read_value()
        seen = moments[: self._numel * tf.minimum(uses, 1)]
        with _after(uses, seen):
            cleared = (
                self._moments.assign(tf.zeros_like(moments), read_value=False),
                self._uses.assign(0, read_value=False),
            )
        with _after(*cleared):
            return tf.identity(seen)


def _in_a_loop(graph: Any) -> bool:
    while graph is not None and not isinstance(graph, WhileBodyFuncGraph):
        graph = getattr(graph, "outer_graph", None)
    return graph is not None


def _after(*operations: Any) -> Any:
    """Context for operations of a graph that come after these; eagerly, where there are none, nothing."""
    return tf.control_dependencies([operation for operation in operations if operation is not None])


def _refuse(others: set[Any], layers: list[Any]) -> None:
    """Name these weights, if there are any, and the kind of layer that each belongs to."""
    names = {}
    # The innermost comes last: what holds a layer holds its weights, too.
    for layer in layers:
        for weight in layer.trainable_variables:
            if raw(weight).ref() in others:
                names[raw(weight).ref()] = f"{getattr(weight, 'path', weight.name)} ({type(layer).__name__})"
    if names:
        remedy = 'samples must be "micro-batches" for this model' if KERAS_3 else "model must have no other weights"
        raise ValueError(f"{remedy}: {', '.join(sorted(names.values()))} belong to no {KINDS}")


def _observe(layer: Any, total: _Sum) -> None:
    """From now on, add up the second moments of each backward pass through the layer."""
    call, moments_of = layer.call, _kinds()[type(layer)]

    def tap(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        handles = total.handles()

        @tf.custom_gradient  # type: ignore[untyped-decorator]
        def identity(y: tf.Tensor) -> tuple[tf.Tensor, Callable[[Any], tf.Tensor]]:
            def gradient(dy: Any) -> tf.Tensor:
                dy = tf.convert_to_tensor(dy)
                # A saved model holds its layers' gradients, and nothing that belongs to this run.
                if in_save_context():
                    return dy
                # The weight's gradient, and so all that is done with it, comes after.
                with total.add(moments_of(layer, tf.stop_gradient(x), tf.stop_gradient(dy)), handles):
                    return tf.identity(dy)

            return tf.identity(y), gradient

        return identity(y)

    @functools.wraps(call)
    def observed(inputs: Any, *args: Any, **options: Any) -> Any:
        if isinstance(inputs, (tf.SparseTensor, tf.RaggedTensor)):
            raise ValueError(
                f"inputs of layer {layer.name!r} must be a dense tensor for its second moments, got a "
                f"{type(inputs).__name__}"
            )
        inputs = tf.convert_to_tensor(inputs)
        activation = getattr(layer, "activation", None)
        if activation is None:
            return tap(inputs, call(inputs, *args, **options))
        # The moments are those of what comes before the activation.
        layer.__dict__["activation"] = lambda y: activation(tap(inputs, y))
        try:
            return call(inputs, *args, **options)
        finally:
            layer.__dict__["activation"] = activation

    # Past Keras's own __setattr__, which tracks what it is given.
    layer.__dict__["call"] = observed


def _kinds() -> dict[type, Callable[[Any, tf.Tensor, tf.Tensor], tf.Tensor]]:
    """For each kind of layer what makes, of its inputs and the gradient of its outputs, the weight's moments."""
    layers = tf.keras.layers
    return {
        layers.Dense: _dense,
        layers.Conv1D: _convolution,
        layers.Conv2D: _convolution,
        layers.Embedding: _embedding,
    }


def _weight(layer: Any) -> Any:
    return layer.embeddings if isinstance(layer, tf.keras.layers.Embedding) else layer.kernel


def _in_parts(
    moments_of: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
    shape: Sequence[int],
    x: tf.Tensor,
    delta: tf.Tensor,
    at_a_time: int,
) -> tf.Tensor:
    """Sum over the batch, a few samples at a time."""

    def part(first: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        beyond = first + at_a_time
        inputs, deltas = (tf.cast(values[first:beyond], tf.float32) for values in (x, delta))
        return beyond, total + moments_of(inputs, deltas)

    count = tf.shape(delta)[0]
    begin = (tf.constant(0), tf.zeros(shape))
    return tf.while_loop(lambda first, _: first < count, part, begin, parallel_iterations=1)[1]


def _dense(layer: Any, x: tf.Tensor, delta: tf.Tensor) -> tf.Tensor:
    inputs, outputs = layer.kernel.shape
    if x.shape.rank == 2:
        squares = (tf.square(tf.cast(values, tf.float32)) for values in (x, delta))
        return tf.matmul(*squares, transpose_a=True)

    def moments_of(x: tf.Tensor, delta: tf.Tensor) -> tf.Tensor:
        count = tf.shape(x)[0]
        x, delta = tf.reshape(x, [count, -1, inputs]), tf.reshape(delta, [count, -1, outputs])
        return tf.reduce_sum(tf.square(tf.matmul(x, delta, transpose_a=True)), 0)

    return _in_parts(moments_of, (inputs, outputs), x, delta, SAMPLES_AT_A_TIME)


def _convolution(layer: Any, x: tf.Tensor, delta: tf.Tensor) -> tf.Tensor:
    """Sample by sample, each as TensorFlow makes the gradient of a batch."""
    axes, groups = layer.rank + 1, layer.groups
    if layer.data_format == "channels_first":
        before = x.shape.rank - axes
        order = [*range(before), *range(before + 1, x.shape.rank), before]
        x, delta = tf.transpose(x, order), tf.transpose(delta, order)
    if layer.padding == "causal":
        before = layer.dilation_rate[0] * (layer.kernel_size[0] - 1)
        x = tf.pad(x, [[0, 0]] * (x.shape.rank - 2) + [[before, 0], [0, 0]])
    padding = "SAME" if layer.padding == "same" else "VALID"
    shape = (*layer.kernel_size, x.shape[-1] // groups, layer.filters)

    def moments_of(x: tf.Tensor, delta: tf.Tensor) -> tf.Tensor:
        # Keras allows for several batch axes; all but the first belong to the sample.
        pair = (tf.reshape(values, tf.concat([[-1], tf.shape(values)[-axes:]], 0)) for values in (x, delta))
        gradients = []
        # On a CPU, TensorFlow has no gradient of a convolution in groups.
        for inputs, deltas in zip(*(tf.split(values, groups, -1) for values in pair)):
            kernel = tf.zeros((*shape[:-1], layer.filters // groups))
            with tf.GradientTape() as tape:
                tape.watch(kernel)
                outputs = tf.nn.convolution(inputs, kernel, layer.strides, padding, dilations=layer.dilation_rate)
            gradients.append(tape.gradient(outputs, kernel, deltas))
        return tf.square(tf.concat(gradients, -1))

    return _in_parts(moments_of, shape, x, delta, 1)


def _embedding(layer: Any, words: tf.Tensor, delta: tf.Tensor) -> tf.Tensor:
    """Only the rows of the words that occur in a sample have a gradient there."""
    count, width = layer.embeddings.shape
    # Keras 3 counts negative words from the end.
    words = tf.math.floormod(tf.cast(words, tf.int64), count)
    sample = tf.reshape(tf.range(tf.shape(words, tf.int64)[0]), [-1] + [1] * (words.shape.rank - 1))
    keys, rows = tf.unique(tf.reshape(sample * count + words, [-1]))
    delta = tf.reshape(tf.cast(delta, tf.float32), [-1, width])
    gradients = tf.math.unsorted_segment_sum(delta, rows, tf.size(keys))
    return tf.math.unsorted_segment_sum(tf.square(gradients), tf.math.floormod(keys, count), count)
