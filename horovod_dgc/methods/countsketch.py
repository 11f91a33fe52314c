"""Gradients by count sketch: Ivkin, Rothchild, Ullah, Braverman, Stoica, Arora, NeurIPS 2019, arXiv 1903.04488."""

from __future__ import annotations

import math
from dataclasses import dataclass

from horovod_dgc import _checks
from horovod_dgc.coding import codec, coordinates_to_send, every_coordinate
from horovod_dgc.method import Outputs, Plan
from horovod_dgc.methods.accumulating import Accumulating


@dataclass(frozen=True)
class CountSketch(Accumulating):
    """Send the coordinates whose sums over all workers are the largest, as a sketch of the sum finds them.

    With g the worker's gradient and r the residual::

        v = r + g;  S = the sum over workers of the count sketch of v
        send v at the k = ceil(density * numel) coordinates of largest estimate from S;  r = v - sent

    All workers send the same coordinates, so no indices travel, and both rounds can be summed on their way. Per tensor,
    with float32 values. The estimate decides only which coordinates are sent, not their values. Unlike in the paper,
    each worker's v at these coordinates is exact and no more of them are asked for than are used.

    An estimate is off by about the norm of v over sqrt(columns of the sketch), so that a sketch finds coordinates that
    stand out from the rest. Of the largest 0.1 % of 200,000 numbers, the defaults found 62 % where they had a heavy
    tail (Student's t, 2 degrees of freedom), and none where they were Gaussian.

    A tensor whose sketch and values would be no smaller than itself is sent whole, in float32. The formulas are the
    field's common account of the method.

    Args:
        density: share of the coordinates sent, in (0, 1].
        rows: of the sketch, 1 to 99; the estimate is the median over them.
        columns: cells in a row of the sketch for every coordinate sent, > 0. The sketch has rows * columns times as
            many numbers as are sent.
        error_feedback: keep a residual. Without it, what is not sent is lost.
        momentum_correction: take momentum over from the optimizer and apply it before selection.
        factor_masking: with momentum correction, clear the velocity of sent coordinates.
        seed: of the sketch's hash functions, in [0, 2**64).

    Raises:
        ValueError: an option out of range, naming it, its value and what is allowed.
    """

    density: float = 0.001
    rows: int = 5
    columns: float = 20.0
    error_feedback: bool = True
    momentum_correction: bool = False
    factor_masking: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.in_range("density", self.density, 0, 1, low_open=True)
        _checks.whole_number("rows", self.rows, 1, 99)
        _checks.in_range("columns", self.columns, 0, math.inf, low_open=True, high_open=True)

    def compressed(self, shape: tuple[int, ...], step: int | None, outputs: Outputs) -> Plan:
        numel = math.prod(shape)
        sent = coordinates_to_send(numel, self.density)
        columns = math.ceil(self.columns * sent)
        if self.rows * columns + sent >= numel:
            return self.accumulated(every_coordinate(shape, "float32"))
        return self.accumulated(codec("sketch", n=numel, k=sent, rows=self.rows, columns=columns))
