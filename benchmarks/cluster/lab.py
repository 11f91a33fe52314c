"""Hosts on one machine, joined by links of a given rate."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import psutil
from cluster import links, ssh
from cluster.folders import LabFolder, remove_left_over
from cluster.namespaces import Namespaces
from cluster.tools import LabError, reason_against, search_path

NETWORK = "10.77.0"
MOST_HOSTS = 250
# What ssh sessions get from the lab's own environment, as a cluster's profile would set it.
PASSED_ON = ("LD_LIBRARY_PATH", "PYTHONPATH")
SECONDS_TO_STOP = 5.0


class Lab:
    """Hosts node1, node2, ... with an sshd each, to be used in a ``with`` statement.

    A host has its own network, name, processes, /run and /dev/shm, and the machine's files. Any host can log in to any
    other as root, without a password. The hosts are joined by a bridge and reach nothing else. All of this is gone when
    the process that made the lab ends, in whatever way. Make a lab in the main thread: when the thread that made
    it ends, so does the lab.

    Args:
        hosts: how many, 1 to 250.
        rate: of each host's link, in each direction: one of ``links.RATES``.

    Raises:
        LabError: a wrong argument, or the machine does not allow or have what it takes.
    """

    def __init__(self, *, hosts: int = 2, rate: str = "unshaped") -> None:
        if not 1 <= hosts <= MOST_HOSTS:
            raise LabError(f"hosts must be 1 to {MOST_HOSTS}, got {hosts!r}")
        if rate not in links.RATES:
            raise LabError(f"rate must be one of {', '.join(links.RATES)}, got {rate!r}")
        self.rate = rate
        self.addresses = {f"node{number}": f"{NETWORK}.{number}" for number in range(1, hosts + 1)}
        self._hosts: dict[str, Namespaces] = {}
        self._switch: Namespaces | None = None
        self._folder: LabFolder | None = None

    def __enter__(self) -> Lab:
        reason = reason_against()
        if reason is not None:
            raise LabError(reason)
        remove_left_over()
        try:
            self._set_up()
        except BaseException:
            self.close()
            raise
        return self

    def _set_up(self) -> None:
        self._folder = LabFolder()
        folder = self._folder.path
        logins = {name: value for name, value in self._environment().items() if name in ("PATH", *PASSED_ON)}
        ssh.write_files(folder, self.addresses, logins)
        self._switch = Namespaces("switch", folder, (), "exec sleep infinity")
        links.make_bridge(self._switch)
        script = ssh.host_script()
        for name in self.addresses:
            self._hosts[name] = Namespaces(name, folder, ("uts", "ipc", "mount"), script)
        for name, host in self._hosts.items():
            links.connect(self._switch, host, f"{self.addresses[name]}/24", self.rate)
        for host in self._hosts.values():
            host.wait_for(ssh.READY)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take the lab down; it may be only half set up."""
        for namespaces in (*self._hosts.values(), *filter(None, (self._switch,))):
            namespaces.close()
        self._hosts, self._switch = {}, None
        if self._folder is not None:
            self._folder.close()
            self._folder = None

    @property
    def name(self) -> str:
        """By which ``down`` knows it."""
        if self._folder is None:
            raise LabError("the lab is not set up: use it in a with statement")
        return self._folder.name

    def network(self, host: str) -> Path:
        """The host's network namespace, as container engines want it: ``podman run --network ns:PATH``."""
        return Path(f"/proc/{self._host(host).first}/ns/net")

    def bytes(self) -> dict[str, links.Traffic]:
        """What each host's interface has sent and received since the lab was set up."""
        if self._switch is None:
            raise LabError("the lab is not set up: use it in a with statement")
        return {name: links.traffic(self._switch, host) for name, host in self._hosts.items()}

    def run(
        self,
        command: Sequence[str],
        *,
        host: str = "node1",
        environment: Mapping[str, str] | None = None,
        time_limit: float = 600.0,
    ) -> str:
        """What ``command`` prints on ``host``, called in the current folder.

        When it has ended, whatever it may have left running on any host is killed.

        Args:
            environment: beside the current one; logins from this host to others do not see it.

        Raises:
            LabError: it failed, or took more than ``time_limit`` seconds.
        """
        process = self._start(command, host, environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            output, _ = process.communicate(timeout=time_limit)
        except BaseException as error:
            self._stop(process)
            if isinstance(error, subprocess.TimeoutExpired):
                partial, _ = process.communicate()
                raise LabError(f"{command[0]}: not done after {time_limit:g} s:\n{partial}") from None
            raise
        self._clear()
        if process.returncode != 0:
            raise LabError(f"{command[0]} failed with status {process.returncode}:\n{output}")
        return output

    def call(self, command: Sequence[str], *, host: str = "node1") -> int:
        """Status of ``command`` on ``host``, with this process's own input and output."""
        process = self._start(command, host, None)
        try:
            status = process.wait()
        except BaseException:
            self._stop(process)
            raise
        self._clear()
        return status

    def _start(
        self,
        command: Sequence[str],
        host: str,
        environment: Mapping[str, str] | None,
        *,
        stdout: int | None = None,
        stderr: int | None = None,
    ) -> subprocess.Popen[str]:
        within = self._host(host)
        within.require_alive()
        in_folder = ["sh", "-c", 'cd "$0" && exec "$@"', os.getcwd(), *command]
        return subprocess.Popen(
            within.entering(in_folder),
            stdin=None if stdout is None else subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            text=True,
            env={**self._environment(), **(environment or {})},
        )

    def _environment(self) -> dict[str, str]:
        # The Python that runs this is the one whose horovodrun, and whose packages, are meant.
        path = f"{Path(sys.executable).parent}{os.pathsep}{search_path()}"
        root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        return {**os.environ, **root, "PATH": path}

    def _stop(self, process: subprocess.Popen[str]) -> None:
        """Ask the command to end, wait a little, and kill what is left of it on any host."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(process.pid).children():
                child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=SECONDS_TO_STOP)
        process.kill()
        process.wait()
        self._clear()

    def _clear(self) -> None:
        for host in self._hosts.values():
            host.clear()

    def _host(self, name: str) -> Namespaces:
        if not self._hosts:
            raise LabError("the lab is not set up: use it in a with statement")
        if name not in self._hosts:
            raise LabError(f"host must be one of {', '.join(self._hosts)}, got {name!r}")
        return self._hosts[name]
