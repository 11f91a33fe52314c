"""Looks at what is installed, each piece in a process that may crash or hang without harm.

A framework takes seconds to import, and one that was compiled against something else may end the process. So pieces
are looked at in other processes, one after another, with a time limit. Where one ends the process, the next process
goes on with the piece that follows.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

State = Literal["ok", "missing", "broken"]
Facts = dict[str, Any]

SECONDS = 120.0
# Of a program that only prints its version.
PROGRAM_SECONDS = 20.0
LONGEST_ERROR = 400
# What TensorFlow logs of itself, other than errors.
NOISE = re.compile(r"[IW]\d{4} |\d{4}-\d\d-\d\d [^ ]+ [IW] ")
FRAMEWORKS = ("torch", "tensorflow", "horovod")


@dataclass(frozen=True)
class Piece:
    """What was found of one piece.

    Attributes:
        facts: versions and the like, as JSON holds them.
        error: one line; empty unless the piece is broken.
    """

    state: State
    facts: Facts = field(default_factory=dict)
    error: str = ""


class Missing(Exception):
    """The piece is not installed."""


def core() -> Facts:
    """The C++ core, tried on a small gradient."""
    import numpy as np

    from horovod_dgc import DGC, _core

    method = DGC(density=0.1)
    gradient = np.arange(100, dtype=np.float32)
    total = method.decode(method.encode(gradient, method.init(100)), np.zeros(100, np.float32))
    if not np.array_equal(np.flatnonzero(total), np.arange(90, 100)):
        raise RuntimeError(f"of the numbers 0 to 99 the ten largest must be sent, got {np.flatnonzero(total)}")
    return {"NumPy": np.__version__, "instruction set": _core.instruction_set()}


def torch() -> Facts:
    module = import_module("torch")
    gpus = range(module.cuda.device_count()) if module.cuda.is_available() else ()
    names = [module.cuda.get_device_name(number) for number in gpus]
    return {"version": module.__version__, "CUDA": module.version.cuda, "GPUs": names}


def kernels() -> Facts:
    """The CUDA kernels, loaded; none is run."""
    from horovod_dgc.building import places
    from horovod_dgc.coding import Coding

    module = places.load_kernels()
    if module is None:
        raise Missing
    if not module.has_format(Coding().codec(1000, 10).layout):
        raise RuntimeError("they do not know the payloads of DGC")
    return {"file": module.__file__}


def tensorflow() -> Facts:
    module = import_module("tensorflow")
    return {
        "version": module.__version__,
        # The one that tf.keras is, by TF_USE_LEGACY_KERAS.
        "Keras": module.keras.__version__,
        "tf_keras": _version("tf_keras"),
        "NumPy": _version("numpy"),
        "GPUs": [device.name for device in module.config.list_physical_devices("GPU")],
    }


def operations() -> Facts:
    """TensorFlow's operations, loaded without the adapter, which needs Horovod."""
    path = Path(__file__).parents[1] / "tensorflow" / "operations.py"
    spec = importlib.util.spec_from_file_location("horovod_dgc_operations", path)
    assert spec is not None and spec.loader is not None
    import_module("tensorflow")
    try:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    except ImportError as error:
        # Where there is a file, loading it is what has failed, for the reason given.
        raise error.__cause__ or Missing from None
    return {}


def horovod() -> Facts:
    """Horovod without any framework, and what it says that it was compiled for."""
    module = import_module("horovod")
    metadata = Path(module.__path__[0], "metadata.json")
    compiled: dict[str, str] = json.loads(metadata.read_text()) if metadata.exists() else {}
    return {
        "version": _version("horovod"),
        "compiled for": {"torch": compiled.get("pytorch"), "tensorflow": compiled.get("tensorflow")},
        "horovodrun": shutil.which("horovodrun"),
    }


def horovod_torch() -> Facts:
    return _horovod("torch", "mpi_lib_v2")


def horovod_tensorflow() -> Facts:
    return _horovod("tensorflow", "mpi_lib")


def _horovod(framework: str, library: str) -> Facts:
    import_module(framework)
    folder = Path(import_module("horovod").__path__[0], framework)
    found = [*folder.glob(f"{library}*.so")]
    if not found:
        raise Missing
    module = import_module(f"horovod.{framework}")
    mpi = bool(module.mpi_built())
    return {
        "MPI": mpi_name(_mpi_library(ctypes.CDLL(str(found[0])))) if mpi else None,
        "Gloo": bool(module.gloo_built()),
        "NCCL": bool(module.nccl_built()),
    }


def mpi4py() -> Facts:
    package = import_module("mpi4py")
    package.rc.initialize = False
    return {"version": package.__version__, "MPI": mpi_name(import_module("mpi4py.MPI").Get_library_version())}


def mpirun() -> Facts:
    path = shutil.which("mpirun")
    if path is None:
        raise Missing
    version = mpi_name(_printed(path, "--version"))
    allowed = all(os.environ.get(f"OMPI_ALLOW_RUN_AS_ROOT{more}") == "1" for more in ("", "_CONFIRM"))
    refuses = version.startswith("Open MPI") and os.geteuid() == 0 and not allowed
    return {"version": version, "path": path, "refuses root": refuses}


def compiler() -> Facts:
    """What compiles Horovod and the operations."""
    command = shlex.split(os.environ.get("CXX", "")) or [name for name in ("g++", "c++") if shutil.which(name)][:1]
    if not command:
        raise Missing
    return {"version": _printed(*command, "--version").splitlines()[0]}


