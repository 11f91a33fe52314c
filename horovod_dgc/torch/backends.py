"""Where the arithmetic of a plan runs: the C++ core for tensors in host memory, plain torch for any device.

Both give the same payload bytes and the same state for the same input.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch

from horovod_dgc import _core
from horovod_dgc.method import ByteArray, FloatArray, Plan


class Proposal(Protocol):
    """What one tensor would send and change; nothing has changed yet."""

    @property
    def finite(self) -> bool: ...

    @property
    def payload(self) -> ByteArray: ...

    @property
    def sent(self) -> Any: ...

    @property
    def overflow(self) -> int: ...


@dataclass(frozen=True)
class Context:
    """What a codec's arithmetic in one step depends on besides the arrays.

    Attributes:
        randomness: of the tensor in this step.
        opened: float32, in host memory: what the opening round came to; None without one.
        memory: view of what the codec keeps between steps; None if that is nothing.
        squares: view of this step's second moments; None for the gradient's own squares.
    """

    randomness: _core.Randomness
    opened: FloatArray | None = None
    memory: Any = None
    squares: Any = None

    def given(self, *names: str) -> dict[str, Any]:
        return {name: getattr(self, name) for name in names}


class Backend(Protocol):
    """The operations that the adapter needs, on whatever ``view`` makes of a flat tensor."""

    def view(self, flat: torch.Tensor) -> Any: ...

    def sum_squares(self, grad: Any) -> float: ...

    def open(
        self,
        plan: Plan,
        update: _core.Update,
        grad: Any,
        residual: Any,
        velocity: Any,
        weights: Any,
        context: Context,
    ) -> tuple[bool, FloatArray]: ...

    def propose(
        self,
        plan: Plan,
        update: _core.Update,
        grad: Any,
        residual: Any,
        velocity: Any,
        weights: Any,
        context: Context,
    ) -> Any: ...

    def commit(
        self,
        plan: Plan,
        proposal: Any,
        update: _core.Update,
        grad: Any,
        residual: Any,
        velocity: Any,
        weights: Any,
        context: Context,
        zero_grad: bool,
    ) -> None: ...

    def masked(self, proposal: Any, out: Any) -> None: ...

    def decode_add(self, plan: Plan, payloads: ByteArray, out: Any, scale: float, context: Context) -> None: ...

    def absorb(self, plan: Plan, payloads: ByteArray, memory: Any) -> None: ...

    def apply_momentum(self, aggregated: Any, velocity: Any, update: _core.Update) -> None: ...


# Below this size a second thread costs more to start than it saves.
THREADED_NUMEL = 1 << 20


class CoreBackend:
    """The C++ core on NumPy views of tensors in host memory (float32, float16 or bfloat16)."""

    def _threads(self, numel: int) -> int:
        return torch.get_num_threads() if numel >= THREADED_NUMEL else 1

    def view(self, flat: torch.Tensor) -> Any:
        return flat.view(torch.uint16).numpy() if flat.dtype == torch.bfloat16 else flat.numpy()

    def sum_squares(self, grad: Any) -> float:
        return _core.sum_squares(grad, threads=self._threads(grad.size))

    def open(
        self,
        plan: Plan,
        update: _core.Update,
        grad: Any,
        residual: Any,
        velocity: Any,
        weights: Any,
        context: Context,
    ) -> tuple[bool, FloatArray]:
        return _core.open(
            plan.codec,
            update,
            grad,
            residual,
            velocity,
            weights,
            threads=self._threads(plan.numel),
            **context.given("randomness", "memory"),
        )

    def propose(
        self,
        plan: Plan,
        update: _core.Update,
        grad: Any,
        residual: Any,
        velocity: Any,
        weights: Any,
        context: Context,
    ) -> _core.Proposal:
        return _core.propose(
            plan.codec,
            update,
            grad,
            residual,
            velocity,
            weights,
            sample_ratio=plan.sample_ratio,
            threads=self._threads(plan.numel),
            **context.given("randomness", "opened", "memory", "squares"),
        )

    def commit(
        self,
        plan: Plan,
        proposal: _core.Proposal,
        update: _core.Update,
        grad: Any,
        residual: Any,
        velocity: Any,
        weights: Any,
        context: Context,
        zero_grad: bool = False,
    ) -> None:
        proposal.commit(
            update,
            grad,
            residual,
            velocity,
            weights,
            mask_velocity=plan.masking,
            zero_grad=zero_grad,
            threads=self._threads(plan.numel),
            **context.given("memory", "squares"),
        )

    def masked(self, proposal: _core.Proposal, out: Any) -> None:
        proposal.masked(out)

    def decode_add(self, plan: Plan, payloads: ByteArray, out: Any, scale: float, context: Context) -> None:
        threads = self._threads(payloads.size)
        plan.codec.decode_add(payloads, out, scale, threads, **context.given("randomness", "opened"))

    def absorb(self, plan: Plan, payloads: ByteArray, memory: Any) -> None:
        plan.codec.absorb(payloads, memory)

    def apply_momentum(self, aggregated: Any, velocity: Any, update: _core.Update) -> None:
        _core.apply_momentum(aggregated, velocity, update)


class TorchProposal:
    """A proposal whose dense parts stay on the tensor's device; the k sent coordinates are coded on the host."""

    def __init__(
        self,
        layout: _core.Layout,
        accumulated: torch.Tensor,
        velocity: torch.Tensor | None,
        randomness: _core.Randomness,
    ) -> None:
        finite = torch.isfinite(accumulated).all()
        if velocity is not None:
            finite &= torch.isfinite(velocity).all()
        self.finite = bool(finite)
        self.overflow = 0
        self.accumulated = accumulated
        self.velocity = velocity
        self.indices = torch.arange(0, device=accumulated.device)
        if not self.finite:
            self.payload = layout.poison()
            self.sent = np.full(layout.k, np.nan, np.float32)
            return
        self.indices = _largest(accumulated, layout.k)
        values = accumulated[self.indices].cpu().numpy()
        self.payload, self.sent = layout.pack(self.indices.cpu().numpy().astype(np.uint32), values, randomness)


