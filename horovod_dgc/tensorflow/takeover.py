"""Momentum, taken over from the Keras optimizer for the variables that it is applied to before compression."""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import horovod.tensorflow as hvd
import tensorflow as tf

from horovod_dgc.methods.base import Plan
from horovod_dgc.tensorflow import callers
from horovod_dgc.tensorflow.operations import library
from horovod_dgc.tensorflow.tensors import Tensor

KERAS_3 = hasattr(tf.keras, "version") and str(tf.keras.version()).startswith("3")

# Options of Keras's optimizers that change what the exchange has returned before momentum is applied to it.
BEFORE_MOMENTUM = ("clipnorm", "clipvalue", "global_clipnorm", "gradient_accumulation_steps")
# What subclasses may have of their own: it takes no part in the arithmetic.
HARMLESS = ("get_config", "from_config")
# Smaller rates count as zero: the velocity, in units of the gradient, would leave the range of float32.
SMALLEST_RATE = 1e-30
# Operations of a graph that a gradient passes through on its way from the exchange to the optimizer.
PASSING = ("Identity", "Placeholder", "If", "StatelessIf", "While", "StatelessWhile", "Merge")


@dataclass(frozen=True)
class Hyperparameters:
    """What a step needs of the optimizer.

    Attributes:
        momentum, rate: float64 scalars in the current graph.
        nesterov: whether the momentum is Nesterov's.
        pauses: whether the optimizer leaves its momentum as it is while the factor is zero, instead of clearing it.
    """

    momentum: tf.Tensor
    rate: tf.Tensor
    nesterov: bool = False
    pauses: bool = KERAS_3


