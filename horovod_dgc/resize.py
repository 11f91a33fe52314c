"""The state of N workers on N' workers: what is still to be applied stays what it is.

Residuals v and velocities u enter the reduced gradient linearly. With Average, what they will sooner or later
contribute is (1 / N) times the sum of v over the workers, and (1 / N) times the sum of u, times a series in the
momentum. So on N' workers both sums must be N' / N times as large; with Sum, as large as they were. New worker r takes
the share of the old workers r, r + N', r + 2 N', ...; where there are more new workers than old, the others start from
zero. Velocities that are the same on all ranks, those of the reduced gradient, stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np
import numpy.typing as npt

Reduction = Literal["average", "sum"]


def sources(position: int, workers: int, saved_workers: int) -> range:
    """The old ranks whose state the new rank at ``position`` of ``workers`` takes."""
    return range(position, saved_workers, workers)


def factor(reduction: Reduction, workers: int, saved_workers: int) -> float:
    """What the sum of the old ranks' state is multiplied by."""
    return workers / saved_workers if reduction == "average" else 1.0


def merged(arrays: Iterable[npt.NDArray[np.float32]], factor: float) -> npt.NDArray[np.float32] | None:
    """``factor`` times the sum, rounded to float32 once; one array times 1 is that array, bit for bit.

    None if there are no arrays.
    """
    total: npt.NDArray[np.float64] | None = None
    for array in arrays:
        # From the first array and not from zeros, which would turn -0 into 0.
        total = array.astype(np.float64) if total is None else total + array
    return None if total is None else np.asarray(total * factor, np.float32)
