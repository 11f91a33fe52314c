"""One training step's exchange on one worker: all tensors, committed together or not at all."""

from __future__ import annotations

import math
import time
from typing import Any

import horovod.torch as hvd
import torch

from horovod_dgc.coding import opened_by_quantile
from horovod_dgc.methods.base import FloatArray, Method, clip_factor, clip_limit
from horovod_dgc.stats import TensorStats
from horovod_dgc.torch.exchange import Exchange
from horovod_dgc.torch.moments import SecondMoments
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
        second_moments: SecondMoments | None = None,
    ) -> None:
        self.method = method
        self.takeover = takeover
        self.transport = transport
        self.loss_scale = loss_scale
        self.second_moments = second_moments
        self.process_set = owner.process_set
        self.workers: int = owner.process_set.size()
        self.dense_factor = 1.0 if owner.op == hvd.Average else float(self.workers)
        self.deferred = method.clip_norm is not None and method.clip_scope == "global"
        self.number = number
        self.sealed = False
        self.abandoned = False
        self.given_up = False
        self._expected = expected
        self._groups = takeover.group_of()
        self._exchanges: dict[str, Exchange] = {}
        self._tokens = torch.ones(token_count)
        self._nonfinite = 0
        self._flag: int | None = None
        self._began = time.perf_counter()
        self._last_seen = self._began

    def __contains__(self, entry: Tensor) -> bool:
        return entry.name in self._exchanges

    def submit(self, entry: Tensor, gradient: torch.Tensor) -> Exchange:
        """Take one gradient in; unless clipping must wait, encode it and start its collective."""
        plan = self.method.plan(entry.parameter.shape, self.number)
        position = len(self._exchanges)
        exchange = Exchange(
            self,
            entry,
            gradient,
            plan if self.workers > 1 else plan.whole(),
            self._groups[id(entry.parameter)],
            self._tokens[position : position + 1],
        )
        self._exchanges[entry.name] = exchange
        if not self.deferred:
            self._start(exchange, 1.0 / self.loss_scale, carried=True)
            if position + 1 == self._expected:
                self._send_flag()
        self.leave()
        return exchange

    def seal(self) -> float:
        """All gradients are in: start what had to wait, and learn whether every rank's are finite.

        Returns:
            Seconds of waiting for the others' word.
        """
        self.sealed = True
        if self.deferred:
            assert self.method.clip_norm is not None
            norm = math.sqrt(sum(e.sum_squares() for e in self._exchanges.values())) / self.loss_scale
            factor = clip_factor(norm, clip_limit(self.method.clip_norm, self.workers, self.dense_factor))
            for exchange in self._exchanges.values():
                self._start(exchange, factor / self.loss_scale, carried=False)
        if self._flag is None:
            self._send_flag()
        settled = self._settled()
        waited = sum(exchange.proceed(settled) for exchange in self._exchanges.values())
        began = time.perf_counter()
        self.abandoned = bool(hvd.synchronize(self._flag).item())
        return waited + time.perf_counter() - began

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

    def _start(self, exchange: Exchange, unscale: float, *, carried: bool) -> None:
        exchange.start(unscale, carried=carried)
        self._nonfinite += not exchange.finite

    def _send_flag(self) -> None:
        self._flag = hvd.allreduce_async(
            torch.tensor([float(self._nonfinite)]), name=NONFINITE, op=hvd.Sum, process_set=self.process_set
        )
