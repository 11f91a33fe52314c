"""Start real processes with horovodrun (Gloo) or mpirun, with a time limit that makes a hang a failure."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

BIN = Path(sys.executable).parent
LAUNCHERS = ("horovodrun", "mpirun")


@dataclass(frozen=True)
class Finished:
    """Exit status and what all ranks printed; ``returncode`` is None if the time limit struck."""

    returncode: int | None
    output: str


def run(
    launcher: str,
    ranks: int,
    command: Sequence[str],
    *,
    timeout: float,
    extra: Mapping[str, str] | None = None,
) -> Finished:
    """Run ``python *command`` on ``ranks`` local processes; kill them all after ``timeout`` seconds."""
    env = {
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "PYTHONUNBUFFERED": "1",
        **(extra or {}),
    }
    if launcher == "horovodrun":
        start = ["horovodrun", "--gloo", "-np", str(ranks), "-H", f"localhost:{ranks}"]
    else:
        start = ["mpirun", "--oversubscribe", "-np", str(ranks)]
        start += ["--allow-run-as-root"] if os.geteuid() == 0 else []
    process = subprocess.Popen(
        [*start, sys.executable, *command],
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
        os.killpg(process.pid, signal.SIGTERM)
        try:
            output, _ = process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
        return Finished(None, output)
