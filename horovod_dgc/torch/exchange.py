"""One tensor's way through one step: propose, send, and, when every rank agrees, commit and decode."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import horovod.torch as hvd
import torch

from horovod_dgc import _core, transport
from horovod_dgc.hierarchy import Members
from horovod_dgc.methods.base import FloatArray, Plan
from horovod_dgc.stats import TensorStats
from horovod_dgc.torch.backends import Addition, Inputs, Proposals, Reduction
from horovod_dgc.torch.collectives import Rounds, wait
from horovod_dgc.torch.tensors import Tensor, flatten

if TYPE_CHECKING:
    from horovod_dgc.torch.step import Step


class Exchange:
    """The context that Horovod carries from ``compress`` to ``decompress``.

    Attributes:
        message: what Horovod allreduces: the payload where it can be summed, otherwise one element holding 1.0.
        backend: where its arithmetic runs.
        members: those who exchange.
        inputs: of the arithmetic, once started.
        waiting: whether it has been started and waits to be proposed together with others.
        nonfinite: 1 if this worker's gradient is known not to be finite.
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
        self.backend = entry.backend
        self.inputs: Any = None
        self.waiting = False
        self.nonfinite = 0
        self.contribution: FloatArray | None = None
        self.dense_nbytes = gradient.numel() * gradient.element_size()
        self.members = members
        self._entry = entry
        self._gradient = gradient
        self._plan = plan if members.workers > 1 else plan.whole()
        self._group = group
        self._version = gradient._version
        # Whether momentum and weight decay are left to be applied to what comes back, which is the mean itself; and
        # whether it is, or is as good as that, with nothing to be applied.
        self._due = self._faithful = False
        self._flat = flatten(gradient)
        self._view = self.backend.view(self._flat)
        self._transport: transport.Transport = "allreduce"
        self._handle: int | None = None
        self._opening: int | None = None
        self._carried = False
        # First coordinate and values of what the other workers sent here and found no room in the result.
        self._returned: tuple[int, FloatArray] | None = None
        # Those whose proposals were made together, and this one's place among them.
        self._proposals: Any = None
        self._number = 0
        # Those that are finished together.
        self._company: list[Exchange] = [self]
        self._received: Any = None
        # What Horovod has multiplied the sum by, and what is still to be done to what has come back.
        self._told = self._factor = 1.0
        self._result: Any = None
        self._encode_seconds = self._wait_seconds = self._decode_seconds = 0.0

    @property
    def codec(self) -> _core.Codec:
        return self._plan.codec

    @property
    def in_company(self) -> bool:
        """Whether it is better started together with others."""
        return self.backend.in_company

    @property
    def norm_of(self) -> Any:
        """The gradient as it came, as the backend sees it."""
        return self._view

    def start(self, unscale: float, *, carried: bool) -> None:
        """Prepare; then encode, and hand the message, or what the workers have to agree upon first, to a collective.

        Where encoding waits for company, :attr:`waiting` is set, and :meth:`proposed` is to be called.

        Args:
            unscale: factor that the gradient is multiplied by first.
            carried: whether Horovod's own allreduce may still take the message.
        """
        plan, entry, step = self._plan, self._entry, self.step
        if not plan.numel:
            return
        began = time.perf_counter()
        self._transport, plan = transport.resolved(plan, self.members.workers, step.transport)
        self._plan = plan
        entry.prepare(plan, step.takeover, step.dense_factor if plan.momentum == "local" else 1.0)
        self._due = (
            step.takeover.active
            and entry.part is None
            and (plan.momentum == "aggregated" or (plan.lossless and (entry.common or plan.momentum is None)))
        )
        local = plan.momentum == "local" and step.takeover.moves(self._group) and not self._due
        update = step.takeover.update(
            self._group,
            unscale=unscale,
            dense_factor=step.dense_factor,
            first=not entry.stepped,
            momentum=local,
        )
        if self._due:
            update = _core.Update(unscale=unscale)
        self._faithful = self._due or (plan.casts and not local and not update.weight_decay)
        self.inputs = Inputs(
            plan,
            update,
            step.method.randomness(entry.number, step.number, self.members.process_set.rank()),
            grad=self._view,
            residual=entry.residual_view,
            velocity=entry.velocity_view if local else None,
            weights=entry.weights_view() if update.weight_decay else None,
            memory=entry.memory_view,
            squares=self._squares(unscale),
            # Then the sum of the payloads takes the gradient's place in memory.
            zero_grad=self._transport != "allreduce" and self._in_place,
        )
        count, reduction = plan.codec.opening
        if count:
            finite, opening = self.backend.open(self.inputs)
            self.nonfinite = int(not finite)
        if reduction == "quantile":
            self.contribution = opening
        elif count:
            op = hvd.Max if reduction == "maximum" else hvd.Sum
            name = f"{self._name}.opening"
            self._opening = hvd.allreduce_async(
                torch.from_numpy(opening), name=name, op=op, process_set=self.members.process_set
            )
        elif self.backend.knows(plan.codec):
            self.waiting = True
        else:
            self._propose(carried)
        self._encode_seconds = time.perf_counter() - began

    def proposed(self, proposals: Proposals, number: int, company: list[Exchange], seconds: float) -> None:
        """Send what has been proposed together with others.

        Args:
            number: of this tensor among them.
            company: all that are finished together, whenever they were proposed.
            seconds: this tensor's share of the time that it took.
        """
        began = time.perf_counter()
        self.waiting = False
        self._proposals, self._number, self._company = proposals, number, company
        self._send(carried=False)
        self._encode_seconds += seconds + time.perf_counter() - began

    @property
    def touched(self) -> bool:
        """Whether the gradient has been changed since it was handed over."""
        return self._gradient._version != self._version

    def arrive(self) -> Rounds:
        """Encode what :meth:`start` could not; here it always can."""
        yield from ()

    def land(self, *totals: TensorStats) -> Rounds:
        """Do what the other ranks wait for before a tensor can be finished: add up the parts that came here."""
        if self._transport != "sparse-allreduce":
            return
        received, _ = yield self._handle
        process_set = self.members.process_set
        codec, randomness = self._plan.codec, self.inputs.randomness
        part, begin, values = codec.reduce(process_set.rank(), received.numpy(), randomness)
        self._returned = (begin, values)
        self._handle = hvd.allgather_async(torch.from_numpy(part), name=f"{self._name}.sums", process_set=process_set)

    def proceed(self, settled: FloatArray | None) -> Rounds:
        """Wait for what the workers agree upon, if they do, then encode and send what has not been.

        Args:
            settled: what the :attr:`contribution` of all tensors of this worker came to.
        """
        if self._proposals is not None or not self._plan.numel:
            return
        opened = settled
        if self._opening is not None:
            agreed = yield self._opening
            opened, self._opening = agreed.numpy(), None
        arrived = time.perf_counter()
        self.inputs = replace(self.inputs, opened=opened)
        self._propose(carried=False)
        self._encode_seconds += time.perf_counter() - arrived

    def _squares(self, unscale: float) -> Any:
        """The gradient's second moments in unscaled units, where the codec wants them and they are known."""
        source = self.step.second_moments
        moments = None if source is None else source.take(self._entry.parameter)
        if moments is None or not self._plan.codec.wants_squares:
            return None
        return self.backend.view(moments * unscale**2)

    def _propose(self, carried: bool) -> None:
        self._proposals = self.backend.propose([self.inputs])
        self.nonfinite = max(self.nonfinite, int(not self.proposal.finite))
        self._send(carried)

    @property
    def proposal(self) -> Any:
        return self._proposals.each[self._number]

    @property
    def _in_place(self) -> bool:
        """Whether the result can be made in the gradient's memory."""
        return self._flat.dtype == torch.float32

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
        del self.message, self._gradient, self._flat, self._view, self.inputs, self._proposals, self.step
        del self._company, self._received, self._result
        return gradient

    def cancel(self) -> None:
        """Wait for a collective that is under way."""
        for handle in (self._opening, self._handle):
            if handle is not None:
                hvd.synchronize(handle)

    def _applied(self, output: torch.Tensor, waited: float, totals: tuple[TensorStats, ...]) -> torch.Tensor:
        if self._result is None:
            complete(self._company, output)
        elif not self._carried and float(output) != self._told:
            raise RuntimeError(
                f"Horovod has multiplied {self._entry.name!r} by {float(output)}, and another tensor of the same step "
                f"by {self._told}"
            )
        began = time.perf_counter()
        if self._gradient.dtype == torch.float16 and not self.step.abandoned:
            self._keep_excess()
        gradient = deliver(self._result, self._gradient)
        if self._entry.part is None:
            self.step.hand_over(self._entry, due=self._due, faithful=self._faithful)
        self._decode_seconds += time.perf_counter() - began
        self._count(waited + self._wait_seconds, self._decode_seconds, totals)
        return gradient

    def _send(self, carried: bool) -> None:
        name = self._name
        process_set = self.members.process_set
        if self._transport != "allreduce":
            send = hvd.allgather_async if self._transport == "gather" else hvd.alltoall_async
            self._handle = send(self._payload, name=name, process_set=process_set)
            return
        if self._plan.summable is not None:
            message = self._payload.view(getattr(torch, str(self._plan.summable)))
            scale = transport.summand_scale(self._plan, self.members.workers)
            message = message if scale == 1.0 else message * scale
        else:
            message = torch.empty(self._plan.numel, dtype=torch.float32, device=self._flat.device)
            self.backend.masked(self.proposal, message)
            message = message if self.step.on_device else message.cpu()
        self._carried = carried and transport.carriable(self._plan)
        if self._carried:
            # Horovod's own allreduce works in place, and what was sent is still read from the payload.
            self.message = message if self._plan.summable is None else message.clone()
        else:
            self._handle = hvd.allreduce_async(message, name=name, op=hvd.Sum, process_set=process_set)

    @property
    def _payload(self) -> torch.Tensor:
        payload = self.proposal.payload
        return payload if isinstance(payload, torch.Tensor) else torch.from_numpy(payload)

    @property
    def _name(self) -> str:
        return f"horovod_dgc.{self._entry.wire_name}"

    def receive(self, output: torch.Tensor) -> None:
        """Wait for what has been sent to come back, and take the factor from Horovod's ``output``."""
        self._received = output if self._handle is None else wait(self._handle)
        votes, gathered = self._plan.codec.votes, self._transport != "allreduce"
        if not self._carried:
            self._told = float(output)
            self.step.require_everybody(self._told)
            summed = self.members.workers * transport.summand_scale(self._plan, self.members.workers)
            self._factor = self._told if votes or gathered else self._told / summed

    def addition(self) -> Addition | None:
        """Payloads that are to be added up, or None if what has come back is the dense sum itself."""
        plan = self._plan
        if self._transport != "allreduce":
            rows, scale = self._rows(self._received), self._factor / self.members.workers
            if plan.codec.votes:
                scale = 1.0
            else:
                scale *= self.step.loss_scale
            in_place = self._in_place
        elif plan.summable is None or (plan.codec.layout is not None and plan.every_coordinate):
            return None
        else:
            # One payload: that of the sum.
            rows, scale, in_place = self._received.cpu().view(torch.uint8)[None], 1.0, False
        self._result = self._flat if in_place else torch.zeros_like(self._flat, dtype=torch.float32)
        return Addition(self.inputs, rows, self.backend.view(self._result), scale)

    def absorb(self, added: Addition) -> None:
        """Let the codec's memory learn from what has come back."""
        if self.inputs.memory is not None and not self._plan.codec.votes:
            self.backend.absorb(self.inputs, added.payloads.numpy())

    def reduction(self) -> Reduction | None:
        """What is still to be done to the dense sum, or None if that is nothing."""
        votes = self._plan.codec.votes
        if self._transport != "allreduce" and not votes:
            return None
        values = self._received if self._result is None else self._result
        if votes:
            self.backend.vote(values)
        return Reduction(values, None, _core.Update(), self._factor, self.step.loss_scale)

    def reduced(self, result: torch.Tensor) -> None:
        self._result = result

    def committed(self) -> None:
        """The backend has committed: add what other workers have returned."""
        if self._returned is not None:
            begin, values = self._returned
            assert self._entry.residual is not None
            here = self._entry.residual[begin : begin + len(values)]
            here += torch.from_numpy(values).to(here.device)
        if self.inputs.velocity is not None:
            self._entry.stepped, self._entry.common = True, False

    def abandon(self) -> None:
        """NaN if any worker's gradient of this tensor was not finite, else zeros: no rank has changed state."""
        if self._transport != "allreduce":
            poisoned = self._plan.codec.poisoned(self._rows(self._received).cpu().numpy())
        else:
            poisoned = _core.sum_poisoned(self._received.cpu().numpy())
        self._result = torch.full_like(self._flat, math.nan if poisoned else 0.0, dtype=torch.float32)

    def _keep_excess(self) -> None:
        """Put back what the gradient's own type cannot hold: what has waited may be more than any gradient."""
        residual = self._entry.residual_view
        if residual is None or self._plan.codec.votes:
            return
        most = torch.finfo(torch.float16).max
        held = self._result.clamp(-most, most)
        assert self._entry.residual is not None
        # All ranks put back the same: what the reduction will make of that is the excess.
        self._entry.residual += (self._result - held) / (self.step.dense_factor * self.step.loss_scale)
        self._result = held

    def spent(self, wait: float, decode: float) -> None:
        """Note this tensor's share of seconds."""
        self._wait_seconds, self._decode_seconds = wait, decode

    def _rows(self, received: torch.Tensor) -> torch.Tensor:
        """The payloads of all workers, or, of a sparse allreduce, that of their sum."""
        workers, nbytes = self.members.workers, self._plan.payload_nbytes
        count = workers if self._transport == "gather" else 1
        if received.numel() != count * nbytes:
            raise ValueError(
                f"the payloads of {self._entry.name!r} must have {nbytes} bytes on each of {workers} ranks, got "
                f"{received.numel()} in all: is the density schedule the same on every rank?"
            )
        return received.view(count, nbytes)

    def _count(self, wait: float, decode: float, totals: tuple[TensorStats, ...]) -> None:
        plan = self._plan
        if not self.step.abandoned:
            self.step.count_nonzero(self.proposal, plan, (self._entry.stats, *totals))
        overflow = self.proposal.overflow
        for count in (self._entry.stats, *totals):
            count.sent += plan.opening_nbytes + transport.message_nbytes(plan, self._transport)
            count.control += 0 if self._carried else self.message.element_size()
            count.dense += self.dense_nbytes
            count.encode += self._encode_seconds
            count.wait += wait
            count.decode += decode
            if not self.step.abandoned:
                count.elements += plan.numel
                count.overflow += overflow
        if self.step.abandoned:
            self._entry.stats.skipped += 1
        else:
            self._entry.stats.steps += 1


