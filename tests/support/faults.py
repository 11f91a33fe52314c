"""Jobs of three ranks of which one fails, and what the others leave behind."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from launch import SUPPORT, Finished, run

RANKS = 3
FAULTY = 1
POINTS = ("encode", "gather", "decode")
# As in the trainings.
SAVED_EVERY = 4
GLOO_SECONDS = 10.0
STALL_SECONDS = 4.0
# Start, training and shutdown of a job on a busy machine; past that it hangs.
JOB_SECONDS = 90.0
ENVIRONMENT = {
    "HOROVOD_GLOO_TIMEOUT_SECONDS": f"{GLOO_SECONDS:.0f}",
    "HOROVOD_STALL_CHECK_TIME_SECONDS": f"{STALL_SECONDS / 2:.0f}",
    "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS": f"{STALL_SECONDS:.0f}",
}


@dataclass(frozen=True)
class Job:
    finished: Finished
    ended: float  # time.time() when it was over
    folder: Path

    def read(self, name: str) -> list[str]:
        return [path.read_text() for path in sorted(self.folder.glob(name))]


def train(script: Path, launcher: str, folder: Path, *fault: str) -> Job:
    """Run the job; whatever happens, no process of it is left behind.

    Args:
        script: of the training, as tests/distributed/faulty_training.py.
    """
    for stale in [*folder.glob("seen-*"), *folder.glob("end-*"), *folder.glob("struck")]:
        stale.unlink()
    command = [str(script), str(folder), *fault]
    try:
        paths = (script.parent, SUPPORT)
        finished = run(launcher, RANKS, command, timeout=JOB_SECONDS, extra=ENVIRONMENT, paths=paths)
        return Job(finished, time.time(), folder)
    finally:
        for number in [path.read_text() for path in folder.glob("pid-*")]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(number), signal.SIGKILL)


def resumes_at(step: int) -> int:
    """The step that a job begins with after a fault in ``step``."""
    return step // SAVED_EVERY * SAVED_EVERY


@functools.cache
def undisturbed(script: Path, launcher: str) -> list[str]:
    """How the same job ends if nothing happens."""
    with tempfile.TemporaryDirectory() as folder:
        job = train(script, launcher, Path(folder))
        assert job.finished.returncode == 0, job.finished.output[-3000:]
        return ends(job, 0)


def ends(job: Job, first: int) -> list[str]:
    """Digests of each rank's final state, of a job that began at step ``first``."""
    begun, digests = zip(*(text.split(" ", 1) for text in job.read("end-*")))
    assert begun == (str(first),) * RANKS, job.finished.output[-3000:]
    return list(digests)
