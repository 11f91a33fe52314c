"""Horovod's collectives as the rest of the package calls them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import horovod.torch as hvd
import torch
from horovod.common.exceptions import HorovodInternalError

from horovod_dgc import agreement

POLL_SECONDS = 0.005
WAIT_SECONDS = 0.0001
JOINED = (
    "If a rank has called hvd.join(): it takes no part in gathers, so join() does not go with Compression. A rank "
    "without a batch calls optimizer.step() all the same, after zero_grad(), until all ranks have done their last "
    "(docs/pytorch.md, What changes in your training script)"
)


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Say what may be behind a failure of Horovod's; of the same type, which elastic jobs wait for."""
    try:
        yield
    except HorovodInternalError as error:
        if JOINED in str(error):
            raise
        raise HorovodInternalError(f"{error}. {JOINED}") from error


def wait(handle: Any) -> Any:
    """What Horovod's collective comes to, as ``hvd.synchronize`` returns it, without keeping a core busy meanwhile.

    Horovod's own wait yields in a loop. Where there are as many ranks as cores, that keeps the cores from the threads
    that receive what is waited for.
    """
    while not hvd.poll(handle):
        time.sleep(WAIT_SECONDS)
    return hvd.synchronize(handle)


def gather_bytes(
    data: bytes, name: str, process_set: Any, timeout: float, expected: str = agreement.FIRST_STEP
) -> bytes:
    """The bytes of all ranks of the process set, one after another. No rank's may be empty.

    Args:
        expected: what a rank that does not answer should have done, for the error.

    Raises:
        RuntimeError: some rank did not answer within ``timeout`` seconds.
    """
    message = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    handle = hvd.allgather_async(message, name=name, process_set=process_set)
    deadline = time.monotonic() + timeout
    while not hvd.poll(handle):
        if time.monotonic() > deadline:
            raise agreement.no_answer(hvd.rank(), timeout, expected)
        time.sleep(POLL_SECONDS)
    gathered: torch.Tensor = hvd.synchronize(handle)
    return gathered.numpy().tobytes()
