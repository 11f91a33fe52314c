"""Compiles the core and what is linked with it: ``_core``, TensorFlow's operations and the CUDA kernels.

``setup.py`` loads this file by its path, before there is a package: it imports the standard library alone.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

# Contraction to fused multiply-adds would let two passes over the same arrays compute different bits.
FLAGS = ["-std=c++17", "-O3", "-DNDEBUG", "-ffp-contract=off", "-fvisibility=hidden", "-fPIC", "-pthread"]
# Folders of csrc/ whose units are not the core's.
OTHER_PARTS = {"benchmarks", "cuda", "fuzz", "python", "tensorflow", "tests"}
# Compute capabilities that machine code is compiled for, as far as the compiler knows them; the last also as PTX, for
# whatever comes later. nvcc 13 begins with 7.5.
CAPABILITIES = (70, 75, 80, 86, 89, 90)
# The compiler's peak on units that include TensorFlow's headers.
BYTES_PER_JOB = 3 << 29


class BuildError(Exception):
    """Something is missing or fails; the message says what to do about it."""


Advance = Callable[[int, int], None]


@dataclass(frozen=True)
class TensorFlow:
    """What an installed TensorFlow says of itself.

    Attributes:
        abi: 1 where its std::string is that of C++11, else 0.
    """

    version: str
    abi: int
    compile_flags: list[str]
    link_flags: list[str]

    @property
    def file_name(self) -> str:
        return operations_name(self.version, self.abi)


def operations_name(version: str, abi: int) -> str:
    """Name of the file with the operations for this TensorFlow: they fit no other."""
    return f"_operations.tf{version}-abi{abi}.so"


def kernels_name() -> str:
    """Name of the file with the CUDA kernels, a module of this Python."""
    return f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"


def compiled_sources(sources: Path) -> list[Path]:
    """The files of csrc/ that extensions are compiled from."""
    return [
        path
        for path in _files(sources, ".cc", ".cu", ".h")
        if path.relative_to(sources).parts[0] not in {"benchmarks", "fuzz", "tests"}
    ]


def sources_digest(sources: Path) -> str:
    """Digest of the files that extensions are compiled from, 12 hexadecimal digits."""
    digest = hashlib.sha256()
    for path in compiled_sources(sources):
        digest.update(f"{path.relative_to(sources)} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()[:12]


class Compiler:
    """Compiles what has changed since the last time, several units at a time.

    Args:
        sources: the folder csrc/.
        objects: where object files are kept for the next time.
        advance: called with the number of finished units and of all, as they finish.
        jobs: units at a time; by default as many as there are processors and memory for.
    """

    def __init__(
        self, sources: Path, objects: Path, advance: Advance = lambda done, total: None, jobs: int | None = None
    ) -> None:
        self.sources = sources.resolve()
        self.objects = objects.resolve()
        self.advance = advance
        self.jobs = jobs or parallel_jobs(BYTES_PER_JOB)

    def core(self, target: Path) -> None:
        """``horovod_dgc._core``, for this Python."""
        flags = [*_python_flags(), f"-I{self.sources.name}"]
        self._extension(target, [*self._core_units([]), *self._units("python", ".cc", flags)], [])

    def operations(self, target: Path, tensorflow: TensorFlow) -> None:
        """The operations of csrc/tensorflow, for this TensorFlow."""
        # The core's functions take and return std::string: all of it must agree on what that is.
        abi = [f"-D_GLIBCXX_USE_CXX11_ABI={tensorflow.abi}"] if tensorflow.abi != _default_abi() else []
        # As system headers: their warnings are nobody's business here.
        flags = [re.sub("^-I", "-isystem", flag) for flag in tensorflow.compile_flags]
        folder = f"{self.sources.name}/tensorflow"
        # Headers found as system headers are no dependencies: the version stands for them.
        version = f'-DHOROVOD_DGC_TENSORFLOW="{tensorflow.version}"'
        flags = [f"-I{self.sources.name}", f"-I{folder}", *flags, version]
        units = [*self._core_units(abi), *self._units("tensorflow", ".cc", flags)]
        self._extension(target, units, tensorflow.link_flags)

    def kernels(self, target: Path, nvcc: str) -> None:
        """``horovod_dgc._cuda``, for this Python, with kernels for several kinds of GPU."""
        targets = capabilities(nvcc)
        generate = [f"-gencode=arch=compute_{each},code=sm_{each}" for each in targets]
        generate.append(f"-gencode=arch=compute_{targets[-1]},code=compute_{targets[-1]}")
        host = ",".join(flag for flag in FLAGS if not flag.startswith(("-std", "-O", "-D")))
        # No fused multiply-adds, for the same reason as on the host.
        device = ["-std=c++17", "-O3", "-DNDEBUG", "-fmad=false", f"-Xcompiler={host}", *generate]
        include = f"-I{self.sources.name}"
        units = [
            *self._core_units([]),
            *self._units("cuda", ".cc", [*_python_flags(), include]),
            *self._units("cuda", ".cu", [*device, include], [*_launcher(), nvcc]),
        ]
        # The driver's own library is loaded when a kernel runs: the module can be imported without a GPU.
        libraries = [f"-L{library_folder(toolkit_of(nvcc))}", "-lcudart_static", "-ldl", "-lrt"]
        self._extension(target, units, libraries)

    def _core_units(self, flags: Sequence[str]) -> list[_Unit]:
        paths = [p for p in _files(self.sources, ".cc") if p.relative_to(self.sources).parts[0] not in OTHER_PARTS]
        return self._compiled(paths, [f"-I{self.sources.name}", *flags], None)

    def _units(
        self, folder: str, suffix: str, flags: Sequence[str], command: Sequence[str] | None = None
    ) -> list[_Unit]:
        return self._compiled(_files(self.sources / folder, suffix), flags, command)

    def _compiled(self, paths: Sequence[Path], flags: Sequence[str], command: Sequence[str] | None) -> list[_Unit]:
        if command is None:
            command = [*compiler(), *FLAGS, *_from_environment("CPPFLAGS"), *_from_environment("CXXFLAGS")]
        command = [*command, *flags]
        # Objects of other flags, or of another compiler, lie in a folder of their own: there is nothing to compare.
        version = _says(next(word for word in command if not word.endswith("ccache")), "--version")
        key = hashlib.sha256(json.dumps([command, version]).encode()).hexdigest()[:16]
        units = []
        for path in paths:
            name = path.relative_to(self.sources)
            units.append(_Unit(self.sources.parent, path, self.objects / key / name.with_suffix(".o"), tuple(command)))
        return units

    def _extension(self, target: Path, units: Sequence[_Unit], libraries: Sequence[str]) -> None:
        with _space(self.objects):
            self.objects.mkdir(parents=True, exist_ok=True)
        # The core's units come first and are the quickest: what takes longest had better not come last.
        stale = [unit for unit in reversed(units) if unit.is_stale()]
        total = len(stale) + 1
        self.advance(0, total)
        with ThreadPoolExecutor(self.jobs) as pool:
            running = [pool.submit(unit.compile) for unit in stale]
            try:
                for done, future in enumerate(as_completed(running), 1):
                    future.result()
                    self.advance(done, total)
            except BaseException:
                for future in running:
                    future.cancel()
                raise
        _link([unit.object for unit in units], target.resolve(), libraries)
        self.advance(total, total)


@dataclass(frozen=True)
class _Unit:
    """A file of csrc/ and its object file; ``root`` is the folder that the compiler runs in."""

    root: Path
    path: Path
    object: Path
    command: tuple[str, ...]

    @property
    def dependencies(self) -> Path:
        return self.object.with_suffix(".d")

    def is_stale(self) -> bool:
        try:
            made = self.object.stat().st_mtime_ns
            text = self.dependencies.read_text().replace("\\\n", " ").partition(": ")[2]
            names = text.replace("\\ ", "\0").split()
            return any((self.root / name.replace("\0", " ")).stat().st_mtime_ns > made for name in names)
        except FileNotFoundError:
            return True

    def compile(self) -> None:
        unfinished = self.object.with_suffix(".unfinished.o")
        with _space(self.object.parent):
            self.object.parent.mkdir(parents=True, exist_ok=True)
        # Relative names: a compiler cache then knows the unit in every copy of the tree.
        source = str(self.path.relative_to(self.root))
        depend = ["-MMD", "-MT", self.object.name, "-MF", str(self.dependencies)]
        _run([*self.command, *depend, "-c", source, "-o", str(unfinished)], self.root, source)
        os.replace(unfinished, self.object)


def _link(objects: Sequence[Path], target: Path, libraries: Sequence[str]) -> None:
    unfinished = target.with_suffix(f".{os.getpid()}.unfinished")
    with _space(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
    command = [*compiler(), "-shared", "-pthread", *map(str, objects), "-o", str(unfinished), *libraries]
    try:
        _run([*command, *_from_environment("LDFLAGS")], target.parent, target.name)
        os.replace(unfinished, target)
    finally:
        unfinished.unlink(missing_ok=True)


@contextlib.contextmanager
def alone(folder: Path, wait: Callable[[], None]) -> Iterator[None]:
    """No other process is in here with the same folder at the same time; ``wait`` is called if one is and we wait."""
    with _space(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("w")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            wait()
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def compiler() -> list[str]:
    """The C++ compiler: CXX, or g++ or c++ of the PATH, by way of ccache where that is installed."""
    chosen = _from_environment("CXX")
    if chosen and shutil.which(chosen[0]) is None:
        raise BuildError(f"CXX names {chosen[0]!r}, which is not on the PATH: correct it, or unset it to use g++")
    found = chosen or [name for name in ("g++", "c++") if shutil.which(name)][:1]
    if not found:
        raise BuildError(
            "there is no C++ compiler on the PATH: install g++ (Debian, Ubuntu: apt-get install g++; Fedora, RHEL: "
            "dnf install gcc-c++), or set CXX to another compiler for C++17"
        )
    return found if Path(found[0]).name == "ccache" else [*_launcher(), *found]


def find_tensorflow() -> TensorFlow:
    """Ask the installed TensorFlow, in a process of its own: importing it takes seconds and much memory."""
    if not has_tensorflow():
        raise BuildError(f"TensorFlow is not installed for {sys.executable}: install it there first")
    ask = (
        "import json, tensorflow as tf; s = tf.sysconfig; "
        "print(json.dumps([tf.__version__, s.CXX11_ABI_FLAG, s.get_compile_flags(), s.get_link_flags()]))"
    )
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    answer = subprocess.run(
        [sys.executable, "-c", ask], capture_output=True, text=True, check=False, env=environment, cwd="/"
    )
    if answer.returncode:
        raise BuildError(f"TensorFlow cannot be imported by {sys.executable}: {_last_line(answer.stderr)}")
    version, abi, compile_flags, link_flags = json.loads(answer.stdout.splitlines()[-1])
    return TensorFlow(version, int(abi), compile_flags, link_flags)


def has_tensorflow() -> bool:
    return importlib.util.find_spec("tensorflow") is not None


def find_nvcc() -> str | None:
    """The CUDA compiler: CUDA_HOME's, this environment's (pip's nvidia-cuda-nvcc), or that of the PATH."""
    packages = Path(sysconfig.get_path("purelib")) / "nvidia"
    homes = [os.environ.get("CUDA_HOME", ""), *sorted(map(str, packages.glob("cu[0-9]*")), reverse=True)]
    inside = [str(Path(home, "bin", "nvcc")) for home in homes if home]
    return next((nvcc for nvcc in [*inside, "nvcc", "/usr/local/cuda/bin/nvcc"] if shutil.which(nvcc)), None)


def toolkit_of(nvcc: str) -> Path:
    """The folder with the compiler's headers and libraries, which its name on the PATH need not show."""
    found = re.search(r"^#\$ TOP=(.*)$", _says(nvcc, "--dryrun", "-E", "-x", "cu", os.devnull), re.MULTILINE)
    if found is None:
        raise BuildError(f"{nvcc} does not tell where its toolkit is; set CUDA_HOME")
    return Path(found.group(1).strip())


def library_folder(toolkit: Path) -> Path:
    for name in ("lib64", "lib", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib"):
        if (toolkit / name / "libcudart_static.a").exists():
            return toolkit / name
    raise BuildError(f"the CUDA toolkit {toolkit} has no libcudart_static.a")


def nvcc_version(nvcc: str) -> str:
    found = re.search(r"release ([\d.]+)", _says(nvcc, "--version"))
    return found.group(1) if found else "of unknown version"


def capabilities(nvcc: str) -> list[int]:
    """Those of HOROVOD_DGC_CUDA_CAPABILITIES, as in "80,90", or of CAPABILITIES."""
    chosen = os.environ.get("HOROVOD_DGC_CUDA_CAPABILITIES")
    known = {int(found) for found in re.findall(r"compute_(\d+)$", _says(nvcc, "--list-gpu-arch"), re.MULTILINE)}
    if chosen is None:
        return [capability for capability in CAPABILITIES if capability in known]
    if not re.fullmatch(r"\d+(,\d+)*", chosen) or not known.issuperset(map(int, chosen.split(","))):
        allowed = ", ".join(map(str, sorted(known)))
        raise BuildError(f"HOROVOD_DGC_CUDA_CAPABILITIES must list some of {allowed}, with commas, got {chosen!r}")
    return sorted(map(int, chosen.split(",")))


def _python_flags() -> list[str]:
    include = Path(sysconfig.get_path("include"))
    if not (include / "Python.h").exists():
        raise BuildError(
            f"{include / 'Python.h'} is missing: install Python's headers (Debian, Ubuntu: apt-get install "
            f"python{sys.version_info[0]}.{sys.version_info[1]}-dev)"
        )
    try:
        import pybind11
    except ImportError:
        raise BuildError(
            f"pybind11 is not installed for {sys.executable}: run {shlex.quote(sys.executable)} -m pip install "
            "'pybind11>=3.0,<4'"
        ) from None
    return [f"-I{include}", f"-I{pybind11.get_include()}"]


def _files(folder: Path, *suffixes: str) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix in suffixes)


def _launcher() -> list[str]:
    return ["ccache"] if shutil.which("ccache") else []


def _from_environment(name: str) -> list[str]:
    return shlex.split(os.environ.get(name, ""))


def parallel_jobs(bytes_per_job: int) -> int:
    """How many compilers there are processors and memory for at a time."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1, min(len(os.sched_getaffinity(0)), memory // bytes_per_job))


def _default_abi() -> int:
    """What the compiler takes for _GLIBCXX_USE_CXX11_ABI by itself; a few distributions say 0."""
    text = subprocess.run(
        [*compiler(), "-E", "-dM", "-x", "c++", "-include", "string", os.devnull],
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    return 0 if "#define _GLIBCXX_USE_CXX11_ABI 0" in text else 1


def _says(*command: str) -> str:
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise BuildError(f"{command[0]} does not run: {error.strerror}") from None
    if result.returncode:
        raise BuildError(f"{' '.join(command)} failed: {_last_line(result.stderr + result.stdout)}")
    return result.stdout + result.stderr


def _run(command: Sequence[str], folder: Path, what: str) -> None:
    result = subprocess.run(
        command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    if result.returncode == 0:
        return
    text = result.stdout.decode(errors="replace")
    if "No space left on device" in text:
        raise _full(folder)
    if result.returncode < 0 or "Killed" in text:
        raise BuildError(f"the compiler was killed at {what}, most often for want of memory: try it with --jobs 1")
    lines = "\n".join(text.splitlines()[-30:])
    raise BuildError(f"{what} does not compile:\n{shlex.join(command)}\n{lines}")


@contextlib.contextmanager
def _space(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _full(folder) from None
        raise BuildError(f"cannot write to {folder}: {error.strerror}") from None


def _full(folder: Path) -> BuildError:
    temporary = os.environ.get("TMPDIR", "/tmp")
    return BuildError(f"the disk with {folder} or {temporary} is full: free some 200 MB, then run this again")


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "it says nothing"
