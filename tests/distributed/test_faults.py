"""One of three ranks dies or stalls in the middle of an exchange; the others must hear of it and the job resume.

The table in docs/reliability.md says what is expected of which launcher, and why.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faults import (
    FAULTY,
    GLOO_SECONDS,
    JOB_SECONDS,
    POINTS,
    RANKS,
    STALL_SECONDS,
    ends,
    resumes_at,
    train,
    undisturbed,
)

SCRIPT = Path(__file__).parent / "faulty_training.py"
LONG = pytest.mark.long
# Seconds until the survivors' error. A death is noticed at once; a stopped process by Gloo's time-out; a rank that
# sleeps by MPI's stall check, which looks every STALL_SECONDS / 2 and begins with a second negotiation.
NOTICED = {
    ("horovodrun", "kill"): 5.0,
    ("mpirun", "kill"): 5.0,
    ("horovodrun", "stop"): GLOO_SECONDS + 5.0,
    ("mpirun", "sleep"): 2 * STALL_SECONDS + 5.0,
}
# Open MPI ends the whole job when a process dies: nobody is left to report anything.
ENDED_BY_LAUNCHER = {("mpirun", "kill")}


@contextlib.contextmanager
def watching(look: Callable[[], None]) -> Iterator[None]:
    """Call ``look`` ten times a second."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.1):
            look()

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def waker(folder: Path, after: float) -> Callable[[], None]:
    """Sends SIGCONT to the faulty rank this many seconds after each time that it is struck."""
    woken = set()

    def look() -> None:
        struck = folder / "struck"
        at = struck.stat().st_mtime if struck.exists() else time.time()
        if at not in woken and time.time() > at + after:
            os.kill(int((folder / f"pid-{FAULTY}").read_text()), signal.SIGCONT)
            woken.add(at)

    return look


def ender(folder: Path) -> Callable[[], None]:
    """Kills the faulty rank once all others have said what they saw: horovodrun would wait ten seconds for it."""

    def look() -> None:
        if len(list(folder.glob("seen-*"))) == RANKS - 1:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int((folder / f"pid-{FAULTY}").read_text()), signal.SIGKILL)

    return look


@pytest.mark.parametrize(
    ("launcher", "faults"),
    [
        pytest.param("horovodrun", [("kill", "encode"), ("stop", "gather")], id="horovodrun"),
        pytest.param("mpirun", [("kill", "gather")], id="mpirun"),
        *(
            pytest.param(launcher, [(fault, point) for point in POINTS], id=f"{launcher}-{fault}", marks=LONG)
            for launcher, fault in NOTICED
        ),
    ],
)
@pytest.mark.timeout(5 * JOB_SECONDS)
def test_the_others_get_an_error_and_the_job_resumes_bit_for_bit(
    launcher: str, faults: list[tuple[str, str]], tmp_path: Path
) -> None:
    """One fault after another, each in a job that goes on from where the last one ended."""
    step = 0
    for fault, point in faults:
        step += 6
        with watching(ender(tmp_path)) if fault == "stop" else contextlib.nullcontext():
            job = train(SCRIPT, launcher, tmp_path, fault, point, str(FAULTY), str(step))
        what = f"{launcher} {fault} in {point}:\n{job.finished.output[-3000:]}"
        assert job.finished.returncode not in (0, None), what
        struck = float((tmp_path / "struck").read_text())
        seen = [json.loads(text) for text in job.read("seen-*")]
        for survivor in seen:
            assert survivor["error"].startswith("HorovodInternalError"), f"{survivor} {what}"
            assert survivor["seconds"] < NOTICED[launcher, fault], f"{survivor} {what}"
        assert seen or (launcher, fault) in ENDED_BY_LAUNCHER, what
        seconds = [round(survivor["seconds"], 1) for survivor in seen]
        print(f"{launcher} {fault} {point}: seen after {seconds} s, job over after {job.ended - struck:.1f} s")
    job = train(SCRIPT, launcher, tmp_path)
    assert job.finished.returncode == 0, job.finished.output[-3000:]
    assert ends(job, resumes_at(step)) == undisturbed(SCRIPT, launcher)


@pytest.mark.long
@pytest.mark.timeout(3 * JOB_SECONDS)
def test_a_stopped_process_under_mpi_is_waited_for(tmp_path: Path) -> None:
    """Horovod's coordinator blocks in MPI, which has no time-out; the stall changes nothing once it ends."""
    with watching(waker(tmp_path, 2 * STALL_SECONDS + 1)):
        job = train(SCRIPT, "mpirun", tmp_path, "stop", ",".join(POINTS), str(FAULTY), "9")
    assert job.finished.returncode == 0, job.finished.output[-3000:]
    assert ends(job, 0) == undisturbed(SCRIPT, "mpirun")


@pytest.mark.long
@pytest.mark.timeout(3 * JOB_SECONDS)
def test_a_sleeping_rank_under_gloo_is_waited_for(tmp_path: Path) -> None:
    """Horovod 0.28.1's stall check does nothing with Gloo; the stall changes nothing once it ends."""
    job = train(SCRIPT, "horovodrun", tmp_path, "nap", ",".join(POINTS), str(FAULTY), "9")
    assert job.finished.returncode == 0, job.finished.output[-3000:]
    assert job.read("struck"), "nothing was disturbed"
    assert ends(job, 0) == undisturbed(SCRIPT, "horovodrun")
