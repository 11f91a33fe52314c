"""Bytes per step from shapes alone, by the same plans that really send."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from horovod_dgc import _checks
from horovod_dgc.methods.base import Method, checked
from horovod_dgc.transport import FLOAT32_NBYTES


@dataclass(frozen=True)
class Traffic:
    """Bytes that one worker sends per step.

    Attributes:
        sparse: payloads of compressed tensors, and what their workers hand over in an opening round.
        exempt: payloads of tensors with at most one dimension.
        dense: float32 gradients of the same tensors, uncompressed.
    """

    sparse: int
    exempt: int
    dense: int

    @property
    def total(self) -> int:
        return self.sparse + self.exempt

    @property
    def ratio(self) -> float:
        """How many times less than dense; infinite where nothing is sent."""
        return self.dense / self.total if self.total else math.inf


def traffic(
    shapes: Iterable[Sequence[int]] | Mapping[str, Sequence[int]], method: Method, step: int | None = None
) -> Traffic:
    """Bytes per step and worker for a model whose parameters have these shapes.

    The payloads are counted as the method codes them, one copy per worker, as published ratios are. A tensor
    whose gather would cost more than a dense allreduce is sent dense instead (see
    :func:`horovod_dgc.transport.choose`), and each gathered tensor costs four more bytes, for the factor of
    Horovod's own allreduce; ``Compression.stats()`` counts both.

    Args:
        shapes: one shape per parameter, in any order, or a mapping from names to shapes.
        method: for example ``DGC(density=0.001)``.
        step: number of the exchange >= 0, for a warm-up schedule; None for after it.

    Raises:
        ValueError: ``shapes`` holds something else than shapes, or ``method`` or ``step`` is none.
    """
    checked(method)
    if step is not None:
        _checks.whole_number("step", step, 0)
    if isinstance(shapes, (str, bytes)) or not isinstance(shapes, Iterable):
        raise ValueError(f"shapes must be shapes such as [(64, 3, 7, 7), (64,)], got {shapes!r}")
    sparse = exempt = dense = 0
    for shape in shapes.values() if isinstance(shapes, Mapping) else shapes:
        dimensions = _checks.shape("shape", shape)
        plan = method.plan(dimensions, step)
        dense += plan.numel * FLOAT32_NBYTES
        nbytes = plan.opening_nbytes + plan.payload_nbytes
        if len(dimensions) <= 1:
            exempt += nbytes
        else:
            sparse += nbytes
    return Traffic(sparse, exempt, dense)
