"""TernGrad: Wen, Xu, Yan, Wu, Wang, Chen, Li, NeurIPS 2017, arXiv 1705.07878."""

from __future__ import annotations

from dataclasses import dataclass

from horovod_dgc import _checks
from horovod_dgc.coding import every_coordinate
from horovod_dgc.method import Method, Outputs, Plan


@dataclass(frozen=True)
class TernGrad(Method):
    """Quantise at random to -S, 0 and S::

        g clipped to [-clip * sigma, clip * sigma];  S = max |g|;  send S * sign(g) * b,  b = 1 with probability |g| / S

    per tensor, with sigma the standard deviation of its elements; without bias but for the clipping. 1.6 bits an
    element. Nothing is kept back. The formula is the field's common account of the method.

    Args:
        clip: standard deviations to clip at, > 0; None for no clipping.
        shared_scale: one S for all workers, the largest of theirs, which takes an opening round of one number.
        seed: of the random numbers, in [0, 2**64).

    Raises:
        ValueError: an option out of range, naming it, its value and what is allowed.
    """

    clip: float | None = 2.5
    shared_scale: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.clip is not None:
            _checks.in_range("clip", self.clip, 0, 1e30, low_open=True)
        _checks.flag("shared_scale", self.shared_scale)
        _checks.seed(self.seed)

    def compressed(self, shape: tuple[int, ...], step: int | None, outputs: Outputs) -> Plan:
        clip = 0.0 if self.clip is None else float(self.clip)
        codec = every_coordinate(shape, "ternary", "ternarise", clip=clip, shared=self.shared_scale)
        return Plan(codec=codec, residual=False)
