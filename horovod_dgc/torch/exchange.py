"""One tensor's way through one step: propose, send, and, when every rank agrees, commit and decode."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import horovod.torch as hvd
import numpy as np
import torch

from horovod_dgc import _core, transport
from horovod_dgc.hierarchy import Members
from horovod_dgc.methods.base import ByteArray, FloatArray, Plan
from horovod_dgc.stats import TensorStats
from horovod_dgc.torch.backends import Inputs
from horovod_dgc.torch.tensors import Tensor, flatten

if TYPE_CHECKING:
    from horovod_dgc.torch.step import Step


class Exchange:
    """The context that Horovod carries from ``compress`` to ``decompress``.

    Attributes:
        message: what Horovod allreduces: the payload where it can be summed, otherwise one element holding 1.0.
        finite: whether this worker's gradient is.
        contribution: what the tensor adds to what this worker's tensors have to agree upon; None if that is nothing.
        dense_nbytes: bytes that uncompressed Horovod would have been handed.
    """

    def __init__(
        self,
        step: Step,
        entry: Tensor,
        gradient: torch.Tensor,
        plan: Plan,
        group: dict[str, Any],
        token: torch.Tensor,
        members: Members,
    ) -> None:
        self.step = step
        self.message = token
        self.finite = True
        self.contribution: FloatArray | None = None
        self.dense_nbytes = gradient.numel() * gradient.element_size()
        self._members = members
        self._entry = entry
        self._backend = entry.backend
        self._gradient = gradient
        self._plan = plan if members.workers > 1 else plan.whole()
        self._group = group
        self._flat = flatten(gradient)
        self._view = self._backend.view(self._flat)
        self._transport: transport.Transport = "allreduce"
        self._handle: int | None = None
        self._opening: int | None = None
        self._carried = False
        # First coordinate and values of what the other workers sent here and found no room in the result.
        self._returned: tuple[int, FloatArray] | None = None
        self._inputs: Any = None
        self._proposal: Any = None
        self._encode_seconds = 0.0

    @property
    def codec(self) -> _core.Codec:
        return self._plan.codec

    def sum_squares(self) -> float:
        """Squared norm of the gradient as it came."""
        return self._backend.sum_squares(self._view)

    def start(self, unscale: float, *, carried: bool) -> None:
        """Encode, and hand the message, or what the workers have to agree upon first, to a collective.

        Args:
            unscale: factor that the gradient is multiplied by first.
            carried: whether Horovod's own allreduce may still take the message.
        """
        plan, entry, step = self._plan, self._entry, self.step
        if not plan.numel:
            return
        began = time.perf_counter()
        self._transport, plan = transport.resolved(plan, self._members.workers, step.transport)
        self._plan = plan
        local = plan.momentum == "local" and step.takeover.momentum
        if entry.residual is None:
            entry.prepare(plan, step.takeover, step.dense_factor if plan.momentum == "local" else 1.0)
        update = step.takeover.update(
            self._group,
            unscale=unscale,
            dense_factor=step.dense_factor,
            first=not entry.stepped,
            momentum=local,
        )
        self._inputs = Inputs(
            plan,
            update,
            step.method.randomness(entry.number, step.number, self._members.process_set.rank()),
            grad=self._view,
            residual=entry.residual_view,
            velocity=entry.velocity_view if local else None,
            weights=entry.weights_view() if update.weight_decay else None,
            memory=entry.memory_view,
            squares=self._squares(unscale),
        )
        count, reduction = plan.codec.opening
        if count:
            self.finite, opening = self._backend.open(self._inputs)
        if reduction == "quantile":
            self.contribution = opening
        elif count:
            op = hvd.Max if reduction == "maximum" else hvd.Sum
            name = f"{self._name}.opening"
            self._opening = hvd.allreduce_async(
                torch.from_numpy(opening), name=name, op=op, process_set=self._members.process_set
            )
        else:
            self._propose(carried)
        self._encode_seconds = time.perf_counter() - began

    def arrive(self) -> float:
        """Encode what :meth:`start` could not; here it always can."""
        return 0.0

    def land(self, *totals: TensorStats) -> float:
        """Do what the other ranks wait for before a tensor can be finished: add up the parts that came here.

        Returns:
            Seconds of waiting.
        """
        if self._transport != "sparse-allreduce":
            return 0.0
        began = time.perf_counter()
        received, _ = hvd.synchronize(self._handle)
        arrived = time.perf_counter()
        process_set = self._members.process_set
        codec, randomness = self._plan.codec, self._inputs.randomness
        part, begin, values = codec.reduce(process_set.rank(), received.numpy(), randomness)
        self._returned = (begin, values)
        self._handle = hvd.allgather_async(torch.from_numpy(part), name=f"{self._name}.sums", process_set=process_set)
        return arrived - began

    def proceed(self, settled: FloatArray | None) -> float:
        """Wait for what the workers agree upon, if they do, then encode and send what has not been.

        Args:
            settled: what the :attr:`contribution` of all tensors of this worker came to.

        Returns:
            Seconds of waiting.
        """
        if self._proposal is not None or not self._plan.numel:
            return 0.0
        began = time.perf_counter()
        opened = settled if self._opening is None else hvd.synchronize(self._opening).numpy()
        self._opening = None
        arrived = time.perf_counter()
        self._inputs = replace(self._inputs, opened=opened)
        self._propose(carried=False)
        self._encode_seconds += time.perf_counter() - arrived
        return arrived - began

    def _squares(self, unscale: float) -> Any:
        """The gradient's second moments in unscaled units, where the codec wants them and they are known."""
        source = self.step.second_moments
        moments = None if source is None else source.take(self._entry.parameter)
        if moments is None or not self._plan.codec.wants_squares:
            return None
        return self._backend.view(moments * unscale**2)

    def _propose(self, carried: bool) -> None:
        self._proposal = self._backend.propose(self._inputs)
        self.finite = self.finite and self._proposal.finite
        self._send(carried)

    def finish(self, output: torch.Tensor, waited: float, *totals: TensorStats) -> torch.Tensor:
        """Apply what came back and return the gradient for the optimizer.

        Args:
            output: what Horovod's allreduce made of :attr:`message`.
            waited: seconds of waiting for it.
            totals: counts to add this tensor's to.
        """
        gradient = self._applied(output, waited, totals) if self._plan.numel else self._gradient
        # The step lives on until the next one begins; gradients, copies and payloads need not. Without a way back to
        # it, all goes then, and not when Python next looks for cycles, which may be thousands of steps later.
        del self.message, self._gradient, self._flat, self._view, self._inputs, self._proposal, self.step
        return gradient

    def cancel(self) -> None:
        """Wait for a collective that is under way."""
        for handle in (self._opening, self._handle):
            if handle is not None:
                hvd.synchronize(handle)

    def _applied(self, output: torch.Tensor, waited: float, totals: tuple[TensorStats, ...]) -> torch.Tensor:
        began = time.perf_counter()
        received = output if self._handle is None else hvd.synchronize(self._handle)
        arrived = time.perf_counter()
        if self.step.abandoned:
            result = self._abandon(received)
        elif self._transport != "allreduce":
            result = self._add_up(self._rows(received), float(output))
        else:
            votes = self._plan.codec.votes
            factor = 1.0 if self._carried else float(output) if votes else float(output) / self._members.workers
            result = self._take_sum(received, factor)
        gradient = deliver(result, self._gradient)
        self._count(waited + arrived - began, time.perf_counter() - arrived, totals)
        return gradient

    def _send(self, carried: bool) -> None:
        name = self._name
        if self._transport != "allreduce":
            payload = torch.from_numpy(self._proposal.payload)
            send = hvd.allgather_async if self._transport == "gather" else hvd.alltoall_async
            self._handle = send(payload, name=name, process_set=self._members.process_set)
            return
        if self._plan.summable is not None:
            message = torch.from_numpy(self._proposal.payload.view(self._plan.summable))
        else:
            message = torch.empty(self._plan.numel, device=self._flat.device)
            self._backend.masked(self._proposal, self._backend.view(message))
        # The sign of a sum takes no account of the factors that Horovod's own allreduce puts in.
        self._carried = carried and not self._plan.codec.votes
        if self._carried:
            # Horovod's own allreduce works in place, and what was sent is still read from the payload.
            self.message = message if self._plan.summable is None else message.clone()
        else:
            self._handle = hvd.allreduce_async(message, name=name, op=hvd.Sum, process_set=self._members.process_set)

    @property
    def _name(self) -> str:
        return f"horovod_dgc.{self._entry.name}"

    def _rows(self, received: torch.Tensor) -> ByteArray:
        """The payloads of all workers, or, of a sparse allreduce, that of their sum."""
        workers, nbytes = self._members.workers, self._plan.payload_nbytes
        count = workers if self._transport == "gather" else 1
        if received.numel() != count * nbytes:
            raise ValueError(
                f"the payloads of {self._entry.name!r} must have {nbytes} bytes on each of {workers} ranks, got "
                f"{received.numel()} in all: is the density schedule the same on every rank?"
            )
        rows: ByteArray = received.numpy().reshape(count, nbytes)
        return rows

    def _add_up(self, payloads: ByteArray, factor: float) -> torch.Tensor:
        """Commit and sum the payloads, in the gradient's own memory where that is float32.

        Args:
            factor: what the user's options make of the mean over the workers.
        """
        plan = self._plan
        in_place = self._flat.dtype == torch.float32
        self._commit(zero_grad=in_place)
        result = self._flat if in_place else torch.zeros(plan.numel, device=self._flat.device)
        view = self._backend.view(result)
        scale = factor / self._members.workers
        if plan.codec.votes:
            self._backend.decode_add(self._inputs, payloads, view, 1.0)
            return self._after_reduction(result, factor)
        aggregated = plan.momentum == "aggregated"
        scale = scale if aggregated else scale * self.step.loss_scale
        self._backend.decode_add(self._inputs, payloads, view, scale)
        self._absorb(payloads)
        return self._after_reduction(result, 1.0) if aggregated else result

    def _take_sum(self, received: torch.Tensor, factor: float) -> torch.Tensor:
        """Commit and take a sum, of payloads or of their dense form, as the result.

        Args:
            factor: by which the sum is still to be multiplied, or, by majority vote, its sign.
        """
        plan = self._plan
        self._commit(zero_grad=False)
        if plan.summable is None or (plan.codec.layout is not None and plan.every_coordinate):
            # The payload is the dense tensor itself.
            result = received.to(self._flat.device, torch.float32)
        else:
            total = received.numpy().view(np.uint8)
            result = torch.zeros(plan.numel, device=self._flat.device)
            self._backend.decode_add(self._inputs, total[None], self._backend.view(result), 1.0)
            self._absorb(total)
        return self._after_reduction(result, factor)

    def _absorb(self, payloads: ByteArray) -> None:
        if self._inputs.memory is not None:
            self._backend.absorb(self._inputs, payloads)

    def _after_reduction(self, result: torch.Tensor, factor: float) -> torch.Tensor:
        entry, takeover = self._entry, self.step.takeover
        if self._plan.codec.votes:
            result = result.sign()
        if factor != 1.0:
            result = result * factor
        if self._plan.momentum == "aggregated" and takeover.momentum:
            update = takeover.update(self._group, unscale=1.0, dense_factor=1.0, first=not entry.stepped, momentum=True)
            self._backend.apply_momentum(self._backend.view(result), entry.velocity_view, update)
            entry.stepped = True
        return result.mul_(self.step.loss_scale) if self.step.loss_scale != 1.0 else result

    def _commit(self, *, zero_grad: bool) -> None:
        self._backend.commit(self._inputs, self._proposal, zero_grad=zero_grad)
        if self._returned is not None:
            begin, values = self._returned
            assert self._entry.residual is not None
            here = self._entry.residual[begin : begin + len(values)]
            here += torch.from_numpy(values).to(here.device)
        if self._inputs.velocity is not None:
            self._entry.stepped = True

    def _abandon(self, received: torch.Tensor) -> torch.Tensor:
        """NaN if any worker's gradient of this tensor was not finite, else zeros: no rank has changed state."""
        if self._transport != "allreduce":
            finite = not self._plan.codec.poisoned(self._rows(received))
        else:
            finite = bool(torch.isfinite(received).all())
        return torch.full_like(self._flat, 0.0 if finite else math.nan, dtype=torch.float32)

    def _count(self, wait: float, decode: float, totals: tuple[TensorStats, ...]) -> None:
        plan = self._plan
        nonzero = plan.numel if plan.every_coordinate else int(np.count_nonzero(self._proposal.sent))
        overflow = self._proposal.overflow
        for count in (self._entry.stats, *totals):
            count.sent += plan.opening_nbytes + transport.message_nbytes(plan, self._transport)
            count.control += 0 if self._carried else self.message.element_size()
            count.dense += self.dense_nbytes
            count.encode += self._encode_seconds
            count.wait += wait
            count.decode += decode
            if not self.step.abandoned:
                count.nonzero += nonzero
                count.elements += plan.numel
                count.overflow += overflow
        if self.step.abandoned:
            self._entry.stats.skipped += 1
        else:
            self._entry.stats.steps += 1


def deliver(result: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """A flat float32 result in the form of the gradient that it takes the place of, and in its memory where it can."""
    if result.data_ptr() == gradient.data_ptr():
        return gradient
    shaped = result.view(gradient.shape)
    overlapping = any(s == 0 and n > 1 for s, n in zip(gradient.stride(), gradient.shape))
    if overlapping or (gradient.is_contiguous() and gradient.dtype == torch.float32):
        return shaped.to(gradient.dtype)
    return gradient.copy_(shaped)
