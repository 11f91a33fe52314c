"""Momentum, taken over from the Keras optimizer for the variables that it is applied to before compression."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from horovod_dgc.tensorflow.tensors import Tensor

KERAS_3 = hasattr(tf.keras, "version") and str(tf.keras.version()).startswith("3")


@dataclass(frozen=True)
class Hyperparameters:
    """What a step needs of the optimizer: float64 scalars in the current graph."""

    momentum: tf.Tensor
    rate: tf.Tensor


class Takeover:
    """Keeps a Keras SGD optimizer from applying a second time the momentum that has been applied before compression.

    The optimizer shows the user's values at all times; only while it updates a variable whose momentum is applied
    here does it see zero. Its class becomes a subclass of the same name, so that optimizers which Horovod derives
    from it inherit this. Weight decay stays with the optimizer: in Keras it acts on the weights directly, on every
    rank alike, and takes no part in the momentum.

    Args:
        optimizer: a Keras optimizer, which may be a ``LossScaleOptimizer``, or one of ``tf.compat.v1.train``.
        wanted: whether the method applies momentum.

    Attributes:
        momentum: whether momentum is applied here: the method does, and the optimizer has it.
        nesterov: whether it is Nesterov's.
        active: whether gradients are exchanged among several workers; until then the optimizer does it all.
    """

    def __init__(self, optimizer: Any, *, wanted: bool) -> None:
        self.optimizer = innermost(optimizer)
        self._refuse_v1_momentum(wanted)
        self.momentum = wanted and isinstance(self.optimizer, _sgd_classes()) and _has_momentum(self.optimizer)
        self.nesterov = bool(self.momentum and self.optimizer.nesterov)
        self.active = False
        self._corrected: list[Tensor] = []
        self._variables: set[int] = set()
        while _is_keras(optimizer):
            _derive(optimizer, self)
            optimizer = getattr(optimizer, "inner_optimizer", None)

    def attach(self, tensors: Iterable[Tensor], named: dict[int, list[Any]]) -> None:
        """Take over for these tensors; ``named`` holds the objects by which Keras knows each one's variable."""
        self._corrected = [tensor for tensor in tensors if tensor.corrected]
        for tensor in self._corrected:
            self._variables.update(id(known) for known in named[tensor.position])

    def activate(self, workers_added_up: int) -> None:
        """From now on momentum is applied here, beginning with what the optimizer has gathered so far; eager.

        Args:
            workers_added_up: number of workers whose velocities the reduction adds up, each of which gets its share;
                1 where it takes their mean.
        """
        if self.active:
            return
        self.active = True
        for tensor in self._corrected:
            buffer = _momentum_buffer(self.optimizer, tensor.variable)
            # Keras 2 writes its last update there also without momentum: with a velocity from a checkpoint, a
            # buffer restored beside it holds nothing that the velocity lacks.
            if buffer is not None and not tensor.started and tf.reduce_any(buffer != 0):
                rate = float(tf.convert_to_tensor(_rate(self.optimizer)))
                tensor.take_momentum(buffer, rate, workers_added_up)

    def owner(self, holders: Iterable[Any]) -> Any:
        """The optimizer in charge: one on the calling path that Horovod derived from the given one, or that one."""
        derived = (h for h in holders if getattr(type(h), "_horovod_dgc_takeover", None) is self)
        return innermost(next(derived, self.optimizer))

    def hyperparameters(self, owner: Any) -> Hyperparameters:
        """Operations in the current graph that read what holds in this step."""
        if not self.momentum:
            zero = tf.zeros((), tf.float64)
            return Hyperparameters(zero, zero)
        return Hyperparameters(_scalar(_momentum(owner)), _scalar(_rate(owner)))

    @contextmanager
    def set_aside(self, optimizer: Any, attribute: str, gradient: Any, variable: Any) -> Iterator[None]:
        """While this lasts, the optimizer has no momentum, if this variable's has been applied.

        Sparse gradients do not pass through compression, so they keep the optimizer's momentum.
        """
        sparse = isinstance(gradient, tf.IndexedSlices)
        if not self.active or sparse or id(variable) not in self._variables:
            yield
            return
        value = getattr(optimizer, attribute)
        setattr(optimizer, attribute, type(value)(0))
        try:
            yield
        finally:
            setattr(optimizer, attribute, value)

    def _refuse_v1_momentum(self, wanted: bool) -> None:
        if wanted and isinstance(self.optimizer, tf.compat.v1.train.MomentumOptimizer):
            raise ValueError(
                "optimizer must not be a tf.compat.v1.train.MomentumOptimizer, whose momentum cannot be taken over: "
                "use tf.keras.optimizers.SGD, or a method without momentum correction"
            )


def state_of(optimizer: Any) -> list[Any]:
    """A Keras optimizer's own variables: a method in Keras 2, an attribute in Keras 3."""
    state = optimizer.variables
    return list(state() if callable(state) else state)


def innermost(optimizer: Any) -> Any:
    """The optimizer itself, without the loss scaling around it."""
    while getattr(optimizer, "inner_optimizer", None) is not None:
        optimizer = optimizer.inner_optimizer
    return optimizer


