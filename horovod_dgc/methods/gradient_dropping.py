"""Gradient dropping: Aji, Heafield, EMNLP 2017, arXiv 1704.05021."""

from __future__ import annotations

import math
from dataclasses import dataclass

from horovod_dgc import _checks
from horovod_dgc.coding import coordinates, coordinates_to_send
from horovod_dgc.methods.base import Outputs, Plan
from horovod_dgc.methods.topk import TopK

# Elements of a tensor that a common threshold is estimated from: the paper's share, but all that a small one has.
SAMPLED = 0.001
SAMPLED_AT_LEAST = 1024


@dataclass(frozen=True)
class GradientDropping(TopK):
    """Send the largest 1 % of the accumulated gradients, of every tensor or of all tensors together::

        r = r + g;  send r where |r| is among the k largest;  r = 0 there

    With scope "tensor" that is :class:`~horovod_dgc.TopK` at the paper's density: exactly k = ceil(density * numel)
    are sent, where the paper sends what exceeds a threshold estimated from a sample.

    With scope "global" each worker estimates one threshold for all its compressed tensors, which ``density`` of their
    elements reach, from a sample of each, and sends what reaches it. A tensor's payload has room for a fixed share of
    its coordinates; where more qualify, those of largest |r| go first and the others wait; unused room is paid for all
    the same. Tensors whose gradients differ much in size, as without layer normalisation, then crowd each other out.
    The threshold needs all gradients before the first can be encoded, so the exchange no longer overlaps the backward
    pass.

    The formula is the field's common account of the method.

    Args:
        density, values, indices, error_feedback, momentum_correction, factor_masking: as for TopK.
        scope: "tensor" or "global".
        cap: with scope "global", share of a tensor's coordinates that its payload has room for, in (0, 1].

    Raises:
        ValueError: an option out of range, naming it, its value and what is allowed.
    """

    density: float = 0.01
    scope: str = "tensor"
    cap: float = 0.04

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.one_of("scope", self.scope, ("tensor", "global"))
        _checks.in_range("cap", self.cap, 0, 1, low_open=True)

    def compressed(self, shape: tuple[int, ...], step: int | None, outputs: Outputs) -> Plan:
        if self.scope == "tensor":
            return super().compressed(shape, step, outputs)
        numel = math.prod(shape)
        return self.accumulated(
            coordinates(
                numel,
                coordinates_to_send(numel, self.cap),
                values=self.values,
                indices=self.indices,
                select="quantile",
                share=float(self.density),
                samples=min(numel, max(SAMPLED_AT_LEAST, math.ceil(SAMPLED * numel))),
            )
        )
