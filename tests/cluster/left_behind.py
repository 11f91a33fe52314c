"""What the machine looks like, for tests that a lab leaves nothing of itself behind."""

from __future__ import annotations

import contextlib
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True)
class Machine:
    """What a lab must not change: the named namespaces, the links and the mounts of the machine itself."""

    named_namespaces: str
    links: frozenset[str]
    mounts: frozenset[str]

    @classmethod
    def now(cls) -> Machine:
        return cls(
            subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout,
            frozenset(os.listdir("/sys/class/net")),
            # Without the numbers in front, which mean nothing from one time to the other.
            frozenset(line.split(" ", 3)[3] for line in Path("/proc/self/mountinfo").read_text().splitlines()),
        )


def networks_of(processes: list[psutil.Process]) -> set[str]:
    """The processes' network namespaces, but for this process's own."""
    found = set()
    for process in processes:
        with contextlib.suppress(OSError, psutil.NoSuchProcess):
            found.add(os.readlink(f"/proc/{process.pid}/ns/net"))
    return found - {os.readlink("/proc/self/ns/net")}


def processes_in(networks: set[str]) -> list[str]:
    """Commands of all living processes of the machine that are in these network namespaces."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(OSError, psutil.NoSuchProcess):
            if os.readlink(f"/proc/{process.pid}/ns/net") in networks:
                found.append(" ".join(process.cmdline()) or process.name())
    return found
