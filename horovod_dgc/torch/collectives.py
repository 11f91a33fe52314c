"""Horovod's collectives as the rest of the package calls them."""

from __future__ import annotations

import contextlib
import time
import weakref
from collections.abc import Generator, Iterator
from typing import Any, Protocol

import horovod.torch as hvd
import torch
from horovod.common.exceptions import HorovodInternalError

from horovod_dgc import agreement

POLL_SECONDS = 0.005
WAIT_SECONDS = 0.0001
JOINED = (
    "a collective has failed, as it does where a rank has called hvd.join(), which does not go with Compression: let a "
    "rank without a batch call optimizer.zero_grad() and optimizer.step() all the same, until all have done their last "
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
        raise HorovodInternalError(f"{JOINED}. Horovod says: {error}") from error


class UnderWay(Protocol):
    """A step whose collectives follow from one another."""

    def progress(self) -> None:
        """Start what can be started without waiting."""
        ...


# Of all optimizers of this process. Ranks may finish them in different orders, each waiting for what the others are to
# start in a step that they have not come to.
UNDER_WAY: weakref.WeakSet[UnderWay] = weakref.WeakSet()
# Yields the handles of collectives, one after another, and is sent what each has come to.
Rounds = Generator[Any, Any, None]


def wait(handle: Any) -> Any:
    """What Horovod's collective comes to, as ``hvd.synchronize`` returns it, without keeping a core busy meanwhile.

    Horovod's own wait yields in a loop. Where there are as many ranks as cores, that keeps the cores from the threads
    that receive what is waited for.
    """
    while not hvd.poll(handle):
        help_others()
        time.sleep(WAIT_SECONDS)
    return hvd.synchronize(handle)


def help_others() -> None:
    """Let every step that is under way make progress."""
    for step in list(UNDER_WAY):
        step.progress()


def finish(rounds: Rounds) -> None:
    """Wait for one collective after another."""
    result = None
    with contextlib.suppress(StopIteration):
        while True:
            result = wait(rounds.send(result))


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
        help_others()
        time.sleep(POLL_SECONDS)
    gathered: torch.Tensor = hvd.synchronize(handle)
    return gathered.numpy().tobytes()
