"""What a user sees of the exchange: bytes, density, time, and the residual that waits."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass
class TensorStats:
    """Counts of one tensor, or of all of them, on this worker since the start.

    Attributes:
        steps: exchanges committed.
        skipped: exchanges abandoned because a gradient held NaN or Inf on some worker.
        sent: bytes that this worker handed to Horovod's collectives as gradients.
        control: bytes handed over besides: the factor of each gathered tensor and the NaN flag.
        inside: bytes handed over to ranks of the same node, uncompressed, with the hierarchical transport.
        dense: bytes that uncompressed Horovod would have been handed.
        nonzero, elements: coordinates sent with a value other than zero, and coordinates in all.
        overflow: coordinates that a method's rule would have sent, but that found no room in a payload of fixed length
            and wait in the residual.
        encode, wait, decode: seconds spent selecting and coding; waiting for collectives, from the call of
            ``step()`` or of the last gradient's exchange on; and applying what came back.
        residual_norm: Euclidean norm of the accumulated gradient that has not been sent.
    """

    steps: int = 0
    skipped: int = 0
    sent: int = 0
    control: int = 0
    inside: int = 0
    dense: int = 0
    nonzero: int = 0
    elements: int = 0
    overflow: int = 0
    encode: float = 0.0
    wait: float = 0.0
    decode: float = 0.0
    residual_norm: float = 0.0

    @property
    def ratio(self) -> float:
        """Dense bytes over bytes sent, gradients and control together; NaN before the first step.

        With the hierarchical transport it is about what goes from node to node: bytes sent inside do not count.
        """
        total = self.sent + self.control
        return self.dense / total if total else math.nan

    @property
    def density(self) -> float:
        """Share of coordinates that were sent with a value other than zero; NaN before the first step."""
        return self.nonzero / self.elements if self.elements else math.nan


@dataclass
class Stats:
    """Result of ``Compression.stats()``: ``total`` and, by parameter name, ``tensors``; all since the start.

    ``last`` holds the latest committed step alone, summed over the tensors: what a step costs after the warm-up.
    ``lost_ranks`` counts ranks that an elastic job has lost, and ``lost_norm`` is the Euclidean norm of their residuals
    at the last commit, NaN if one is not known.
    """

    total: TensorStats = field(default_factory=TensorStats)
    last: TensorStats = field(default_factory=TensorStats)
    tensors: dict[str, TensorStats] = field(default_factory=dict)
    lost_ranks: int = 0
    lost_norm: float = 0.0

    def __str__(self) -> str:
        total, last = self.total, self.last
        if not total.steps:
            return f"no exchange yet ({total.skipped} skipped)"
        steps = total.steps
        return (
            f"{steps} steps ({total.skipped} skipped): last step {last.sent + last.control:,} of {last.dense:,} bytes "
            f"({last.ratio:.0f}x, density {last.density:.4%}); whole run {total.ratio:.0f}x; per step "
            f"encode {1e3 * total.encode / steps:.1f} ms, wait {1e3 * total.wait / steps:.1f} ms, "
            f"decode {1e3 * total.decode / steps:.1f} ms; residual norm {total.residual_norm:.3g}"
        )
