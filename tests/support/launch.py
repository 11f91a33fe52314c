"""Start real processes with horovodrun (Gloo) or mpirun, with a time limit that makes a hang a failure."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

BIN = Path(sys.executable).parent
LAUNCHERS = ("horovodrun", "mpirun")


@dataclass(frozen=True)
class Finished:
    """Exit status and what all ranks printed; ``returncode`` is None if the time limit struck."""

    returncode: int | None
    output: str


def execute(command: Sequence[str], *, timeout: float, extra: Mapping[str, str] | None = None) -> Finished:
    """Run a launcher's command; kill it and all that it started after ``timeout`` seconds."""
    env = {
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "PYTHONUNBUFFERED": "1",
        **(extra or {}),
    }
    process = subprocess.Popen(
        command,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=timeout)
        return Finished(process.returncode, output)
    except subprocess.TimeoutExpired:
        # Workers are in sessions of their own: one that outlives its launcher would slow down all that follows.
        started = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=10)
        for each in [psutil.Process(process.pid), *started] if process.poll() is None else started:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        output, _ = process.communicate()
        return Finished(None, output)


def run(
    launcher: str,
    ranks: int,
    command: Sequence[str],
    *,
    timeout: float,
    extra: Mapping[str, str] | None = None,
) -> Finished:
    """Run ``python *command`` on ``ranks`` local processes; kill them all after ``timeout`` seconds.

    Args:
        launcher: one of ``LAUNCHERS``, or "nodes" for horovodrun with two names of this machine, half the ranks each.
    """
    hosts = {"horovodrun": f"localhost:{ranks}", "nodes": f"localhost:{ranks // 2},127.0.0.1:{ranks // 2}"}
    if launcher in hosts:
        start = ["horovodrun", "--gloo", "-np", str(ranks), "-H", hosts[launcher]]
    else:
        start = ["mpirun", "--oversubscribe", "-np", str(ranks)]
        start += ["--allow-run-as-root"] if os.geteuid() == 0 else []
    return execute([*start, sys.executable, *command], timeout=timeout, extra=extra)
