"""``Compression``: a method as the ``compression=`` of unmodified ``hvd.DistributedOptimizer``."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import sys
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import horovod.torch as hvd
import torch
from torch.nn.parameter import is_lazy

import horovod_dgc
from horovod_dgc import _checks, agreement, sync
from horovod_dgc.hierarchy import Members, Part, hierarchy
from horovod_dgc.methods.base import Method, Plan, checked
from horovod_dgc.stats import Stats, TensorStats
from horovod_dgc.torch import state as states
from horovod_dgc.torch.applying import Applying, calling_scaler
from horovod_dgc.torch.backends import Backend, plain_torch
from horovod_dgc.torch.collectives import explained, gather_bytes
from horovod_dgc.torch.exchange import Exchange
from horovod_dgc.torch.kernels import backend_for
from horovod_dgc.torch.moments import SecondMoments
from horovod_dgc.torch.node_exchange import NodeExchange
from horovod_dgc.torch.state import Loaded
from horovod_dgc.torch.step import Step, Uncounted
from horovod_dgc.torch.takeover import Takeover, plain_sgd, wrapped_kind
from horovod_dgc.torch.tensors import Tensor, digest
from horovod_dgc.transport import forced

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
# Frames between compress() and the optimizer's method that holds the parameter: a comprehension and its caller.
FRAMES_SEARCHED = 4
# All of this process.
_LIVE: weakref.WeakSet[Compression] = weakref.WeakSet()


class Compression:
    """Exchange gradients by a compression method inside ``hvd.DistributedOptimizer``.

    Each worker holds two float32 values per element of a sparsified tensor (residual and velocity) on the
    parameter's device. A step is a transaction: state changes only after every rank has said that all
    its gradients are finite. If one is not, the affected tensors come back as NaN and the others as zeros on every
    rank, and no state has changed.

    With one worker Horovod calls no compression, and the optimizer runs as it is.

    Args:
        method: for example ``DGC(density=0.001)``.
        optimizer: the optimizer that is about to be wrapped. Of SGD (and subclasses that leave its ``step()`` as it is)
            momentum, dampening, Nesterov and weight decay are applied here, read from the parameter groups at each
            step; other optimizers keep theirs.
        named_parameters: as for ``hvd.DistributedOptimizer``, or the model itself, whose parameters are then read when
            they are first needed, so that lazy modules may get their shapes in between; None numbers them by parameter
            group.
        grad_scaler: the ``GradScaler`` in use, if any: residuals are then held in unscaled units. It is
            needed for every job whose loss is scaled, since the scale changes while residuals wait.
        second_moments: of the model's gradients, for methods that weigh by them, such as ``VarianceBased``; None for
            the squares of each step's gradient, which counts as one sample.
        transport: "auto" picks for each tensor the cheaper of gathered payloads and a dense allreduce of the masked
            tensor, or, where both are long, a sparse allreduce by ranges of coordinates; "gather", "allreduce" and
            "sparse-allreduce" force one. What cannot go by the last one goes by cost.
        hierarchical: average gradients inside a node, uncompressed, and let each of its ranks compress and keep the
            state of its own rows of each tensor, so that a node sends what one rank sends otherwise. True for
            Horovod's nodes, or the number of consecutive ranks that count as one. Start Horovod with
            ``hvd.init(process_sets="dynamic")``.
        backend: "auto" uses the C++ core for host memory, CUDA kernels for GPUs where they have been built, and plain
            torch for other devices; "torch" forces plain torch.
        device_collectives: hand what kernels have made on a GPU to Horovod there, for NCCL; False brings it to pinned
            host memory first, for MPI or Gloo. None does as Horovod has been built, by ``hvd.nccl_built()``.
        agreement_timeout: seconds that the first step waits for all ranks to compare configurations, > 0.
        check_sync: every so many exchanges, the first one included, compare digests of all parameters across ranks
            before anything is sent, and raise the same RuntimeError on all if they differ; 0 for never. Costs a
            SHA-256 of every parameter and one gather of 8 bytes for each.

    Raises:
        ValueError: a wrong option, a parameter of the optimizer without a name, or a name used twice.
    """

    def __init__(
        self,
        method: Method,
        optimizer: torch.optim.Optimizer,
        named_parameters: Iterable[tuple[str, torch.nn.Parameter]] | torch.nn.Module | None = None,
        *,
        grad_scaler: Any = None,
        second_moments: SecondMoments | None = None,
        transport: str = "auto",
        hierarchical: bool | int = False,
        backend: str = "auto",
        device_collectives: bool | None = None,
        agreement_timeout: float = 600.0,
        check_sync: int = 0,
    ) -> None:
        checked(method)
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise ValueError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
        if hasattr(optimizer, "_requires_update"):
            raise ValueError(
                "optimizer must be the one that hvd.DistributedOptimizer is about to wrap, got one that it has. "
                "Make Compression first, and give it to hvd.DistributedOptimizer as compression="
            )
        if grad_scaler is not None and (isinstance(grad_scaler, type) or not hasattr(grad_scaler, "get_scale")):
            raise ValueError(f"grad_scaler must be a GradScaler or None, got {grad_scaler!r}")
        if second_moments is not None and not isinstance(second_moments, SecondMoments):
            raise ValueError(f"second_moments must be a SecondMoments or None, got {second_moments!r}")
        self.method = method
        self._second_moments = second_moments
        self._grad_scaler = grad_scaler
        self._transport = forced(transport)
        self._plain_torch = _checks.one_of("backend", backend, ("auto", "torch")) == "torch"
        if device_collectives is not None:
            _checks.flag("device_collectives", device_collectives)
        self._on_device = bool(hvd.nccl_built()) if device_collectives is None else device_collectives
        self._timeout = _checks.in_range("agreement_timeout", agreement_timeout, 0, math.inf, low_open=True)
        self._check_sync = _checks.whole_number("check_sync", check_sync, 0)
        self._hierarchy = hierarchy(hierarchical, hvd)
        if self._hierarchy is not None and second_moments is not None:
            raise ValueError("second_moments are those of single workers: they do not go with hierarchical")
        # Process sets of Horovod, made at the first exchange, where all ranks are.
        self._nodes: tuple[Members, Members] | None = None
        self._optimizer = optimizer
        given = named_parameters
        self._named = given if given is None or isinstance(given, torch.nn.Module) else list(given)
        for parameter in self._names().values():
            if not is_lazy(parameter):
                method.plan(parameter.shape)
        self._following: dict[int, Tensor] = {}
        self._previous: Tensor | None = None
        self._owner: Any = None
        # Of each distributed optimizer that has exchanged.
        self._owned: dict[Any, tuple[Takeover, Applying]] = {}
        self._step: Step | None = None
        self._momentum = method.corrects_momentum and plain_sgd(type(optimizer))
        if isinstance(optimizer, torch.optim.SGD) and not plain_sgd(type(optimizer)):
            warnings.warn(
                f"{type(optimizer).__name__} has a step() of its own, and so keeps its momentum and weight decay: they "
                "are applied after the exchange"
                + (f", and {type(method).__name__} goes without momentum correction" * method.corrects_momentum),
                stacklevel=2,
            )
        # Known from the first exchange on, or from what has been loaded.
        self._process_set: Any = None
        self._reduction: str | None = None
        # State that has been loaded, and not yet compared with the optimizer's and with the other ranks'.
        self._unproven = False
        self._exchanges = 0
        # In elastic jobs: what fits the state to the ranks that are there, and the squared norms of what was lost.
        self._follow: Callable[[], None] | None = None
        self._lost: list[float] = []
        self._totals = TensorStats()
        self._last = TensorStats()
        self._uncounted: list[Uncounted] = []
        # Whether the ranks have found that their configurations differ.
        self._refused = False
        _LIVE.add(self)

    def compress(self, tensor: torch.Tensor) -> tuple[torch.Tensor, Exchange | NodeExchange]:
        """Called by Horovod with a parameter's gradient: start its exchange.

        Returns:
            What Horovod is to allreduce, and the context for :meth:`decompress`. It is the payload itself where
            that can be summed; otherwise one element holding 1.0, whose reduced value is the factor that the
            user's options (Average or Sum) multiply the sum over workers by.
        """
        entry = self._identify(tensor)
        if self._step is None or self._step.sealed:
            self._step = self._begin()
        elif self._step.given_up or entry in self._step:
            # The exchange before was never synchronized, so nothing of it has been committed.
            self._step.discard()
            self._step = self._begin()
        with explained():
            exchange = self._step.submit(entry, tensor)
        return exchange.message, exchange

    def decompress(self, output: torch.Tensor, ctx: Exchange | NodeExchange | None) -> torch.Tensor:
        """Called by Horovod with the reduced tensor: finish the exchange and return the gradient to apply."""
        if ctx is None:
            owner, _ = self._calling_optimizer()
            self._own(owner)
            takeover, _ = self._owned[owner]
            takeover.refuse_sparse()
            return output
        step = ctx.step
        if step.given_up:
            raise RuntimeError("this step was given up when load_state_dict() replaced the state it had begun with")
        wait = step.waited()
        if not step.sealed:
            self._refuse_unscaled()
            wait += step.seal()
        gradient = ctx.finish(output, wait, *self._counts(step))
        step.leave()
        return gradient

    def stats(self) -> Stats:
        """Counts since the start on this rank: in total, of the last step, and per tensor.

        The residual norms are computed now, reading each residual once.
        """
        self._count_up()
        tensors = {tensor.name: tensor.measured() for tensor in self._tensors}
        self._totals.residual_norm = math.sqrt(sum(t.residual_norm**2 for t in tensors.values()))
        totals, last = dataclasses.replace(self._totals), dataclasses.replace(self._last)
        return Stats(totals, last, tensors, len(self._lost), math.sqrt(sum(self._lost)))

    def state_dict(self) -> dict[str, Any]:
        """This rank's state: all that a resumed job needs beside the model, the optimizer and its schedules.

        Each rank has its own; :func:`~horovod_dgc.torch.save_checkpoint` saves those of all ranks. Between
        ``backward()`` and ``step()`` it is the state before that step. Counts of :meth:`stats` are not part of it.

        Returns:
            Numbers, texts and, under ``"tensors"`` by parameter name, ``shape``, ``stepped``, ``residual``,
            ``velocity`` and ``memory``: float32 on the parameter's device, the first two in its shape; None where
            nothing has been exchanged yet (always with one worker), the optimizer keeps its momentum, or the method
            keeps nothing else. As in torch, they are not copies.
        """
        process_set = self._members(None)
        return states.collect(
            self._tensors,
            self.method,
            rank=process_set.rank(),
            workers=process_set.size(),
            local_size=self._local_size,
            reduction=self._reduction,
            exchanges=self._exchanges,
        )

    def load_state_dict(self, state: Mapping[str, Any], *, process_set: Any = None) -> None:
        """Go on from a state of :meth:`state_dict`, before the first exchange or later.

        The next exchange compares number of exchanges and configuration across ranks once more. A step that is under
        way (after ``backward()``, before ``step()``) is given up: finishing it raises RuntimeError. Other settings of
        the same method are allowed, with a warning on the first rank.

        Args:
            state: this rank's, copied. One without residuals may come from any rank and number of workers.
            process_set: the optimizer's, if that is not the global one and has not exchanged yet.

        Raises:
            ValueError: another version, method, rank, number of workers or set of parameters, other shapes or dtypes,
                values that are not finite, residuals for a job of one worker, or another ``hierarchical``; nothing has
                changed.
        """
        self._prepare_load(state, process_set)()

    def _prepare_load(self, state: Mapping[str, Any], process_set: Any) -> Callable[[], None]:
        """Check a state in full, and return what puts it in place and cannot fail."""
        states.check_header(state, self.method, self._local_size)
        loaded = states.check_tensors(state, self._tensors, self._plans(state["exchanges"]), momentum=self._momentum)
        process_set = self._members(process_set)
        place = (process_set.rank(), process_set.size())
        empty = states.is_empty(state)
        if not empty and hvd.size() == 1:
            raise ValueError(
                "state must have no residuals for a job of one worker, where Horovod calls no compression: they would "
                "never be applied. load_checkpoint(..., resize='drop') drops them"
            )
        if not empty and (state["rank"], state["workers"]) != place:
            raise ValueError(
                f"state must be of rank {place[0]} of {place[1]}, got rank {state['rank']} of {state['workers']}; "
                "load_checkpoint() gives each rank its own, and fits them to another number of workers"
            )

        if state["settings"] != self.method.configuration() and place[0] == 0:
            warnings.warn(
                f"the state was made with {state['settings']}; from here on {self.method.configuration()} applies",
                stacklevel=3,
            )

        def put() -> None:
            if self._step is not None and not self._step.sealed:
                self._step.given_up = True
            self._put(loaded, state["exchanges"], None if empty else state["reduction"], process_set)

        return put

    def _go_on(self, loaded: Iterable[Loaded], exchanges: int, reduction: str | None, process_set: Any) -> None:
        """Go on in an elastic job. Collectives of a step under way went with the job before, so nobody waits."""
        if self._step is not None:
            self._step.given_up = True
        self._step = None
        self._put(loaded, exchanges, reduction, process_set)

    def _put(self, loaded: Iterable[Loaded], exchanges: int, reduction: str | None, process_set: Any) -> None:
        for entry, plan in zip(loaded, self._plans(exchanges)):
            entry.put(plan)
        self._exchanges = exchanges
        self._reduction = reduction
        self._process_set = process_set
        self._unproven = True
        for _, applying in self._owned.values():
            applying.forget()

    def _plans(self, exchanges: int) -> list[Plan]:
        """Of all tensors, in exchange number ``exchanges``."""
        return [self.method.plan(tensor.shape, exchanges) for tensor in self._tensors]

    @property
    def _local_size(self) -> int:
        """Number of ranks that a tensor's state is spread over."""
        return 1 if self._hierarchy is None else self._hierarchy.local_size

    def _members(self, process_set: Any) -> Any:
        """The process set that is meant, as far as is known before the first exchange."""
        if process_set is not None:
            return process_set
        return hvd.global_process_set if self._process_set is None else self._process_set

    def _conclude(self, step: Step) -> tuple[TensorStats, ...]:
        """It is known whether the step counts. Returns the counts to add its own to."""
        # The device has come to the flag of this step, and so to all of the steps before.
        self._count_up()
        if step.abandoned:
            self._totals.skipped += 1
        else:
            self._exchanges += 1
            self._totals.steps += 1
            self._last = TensorStats(steps=1)
        step.count_control(*self._counts(step))
        return self._counts(step)

    def _count_up(self) -> None:
        """Add the counts that were known on a device only."""
        for nonzero, counts in self._uncounted:
            found = nonzero()
            for count in counts:
                count.nonzero += found
        self._uncounted.clear()

    def _counts(self, step: Step) -> tuple[TensorStats, ...]:
        return (self._totals,) if step.abandoned else (self._totals, self._last)

    def _names(self) -> dict[str, torch.nn.Parameter]:
        named = self._named.named_parameters() if isinstance(self._named, torch.nn.Module) else self._named
        return _name(self._optimizer, named)

    @functools.cached_property
    def _tensors(self) -> list[Tensor]:
        """In the order of their names. Made when they are first needed, where the parameters then are."""
        names = self._names()
        for name, parameter in names.items():
            if is_lazy(parameter):
                raise ValueError(
                    f"parameter {name!r} has no shape yet: run a batch through the model before Compression is used"
                )
            self.method.plan(parameter.shape)
        everything = [parameter for group in self._optimizer.param_groups for parameter in group["params"]]
        numbers = {id(parameter): number for number, parameter in enumerate(everything)}
        return [
            Tensor(numbers[id(parameter)], name, parameter, self._backend(parameter), self._part(parameter))
            for name, parameter in sorted(names.items())
        ]

    @functools.cached_property
    def _by_parameter(self) -> dict[int, Tensor]:
        return {id(tensor.parameter): tensor for tensor in self._tensors}

    @functools.cached_property
    def _identity(self) -> str:
        """The parameters' names and shapes: the same on all ranks, and seldom those of another Compression."""
        return "\n".join(f"{tensor.name} {tuple(tensor.parameter.shape)}" for tensor in self._tensors)

    def _part(self, parameter: torch.Tensor) -> Part | None:
        return None if self._hierarchy is None else self._hierarchy.part(parameter.shape, "first")

    def _backend(self, parameter: torch.Tensor) -> Backend:
        return plain_torch(parameter.device) if self._plain_torch else backend_for(parameter.device)

    def _identify(self, tensor: torch.Tensor) -> Tensor:
        """The parameter that a gradient belongs to: Horovod passes the very object ``parameter.grad``.

        Gradients come in much the same order in every step, so the one that followed last time is tried first.
        """
        entry = self._following.get(id(self._previous))
        if entry is None or entry.parameter.grad is not tensor:
            entry = next((t for t in self._tensors if t.parameter.grad is tensor), None)
        if entry is None:
            # With sparse_as_dense the gradient is a fresh copy; the caller knows whose.
            _, parameter = self._calling_optimizer()
            entry = self._by_parameter.get(id(parameter))
        if entry is None:
            raise ValueError(
                f"a gradient of shape {tuple(tensor.shape)} belongs to no parameter that this Compression knows: "
                "give Compression and hvd.DistributedOptimizer the same named_parameters"
            )
        self._following[id(self._previous)] = entry
        self._previous = entry
        return entry

    def _calling_optimizer(self) -> tuple[Any, Any]:
        """The distributed optimizer that is calling, and the parameter it is busy with if its frame says so."""
        frame = sys._getframe(2)
        for _ in range(FRAMES_SEARCHED):
            owner = frame.f_locals.get("self")
            if isinstance(owner, torch.optim.Optimizer) and getattr(owner, "_compression", None) is self:
                return owner, frame.f_locals.get("p")
            if frame.f_back is None:
                break
            frame = frame.f_back
        raise ValueError("Compression works only as the compression= of horovod.torch.DistributedOptimizer")

    def _begin(self) -> Step:
        owner, _ = self._calling_optimizer()
        if self._follow is not None:
            self._follow()
        self._own(owner)
        takeover, applying = self._owned[owner]
        applying.begin()
        if self._check_sync and self._exchanges % self._check_sync == 0:
            self._require_sync(owner.process_set)
        scale = float(self._grad_scaler.get_scale()) if self._grad_scaler is not None else 1.0
        return Step(
            method=self.method,
            number=self._exchanges,
            takeover=takeover,
            applying=applying,
            owner=owner,
            name=self._wire_name,
            transport=self._transport,
            loss_scale=scale,
            expected=len(owner._requires_update),
            token_count=len(self._tensors),
            nodes=self._nodes,
            on_device=self._on_device,
            uncounted=self._uncounted,
            conclude=self._conclude,
            second_moments=self._second_moments,
        )

    def _require_sync(self, members: Any) -> None:
        """Raise unless the ranks' parameters are the same, as they must be before a step's gradients are exchanged."""
        digests = gather_bytes(
            b"".join(digest(tensor.parameter) for tensor in self._tensors),
            f"{sync.NAME}.{self._wire_name}",
            members,
            math.inf,
        )
        names = [tensor.name for tensor in self._tensors]
        sync.require(names, digests, agreement.ranks_of(members), self._exchanges, order=list(self._names()))

    def _own(self, owner: Any) -> None:
        if owner is self._owner and not self._unproven:
            return
        _checks.reduction(getattr(owner, "op", hvd.Adasum), (hvd.Average, hvd.Sum))
        known = self._by_parameter
        unknown = [name for p, name in owner._parameter_names.items() if id(p) not in known and p.requires_grad]
        if unknown:
            raise ValueError(f"named_parameters of Compression lacks {', '.join(unknown)}")
        made_with = type(self._optimizer)
        if owner not in self._owned and wrapped_kind(owner) is not made_with:
            raise ValueError(
                f"optimizer must be the one that hvd.DistributedOptimizer wraps, a {wrapped_kind(owner).__name__}; "
                f"Compression was given a {made_with.__name__}"
            )
        takeover = self._owned[owner][0] if owner in self._owned else Takeover(owner, momentum=self._momentum)
        self._take_names(owner)
        members = owner.process_set
        self._refused = True
        agreement.require(
            self._configuration(owner, takeover),
            agreement.ranks_of(members),
            lambda data, name: gather_bytes(data, name, members, self._timeout),
            identity=self._identity,
            others=[other._identity for other in list(_LIVE) if other is not self and other._may_begin],
        )
        self._refused = False
        reduction = "average" if owner.op == hvd.Average else "sum"
        if self._unproven:
            self._prove(members, reduction, takeover)
        if self._hierarchy is not None and self._nodes is None:
            self._nodes = self._hierarchy.members(members)
        if owner not in self._owned:
            takeover.attach()
            scaled = self._grad_scaler is not None
            applying = Applying(owner, takeover, self._tensors, self._unfinished, scaled=scaled)
            applying.attach()
            self._owned[owner] = takeover, applying
        self._owner = owner
        self._process_set, self._reduction = members, reduction

    @property
    def _may_begin(self) -> bool:
        """Whether its ranks have still to compare configurations."""
        ready = "_tensors" in self.__dict__ or not any(map(is_lazy, self._names().values()))
        return (self._owner is None or self._unproven) and not self._refused and ready

    def _refuse_unscaled(self) -> None:
        """Raise if a GradScaler has unscaled, or looked at, gradients that have not been exchanged yet."""
        known = getattr(self._grad_scaler, "_per_optimizer_states", {}).get(id(self._owner), {})
        if calling_scaler() is not None or getattr(known.get("stage"), "name", "") == "UNSCALED":
            raise RuntimeError(
                "scaler.step() or scaler.unscale_() was called before the gradients had been exchanged. Write "
                "optimizer.synchronize(); scaler.unscale_(optimizer); with optimizer.skip_synchronize(): "
                "scaler.step(optimizer) (docs/pytorch.md, Mixed precision)"
            )

    def _unfinished(self) -> str | None:
        """The name of a parameter whose gradient waits for ``synchronize()``; None if there is none."""
        return None if self._step is None else self._step.unfinished()

    def _take_names(self, owner: Any) -> None:
        """Call collectives after what Horovod calls the parameters: that no two optimizers in flight have in common."""
        for tensor in self._tensors:
            tensor.wire_name = owner._parameter_names.get(tensor.parameter, tensor.name)
        names = "\n".join(sorted(owner._parameter_names.values()))
        self._wire_name = hashlib.sha256(names.encode()).hexdigest()[:16]

    def _prove(self, members: Any, reduction: str, takeover: Takeover) -> None:
        """Compare what has been loaded with the optimizer, which only an exchange shows."""
        if self._reduction not in (None, reduction):
            raise ValueError(f"op must be that of the loaded state, {self._reduction}, got {reduction}")
        place, expected = ((s.rank(), s.size()) for s in (members, self._process_set))
        if self._reduction is not None and place != expected:
            raise ValueError(
                f"the state was loaded for rank {expected[0]} of {expected[1]}, but in the optimizer's process_set "
                f"this is rank {place[0]} of {place[1]}: load with process_set="
            )
        for tensor in self._tensors:
            if tensor.residual is not None:
                # The loaded velocity stands in its place.
                takeover.momentum_buffer(tensor.parameter)
        self._compare_velocities(members)
        self._unproven = False

    def _compare_velocities(self, members: Any) -> None:
        """Find out which of the loaded velocities are common, where that decides how a tensor goes on."""
        loaded = [
            tensor
            for tensor, plan in zip(self._tensors, self._plans(self._exchanges))
            if tensor.velocity is not None and tensor.part is None and plan.momentum == "local" and plan.lossless
        ]
        if not loaded:
            return
        name = f"horovod_dgc.velocities.{self._wire_name}"
        own = b"".join(digest(tensor.velocity) for tensor in loaded if tensor.velocity is not None)
        gathered = gather_bytes(own, name, members, self._timeout)
        rows = [gathered[i * len(own) : (i + 1) * len(own)] for i in range(members.size())]
        for number, tensor in enumerate(loaded):
            span = slice(number * sync.DIGEST_NBYTES, (number + 1) * sync.DIGEST_NBYTES)
            tensor.common = len({row[span] for row in rows}) == 1

    def _configuration(self, owner: Any, takeover: Takeover) -> str:
        scaled = "with" if self._grad_scaler is not None else "without"
        lines = [
            f"horovod_dgc {horovod_dgc.__version__}",
            f"method {self.method.configuration()}",
            f"transport {self._transport or 'auto'}, {scaled} grad_scaler, check_sync {self._check_sync}",
            f"payloads of GPU tensors {'on the GPU' if self._on_device else 'by way of host memory'}",
            f"optimizer {type(owner).__name__}, momentum corrected: {takeover.momentum}",
            f"exchanges done: {self._exchanges}",
        ]
        if self._hierarchy is not None:
            lines.append(self._hierarchy.configuration)
        lines += [
            f"parameter {tensor.name} {tuple(tensor.parameter.shape)} {tensor.parameter.dtype}, number {tensor.number}"
            + f", for Horovod {tensor.wire_name}" * (tensor.wire_name != tensor.name)
            for tensor in self._tensors
            if tensor.parameter.requires_grad
        ]
        return "\n".join(lines)


