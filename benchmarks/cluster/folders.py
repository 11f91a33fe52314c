"""The folders of labs: what is the only thing that a killed lab leaves behind."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
from cluster.namespaces import POLL_SECONDS, SECONDS_TO_END, alive

PARENT = Path("/run")
PREFIX = "horovod_dgc_lab-"


class LabFolder:
    """A new folder for one lab, locked as long as the lab's process lives: a folder without a lock is left over."""

    def __init__(self) -> None:
        with _all_locked():
            self.path = Path(tempfile.mkdtemp(dir=PARENT, prefix=PREFIX))
            self._lock = os.open(self.path, os.O_RDONLY)
            fcntl.flock(self._lock, fcntl.LOCK_EX)

    @property
    def name(self) -> str:
        return self.path.name.removeprefix(PREFIX)

    def close(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def labs() -> dict[str, bool]:
    """Names of all labs, and whether each is in use; one that is not was left over by a killed process."""
    with _all_locked():
        return {path.name.removeprefix(PREFIX): _in_use(path) for path in _paths()}


def take_down(name: str) -> None:
    """Kill a lab's hosts and remove its folder, whoever uses it."""
    path = PARENT / f"{PREFIX}{name}"
    _kill_holders(path)
    shutil.rmtree(path, ignore_errors=True)


def remove_left_over() -> list[str]:
    """Take down the labs whose process was killed; returns their names."""
    with _all_locked():
        left_over = [path.name.removeprefix(PREFIX) for path in _paths() if not _in_use(path)]
        for name in left_over:
            take_down(name)
        return left_over


def _paths() -> list[Path]:
    return sorted(PARENT.glob(f"{PREFIX}*"))


@contextlib.contextmanager
def _all_locked() -> Iterator[None]:
    """Nobody makes a folder, and so has one that is not yet locked, while another looks for those left over."""
    parent = os.open(PARENT, os.O_RDONLY)
    try:
        fcntl.flock(parent, fcntl.LOCK_EX)
        yield
    finally:
        os.close(parent)


def _in_use(path: Path) -> bool:
    try:
        lock = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def _kill_holders(path: Path) -> None:
    """Kill the processes that hold the lab's namespaces, and with them all that is in these."""
    holders = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            command = process.cmdline()
            if command and Path(command[0]).name == "unshare" and str(path) in command:
                process.kill()
                holders.append(process)
    deadline = time.monotonic() + SECONDS_TO_END
    while any(map(alive, holders)) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
