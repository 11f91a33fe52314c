"""Linux namespaces that exist exactly as long as the process that asked for them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
from cluster.tools import LabError, find, output, search_path

KINDS = ("net", "uts", "ipc", "mount", "pid")
SECONDS_TO_START = 20.0
SECONDS_TO_END = 10.0
POLL_SECONDS = 0.01


def alive(process: psutil.Process) -> bool:
    """Whether the process runs, and is not just waiting for its parent to hear of its end."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


class Namespaces:
    """New namespaces, held by a process in them, the first of a process namespace of its own.

    Nothing is written down anywhere: no name in /run/netns, no mount outside. The kernel kills the holder when its
    parent dies, all processes of a process namespace when its first one dies, and removes namespaces, mounts and
    links with their last process. So even a killed lab leaves neither processes nor links.

    Args:
        name: for errors, and of the log in ``folder``.
        folder: of the lab; it is the script's ``$1`` and so tells the lab's holders from other processes.
        kinds: of :data:`KINDS`, beside "net" and "pid".
        script: run by ``sh -eu`` as the first process, with ``name`` as ``$2``. It must end with ``exec``.
    """

    def __init__(self, name: str, folder: Path, kinds: Sequence[str], script: str) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self._kinds = ("net", "pid", *kinds)
        # Without the mounts' namespace there is none for a new /proc to be mounted in.
        proc = ["--mount-proc"] if "mount" in kinds else []
        unshare = [find("unshare"), *(f"--{kind}" for kind in self._kinds), *proc, "--fork", "--kill-child=KILL"]
        with self.log.open("wb") as log:
            self._holder = subprocess.Popen(
                [find("setpriv"), "--pdeathsig", "KILL", *unshare, "sh", "-euc", script, "sh", str(folder), name],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C at the terminal is for the lab, which then takes its hosts down in order.
                start_new_session=True,
                env={**os.environ, "PATH": search_path()},
            )
        try:
            self.first = self._wait_for_first()
        except BaseException:
            self.close()
            raise

    def _wait_for_first(self) -> int:
        """Number of the first process inside, as seen from here."""
        deadline = time.monotonic() + SECONDS_TO_START
        while time.monotonic() < deadline:
            self.require_alive()
            with contextlib.suppress(psutil.NoSuchProcess):
                for child in psutil.Process(self._holder.pid).children():
                    return int(child.pid)
            time.sleep(POLL_SECONDS)
        raise LabError(f"{self.name}: no process in its namespaces after {SECONDS_TO_START:g} s")

    def wait_for(self, line: str) -> None:
        """Wait until the script, or what it has become, has printed ``line``.

        Raises:
            LabError: it ended, or did not print that in time.
        """
        deadline = time.monotonic() + SECONDS_TO_START
        while line not in self.log.read_text(errors="replace"):
            self.require_alive()
            if time.monotonic() > deadline:
                raise LabError(f"{self.name}: no {line!r} after {SECONDS_TO_START:g} s:\n{self.log.read_text()}")
            time.sleep(POLL_SECONDS)

    def require_alive(self) -> None:
        """Raise LabError if the namespaces are gone."""
        if self._holder.poll() is not None:
            text = self.log.read_text(errors="replace") if self.log.exists() else ""
            raise LabError(f"{self.name} ended with status {self._holder.returncode}:\n{text}".rstrip(":\n"))

    def entering(self, command: Sequence[str], kinds: Sequence[str] = ()) -> list[str]:
        """``command`` as it is to be called from outside; it dies with the one who called it.

        Args:
            kinds: only these namespaces; all of them by default.
        """
        flags = [f"--{kind}" for kind in (kinds or self._kinds)]
        enter = [find("nsenter"), "--target", str(self.first), *flags, "--"]
        return [*enter, "setpriv", "--pdeathsig", "KILL", *command]

    def output(self, command: Sequence[str], kinds: Sequence[str] = ()) -> str:
        """What a short command prints inside; LabError if it fails."""
        self.require_alive()
        return output(self.entering(command, kinds))

    def clear(self) -> None:
        """Kill every process inside but the first, and wait for their end."""
        self.require_alive()
        # With nothing to kill, kill fails.
        self.output(["sh", "-c", "kill -s KILL -- -1 || true"], ("pid",))
        deadline = time.monotonic() + SECONDS_TO_END
        with contextlib.suppress(psutil.NoSuchProcess):
            while any(map(alive, psutil.Process(self.first).children(recursive=True))):
                if time.monotonic() > deadline:
                    raise LabError(f"{self.name}: killed processes are still there after {SECONDS_TO_END:g} s")
                time.sleep(POLL_SECONDS)

    def close(self) -> None:
        """End all processes inside, and so the namespaces; returns when they are gone."""
        if self._holder.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                for first in psutil.Process(self._holder.pid).children():
                    # The holder ends when it has seen this one end, which the kernel lets happen last of all inside.
                    first.send_signal(signal.SIGKILL)
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        self._holder.wait(timeout=SECONDS_TO_END)
        if self._holder.poll() is None:
            self._holder.kill()
        self._holder.wait()
