"""Horovod, compiled for the frameworks that an environment has: its released source fits no torch >= 2.1 as it is.

Each framework's library is compiled by itself, and kept as a wheel in the cache: a second environment, or a second
framework, compiles only what is new. Nothing is put into the environment but the finished wheel.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from horovod_dgc.building.extensions import BuildError, alone, parallel_jobs
from horovod_dgc.building.progress import read, say, step

VERSION = "0.28.1"
FRAMEWORKS = {"torch": "PyTorch", "tensorflow": "TensorFlow"}
# Seconds on two cores: for those who wait.
USUALLY = {"torch": 110.0, "tensorflow": 130.0}

# (file, text that must occur, how often, replacement, reason)
EDITS = [
    (
        "CMakeLists.txt",
        "set(CMAKE_CXX_STANDARD 14)\n",
        1,
        "set(CMAKE_CXX_STANDARD 17)\n",
        "torch >= 2.1 needs C++17, and Gloo must be compiled with the same standard to link",
    ),
    (
        "horovod/torch/CMakeLists.txt",
        "    set(CMAKE_CXX_STANDARD 14)\n",
        1,
        "    set(CMAKE_CXX_STANDARD 17)\n",
        "torch >= 2.1 needs C++17",
    ),
    (
        "horovod/tensorflow/CMakeLists.txt",
        'list(APPEND TF_SOURCES "${PROJECT_SOURCE_DIR}/horovod/tensorflow/xla_mpi_ops.cc")\n',
        1,
        "",
        "its headers are not in the wheel of TensorFlow >= 2.16, and its content is for GPUs only",
    ),
    (
        "CMakeLists.txt",
        'string(REPLACE "-O2" "-O3"',
        3,
        'string(REPLACE "-O2 -g" "-O3"',
        "debug information takes half of the compile time and is 98 % of the wheel",
    ),
]

NCCL_FLAGS = {
    "HOROVOD_GPU_OPERATIONS": "NCCL",
    "HOROVOD_NCCL_LINK": "SHARED",
    "HOROVOD_BUILD_CUDA_CC_LIST": "75,80,86,90,100,120",  # those of PyTorch's own build; and PTX of the last one
}

# What compiles Horovod's source: its gloo wants a CMake below 4, its setup.py a setuptools below 81.
TOOLS = ("cmake==3.31.6", "setuptools==80.10.2", "wheel==0.48.0", "packaging", "cffi")

# Wheels are shared through the cache, so nothing may enter them that is not in the cache key.
IGNORED_VARIABLES = {
    "CC",
    "CXX",
    "CFLAGS",
    "CPPFLAGS",
    "CXXFLAGS",
    "LDFLAGS",
    "CMAKE_ARGS",
    "CMAKE_GENERATOR",
    "CUDAARCHS",
    "CUDAFLAGS",
    "CUDAHOSTCXX",
    "NVCC_APPEND_FLAGS",
    "NVCC_PREPEND_FLAGS",
}
BYTES_PER_JOB = 2 << 30  # the compiler's peak on the files that include TensorFlow's headers
GIB_ON_DISK = 1

# Run by the interpreter that Horovod is compiled for.
ASK = """
import importlib.metadata, importlib.util, json, os, platform, sys, sysconfig

def version(*names):
    for name in names:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            pass

