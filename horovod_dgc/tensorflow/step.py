"""One training step's exchange as graph operations: all variables, committed together or not at all."""

from __future__ import annotations

import functools
import math
from typing import Any

import horovod.tensorflow as hvd
import tensorflow as tf

from horovod_dgc import transport
from horovod_dgc.method import Method, Plan
from horovod_dgc.tensorflow.callers import Call
from horovod_dgc.tensorflow.operations import library
from horovod_dgc.tensorflow.takeover import Hyperparameters
from horovod_dgc.tensorflow.tensors import Tensor
from horovod_dgc.transport import Transport

# How `received` is to be read, as csrc/tensorflow numbers it.
PAYLOADS = 0
SUMS = {"float32": 1, "float16": 2}


class Exchange:
    """One variable's operations in one traced step, which Horovod carries from ``compress`` to ``decompress``."""

    def __init__(self, step: Step, tensor: Tensor, gradient: tf.Tensor) -> None:
        self._step = step
        self._tensor = tensor
        self._gradient = gradient
        # The core reads no float64; what is sent of it has float32 precision at best.
        self._values = tf.cast(gradient, tf.float32) if gradient.dtype == tf.float64 else gradient
        self._plans = [step.method.plan(tensor.variable.shape, start) for start in step.starts]
        transports = [step.transport or transport.choose(plan, step.call.workers) for plan in self._plans]
        first = self._plans[0]
        self._coding = {
            "numel": tensor.numel,
            "sent": [plan.sent for plan in self._plans],
            "indices": first.layout.indices.value,
            "values": first.layout.values.value,
        }
        self._messages = [_message(plan, way) for plan, way in zip(self._plans, transports)]
        self._reading = {"messages": self._messages, "workers": step.call.workers}

    def sum_squares(self) -> tf.Tensor:
        """Squared norm of the gradient as it came, a float64 scalar."""
        return library.horovod_dgc_sum_squares(self._values)

    def start(self, unscale: tf.Tensor, hyperparameters: Hyperparameters) -> None:
        """Propose, and send what was proposed."""
        self.payload, self._stage, self.applied = library.horovod_dgc_propose(
            self._values,
            self._tensor.variable.handle,
            self._tensor.state,
            unscale,
            hyperparameters.momentum,
            hyperparameters.rate,
            identity=self._tensor.identity,
            label=self._tensor.label,
            starts=self._step.starts,
            nesterov=self._step.nesterov,
            sample_ratio=self._plans[0].sample_ratio,
            **self._coding,
        )
        self._received = self._send()
        self.poisoned = library.horovod_dgc_poisoned(self._received, self._stage, **self._coding, **self._reading)

    def message(self) -> tf.Tensor:
        """What Horovod is to allreduce: one element holding 1, which becomes what its options make of 1.

        Its name, which Horovod's own collective goes by, is the same on all ranks.
        """
        # Read from a variable: a collective of a constant would be computed once, while the graph is optimised.
        one = self._step.one.read_value()
        return tf.identity(one, name=f"horovod_dgc_{self._step.ordinal}_{self._tensor.position}")

    def finish(self, factor: tf.Tensor) -> tf.Tensor:
        """Commit and decode, once it is known that the step counts; returns the gradient to apply."""
        result = library.horovod_dgc_finish(
            self._values,
            self._received,
            self.payload,
            self._stage,
            self.applied,
            self.poisoned,
            self._step.skipped,
            factor,
            self._step.loss_scale,
            self._tensor.state,
            nesterov=self._step.nesterov,
            masking=self._plans[0].masking,
            **self._coding,
            **self._reading,
        )
        return tf.cast(result, self._gradient.dtype)

    def _send(self) -> tf.Tensor:
        kinds = sorted(set(self._messages))
        if len(kinds) == 1:
            return self._send_as(kinds[0])
        branches = [functools.partial(self._send_as, kind) for kind in kinds]
        chosen = tf.constant([kinds.index(message) for message in self._messages])
        return tf.switch_case(tf.gather(chosen, self._stage), branches)

    def _send_as(self, kind: int) -> tf.Tensor:
        if kind == PAYLOADS:
            return self._gather()
        plans = [plan for plan, message in zip(self._plans, self._messages) if message == kind]
        summable = plans[0].summable if all(plan.summable is not None for plan in plans) else None
        if summable is not None:
            return self._reduce(tf.bitcast(tf.reshape(self.payload, [-1, summable.itemsize]), tf.as_dtype(summable)))
        return self._reduce(library.horovod_dgc_masked(self.payload, self._stage, **self._coding))

    def _gather(self) -> tf.Tensor:
        return hvd.allgather(
            self.payload, name=self._name("gather"), ignore_name_scope=True, process_set=self._step.call.process_set
        )

    def _reduce(self, message: tf.Tensor) -> tf.Tensor:
        total = hvd.allreduce(
            message,
            op=hvd.Sum,
            name=self._name(f"reduce_{message.dtype.name}"),
            ignore_name_scope=True,
            process_set=self._step.call.process_set,
        )
        return tf.reshape(tf.bitcast(total, tf.uint8), [-1])

    def _name(self, way: str) -> str:
        return f"horovod_dgc_{way}_{self._step.ordinal}_{self._tensor.position}"


