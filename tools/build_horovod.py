"""Build the Horovod wheel for the running interpreter once and keep it in a cache outside the tree.

Prints the wheel's path on standard output; everything else goes to standard error.
"""

import argparse
import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from pathlib import Path

VERSION = "0.28.1"

# (file, text that must occur exactly once, replacement, reason)
EDITS = [
    (
        "CMakeLists.txt",
        "set(CMAKE_CXX_STANDARD 14)\n",
        "set(CMAKE_CXX_STANDARD 17)\n",
        "torch >= 2.1 needs C++17, and Gloo must be compiled with the same standard to link",
    ),
    (
        "horovod/torch/CMakeLists.txt",
        "    set(CMAKE_CXX_STANDARD 14)\n",
        "    set(CMAKE_CXX_STANDARD 17)\n",
        "torch >= 2.1 needs C++17",
    ),
    (
        "horovod/tensorflow/CMakeLists.txt",
        'list(APPEND TF_SOURCES "${PROJECT_SOURCE_DIR}/horovod/tensorflow/xla_mpi_ops.cc")\n',
        "",
        "its headers are not in the wheel of TensorFlow >= 2.16, and its content is for GPUs only",
    ),
]

BUILD_FLAGS = {
    "HOROVOD_WITH_PYTORCH": "1",
    "HOROVOD_WITH_TENSORFLOW": "1",
    "HOROVOD_WITHOUT_MXNET": "1",
    "HOROVOD_WITH_MPI": "1",
    "HOROVOD_WITH_GLOO": "1",
}

NCCL_BUILD_FLAGS = {
    **{name: value for name, value in BUILD_FLAGS.items() if name != "HOROVOD_WITH_TENSORFLOW"},
    "HOROVOD_WITHOUT_TENSORFLOW": "1",
    "HOROVOD_GPU_OPERATIONS": "NCCL",
    "HOROVOD_NCCL_LINK": "SHARED",
    "HOROVOD_BUILD_CUDA_CC_LIST": "75,80,86,90,100,120",  # those of PyTorch's own build; and PTX of the last one
}

# The wheel is shared through the cache, so nothing may enter it that is not in the cache key.
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


def say(message: str) -> None:
    print(f"horovod: {message}", file=sys.stderr, flush=True)


def first_line(*command: str) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return result.stdout.splitlines()[0]


def cache_key(requirements: Path, flags: dict[str, str]) -> str:
    """Digest of everything that the compiled wheel depends on."""
    pinned = [
        line.split("==")[0] for line in requirements.read_text().splitlines() if line and not line.startswith("#")
    ]
    facts = {
        "horovod": VERSION,
        "edits": EDITS,
        "flags": flags,
        "packages": {name: importlib.metadata.version(name) for name in pinned},
        "python": sysconfig.get_config_var("SOABI"),
        "machine": platform.machine(),
        "libc": platform.libc_ver(),
        "compiler": first_line("g++", "--version"),
        "mpi": first_line("mpirun", "--version"),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def usable_wheel(folder: Path) -> Path | None:
    """The cached wheel if there is one and it is whole: a half-written file must not be installed."""
    for wheel in folder.glob("horovod-*.whl"):
        try:
            with zipfile.ZipFile(wheel) as archive:
                if archive.testzip() is None:
                    return wheel
        except (zipfile.BadZipFile, OSError):
            pass
        say(f"the cached wheel {wheel} is damaged; building it again")
        wheel.unlink()
    return None


def apply_edits(source: Path) -> None:
    for name, old, new, _ in EDITS:
        path = source / name
        text = path.read_text()
        if text.count(old) != 1:
            raise SystemExit(f"horovod: {name}: expected exactly one {old.strip()!r}")
        path.write_text(text.replace(old, new))


def parallel_jobs() -> int:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1, min(len(os.sched_getaffinity(0)), memory // BYTES_PER_JOB))


def cuda_paths(work: Path) -> dict[str, str]:
    """Where CMake finds the toolkit that pip has installed."""
    packages = Path(sysconfig.get_path("purelib")) / "nvidia"
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


def build(work: Path, log: Path, flags: dict[str, str]) -> Path:
    pip = [sys.executable, "-m", "pip"]
    say(f"fetching the source of {VERSION}")
    fetch = [*pip, "download", "-qq", "--no-deps", "--no-build-isolation"]
    subprocess.run(
        [*fetch, "--no-binary", "horovod", f"horovod=={VERSION}", "--dest", str(work)],
        check=True,
        stdout=sys.stderr,
    )
    subprocess.run(["tar", "-xzf", f"horovod-{VERSION}.tar.gz"], cwd=work, check=True)
    source = work / f"horovod-{VERSION}"
    apply_edits(source)
    jobs = parallel_jobs()
    nccl = "HOROVOD_GPU_OPERATIONS" in flags
    frameworks = "torch with NCCL" if nccl else "torch and TensorFlow"
    say(f"compiling {VERSION} for {frameworks}, {jobs} at a time (six minutes on two cores)")
    say(f"log: {log}")
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name not in IGNORED_VARIABLES and not name.startswith("HOROVOD_")
    }
    environment = {
        **inherited,
        **flags,
        **(cuda_paths(work) if nccl else {}),
        "MAKEFLAGS": f"-j{jobs}",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    with log.open("w") as output:
        result = subprocess.run(
            [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(work / "out"), "-v", str(source)],
            check=False,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    if result.returncode != 0:
        say("\n".join(log.read_text(errors="replace").splitlines()[-40:]))
        raise SystemExit(f"horovod: the build failed; the whole log is in {log}")
    return next((work / "out").glob("horovod-*.whl"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, required=True, help="folder for built wheels, outside the tree")
    parser.add_argument("--requirements", type=Path, required=True, help="the pins that the wheel depends on")
    parser.add_argument("--nccl", action="store_true", help="for GPUs, with PyTorch alone: pins of requirements/cuda")
    options = parser.parse_args()

    flags = NCCL_BUILD_FLAGS if options.nccl else BUILD_FLAGS
    folder = options.cache / "horovod" / cache_key(options.requirements, flags)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another process is building the wheel in {folder}; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        wheel = usable_wheel(folder)
        if wheel is None:
            for left_behind in folder.glob("build-*"):
                shutil.rmtree(left_behind)
            with tempfile.TemporaryDirectory(dir=folder, prefix="build-") as work:
                built = build(Path(work), folder / "log", flags)
                wheel = folder / built.name
                os.replace(built, wheel)
    print(wheel)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit("horovod: interrupted") from None
