"""Random sparsification: Wangni, Wang, Liu, Zhang, NeurIPS 2018, arXiv 1710.09854; Stich et al., arXiv 1809.07599."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from horovod_dgc import _checks
from horovod_dgc.coding import codec, coordinates_to_send
from horovod_dgc.methods.accumulating import Accumulating
from horovod_dgc.methods.base import Outputs, Plan

_SUMMABLE = ("float32", "float16")


@dataclass(frozen=True)
class RandomK(Accumulating):
    """Send coordinates drawn anew in every step, alike by all workers, so that no indices travel.

    With g the worker's gradient, r the residual and n the number of elements, at k = ceil(density * n) coordinates::

        with error feedback      v = r + g;  send v;  r = v - sent
        without                  send n / k * g, whose expectation is g

    Payloads are plain numbers: the sum of two is the payload of the sum. The formulas are the field's common account
    of the method.

    Args:
        density: share of the coordinates sent, in (0, 1].
        values: "float32" or "float16". With error feedback, halves are gathered: only sums in float32 lose nothing.
        error_feedback: keep a residual; otherwise send without bias, at n / k times the variance.
        momentum_correction: take momentum over from the optimizer and apply it before sending.
        factor_masking: with momentum correction and error feedback, clear the velocity of sent coordinates. Without
            error feedback nothing is cleared, because that would make a bias.
        seed: of the draws, in [0, 2**64).

    Raises:
        ValueError: an option out of range, naming it, its value and what is allowed.
    """

    density: float = 0.01
    values: str = "float32"
    error_feedback: bool = True
    momentum_correction: bool = False
    factor_masking: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.in_range("density", self.density, 0, 1, low_open=True)
        _checks.one_of("values", self.values, _SUMMABLE)

    def compressed(self, shape: tuple[int, ...], step: int | None, outputs: Outputs) -> Plan:
        numel = math.prod(shape)
        sent = coordinates_to_send(numel, self.density)
        factor = 1.0 if self.error_feedback else numel / sent
        plan = self.accumulated(codec("random", n=numel, k=sent, values=self.values, factor=factor))
        return plan if self.error_feedback else replace(plan, masking=False)
