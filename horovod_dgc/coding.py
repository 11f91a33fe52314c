"""What a payload is made of: a value coder and an index coder, by name."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from horovod_dgc import _checks, _core

VALUES = ("float32", "float16", "bfloat16", "int8", "int4")

INDICES = {
    "elias-fano": _core.IndexCoder.elias_fano,
    "runlength16": _core.IndexCoder.runlength16,
    "int32": _core.IndexCoder.int32,
}

# Value coders whose payload, where every coordinate is sent, is an array that an allreduce can sum as it is.
# Horovod 0.28.1 has no bfloat16 collectives, so bfloat16 is gathered like the integer codes.
SUMMABLE: dict[str, np.dtype[Any]] = {"float32": np.dtype(np.float32), "float16": np.dtype(np.float16)}


@dataclass(frozen=True)
class Coding:
    """How the sent coordinates of one tensor become bytes.

    Args:
        values: "float32", "float16", "bfloat16", "int8" or "int4"; the last two carry one float32 scale
            for every 256 values.
        indices: "elias-fano" (about 2 + log2(n/k) bits an index), "runlength16" (16 bits, as in Lin et al.,
            ICLR 2018, section 3.1) or "int32".

    Raises:
        ValueError: a name that is not among these.
    """

    values: str = "float16"
    indices: str = "elias-fano"

    def __post_init__(self) -> None:
        _checks.one_of("values", self.values, VALUES)
        _checks.one_of("indices", self.indices, INDICES)

    def layout(self, numel: int, sent: int) -> _core.Layout:
        """The payload layout for ``sent`` of ``numel`` coordinates; its ``nbytes`` never depends on data."""
        return _layout(numel, sent, self.indices, self.values)


@functools.cache
def _layout(numel: int, sent: int, indices: str, values: str) -> _core.Layout:
    return _core.Layout(numel, sent, INDICES[indices], _core.ValueCoder(values))


def coordinates_to_send(numel: int, density: float) -> int:
    """k = ceil(density * numel), at least one coordinate of a tensor that is not empty.

    The relative slack of 1e-9 keeps a product that is whole on paper, such as 0.001 * 3000, from being
    rounded up for its last floating-point bit.
    """
    return min(numel, max(1, math.ceil(density * numel * (1 - 1e-9)))) if numel else 0
