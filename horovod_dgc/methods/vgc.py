"""Variance-based gradient compression: Tsuzuku, Imachi, Akiba, ICLR 2018 workshop, arXiv 1802.06058."""

from __future__ import annotations

import math
from dataclasses import dataclass

from horovod_dgc import _checks
from horovod_dgc.coding import INDICES, VALUES, coordinates, coordinates_to_send
from horovod_dgc.method import Method, Outputs, Plan

_VALUES = ("power4", *VALUES)


@dataclass(frozen=True)
class VarianceBased(Method):
    """Send a coordinate once its accumulated gradient is unambiguous: large against its variance.

    With g_z the gradient of sample z of B on this worker, per element::

        r = r + sum(g_z) / B;  s = s + sum((g_z / B)**2)
        where r**2 > alpha * s: send r, r = 0, s = 0;  elsewhere s = zeta * s

    and with a threshold tau, as in :class:`~horovod_dgc.ThresholdQuantization`::

        where also |r| > tau: send sign(r) * tau, r = r - sent, s = max(s - 2 * |r| * tau + tau**2, 0)

    with the |r| before subtraction. Where the second moments of samples are not known, the step's whole gradient
    counts as one sample: then r**2 = s in the first step, and with alpha >= 1 nothing is sent before a second gradient
    agrees with it.

    The payload has room for a fixed share of the coordinates. Where more qualify, those of largest r**2 / s go first
    and the others wait; unused room is paid for all the same. The formulas are the field's common account of the
    method. The paper's code of a value has 8 powers of two; here it has 7 and a zero.

    Args:
        alpha: how much larger than its variance a squared gradient must be, in [1e-30, 1e30]; 1 to 2 in the paper.
        zeta: decay of the second moments, in [0, 1].
        threshold: tau, in [1e-30, 1e30], in units of the gradient; None for none.
        cap: share of the coordinates that a payload has room for, in (0, 1].
        values: "power4" (the paper's: sign and power of two, 4 bits), or "float32", "float16", "bfloat16", "int8",
            "int4". Rounding errors stay in the residual. With a threshold, all values are the threshold, with sign,
            and take 1.6 bits each whatever is said here.
        indices: see :class:`~horovod_dgc.coding.Coding`.

    Raises:
        ValueError: an option out of range, naming it, its value and what is allowed.
    """

    alpha: float = 1.0
    zeta: float = 0.999
    threshold: float | None = None
    cap: float = 0.01
    values: str = "power4"
    indices: str = "elias-fano"

    def __post_init__(self) -> None:
        _checks.in_range("alpha", self.alpha, 1e-30, 1e30)
        _checks.in_range("zeta", self.zeta, 0, 1)
        if self.threshold is not None:
            _checks.in_range("threshold", self.threshold, 1e-30, 1e30)
        _checks.in_range("cap", self.cap, 0, 1, low_open=True)
        _checks.one_of("values", self.values, _VALUES)
        _checks.one_of("indices", self.indices, INDICES)

    def compressed(self, shape: tuple[int, ...], step: int | None, outputs: Outputs) -> Plan:
        numel = math.prod(shape)
        return Plan(
            codec=coordinates(
                numel,
                coordinates_to_send(numel, self.cap),
                values=self.values if self.threshold is None else "ternary",
                indices=self.indices,
                select="unambiguous",
                alpha=float(self.alpha),
                zeta=float(self.zeta),
                threshold=float(self.threshold or 0.0),
            )
        )
