"""Top-k sparsification with or without error feedback: Stich, Cordonnier, Jaggi, NeurIPS 2018, arXiv 1809.07599."""

from __future__ import annotations

import math
from dataclasses import dataclass

from horovod_dgc import _checks
from horovod_dgc.coding import Coding, coordinates_to_send
from horovod_dgc.method import Outputs, Plan
from horovod_dgc.methods.accumulating import Accumulating


@dataclass(frozen=True)
class TopK(Accumulating):
    """Send the largest coordinates of every tensor.

    With g the worker's gradient and r the residual::

        v = r + g;  send v where |v| is among the k largest;  r = v - sent

    Exactly k = ceil(density * numel) coordinates are sent, ties going to the lower index. With momentum correction,
    g is the velocity u = m * u + g, and the method is :class:`~horovod_dgc.DGC` without its warm-up and clipping.

    The formula is the field's common account of the method.

    Args:
        density: share of the coordinates sent, in (0, 1].
        values, indices: see :class:`~horovod_dgc.coding.Coding`. Rounding errors of the values stay in the residual.
        error_feedback: keep a residual. Without it, small gradients are lost and training may not converge.
        momentum_correction: take momentum over from the optimizer and apply it before selection.
        factor_masking: with momentum correction, clear the velocity of sent coordinates.

    Raises:
        ValueError: an option out of range, naming it, its value and what is allowed.
    """

    density: float = 0.001
    values: str = "float16"
    indices: str = "elias-fano"
    error_feedback: bool = True
    momentum_correction: bool = False
    factor_masking: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.in_range("density", self.density, 0, 1, low_open=True)
        Coding(self.values, self.indices)

    def compressed(self, shape: tuple[int, ...], step: int | None, outputs: Outputs) -> Plan:
        numel = math.prod(shape)
        sent = coordinates_to_send(numel, self.density)
        return self.accumulated(Coding(self.values, self.indices).codec(numel, sent))
