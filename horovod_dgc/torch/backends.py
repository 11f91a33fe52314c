"""Where the arithmetic of plans runs: the C++ core for host memory, CUDA kernels, or plain torch for any device.

All give the same payload bytes and the same state for the same input.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch

from horovod_dgc import _core
from horovod_dgc.methods.base import ByteArray, FloatArray, Plan


class Proposal(Protocol):
    """What one tensor would send and change; nothing has changed yet.

    Attributes:
        payload: uint8, one dimension, where the arithmetic ran.
        finite: whether the accumulated gradient is; None while only the device knows, and the batch is asked.
        overflow: coordinates that qualified but found no room.
        nonzero: coordinates sent with a value other than 0, or a function that waits for the device to tell.
    """

    @property
    def nonzero(self) -> int | Callable[[], int]: ...

    @property
    def finite(self) -> bool | None: ...

    @property
    def payload(self) -> Any: ...

    @property
    def overflow(self) -> int: ...


@dataclass(frozen=True)
class Inputs:
    """All that the arithmetic of one tensor in one step works on: views, or None for what there is not.

    Attributes:
        zero_grad: leave the gradient zeroed when the step is committed.
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
    zero_grad: bool = False


@dataclass(frozen=True)
class Addition:
    """Payloads of all workers, uint8, shape (workers, nbytes), times ``scale``, to be added to the view ``out``."""

    inputs: Inputs
    payloads: torch.Tensor
    out: Any
    scale: float


@dataclass(frozen=True)
class Reduction:
    """A flat tensor that has been reduced, and becomes ``after * momentum(factor * values)``.

    Attributes:
        values: float32 or float16; on any device if it is float32.
        velocity: a view; None if momentum is not applied here. Then nothing of ``update`` counts.
    """

    values: torch.Tensor
    velocity: Any
    update: _core.Update
    factor: float
    after: float


class Proposals(Protocol):
    """Proposals of several tensors.

    Attributes:
        each: one for each tensor.
        nonfinite: how many of them are not finite: a number, or a float32 tensor of one element on their device.
    """

    @property
    def each(self) -> Sequence[Proposal]: ...

    @property
    def nonfinite(self) -> int | torch.Tensor: ...

    def to_host(self) -> None:
        """Bring the payloads to host memory, if they are not there."""
        ...


@dataclass(frozen=True)
class HostProposals:
    """Of tensors whose payloads are made in host memory."""

    each: Sequence[Any]

    @property
    def nonfinite(self) -> int:
        return sum(not proposal.finite for proposal in self.each)

    def to_host(self) -> None:
        pass


class Backend(Protocol):
    """The operations that the adapter needs, on whatever ``view`` makes of a flat tensor.

    Attributes:
        in_company: whether several tensors at a time are faster than one after the other.
    """

    in_company: bool

    def knows(self, codec: _core.Codec) -> bool:
        """Whether it proposes several tensors with such codecs together."""
        ...

    def here(self) -> Any:
        """Where work goes at this moment: a stream, or None."""
        ...

    def follow(self, places: Sequence[Any]) -> None:
        """Let what comes now be done after what has been done at these places."""
        ...

    def view(self, flat: torch.Tensor) -> Any: ...

    def sum_squares(self, grads: Sequence[Any]) -> list[float]: ...

    def open(self, inputs: Inputs) -> tuple[bool, FloatArray]: ...

    def propose(self, every: Sequence[Inputs]) -> Proposals: ...

    def commit(self, every: Sequence[Inputs], proposals: Sequence[Any]) -> None: ...

    def masked(self, proposal: Any, out: torch.Tensor) -> None: ...

    def decode_add(self, additions: Sequence[Addition]) -> None: ...

    def absorb(self, inputs: Inputs, payloads: ByteArray) -> None: ...

    def vote(self, sums: torch.Tensor) -> None: ...

    def finish(self, reductions: Sequence[Reduction]) -> list[torch.Tensor]: ...

    def require_valid(self) -> None: ...


# Below this size a second thread costs more to start than it saves.
THREADED_NUMEL = 1 << 20


