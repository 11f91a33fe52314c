"""Gradient dropping: Aji, Heafield, EMNLP 2017, arXiv 1704.05021."""

from __future__ import annotations

from dataclasses import dataclass

from horovod_dgc.methods.topk import TopK


@dataclass(frozen=True)
class GradientDropping(TopK):
    """Send the largest 1 % of the accumulated gradients of every tensor::

        r = r + g;  send r where |r| is among the k largest;  r = 0 there

    That is :class:`~horovod_dgc.TopK` at the paper's density. Exactly k = ceil(density * numel) are sent, where the
    paper sends what exceeds a threshold estimated from a sample. The formula is the field's common account of the
    method.

    Args:
        density, values, indices, error_feedback, momentum_correction, factor_masking: as for TopK.

    Raises:
        ValueError: an option out of range, naming it, its value and what is allowed.
    """

    density: float = 0.01