def complete(exchanges: list[Exchange], output: torch.Tensor) -> None:
    """Commit the exchanges of one backend and add up what has come back.

    Args:
        output: what Horovod's allreduce made of the first one's message, and of all where there are several: the
            factor of the step.
    """
    backend, abandoned = exchanges[0].backend, exchanges[0].step.abandoned
    began = time.perf_counter()
    for exchange in exchanges:
        exchange.receive(output)
    arrived = time.perf_counter()
    if abandoned:
        for exchange in exchanges:
            exchange.abandon()
    else:
        backend.commit([exchange.inputs for exchange in exchanges], [exchange.proposal for exchange in exchanges])
        for exchange in exchanges:
            exchange.committed()
        additions = [(exchange, exchange.addition()) for exchange in exchanges]
        added = [(exchange, addition) for exchange, addition in additions if addition is not None]
        backend.decode_add([addition for _, addition in added])
        for exchange, addition in added:
            exchange.absorb(addition)
        reductions = [(exchange, exchange.reduction()) for exchange in exchanges]
        left = [(exchange, reduction) for exchange, reduction in reductions if reduction is not None]
        for (exchange, _), result in zip(left, backend.finish([reduction for _, reduction in left])):
            exchange.reduced(result)
    share = 1.0 / len(exchanges)
    finished = time.perf_counter()
    for exchange in exchanges:
        exchange.spent((arrived - began) * share, (finished - arrived) * share)


def deliver(result: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """A flat float32 result in the form of the gradient that it takes the place of, and in its memory where it can."""
    if result.data_ptr() == gradient.data_ptr():
        return gradient
    shaped = result.view(gradient.shape)
    overlapping = any(s == 0 and n > 1 for s, n in zip(gradient.stride(), gradient.shape))
    if overlapping or (gradient.is_contiguous() and gradient.dtype == torch.float32):
        return shaped.to(gradient.dtype)
    return gradient.copy_(shaped)
