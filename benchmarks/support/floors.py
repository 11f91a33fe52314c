"""Compile and call the loops of floors.cc, which move the memory that the core's passes must move and do no more."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]

ROOT = Path(__file__).resolve().parents[2]
SOURCES = (Path(__file__).with_name("floors.cc"), ROOT / "csrc/kernels.cc", ROOT / "csrc/parallel.cc")
# As in setup.py, so that the floors are compiled like the core.
FLAGS = ("-std=c++17", "-O3", "-ffp-contract=off", "-pthread", "-fPIC", "-shared")


class Floors:
    """Bare memory traffic over float32 arrays of one length; ``momentum`` is that of the update loops."""

    def __init__(self, momentum: float) -> None:
        self._library = ctypes.CDLL(str(_build()))
        self._library.floor_instructions.restype = ctypes.c_char_p
        self._momentum = ctypes.c_float(momentum)

    @property
    def instructions(self) -> str:
        """Name of the instruction set in use, the same as the core's."""
        return str(self._library.floor_instructions().decode())

    def read(self, grad: FloatArray, velocity: FloatArray, residual: FloatArray, threads: int) -> None:
        """Read all three: 12 bytes per element."""
        self._library.floor_read(*_pointers(grad, velocity, residual), *_extent(grad, threads))

    def read_one(self, grad: FloatArray, threads: int) -> None:
        """Read the gradient alone: 4 bytes per element."""
        self._library.floor_read_one(*_pointers(grad), *_extent(grad, threads))

    def update(self, grad: FloatArray, velocity: FloatArray, residual: FloatArray, threads: int) -> None:
        """velocity = momentum * velocity + grad, residual += velocity: 12 bytes read per element, 8 written."""
        arrays = _pointers(grad, velocity, residual)
        self._library.floor_update(*arrays, self._momentum, *_extent(grad, threads))

    def update_and_zero(self, grad: FloatArray, velocity: FloatArray, residual: FloatArray, threads: int) -> None:
        """The same, and grad = 0: 12 bytes read per element, 12 written."""
        arrays = _pointers(grad, velocity, residual)
        self._library.floor_update_and_zero(*arrays, self._momentum, *_extent(grad, threads))


def _pointers(*arrays: FloatArray) -> list[Any]:
    return [ctypes.c_void_p(array.ctypes.data) for array in arrays]


def _extent(array: FloatArray, threads: int) -> tuple[Any, Any]:
    return ctypes.c_size_t(array.size), ctypes.c_int(threads)


def _build() -> Path:
    """The shared library, compiled unless these very sources have been."""
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    digest = hashlib.sha256(repr((compiler, FLAGS)).encode())
    for path in (*SOURCES, *sorted((ROOT / "csrc").glob("*.h"))):
        digest.update(path.read_bytes())
    library = ROOT / "build" / "benchmarks" / f"floors-{digest.hexdigest()[:16]}.so"
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        sources = [str(path) for path in SOURCES]
        # Under its final name only when complete, in case of an interruption.
        unfinished = library.with_suffix(f".{os.getpid()}")
        command = [*compiler, *FLAGS, f"-I{ROOT / 'csrc'}", *sources, "-o", str(unfinished)]
        subprocess.run(command, check=True)
        unfinished.rename(library)
    return library
