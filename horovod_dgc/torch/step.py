"""One training step's exchange on one worker: all tensors, committed together or not at all."""

from __future__ import annotations

import math
import time
from typing import Any

import horovod.torch as hvd
import torch

from horovod_dgc.coding import opened_by_quantile
from horovod_dgc.hierarchy import Members
from horovod_dgc.methods.base import FloatArray, Method, clip_factor, clip_limit
from horovod_dgc.stats import TensorStats
from horovod_dgc.torch.exchange import Exchange
from horovod_dgc.torch.moments import SecondMoments
from horovod_dgc.torch.node_exchange import NodeExchange
from horovod_dgc.torch.takeover import Takeover
from horovod_dgc.torch.tensors import Tensor
from horovod_dgc.transport import Transport

NONFINITE = "horovod_dgc.nonfinite"


class Step:
    """Collects the exchanges of one step; :meth:`seal` decides whether they count.

    Encoding and sending start as each gradient arrives. With global-norm clipping, or a threshold that all tensors
    have in common, they wait for :meth:`seal`, since these depend on all gradients.

    Args:
        number: exchanges committed before this one, which the density schedule reads.
        owner: the calling ``hvd.DistributedOptimizer``.
        transport: the one to use for every tensor; None to choose by cost.
        loss_scale: factor that all gradients carry.
        expected: number of gradients that a step has, where all are dense.
        token_count: number of one-element tensors that may be needed.
        nodes: the ranks of this rank's node, and those of its place on all nodes; None where all exchange with all.
        second_moments: where the gradients' are to be had; None for their own squares.

    Attributes:
        given_up: whether the state that the step began with has been replaced, so that it cannot be finished.
    """

    def __init__(
        self,
        *,
        method: Method,
        number: int,
        takeover: Takeover,
        owner: Any,
        transport: Transport | None,
        loss_scale: float,
        expected: int,
        token_count: int,
        nodes: tuple[Members, Members] | None,
        second_moments: SecondMoments | None = None,
    ) -> None:
        self.method = method
        self.takeover = takeover
        self.transport = transport
        self.loss_scale = loss_scale
        self.second_moments = second_moments
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
        self._tokens = torch.ones(token_count)
        self._flag: int | None = None
        self._began = time.perf_counter()
        self._last_seen = self._began

    def __contains__(self, entry: Tensor) -> bool:
        return entry.name in self._exchanges

    def submit(self, entry: Tensor, gradient: torch.Tensor) -> Exchange | NodeExchange:
        """Take one gradient in; unless clipping must wait, encode it and start its collective."""
        position = len(self._exchanges)
        exchange = self._exchange(entry, gradient, self._tokens[position : position + 1])
        self._exchanges[entry.name] = exchange
        if not self.deferred:
            self._start(exchange, 1.0 / self.loss_scale, carried=True)
            self._pending = [node for node in self._pending if not node.arrive_if_ready()]
            # Ranks must agree upon when it is sent; when a node's gradients have arrived is up to each.
            if position + 1 == self._expected and self._nodes is None:
                self._send_flag()
        self.leave()
        return exchange

    def seal(self) -> float:
        """All gradients are in: start what had to wait, and learn whether every rank's are finite.

        Returns:
            Seconds of waiting for the others' word.
        """
        self.sealed = True
        exchanges = self._exchanges.values()
        if self.deferred:
            assert self.method.clip_norm is not None
            norm = math.sqrt(sum(e.sum_squares() for e in exchanges)) / self.loss_scale
            factor = clip_factor(norm, self._clip_limit(self.method.clip_norm))
            for exchange in exchanges:
                self._start(exchange, factor / self.loss_scale, carried=False)
        waited = sum(exchange.arrive() for exchange in exchanges)
        if self._flag is None:
            self._send_flag()
        settled = self._settled()
        waited += sum(exchange.proceed(settled) for exchange in exchanges)
        began = time.perf_counter()
        self.abandoned = bool(hvd.synchronize(self._flag).item())
        return waited + time.perf_counter() - began

    def land(self, *totals: TensorStats) -> float:
        """It is known whether the step counts: do what other ranks wait for before the first tensor is finished.

        Returns:
            Seconds of waiting.
        """
        return sum(exchange.land(*totals) for exchange in self._exchanges.values())

    def discard(self) -> None:
        """Wait for what is under way and forget it; nothing has been committed."""
        for exchange in self._exchanges.values():
            exchange.cancel()
        if self._flag is not None:
            hvd.synchronize(self._flag)

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

    def _start(self, exchange: Exchange | NodeExchange, unscale: float, *, carried: bool) -> None:
        clip = self.method.clip_norm
        if clip is not None and not self.deferred:
            norm = math.sqrt(exchange.sum_squares()) * unscale
            unscale *= clip_factor(norm, self._clip_limit(clip))
        exchange.start(unscale, carried=carried)

    def _clip_limit(self, clip_norm: float) -> float:
        return clip_limit(clip_norm, self.workers, self.dense_factor)

    def _send_flag(self) -> None:
        nonfinite = sum(not exchange.finite for exchange in self._exchanges.values())
        self._flag = hvd.allreduce_async(
            torch.tensor([float(nonfinite)]), name=NONFINITE, op=hvd.Sum, process_set=self.process_set
        )