class HostProposal:
    """A proposal made by the core on copies in host memory, for codecs that have no torch operations."""

    def __init__(self, proposal: _core.Proposal) -> None:
        self.proposal = proposal
        self.finite = proposal.finite
        self.payload = proposal.payload
        self.sent = proposal.sent
        self.overflow = proposal.overflow


class TorchBackend:
    """Plain torch operations on flat tensors of any device: slow, and bit for bit what the core computes.

    Used where the core cannot reach the memory, and to check one against the other. The largest coordinates are
    selected on the device; all other codecs work on copies in host memory.
    """

    def __init__(self) -> None:
        self._core = CoreBackend()

    def view(self, flat: torch.Tensor) -> torch.Tensor:
        return flat

    def sum_squares(self, grad: torch.Tensor) -> float:
        return float(grad.double().square().sum())

    def open(
        self,
        plan: Plan,
        update: _core.Update,
        grad: torch.Tensor,
        residual: torch.Tensor | None,
        velocity: torch.Tensor | None,
        weights: torch.Tensor | None,
        context: Context,
    ) -> tuple[bool, FloatArray]:
        return self._core.open(plan, update, *self._copies(grad, residual, velocity, weights, context))

    def propose(
        self,
        plan: Plan,
        update: _core.Update,
        grad: torch.Tensor,
        residual: torch.Tensor | None,
        velocity: torch.Tensor | None,
        weights: torch.Tensor | None,
        context: Context,
    ) -> TorchProposal | HostProposal:
        layout = plan.codec.layout
        if layout is None:
            arrays = self._copies(grad, residual, velocity, weights, context)
            return HostProposal(self._core.propose(plan, update, *arrays))
        accumulated, moved = _accumulate(update, grad, residual, velocity, weights)
        return TorchProposal(layout, accumulated, moved, context.randomness)

    def commit(
        self,
        plan: Plan,
        proposal: TorchProposal | HostProposal,
        update: _core.Update,
        grad: torch.Tensor,
        residual: torch.Tensor | None,
        velocity: torch.Tensor | None,
        weights: torch.Tensor | None,
        context: Context,
        zero_grad: bool,
    ) -> None:
        if isinstance(proposal, HostProposal):
            copies = self._copies(grad, residual, velocity, weights, context)
            self._core.commit(plan, proposal.proposal, update, *copies)
            for tensor, copy in ((residual, copies[1]), (velocity, copies[2]), (context.memory, copies[4].memory)):
                if tensor is not None:
                    tensor.copy_(torch.from_numpy(copy))
        else:
            self._commit(plan, proposal, residual, velocity)
        if zero_grad:
            grad.zero_()

    def masked(self, proposal: TorchProposal | HostProposal, out: torch.Tensor) -> None:
        if isinstance(proposal, HostProposal):
            dense = np.empty(out.numel(), np.float32)
            proposal.proposal.masked(dense)
            out.copy_(torch.from_numpy(dense))
            return
        if not proposal.finite:
            out.fill_(float("nan"))
            return
        out.zero_()
        out[proposal.indices] = torch.from_numpy(proposal.sent).to(out.device)

    def decode_add(self, plan: Plan, payloads: ByteArray, out: torch.Tensor, scale: float, context: Context) -> None:
        layout = plan.codec.layout
        if layout is None:
            total = out.cpu().numpy().copy()
            self._core.decode_add(plan, payloads, total, scale, context)
            out.copy_(torch.from_numpy(total))
            return
        # One payload after another: within one, no coordinate repeats, so the sums come out in the same order on
        # every rank. A single index_add_ of all of them would not promise that.
        for payload in payloads:
            indices, values = layout.unpack(payload)
            where = torch.from_numpy(indices.astype(np.int64)).to(out.device)
            out[where] += torch.from_numpy(values).to(out.device) * scale

    def absorb(self, plan: Plan, payloads: ByteArray, memory: torch.Tensor) -> None:
        absorbed = self._copy(memory)
        plan.codec.absorb(payloads, absorbed)
        memory.copy_(torch.from_numpy(absorbed))

    def _copy(self, tensor: torch.Tensor | None) -> Any:
        return None if tensor is None else self._core.view(tensor.detach().cpu().clone())

    def _copies(self, *arrays: Any) -> list[Any]:
        """Copies in host memory of tensors, the last of which is a context."""
        *tensors, context = arrays
        held = replace(context, memory=self._copy(context.memory), squares=self._copy(context.squares))
        return [*map(self._copy, tensors), held]

    def _commit(
        self,
        plan: Plan,
        proposal: TorchProposal,
        residual: torch.Tensor | None,
        velocity: torch.Tensor | None,
    ) -> None:
        sent = torch.from_numpy(proposal.sent).to(proposal.indices.device)
        if residual is not None:
            residual.copy_(proposal.accumulated)
            residual[proposal.indices] -= sent
        if velocity is not None and proposal.velocity is not None:
            velocity.copy_(proposal.velocity)
            if plan.masking and not plan.every_coordinate:
                velocity[proposal.indices[sent != 0]] = 0

    def apply_momentum(self, aggregated: torch.Tensor, velocity: torch.Tensor, update: _core.Update) -> None:
        moved = _velocity(update, aggregated, velocity)
        velocity.copy_(moved)
        aggregated.copy_(aggregated + moved * update.momentum if update.nesterov else moved)


