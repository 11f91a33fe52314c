"""What a payload is made of: a value coder and an index coder, by name."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from horovod_dgc import _checks, _core

_Floats = npt.NDArray[np.float32]

VALUES = ("float32", "float16", "bfloat16", "int8", "int4")

INDICES = ("elias-fano", "runlength16", "int32")


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

    def codec(self, numel: int, sent: int) -> _core.Codec:
        """The codec that sends the ``sent`` largest of ``numel`` coordinates."""
        return coordinates(numel, sent, values=self.values, indices=self.indices)


def coordinates(
    numel: int,
    sent: int,
    *,
    values: str,
    indices: str = "elias-fano",
    select: str = "largest",
    **settings: Any,
) -> _core.Codec:
    """The codec that sends ``sent`` of ``numel`` coordinates; its ``nbytes`` never depends on data.

    Args:
        values, indices: coders of the core.
        select: which ones: a selector of the core, with its settings.
    """
    return codec("coordinates", n=numel, k=sent, indices=indices, values=values, select=select, **settings)


def every_coordinate(shape: Sequence[int], values: str, select: str = "largest", **settings: Any) -> _core.Codec:
    """The codec that sends all of a tensor in the value coder ``values``."""
    numel = math.prod(shape)
    return coordinates(numel, numel, values=values, select=select, **settings)


def divided(layout: _core.Layout, parts: int) -> _core.Codec:
    """The codec that sends the largest of each of ``parts`` ranges, about as many as ``layout`` in all, coded alike."""
    indices = layout.indices.name.replace("_", "-")
    return codec("ranges", n=layout.n, k=layout.k, parts=parts, indices=indices, values=layout.values.name)


def opened_by_quantile(codecs: Sequence[_core.Codec], openings: Sequence[_Floats]) -> _Floats:
    """What the opening round of one worker's tensors comes to, where codecs reduce it by quantile: float32, (1,)."""
    return np.array([_core.opened_by_quantile(codecs, openings)], np.float32)


def codec(kind: str, **settings: object) -> _core.Codec:
    """A codec of the core, by its kind and settings; equal descriptions give the same object."""
    return _made(" ".join([kind, *(f"{name}={_word(value)}" for name, value in settings.items())]))


def _word(value: object) -> str:
    return str(int(value)) if isinstance(value, bool) else repr(value) if isinstance(value, float) else str(value)


_made = functools.cache(_core.Codec)


def coordinates_to_send(numel: int, density: float) -> int:
    """k = ceil(density * numel), at least one coordinate of a tensor that is not empty.

    The relative slack of 1e-9 keeps a product that is whole on paper, such as 0.001 * 3000, from being
    rounded up for its last floating-point bit.
    """
    return min(numel, max(1, math.ceil(density * numel * (1 - 1e-9)))) if numel else 0
