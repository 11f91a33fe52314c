"""The methods that family.py compares: every one of the registry at its own defaults, and what goes with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from horovod_dgc import DGC, METHODS, Method, TopK, Warmup

DENSE = "dense"
# The update of a majority vote is +1 or -1, whatever the gradient: a rate of its own for the compressed tensors.
SIGN_RATE = 0.001
RATES: Mapping[str, float] = {"signsgd": SIGN_RATE / 5, "signum": SIGN_RATE}


@dataclass(frozen=True)
class Contender:
    """One row of the table.

    Attributes:
        method: at its defaults.
        rate: peak learning rate of its compressed tensors; None for the one that the others have.
    """

    name: str
    method: Method
    rate: float | None = None

    def warmed_up(self, steps_per_epoch: int) -> Method:
        """The method as it is trained with: DGC's density falls during the first epoch."""
        if isinstance(self.method, DGC):
            return replace(self.method, warmup=Warmup(epochs=1, steps_per_epoch=steps_per_epoch))
        return self.method

    @property
    def settings(self) -> str:
        """As in ``Compression(...)``."""
        return "" if self.name == DENSE else f"{type(self.method).__name__}()"


def all_of_them() -> dict[str, Contender]:
    """Dense first, as a method that sends every coordinate in float32, then the registry's in its order."""
    dense = TopK(density=1.0, values="float32", error_feedback=False)
    contenders = {DENSE: Contender(DENSE, dense)}
    return contenders | {name: Contender(name, kind(), RATES.get(name)) for name, kind in METHODS.items()}
