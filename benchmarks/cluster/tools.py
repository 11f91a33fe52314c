"""The system's programs that a lab is made with."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence

import click

# Debian packages by program.
PACKAGES = {
    "ip": "iproute2",
    "tc": "iproute2",
    "sshd": "openssh-server",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
    "mount": "mount",
}
TRIAL = """
ip link add bridge type bridge
ip link add port type veth peer name eth0
tc qdisc add dev eth0 root tbf rate 1gbit burst 256kb latency 50ms
ip link set port master bridge up
"""
# Where programs for administrators are, which not every PATH holds.
ADMINISTRATORS = ("/usr/local/sbin", "/usr/sbin", "/sbin")


class LabError(click.ClickException):
    """The lab could not be made, or what ran in it failed."""


def search_path(environment: Mapping[str, str] = os.environ) -> str:
    """``PATH``, and the administrators' folders behind it."""
    folders = environment.get("PATH", os.defpath).split(os.pathsep)
    return os.pathsep.join([*folders, *(folder for folder in ADMINISTRATORS if folder not in folders)])


def find(program: str) -> str:
    """The program's full path.

    Raises:
        LabError: it is not there.
    """
    path = shutil.which(program, path=search_path())
    if path is None:
        raise LabError(f"{program} is missing: apt-get install --no-install-recommends {PACKAGES[program]}")
    return path


def reason_against() -> str | None:
    """Why no lab can be made here; None if one can."""
    if os.geteuid() != 0:
        return "a lab of network namespaces needs root"
    missing = [program for program in PACKAGES if shutil.which(program, path=search_path()) is None]
    if missing:
        packages = " ".join(dict.fromkeys(PACKAGES[program] for program in missing))
        return f"{', '.join(missing)} missing: apt-get install --no-install-recommends {packages}"
    return None


def refusal() -> str | None:
    """What the kernel says to what a lab asks of it, tried in namespaces that are gone at once; None if it agrees."""
    try:
        output([find("unshare"), "--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "sh", "-euc", TRIAL])
    except LabError as error:
        return f"this machine allows no namespaces with shaped links: {error.message}"
    return None


def output(command: Sequence[str]) -> str:
    """What a short command prints.

    Raises:
        LabError: it failed.
    """
    result = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": search_path()},
    )
    if result.returncode != 0:
        raise LabError(f"{' '.join(command)} failed with status {result.returncode}: {result.stderr.strip()}")
    return result.stdout
