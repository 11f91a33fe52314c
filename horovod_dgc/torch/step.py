"""One training step's exchange on one worker: all tensors, committed together or not at all."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import horovod.torch as hvd
import torch
from horovod.common.exceptions import HorovodInternalError

from horovod_dgc.coding import opened_by_quantile
from horovod_dgc.hierarchy import Members
from horovod_dgc.methods.base import FloatArray, Method, Plan, clip_factor, clip_limit
from horovod_dgc.stats import TensorStats
from horovod_dgc.torch.applying import Applying
from horovod_dgc.torch.backends import Backend, Proposals
from horovod_dgc.torch.collectives import JOINED, UNDER_WAY, Rounds, wait
from horovod_dgc.torch.exchange import Exchange
from horovod_dgc.torch.moments import SecondMoments
from horovod_dgc.torch.node_exchange import NodeExchange
from horovod_dgc.torch.takeover import Takeover
from horovod_dgc.torch.tensors import Tensor
from horovod_dgc.transport import Transport

NONFINITE = "horovod_dgc.nonfinite"
TOUCHED = (
    "the gradient of {name!r} was changed after backward() and before synchronize(), while it was being exchanged. "
    "Call optimizer.synchronize() first; then scaler.unscale_(optimizer), or change it in other ways; and then step() "
    "inside of optimizer.skip_synchronize() (docs/pytorch.md, What changes in your training script)"
)
# Elements that are worth launches of their own: as many as a GPU needs some ten microseconds for.
COMPANY_NUMEL = 1 << 22

# A count that is known on a device only, and where it is to be added.
Uncounted = tuple[Callable[[], int], Sequence[TensorStats]]


class Step:
    """Collects the exchanges of one step; :meth:`seal` decides whether they count.

    Encoding and sending start as each gradient arrives, or, where a backend is faster at several tensors at a time,
    when enough of them have. With global-norm clipping, or a threshold that all tensors have in common, they wait for
    :meth:`seal`, since these depend on all gradients.

    Args:
        number: exchanges committed before this one, which the density schedule reads.
        applying: takes what comes back.
        owner: the calling ``hvd.DistributedOptimizer``.
        name: of the Compression, the same on all ranks, and no other's.
        transport: the one to use for every tensor; None to choose by cost.
        loss_scale: factor that all gradients carry.
        expected: number of gradients that a step has, where all are dense.
        token_count: number of one-element tensors that may be needed.
        on_device: whether payloads that are made on a GPU go to Horovod there, or by way of host memory.
        uncounted: takes counts that are known on a device only.
        nodes: the ranks of this rank's node, and those of its place on all nodes; None where all exchange with all.
        second_moments: where the gradients' are to be had; None for their own squares.
        conclude: called when it is known whether the step counts; gives the counts to add its own to.

    Attributes:
        given_up: whether the state that the step began with has been replaced, so that it cannot be finished.
    """

    def __init__(
        self,
        *,
        method: Method,
        number: int,
        takeover: Takeover,
        applying: Applying,
        owner: Any,
        name: str,
        transport: Transport | None,
        loss_scale: float,
        expected: int,
        token_count: int,
        nodes: tuple[Members, Members] | None,
        on_device: bool,
        uncounted: list[Uncounted],
        conclude: Callable[[Step], tuple[TensorStats, ...]],
        second_moments: SecondMoments | None = None,
    ) -> None:
        self.method = method
        self.takeover = takeover
        self._applying = applying
        self._name = name
        self.transport = transport
        self.loss_scale = loss_scale
        self.second_moments = second_moments
        self.on_device = on_device
        self.process_set = owner.process_set
        self.workers: int = owner.process_set.size()
        self._everyone = Members(self.process_set, self.workers)
        self._nodes = nodes
        self.dense_factor = 1.0 if owner.op == hvd.Average else float(self.workers)
        self.deferred = method.clip_norm is not None and method.clip_scope == "global"
        self.number = number
        self.sealed = False
        self.abandoned = False
        self.given_up = False
        self._expected = expected
        self._groups = takeover.group_of()
        self._exchanges: dict[str, Exchange | NodeExchange] = {}
        # Those whose gradients are on their way inside the node.
        self._pending: list[NodeExchange] = []
        # Those that wait to be started together, with where on the device their gradients were made.
        self._waiting: dict[Backend, list[tuple[Exchange | NodeExchange, Any]]] = {}
        self._waiting_numel = 0
        # Those that will be finished together, by backend and by whom they exchange with; and what has been proposed.
        self._companies: dict[tuple[Backend, int], list[Exchange]] = {}
        self._proposals: list[Proposals] = []
        self._uncounted = uncounted
        self._tokens = torch.ones(token_count, dtype=torch.float32, device="cpu")
        self._flag: int | None = None
        self._conclude = conclude
        # What is left to be done, the collective that it waits for, and whether it is being gone on with or has ended.
        self._rounds = self._all_rounds()
        self._awaited: Any = None
        self._going_on = self._ended = False
        UNDER_WAY.add(self)
        self._began = time.perf_counter()
        self._last_seen = self._began

    def __contains__(self, entry: Tensor) -> bool:
        return entry.name in self._exchanges

    def submit(self, entry: Tensor, gradient: torch.Tensor) -> Exchange | NodeExchange:
        """Take one gradient in; unless clipping must wait, encode it and start its collective."""
        position = len(self._exchanges)
        self._applying.submitted(entry, gradient)
        exchange = self._exchange(entry, gradient, self._tokens[position : position + 1])
        self._exchanges[entry.name] = exchange
        if not self.deferred:
            if exchange.in_company:
                self._wait(exchange)
            else:
                self._start([exchange], carried=True)
            self._pending = [node for node in self._pending if not node.arrive_if_ready()]
        # Another Compression's step may be finished first: nobody is to wait for what could be sent. When a node's
        # gradients have arrived, though, is up to each rank.
        if position + 1 == self._expected and self._nodes is None:
            self._launch_deferred()
            self._launch_waiting()
            self._send_flag()
        self.leave()
        return exchange

    def seal(self) -> float:
        """All gradients are in: start what had to wait, learn whether every rank's are finite, and do what the others
        wait for before the first tensor can be finished.

        Returns:
            Seconds of waiting.

        Raises:
            RuntimeError: a gradient has been changed since it was handed over; nothing has been committed.
        """
        touched = next((name for name, exchange in self._exchanges.items() if exchange.touched), None)
        if touched is not None:
            raise RuntimeError(TOUCHED.format(name=touched))
        self.sealed = True
        waited = 0.0
        while not self._ended:
            began = time.perf_counter()
            result = None if self._awaited is None else wait(self._awaited)
            waited += time.perf_counter() - began
            self._go_on(result)
        return waited

    def progress(self) -> None:
        """Where all gradients are in: what :meth:`seal` is going to do, as far as that needs no waiting."""
        if self.sealed or self._going_on or self.given_up or len(self._exchanges) != self._expected:
            return
        while not self._ended and (self._awaited is None or hvd.poll(self._awaited)):
            self._go_on(None if self._awaited is None else hvd.synchronize(self._awaited))

    def _go_on(self, result: Any) -> None:
        """From one collective to the next: ``result`` is what the one that is awaited has come to."""
        self._going_on, self._awaited = True, None
        try:
            self._awaited = self._rounds.send(result)
        except StopIteration:
            self._ended = True
        finally:
            self._going_on = False

    def _all_rounds(self) -> Rounds:
        exchanges = self._exchanges.values()
        self._launch_deferred()
        self._launch_waiting()
        for exchange in exchanges:
            yield from exchange.arrive()
        if self._flag is None:
            self._send_flag()
        settled = self._settled()
        for exchange in exchanges:
            yield from exchange.proceed(settled)
        nonfinite = yield self._flag
        self.abandoned = bool(nonfinite.item())
        for backend in {backend for backend, _ in self._companies}:
            backend.require_valid()
        # The step lives on until the next one begins; what belongs to its exchanges goes with them.
        self._companies, self._proposals = {}, []
        counts = self._conclude(self)
        for exchange in exchanges:
            yield from exchange.land(*counts)

    def discard(self) -> None:
        """Wait for what is under way and forget it; nothing has been committed."""
        UNDER_WAY.discard(self)
        self._rounds.close()
        for exchange in self._exchanges.values():
            exchange.cancel()
        if self._flag is not None:
            hvd.synchronize(self._flag)

    def hand_over(self, entry: Tensor, *, due: bool, faithful: bool) -> None:
        """Horovod gets a tensor's gradient; see :meth:`Tensor.came_back`. Of a skipped step none is to be applied."""
        if self.abandoned:
            entry.forget_gradient()
        else:
            self._applying.came_back(entry, due=due, faithful=faithful)

    def require_everybody(self, told: float) -> None:
        """Raise if what Horovod has made of a 1 of each rank lacks a rank's."""
        if self._nodes is None and told < self.dense_factor * (1 - 0.5 / self.workers):
            raise HorovodInternalError(JOINED)

    def unfinished(self) -> str | None:
        """The name of a parameter whose gradient waits for ``synchronize()``; None if there is none."""
        return None if self.sealed or self.given_up else next(iter(self._exchanges), None)

    def count_control(self, *counts: TensorStats) -> None:
        """Add the bytes of the flag itself."""
        for count in counts:
            count.control += self._tokens.element_size()

    def waited(self) -> float:
        """Seconds for which Horovod has kept us from the next tensor, waiting for its own collective.

        Between the last gradient and ``step()`` it is the user's code that runs, so that time does not count.
        """
        if not self.sealed and self.takeover.step_called < self._began:
            return 0.0
        return time.perf_counter() - max(self._last_seen, self.takeover.step_called)

    def leave(self) -> None:
        """Note the time: what follows, up to the next tensor, is waiting."""
        self._last_seen = time.perf_counter()

    def _settled(self) -> FloatArray | None:
        """What this worker's tensors agree upon among themselves, if they do."""
        parts = [(e.codec, e.contribution) for e in self._exchanges.values() if e.contribution is not None]
        return opened_by_quantile([codec for codec, _ in parts], [part for _, part in parts]) if parts else None

    def _exchange(self, entry: Tensor, gradient: torch.Tensor, token: torch.Tensor) -> Exchange | NodeExchange:
        plan = self.method.plan(entry.shape, self.number)
        group = self._groups[id(entry.parameter)]
        if entry.part is None:
            return Exchange(self, entry, gradient, plan, group, token, self._everyone)
        assert self._nodes is not None
        inside, across = self._nodes
        exchange = NodeExchange(self, entry, gradient, plan, group, token, inside=inside, across=across)
        self._pending.append(exchange)
        return exchange

    def _start(self, exchanges: Sequence[Exchange | NodeExchange], *, carried: bool) -> None:
        """Start exchanges of one backend, clipped where that does not wait for all gradients."""
        backend, clip = exchanges[0].backend, self.method.clip_norm
        unscales = [1.0 / self.loss_scale] * len(exchanges)
        if clip is not None:
            limit = self._clip_limit(clip)
            norms = [math.sqrt(s) / self.loss_scale for s in backend.sum_squares([e.norm_of for e in exchanges])]
            unscales = [clip_factor(norm, limit) / self.loss_scale for norm in norms]
        self.launch(exchanges, unscales, carried=carried)

    def launch(self, exchanges: Sequence[Exchange | NodeExchange], unscales: Sequence[float], *, carried: bool) -> None:
        """Start exchanges of one backend, each with its ``unscale``; see :meth:`Exchange.start`."""
        backend = exchanges[0].backend
        for exchange, unscale in zip(exchanges, unscales):
            exchange.start(unscale, carried=carried)
        together = [e for e in exchanges if isinstance(e, Exchange) and e.waiting]
        if not together:
            return
        began = time.perf_counter()
        proposals = backend.propose([exchange.inputs for exchange in together])
        if not self.on_device:
            proposals.to_host()
        self._proposals.append(proposals)
        share = (time.perf_counter() - began) / len(together)
        for number, exchange in enumerate(together):
            company = self._companies.setdefault((backend, id(exchange.members)), [])
            company.append(exchange)
            exchange.proposed(proposals, number, company, share)

    def _wait(self, exchange: Exchange | NodeExchange) -> None:
        """Start it when there are enough to be started together."""
        backend = exchange.backend
        waiting = self._waiting.setdefault(backend, [])
        waiting.append((exchange, backend.here()))
        self._waiting_numel += exchange.codec.n
        if self._waiting_numel >= COMPANY_NUMEL:
            self._launch_waiting()

    def _launch_deferred(self) -> None:
        """Start what had to wait for all gradients."""
        if not self.deferred:
            return
        self.deferred = False
        assert self.method.clip_norm is not None
        alike: dict[Backend, list[Exchange | NodeExchange]] = {}
        for exchange in self._exchanges.values():
            alike.setdefault(exchange.backend, []).append(exchange)
        squares = sum(sum(backend.sum_squares([e.norm_of for e in each])) for backend, each in alike.items())
        factor = clip_factor(math.sqrt(squares) / self.loss_scale, self._clip_limit(self.method.clip_norm))
        for each in alike.values():
            self.launch(each, [factor / self.loss_scale] * len(each), carried=False)

    def _launch_waiting(self) -> None:
        for backend, waiting in self._waiting.items():
            backend.follow([place for _, place in waiting])
            self._start([exchange for exchange, _ in waiting], carried=False)
        self._waiting = {}
        self._waiting_numel = 0

    def count_nonzero(self, proposal: Any, plan: Plan, counts: Sequence[TensorStats]) -> None:
        """Count the coordinates that are sent with a value other than 0, now or when that is known."""
        nonzero = plan.numel if plan.every_coordinate else proposal.nonzero
        if isinstance(nonzero, int):
            for count in counts:
                count.nonzero += nonzero
        else:
            self._uncounted.append((nonzero, counts))

    def _clip_limit(self, clip_norm: float) -> float:
        return clip_limit(clip_norm, self.workers, self.dense_factor)

    def _send_flag(self) -> None:
        nonfinite = sum(exchange.nonfinite for exchange in self._exchanges.values())
        flag = torch.tensor([nonfinite], dtype=torch.float32, device="cpu")
        for proposals in self._proposals:
            count = proposals.nonfinite
            # On the device, and there without waiting for it.
            flag = count + flag.to(count.device, non_blocking=True) if isinstance(count, torch.Tensor) else flag + count
        if not self.on_device:
            flag = flag.cpu()
        self._flag = hvd.allreduce_async(
            flag, name=f"{NONFINITE}.{self._name}", op=hvd.Sum, process_set=self.process_set
        )
