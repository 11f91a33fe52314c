"""Start real processes with horovodrun (Gloo) or mpirun, with a time limit that makes a hang a failure."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

BIN = Path(sys.executable).parent
SUPPORT = Path(__file__).parent
LAUNCHERS = ("horovodrun", "mpirun")


@dataclass(frozen=True)
class Finished:
    """Exit status and what all ranks printed; ``returncode`` is None if the time limit struck."""

    returncode: int | None
    output: str


class Running(contextlib.AbstractContextManager["Running"]):
    """A launcher's command under way; leaving the context kills it and all that it started.

    Args:
        paths: folders of modules for the ranks, before those in this process's PYTHONPATH.
    """

    def __init__(
        self, command: Sequence[str], *, extra: Mapping[str, str] | None = None, paths: Sequence[Path] = ()
    ) -> None:
        inherited = [path for path in (os.environ.get("PYTHONPATH"),) if path]
        env = {
            **os.environ,
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join([*map(str, paths), *inherited]),
            "OMP_NUM_THREADS": "1",
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "PYTHONUNBUFFERED": "1",
            **(extra or {}),
        }
        # A file: whoever outlives the launcher keeps nobody waiting for the end of a pipe.
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            command,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    @property
    def output(self) -> str:
        """What all ranks have printed so far."""
        size = os.fstat(self._log.fileno()).st_size
        # Without moving the place where the ranks write.
        return os.pread(self._log.fileno(), size, 0).decode(errors="replace")

    def wait(self, seconds: float) -> int | None:
        """The exit status, or None if there is none within so many seconds."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(seconds)
        return None

    def kill(self) -> None:
        if self._process.poll() is not None:
            return
        # Workers are in sessions of their own: one that outlives its launcher would slow down all that follows.
        started = psutil.Process(self._process.pid).children(recursive=True)
        self._process.terminate()
        self.wait(10)
        for each in [psutil.Process(self._process.pid), *started] if self._process.poll() is None else started:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        self._process.wait()

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._log.close()


def execute(
    command: Sequence[str], *, timeout: float, extra: Mapping[str, str] | None = None, paths: Sequence[Path] = ()
) -> Finished:
    """Run a launcher's command; kill it and all that it started after ``timeout`` seconds."""
    with Running(command, extra=extra, paths=paths) as running:
        returncode = running.wait(timeout)
        # Also what the ranks say of their end.
        running.kill()
        return Finished(returncode, running.output)


def command_for(launcher: str, ranks: int, command: Sequence[str]) -> list[str]:
    """The command that runs ``python *command`` on ``ranks`` local processes.

    Args:
        launcher: one of ``LAUNCHERS``, or "nodes" for horovodrun with two names of this machine, half the ranks each.
    """
    hosts = {"horovodrun": f"localhost:{ranks}", "nodes": f"localhost:{ranks // 2},127.0.0.1:{ranks // 2}"}
    if launcher in hosts:
        start = ["horovodrun", "--gloo", "-np", str(ranks), "-H", hosts[launcher]]
    else:
        start = ["mpirun", "--oversubscribe", "-np", str(ranks)]
        start += ["--allow-run-as-root"] if os.geteuid() == 0 else []
    return [*start, sys.executable, *command]


def run(
    launcher: str,
    ranks: int,
    command: Sequence[str],
    *,
    timeout: float,
    extra: Mapping[str, str] | None = None,
    paths: Sequence[Path] = (),
) -> Finished:
    """Run ``python *command`` on ``ranks`` local processes; kill them all after ``timeout`` seconds."""
    return execute(command_for(launcher, ranks, command), timeout=timeout, extra=extra, paths=paths)
