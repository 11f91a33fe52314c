"""One training step's exchange as graph operations: all variables, committed together or not at all."""

from __future__ import annotations

import functools
from typing import Any, Literal

import horovod.tensorflow as hvd
import numpy as np
import tensorflow as tf

from horovod_dgc import transport
from horovod_dgc.hierarchy import Members
from horovod_dgc.methods.base import Method, Plan, clip_limit
from horovod_dgc.tensorflow import sync
from horovod_dgc.tensorflow.callers import Call
from horovod_dgc.tensorflow.collectives import ALLGATHER, ALLREDUCE, REDUCESCATTER
from horovod_dgc.tensorflow.moments import SecondMoments
from horovod_dgc.tensorflow.operations import PROGRESS, library
from horovod_dgc.tensorflow.takeover import Hyperparameters
from horovod_dgc.tensorflow.tensors import Tensor
from horovod_dgc.transport import Transport

# What travels and comes back, as HorovodDgcFinish names it.
Message = Literal["payloads", "dense", "float32", "float16", "ranges"]
# What an allreduce can take.
SUMS: tuple[Message, ...] = ("dense", "float32", "float16")


class Exchange:
    """One variable's operations in one traced step, which Horovod carries from ``compress`` to ``decompress``.

    Args:
        values: the gradient, or this rank's part of the node's mean gradient, in a dtype that the core reads.
        members: those who exchange it with one another.

    Attributes:
        contribution: what the variable adds to what this worker's variables have to agree upon, once it is open; None
            if that is nothing.
    """

    def __init__(self, step: Step, tensor: Tensor, gradient: tf.Tensor, values: tf.Tensor, members: Members) -> None:
        self._step = step
        self._tensor = tensor
        self._gradient = gradient
        self._values = values
        self._members = members
        plans = [step.method.plan(tensor.shape, start, "last") for start in step.starts]
        plans = plans if members.workers > 1 else [plan.whole() for plan in plans]
        resolved = [transport.resolved(plan, members.workers, step.transport) for plan in plans]
        self._plans = [plan for _, plan in resolved]
        self._messages = [_message(plan, way) for way, plan in resolved]
        codecs = [plan.codec for plan in self._plans]
        self.codec = codecs[0]
        self.contribution: tf.Tensor | None = None
        self._coding = {
            "codecs": [codec.description for codec in codecs],
            "seed": step.method.seed,
            "number": tensor.position,
            "rank": members.process_set.rank(),
        }
        # One number for all stages: those that are summed in halves are summed over the same workers.
        self._summand_scale = min(transport.summand_scale(plan, members.workers) for plan in self._plans)
        used = set(self._messages)
        # Horovod's own allreduce can take what is summed in one and the same way in all stages, unless its sign is
        # wanted, which takes no account of the factors that the allreduce puts in, or a half could not hold them.
        summed = len(used) == 1 and used <= set(SUMS) - {"float16"} and not step.call.grouped
        self.carried = summed and tensor.part is None and not self.codec.votes

    def open(self, unscale: tf.Tensor, hyperparameters: Hyperparameters) -> None:
        """Agree with the other workers upon what the codec has to know beforehand, if it has."""
        self._inputs = (
            self._values,
            self._tensor.variable.handle,
            unscale,
            hyperparameters.momentum,
            hyperparameters.rate,
        )
        self._arithmetic = {
            "identity": self._tensor.identity,
            "label": self._tensor.label,
            "starts": self._step.starts,
            "kept": self._tensor.kept,
            "nesterov": self._step.nesterov,
            "pauses": self._step.pauses,
            **self._coding,
        }
        self._opened = tf.zeros(0, tf.float32)
        self._squares = self._second_moments(unscale)
        count, reduction = self.codec.opening
        if count:
            opening = library.horovod_dgc_open(
                *self._inputs, self._opened, self._squares, self._tensor.state, **self._arithmetic
            )
        if reduction == "quantile":
            self.contribution = opening
        elif count:
            self._opened = hvd.allreduce(
                tf.ensure_shape(opening, [count]),
                op=hvd.Max if reduction == "maximum" else hvd.Sum,
                name=f"{ALLREDUCE}_opening_{self._step.ordinal}_{self._tensor.position}",
                ignore_name_scope=True,
                process_set=self._members.process_set,
            )

    def start(self, settled: tf.Tensor | None) -> None:
        """Propose, and send what was proposed.

        Args:
            settled: what the :attr:`contribution` of all variables came to.
        """
        if self.contribution is not None:
            self._opened = settled
        self.payload, self._stage, self.applied = library.horovod_dgc_propose(
            *self._inputs,
            self._opened,
            self._squares,
            self._tensor.state,
            sample_ratio=self._plans[0].sample_ratio,
            **self._arithmetic,
        )
        self._returned = tf.zeros(0, tf.float32)
        if self.carried:
            self.outgoing = self._summand(self._messages[0])
        else:
            self.outgoing, self._returned = self._send()

    def message(self) -> tf.Tensor:
        """What Horovod is to allreduce: a carried message, or one element holding 1, for what its options make of 1.

        Its name, which Horovod's own collective goes by, is the same on all ranks.
        """
        # Read from a variable: a collective of a constant would be computed once, while the graph is optimised.
        message = self.outgoing if self.carried else self._step.one.read_value()
        return tf.identity(message, name=f"horovod_dgc_{self._step.ordinal}_{self._tensor.position}")

    def finish(self, reduced: tf.Tensor) -> tf.Tensor:
        """Commit and decode, once it is known that the step counts; returns the gradient to apply."""
        result = library.horovod_dgc_finish(
            self._values,
            _bytes(reduced) if self.carried else self.outgoing,
            self.payload,
            self._stage,
            self.applied,
            self._step.skipped,
            tf.ones(1, tf.float32) if self.carried else reduced,
            self._step.loss_scale,
            self._opened,
            self._squares,
            self._returned,
            self._tensor.state,
            kept=self._tensor.kept,
            nesterov=self._step.nesterov,
            masking=self._plans[0].masking,
            messages=self._messages,
            carried=self.carried,
            workers=self._members.workers,
            summand_scale=self._summand_scale,
            **self._coding,
        )
        if self._tensor.part is not None:
            result = tf.reshape(self._step.gather_parts(self._tensor, result), self._tensor.variable.shape)
        return tf.cast(result, self._gradient.dtype)

    def _second_moments(self, unscale: tf.Tensor) -> tf.Tensor:
        """The gradient's, in unscaled units, where the codec wants them and they are known; else without elements."""
        source = self._step.second_moments
        # By then the backward pass has seen all there is.
        with tf.control_dependencies([self._gradient]):
            moments = None if source is None else source.take(self._tensor.variable)
        if moments is None or not self.codec.wants_squares:
            return tf.zeros(0, tf.float32)
        return moments * tf.cast((unscale / self._step.averaged_passes) ** 2, tf.float32)

    def _send(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Exchange the payload in the way of the current stage.

        Returns:
            What came back, as bytes, and what of a sparse allreduce's sum goes to the residual.
        """
        used = sorted(set(self._messages))
        if len(used) == 1:
            return self._exchange(used[0])
        branch = tf.gather([used.index(message) for message in self._messages], self._stage)
        came, returned = tf.switch_case(branch, [functools.partial(self._exchange, message) for message in used])
        return came, returned

    def _exchange(self, message: Message) -> tuple[tf.Tensor, tf.Tensor]:
        kind = ALLREDUCE if message in SUMS else ALLGATHER
        name = f"{kind}_{message}_{self._step.ordinal}_{self._tensor.position}"
        options = {"ignore_name_scope": True, "process_set": self._members.process_set}
        if message == "payloads":
            return hvd.allgather(self.payload, name=name, **options), tf.zeros(0, tf.float32)
        if message == "ranges":
            parts = hvd.alltoall(self.payload, name=f"{name}_parts", **options)
            part, returned = library.horovod_dgc_reduce(parts, self._stage, **self._coding)
            return hvd.allgather(part, name=name, **options), returned
        return _bytes(hvd.allreduce(self._summand(message), op=hvd.Sum, name=name, **options)), tf.zeros(0, tf.float32)

    def _summand(self, message: Message) -> tf.Tensor:
        """The payload in a form that can be summed."""
        if message == "dense":
            dense = library.horovod_dgc_masked(self.payload, self._stage, self._opened, **self._coding)
            return tf.ensure_shape(dense, [self._tensor.numel])
        dtype = tf.float16 if message == "float16" else tf.float32
        summand = tf.bitcast(tf.reshape(self.payload, [-1, dtype.size]), dtype)
        return summand * tf.constant(self._summand_scale, dtype) if message == "float16" else summand


def _bytes(values: tf.Tensor) -> tf.Tensor:
    return tf.reshape(tf.bitcast(values, tf.uint8), [-1])


def _message(plan: Plan, way: Transport) -> Message:
    if way != "allreduce":
        return "payloads" if way == "gather" else "ranges"
    if plan.summable is None:
        return "dense"
    return "float16" if plan.summable == np.float16 else "float32"


def _settled(exchanges: list[Exchange]) -> tf.Tensor | None:
    """What this worker's variables agree upon among themselves, if they do."""
    parts = [(exchange.codec.description, exchange.contribution) for exchange in exchanges]
    parts = [(codec, part) for codec, part in parts if part is not None]
    if not parts:
        return None
    codecs, openings = zip(*parts)
    return library.horovod_dgc_quantile(openings, codecs=codecs)


class Step:
    """The operations of one call of Horovod's reducer, in the graph that holds the gradients.

    Args:
        call: the call, with all its gradients.
        loss_scale: factor that all gradients carry.
        second_moments: where the gradients' are to be had; None for their own squares.
        averaged_passes: number of backward passes whose gradients have been averaged, and so divided by it.
        exchanged: position in ``call`` and tensor of each dense gradient that is not empty.
        ordinal: number of the Compression in this process, the same on all ranks.
        one: float32 variable of one element that holds 1.
        progress: int64 (len(PROGRESS),) variable.
        starts: first step of each stage of the method's schedule.
        model: all tensors of the model, in its order.
        check_sync: every so many exchanges compare their variables across ranks; 0 for never.
        nodes: the ranks of this rank's node, and those of its place on all nodes; None where all exchange with all.
    """

    def __init__(
        self,
        *,
        method: Method,
        call: Call,
        exchanged: dict[int, Tensor],
        hyperparameters: Hyperparameters,
        loss_scale: tf.Tensor,
        second_moments: SecondMoments | None,
        averaged_passes: int,
        transport: Transport | None,
        ordinal: int,
        one: tf.Variable,
        progress: tf.Variable,
        starts: list[int],
        model: list[Tensor],
        check_sync: int,
        nodes: tuple[Members, Members] | None,
    ) -> None:
        self.method = method
        self.call = call
        self.nesterov = hyperparameters.nesterov
        self.pauses = hyperparameters.pauses
        self.loss_scale = loss_scale
        self.second_moments = second_moments
        self.averaged_passes = averaged_passes
        self.transport = transport
        self.ordinal = ordinal
        self.one = one
        self.starts = starts
        self._nodes = nodes
        # The core reads no float64; what is sent of it has float32 precision at best.
        values = {
            position: tf.cast(gradient, tf.float32) if gradient.dtype == tf.float64 else gradient
            for position, gradient in ((position, call.gradients[position]) for position in exchanged)
        }
        unscales = dict(zip(values, self._unscales(list(values.values()))))
        everyone = Members(call.process_set, call.workers)
        self.exchanges = {}
        for position, tensor in exchanged.items():
            members, own, unscale = everyone, values[position], unscales[position]
            if tensor.part is not None:
                assert nodes is not None
                members, own, unscale = nodes[1], self._scatter_parts(tensor, own, unscale), tf.ones((), tf.float64)
            exchange = Exchange(self, tensor, call.gradients[position], own, members)
            exchange.open(unscale, hyperparameters)
            self.exchanges[position] = exchange
        exchanges = list(self.exchanges.values())
        settled = _settled(exchanges)
        for exchange in exchanges:
            exchange.start(settled)
        applied = [exchange.applied for exchange in exchanges]
        first = min(tensor.position for tensor in exchanged.values())
        nonfinite = hvd.allreduce(
            library.horovod_dgc_nonfinite(applied),
            op=hvd.Sum,
            name=f"{ALLREDUCE}_nonfinite_{ordinal}_{first}",
            ignore_name_scope=True,
            process_set=call.process_set,
        )
        # The waiting that is counted ends when everything is there.
        awaited = [exchange.outgoing for exchange in exchanges]
        if check_sync:
            name = f"{ALLGATHER}_sync_{ordinal}_{first}"
            awaited.append(sync.require(model, call, progress.read_value()[PROGRESS.index("steps")], check_sync, name))
        with tf.control_dependencies(awaited):
            self.skipped = library.horovod_dgc_conclude(nonfinite, applied, progress.handle)

    def gather_parts(self, tensor: Tensor, part: tf.Tensor) -> tf.Tensor:
        """The parts of all ranks of this node, one after another."""
        assert self._nodes is not None
        name = f"{ALLGATHER}_node_{self.ordinal}_{tensor.position}"
        return hvd.allgather(part, name=name, ignore_name_scope=True, process_set=self._nodes[0].process_set)

    def _scatter_parts(self, tensor: Tensor, values: tf.Tensor, unscale: Any) -> tf.Tensor:
        """This rank's part of the mean over the ranks of this node of ``unscale`` times the gradient, in float32."""
        assert self._nodes is not None and tensor.part is not None
        # Sums over a node's workers have more bits than a half has.
        rows = tf.reshape(tf.cast(values, tf.float32), [-1, tensor.part.shape[1]]) * tf.cast(unscale, tf.float32)
        part = hvd.reducescatter(
            rows,
            op=hvd.Average,
            name=f"{REDUCESCATTER}_{self.ordinal}_{tensor.position}",
            ignore_name_scope=True,
            process_set=self._nodes[0].process_set,
        )
        return tf.ensure_shape(part, tensor.part.shape)

    def _unscales(self, gradients: list[tf.Tensor]) -> list[Any]:
        """Factor of each gradient: inverse loss scale, and local clipping where the method asks for it."""
        inverse = 1.0 / self.loss_scale
        limit = self.method.clip_norm
        if limit is None:
            return [inverse] * len(gradients)
        squares = [library.horovod_dgc_sum_squares(gradient) for gradient in gradients]
        if self.method.clip_scope == "tensor":
            return [inverse * self._clip(tf.sqrt(square) * inverse, limit) for square in squares]
        return [self._clip(tf.sqrt(tf.add_n(squares)) * inverse, limit) * inverse] * len(gradients)

    def _clip(self, norm: tf.Tensor, clip_norm: float) -> tf.Tensor:
        """:func:`horovod_dgc.methods.base.clip_factor` in operations."""
        workers = self.call.workers
        reduced = workers if self.call.op == hvd.Sum else 1
        limit = tf.constant(clip_limit(clip_norm, workers, reduced), tf.float64)
        clips = tf.math.is_finite(norm) & (norm > limit)
        return tf.where(clips, limit / norm, tf.ones((), tf.float64))
