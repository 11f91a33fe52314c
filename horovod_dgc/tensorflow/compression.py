"""``Compression``: a method as the ``compression=`` of Horovod's optimizers and tapes for TensorFlow."""

from __future__ import annotations

import itertools
import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import horovod.tensorflow as hvd
import tensorflow as tf

import horovod_dgc
from horovod_dgc import _checks, agreement
from horovod_dgc.hierarchy import Hierarchy, Members, hierarchy
from horovod_dgc.methods.base import Method, checked
from horovod_dgc.resize import Reduction
from horovod_dgc.stats import Stats, TensorStats
from horovod_dgc.tensorflow import callers
from horovod_dgc.tensorflow.callers import Call
from horovod_dgc.tensorflow.collectives import gather_bytes
from horovod_dgc.tensorflow.model import Model
from horovod_dgc.tensorflow.moments import SecondMoments
from horovod_dgc.tensorflow.operations import PROGRESS
from horovod_dgc.tensorflow.step import Exchange, Step
from horovod_dgc.tensorflow.takeover import KERAS_3, Takeover, is_optimizer, loss_scale
from horovod_dgc.tensorflow.tensors import Tensor, by_name
from horovod_dgc.transport import Transport, forced

# What says whether the gradients of a step are finite.
FLAG_NBYTES = 4

_ordinals = itertools.count()


class Compression(tf.Module):  # type: ignore[misc]
    """Exchange gradients by a compression method inside Horovod's optimizers and tapes.

    Each worker holds two float32 values per element of a sparsified variable (residual and velocity), in
    ``tf.Variable`` objects that ``tf.train.Checkpoint(compression=...)`` saves and restores; they differ from rank to
    rank, so each rank needs a checkpoint of its own. A step is a transaction: if a gradient is not finite on any
    rank, the affected ones come back as NaN and the others as zeros on every rank, and no state has changed.

    Everything that happens at run time is a native operation in the graph; Python runs only while a graph is traced.
    With one worker Horovod calls no compression, and the optimizer runs as it is.

    Args:
        method: for example ``DGC(density=0.001)``.
        optimizer: the optimizer that applies the gradients, before Horovod wraps it: of ``tf.keras.optimizers``
            (also a ``LossScaleOptimizer``) or ``tf.compat.v1.train``. Of Keras's SGD, momentum and Nesterov
            momentum are applied here, before compression.
        variables: the model, whose trainable variables are read when they are first needed, and again where it has got
            more; or the variables themselves, after the model is built. In the same order on all ranks.
        second_moments: of the model's gradients, for methods that weigh by them, such as ``VarianceBased``; None for
            the squares of each step's gradient, which counts as one sample.
        transport: "auto" picks for each tensor the cheaper of gathered payloads and a dense allreduce of the masked
            tensor, or, where both are long, a sparse allreduce by ranges of coordinates; "gather", "allreduce" and
            "sparse-allreduce" force one. What cannot go by the last one goes by cost.
        hierarchical: average gradients inside a node, uncompressed, and let each of its ranks compress and keep the
            state of its own rows of each variable, so that a node sends what one rank sends otherwise. True for
            Horovod's nodes, or the number of consecutive ranks that count as one. Start Horovod with
            ``hvd.init(process_sets="dynamic")``.
        agreement_timeout: seconds that the first trace waits for all ranks to compare configurations, > 0.
        check_sync: every so many exchanges, the first one included, compare digests of all variables across ranks
            before anything is applied, and fail with the same InvalidArgumentError on all if they differ; 0 for never.
            Costs a FarmHash of every variable and one gather of 8 bytes for each. Ranks that have restored
            checkpoints of different steps would wait for one another.

    Raises:
        ValueError: a wrong option, or variables that are missing, repeated or of a wrong dtype.
    """

    def __init__(
        self,
        method: Method,
        optimizer: Any,
        variables: Any,
        *,
        second_moments: SecondMoments | None = None,
        transport: str = "auto",
        hierarchical: bool | int = False,
        agreement_timeout: float = 600.0,
        check_sync: int = 0,
    ) -> None:
        checked(method)
        stages = method.stages()
        if stages is None:
            raise ValueError(
                f"method must have a density schedule that is known beforehand, such as Warmup(...), got {method!r}: "
                "TensorFlow's graph asks no Python code at run time"
            )
        if not is_optimizer(optimizer):
            raise ValueError(f"optimizer must be a Keras or tf.compat.v1.train optimizer, got {optimizer!r}")
        if second_moments is not None and not isinstance(second_moments, SecondMoments):
            raise ValueError(f"second_moments must be a SecondMoments or None, got {second_moments!r}")
        nodes = hierarchy(hierarchical, hvd)
        if nodes is not None and second_moments is not None:
            raise ValueError("second_moments are those of single workers: they do not go with hierarchical")
        wanted = forced(transport)
        timeout = _checks.in_range("agreement_timeout", agreement_timeout, 0, math.inf, low_open=True)
        every = _checks.whole_number("check_sync", check_sync, 0)
        super().__init__(name="compression")
        takeover = Takeover(optimizer, wanted=method.corrects_momentum)

        def make(position: int, name: str, variable: tf.Variable) -> Tensor:
            part = None if nodes is None else nodes.part(variable.shape, "last")
            shape = variable.shape if part is None else part.shape
            plans = [method.plan(shape, step, "last") for step in (*stages, None)]
            tensor = Tensor(position, name, variable, plans[-1], takeover.corrects(plans), part)
            takeover.attach(tensor)
            return tensor

        # Read again: what is kept in a module becomes a list that checkpoints follow.
        self.tensors: list[Tensor] = []
        with tf.init_scope(), tf.device("CPU:0"):
            self.progress = tf.Variable(tf.zeros(len(PROGRESS), tf.int64), trainable=False, name="progress")
        self._graphs = Graphs(
            method=method,
            optimizer=optimizer,
            takeover=takeover,
            model=Model(variables, make, self.tensors),
            tensors=self.tensors,
            progress=self.progress,
            second_moments=second_moments,
            transport=wanted,
            timeout=timeout,
            check_sync=every,
            hierarchy=nodes,
        )
        takeover.derive()
        weakref.finalize(self, takeover.take_leave)

    # What follows chooses operations in Python alone; left to AutoGraph, tracing takes several times as long.
    @tf.autograph.experimental.do_not_convert  # type: ignore[untyped-decorator]
    def compress(self, tensor: tf.Tensor) -> tuple[tf.Tensor, Exchange | None]:
        """Called by Horovod, while a graph is traced, with a variable's gradient.

        Returns:
            What Horovod is to allreduce, and the context for :meth:`decompress`.
        """
        call = callers.find(tensor)
        if tf.executing_eagerly():
            raise ValueError(
                "Compression exchanges gradients in a graph, which tf.config.run_functions_eagerly(True) takes away: "
                "leave it out, or write model.compile(..., run_eagerly=True), which Compression goes with"
            )
        exchange = self._graphs.exchange(call)
        return (tensor, None) if exchange is None else (exchange.message(), exchange)

    @tf.autograph.experimental.do_not_convert  # type: ignore[untyped-decorator]
    def decompress(self, tensor: tf.Tensor, ctx: Exchange | None) -> tf.Tensor:
        """Called by Horovod with the reduced tensor; returns the gradient to apply."""
        return tensor if ctx is None else ctx.finish(tensor)

    def count_pass(self, variables: Sequence[Any], gradients: Sequence[Any]) -> None:
        """Called by ``DistributedOptimizer`` with the gradients of one of several backward passes of a step."""
        if self._graphs.second_moments is not None:
            self._graphs.second_moments.count_pass(variables, gradients)

    def require_own(self, optimizer: Any) -> None:
        """Called by ``DistributedOptimizer``: raise ValueError unless this was made with the optimizer."""
        self._graphs.require_own(optimizer)

    def stats(self) -> Stats:
        """Counts since the start on this rank: in total, of the last step, and per variable; eager.

        ``wait`` is measured for the whole step: from the last variable's encoding to the arrival of all payloads.
        """
        pairs = [tensor.measured() for tensor in self.tensors]
        made = by_name(PROGRESS, self.progress.numpy())
        total = _total([pair[0] for pair in pairs], made["steps"], made["skipped"], made["wait"])
        last = _total([pair[1] for pair in pairs], min(made["steps"], 1), 0, made["last_wait"])
        tensors = {tensor.label: pair[0] for tensor, pair in zip(self.tensors, pairs)}
        lost = self._graphs.lost
        return Stats(total, last, tensors, len(lost), math.sqrt(sum(lost)))


