"""The arithmetic of plans in CUDA kernels: several tensors of one GPU in a few launches on the current stream.

The host never waits for the device here: how many bytes a payload has is known beforehand, and whether a gradient is
finite is left on the device until all ranks are asked.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch

from horovod_dgc import _core
from horovod_dgc.building import places
from horovod_dgc.methods.base import Plan
from horovod_dgc.torch.backends import Addition, CoreBackend, Inputs, Proposals, Reduction, TorchBackend

_cuda: Any = places.load_kernels()

DTYPES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}


class DeviceProposals:
    """Proposals of one batch, which kernels make on the current stream.

    Attributes:
        batch: what is launched again to commit.
        table: what it reads.
        made, payloads: uint8: of all tensors, one after another, on the device, and where they are to be had.
        kept: uint8: what lies between proposing and committing.
        progress: int32, a row for each tensor.
        counted: waits for the device and tells how many coordinates each sends with a value other than 0.
    """

    def __init__(self, every: Sequence[Inputs], device: torch.device) -> None:
        self.batch = _cuda.Batch()
        for inputs in every:
            plan, grad, weights = inputs.plan, inputs.grad, inputs.weights
            # By position: names would take as long as all the rest.
            self.batch.add(
                _layout(plan.codec),
                inputs.update,
                grad.data_ptr(),
                DTYPES[grad.dtype],
                _address(inputs.residual),
                _address(inputs.velocity),
                _address(weights),
                "float32" if weights is None else DTYPES[weights.dtype],
                plan.masking,
                inputs.zero_grad,
            )
        batch, count = self.batch, len(every)
        self.made = self.payloads = _bytes(batch.payload_bytes, device)
        self.progress = torch.empty(count, _cuda.progress_words, dtype=torch.int32, device=device)
        self.kept = _bytes(batch.kept_bytes, device)
        # Nobody needs it longer than the kernels that follow on this stream.
        scratch = _bytes(batch.scratch_bytes, device)
        made, kept, progress, room = (t.data_ptr() for t in (self.made, self.kept, self.progress, scratch))
        self.table = _table(
            batch.table_bytes, lambda table, host: batch.write(table, made, kept, progress, room, host), device
        )
        self.stream = torch.cuda.current_stream(device)
        self.batch.propose(self.table.data_ptr(), scratch.data_ptr(), self.stream.cuda_stream)
        self.counted = _once(self._of_each("nonzero"))
        self.each = [DeviceProposal(self, number, inputs.plan) for number, inputs in enumerate(every)]

    @property
    def nonfinite(self) -> torch.Tensor:
        return self._of_each("nonfinite").sum(dtype=torch.float32).view(1)

    def _of_each(self, field: str) -> torch.Tensor:
        return self.progress[:, _cuda.progress_fields[field]]

    def to_host(self) -> None:
        """Wait for the kernels, and bring the payloads over in one piece."""
        if self.payloads.is_cuda:
            pinned = torch.empty(self.payloads.shape, dtype=torch.uint8, device="cpu", pin_memory=True)
            pinned.copy_(self.payloads, non_blocking=True)
            self.payloads = pinned
            self.stream.synchronize()

    def use_on(self, stream: torch.cuda.Stream) -> None:
        """Let what follows on this stream come after the kernels so far, and the memory live until it is done."""
        if stream == self.stream:
            return
        stream.wait_stream(self.stream)
        for tensor in (self.made, self.kept, self.progress, self.table):
            tensor.record_stream(stream)


class DeviceProposal:
    """One tensor's part of a batch."""

    finite = None
    overflow = 0

    def __init__(self, batch: DeviceProposals, number: int, plan: Plan) -> None:
        self.all = batch
        self.number = number
        self.plan = plan
        counted = batch.counted
        # Not the whole batch: it may be asked for when all else has been freed.
        self.nonzero = lambda: counted()[number]

    @property
    def payload(self) -> torch.Tensor:
        return self._part_of(self.all.payloads)

    @property
    def made(self) -> torch.Tensor:
        """The payload on the device, wherever else it has been brought."""
        return self._part_of(self.all.made)

    def _part_of(self, payloads: torch.Tensor) -> torch.Tensor:
        batch = self.all.batch
        return payloads.narrow(0, batch.payload_offset(self.number), batch.payload_nbytes(self.number))