class Takeover:
    """Keeps a Keras SGD optimizer from applying a second time the momentum that has been applied before compression.

    The optimizer's class becomes a subclass of the same name, so that optimizers which Horovod derives from it inherit
    this; nothing else that a user sees of it changes, at any time. Weight decay stays with the optimizer: in Keras it
    acts on the weights directly, on every rank alike, and takes no part in the momentum.

    Args:
        optimizer: a Keras optimizer, which may be a ``LossScaleOptimizer``, or one of ``tf.compat.v1.train``.
        wanted: whether the method applies momentum.

    Attributes:
        momentum: whether momentum is applied here: the method does, the optimizer has it, and nothing but Keras's own
            SGD comes between what the exchange returns and the variables.
        active: whether gradients are exchanged among several workers; until then the optimizer does it all.
        used: whether Horovod has given a gradient to the Compression.
        loss_scaled: whether the Compression knows of a loss scale.

    Raises:
        ValueError: an optimizer that is wrapped already, belongs to another Compression, or has a momentum that cannot
            be taken over.
    """

    def __init__(self, optimizer: Any, *, wanted: bool) -> None:
        _refuse_wrapped(optimizer)
        self._outermost = optimizer
        self.optimizer = innermost(optimizer)
        self._refuse_v1_momentum(wanted)
        self.momentum = wanted and isinstance(self.optimizer, _sgd_classes()) and _has_momentum(self.optimizer)
        self._kept_because = _arithmetic_of_its_own(self.optimizer) if self.momentum else None
        if self._kept_because is not None:
            self.momentum = False
        self.active = self.used = self.loss_scaled = False
        self._workers_added_up = 1
        self._workers = hvd.size() if hvd.is_initialized() else None
        self._said: set[str] = set()
        self._corrected: dict[Any, Tensor] = {}
        # Those whose momentum the optimizer may have begun to gather.
        self._fresh: list[Tensor] = []
        # Keras reads a plain number while it traces, and in each step without a graph.
        self._momentum_now: tf.Variable | None = None
        if self.momentum and not _is_legacy(self.optimizer):
            with tf.init_scope(), tf.device("CPU:0"):
                now = tf.constant(self.optimizer.momentum, tf.float64)
                self._momentum_now = tf.Variable(now, trainable=False, name="momentum")

    def corrects(self, plans: Iterable[Plan]) -> bool:
        """Whether the momentum of a variable that travels by these plans is applied before compression.

        Not where everything is always sent as it is: what comes back is then the mean gradient itself, and the
        optimizer, with whatever a script does to gradients beforehand, makes of it what it makes of it without
        compression.
        """
        plans = list(plans)
        if plans[0].momentum != "local" or all(plan.lossless for plan in plans):
            return False
        if self._kept_because is not None:
            self._say_once(
                f"momentum stays with {_described(self.optimizer)} and is applied after the exchange, because "
                f"{self._kept_because}: so there is no momentum correction. Write momentum_correction=False to say so, "
                "or clip with the method's clip_norm, each worker's gradient before the exchange"
            )
        return self.momentum

    def derive(self) -> None:
        """Change the optimizer's class: the last thing when a Compression is made, since nobody takes it back."""
        optimizer = self._outermost
        while _is_keras(optimizer):
            _derive(optimizer, self)
            optimizer = getattr(optimizer, "inner_optimizer", None)

    def attach(self, tensor: Tensor) -> None:
        """Take over for this tensor."""
        if tensor.corrected:
            self._corrected[tensor.variable.ref()] = tensor
            self._fresh.append(tensor)

    def prepare(self, owner: Any, holders: Iterable[Any], gradients: Any, variables: Iterable[Any]) -> None:
        """Let an optimizer of Keras 2 that is about to apply these gradients make its momentum; eager.

        It would do so after the exchange, which is to notice whether somebody loads something else into it.
        """
        late = self.momentum and not KERAS_3 and not _is_legacy(owner) and not getattr(owner, "_built", False)
        if late and any(holder is owner for holder in holders) and not getattr(owner, "_local_vars", None):
            owner.build([variable for gradient, variable in zip(gradients, variables) if gradient is not None])

    def activate(self, owner: Any, workers_added_up: int) -> None:
        """From now on momentum is applied here, beginning with what the optimizer has gathered so far; eager.

        Args:
            owner: the optimizer in charge.
            workers_added_up: number of workers whose velocities the reduction adds up, each of which gets its share;
                1 where it takes their mean.
        """
        self.active = True
        self._workers_added_up = workers_added_up
        rate = tf.cast(_rate_or_zero(_rate(owner)), tf.float32) if self._fresh else None
        for tensor in self._fresh:
            buffer = _momentum_buffer(owner, tensor.variable)
            if buffer is None or not tf.reduce_any(buffer != 0):
                continue
            # Keras 2 once wrote its last update there also without momentum: with a velocity from a checkpoint, a
            # buffer restored beside it holds nothing that the velocity lacks.
            if tensor.started:
                buffer.assign(tf.zeros_like(buffer))
            else:
                tensor.take_momentum(buffer, rate, workers_added_up)
        self._fresh.clear()

    def take_loaded(self, owner: Any, tensors: Iterable[Tensor], rate: tf.Tensor) -> list[tf.Tensor]:
        """Operations in the current graph that go on from momentum which somebody has loaded into the optimizer.

        The optimizer's own momentum of these variables is zero from the first exchange on. Where it is not, it is worth
        more than the velocity that there was.

        Args:
            owner: the optimizer in charge.
            tensors: of the step.
            rate: of today, float64 ().

        Returns:
            What comes before the step.
        """
        corrected = (tensor for tensor in tensors if tensor.variable.ref() in self._corrected)
        found = ((tensor, _momentum_buffer(owner, tensor.variable)) for tensor in corrected)
        pairs = [(tensor, buffer) for tensor, buffer in found if buffer is not None]
        if not pairs:
            return []
        today = tf.cast(rate, tf.float32)

        def look() -> tf.Tensor:
            for tensor, buffer in pairs:
                take = functools.partial(tensor.take_momentum, buffer, today, self._workers_added_up)
                tf.cond(tf.reduce_any(buffer != 0), take, lambda: today)
            return tf.identity(today)

        replaced = library.horovod_dgc_replaced([buffer.handle for _, buffer in pairs])
        return [tf.cond(replaced, look, lambda: tf.identity(today))]

    def owner(self, holders: Iterable[Any]) -> Any:
        """The optimizer in charge: one on the calling path that Horovod derived from the given one, or that one.

        Raises:
            ValueError: another optimizer has brought the gradients.
        """
        holders = list(holders)
        for holder in holders:
            if isinstance(holder, tf.GradientTape):
                break
            if is_optimizer(holder):
                self.require_own(holder)
                break
        derived = (h for h in holders if self._is_derived(h))
        return innermost(next(derived, self.optimizer))

    def hyperparameters(self, owner: Any, *, eager: bool) -> Hyperparameters:
        """Operations in the current graph that read what holds in this step.

        Args:
            eager: whether the optimizer's own arithmetic is no part of a graph, so that it sees every change of a
                plain number.

        Raises:
            ValueError: the optimizer has got options that do not go with momentum that is applied here.
        """
        if not self.momentum:
            zero = tf.zeros((), tf.float64)
            return Hyperparameters(zero, zero)
        own = _arithmetic_of_its_own(owner)
        if own is not None:
            raise ValueError(f"{own}, which was not so when Compression was made: say so before, and make it then")
        if eager and callable(getattr(owner, "_learning_rate", None)) and not _has_schedule(owner):
            raise ValueError(
                "learning_rate must be a number, a variable or a schedule of Keras where gradients are exchanged "
                f"outside of a tf.function, got the function {owner._learning_rate!r}"
            )
        momentum = self._momentum_now if eager and self._momentum_now is not None else _momentum(owner)
        return Hyperparameters(_scalar(momentum), _rate_or_zero(_rate(owner)), bool(owner.nesterov))

    def set_momentum(self, value: Any) -> None:
        """Called where somebody changes the optimizer's momentum."""
        if self._momentum_now is not None:
            with tf.init_scope():
                self._momentum_now.assign(tf.cast(value, tf.float64))

    def rate_of(self, gradient: Any, variable: Any, rate: Any) -> tf.Tensor | None:
        """What to multiply a gradient by whose momentum has been applied, in its variable's dtype; None for others.

        Sparse gradients do not pass through compression, so they keep the optimizer's momentum.
        """
        tensor = self._corrected.get(raw(variable).ref()) if self.active else None
        if tensor is None or isinstance(gradient, tf.IndexedSlices):
            return None
        assert tensor.rate is not None
        # At rate 0 Keras goes on moving by its momentum, which stands here in units of the last other rate.
        today = tf.convert_to_tensor(rate)
        units = tf.where(_rate_or_zero(today) == 0, tf.cast(tensor.rate.read_value(), today.dtype), today)
        return tf.cast(units, raw(variable).dtype)

    @tf.autograph.experimental.do_not_convert  # type: ignore[untyped-decorator]
    def see(self, optimizer: Any, pairs: Iterable[tuple[Any, Any]]) -> None:
        """Called with the gradients and variables that the optimizer, or one around it, is about to apply.

        Raises:
            ValueError: they are of a scaled loss, and the Compression does not know of the scale.
        """
        around = (holder for holder in callers.holders() if holder is not optimizer)
        scaling = [holder for holder in around if getattr(holder, "inner_optimizer", None) is not None]
        if self.used and scaling and not self.loss_scaled:
            raise ValueError(
                "the loss is scaled, and Compression does not know by how much: give it the LossScaleOptimizer, as in "
                "Compression(method, scaled_optimizer, ...)"
            )
        if not self.used and hvd.is_initialized() and hvd.size() > 1:
            self._say_once(
                "the optimizer applies gradients that have not passed through its Compression: give compression= to "
                "DistributedOptimizer or DistributedGradientTape"
            )
        if self.active and self.momentum and not scaling:
            changed = [v for g, v in pairs if raw(v).ref() in self._corrected and _is_changed(g)]
            if changed:
                self._say_once(
                    f"the gradient of {changed[0].name!r} is changed between its exchange and the optimizer. What is "
                    "exchanged holds momentum, so this is not what it is without compression: for clipping, use the "
                    "method's clip_norm; for all else, momentum_correction=False leaves momentum to the optimizer"
                )

    def take_leave(self) -> None:
        """Called when the Compression is gone, or the process ends."""
        if not self.used and self._workers is not None and self._workers > 1:
            warn(
                "a Compression was made and never used: give it to DistributedOptimizer or DistributedGradientTape as "
                "compression="
            )

    def _say_once(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            warn(message)

    def _is_derived(self, holder: Any) -> bool:
        return getattr(type(holder), "_horovod_dgc_takeover", None) is self

    def require_own(self, optimizer: Any) -> None:
        """Raise ValueError unless this is the optimizer that was given, or one that Horovod has derived from it."""
        inner = innermost(getattr(optimizer, "_optimizer", optimizer) if _is_v1(optimizer) else optimizer)
        if inner is not self.optimizer and not self._is_derived(inner):
            raise ValueError(
                f"Compression was made with another optimizer, {_described(self.optimizer)}, than the one that is "
                f"distributed, {_described(inner)}: give both the same"
            )

    def _refuse_v1_momentum(self, wanted: bool) -> None:
        if wanted and isinstance(self.optimizer, tf.compat.v1.train.MomentumOptimizer):
            raise ValueError(
                "optimizer must not be a tf.compat.v1.train.MomentumOptimizer, whose momentum cannot be taken over: "
                "use tf.keras.optimizers.SGD, or a method without momentum correction"
            )


def warn(message: str) -> None:
    """Warn of something in the caller of this package."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals["__name__"].startswith("horovod_dgc."):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)


def state_of(optimizer: Any) -> list[Any]:
    """A Keras optimizer's own variables: a method in Keras 2, an attribute in Keras 3."""
    state = optimizer.variables
    return list(state() if callable(state) else state)


def innermost(optimizer: Any) -> Any:
    """The optimizer itself, without the loss scaling around it."""
    while getattr(optimizer, "inner_optimizer", None) is not None:
        optimizer = optimizer.inner_optimizer
    return optimizer


def loss_scale(optimizers: Iterable[Any]) -> tf.Tensor | None:
    """Current loss scale, a float64 scalar in the current graph: that of the first optimizer that has one, if any.

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
    return None


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
    # Keras 2 keeps the rate of the step before until it applies the gradients of this one.
    if _has_schedule(optimizer):
        return optimizer._learning_rate(optimizer.iterations)
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


def _rate_or_zero(value: Any) -> tf.Tensor:
    """A learning rate as a float64 scalar, in which what is practically zero is zero."""
    rate = _scalar(value)
    return tf.where(tf.abs(rate) < SMALLEST_RATE, tf.zeros_like(rate), rate)


def _has_schedule(optimizer: Any) -> bool:
    schedule = getattr(optimizer, "_learning_rate", None)
    return isinstance(schedule, tf.keras.optimizers.schedules.LearningRateSchedule)


def _arithmetic_of_its_own(optimizer: Any) -> str | None:
    """What an SGD does beside Keras's own arithmetic, in words; None if that is nothing."""
    for option in BEFORE_MOMENTUM:
        if getattr(optimizer, option, None):
            return f"its {option} changes what the exchange returns"
    keras = next(c for c in type(optimizer).__mro__ if c in _sgd_classes())
    derived = type(optimizer).__mro__[: type(optimizer).__mro__.index(keras)]
    for names in (vars(optimizer), *(vars(c) for c in derived if not _is_ours(c))):
        for name, value in names.items():
            own = callable(value) or isinstance(value, property)
            if own and hasattr(keras, name) and not name.startswith("__") and name not in HARMLESS:
                return f"{name}() is its own"
    return None


def _is_ours(kind: type) -> bool:
    """Whether this class was made here or by Horovod, for a distributed optimizer or a Compression."""
    names = vars(kind)
    ours = "_horovod_dgc_takeover" in names or "_horovod_dgc_reducer" in names or "_allreduce" in names
    return ours or kind.__module__.startswith("horovod_dgc.")


def _refuse_wrapped(optimizer: Any) -> None:
    inner = innermost(optimizer)
    if any(hasattr(o, mark) for o in (optimizer, inner) for mark in ("_horovod_dgc_reducer", "_allreduce_grads")):
        raise ValueError(
            "optimizer must be the one that is about to be distributed, got one that is already: make the Compression "
            "first, then write DistributedOptimizer(optimizer, compression=compression)"
        )
    if hasattr(type(inner), "_horovod_dgc_takeover"):
        raise ValueError("optimizer belongs to another Compression already: each needs an optimizer of its own")


def _described(optimizer: Any) -> str:
    return f"{type(optimizer).__name__} {getattr(optimizer, 'name', '')!r}"


def _is_v1(optimizer: Any) -> bool:
    return isinstance(optimizer, tf.compat.v1.train.Optimizer)


def _is_changed(gradient: Any) -> bool:
    """Whether a graph's operations do more to a gradient, since its exchange, than pass it on or scale it."""
    if isinstance(gradient, tf.IndexedSlices) or tf.executing_eagerly() or not hasattr(gradient, "graph"):
        return False
    operation = gradient.op
    while operation.type in ("Identity", "Mul", "RealDiv"):
        others = [i.op.type == "Const" for i in operation.inputs]
        if operation.type != "Identity" and not any(others):
            return True
        operation = next((i.op for i, constant in zip(operation.inputs, others) if not constant), None)
        if operation is None:
            return False
    return not (operation.type in PASSING or operation.type.endswith("Call"))


def _derive(optimizer: Any, takeover: Takeover) -> None:
    """Make the optimizer's class a subclass of the same name that consults ``takeover``."""
    base = type(optimizer)

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
    if KERAS_3:
        namespace["apply"] = _apply(takeover, base.apply)
    else:
        namespace["apply_gradients"] = _apply_gradients(takeover, base.apply_gradients)
    if optimizer is takeover.optimizer and takeover.momentum:
        if _is_legacy(optimizer):
            namespace["_resource_apply_dense"] = _resource_apply_dense(takeover, base._resource_apply_dense)
        else:
            namespace["update_step"] = _update_step(takeover, base.update_step)
            namespace["__setattr__"] = _setattr(takeover, base.__setattr__)
    derived = become(optimizer, (), namespace)


def _apply(takeover: Takeover, apply: Callable[..., Any]) -> Callable[..., Any]:
    def seen(self: Any, grads: Any, trainable_variables: Any = None) -> Any:
        grads = list(grads)
        given = None if trainable_variables is None else list(trainable_variables)
        takeover.see(self, list(zip(grads, getattr(self, "_trainable_variables", ()) if given is None else given)))
        return apply(self, grads, given)

    return seen


def _apply_gradients(takeover: Takeover, apply: Callable[..., Any]) -> Callable[..., Any]:
    def seen(self: Any, grads_and_vars: Any, *args: Any, **options: Any) -> Any:
        pairs = list(grads_and_vars)
        takeover.see(self, pairs)
        return apply(self, pairs, *args, **options)

    return seen


def _update_step(takeover: Takeover, update: Callable[..., Any]) -> Callable[..., Any]:
    def update_step(self: Any, gradient: Any, variable: Any, *args: Any) -> Any:
        # Keras 3 says what the learning rate is.
        rate = takeover.rate_of(gradient, variable, args[0] if args else self.learning_rate)
        if rate is None:
            return update(self, gradient, variable, *args)
        return raw(variable).assign_sub(tf.cast(gradient, rate.dtype) * rate)

    return update_step


def _resource_apply_dense(takeover: Takeover, update: Callable[..., Any]) -> Callable[..., Any]:
    def apply(self: Any, gradient: Any, variable: Any, *args: Any, **options: Any) -> Any:
        rate = takeover.rate_of(gradient, variable, _rate(self))
        if rate is None:
            return update(self, gradient, variable, *args, **options)
        locking = self._use_locking
        return tf.raw_ops.ResourceApplyGradientDescent(
            var=variable.handle, alpha=rate, delta=gradient, use_locking=locking
        )

    return apply


def _setattr(takeover: Takeover, assign: Callable[..., None]) -> Callable[[Any, str, Any], None]:
    def __setattr__(self: Any, name: str, value: Any) -> None:
        assign(self, name, value)
        if name == "momentum":
            takeover.set_momentum(value)

    return __setattr__
