"""EF-signSGD: Karimireddy, Rebjock, Stich, Jaggi, ICML 2019, arXiv 1901.09847, algorithm 1."""

from __future__ import annotations

from dataclasses import dataclass

from horovod_dgc.coding import every_coordinate
from horovod_dgc.method import Outputs, Plan
from horovod_dgc.methods.accumulating import Accumulating


@dataclass(frozen=True)
class EFSignSGD(Accumulating):
    """Send the signs, 1 bit an element, and the mean magnitude; keep the error.

    With g the worker's gradient, r the residual and n the number of elements::

        p = r + g;  send |p|_1 / n * sign(p);  r = p - sent

    A zero counts as positive. The formula is the field's common account of the method.

    Args:
        error_feedback: keep a residual. Without it the method is signSGD scaled, which may not converge.
        momentum_correction: take momentum over from the optimizer and apply it before the signs are taken.

    Raises:
        ValueError: an option that is neither True nor False.
    """

    error_feedback: bool = True
    momentum_correction: bool = False

    def compressed(self, shape: tuple[int, ...], step: int | None, outputs: Outputs) -> Plan:
        return self.accumulated(every_coordinate(shape, "meansign"))
