"""One exchange before the first payload: every rank must hold the same configuration."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

NAME = "horovod_dgc.agreement"
FIRST_STEP = "give Horovod a Compression and reach the first backward pass"
# Bytes of this rank and a name for the collective -> the bytes of all ranks, one after another.
Gather = Callable[[bytes, str], bytes]


def require(configuration: str, ranks: Sequence[int], gather: Gather) -> None:
    """Raise the same error on every rank unless all ranks hold the same configuration.

    Args:
        configuration: lines of text that must be equal on all ranks.
        ranks: global numbers of the ranks that take part, in the order of their bytes.
        gather: collective over these ranks.

    Raises:
        ValueError: configurations differ; the message shows how, for the first rank that differs.
    """
    text = configuration.encode()
    digests = gather(hashlib.sha256(text).digest(), f"{NAME}.digest")
    size = len(ranks)
    length = len(digests) // size
    parts = [digests[i * length : (i + 1) * length] for i in range(size)]
    if len(set(parts)) == 1:
        return
    configurations = texts(configuration, size, gather, NAME)
    other = next(i for i in range(size) if parts[i] != parts[0])
    raise ValueError(_describe(configurations[0], configurations[other], ranks[other]))


def texts(text: str, size: int, gather: Gather, name: str) -> list[str]:
    """The texts of all ``size`` ranks, in their order. No text may be empty."""
    encoded = text.encode()
    lengths = gather(len(encoded).to_bytes(8, "little"), f"{name}.lengths")
    joined = gather(encoded, f"{name}.texts")
    parts = []
    for i in range(size):
        end = int.from_bytes(lengths[8 * i : 8 * i + 8], "little")
        parts.append(joined[:end].decode())
        joined = joined[end:]
    return parts


def ranks_of(process_set: Any) -> Sequence[int]:
    """Global numbers of a Horovod process set's members; the global set names none."""
    ranks: Sequence[int] | None = getattr(process_set, "ranks", None)
    return ranks if ranks else range(process_set.size())


def no_answer(rank: int, timeout: float, expected: str = FIRST_STEP) -> RuntimeError:
    """The error for ranks that wait in vain for the others to do what is expected."""
    return RuntimeError(
        f"rank {rank}: no answer from every rank within agreement_timeout={timeout:g} s. All ranks of the process set "
        f"must {expected}"
    )


def _describe(mine: str, other: str, rank: int) -> str:
    changes = [
        line
        for line in difflib.unified_diff(mine.splitlines(), other.splitlines(), lineterm="", n=0)
        if not line.startswith(("---", "+++", "@@"))
    ]
    shown = "\n  ".join(changes[:20]) + ("\n  ..." if len(changes) > 20 else "")
    return (
        "Compression is configured differently on different ranks; "
        f"the first rank's lines are marked -, those of rank {rank} +:\n  {shown}"
    )
