"""Figures over seeds, and how far a contender is from dense."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# Two-sided 95 % quantiles of Student's t by degrees of freedom.
STUDENT = {1: 12.71, 2: 4.303, 3: 3.182, 4: 2.776}
# Seeds that a verdict takes.
ENOUGH = 3


@dataclass(frozen=True)
class Comparison:
    """A contender beside dense in the same seeds.

    Attributes:
        seeds: that both have finished.
        deficit: mean of what the contender is worse by; negative where it is better.
        margin: half the width of the 95 % confidence interval of that mean, from the pairs; None with one seed.
        spread: standard deviation of the dense runs; None with one seed.
    """

    seeds: int
    deficit: float
    margin: float | None
    spread: float | None

    @property
    def verdict(self) -> str:
        if self.seeds < ENOUGH or self.spread is None:
            return "too few seeds"
        return "within" if self.deficit <= self.spread else "**worse**"


def deviation(values: Sequence[float]) -> float | None:
    """Sample standard deviation; None of one value."""
    return statistics.stdev(values) if len(values) > 1 else None


def compared(figures: Mapping[int, float], dense: Mapping[int, float], *, higher_is_better: bool) -> Comparison | None:
    """A contender's final figures by seed against those of dense; None where they have no seed in common."""
    sign = 1 if higher_is_better else -1
    worse = [sign * (dense[seed] - figure) for seed, figure in figures.items() if seed in dense]
    if not worse:
        return None
    spread = deviation(worse)
    margin = None if spread is None else STUDENT[len(worse) - 1] * spread / math.sqrt(len(worse))
    return Comparison(len(worse), statistics.fmean(worse), margin, deviation(list(dense.values())))
