"""Start a worker script under horovodrun on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

BENCHMARKS = Path(__file__).resolve().parents[1]


def run(
    script: str,
    settings: Mapping[str, Any],
    *,
    workers: int,
    environment: Mapping[str, str] | None = None,
    time_limit: float = 1200.0,
) -> Any:
    """What rank 0 of ``workers/<script>`` writes as JSON; each worker has one thread.

    The script is called with two arguments: ``settings`` as JSON, and the file to write to.

    Raises:
        click.ClickException: the job failed or took more than ``time_limit`` seconds.
    """
    modules = os.pathsep.join(filter(None, (str(BENCHMARKS), os.environ.get("PYTHONPATH"))))
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        output = run_command(
            [str(BENCHMARKS / "workers" / script), json.dumps(settings), str(answer)],
            workers=workers,
            environment={"PYTHONPATH": modules, **(environment or {})},
            time_limit=time_limit,
        )
        if not answer.exists():
            raise click.ClickException(f"{script} gave no answer:\n{output}")
        return json.loads(answer.read_text())


def run_command(
    command: Sequence[str], *, workers: int, environment: Mapping[str, str] | None = None, time_limit: float = 1200.0
) -> str:
    """What ``python *command`` prints on all workers of this machine together; each has one thread.

    Raises:
        click.ClickException: the job failed or took more than ``time_limit`` seconds.
    """
    script = Path(command[0]).name
    bin_folder = Path(sys.executable).parent
    path = f"{bin_folder}{os.pathsep}{os.environ['PATH']}"
    threads = {"OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        ["horovodrun", "--gloo", "-np", str(workers), "-H", f"localhost:{workers}", sys.executable, *command],
        env={**os.environ, "PATH": path, **threads, **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        output, _ = process.communicate(timeout=time_limit)
    except BaseException as error:
        # horovodrun ends its workers when it is asked to end.
        process.terminate()
        process.communicate()
        if isinstance(error, subprocess.TimeoutExpired):
            raise click.ClickException(f"{script}: not done after {time_limit:g} s") from None
        raise
    if process.returncode != 0:
        raise click.ClickException(f"{script} failed with status {process.returncode}:\n{output}")
    return output
