"""Compiling what needs a framework's headers or a CUDA toolkit, after the package has been installed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from horovod_dgc.building import extensions, places
from horovod_dgc.building.extensions import BuildError, Compiler
from horovod_dgc.building.progress import say, step

# By its path: the adapter around it wants Horovod, which need not be there yet.
LOADS_OPERATIONS = (
    "import runpy; from horovod_dgc.building import places; "
    "runpy.run_path(str(places.PACKAGE / 'tensorflow' / 'operations.py'))"
)
# A layout of the core's goes in: both must mean the same by it.
LOADS_KERNELS = (
    "from horovod_dgc.building import places; from horovod_dgc.coding import Coding; "
    "kernels = places.load_kernels(); assert kernels is not None; kernels.has_format(Coding().codec(1000, 10).layout)"
)


def build_tensorflow(jobs: int | None = None, force: bool = False) -> Path:
    """Compile the operations against the installed TensorFlow, unless they are there. Returns the file.

    Raises:
        BuildError: something is missing or fails; the message says what to do.
    """
    with step("asking the installed TensorFlow for its compiler flags", usually=5):
        tensorflow = extensions.find_tensorflow()
    installed = places.PACKAGE / "tensorflow"
    return _build(
        f"the operations for TensorFlow {tensorflow.version}",
        tensorflow.file_name,
        installed,
        lambda compiler, target: compiler.operations(target, tensorflow),
        LOADS_OPERATIONS,
        jobs,
        force,
        usually=120,
    )


def build_cuda(jobs: int | None = None, force: bool = False) -> Path:
    """Compile the CUDA kernels, unless they are there. Returns the file.

    Raises:
        BuildError: something is missing or fails; the message says what to do.
    """
    nvcc = extensions.find_nvcc()
    if nvcc is None:
        raise BuildError(
            "there is no CUDA compiler: install the CUDA toolkit and put its nvcc on the PATH or set CUDA_HOME, or run "
            f"{sys.executable} -m pip install nvidia-cuda-nvcc nvidia-cuda-cccl nvidia-cuda-crt nvidia-cuda-runtime "
            "nvidia-nvvm"
        )
    targets = ", ".join(f"{each // 10}.{each % 10}" for each in extensions.capabilities(nvcc))
    return _build(
        f"the CUDA kernels with CUDA {extensions.nvcc_version(nvcc)} for compute capabilities {targets}",
        extensions.kernels_name(),
        places.PACKAGE,
        lambda compiler, target: compiler.kernels(target, nvcc),
        LOADS_KERNELS,
        jobs,
        force,
        usually=180,
    )


def _build(
    what: str,
    name: str,
    installed: Path,
    compile: Callable[[Compiler, Path], None],
    loads: str,
    jobs: int | None,
    force: bool,
    usually: float,
) -> Path:
    objects = places.cache() / "objects" / extensions.sources_digest(places.sources())
    with extensions.alone(objects, lambda: say("another process is compiling for this version; waiting for it")):
        found = places.find(installed, name)
        if found is not None and not force and _failure(loads) is None:
            say(f"{what}: already there, in {found} (--force compiles again)")
            return found
        target = places.target() / name
        with step(f"compiling {what}", usually) as progress:
            compile(Compiler(places.sources(), objects, progress.advance, jobs), target)
        with step("loading them once", usually=5):
            failure = _failure(loads)
        if failure is not None:
            raise BuildError(f"{target} has been compiled, but does not load: {failure}")
    say(f"they are in {target} and are found there without further settings")
    return target


def _failure(code: str) -> str | None:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return None if result.returncode == 0 else (result.stderr.strip().splitlines() or ["no message"])[-1]