def _message(plan: Plan, way: Transport) -> int:
    if way == "gather":
        return PAYLOADS
    return SUMS[plan.summable.name if plan.summable is not None else "float32"]


class Step:
    """The operations of one call of Horovod's reducer, in the graph that holds the gradients.

    Args:
        call: the call, with all its gradients.
        exchanged: position in ``call`` and tensor of each dense gradient that is not empty.
        ordinal: number of the Compression in this process, the same on all ranks.
        one: float32 variable of one element that holds 1.
        progress: int64 (4,) variable of counts.
        starts: first step of each stage of the method's schedule.
    """

    def __init__(
        self,
        *,
        method: Method,
        call: Call,
        exchanged: dict[int, Tensor],
        hyperparameters: Hyperparameters,
        nesterov: bool,
        loss_scale: tf.Tensor,
        transport: Transport | None,
        ordinal: int,
        one: tf.Variable,
        progress: tf.Variable,
        starts: list[int],
    ) -> None:
        self.method = method
        self.call = call
        self.nesterov = nesterov
        self.loss_scale = loss_scale
        self.transport = transport
        self.ordinal = ordinal
        self.one = one
        self.starts = starts
        self.exchanges = {
            position: Exchange(self, tensor, call.gradients[position]) for position, tensor in exchanged.items()
        }
        exchanges = list(self.exchanges.values())
        for exchange, unscale in zip(exchanges, self._unscales(exchanges)):
            exchange.start(unscale, hyperparameters)
        self.skipped = library.horovod_dgc_conclude(
            [exchange.poisoned for exchange in exchanges],
            [exchange.applied for exchange in exchanges],
            progress.handle,
        )

    def _unscales(self, exchanges: list[Exchange]) -> list[Any]:
        """Factor of each gradient: inverse loss scale, and local clipping where the method asks for it."""
        inverse = 1.0 / self.loss_scale
        limit = self.method.clip_norm
        if limit is None:
            return [inverse] * len(exchanges)
        squares = [exchange.sum_squares() for exchange in exchanges]
        if self.method.clip_scope == "tensor":
            return [inverse * self._clip(tf.sqrt(square) * inverse, limit) for square in squares]
        return [self._clip(tf.sqrt(tf.add_n(squares)) * inverse, limit) * inverse] * len(exchanges)

    def _clip(self, norm: tf.Tensor, clip_norm: float) -> tf.Tensor:
        """:func:`horovod_dgc.method.clip_factor` in operations."""
        limit = tf.constant(clip_norm / math.sqrt(self.call.workers), tf.float64)
        clips = tf.math.is_finite(norm) & (norm > limit)
        return tf.where(clips, limit / norm, tf.ones((), tf.float64))