class CoreBackend:
    """The C++ core on NumPy views of tensors in host memory (float32, float16 or bfloat16)."""

    in_company = False

    def knows(self, codec: _core.Codec) -> bool:
        return False

    def here(self) -> None:
        return None

    def follow(self, places: Sequence[Any]) -> None:
        pass

    def _threads(self, numel: int) -> int:
        return torch.get_num_threads() if numel >= THREADED_NUMEL else 1

    def view(self, flat: torch.Tensor) -> Any:
        return flat.view(torch.uint16).numpy() if flat.dtype == torch.bfloat16 else flat.numpy()

    def sum_squares(self, grads: Sequence[Any]) -> list[float]:
        return [_core.sum_squares(grad, threads=self._threads(grad.size)) for grad in grads]

    def open(self, inputs: Inputs) -> tuple[bool, FloatArray]:
        return _core.open(*self._arrays(inputs), **self._settings(inputs, "randomness", "memory"))

    def propose(self, every: Sequence[Inputs]) -> HostProposals:
        return HostProposals([self.propose_one(inputs) for inputs in every])

    def propose_one(self, inputs: Inputs) -> _core.Proposal:
        settings = self._settings(inputs, "randomness", "opened", "memory", "squares")
        return _core.propose(*self._arrays(inputs), sample_ratio=inputs.plan.sample_ratio, **settings)

    def commit(self, every: Sequence[Inputs], proposals: Sequence[_core.Proposal]) -> None:
        for inputs, proposal in zip(every, proposals):
            self.commit_one(inputs, proposal)

    def commit_one(self, inputs: Inputs, proposal: _core.Proposal) -> None:
        _, *arrays = self._arrays(inputs)
        settings = self._settings(inputs, "memory", "squares")
        proposal.commit(*arrays, mask_velocity=inputs.plan.masking, zero_grad=inputs.zero_grad, **settings)

    def masked(self, proposal: _core.Proposal, out: torch.Tensor) -> None:
        proposal.masked(self.view(out))

    def decode_add(self, additions: Sequence[Addition]) -> None:
        for addition in additions:
            self.add_to(addition.inputs, addition.payloads, addition.out, addition.scale)

    def add_to(self, inputs: Inputs, payloads: torch.Tensor, out: Any, scale: float) -> None:
        inputs.plan.codec.decode_add(
            payloads.numpy(),
            out,
            scale,
            self._threads(payloads.numel()),
            randomness=inputs.randomness,
            opened=inputs.opened,
        )

    def absorb(self, inputs: Inputs, payloads: ByteArray) -> None:
        inputs.plan.codec.absorb(payloads, inputs.memory)

    def vote(self, sums: torch.Tensor) -> None:
        _core.vote(self.view(sums))

    def _arrays(self, inputs: Inputs) -> tuple[Any, ...]:
        return inputs.plan.codec, inputs.update, inputs.grad, inputs.residual, inputs.velocity, inputs.weights

    def _settings(self, inputs: Inputs, *names: str) -> dict[str, Any]:
        return {"threads": self._threads(inputs.plan.numel), **{name: getattr(inputs, name) for name in names}}

    def finish(self, reductions: Sequence[Reduction]) -> list[torch.Tensor]:
        return [_finished(reduction, self._apply_momentum) for reduction in reductions]

    def _apply_momentum(self, aggregated: torch.Tensor, velocity: Any, update: _core.Update) -> None:
        _core.apply_momentum(self.view(aggregated), velocity, update)

    def require_valid(self) -> None:
        pass


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
        self.overflow = self.nonzero = 0
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
        self.nonzero = int(np.count_nonzero(self.sent))


