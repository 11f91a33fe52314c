"""Threshold quantisation: Strom, Interspeech 2015."""

from __future__ import annotations

import math
from dataclasses import dataclass

from horovod_dgc import _checks
from horovod_dgc.coding import INDICES, coordinates, coordinates_to_send
from horovod_dgc.method import Outputs, Plan
from horovod_dgc.methods.accumulating import Accumulating


@dataclass(frozen=True)
class ThresholdQuantization(Accumulating):
    """Send a constant, with sign, wherever the accumulated gradient exceeds it.

    With g the worker's gradient, r the residual and tau the threshold::

        r = r + g;  send sign(r) * tau where |r| > tau;  r = r - sent

    The payload has room for a fixed share of the coordinates. Where more qualify, those of largest |r| go first and
    the others wait; unused room is paid for all the same. The formula is the field's common account of the method.

    Args:
        threshold: tau, in [1e-30, 1e30], in units of the gradient: what suits one model suits no other.
        cap: share of the coordinates that a payload has room for, in (0, 1].
        indices: see :class:`~horovod_dgc.coding.Coding`; the values take 1.6 bits each.
        momentum_correction: take momentum over from the optimizer and apply it before accumulation.
        factor_masking: with momentum correction, clear the velocity of sent coordinates.

    Raises:
        ValueError: an option out of range, naming it, its value and what is allowed.
    """

    threshold: float = 0.01
    cap: float = 0.01
    indices: str = "elias-fano"
    momentum_correction: bool = False
    factor_masking: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.in_range("threshold", self.threshold, 1e-30, 1e30)
        _checks.in_range("cap", self.cap, 0, 1, low_open=True)
        _checks.one_of("indices", self.indices, INDICES)

    def compressed(self, shape: tuple[int, ...], step: int | None, outputs: Outputs) -> Plan:
        numel = math.prod(shape)
        return self.accumulated(
            coordinates(
                numel,
                coordinates_to_send(numel, self.cap),
                values="ternary",
                indices=self.indices,
                select="above",
                threshold=float(self.threshold),
            )
        )
