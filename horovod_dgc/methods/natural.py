"""Natural compression: Horvath, Ho, Horvath, Sahu, Canini, Richtarik 2019, arXiv 1905.10988."""

from __future__ import annotations

from dataclasses import dataclass

from horovod_dgc import _checks
from horovod_dgc.coding import every_coordinate
from horovod_dgc.method import Method, Outputs, Plan


@dataclass(frozen=True)
class NaturalCompression(Method):
    """Round at random, without bias, to a power of two: 9 bits an element, sign and exponent::

        |g| = 2**e * (1 + f), 0 <= f < 1:  send sign(g) * 2**(e + 1) with probability f, else sign(g) * 2**e

    Nothing is kept back. The formula is the field's common account of the method.

    Args:
        seed: of the random numbers, in [0, 2**64).

    Raises:
        ValueError: a seed out of range.
    """

    seed: int = 0

    def __post_init__(self) -> None:
        _checks.seed(self.seed)

    def compressed(self, shape: tuple[int, ...], step: int | None, outputs: Outputs) -> Plan:
        return Plan(codec=every_coordinate(shape, "natural"), residual=False)
