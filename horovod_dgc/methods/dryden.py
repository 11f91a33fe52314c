"""Fixed proportion of positive and negative: Dryden, Moon, Jacobs, Van Essen, MLHPC 2016."""

from __future__ import annotations

import math
from dataclasses import dataclass

from horovod_dgc import _checks
from horovod_dgc.coding import INDICES, coordinates, coordinates_to_send
from horovod_dgc.method import Outputs, Plan
from horovod_dgc.methods.accumulating import Accumulating


@dataclass(frozen=True)
class FixedProportion(Accumulating):
    """Send where the largest positive and the largest negative coordinates are, and one mean for each sign.

    With g the worker's gradient and r the residual::

        v = r + g;  send the largest of the v > 0 as their mean, and the largest of the -v > 0 likewise;  r = v - sent

    k = ceil(density * numel) coordinates in all, divided between the signs as the elements that are not 0 are, at
    least one of each where k allows it; ties go to the lower index. The formula is the field's common account of the
    method.

    Args:
        density: share of the coordinates sent, in (0, 1].
        indices: see :class:`~horovod_dgc.coding.Coding`; the values take 1.6 bits each.
        error_feedback: keep a residual. Without it, what is not sent is lost.
        momentum_correction: take momentum over from the optimizer and apply it before selection.
        factor_masking: with momentum correction, clear the velocity of sent coordinates.

    Raises:
        ValueError: an option out of range, naming it, its value and what is allowed.
    """

    density: float = 0.01
    indices: str = "elias-fano"
    error_feedback: bool = True
    momentum_correction: bool = False
    factor_masking: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.in_range("density", self.density, 0, 1, low_open=True)
        _checks.one_of("indices", self.indices, INDICES)

    def compressed(self, shape: tuple[int, ...], step: int | None, outputs: Outputs) -> Plan:
        numel = math.prod(shape)
        sent = coordinates_to_send(numel, self.density)
        return self.accumulated(coordinates(numel, sent, values="ternary", indices=self.indices, select="proportion"))
