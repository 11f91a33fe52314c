"""Who is in an elastic job, whose state goes on, and what is lost with those who left."""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

NAME = "horovod_dgc.elastic"


@dataclass(frozen=True)
class Report:
    """What one rank tells the others after the job has changed.

    Attributes:
        identity: of the process; outlives changes of rank.
        begun: whether it has a state.
        exchanges: number of exchanges that the state has seen.
        members: squared norm of the residual of each process of the job at its last commit, by identity; None where
            that is not known. Empty for a process that has just come.
        lost: squared norms of the residuals that have been lost so far.
    """

    identity: str
    begun: bool
    exchanges: int
    members: dict[str, float | None]
    lost: list[float]


@dataclass
class Membership:
    """One process's view of the job; the same rules on all ranks, from the same reports."""

    identity: str = field(default_factory=lambda: secrets.token_hex(8))
    members: dict[str, float | None] = field(default_factory=dict)

    def report(self, begun: bool, exchanges: int, lost: list[float]) -> Report:
        return Report(self.identity, begun, exchanges, self.members, lost)

    def settle(self, reports: Sequence[Report]) -> tuple[set[str], list[float]]:
        """Who keeps the state it has, by identity, and the squared norms of all that has been lost.

        Those who have as many exchanges behind them as rank 0 keep it: what they have sent is in its parameters.

        Args:
            reports: of all ranks, in their order.
        """
        lead = reports[0]
        kept = {r.identity for r in reports if r.begun and lead.begun and r.exchanges == lead.exchanges}
        present = {r.identity: r.begun for r in reports}
        before: dict[str, float | None] = next((r.members for r in reports if r.members), {})
        # Also who is here with a state of another step: rank 0's parameters do not hold what it had sent.
        gone = [norm for identity, norm in before.items() if identity not in kept and present.get(identity, True)]
        known = max((r.lost for r in reports), key=len)
        self.members = dict.fromkeys(present)
        return kept, [*known, *(math.nan if norm is None else norm for norm in gone)]

    def commit(self, norms: Sequence[float | None]) -> None:
        """Remember the squared norms of all members' residuals, in the order of their ranks."""
        self.members = dict(zip(self.members, norms))

    def follows(self, workers: int) -> bool:
        """Whether the members are those of a job of this size."""
        return len(self.members) == workers
