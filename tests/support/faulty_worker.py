"""The side of jobs with a faulty rank that every rank runs: what is left in the job's folder, for faults.py to read.

Each rank leaves its process number and, where an error ends it, what that was and how long after the fault it came.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path


def strikes(folder: Path) -> None:
    """Note that the fault happens now."""
    (folder / "struck").write_text(str(time.time()))


def run(train: Callable[[], None], folder: Path, rank: int) -> None:
    (folder / f"pid-{rank}").write_text(str(os.getpid()))
    try:
        train()
    except BaseException as error:
        struck = folder / "struck"
        # Without a fault before it, the error is one that nobody has asked for.
        if struck.exists():
            seconds = time.time() - float(struck.read_text())
            seen = {"error": f"{type(error).__name__}: {error}", "seconds": seconds}
            (folder / f"seen-{rank}").write_text(json.dumps(seen))
        raise


def latest(folder: Path) -> Path | None:
    """The newest folder that :func:`publish` was called for."""
    name = folder / "latest"
    return folder / name.read_text() if name.exists() else None


def publish(saved: Path) -> None:
    """Let a resumed job begin from what lies in ``saved``, a folder in the job's."""
    fresh = saved.parent / "latest.new"
    fresh.write_text(saved.name)
    os.replace(fresh, saved.parent / "latest")
