"""One exchange before the first payload: every rank must hold the same configuration."""

from __future__ import annotations

import difflib
import hashlib
import time
from collections.abc import Sequence
from typing import Any

import horovod.torch as hvd
import torch

NAME = "horovod_dgc.agreement"
POLL_SECONDS = 0.005


def require(configuration: str, process_set: Any, timeout: float) -> None:
    """Raise the same error on every rank unless all ranks of the process set hold the same configuration.

    Args:
        configuration: lines of text that must be equal on all ranks.
        process_set: Horovod process set whose members call this.
        timeout: seconds to wait for the others.

    Raises:
        ValueError: configurations differ; the message shows how, for the first rank that differs.
        RuntimeError: some rank did not answer in time.
    """
    text = configuration.encode()
    digests = _gather(hashlib.sha256(text).digest(), f"{NAME}.digest", process_set, timeout)
    size = process_set.size()
    length = len(digests) // size
    parts = [digests[i * length : (i + 1) * length] for i in range(size)]
    if len(set(parts)) == 1:
        return
    lengths = _gather(len(text).to_bytes(8, "little"), f"{NAME}.lengths", process_set, timeout)
    texts = _gather(text, f"{NAME}.texts", process_set, timeout)
    configurations = []
    for i in range(size):
        end = int.from_bytes(lengths[8 * i : 8 * i + 8], "little")
        configurations.append(texts[:end].decode())
        texts = texts[end:]
    other = next(i for i in range(size) if parts[i] != parts[0])
    raise ValueError(_describe(configurations[0], configurations[other], _global_rank(process_set, other)))


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


def _global_rank(process_set: Any, index: int) -> int:
    ranks: Sequence[int] | None = getattr(process_set, "ranks", None)
    return ranks[index] if ranks else index


def _gather(data: bytes, name: str, process_set: Any, timeout: float) -> bytes:
    message = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    handle = hvd.allgather_async(message, name=name, process_set=process_set)
    deadline = time.monotonic() + timeout
    while not hvd.poll(handle):
        if time.monotonic() > deadline:
            raise RuntimeError(
                f"rank {hvd.rank()}: no answer from every rank within agreement_timeout={timeout:g} s. All ranks of "
                "the process set must give hvd.DistributedOptimizer a Compression and reach the first backward pass"
            )
        time.sleep(POLL_SECONDS)
    gathered: torch.Tensor = hvd.synchronize(handle)
    return gathered.numpy().tobytes()
