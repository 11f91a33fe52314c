"""PowerSGD: Vogels, Karimireddy, Jaggi, NeurIPS 2019, arXiv 1905.13727, algorithms 1 and 2."""

from __future__ import annotations

import math
from dataclasses import dataclass

from horovod_dgc import _checks
from horovod_dgc.coding import codec, every_coordinate
from horovod_dgc.method import Outputs, Plan
from horovod_dgc.methods.accumulating import Accumulating


@dataclass(frozen=True)
class PowerSGD(Accumulating):
    """Send a matrix of low rank, found by one step of power iteration from the one of the step before.

    With g the worker's gradient, r the residual, and M = r + g as a matrix of the layer's output units by all the
    rest (PyTorch), or of all the rest by the output units (Keras)::

        P = orthonormalised columns of the sum over workers of M Q
        send M^T P, whose sum over workers is the next Q;  result P Q^T;  r = M - P P^T M

    with the first Q drawn at random, alike by all workers. Both rounds can be summed on their way. What a worker keeps
    is the part of its own M outside the common P, where the paper keeps M less the workers' mean: the sum over
    workers is the same.

    A tensor whose factors would be no smaller than itself is sent whole, in float32. The formulas are the field's
    common account of the method.

    Args:
        rank: of the matrix, >= 1; at most as many as it has rows and columns. 1 to 4 in the paper.
        error_feedback: keep a residual. Without it, what lies outside of P is lost.
        momentum_correction: take momentum over from the optimizer and apply it before compression; the paper applies
            it afterwards.
        seed: of the first Q, in [0, 2**64).

    Raises:
        ValueError: an option out of range, naming it, its value and what is allowed.
    """

    rank: int = 2
    error_feedback: bool = True
    momentum_correction: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.whole_number("rank", self.rank, 1)

    def compressed(self, shape: tuple[int, ...], step: int | None, outputs: Outputs) -> Plan:
        numel = math.prod(shape)
        rows = shape[0] if outputs == "first" else numel // shape[-1]
        columns = numel // rows
        rank = min(self.rank, rows, columns)
        if (rows + columns) * rank >= numel:
            return self.accumulated(every_coordinate(shape, "float32"))
        return self.accumulated(codec("lowrank", rows=rows, columns=columns, rank=rank))
