"""Casts of the whole gradient to numbers of fewer bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from horovod_dgc.coding import every_coordinate
from horovod_dgc.methods.accumulating import Accumulating
from horovod_dgc.methods.base import Outputs, Plan


class Cast(Accumulating):
    """Every coordinate of every tensor, in the value coder ``values``."""

    values: ClassVar[str]

    def plan(self, shape: Sequence[int], step: int | None = None, outputs: Outputs = "first") -> Plan:
        return self.compressed(tuple(shape), step, outputs)

    def compressed(self, shape: tuple[int, ...], step: int | None, outputs: Outputs) -> Plan:
        return self.accumulated(every_coordinate(shape, self.values))


@dataclass(frozen=True)
class FP16(Cast):
    """Send every gradient in IEEE half precision, 16 bits an element, biases and normalisation parameters too.

    Rounded to nearest even; what is beyond 65,504 becomes that, and what is at most 2**-25 becomes 0. An allreduce sums
    about the N-th part of each of N workers' in float16, so that no sum is infinite; with error feedback, which could
    not tell what that rounds, the sum is made in float32.

    Args:
        error_feedback: keep the rounding error for the next step.

    Raises:
        ValueError: an option that is neither True nor False.
    """

    values: ClassVar[str] = "float16"
    error_feedback: bool = False


@dataclass(frozen=True)
class BF16(Cast):
    """Send every gradient in bfloat16, 16 bits an element, biases and normalisation parameters too.

    Rounded to nearest even, with the range of float32 and 8 significant bits.

    Args:
        error_feedback: keep the rounding error for the next step.

    Raises:
        ValueError: an option that is neither True nor False.
    """

    values: ClassVar[str] = "bfloat16"
    error_feedback: bool = False


@dataclass(frozen=True)
class Int8(Cast):
    """Send every gradient in 8 bits an element, biases and normalisation parameters too.

    For every 256 elements in a row, with M = max |g|: round(127 * g / M), in one byte each, and M / 127 in float32.

    Args:
        error_feedback: keep the rounding error for the next step.

    Raises:
        ValueError: an option that is neither True nor False.
    """

    values: ClassVar[str] = "int8"
    error_feedback: bool = True
