"""One tensor's way through one step where nodes, and not single workers, exchange payloads."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import horovod.torch as hvd
import torch

from horovod_dgc import _core
from horovod_dgc.hierarchy import Members
from horovod_dgc.methods.base import FloatArray, Plan
from horovod_dgc.stats import TensorStats
from horovod_dgc.torch.collectives import Rounds, finish, wait
from horovod_dgc.torch.exchange import Exchange, deliver
from horovod_dgc.torch.tensors import Tensor, flatten
from horovod_dgc.transport import FLOAT32_NBYTES

if TYPE_CHECKING:
    from horovod_dgc.torch.step import Step


class NodeExchange:
    """Stands in the place of an :class:`~horovod_dgc.torch.exchange.Exchange`.

    The node's mean gradient is scattered over its ranks (:meth:`start`), each rank exchanges its part with the other
    nodes (:meth:`arrive`, :meth:`proceed`), and the parts are gathered again inside the node (:meth:`land`).

    Args:
        inside: the ranks of the node; across: those that have the same part on all nodes.
    """

    def __init__(
        self,
        step: Step,
        entry: Tensor,
        gradient: torch.Tensor,
        plan: Plan,
        group: dict[str, Any],
        token: torch.Tensor,
        *,
        inside: Members,
        across: Members,
    ) -> None:
        self.step = step
        self.message = token
        self.backend = entry.backend
        self.contribution: FloatArray | None = None
        self._entry = entry
        self._version = gradient._version
        self._gradient = gradient
        self._plan = plan
        self._group = group
        self._inside, self._across = inside, across
        self._scattered: int | None = None
        self._gathered: int | None = None
        self._between: Exchange | None = None

    @property
    def codec(self) -> _core.Codec:
        return self._plan.codec

    # Its reduce-scatter waits for nobody; what comes of it is no gradient of this worker.
    in_company = False
    waiting = False

    @property
    def nonfinite(self) -> int:
        """As for :class:`~horovod_dgc.torch.exchange.Exchange`, of this rank's part."""
        return 0 if self._between is None else self._between.nonfinite

    @property
    def norm_of(self) -> Any:
        """This worker's gradient as it came, as the backend sees it."""
        return self.backend.view(flatten(self._gradient))

    def start(self, unscale: float, *, carried: bool) -> None:
        """Hand the gradient, times ``unscale``, to the reduce-scatter inside the node."""
        rows = self._entry.parameter.shape[0]
        # Sums over a node's workers have more bits than a half has.
        message = flatten(self._gradient).float().view(rows, -1)
        if unscale != 1.0:
            message = message * unscale
        self._scattered = hvd.reducescatter_async(
            message, name=f"{self._name}.scatter", op=hvd.Average, process_set=self._inside.process_set
        )

    @property
    def touched(self) -> bool:
        """As for :class:`~horovod_dgc.torch.exchange.Exchange`."""
        return self._gradient._version != self._version

    def arrive_if_ready(self) -> bool:
        """:meth:`arrive` if it need not wait; whether it has been called."""
        if self._scattered is not None and hvd.poll(self._scattered):
            finish(self.arrive())
        return self._between is not None

    def arrive(self) -> Rounds:
        """Encode this rank's part of the node's mean gradient, and send it or what has to be agreed upon first."""
        if self._scattered is None:
            return
        part = yield self._scattered
        self._scattered = None
        between = Exchange(self.step, self._entry, part, self._plan, self._group, self.message, self._across)
        between.dense_nbytes = self._gradient.numel() * self._gradient.element_size()
        self.step.launch([between], [1.0], carried=False)
        self.contribution = between.contribution
        self._between = between

    def proceed(self, settled: FloatArray | None) -> Rounds:
        """As for :class:`~horovod_dgc.torch.exchange.Exchange`."""
        assert self._between is not None
        yield from self._between.proceed(settled)

    def land(self, *totals: TensorStats) -> Rounds:
        """Apply what came from the other nodes to this rank's part, and hand that to the gather inside the node."""
        assert self._between is not None
        yield from self._between.land()
        mean = self._between.finish(torch.ones(1, dtype=torch.float32, device="cpu"), 0.0, *totals)
        self._gathered = hvd.allgather_async(mean, name=f"{self._name}.gather", process_set=self._inside.process_set)
        for count in (self._entry.stats, *totals):
            count.inside += FLOAT32_NBYTES * (self._gradient.numel() + mean.numel())

    def finish(self, output: torch.Tensor, waited: float, *totals: TensorStats) -> torch.Tensor:
        """As for :class:`~horovod_dgc.torch.exchange.Exchange`."""
        assert self._gathered is not None
        began = time.perf_counter()
        result = wait(self._gathered).view(-1)
        arrived = time.perf_counter()
        factor = float(output)
        if self.step.abandoned:
            if not torch.isfinite(result).all():
                result = torch.full_like(result, torch.nan)
        elif factor != 1.0:
            result = result * factor
        gradient = deliver(result, self._gradient)
        self.step.hand_over(self._entry, due=False, faithful=False)
        for count in (self._entry.stats, *totals):
            count.wait += waited + arrived - began
            count.decode += time.perf_counter() - arrived
        del self.message, self._gradient, self._between, self.step
        return gradient

    def cancel(self) -> None:
        """Wait for the collectives that are under way on any rank: on some, the part may have gone out already."""
        finish(self.arrive())
        if self._between is not None:
            self._between.cancel()

    @property
    def _name(self) -> str:
        return f"horovod_dgc.{self._entry.wire_name}"
