"""One exchange before the first payload: every rank must hold the same configuration."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

NAME = "horovod_dgc.agreement"
FIRST_STEP = "give Horovod a Compression and reach the first backward pass"
# What ranks have told that meet at different Compressions, in the order of those who take part: of each Compression,
# by the digest of its identity, the digest of every rank's configuration so far, and this rank's configuration.
_TOLD: dict[tuple[int, ...], dict[bytes, tuple[dict[int, bytes], list[str]]]] = {}
# Bytes of this rank and a name for the collective -> the bytes of all ranks, one after another.
Gather = Callable[[bytes, str], bytes]


def require(
    configuration: str,
    ranks: Sequence[int],
    gather: Gather,
    *,
    identity: str = "",
    others: Iterable[str] = (),
) -> None:
    """Raise the same error on every rank unless all ranks hold the same configuration.

    Where a process has several Compressions, ranks may come to them in different orders. Then nobody waits: what each
    has told is kept, and compared as soon as the last rank has come to the same Compression.

    Args:
        configuration: lines of text that must be equal on all ranks.
        ranks: global numbers of the ranks that take part, in the order of their bytes.
        gather: collective over these ranks.
        identity: tells this Compression from the others of a process; the same on all ranks.
        others: identities of those that this rank is still to come to.

    Raises:
        ValueError: configurations differ; the message shows how, for the first rank that differs.
    """
    told = _TOLD.pop(tuple(ranks), {})
    mine, own = _digest(identity), _digest(configuration)
    gathered = gather(mine + own, f"{NAME}.digest")
    size, length = len(ranks), len(mine)
    for i in range(size):
        theirs, digest = (gathered[(2 * i + j) * length :][:length] for j in range(2))
        told.setdefault(theirs, ({}, []))[0][i] = digest
    told[mine][1].append(configuration)
    for known in [known for known, (digests, _) in told.items() if len(digests) == size]:
        digests, kept = told.pop(known)
        if len(set(digests.values())) > 1:
            _refuse(kept[0], [digests[i] for i in range(size)], ranks, gather)
    if not told:
        return
    # Will everybody come to all of them?
    coming = {_digest(other) for other in others}
    able = all(kept or known in coming for known, (_, kept) in told.items())
    if b"\0" in gather(bytes([able]), f"{NAME}.coming"):
        parts = [gathered[2 * i * length :][: 2 * length] for i in range(size)]
        _refuse(configuration, parts, ranks, gather)
    _TOLD[tuple(ranks)] = told


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _refuse(configuration: str, digests: Sequence[bytes], ranks: Sequence[int], gather: Gather) -> NoReturn:
    """Raise the error about this rank's ``configuration`` and the others', whose ``digests`` differ."""
    size = len(ranks)
    configurations = texts(configuration, size, gather, NAME)
    other = next(i for i in range(size) if digests[i] != digests[0])
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