class TorchBackend:
    """Plain torch operations on flat tensors of any device: slow, and bit for bit what the core computes.

    Used where the core cannot reach the memory, and to check one against the other. The largest coordinates are
    selected on the device; all other codecs work on copies in host memory.
    """

    in_company = True

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._core = CoreBackend()

    def knows(self, codec: _core.Codec) -> bool:
        return codec.layout is not None and not codec.votes

    def here(self) -> Any:
        return torch.cuda.current_stream(self.device) if self.device.type == "cuda" else None

    def follow(self, places: Sequence[Any]) -> None:
        here = self.here()
        for place in set(places) - {here}:
            here.wait_stream(place)

    def view(self, flat: torch.Tensor) -> torch.Tensor:
        return flat

    def sum_squares(self, grads: Sequence[torch.Tensor]) -> list[float]:
        sums: list[float] = torch.stack([grad.double().square().sum() for grad in grads]).tolist()
        return sums

    def open(self, inputs: Inputs) -> tuple[bool, FloatArray]:
        return self._core.open(self._on_host(inputs))

    def propose(self, every: Sequence[Inputs]) -> Proposals:
        return HostProposals([self._propose(inputs) for inputs in every])

    def _propose(self, inputs: Inputs) -> TorchProposal | _core.Proposal:
        layout = inputs.plan.codec.layout
        if layout is None:
            return self._core.propose_one(self._on_host(inputs))
        return TorchProposal(layout, *_accumulate(inputs), inputs.randomness)

    def commit(self, every: Sequence[Inputs], proposals: Sequence[Any]) -> None:
        for inputs, proposal in zip(every, proposals):
            if isinstance(proposal, _core.Proposal):
                held = replace(self._on_host(inputs), zero_grad=False)
                self._core.commit_one(held, proposal)
                for name in ("residual", "velocity", "memory"):
                    tensor = getattr(inputs, name)
                    if tensor is not None:
                        tensor.copy_(torch.from_numpy(getattr(held, name)))
            else:
                self._commit(inputs, proposal)
            if inputs.zero_grad:
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

    def decode_add(self, additions: Sequence[Addition]) -> None:
        for addition in additions:
            self._add_to(addition.inputs, addition.payloads.cpu(), addition.out, addition.scale)

    def _add_to(self, inputs: Inputs, payloads: torch.Tensor, out: torch.Tensor, scale: float) -> None:
        layout = inputs.plan.codec.layout
        if layout is None:
            total = out.cpu().numpy().copy()
            self._core.add_to(inputs, payloads, total, scale)
            out.copy_(torch.from_numpy(total))
            return
        # One payload after another: within one, no coordinate repeats, so the sums come out in the same order on
        # every rank. A single index_add_ of all of them would not promise that.
        for payload in payloads.numpy():
            indices, values = layout.unpack(payload)
            where = torch.from_numpy(indices.astype(np.int64)).to(out.device)
            out[where] += torch.from_numpy(values).to(out.device) * scale

    def absorb(self, inputs: Inputs, payloads: ByteArray) -> None:
        absorbed = self._copy(inputs.memory)
        inputs.plan.codec.absorb(payloads, absorbed)
        inputs.memory.copy_(torch.from_numpy(absorbed))

    def vote(self, sums: torch.Tensor) -> None:
        # The product is NaN where the sum is not finite, and 0 elsewhere.
        sums.copy_((sums > 0).float() - (sums < 0).float() + sums * 0)

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

    def finish(self, reductions: Sequence[Reduction]) -> list[torch.Tensor]:
        here = [replace(reduction, values=reduction.values.to(self.device)) for reduction in reductions]
        return [_finished(reduction, self._apply_momentum) for reduction in here]

    def require_valid(self) -> None:
        pass

    def _apply_momentum(self, aggregated: torch.Tensor, velocity: torch.Tensor, update: _core.Update) -> None:
        moved = _velocity(update, aggregated, velocity)
        velocity.copy_(moved)
        aggregated.copy_(aggregated + moved * update.momentum if update.nesterov else moved)


@functools.cache
def plain_torch(device: torch.device) -> TorchBackend:
    return TorchBackend(device)


def _finished(reduction: Reduction, apply_momentum: Callable[[torch.Tensor, Any, _core.Update], None]) -> torch.Tensor:
    result = reduction.values.to(torch.float32)
    if reduction.factor != 1.0:
        result = result * reduction.factor
    if reduction.velocity is not None:
        apply_momentum(result, reduction.velocity, reduction.update)
    return result.mul_(reduction.after) if reduction.after != 1.0 else result


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
