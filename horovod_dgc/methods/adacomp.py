"""AdaComp: Chen, Choi, Brand, Agrawal, Zhang, Gopalakrishnan, AAAI 2018, arXiv 1712.02679."""

from __future__ import annotations

import math
from dataclasses import dataclass

from horovod_dgc import _checks
from horovod_dgc.coding import INDICES, coordinates
from horovod_dgc.method import Outputs, Plan
from horovod_dgc.methods.accumulating import Accumulating


@dataclass(frozen=True)
class AdaComp(Accumulating):
    """Send what is, or with one more such gradient would be, as large as the largest of its bin.

    With g the worker's gradient and r the residual, in bins of elements in a row::

        G = r + g;  H = G + g;  T = the mean over all bins of max |G|
        send sign(G_i) * T where |H_i| >= max |G| of the bin of i;  r = G - sent

    A coordinate with G_i = 0 sends nothing. The payload has room for a fixed number of coordinates. Where more
    qualify, those of largest |G| go first and the others wait; unused room is paid for all the same. The formula is
    the field's common account of the method.

    Args:
        convolution_bin: elements in a bin of a tensor of more than two dimensions, >= 1.
        other_bin: elements in a bin of any other tensor, >= 1.
        cap: coordinates that a payload has room for per bin, > 0, on average: bins share the room.
        indices: see :class:`~horovod_dgc.coding.Coding`; the values take 1.6 bits each.
        momentum_correction: take momentum over from the optimizer and apply it before accumulation; g above is then
            the velocity.
        factor_masking: with momentum correction, clear the velocity of sent coordinates.

    Raises:
        ValueError: an option out of range, naming it, its value and what is allowed.
    """

    convolution_bin: int = 50
    other_bin: int = 500
    cap: float = 5.0
    indices: str = "elias-fano"
    momentum_correction: bool = False
    factor_masking: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.whole_number("convolution_bin", self.convolution_bin, 1, 2**30)
        _checks.whole_number("other_bin", self.other_bin, 1, 2**30)
        _checks.in_range("cap", self.cap, 0, math.inf, low_open=True, high_open=True)
        _checks.one_of("indices", self.indices, INDICES)

    def compressed(self, shape: tuple[int, ...], step: int | None, outputs: Outputs) -> Plan:
        numel = math.prod(shape)
        length = self.convolution_bin if len(shape) > 2 else self.other_bin
        return self.accumulated(
            coordinates(
                numel,
                min(numel, math.ceil(self.cap * math.ceil(numel / length))),
                values="ternary",
                indices=self.indices,
                select="bins",
                length=length,
            )
        )