def _name(
    optimizer: torch.optim.Optimizer, named_parameters: Iterable[tuple[str, torch.nn.Parameter]] | None
) -> dict[str, torch.nn.Parameter]:
    """Name of every parameter of the optimizer, in the order given, checked."""
    groups = [group["params"] for group in optimizer.param_groups]
    in_optimizer = {id(p): p for params in groups for p in params}
    if named_parameters is None:
        pairs = [(f"{i}.{j}", p) for i, params in enumerate(groups) for j, p in enumerate(params)]
    else:
        pairs = list(named_parameters)
    names: dict[str, torch.nn.Parameter] = {}
    for pair in pairs:
        if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[1], torch.Tensor)):
            raise ValueError(f"named_parameters must hold (name, parameter) pairs, got {pair!r}")
        name, parameter = pair
        if name in names:
            raise ValueError(f"named_parameters must have unique names, got {name!r} twice")
        if id(parameter) in in_optimizer:
            names[name] = parameter
    named = {id(p) for p in names.values()}
    for position, parameter in enumerate(in_optimizer.values()):
        if id(parameter) not in named:
            raise ValueError(
                f"named_parameters lacks a name for parameter {position} of the optimizer, "
                f"of shape {'still unknown' if is_lazy(parameter) else tuple(parameter.shape)}"
            )
    for name, parameter in names.items():
        if parameter.requires_grad and parameter.dtype not in DTYPES:
            allowed = ", ".join(str(dtype) for dtype in DTYPES)
            raise ValueError(f"parameter {name!r} must have one of the dtypes {allowed}, got {parameter.dtype}")
    # A tied parameter may stand under several names; the one used must be the same on every rank.
    by_id: dict[int, str] = {}
    for name in sorted(names):
        by_id.setdefault(id(names[name]), name)
    used = set(by_id.values())
    return {name: parameter for name, parameter in names.items() if name in used}
