"""Whether parameters are the same on all ranks: digests, compared, and the error that says where they differ."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

NAME = "horovod_dgc.sync"
DIGEST_NBYTES = 8


def digest(data: bytes | memoryview) -> bytes:
    """A fixed number of bytes that tell one parameter's bytes from others."""
    return hashlib.sha256(data).digest()[:DIGEST_NBYTES]


def require(
    names: Sequence[str], digests: bytes, ranks: Sequence[int], exchanges: int, *, order: Sequence[str]
) -> None:
    """Raise the same error on every rank unless all ranks hold the same parameters.

    Args:
        names: of the parameters, in the same order on all ranks.
        digests: the digests of all parameters in this order, of all ranks, one after another.
        ranks: global numbers of the ranks, in the order of their digests.
        exchanges: number of exchanges done, for the message.
        order: the names in the order of the model: the first that differs is the one to look at.

    Raises:
        RuntimeError: some parameter is not the same on all ranks.
    """
    length = len(names) * DIGEST_NBYTES
    rows = [digests[i * length : (i + 1) * length] for i in range(len(ranks))]
    others = [rank for rank, row in zip(ranks, rows) if row != rows[0]]
    if not others:
        return
    spans = (slice(i * DIGEST_NBYTES, (i + 1) * DIGEST_NBYTES) for i in range(len(names)))
    differing = {name for name, span in zip(names, spans) if any(row[span] != rows[0][span] for row in rows)}
    first = next(name for name in order if name in differing)
    raise RuntimeError(
        f"check_sync: parameters differ between ranks before exchange {exchanges}. {first!r} is the first of "
        f"{len(differing)} (of {len(names)}); not as on rank {ranks[0]}: rank {', '.join(map(str, others))}. Have they "
        "been broadcast, and does every rank change them in the same way?"
    )
