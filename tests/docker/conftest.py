"""The image, built once, and a reason to skip its tests where that cannot be done."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "benchmarks"), str(Path(__file__).parent)]

import engine as engines  # noqa: E402
from cluster import tools  # noqa: E402

CONTEXT = ("csrc", "docker", "examples", "horovod_dgc", "requirements")
FILES = ("MANIFEST.in", "pyproject.toml", "setup.py")
IMAGE = "localhost/horovod_dgc"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = tools.reason_against() or tools.refusal() or engines.reason_against()
    if reason is not None:
        for item in items:
            if item.path.is_relative_to(Path(__file__).parent):
                item.add_marker(pytest.mark.skip(reason=reason))


def interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@pytest.fixture(scope="session")
def engine() -> Iterator[engines.Engine]:
    """A container engine that holds the image; ended in order by SIGTERM, too."""
    previous = signal.signal(signal.SIGTERM, interrupt)
    made = engines.Engine()
    try:
        context = made.folder / "context"
        left_out = shutil.ignore_patterns("__pycache__", "*.so", "*.whl")
        for name in CONTEXT:
            shutil.copytree(ROOT / name, context / name, ignore=left_out)
        for name in FILES:
            shutil.copy(ROOT / name, context / name)
        shutil.copy(horovod_wheel(), context / "docker" / "wheels")
        made.import_base()
        made.build(context, "docker/Dockerfile", IMAGE)
        yield made
    finally:
        made.close()
        signal.signal(signal.SIGTERM, previous)


def horovod_wheel() -> Path:
    """The one that this environment was set up with, which the image's Python takes as well."""
    command = [sys.executable, "-m", "horovod_dgc", "build", "horovod", "--mpi", "--wheel-only"]
    return Path(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip())
