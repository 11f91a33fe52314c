"""The gradients of DoReFa-Net: Zhou, Wu, Ni, Zhou, Wen, Zou 2016, arXiv 1606.06160."""

from __future__ import annotations

from dataclasses import dataclass

from horovod_dgc import _checks
from horovod_dgc.coding import every_coordinate
from horovod_dgc.method import Method, Outputs, Plan


@dataclass(frozen=True)
class DoReFa(Method):
    """Quantise at random, without bias, to 2**bits equidistant values from -M to M.

    With M = max |g|, L = 2**bits - 1 and noise n uniform on (-1/2, 1/2) / L, per tensor::

        send 2 * M * (round(L * (g / (2 * M) + 1/2 + n)) / L - 1/2)

    0 is not among the values: it becomes M / L or -M / L. Nothing is kept back. The formula is the field's common
    account of the method.

    Args:
        bits: 1 to 8.
        seed: of the random numbers, in [0, 2**64).

    Raises:
        ValueError: an option out of range, naming it, its value and what is allowed.
    """

    bits: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        _checks.whole_number("bits", self.bits, 1, 8)
        _checks.seed(self.seed)

    def compressed(self, shape: tuple[int, ...], step: int | None, outputs: Outputs) -> Plan:
        return Plan(codec=every_coordinate(shape, f"dorefa:{self.bits}"), residual=False)
