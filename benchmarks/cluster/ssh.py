"""What makes a set of namespaces a host that one can log in to: files, name, and its own sshd."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

from cluster.tools import find, output

# Where the lab's files are inside a host.
INSIDE = "/run/lab"

# $1 is the lab's folder, $2 the host's name. /run is the host's own, so that what sshd and jobs leave there goes with
# it; the rest of the file system is shared, as between hosts with a network file system.
HOST_SCRIPT = f"""
mount -t tmpfs -o mode=755 tmpfs "$1/run"
mkdir "$1/run/sshd"
cp -Rp "$1/files" "$1/run/lab"
mount --no-mtab --move "$1/run" /run
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -t sysfs sysfs /sys
echo "$2" >/proc/sys/kernel/hostname
mount --bind {INSIDE}/hosts /etc/hosts
mount --bind {INSIDE}/ssh_config /etc/ssh/ssh_config
# A locked password keeps sshd from letting root in with a key, too.
(umask 077; sed 's/^root:![^:]*/root:*/' /etc/shadow >{INSIDE}/shadow)
# What bash reads at a login may put another Python first, take long, or not like to be killed.
sed 's|^\\(root:.*:\\)[^:]*$|\\1{INSIDE}/bash|' /etc/passwd >{INSIDE}/passwd
mount --bind {INSIDE}/shadow /etc/shadow
mount --bind {INSIDE}/passwd /etc/passwd
exec {{sshd}} -D -e -f {INSIDE}/sshd_config
"""
MODES = {"host_key": 0o600, "user_key": 0o600, "bash": 0o755}
READY = "Server listening on"

SSHD_CONFIG = f"""\
ListenAddress 0.0.0.0
HostKey {INSIDE}/host_key
AuthorizedKeysFile {INSIDE}/user_key.pub
PidFile none
UsePAM no
UseDNS no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
MaxStartups 100
MaxSessions 100
"""

# Its name matters: Open MPI has any other shell but bash read a profile.
SHELL = """\
#!/bin/sh
{exports}
exec /bin/bash --norc "$@"
"""

SSH_CONFIG = f"""\
Host *
IdentityFile {INSIDE}/user_key
IdentitiesOnly yes
UserKnownHostsFile {INSIDE}/known_hosts
BatchMode yes
LogLevel ERROR
"""


def host_script() -> str:
    return HOST_SCRIPT.format(sshd=find("sshd"))


def write_files(folder: Path, addresses: Mapping[str, str], environment: Mapping[str, str]) -> None:
    """Write what :data:`HOST_SCRIPT` wants in the lab's folder.

    Args:
        addresses: by host's name.
        environment: what a login finds set, as a cluster's profile would set it.
    """
    files = folder / "files"
    for path in (files, folder / "run"):
        path.mkdir()
    for key in ("host_key", "user_key"):
        output([find("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", str(files / key)])
    host_key = (files / "host_key.pub").read_text()
    everybody = ",".join([*addresses, *addresses.values()])
    (files / "known_hosts").write_text(f"{everybody} {host_key}")
    names = [f"{address} {name}" for name, address in addresses.items()]
    (files / "hosts").write_text("\n".join(["127.0.0.1 localhost", *names, ""]))
    (files / "ssh_config").write_text(SSH_CONFIG)
    exports = "\n".join(f"export {name}={shlex.quote(value)}" for name, value in environment.items())
    (files / "bash").write_text(SHELL.format(exports=exports))
    (files / "sshd_config").write_text(SSHD_CONFIG)
    for path in files.iterdir():
        path.chmod(MODES.get(path.name, 0o644))
