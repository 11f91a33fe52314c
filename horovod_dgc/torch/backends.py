"""Where the arithmetic of a plan runs: the C++ core for tensors in host memory, plain torch for any device.

Both give the same payload bytes and the same state for the same input.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch

from horovod_dgc import _core
from horovod_dgc.methods.base import ByteArray, FloatArray, Plan


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
class Inputs:
    """All that the arithmetic of one tensor in one step works on: views, or None for what there is not.

    Attributes:
        opened: float32, in host memory: what the opening round came to.
        memory: what the codec keeps between steps.
        squares: this step's second moments; None for the gradient's own squares.
    """

    plan: Plan
    update: _core.Update
    randomness: _core.Randomness
    grad: Any
    residual: Any = None
    velocity: Any = None
    weights: Any = None
    memory: Any = None
    squares: Any = None
    opened: FloatArray | None = None


class Backend(Protocol):
    """The operations that the adapter needs, on whatever ``view`` makes of a flat tensor."""

    def view(self, flat: torch.Tensor) -> Any: ...

    def sum_squares(self, grad: Any) -> float: ...

    def open(self, inputs: Inputs) -> tuple[bool, FloatArray]: ...

    def propose(self, inputs: Inputs) -> Any: ...

    def commit(self, inputs: Inputs, proposal: Any, *, zero_grad: bool) -> None: ...

    def masked(self, proposal: Any, out: Any) -> None: ...

    def decode_add(self, inputs: Inputs, payloads: ByteArray, out: Any, scale: float) -> None: ...

    def absorb(self, inputs: Inputs, payloads: ByteArray) -> None: ...

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

    def open(self, inputs: Inputs) -> tuple[bool, FloatArray]:
        return _core.open(*self._arrays(inputs), **self._settings(inputs, "randomness", "memory"))

    def propose(self, inputs: Inputs) -> _core.Proposal:
        settings = self._settings(inputs, "randomness", "opened", "memory", "squares")
        return _core.propose(*self._arrays(inputs), sample_ratio=inputs.plan.sample_ratio, **settings)

    def commit(self, inputs: Inputs, proposal: _core.Proposal, *, zero_grad: bool) -> None:
        _, *arrays = self._arrays(inputs)
        settings = self._settings(inputs, "memory", "squares")
        proposal.commit(*arrays, mask_velocity=inputs.plan.masking, zero_grad=zero_grad, **settings)

    def masked(self, proposal: _core.Proposal, out: Any) -> None:
        proposal.masked(out)

    def decode_add(self, inputs: Inputs, payloads: ByteArray, out: Any, scale: float) -> None:
        inputs.plan.codec.decode_add(
            payloads,
            out,
            scale,
            self._threads(payloads.size),
            randomness=inputs.randomness,
            opened=inputs.opened,
        )

    def absorb(self, inputs: Inputs, payloads: ByteArray) -> None:
        inputs.plan.codec.absorb(payloads, inputs.memory)

    def _arrays(self, inputs: Inputs) -> tuple[Any, ...]:
        return inputs.plan.codec, inputs.update, inputs.grad, inputs.residual, inputs.velocity, inputs.weights

    def _settings(self, inputs: Inputs, *names: str) -> dict[str, Any]:
        return {"threads": self._threads(inputs.plan.numel), **{name: getattr(inputs, name) for name in names}}

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

    def open(self, inputs: Inputs) -> tuple[bool, FloatArray]:
        return self._core.open(self._on_host(inputs))

    def propose(self, inputs: Inputs) -> TorchProposal | _core.Proposal:
        layout = inputs.plan.codec.layout
        if layout is None:
            return self._core.propose(self._on_host(inputs))
        return TorchProposal(layout, *_accumulate(inputs), inputs.randomness)

    def commit(self, inputs: Inputs, proposal: TorchProposal | _core.Proposal, *, zero_grad: bool) -> None:
        if isinstance(proposal, _core.Proposal):
            held = self._on_host(inputs)
            self._core.commit(held, proposal, zero_grad=False)
            for name in ("residual", "velocity", "memory"):
                tensor = getattr(inputs, name)
                if tensor is not None:
                    tensor.copy_(torch.from_numpy(getattr(held, name)))
        else:
            self._commit(inputs, proposal)
        if zero_grad:
            inputs.grad.zero_()

    def masked(self, proposal: TorchProposal | _core.Proposal, out: torch.Tensor) -> None:
        if isinstance(proposal, _core.Proposal):
            dense = np.empty(out.numel(), np.float32)
            proposal.masked(dense)
            out.copy_(torch.from_numpy(dense))
            return
        if not proposal.finite:
            out.fill_(float("nan"))
            return
        out.zero_()
        out[proposal.indices] = torch.from_numpy(proposal.sent).to(out.device)

    def decode_add(self, inputs: Inputs, payloads: ByteArray, out: torch.Tensor, scale: float) -> None:
        layout = inputs.plan.codec.layout
        if layout is None:
            total = out.cpu().numpy().copy()
            self._core.decode_add(inputs, payloads, total, scale)
            out.copy_(torch.from_numpy(total))
            return
        # One payload after another: within one, no coordinate repeats, so the sums come out in the same order on
        # every rank. A single index_add_ of all of them would not promise that.
        for payload in payloads:
            indices, values = layout.unpack(payload)
            where = torch.from_numpy(indices.astype(np.int64)).to(out.device)
            out[where] += torch.from_numpy(values).to(out.device) * scale

    def absorb(self, inputs: Inputs, payloads: ByteArray) -> None:
        absorbed = self._copy(inputs.memory)
        inputs.plan.codec.absorb(payloads, absorbed)
        inputs.memory.copy_(torch.from_numpy(absorbed))

    def _on_host(self, inputs: Inputs) -> Inputs:
        """The same with copies in host memory of all tensors."""
        tensors = ("grad", "residual", "velocity", "weights", "memory", "squares")
        return replace(inputs, **{name: self._copy(getattr(inputs, name)) for name in tensors})

    def _copy(self, tensor: torch.Tensor | None) -> Any:
        return None if tensor is None else self._core.view(tensor.detach().cpu().clone())

    def _commit(self, inputs: Inputs, proposal: TorchProposal) -> None:
        sent = torch.from_numpy(proposal.sent).to(proposal.indices.device)
        if inputs.residual is not None:
            inputs.residual.copy_(proposal.accumulated)
            inputs.residual[proposal.indices] -= sent
        if inputs.velocity is not None and proposal.velocity is not None:
            inputs.velocity.copy_(proposal.velocity)
            if inputs.plan.masking and not inputs.plan.every_coordinate:
                inputs.velocity[proposal.indices[sent != 0]] = 0

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


def _accumulate(inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The accumulated gradient and velocity after this step, each operation rounded as in the core."""
    update, velocity = inputs.update, inputs.velocity
    scaled = inputs.grad.float() * update.unscale
    if inputs.weights is not None:
        scaled = scaled + inputs.weights.float() * update.weight_decay
    moved = None if velocity is None else _velocity(update, scaled, velocity)
    step = scaled if moved is None else scaled + moved * update.momentum if update.nesterov else moved
    return step if inputs.residual is None else inputs.residual + step, moved


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
