"""1-bit SGD: Seide, Fu, Droppo, Li, Yu, Interspeech 2014."""

from __future__ import annotations

import math
from dataclasses import dataclass

from horovod_dgc.coding import every_coordinate
from horovod_dgc.method import Outputs, Plan
from horovod_dgc.methods.accumulating import Accumulating


@dataclass(frozen=True)
class OneBitSGD(Accumulating):
    """Send 1 bit an element and two means for each output unit; keep the error.

    With g the worker's gradient and r the residual, for every output unit of the layer (a row of PyTorch's weights,
    a column of Keras's)::

        q = r + g;  send the mean of the q >= 0 for each q >= 0, the mean of the q < 0 for each q < 0;  r = q - sent

    The formula is the field's common account of the method, whose authors train without it at first.

    Args:
        error_feedback: keep a residual, without which the method diverges.
        momentum_correction: take momentum over from the optimizer and apply it before quantisation.

    Raises:
        ValueError: an option that is neither True nor False.
    """

    error_feedback: bool = True
    momentum_correction: bool = False

    def compressed(self, shape: tuple[int, ...], step: int | None, outputs: Outputs) -> Plan:
        values = f"onebit:{math.prod(shape[1:])}" if outputs == "first" else f"onebitcolumns:{shape[-1]}"
        return self.accumulated(every_coordinate(shape, values))
