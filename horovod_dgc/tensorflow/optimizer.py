"""``DistributedOptimizer``: Horovod's, for Keras 3 too, where Horovod's own never reduces a gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import horovod.tensorflow as hvd
import tensorflow as tf

from horovod_dgc import _checks
from horovod_dgc.methods.base import Method
from horovod_dgc.tensorflow import callers
from horovod_dgc.tensorflow.compression import Compression
from horovod_dgc.tensorflow.takeover import KERAS_3, become, innermost, raw

ORDER = (
    "a LossScaleOptimizer must not be wrapped around a DistributedOptimizer: an overflow on one worker would leave the "
    "others waiting. Write DistributedOptimizer(LossScaleOptimizer(optimizer), ...); with a mixed_float16 policy, give "
    "that to compile()"
)


def DistributedOptimizer(
    optimizer: Any,
    *,
    compression: Any = None,
    name: str | None = None,
    device_dense: str = "",
    device_sparse: str = "",
    sparse_as_dense: bool = False,
    gradient_predivide_factor: float = 1.0,
    op: Any = hvd.Average,
    backward_passes_per_step: int = 1,
    average_aggregated_gradients: bool = False,
    groups: int | Sequence[Sequence[Any]] | None = None,
    process_set: Any = hvd.global_process_set,
    scale_local_gradients: bool = True,
) -> Any:
    """A Keras optimizer that averages gradients over all workers before it applies them.

    With Keras 2 this is ``horovod.tensorflow.keras.DistributedOptimizer``. With Keras 3 the given optimizer itself
    becomes distributed and is returned; a ``LossScaleOptimizer`` must be given from the outside, not wrapped around
    the result, so that an overflow on one worker is seen by all. Models saved with it load without Horovod.

    Args:
        optimizer: a Keras optimizer.
        compression: a :class:`~horovod_dgc.tensorflow.Compression` or one of ``hvd.Compression``; None for none.
        name, device_dense, device_sparse, sparse_as_dense, gradient_predivide_factor, op, backward_passes_per_step,
            average_aggregated_gradients, groups, process_set, scale_local_gradients: as in Horovod.

    Raises:
        ValueError: an option out of range.
    """
    options = {
        "name": name,
        "device_dense": device_dense,
        "device_sparse": device_sparse,
        "compression": hvd.Compression.none if compression is None else compression,
        "sparse_as_dense": sparse_as_dense,
        "gradient_predivide_factor": gradient_predivide_factor,
        "op": op,
        "backward_passes_per_step": backward_passes_per_step,
        "average_aggregated_gradients": average_aggregated_gradients,
        "groups": groups,
        "process_set": process_set,
        "scale_local_gradients": scale_local_gradients,
    }
    _check_compression(options["compression"], optimizer)
    if not KERAS_3:
        import horovod.tensorflow.keras as hvd_keras

        return hvd_keras.DistributedOptimizer(optimizer, **options)
    _check(optimizer, options)
    become(optimizer, (_Distributed,), {"_horovod_dgc_reducer": _Reducer(type(optimizer).__name__, options)})
    return optimizer


def _check(optimizer: Any, options: dict[str, Any]) -> None:
    if not isinstance(optimizer, tf.keras.optimizers.Optimizer):
        raise ValueError(f"optimizer must be a Keras optimizer, got {optimizer!r}")
    if hasattr(optimizer, "_horovod_dgc_reducer"):
        raise ValueError("optimizer is distributed already")
    if hasattr(innermost(optimizer), "_horovod_dgc_reducer"):
        raise ValueError(ORDER)
    if getattr(innermost(optimizer), "gradient_accumulation_steps", None):
        raise ValueError(
            "optimizer must not have gradient_accumulation_steps, which would exchange gradients in every pass: use "
            "backward_passes_per_step"
        )
    if options["op"] not in (hvd.Average, hvd.Sum, hvd.Min, hvd.Max, hvd.Product):
        raise ValueError("op must be hvd.Average, hvd.Sum, hvd.Min, hvd.Max or hvd.Product for a Keras optimizer")
    if options["gradient_predivide_factor"] != 1.0 and options["op"] != hvd.Average:
        raise ValueError("gradient_predivide_factor needs op=hvd.Average")
    _checks.whole_number("backward_passes_per_step", options["backward_passes_per_step"], 1)
    groups = options["groups"]
    if groups is not None and not isinstance(groups, (list, tuple)):
        _checks.whole_number("groups", groups, 1)


def _check_compression(compression: Any, optimizer: Any) -> None:
    if isinstance(compression, (Method, str)) or (
        isinstance(compression, type) and issubclass(compression, (Method, Compression))
    ):
        raise ValueError(
            "compression must be a Compression made with this optimizer, such as Compression(DGC(density=0.001), "
            f"optimizer, model), or one of hvd.Compression, got {compression!r}"
        )
    takeover = getattr(type(innermost(optimizer)), "_horovod_dgc_takeover", None)
    if isinstance(compression, Compression):
        compression.require_own(optimizer)
    elif takeover is not None:
        raise ValueError(
            f"optimizer belongs to a Compression, and compression={compression!r} is not that: write "
            "DistributedOptimizer(optimizer, compression=compression)"
        )


class _Reducer:
    """What a distributed optimizer knows of Horovod."""

    def __init__(self, name: str, options: dict[str, Any]) -> None:
        self.passes: int = options["backward_passes_per_step"]
        self.average_passes: bool = options["average_aggregated_gradients"]
        self.sparse_as_dense: bool = options["sparse_as_dense"]
        self.local: set[Any] = set()
        self.counter: tf.Variable | None = None
        self._sums: list[tf.Variable] = []
        self._summed: list[Any] = []
        self._name = options["name"] or f"Distributed{name}"
        self._options = options

    @property
    def averaged_passes(self) -> int:
        """Number of backward passes that gradients are the mean of; 1 where they are the sum."""
        return self.passes if self.average_passes else 1

    def reduce(self, gradients: Sequence[Any], variables: Sequence[Any]) -> list[Any]:
        """Gradients reduced over all workers; those of local variables only divided by the number of workers."""
        options = self._options
        groups = options["groups"]
        if isinstance(groups, (list, tuple)):
            groups = [[raw(variable) for variable in group] for group in groups]
        # Horovod caches it by these very arguments, and by whether a graph is being traced.
        allreduce = hvd._make_allreduce_grads_fn(
            self._name,
            options["device_dense"],
            options["device_sparse"],
            options["compression"],
            self.sparse_as_dense,
            options["op"],
            options["gradient_predivide_factor"],
            groups,
            options["process_set"],
        )
        wanted = [i for i, variable in enumerate(variables) if raw(variable).ref() not in self.local]
        result = list(gradients)
        for i, gradient in zip(wanted, allreduce([gradients[i] for i in wanted], [raw(variables[i]) for i in wanted])):
            result[i] = gradient
        if options["scale_local_gradients"]:
            size = options["process_set"].size()
            for i in set(range(len(result))).difference(wanted):
                result[i] = None if result[i] is None else _divide(result[i], size)
        return result

    def accumulate(self, gradients: Sequence[Any], variables: Sequence[Any]) -> None:
        """Add one backward pass."""
        identities = [raw(variable).ref() for variable in variables]
        if self.counter is None:
            self._summed = identities
            with tf.init_scope():
                self.counter = tf.Variable(0, trainable=False, name="backward_passes")
                self._sums = [tf.Variable(tf.zeros_like(raw(v)), trainable=False, name="sum") for v in variables]
        if identities != self._summed:
            raise ValueError("backward_passes_per_step > 1 needs gradients of the same variables in every pass")
        for total, gradient in zip(self._sums, gradients):
            if isinstance(gradient, tf.IndexedSlices) and not self.sparse_as_dense:
                raise ValueError("backward_passes_per_step > 1 needs sparse_as_dense=True for sparse gradients")
            if gradient is not None:
                total.assign_add(tf.convert_to_tensor(gradient))
        compression = self._options["compression"]
        if isinstance(compression, Compression):
            compression.count_pass(variables, gradients)
        self.counter.assign_add(1)

    def take_sums(self, gradients: Sequence[Any]) -> list[Any]:
        """The sums, or means, of the passes, where there are gradients at all."""
        sums = zip(self._sums, gradients)
        return [None if gradient is None else total.read_value() / self.averaged_passes for total, gradient in sums]

    def clear(self) -> None:
        assert self.counter is not None
        self.counter.assign(0)
        for total in self._sums:
            total.assign(tf.zeros_like(total))


class _Distributed:
    """Methods that a Keras 3 optimizer gets; ``_horovod_dgc_reducer`` stands in its class."""

    _horovod_dgc_reducer: _Reducer

    def register_local_var(self, var: Any) -> None:
        """From now on ``var`` belongs to this worker alone: its gradient is not reduced."""
        self._horovod_dgc_reducer.local.add(raw(var).ref())

    def apply(self: Any, grads: Sequence[Any], trainable_variables: Sequence[Any] | None = None) -> None:
        if any(getattr(caller, "inner_optimizer", None) is self for caller in callers.holders()):
            raise ValueError(ORDER)
        reducer = self._horovod_dgc_reducer
        gradients = list(grads)
        if not gradients:
            return
        if trainable_variables is not None and not self.built:
            self.build(list(trainable_variables))
        variables = list(trainable_variables or self._trainable_variables)
        apply: Any = super().apply  # type: ignore[misc]
        if reducer.passes == 1:
            apply(reducer.reduce(gradients, variables), trainable_variables)
            return
        reducer.accumulate(gradients, variables)

        def last_pass() -> None:
            apply(reducer.reduce(reducer.take_sums(gradients), variables), trainable_variables)
            reducer.clear()

        def other_pass() -> None:
            # As Horovod counts: every pass is an iteration.
            self.iterations.assign_add(1)

        tf.cond(tf.equal(reducer.counter, reducer.passes), last_pass, other_pass)


def _divide(gradient: Any, divisor: int) -> Any:
    if isinstance(gradient, tf.IndexedSlices):
        return tf.IndexedSlices(gradient.values / divisor, gradient.indices, gradient.dense_shape)
    return gradient / divisor
