"""QSGD: Alistarh, Grubic, Li, Tomioka, Vojnovic, NeurIPS 2017, arXiv 1610.02132, section 3."""

from __future__ import annotations

from dataclasses import dataclass

from horovod_dgc import _checks
from horovod_dgc.coding import every_coordinate
from horovod_dgc.method import Method, Outputs, Plan

_BITS = (2, 4, 8)


@dataclass(frozen=True)
class QSGD(Method):
    """Quantise at random, without bias, to levels between 0 and the norm of a bucket.

    With s = 2**(bits - 1) - 1 levels, for each bucket x of elements in a row::

        send |x|_2 * sign(x_i) * l_i / s,  l_i = floor or ceil of s * |x_i| / |x|_2, with expectation s * |x_i| / |x|_2

    ``bits`` bits an element, the sign among them, and a float32 for every bucket; Elias coding, which the paper adds,
    would make the length depend on the data. Nothing is kept back. The formula is the field's common account of the
    method.

    Args:
        bits: 2, 4 or 8.
        bucket: elements in a bucket, >= 1; fewer make less variance and more norms to send.
        seed: of the random numbers, in [0, 2**64).

    Raises:
        ValueError: an option out of range, naming it, its value and what is allowed.
    """

    bits: int = 4
    bucket: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        if _checks.whole_number("bits", self.bits, 2, 8) not in _BITS:
            raise ValueError(f"bits must be 2, 4 or 8, got {self.bits!r}")
        _checks.whole_number("bucket", self.bucket, 1, 10**9 - 1)
        _checks.seed(self.seed)

    def compressed(self, shape: tuple[int, ...], step: int | None, outputs: Outputs) -> Plan:
        return Plan(codec=every_coordinate(shape, f"qsgd:{self.bits}:{self.bucket}"), residual=False)
