"""Methods under comparison, and what goes with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

from support.simulated import Training

from horovod_dgc import METHODS, Method, TopK, Warmup

AnyTraining = TypeVar("AnyTraining", bound=Training)

DENSE = "dense"
# The update of a majority vote is +1 or -1, whatever the gradient: a rate of its own for the compressed tensors.
SIGN_RATE = 0.001
RATES: Mapping[str, float] = {"signsgd": SIGN_RATE / 5, "signum": SIGN_RATE}


@dataclass(frozen=True)
class Contender:
    """One row of a table.

    Attributes:
        method: without what the training decides: warm-up and clipping.
        rate: peak learning rate of its compressed tensors; None for the one that the others have.
        changes: what is different in its training, by the names of :class:`Training`.
    """

    name: str
    method: Method
    rate: float | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)

    def training(self, common: AnyTraining) -> AnyTraining:
        return replace(common, **self.changes)

    def method_in(self, training: Training, steps_per_epoch: int) -> Method:
        """The method with the training's warm-up and clipping, if it has such options."""
        options = {option.name for option in fields(self.method)}
        settings: dict[str, Any] = {}
        if "warmup" in options and training.warmup:
            settings["warmup"] = Warmup(epochs=training.warmup, steps_per_epoch=steps_per_epoch)
        if "clip_norm" in options:
            settings["clip_norm"] = training.clip_norm
        return replace(self.method, **settings)

    @property
    def settings(self) -> str:
        """As in ``Compression(...)``."""
        return "" if self.name == DENSE else f"{type(self.method).__name__}()"


def all_of_them() -> dict[str, Contender]:
    """Dense first, as a method that sends every coordinate in float32, then the registry's in its order."""
    dense = TopK(density=1.0, values="float32", error_feedback=False)
    contenders = {DENSE: Contender(DENSE, dense)}
    return contenders | {name: Contender(name, kind(), RATES.get(name)) for name, kind in METHODS.items()}
