"""Compression in elastic jobs: Horovod's ``TorchState`` with handlers that keep each rank's state its own.

    from horovod_dgc.torch.elastic import TorchState

    state = TorchState(model=model, optimizer=optimizer, compression=compression, epoch=0, batch=0)

``TorchState`` is Horovod's own class; importing this module registers handlers for what it is given. Horovod's handlers
give every rank what rank 0 has. With these, ranks that survive keep their residuals and velocities, and new ones begin
with zeros. What a lost rank had not sent yet is lost, and ``compression.stats()`` counts it. With ``op=hvd.Average``
what is kept is multiplied by N' / N, as in :func:`~horovod_dgc.torch.load_checkpoint`, so that what is still to be
applied stays what it is. What a method's codec keeps besides (second moments, a low-rank basis) goes on where all ranks
are those of before, and otherwise starts anew on all. Elastic jobs train in Horovod's global process set.
"""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import horovod.torch as hvd
import torch
from horovod.common.exceptions import HorovodInternalError
from horovod.torch.elastic.state import (
    OptimizerStateHandler,
    StateHandler,
    TorchState,
    get_handler_registry,
    set_handler_registry,
)

from horovod_dgc import resize
from horovod_dgc.elastic import NAME, Membership
from horovod_dgc.torch import state as states
from horovod_dgc.torch.compression import Compression
from horovod_dgc.torch.state import Loaded
from horovod_dgc.torch.tensors import Tensor

__all__ = ["TorchState"]


class CompressionHandler(StateHandler):  # type: ignore[misc]
    """Commits, restores and fits one rank's compression state; made by ``TorchState``."""

    def __init__(self, value: Compression) -> None:
        super().__init__(value)
        if value._hierarchy is not None:
            raise ValueError("hierarchical does not go with elastic jobs, whose nodes may come and go in part")
        self._membership = Membership()
        # Number of workers that the state is fitted to, now and at the last commit.
        self._workers = self._saved_workers = value.state_dict()["workers"]
        value._follow = self.follow
        self.save()

    def save(self) -> None:
        """Commit: copy this rank's state, and tell the others how much waits in it."""
        self._saved = copy.deepcopy(self.value.state_dict())
        self._saved_workers = self._workers
        # Others are there than those who had the state last: follow() comes first.
        if hvd.size() < 2 or not self._membership.follows(hvd.size()):
            return
        norm = sum(tensor.measured().residual_norm ** 2 for tensor in self.value._tensors)
        norms: list[float | None] = [None] * hvd.size()
        # Not an error of the commit, which is done: the next collective will meet it as well.
        with contextlib.suppress(HorovodInternalError):
            own = torch.tensor([norm], dtype=torch.float64, device="cpu")
            norms = hvd.allgather(own, name=f"{NAME}.norms").tolist()
        self._membership.commit(norms)

    def restore(self) -> None:
        """Go back to what was committed, in a job that may have broken down."""
        compression: Compression = self.value
        plans = compression._plans(self._saved["exchanges"])
        loaded = states.check_tensors(self._saved, compression._tensors, plans, momentum=compression._momentum)
        self._workers = self._saved_workers
        compression._go_on(loaded, self._saved["exchanges"], self._saved["reduction"], hvd.global_process_set)

    def sync(self) -> None:
        """Agree on who is there; every rank keeps its own state, fitted to their number, or begins with zeros."""
        compression: Compression = self.value
        begun = any(tensor.residual is not None for tensor in compression._tensors)
        report = self._membership.report(begun, compression._exchanges, compression._lost)
        reports = hvd.allgather_object(report, name=f"{NAME}.members")
        kept, lost = self._membership.settle(reports)
        common = hvd.broadcast_object(self._common(), root_rank=0, name=f"{NAME}.common")
        keep, same_ranks = self._membership.identity in kept, len(kept) == len(reports) == self._workers
        tensors = [self._fitted(tensor, common, keep, same_ranks) for tensor in compression._tensors]
        compression._go_on(tensors, common["exchanges"], common["reduction"], hvd.global_process_set)
        compression._lost = lost
        self._workers = len(reports)

    def follow(self) -> None:
        """Before a step: where ranks have only left, Horovod goes on without :meth:`sync`."""
        if self._membership.members and not self._membership.follows(hvd.size()):
            self.sync()

    def _common(self) -> dict[str, Any]:
        """What all ranks take from rank 0: numbers, and the velocities that are the same on all ranks."""
        compression: Compression = self.value
        tensors = {}
        for tensor, plan in zip(compression._tensors, compression._plans(compression._exchanges)):
            shared = None if plan.momentum != "aggregated" or tensor.velocity is None else tensor.velocity.cpu()
            tensors[tensor.name] = {
                "begun": tensor.residual is not None,
                "corrected": tensor.velocity is not None,
                "stepped": tensor.stepped,
                "velocity": shared,
            }
        return {"exchanges": compression._exchanges, "reduction": compression._reduction, "tensors": tensors}

    def _fitted(self, tensor: Tensor, common: dict[str, Any], keep: bool, same_ranks: bool) -> Loaded:
        """The tensor's state in the job as it is now.

        Args:
            keep: whether this rank keeps what it has.
            same_ranks: whether all do, and nobody is lost: a codec may need the same memory on all ranks.
        """
        theirs = common["tensors"][tensor.name]
        if not theirs["begun"]:
            return Loaded(tensor, None, None, None, False)
        parameter = tensor.parameter
        factor = resize.factor(common["reduction"], hvd.size(), self._workers) if keep else 0.0

        def own(state: torch.Tensor | None) -> torch.Tensor:
            if not keep or state is None:
                return torch.zeros(parameter.numel(), dtype=torch.float32, device=parameter.device)
            return state if factor == 1.0 else (state.double() * factor).float()

        velocity = None
        if theirs["corrected"]:
            shared = theirs["velocity"]
            velocity = own(tensor.velocity) if shared is None else shared.to(parameter.device)
        memory = tensor.memory if same_ranks else None
        return Loaded(tensor, own(tensor.residual), velocity, memory, theirs["stepped"])


class OptimizerHandler(OptimizerStateHandler):  # type: ignore[misc]
    """Horovod's, but for optimizers with a Compression.

    Horovod fills an optimizer that has no state yet by a step of zero gradients, which on a new rank would decay the
    weights, and give it momentum buffers that the others, whose momentum has been taken over, do not have.
    """

    def sync(self) -> None:
        if isinstance(getattr(self.value, "_compression", None), Compression):
            self.value.load_state_dict(hvd.broadcast_object(self.value.state_dict(), name=f"{NAME}.optimizer"))
        else:
            super().sync()


def _register() -> None:
    """Put our handlers before Horovod's, once."""
    ours = [(Compression, CompressionHandler), (torch.optim.Optimizer, OptimizerHandler)]
    registry = get_handler_registry()
    set_handler_registry(ours + [entry for entry in registry if entry not in ours])


_register()