def loss_scale(optimizers: Iterable[Any]) -> tf.Tensor:
    """Current loss scale, a float64 scalar in the current graph: that of the first optimizer that has one, else 1.

    Raises:
        ValueError: Keras 3 has not created the scale yet.
    """
    for optimizer in optimizers:
        if getattr(optimizer, "inner_optimizer", None) is None:
            if getattr(optimizer, "loss_scale_factor", None) is not None:
                return _scalar(optimizer.loss_scale_factor)
            continue
        if not KERAS_3:
            return _scalar(optimizer.loss_scale)
        scale = getattr(optimizer, "dynamic_scale", None)
        if scale is None:
            raise ValueError(
                "the LossScaleOptimizer has no loss scale yet: call optimizer.build(model.trainable_variables) before "
                "the first training step"
            )
        return _scalar(scale)
    return tf.ones((), tf.float64)


def raw(variable: Any) -> tf.Variable:
    """The ``tf.Variable`` behind a variable of Keras 3, or the variable itself."""
    return getattr(variable, "_value", variable) if KERAS_3 and not isinstance(variable, tf.Variable) else variable


def become(optimizer: Any, mixins: tuple[type, ...], namespace: dict[str, Any]) -> Any:
    """Make the optimizer's class a subclass, which is returned, under the same name, so that models save as before."""
    base = type(optimizer)
    names = {"__module__": base.__module__, "__qualname__": base.__qualname__}
    derived = type(base.__name__, (*mixins, base), {**names, **namespace})
    # Past Keras's own __setattr__, which tracks what it is given.
    object.__setattr__(optimizer, "__class__", derived)
    return derived


def is_optimizer(candidate: Any) -> bool:
    return isinstance(candidate, tf.compat.v1.train.Optimizer) or _is_keras(innermost(candidate))


def _is_keras(optimizer: Any) -> bool:
    return isinstance(optimizer, _keras_classes())


def _keras_classes() -> tuple[type, ...]:
    return _with_legacy("Optimizer")


def _sgd_classes() -> tuple[type, ...]:
    return _with_legacy("SGD")


def _with_legacy(name: str) -> tuple[type, ...]:
    """A class of ``tf.keras.optimizers`` and, up to Keras 2, its older form."""
    current: type = getattr(tf.keras.optimizers, name)
    if KERAS_3:
        return (current,)
    return current, getattr(tf.keras.optimizers.legacy, name)


def _is_legacy(optimizer: Any) -> bool:
    return not hasattr(optimizer, "update_step")


def _has_momentum(optimizer: Any) -> bool:
    return bool(optimizer._momentum if _is_legacy(optimizer) else optimizer.momentum)


def _momentum(optimizer: Any) -> Any:
    if not _is_legacy(optimizer):
        return optimizer.momentum
    with tf.init_scope():
        optimizer._create_hypers()
    return optimizer._get_hyper("momentum", tf.float32)


def _rate(optimizer: Any) -> Any:
    if _is_legacy(optimizer):
        with tf.init_scope():
            optimizer._create_hypers()
        return optimizer._decayed_lr(tf.float32)
    schedule = getattr(optimizer, "_learning_rate", None)
    # Keras 2 keeps the rate of the step before until it applies the gradients of this one.
    if isinstance(schedule, tf.keras.optimizers.schedules.LearningRateSchedule):
        return schedule(optimizer.iterations)
    return optimizer.learning_rate


def _scalar(value: Any) -> tf.Tensor:
    # Via float32, the precision in which the optimizer uses it.
    return tf.cast(tf.cast(tf.convert_to_tensor(value), tf.float32), tf.float64)


def _momentum_buffer(optimizer: Any, variable: tf.Variable) -> tf.Variable | None:
    """The momentum that an optimizer in use has gathered for a variable."""
    if _is_legacy(optimizer):
        gathered = optimizer._slots.get(variable._unique_id, {})
        buffer: tf.Variable | None = gathered.get("momentum")
        return buffer
    buffers = getattr(optimizer, "momentums", ())
    if not KERAS_3:
        position = getattr(optimizer, "_index_dict", {}).get(variable._unique_id)
        return None if position is None else buffers[position]
    pairs = zip(optimizer._trainable_variables if buffers else (), buffers)
    return next((raw(buffer) for known, buffer in pairs if raw(known) is variable), None)


def _derive(optimizer: Any, takeover: Takeover) -> None:
    """Make the optimizer's class a subclass of the same name that consults ``takeover``."""
    base = type(optimizer)
    if hasattr(base, "_horovod_dgc_takeover"):
        raise ValueError("optimizer belongs to another Compression already: each needs an optimizer of its own")

    def init_subclass(cls: type, /, **options: Any) -> None:
        super(derived, cls).__init_subclass__(**options)
        if KERAS_3 and "_HAS_AGGREGATE_GRAD" in vars(cls):
            raise ValueError(
                "Horovod's own DistributedOptimizer never reduces the gradients of a Keras 3 model. Write "
                "horovod_dgc.tensorflow.DistributedOptimizer(optimizer, compression=compression), which takes the "
                "same options"
            )

    namespace: dict[str, Any] = {
        "__init_subclass__": classmethod(init_subclass),
        "_horovod_dgc_takeover": takeover,
    }
    if optimizer is takeover.optimizer and takeover.momentum:
        legacy = _is_legacy(optimizer)
        method, attribute = ("_resource_apply_dense", "_momentum") if legacy else ("update_step", "momentum")
        namespace[method] = _without_momentum(takeover, getattr(base, method), attribute)
    derived = become(optimizer, (), namespace)


def _without_momentum(takeover: Takeover, update: Callable[..., Any], attribute: str) -> Callable[..., Any]:
    def update_step(self: Any, gradient: Any, variable: Any, *args: Any, **options: Any) -> Any:
        with takeover.set_aside(self, attribute, gradient, variable):
            return update(self, gradient, variable, *args, **options)

    return update_step