print(json.dumps({
    "executable": sys.executable,
    "prefix": sys.prefix,
    "bin": os.path.dirname(sys.executable),
    "python": platform.python_version(),
    "abi": sysconfig.get_config_var("SOABI"),
    "machine": platform.machine(),
    "libc": platform.libc_ver(),
    "header": os.path.join(sysconfig.get_path("include"), "Python.h"),
    "purelib": sysconfig.get_path("purelib"),
    "pip": version("pip"),
    "torch": version("torch"),
    "tensorflow": version("tensorflow", "tensorflow-cpu", "tf-nightly"),
}))
"""


@dataclass(frozen=True)
class Target:
    """The environment that Horovod is compiled for, as its interpreter describes it, and how.

    Attributes:
        frameworks: version by name, of those that are compiled for.
        mpi: whether with MPI, beside Gloo.
        nccl: whether with NCCL, for GPUs.
    """

    facts: Mapping[str, Any]
    frameworks: Mapping[str, str]
    mpi: bool
    nccl: bool

    @property
    def python(self) -> str:
        return str(self.facts["executable"])

    @property
    def pip(self) -> list[str]:
        """The command that its pip is called by."""
        return [self.python, "-m", "pip", "--disable-pip-version-check"]

    def flags(self, framework: str) -> dict[str, str]:
        """Settings of Horovod's setup.py under which only this framework's library is made."""
        return {
            f"HOROVOD_WITH_{'PYTORCH' if framework == 'torch' else 'TENSORFLOW'}": "1",
            f"HOROVOD_WITHOUT_{'TENSORFLOW' if framework == 'torch' else 'PYTORCH'}": "1",
            "HOROVOD_WITHOUT_MXNET": "1",
            f"HOROVOD_WITH{'' if self.mpi else 'OUT'}_MPI": "1",
            "HOROVOD_WITH_GLOO": "1",
            **(NCCL_FLAGS if self.nccl else {}),
        }

    def key(self, framework: str) -> str:
        """Digest of all that this framework's library depends on."""
        facts = {
            "horovod": VERSION,
            "edits": EDITS,
            "tools": TOOLS,
            "flags": self.flags(framework),
            "framework": self.frameworks[framework],
            **{name: self.facts[name] for name in ("abi", "machine", "libc")},
            "compiler": _first_line("g++", "--version"),
            "mpi": _first_line("mpirun", "--version") if self.mpi else None,
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def target(python: str, frameworks: Sequence[str], mpi: bool | None, nccl: bool) -> Target:
    """Look at the environment of an interpreter, and at what is needed to compile for it.

    Args:
        python: the interpreter, a path or a name on the PATH.
        frameworks: some of FRAMEWORKS; none of them means those that are installed there.
        mpi: whether with MPI; None means where a compiler for it is found.

    Raises:
        BuildError: something is missing; the message says what, and what to do.
    """
    try:
        asked = subprocess.run([python, "-c", ASK], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise BuildError(f"--python {python} does not run: {getattr(error, 'stderr', None) or error}") from None
    facts = json.loads(asked.stdout)
    installed = {name: facts[name] for name in FRAMEWORKS if facts[name] is not None}
    for name in frameworks:
        if name not in installed:
            raise BuildError(
                f"Horovod is to be compiled for {FRAMEWORKS[name]}, which {facts['executable']} does not have: "
                f"install it first, then run this again"
            )
    chosen = {name: version for name, version in installed.items() if name in (frameworks or installed)}
    if not chosen:
        raise BuildError(
            f"{facts['executable']} has neither torch nor TensorFlow: install the one that you use, then run this again"
        )
    if nccl and list(chosen) != ["torch"]:
        raise BuildError(f"--nccl goes with --framework torch alone, not with {', '.join(chosen)}")
    needed = {"g++": "g++", "make": "make"} | ({"mpicxx": "libopenmpi-dev", "mpirun": "openmpi-bin"} if mpi else {})
    missing = [package for program, package in needed.items() if shutil.which(program) is None]
    if not Path(facts["header"]).exists():
        missing.append("python{}.{}-dev".format(*facts["python"].split(".")))
    if missing:
        raise BuildError(
            f"compiling Horovod needs what these Debian packages hold: install {' '.join(missing)}, then run this again"
        )
    if facts["pip"] is None:
        raise BuildError(f"{facts['executable']} has no pip: run {facts['executable']} -m ensurepip, then this again")
    if mpi is None:
        mpi = all(shutil.which(program) for program in ("mpicxx", "mpirun"))
    return Target(facts, chosen, mpi, nccl)


def wheel(target: Target, cache: Path, *, force: bool = False) -> Path:
    """A wheel of Horovod for the target, compiled where the cache has none.

    Args:
        cache: the folder that is kept between runs.
        force: compile again what is in the cache.

    Raises:
        BuildError: it cannot be made; the message says what to do.
    """
    folder = cache / "horovod"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        parts = [_part(target, framework, folder, force) for framework in target.frameworks]
        return parts[0] if len(parts) == 1 else _merged(target, parts, folder)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise BuildError(f"the disk of {folder} is full: free {GIB_ON_DISK} GiB, then run this again") from None
        raise BuildError(f"{folder} cannot be written to ({error}): set HOROVOD_DGC_CACHE to another folder") from None


def install(target: Target, path: Path, *, dependencies: bool) -> None:
    """Put the wheel into the target's environment, in the place of the Horovod that is there.

    Args:
        dependencies: also install what Horovod imports, where it is missing.
    """
    pip = [*target.pip, "install", "--quiet"]
    if dependencies:
        _run([*pip, "cloudpickle", "psutil", "pyyaml", "packaging", "cffi"], "what Horovod imports cannot be installed")
    _run([*pip, "--no-deps", "--force-reinstall", str(path)], f"{path} cannot be installed")


def _part(target: Target, framework: str, folder: Path, force: bool) -> Path:
    """The wheel with one framework's library."""
    kept = folder / target.key(framework)
    title = f"Horovod {VERSION} for {FRAMEWORKS[framework]} {target.frameworks[framework]}"
    with alone(kept, lambda: say(f"another process is compiling {title}; waiting for it")):
        found = None if force else _usable_wheel(kept)
        if found is not None:
            say(f"{title}: compiled before, in {kept}")
            return found
        free = shutil.disk_usage(folder).free
        if free < GIB_ON_DISK << 30:
            raise BuildError(
                f"the disk of {folder} has {free >> 20} MiB left, and compiling takes {GIB_ON_DISK} GiB: free some, or "
                "set HOROVOD_DGC_CACHE to a folder on another disk, then run this again"
            )
        for left_behind in kept.glob("build-*"):
            shutil.rmtree(left_behind)
        with tempfile.TemporaryDirectory(dir=kept, prefix="build-") as work:
            built = _compile(target, framework, folder, Path(work), kept / "log", title)
            os.replace(built, kept / built.name)
        return kept / built.name


def _usable_wheel(folder: Path) -> Path | None:
    """The cached wheel if there is one and it is whole: a half-written file must not be installed."""
    for path in folder.glob("horovod-*.whl"):
        try:
            with zipfile.ZipFile(path) as archive:
                if archive.testzip() is None:
                    return path
        except (zipfile.BadZipFile, OSError):
            pass
        say(f"the cached wheel {path} is damaged; making it again")
        path.unlink()
    return None


def _source(target: Target, folder: Path) -> Path:
    """The archive with the released source, fetched where the cache has none that is whole."""
    archive = folder / f"horovod-{VERSION}.tar.gz"
    with alone(folder / "source", lambda: say("another process is fetching Horovod's source; waiting for it")):
        if archive.exists():
            with contextlib.suppress(tarfile.TarError, EOFError, OSError), tarfile.open(archive) as content:
                if content.getmembers():
                    return archive
            say(f"{archive} is damaged; fetching it again")
            archive.unlink()
        with tempfile.TemporaryDirectory(dir=folder, prefix="fetch-") as work, step(f"fetching Horovod {VERSION}", 3):
            pip = [*target.pip, "download", "--quiet", "--no-deps"]
            _run(
                [*pip, "--no-build-isolation", "--no-binary", "horovod", f"horovod=={VERSION}", "--dest", work],
                f"Horovod's source cannot be fetched: check the network, or put {archive.name} into {folder}",
                _with_tools(target, folder),
            )
            os.replace(Path(work) / archive.name, archive)
    return archive


def _with_tools(target: Target, folder: Path) -> dict[str, str]:
    """Environment in which the target's interpreter imports TOOLS, which stay out of its own packages."""
    tools = folder / f"tools-{hashlib.sha256(repr((TOOLS, target.facts['abi'])).encode()).hexdigest()[:8]}"
    with alone(folder / tools.name.replace("tools", "lock"), lambda: say("waiting for another process's tools")):
        if not (tools / "complete").exists():
            shutil.rmtree(tools, ignore_errors=True)
            with step("fetching the tools that compile Horovod", 10):
                _run(
                    [*target.pip, "install", "--quiet", "--target", str(tools), "--no-warn-conflicts", *TOOLS],
                    "the tools that compile Horovod cannot be fetched: check the network and run this again",
                )
            (tools / "complete").touch()
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name not in IGNORED_VARIABLES and not name.startswith("HOROVOD_")
    }
    return {
        **inherited,
        "PYTHONPATH": str(tools),
        "PATH": os.pathsep.join([str(tools / "bin"), target.facts["bin"], os.environ["PATH"]]),
    }


def _compile(target: Target, framework: str, folder: Path, work: Path, log: Path, title: str) -> Path:
    with tarfile.open(_source(target, folder)) as archive:
        if hasattr(tarfile, "data_filter"):
            archive.extractall(work, filter="data")
        else:
            archive.extractall(work)
    source = work / f"horovod-{VERSION}"
    for name, old, times, new, _ in EDITS:
        path = source / name
        text = path.read_text()
        if text.count(old) != times:
            raise BuildError(f"Horovod's {name} has {text.count(old)} times {old.strip()!r}, not {times} as released")
        path.write_text(text.replace(old, new))
    environment = {
        **_with_tools(target, folder),
        **target.flags(framework),
        **(_cuda_paths(target, work) if target.nccl else {}),
        "MAKEFLAGS": f"-j{parallel_jobs(BYTES_PER_JOB)}",
        # Compiled objects are found again by another build although each has a folder of its own.
        "CCACHE_BASEDIR": str(work),
        "CCACHE_NOHASHDIR": "1",
    }
    with_what = "Gloo" + (" and MPI" if target.mpi else "") + (" and NCCL" if target.nccl else "")
    with step(f"compiling {title} with {with_what}", USUALLY[framework]) as progress, log.open("w") as output:
        progress.note(f"log: {log}")
        pip = [*target.pip, "wheel", "--no-deps", "--no-build-isolation"]
        process = subprocess.Popen(
            [*pip, "--wheel-dir", str(work / "out"), "--verbose", str(source)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        assert process.stdout is not None
        with _ended(process):
            for line in process.stdout:
                output.write(line)
                read(progress, line)
        if process.returncode != 0:
            output.flush()
            raise BuildError(_why(log))
    return next((work / "out").glob("horovod-*.whl"))


@contextlib.contextmanager
def _ended(process: subprocess.Popen[str]) -> Iterator[None]:
    """Whatever happens here, the compilers do not outlive it."""
    try:
        yield
        process.wait()
    finally:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 15)
            process.wait()


def _why(log: Path) -> str:
    """What a failed build's log says, and what to do."""
    lines = log.read_text(errors="replace").splitlines()
    if any("No space left on device" in line for line in lines):
        return f"the disk is full: free {GIB_ON_DISK} GiB, then run this again"
    if any(re.search(r"Killed signal|out of memory", line) for line in lines):
        return f"the compiler ran out of memory: close other programs and run this again; the log is {log}"
    telling = [line.strip() for line in lines if re.search(r"\berror\b|CMake Error|not found", line, re.IGNORECASE)]
    shown = "\n  ".join((telling or lines)[:8])
    return f"the build failed; the whole log is {log}. It says:\n  {shown}"


def _cuda_paths(target: Target, work: Path) -> dict[str, str]:
    """Where CMake finds the toolkit that pip has installed."""
    packages = Path(target.facts["purelib"]) / "nvidia"
    # In NVIDIA's wheels a library has only the name that programs load, not the one that a linker looks for.
    libraries = work / "lib"
    libraries.mkdir()
    (libraries / "libcudart.so").symlink_to(packages / "cu13/lib/libcudart.so.13")
    (libraries / "libnccl.so").symlink_to(packages / "nccl/lib/libnccl.so.2")
    return {
        "CMAKE_LIBRARY_PATH": str(libraries),
        "CUDA_HOME": str(packages / "cu13"),
        "HOROVOD_CUDA_HOME": str(packages / "cu13"),
        "HOROVOD_NCCL_INCLUDE": str(packages / "nccl/include"),
        # nvcc 13.0 looks in lib64, which is not there.
        "LIBRARY_PATH": str(packages / "cu13/lib"),
    }


def _merged(target: Target, parts: Sequence[Path], folder: Path) -> Path:
    """One wheel with the libraries of several."""
    key = hashlib.sha256(" ".join(part.parent.name for part in parts).encode()).hexdigest()[:16]
    kept = folder / key
    environment = _with_tools(target, folder)
    with alone(kept, lambda: say("waiting for another process that puts the same wheel together")):
        found = _usable_wheel(kept)
        if found is not None and all(found.stat().st_mtime >= part.stat().st_mtime for part in parts):
            return found
        with tempfile.TemporaryDirectory(dir=kept, prefix="build-") as work:
            tool = [target.python, "-m", "wheel"]
            unpacked = []
            for number, part in enumerate(parts):
                _run([*tool, "unpack", str(part), "--dest", f"{work}/{number}"], f"{part} is damaged", environment)
                unpacked.append(Path(work, str(number), f"horovod-{VERSION}"))
            built_for: dict[str, str] = {}
            for content in unpacked:
                built_for |= json.loads((content / "horovod" / "metadata.json").read_text())
            for content in unpacked[1:]:
                for library in content.glob("horovod/*/*.so"):
                    shutil.copy(library, unpacked[0] / library.relative_to(content))
            (unpacked[0] / "horovod" / "metadata.json").write_text(json.dumps(built_for, indent=0))
            Path(work, "out").mkdir()
            pack = [*tool, "pack", str(unpacked[0]), "--dest-dir", f"{work}/out"]
            _run(pack, "the libraries of Horovod cannot be put into one wheel", environment)
            built = next(Path(work, "out").glob("horovod-*.whl"))
            os.replace(built, kept / built.name)
        return kept / built.name


def _first_line(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]


def _run(command: Sequence[str], failure: str, environment: Mapping[str, str] | None = None) -> None:
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, stdin=subprocess.DEVNULL
    )
    if result.returncode != 0:
        said = (result.stderr.strip() or result.stdout.strip()).splitlines()
        raise BuildError(f"{failure}\n  {said[-1] if said else 'no message'}")
