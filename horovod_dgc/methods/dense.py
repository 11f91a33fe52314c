"""Plans that send every coordinate in few bits."""

from __future__ import annotations

import math
from typing import Any

from horovod_dgc import _core
from horovod_dgc.coding import codec


def every_coordinate(shape: tuple[int, ...], values: str, select: str = "largest", **settings: Any) -> _core.Codec:
    """The codec that sends all of a tensor in the value coder ``values``."""
    numel = math.prod(shape)
    return codec("coordinates", n=numel, k=numel, indices="elias-fano", values=values, select=select, **settings)
