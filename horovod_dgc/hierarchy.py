"""Hierarchical transport: gradients are averaged inside a node, and compressed only between nodes.

Ranks are numbered node by node, as launchers number them. A tensor is seen as rows, one for each output unit; inside
a node its rows are spread over the ranks, so that each of them compresses, and keeps the state of, its own rows only,
and exchanges them with the ranks of the same place on the other nodes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from horovod_dgc import _checks
from horovod_dgc.methods.base import Outputs


@dataclass(frozen=True)
class Members:
    """Those who exchange with one another: a process set of Horovod, and how many they are."""

    process_set: Any
    workers: int


@dataclass(frozen=True)
class Part:
    """The consecutive elements of a tensor, in row-major order, that one rank of a node compresses.

    Attributes:
        start, stop: of the elements.
        shape: of the part: rows, and what is in a row.
    """

    start: int
    stop: int
    shape: tuple[int, int]

    @property
    def numel(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Hierarchy:
    """This rank's place among nodes of equal size.

    Attributes:
        rank, workers: of all.
        local_size: ranks of a node, more than 1.
        ordered: whether this rank has the place on its node that its number says.
    """

    rank: int
    workers: int
    local_size: int
    ordered: bool = True

    @property
    def nodes(self) -> int:
        return self.workers // self.local_size

    @property
    def node(self) -> int:
        return self.rank // self.local_size

    @property
    def place(self) -> int:
        """This rank's number on its node."""
        return self.rank % self.local_size

    @property
    def configuration(self) -> str:
        """A line that must be the same on all ranks."""
        order = "" if self.ordered else ", but ranks are not numbered node by node"
        return f"hierarchical, nodes of {self.local_size} ranks{order}"

    def inside(self, node: int) -> list[int]:
        """The ranks of a node."""
        return list(range(node * self.local_size, (node + 1) * self.local_size))

    def across(self, place: int) -> list[int]:
        """The ranks that have the same place on all nodes."""
        return list(range(place, self.workers, self.local_size))

    def part(self, shape: Sequence[int], outputs: Outputs) -> Part | None:
        """This rank's part of a tensor; None for one that is exchanged among all ranks as it is.

        Those are tensors of at most one dimension, whose exchange costs latency more than bytes, and those with fewer
        rows than a node has ranks.

        Args:
            outputs: which axis counts output units, as for :meth:`horovod_dgc.Method.plan`.
        """
        numel = math.prod(shape)
        if len(shape) < 2 or not numel:
            return None
        rows = shape[0] if outputs == "first" else numel // shape[-1]
        if rows < self.local_size:
            return None
        # As Horovod's reducescatter divides them: the first ranks take one more.
        each, more = divmod(rows, self.local_size)
        first = self.place * each + min(self.place, more)
        mine = each + (self.place < more)
        columns = numel // rows
        return Part(first * columns, (first + mine) * columns, (mine, columns))

    def members(self, everybody: Any) -> tuple[Members, Members]:
        """The ranks of this rank's node, and those of its place on all nodes; every rank calls this.

        Args:
            everybody: the process set of the job's optimizer.

        Raises:
            ValueError: it is not the global one, or Horovod was not told to allow new process sets.
        """
        if everybody.process_set_id != 0:
            raise ValueError("hierarchical takes all ranks: it does not go with a process_set of the optimizer's own")
        # Every rank takes part in the making of every set.
        inside = [process_set(self.inside(node)) for node in range(self.nodes)]
        across = [process_set(self.across(place)) for place in range(self.local_size)]
        return Members(inside[self.node], self.local_size), Members(across[self.place], self.nodes)


def hierarchy(hierarchical: object, hvd: Any) -> Hierarchy | None:
    """What the option ``hierarchical`` comes to; None where every rank is a node of its own.

    Whether Horovod's nodes are of equal size, and their ranks consecutive, only all ranks together can tell: they
    compare :attr:`Hierarchy.configuration`.

    Args:
        hierarchical: True for Horovod's nodes, or the number of ranks that are to count as one.
        hvd: Horovod's module for the framework, which says where this rank is.

    Raises:
        ValueError: ``hierarchical`` is neither, or does not divide the number of workers.
    """
    if hierarchical is False:
        return None
    rank, workers = hvd.rank(), hvd.size()
    if hierarchical is True:
        size = hvd.local_size()
        return Hierarchy(rank, workers, size, ordered=hvd.local_rank() == rank % size) if size > 1 else None
    size = _checks.whole_number("hierarchical", hierarchical, 1)
    if workers % size:
        raise ValueError(
            f"hierarchical must be a number of ranks that divides the {workers} of the job, got {hierarchical!r}"
        )
    return Hierarchy(rank, workers, size) if size > 1 else None


def process_set(ranks: list[int]) -> Any:
    """Horovod's process set of these global ranks, ascending: the one that there is, or else a new one."""
    from horovod.common import process_sets

    ids = {tuple(known): number for number, known in process_sets._basics._get_process_set_ids_and_ranks().items()}
    found = process_sets.ProcessSet(ranks)
    if tuple(ranks) in ids:
        found.process_set_id = ids[tuple(ranks)]
        return found
    try:
        return process_sets.add_process_set(found)
    except ValueError as error:
        raise ValueError(
            'hierarchical needs process sets of its own: start Horovod with hvd.init(process_sets="dynamic")'
        ) from error