class Graphs:
    """What a Compression keeps while graphs are traced; none of it goes into checkpoints."""

    def __init__(
        self,
        *,
        method: Method,
        optimizer: Any,
        takeover: Takeover,
        model: Model,
        tensors: list[Tensor],
        progress: tf.Variable,
        second_moments: SecondMoments | None,
        transport: Transport | None,
        timeout: float,
        check_sync: int,
        hierarchy: Hierarchy | None,
    ) -> None:
        self.method = method
        self.hierarchy = hierarchy
        # Process sets of Horovod, made before the first step, where all ranks are.
        self._nodes: tuple[Members, Members] | None = None
        self._optimizer = optimizer
        self._takeover = takeover
        self.model = model
        self._tensors = tensors
        self._progress = progress
        self.second_moments = second_moments
        self._transport = transport
        self.timeout = timeout
        self._check_sync = check_sync
        self._ordinal = next(_ordinals)
        with tf.init_scope(), tf.device("CPU:0"):
            self._one = tf.Variable(tf.ones(1, tf.float32), trainable=False, name="one")
        self._agreed: set[Any] = set()
        self._call: Call | None = None
        self._step: Step | None = None
        # For elastic jobs: what comes before the first step of a job that has changed, what the reduction was, and the
        # squared norms of the residuals of ranks that have been lost.
        self.follow: Callable[[], None] = lambda: None
        self.reduction: Reduction | None = None
        self.lost: list[float] = []

    def forget(self) -> None:
        """Horovod has been started anew, with other ranks: trace, and agree, as for the first time."""
        self._agreed.clear()
        self._call = self._step = None

    def require_own(self, optimizer: Any) -> None:
        self._takeover.require_own(optimizer)

    def exchange(self, call: Call) -> Exchange | None:
        """The exchange of the call's gradient, made together with those of all the other gradients of the call.

        None where there is nobody to exchange with: Horovod traces the call all the same, and never runs it.
        """
        self._takeover.used = True
        if call.workers == 1:
            return None
        if self._call is None or self._call.gradients is not call.gradients:
            self._step = self._trace(call)
            self._call = call
        assert self._step is not None
        return self._step.exchanges.get(call.position)

    def _trace(self, call: Call) -> Step:
        _checks.reduction(call.op, (hvd.Average, hvd.Sum))
        owner = self._takeover.owner(call.holders)
        if not all(self.model.knows(v) for v in call.variables) and self.model.read():
            # More variables than all ranks have agreed upon.
            self._agreed.clear()
        exchanged = self._exchanged(call)
        key = call.process_set.process_set_id
        if key not in self._agreed:
            with tf.init_scope():
                self.follow()
            self._agree(call, exchanged)
            if self.hierarchy is not None and self._nodes is None:
                with tf.init_scope():
                    self._nodes = self.hierarchy.members(call.process_set)
            self._agreed.add(key)
        self.reduction = "sum" if call.op == hvd.Sum else "average"
        starts = self.method.stages()
        assert starts is not None
        # Horovod calls from inside a tf.cond for each variable. A step is about all of them: its operations belong
        # beside the gradients, in the graph around those.
        with call.gradients[call.position].graph.as_default(), tf.device("CPU:0"), tf.name_scope("horovod_dgc"):
            scale = loss_scale([*call.holders, self._optimizer])
            hyperparameters = self._takeover.hyperparameters(owner, eager=call.eager)
            self._takeover.loss_scaled = scale is not None
            with tf.init_scope():
                self._takeover.prepare(owner, call.holders, call.gradients, call.variables)
                self._takeover.activate(owner, call.workers if call.op == hvd.Sum else 1)
            loaded = self._takeover.take_loaded(owner, exchanged.values(), hyperparameters.rate)
            with tf.control_dependencies(loaded):
                return Step(
                    method=self.method,
                    call=call,
                    exchanged=exchanged,
                    hyperparameters=hyperparameters,
                    loss_scale=tf.ones((), tf.float64) if scale is None else scale,
                    second_moments=self.second_moments,
                    averaged_passes=next((h.averaged_passes for h in call.holders if hasattr(h, "averaged_passes")), 1),
                    transport=self._transport,
                    ordinal=self._ordinal,
                    one=self._one,
                    progress=self._progress,
                    starts=list(starts),
                    model=[tensor for tensor in self._tensors if tensor.numel],
                    check_sync=self._check_sync,
                    nodes=self._nodes,
                )

    @property
    def local_size(self) -> int:
        """Number of ranks that a variable's state is spread over."""
        return 1 if self.hierarchy is None else self.hierarchy.local_size

    def _exchanged(self, call: Call) -> dict[int, Tensor]:
        """Tensor of each gradient of the call that is to be exchanged, by the gradient's position."""
        exchanged = {}
        for position, (gradient, variable) in enumerate(zip(call.gradients, call.variables)):
            if gradient is None or isinstance(gradient, tf.IndexedSlices):
                continue
            tensor = self.model.find(variable)
            if tensor.numel:
                exchanged[position] = tensor
        return exchanged

    def _agree(self, call: Call, exchanged: dict[int, Tensor]) -> None:
        lines = [
            f"horovod_dgc {horovod_dgc.__version__}",
            # Horovod's own names follow the order of a graph's operations, so nobody could do without this.
            f"compression number {self._ordinal}: all ranks make, and come to, theirs in the same order",
            f"method {self.method.configuration()}",
            f"transport {self._transport or 'auto'}, Keras {3 if KERAS_3 else 2}, check_sync {self._check_sync}",
            f"optimizer {type(self._takeover.optimizer).__name__}, momentum corrected: {self._takeover.momentum}",
        ]
        if self.hierarchy is not None:
            lines.append(self.hierarchy.configuration)
        # By position: names follow counters of layers, which may differ.
        lines += [
            f"variable {tensor.position} {tuple(tensor.variable.shape)} {tensor.variable.dtype.name}"
            for tensor in exchanged.values()
        ]
        members = call.process_set
        with tf.init_scope():
            agreement.require(
                "\n".join(lines),
                agreement.ranks_of(members),
                lambda data, name: gather_bytes(data, name, members, self.timeout),
            )


def _total(parts: list[TensorStats], steps: int, skipped: int, wait: int) -> TensorStats:
    total = TensorStats(steps=steps, skipped=skipped, wait=wait / 1e9, control=FLAG_NBYTES * (steps + skipped))
    for part in parts:
        for name in ("sent", "control", "inside", "dense", "nonzero", "elements", "overflow", "encode", "decode"):
            setattr(total, name, getattr(total, name) + getattr(part, name))
    total.residual_norm = math.sqrt(sum(part.residual_norm**2 for part in parts))
    return total