def cuda_compiler() -> Facts:
    from horovod_dgc.building import extensions

    nvcc = extensions.find_nvcc()
    if nvcc is None:
        raise Missing
    return {"version": extensions.nvcc_version(nvcc), "path": nvcc}


def safetensors() -> Facts:
    return {"version": import_module("safetensors").__version__}


def matplotlib() -> Facts:
    return {"version": import_module("matplotlib").__version__}


# By process: a framework is imported once, and the processes run at the same time.
PROCESSES: tuple[tuple[Callable[[], Facts], ...], ...] = (
    (core, horovod, mpirun, mpi4py, compiler, cuda_compiler, safetensors, matplotlib),
    (torch, kernels, horovod_torch),
    (tensorflow, operations, horovod_tensorflow),
)
NAMES = tuple(tuple(probe.__name__ for probe in process) for process in PROCESSES)
PIECES: Mapping[str, Callable[[], Facts]] = {probe.__name__: probe for process in PROCESSES for probe in process}


def mpi_name(text: str) -> str:
    """Family and version of an MPI, from what it says of itself, as a library or a program."""
    families = {
        r"Open ?MPI": "Open MPI",
        r"MVAPICH": "MVAPICH",
        r"Intel\(R\) MPI": "Intel MPI",
        r"MPICH|HYDRA": "MPICH",
    }
    for pattern, family in families.items():
        if re.search(pattern, text):
            version = re.search(r"\d+(\.\d+)+", text)
            return f"{family} {version[0]}" if version else family
    return text.strip().partition("\n")[0]


def _mpi_library(library: ctypes.CDLL) -> str:
    """What the MPI says that a library is linked with; MPI need not be initialised."""
    text, length = ctypes.create_string_buffer(1 << 13), ctypes.c_int()
    library.MPI_Get_library_version(text, ctypes.byref(length))
    return text.value.decode(errors="replace")


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _printed(*command: str) -> str:
    result = subprocess.run(
        command,
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=PROGRAM_SECONDS,
    )
    if result.returncode != 0:
        raise RuntimeError(f"{shlex.join(command)} ended with status {result.returncode}: {result.stdout[:200]}")
    return result.stdout


def look(probe: Callable[[], Facts]) -> Piece:
    """Look at one piece in this process."""
    try:
        return Piece("ok", probe())
    except Missing:
        return Piece("missing")
    except ModuleNotFoundError as error:
        # What a piece imports itself may be missing where the piece is there: that is broken.
        if error.name in (probe.__name__, *FRAMEWORKS):
            return Piece("missing")
        return Piece("broken", error=_line(error))
    except (Exception, SystemExit) as error:
        return Piece("broken", error=_line(error))


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split()).rstrip(".")
    return f"{type(error).__name__}: {text}"[:LONGEST_ERROR]


def answer(names: Iterable[str]) -> None:
    """Look at the pieces, and print a line of JSON before and after each. Ends the process."""
    lines = os.fdopen(os.dup(1), "w")
    # What libraries print is no answer.
    os.dup2(2, 1)
    for name in names:
        print(json.dumps({"name": name}), file=lines, flush=True)
        piece = look(PIECES[name])
        print(json.dumps({"name": name, **piece.__dict__}), file=lines, flush=True)
    # Not by way of the libraries' own ends.
    os._exit(0)


def examine(processes: Iterable[Iterable[str]] = NAMES, seconds: float = SECONDS) -> dict[str, Piece]:
    """Look at pieces, those of each process one after another.

    Args:
        seconds: for each process, which goes on where the one before was ended.
    """
    found: dict[str, Piece] = {}
    interrupted = threading.Event()
    with ThreadPoolExecutor() as pool:
        try:
            for pieces in pool.map(lambda names: _examined(list(names), seconds, interrupted), processes):
                found.update(pieces)
        except BaseException:
            interrupted.set()
            raise
    return found


def _examined(names: list[str], seconds: float, interrupted: threading.Event) -> dict[str, Piece]:
    found: dict[str, Piece] = {}
    while (left := [name for name in names if name not in found]) and not interrupted.is_set():
        begun, answers, why = _process(left, seconds)
        found.update(answers)
        if len(answers) < len(left):
            # The piece at which the process ended.
            found[begun if begun is not None else left[0]] = Piece("broken", error=why)
    return found


def _process(names: list[str], seconds: float) -> tuple[str | None, dict[str, Piece], str]:
    """The piece that the process of these began last, what it found, and how it ended."""
    # The same modules as here, wherever this program was started.
    code = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import answer; answer({names!r})"
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            env={"TF_CPP_MIN_LOG_LEVEL": "3", **os.environ},
        )
        try:
            output, _ = process.communicate(timeout=seconds)
            why = f"it ended the process with status {process.returncode}"
            if process.returncode < 0:
                why = f"it crashed the process (signal {-process.returncode})"
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
            why = f"not done after {seconds:g} s"
        finally:
            process.kill()
        errors.seek(0)
        said = [line for line in errors.read().decode(errors="replace").splitlines() if line and not NOISE.match(line)]
    begun = None
    found: dict[str, Piece] = {}
    for line in output.decode(errors="replace").splitlines():
        with contextlib.suppress(ValueError):
            fields = json.loads(line)
            begun = fields.pop("name")
            if fields:
                found[begun] = Piece(**fields)
    return begun, found, f"{why}; {said[-1].rstrip('.')}"[:LONGEST_ERROR] if said else why


def here() -> Facts:
    """What needs no other process: Python and the machine."""
    return {
        "Python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "executable": sys.executable,
    }
