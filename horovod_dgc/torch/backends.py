"""Where the arithmetic of a plan runs: the C++ core for tensors in host memory, plain torch for any device.

Both give the same payload bytes and the same state for the same input.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch

from horovod_dgc import _core
from horovod_dgc.method import ByteArray, Plan


class Proposal(Protocol):
    """What one tensor would send and change; nothing has changed yet."""

    @property
    def finite(self) -> bool: ...

    @property
    def payload(self) -> ByteArray: ...

    @property
    def sent(self) -> Any: ...


class Backend(Protocol):
    """The operations that the adapter needs, on whatever ``view`` makes of a flat tensor."""

    def view(self, flat: torch.Tensor) -> Any: ...

    def sum_squares(self, grad: Any) -> float: ...

    def propose(
        self, plan: Plan, update: _core.Update, grad: Any, residual: Any, velocity: Any, weights: Any
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
        zero_grad: bool,
    ) -> None: ...

    def masked(self, proposal: Any, out: Any) -> None: ...

    def decode_add(self, plan: Plan, payloads: ByteArray, out: Any, scale: float) -> None: ...

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

    def propose(
        self, plan: Plan, update: _core.Update, grad: Any, residual: Any, velocity: Any, weights: Any
    ) -> _core.Proposal:
        return _core.propose(
            plan.layout,
            update,
            grad,
            residual,
            velocity,
            weights,
            sample_ratio=plan.sample_ratio,
            threads=self._threads(plan.numel),
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
        zero_grad: bool,
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
        )

    def masked(self, proposal: _core.Proposal, out: Any) -> None:
        proposal.masked(out)

    def decode_add(self, plan: Plan, payloads: ByteArray, out: Any, scale: float) -> None:
        plan.layout.decode_add(payloads, out, scale=scale, threads=self._threads(payloads.size))

    def apply_momentum(self, aggregated: Any, velocity: Any, update: _core.Update) -> None:
        _core.apply_momentum(aggregated, velocity, update)


class TorchProposal:
    """A proposal whose dense parts stay on the tensor's device; the k sent coordinates are coded on the host."""

    def __init__(self, plan: Plan, accumulated: torch.Tensor, velocity: torch.Tensor | None) -> None:
        finite = torch.isfinite(accumulated).all()
        if velocity is not None:
            finite &= torch.isfinite(velocity).all()
        self.finite = bool(finite)
        self.accumulated = accumulated
        self.velocity = velocity
        self.indices = torch.arange(0, device=accumulated.device)
        if not self.finite:
            self.payload = plan.layout.poison()
            self.sent = np.full(plan.sent, np.nan, np.float32)
            return
        self.indices = _largest(accumulated, plan.sent)
        values = accumulated[self.indices].cpu().numpy()
        self.payload, self.sent = plan.layout.pack(self.indices.cpu().numpy().astype(np.uint32), values)


class TorchBackend:
    """Plain torch operations on flat tensors of any device: slow, and bit for bit what the core computes.

    Used where the core cannot reach the memory, and to check one against the other.
    """

    def view(self, flat: torch.Tensor) -> torch.Tensor:
        return flat

    def sum_squares(self, grad: torch.Tensor) -> float:
        return float(grad.double().square().sum())

    def propose(
        self,
        plan: Plan,
        update: _core.Update,
        grad: torch.Tensor,
        residual: torch.Tensor,
        velocity: torch.Tensor | None,
        weights: torch.Tensor | None,
    ) -> TorchProposal:
        accumulated, moved = _accumulate(update, grad, residual, velocity, weights)
        return TorchProposal(plan, accumulated, moved)

    def commit(
        self,
        plan: Plan,
        proposal: TorchProposal,
        update: _core.Update,
        grad: torch.Tensor,
        residual: torch.Tensor,
        velocity: torch.Tensor | None,
        weights: torch.Tensor | None,
        zero_grad: bool,
    ) -> None:
        residual.copy_(proposal.accumulated)
        sent = torch.from_numpy(proposal.sent).to(residual.device)
        residual[proposal.indices] -= sent
        if velocity is not None and proposal.velocity is not None:
            velocity.copy_(proposal.velocity)
            if plan.masking and not plan.every_coordinate:
                velocity[proposal.indices[sent != 0]] = 0
        if zero_grad:
            grad.zero_()

    def masked(self, proposal: TorchProposal, out: torch.Tensor) -> None:
        if not proposal.finite:
            out.fill_(float("nan"))
            return
        out.zero_()
        out[proposal.indices] = torch.from_numpy(proposal.sent).to(out.device)

    def decode_add(self, plan: Plan, payloads: ByteArray, out: torch.Tensor, scale: float) -> None:
        # One payload after another: within one, no coordinate repeats, so the sums come out in the same order on
        # every rank. A single index_add_ of all of them would not promise that.
        for payload in payloads:
            indices, values = plan.layout.unpack(payload)
            where = torch.from_numpy(indices.astype(np.int64)).to(out.device)
            out[where] += torch.from_numpy(values).to(out.device) * scale

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
    residual: torch.Tensor,
    velocity: torch.Tensor | None,
    weights: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The accumulated gradient and velocity after this step, each operation rounded as in the core."""
    scaled = grad.float() * update.unscale
    if weights is not None:
        scaled = scaled + weights.float() * update.weight_decay
    if velocity is None:
        return residual + scaled, None
    moved = _velocity(update, scaled, velocity)
    return residual + (scaled + moved * update.momentum if update.nesterov else moved), moved


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
