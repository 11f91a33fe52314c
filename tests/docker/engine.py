"""Images and containers by Debian's own tools, in a store that is thrown away: no Docker engine, no registry."""

from __future__ import annotations

import ast
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

# Debian packages by program.
PACKAGES = {"podman": "podman", "buildah": "buildah", "runc": "runc", "mmdebstrap": "mmdebstrap"}
PIP_SETTINGS = ("cert", "extra-index-url", "find-links", "index-url", "proxy", "trusted-host")
BASE = "localhost/horovod_dgc_base"
# What podman and runc make outside their store, inner folders first, and the files therein.
FOLDERS = tuple(map(Path, ("/run/runc", "/var/lib/containers/cache", "/var/lib/containers")))
FILES = ("blob-info-cache-v1.boltdb",)
# Where a container engine lacks CAP_SYS_RESOURCE it cannot raise its own defaults to theirs.
LIMITS = ("--ulimit", "nofile=4096:4096", "--ulimit", "nproc=4096:4096", "--shm-size", "256m")


def reason_against() -> str | None:
    """Why no image can be built here; None if one can."""
    if os.geteuid() != 0:
        return "building and running the image without a Docker engine needs root"
    missing = [program for program in PACKAGES if shutil.which(program) is None]
    if missing:
        packages = " ".join(PACKAGES[program] for program in missing)
        return f"{', '.join(missing)} missing: apt-get install --no-install-recommends {packages}"
    return None


class Engine:
    """A store of images and containers of its own, in a folder that :meth:`close` removes."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="horovod_dgc_image-"))
        self._store = ["--root", str(self.folder / "store"), "--runroot", str(self.folder / "run")]
        self._folders_found = {folder for folder in FOLDERS if folder.exists()}

    def podman(self, *arguments: str, check: bool = True, time_limit: float = 300.0) -> str:
        """What podman prints, errors included; AssertionError with it where podman fails."""
        command = [
            "podman",
            *self._store,
            "--tmpdir",
            str(self.folder / "tmp"),
            "--runtime",
            "runc",
            "--cgroup-manager",
            "cgroupfs",
            *arguments,
        ]
        return call(command, check=check, time_limit=time_limit)

    def import_base(self) -> None:
        """Make Debian 12's smallest system from the machine's own mirror, as the image that others begin with."""
        archive = self.folder / "base.tar"
        options = ["--variant=minbase", "--format=tar", "--dpkgopt=force-unsafe-io"]
        environment = {**os.environ, "TMPDIR": str(self.folder)}
        call(["mmdebstrap", *options, "bookworm", str(archive)], environment=environment)
        self.podman("import", str(archive), BASE)
        archive.unlink()

    def build(self, context: Path, dockerfile: str, tag: str) -> None:
        mounts = [word for mount in self._pip_settings() for word in ("--volume", mount)]
        options = ["--pull-never", "--isolation", "chroot", "--format", "docker", "--build-arg", f"BASE={BASE}"]
        build = ["buildah", *self._store, "bud", *options, *mounts, "--tag", tag]
        call([*build, "--file", str(context / dockerfile), str(context)], time_limit=3000)

    def _pip_settings(self) -> Iterator[str]:
        """Mounts that make pip in the build reach what pip reaches here."""
        settings = {}
        for line in call([sys.executable, "-m", "pip", "config", "list"]).splitlines():
            name, _, value = line.partition("=")
            # Settings of the environment come last, and go first.
            settings[name.rpartition(".")[2]] = ast.literal_eval(value)
        folder = self.folder / "pip"
        folder.mkdir()
        if "cert" in settings:
            shutil.copy(settings["cert"], folder / "certificates.pem")
            settings["cert"] = "/pip/certificates.pem"
        lines = [f"{name} = {value}" for name, value in settings.items() if name in PIP_SETTINGS]
        (folder / "pip.conf").write_text("\n".join(["[global]", *lines, ""]))
        yield f"{folder}:/pip:ro"
        yield f"{folder / 'pip.conf'}:/etc/pip.conf:ro"
        places = " ".join(settings.get(name, "") for name in ("extra-index-url", "find-links", "index-url")).split()
        for place in places:
            path = Path(place.removeprefix("file://"))
            if path.is_absolute() and path.is_dir():
                # An index's files lie beside its list of names.
                top = path.parent if path.name == "simple" else path
                yield f"{top}:{top}:ro"

    def close(self) -> None:
        self.podman("rm", "--all", "--force", "--time", "0", check=False)
        self.podman("rmi", "--all", "--force", check=False)
        mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        for mount in reversed([mount for mount in mounts if mount.startswith(f"{self.folder}/")]):
            call(["umount", mount], check=False)
        shutil.rmtree(self.folder, ignore_errors=True)
        for folder in FOLDERS:
            if folder not in self._folders_found:
                for name in FILES:
                    (folder / name).unlink(missing_ok=True)
                # Somebody else may have begun to use it meanwhile.
                with contextlib.suppress(OSError):
                    folder.rmdir()


def call(
    command: Sequence[str], *, check: bool = True, time_limit: float = 600.0, environment: dict[str, str] | None = None
) -> str:
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=time_limit)
    except BaseException:
        # The whole of it: a build has processes of its own.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        process.wait()
        raise
    assert not check or process.returncode == 0, f"{' '.join(command)}: status {process.returncode}\n{output[-6000:]}"
    return output