def backend_for(device: torch.device) -> Backend:
    """The C++ core where it can reach the tensor's memory, plain torch elsewhere."""
    return CoreBackend() if device.type == "cpu" else TorchBackend()


def _velocity(update: _core.Update, grad: torch.Tensor, velocity: torch.Tensor) -> torch.Tensor:
    moved = velocity * update.momentum + grad * (1 - update.dampening)
    tiny = torch.finfo(torch.float32).tiny
    return torch.where(moved.abs() < tiny, torch.zeros_like(moved), moved)


def _accumulate(
    update: _core.Update,
    grad: torch.Tensor,
    residual: torch.Tensor | None,
    velocity: torch.Tensor | None,
    weights: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The accumulated gradient and velocity after this step, each operation rounded as in the core."""
    scaled = grad.float() * update.unscale
    if weights is not None:
        scaled = scaled + weights.float() * update.weight_decay
    moved = None if velocity is None else _velocity(update, scaled, velocity)
    step = scaled if moved is None else scaled + moved * update.momentum if update.nesterov else moved
    return step if residual is None else residual + step, moved


def _largest(accumulated: torch.Tensor, count: int) -> torch.Tensor:
    """Ascending indices of the ``count`` entries of largest magnitude, ties going to the lower index."""
    numel = accumulated.numel()
    if count == numel:
        return torch.arange(numel, device=accumulated.device)
    magnitude = accumulated.abs()
    smallest = torch.topk(magnitude, count, sorted=False).values.min()
    above = magnitude > smallest
    tied = magnitude == smallest
    wanted = count - above.sum()
    return torch.nonzero(above | (tied & (tied.cumsum(0) <= wanted))).squeeze(1)