class CudaBackend(TorchBackend):
    """Kernels for what they know, and otherwise plain torch, on tensors of one GPU (float32, float16 or bfloat16)."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        # 1 + number of a sum with a malformed payload. Asked for when the next step is sealed.
        self._malformed: torch.Tensor | None = None

    def knows(self, codec: _core.Codec) -> bool:
        return has_kernels_for(codec)

    def sum_squares(self, grads: Sequence[torch.Tensor]) -> list[float]:
        squares = _cuda.Squares()
        lengths = []
        for grad in grads:
            before = squares.stripes
            squares.add(grad.numel(), grad.data_ptr(), DTYPES[grad.dtype])
            lengths.append(squares.stripes - before)
        sums = torch.empty(squares.stripes, dtype=torch.float64, device=self.device)
        table = _table(squares.table_bytes, lambda _, host: squares.write(host), self.device)
        squares.run(table.data_ptr(), sums.data_ptr(), self._stream())
        return [float(part.sum()) for part in torch.split(sums.cpu(), lengths)]

    def propose(self, every: Sequence[Inputs]) -> Proposals:
        if all(self.knows(inputs.plan.codec) for inputs in every):
            with torch.cuda.device(self.device):
                return DeviceProposals(every, self.device)
        return super().propose(every)

    def commit(self, every: Sequence[Inputs], proposals: Sequence[Any]) -> None:
        batches = {id(p.all): p.all for p in proposals if isinstance(p, DeviceProposal)}
        if not batches:
            super().commit(every, proposals)
        with torch.cuda.device(self.device):
            for batch in batches.values():
                batch.use_on(torch.cuda.current_stream(self.device))
                batch.batch.commit(batch.table.data_ptr(), self._stream())

    def masked(self, proposal: Any, out: torch.Tensor) -> None:
        if not isinstance(proposal, DeviceProposal):
            super().masked(proposal, out)
            return
        out.zero_()
        batch = proposal.all
        if proposal.plan.every_coordinate:
            self._add([(_layout(proposal.plan.codec), proposal.made[None], out, 1.0)])
        else:
            batch.batch.scatter_sent(proposal.number, batch.table.data_ptr(), out.data_ptr(), self._stream())

    def decode_add(self, additions: Sequence[Addition]) -> None:
        known: list[Addition] = []
        others: list[Addition] = []
        for addition in additions:
            (known if self.knows(addition.inputs.plan.codec) else others).append(addition)
        super().decode_add(others)
        if not known:
            return
        payloads = on_device([addition.payloads for addition in known], self.device)
        self._add(
            [
                (_layout(addition.inputs.plan.codec), rows, addition.out, addition.scale)
                for addition, rows in zip(known, payloads)
            ]
        )

    def _add(self, every: Sequence[tuple[_core.Layout, torch.Tensor, torch.Tensor, float]]) -> None:
        """Add payloads that are on the device, ``scale`` times, to ``out``."""
        sums = _cuda.Sums()
        for layout, rows, out, scale in every:
            sums.add(layout, rows.data_ptr(), len(rows), out.data_ptr(), scale)
        scratch = _bytes(sums.scratch_bytes, self.device)
        table = _table(sums.table_bytes, lambda _, host: sums.write(scratch.data_ptr(), host), self.device)
        if self._malformed is None:
            self._malformed = torch.zeros(1, dtype=torch.int32, device=self.device)
        with torch.cuda.device(self.device):
            sums.run(table.data_ptr(), self._malformed.data_ptr(), self._stream())

    def finish(self, reductions: Sequence[Reduction]) -> list[torch.Tensor]:
        if not reductions:
            return []
        work = _cuda.Reduced()
        # What is read must live until the kernel has been launched.
        values = on_device([reduction.values for reduction in reductions], self.device)
        results = [v if v.dtype == torch.float32 else torch.empty_like(v, dtype=torch.float32) for v in values]
        for reduction, value, result in zip(reductions, values, results):
            work.add(
                value.numel(),
                value.data_ptr(),
                DTYPES[value.dtype],
                result.data_ptr(),
                _address(reduction.velocity),
                reduction.update,
                reduction.factor,
                reduction.after,
            )
        table = _table(work.table_bytes, lambda _, host: work.write(host), self.device)
        with torch.cuda.device(self.device):
            work.run(table.data_ptr(), self._stream())
        return results

    def require_valid(self) -> None:
        """Raise RuntimeError if a payload that arrived in an earlier step was malformed. Waits for the device."""
        if self._malformed is not None and self._malformed.item():
            self._malformed = None
            raise RuntimeError(
                "a payload that arrived in the step before was malformed: what this rank's gradients were is lost, "
                "and the parameters of the ranks may differ. Go back to a checkpoint"
            )

    def _stream(self) -> int:
        stream: int = torch.cuda.current_stream(self.device).cuda_stream
        return stream


@functools.cache
def has_kernels_for(codec: _core.Codec) -> bool:
    return codec.layout is not None and not codec.votes and _cuda.has_format(codec.layout)


@functools.cache
def backend_for(device: torch.device) -> CoreBackend | TorchBackend:
    """The C++ core for host memory, kernels for a GPU where they have been built; else plain torch, with a warning."""
    if device.type == "cpu":
        return CoreBackend()
    if device.type == "cuda" and _cuda is not None:
        return CudaBackend(device)
    warnings.warn(
        f"horovod_dgc has no kernels for {device}: plain torch operations compress its gradients, slowly. For CUDA, "
        "compile them once: python -m horovod_dgc build cuda",
        stacklevel=2,
    )
    return TorchBackend(device)


def on_device(tensors: Sequence[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    """Copies of those in host memory, made in one piece; of the others what they are.

    What a collective has made on a stream of its own stays in place until the current stream has read it.
    """
    stream = torch.cuda.current_stream(device)
    away = [tensor for tensor in tensors if not tensor.is_cuda]
    offsets, total = [], 0
    for tensor in away:
        offsets.append(total)
        total += -(-tensor.numel() * tensor.element_size() // 16) * 16
    pinned = torch.empty(total, dtype=torch.uint8, device="cpu", pin_memory=total > 0)
    for tensor, offset in zip(away, offsets):
        flat = tensor.reshape(-1).view(torch.uint8)
        pinned[offset : offset + flat.numel()] = flat
    copied = pinned.to(device, non_blocking=True)
    found = iter(offsets)
    here = []
    for tensor in tensors:
        if tensor.is_cuda:
            tensor.record_stream(stream)
            here.append(tensor)
            continue
        offset = next(found)
        part = copied[offset : offset + tensor.numel() * tensor.element_size()]
        here.append(part.view(tensor.dtype).view(tensor.shape))
    return here


def _once(tensor: torch.Tensor) -> Callable[[], list[int]]:
    return functools.cache(lambda: tensor.tolist())


@functools.cache
def _layout(codec: _core.Codec) -> _core.Layout:
    assert codec.layout is not None
    return codec.layout


def _address(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _bytes(count: int, device: torch.device) -> torch.Tensor:
    return torch.empty(count, dtype=torch.uint8, device=device)


def _table(count: int, write: Any, device: torch.device) -> torch.Tensor:
    """A table on the device. ``write(table, host)`` fills it, given both addresses; pinned, so that nobody waits."""
    table = _bytes(count, device)
    host = torch.empty(count, dtype=torch.uint8, device="cpu", pin_memory=True)
    write(table.data_ptr(), host.data_ptr())
    return table.copy_(host, non_blocking=True)
