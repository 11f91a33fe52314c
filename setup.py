import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension, build_ext
from setuptools import Extension, setup

# Contraction to fused multiply-adds would let two passes over the same arrays compute different bits.
FLAGS = ["-O3", "-ffp-contract=off", "-fvisibility=hidden", "-pthread"]
CORE = sorted(path.as_posix() for path in Path("csrc").glob("*.cc"))
HEADERS = sorted(path.as_posix() for path in Path("csrc").rglob("*.h"))

ParallelCompile("NPY_NUM_BUILD_JOBS", default=2).install()


# Compute capabilities that machine code is compiled for, as far as the compiler knows them; the last also as PTX, for
# whatever comes later. nvcc 13 begins with 7.5.
CAPABILITIES = (70, 75, 80, 86, 89, 90)


def wanted(name: str, found: bool, otherwise: str) -> bool:
    """HOROVOD_DGC_WITH_<name>=1 demands a part of the package, 0 forbids it; else it is built if all it needs is found.

    Args:
        otherwise: what to do where it is demanded and not found.
    """
    variable = f"HOROVOD_DGC_WITH_{name}"
    value = os.environ.get(variable, "")
    if value not in ("", "0", "1"):
        raise SystemExit(f"{variable} must be 0, 1 or unset, got {value!r}")
    if value == "1" and not found:
        raise SystemExit(f"{variable}=1, but {otherwise}")
    return found and value != "0"


def find_nvcc() -> "str | None":
    """The CUDA compiler: CUDA_HOME's, the building environment's (pip's nvidia-cuda-nvcc), or that of the PATH."""
    packages = Path(sysconfig.get_path("purelib")) / "nvidia"
    homes = [os.environ.get("CUDA_HOME", ""), *sorted(map(str, packages.glob("cu[0-9]*")), reverse=True)]
    inside = [str(Path(home, "bin", "nvcc")) for home in homes if home]
    return next((nvcc for nvcc in [*inside, "nvcc", "/usr/local/cuda/bin/nvcc"] if shutil.which(nvcc)), None)


def nvcc_says(nvcc: str, *options: str) -> str:
    result = subprocess.run([nvcc, *options], capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(
            f"{nvcc} {' '.join(options)} failed; HOROVOD_DGC_WITH_CUDA=0 leaves the CUDA kernels out:\n"
            f"{result.stdout}{result.stderr}"
        )
    return result.stdout + result.stderr


def toolkit_of(nvcc: str) -> Path:
    """The folder with the compiler's headers and libraries, which its name on the PATH need not show."""
    found = re.search(r"^#\$ TOP=(.*)$", nvcc_says(nvcc, "--dryrun", "-E", "-x", "cu", os.devnull), re.MULTILINE)
    if found is None:
        raise SystemExit(f"{nvcc} does not tell where its toolkit is; set CUDA_HOME")
    return Path(found.group(1).strip())


def library_folder(toolkit: Path) -> Path:
    for name in ("lib64", "lib", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib"):
        if (toolkit / name / "libcudart_static.a").exists():
            return toolkit / name
    raise SystemExit(f"the CUDA toolkit {toolkit} has no libcudart_static.a")


def capabilities(nvcc: str) -> "list[int]":
    """Those of HOROVOD_DGC_CUDA_CAPABILITIES, as in "80,90", or of CAPABILITIES."""
    chosen = os.environ.get("HOROVOD_DGC_CUDA_CAPABILITIES")
    known = {int(found) for found in re.findall(r"compute_(\d+)$", nvcc_says(nvcc, "--list-gpu-arch"), re.MULTILINE)}
    if chosen is None:
        return [capability for capability in CAPABILITIES if capability in known]
    if not re.fullmatch(r"\d+(,\d+)*", chosen) or not known.issuperset(map(int, chosen.split(","))):
        allowed = ", ".join(map(str, sorted(known)))
        raise SystemExit(f"HOROVOD_DGC_CUDA_CAPABILITIES must list some of {allowed}, with commas, got {chosen!r}")
    return sorted(map(int, chosen.split(",")))


def compile_kernels(nvcc: str, folder: Path) -> "list[str]":
    """Object files of csrc/cuda/*.cu, compiled side by side."""
    targets = capabilities(nvcc)
    generate = [f"-gencode=arch=compute_{each},code=sm_{each}" for each in targets]
    generate.append(f"-gencode=arch=compute_{targets[-1]},code=compute_{targets[-1]}")
    # No fused multiply-adds, for the same reason as on the host.
    flags = ["-std=c++17", "-O3", "-fmad=false", "-Icsrc", f"-Xcompiler=-fPIC,{','.join(FLAGS)}", *generate]
    folder.mkdir(parents=True, exist_ok=True)
    objects = {path: folder / f"{path.stem}.o" for path in sorted(Path("csrc/cuda").glob("*.cu"))}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda pair: nvcc_says(nvcc, *flags, "-c", str(pair[0]), "-o", str(pair[1])), objects.items()))
    return [str(path) for path in objects.values()]


def tensorflow_flags() -> tuple[list[str], list[str]]:
    """Compiler and linker flags of the installed TensorFlow, from a process of its own: importing it takes seconds."""
    ask = (
        "import json; from tensorflow import sysconfig as s; "
        "print(json.dumps([s.get_compile_flags(), s.get_link_flags()]))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", ask],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    compile_flags, link_flags = json.loads(answer.stdout.splitlines()[-1])
    # As system headers: their warnings are nobody's business here.
    return [flag.replace("-I", "-isystem", 1) if flag.startswith("-I") else flag for flag in compile_flags], link_flags


class BuildExtensions(build_ext):
    """Asks TensorFlow for its flags, and runs nvcc, only when something is really compiled."""

    def build_extension(self, ext: Extension) -> None:
        if ext.name == OPERATIONS:
            compile_flags, link_flags = tensorflow_flags()
            ext.extra_compile_args += compile_flags
            ext.extra_link_args += link_flags
        elif ext.name == KERNELS:
            ext.extra_objects += compile_kernels(NVCC, Path(self.build_temp, "cuda"))
            ext.library_dirs.append(str(library_folder(toolkit_of(NVCC))))
        super().build_extension(ext)


OPERATIONS = "horovod_dgc.tensorflow._operations"
KERNELS = "horovod_dgc._cuda"
NVCC = find_nvcc()

extensions = [
    Pybind11Extension(
        "horovod_dgc._core",
        [*CORE, *sorted(path.as_posix() for path in Path("csrc/python").glob("*.cc"))],
        depends=HEADERS,
        include_dirs=["csrc"],
        cxx_std=17,
        extra_compile_args=FLAGS,
        extra_link_args=["-pthread"],
    )
]
if wanted(
    "TENSORFLOW",
    importlib.util.find_spec("tensorflow") is not None,
    "there is no TensorFlow in the building environment: install it and use pip install --no-build-isolation",
):
    extensions.append(
        Extension(
            OPERATIONS,
            [*CORE, *sorted(path.as_posix() for path in Path("csrc/tensorflow").glob("*.cc"))],
            depends=HEADERS,
            include_dirs=["csrc", "csrc/tensorflow"],
            language="c++",
            extra_compile_args=[*FLAGS, "-std=c++17"],
            extra_link_args=["-pthread"],
        )
    )
if wanted("CUDA", NVCC is not None, "there is no nvcc: put it on the PATH, or set CUDA_HOME to its toolkit"):
    extensions.append(
        Pybind11Extension(
            KERNELS,
            [*CORE, *sorted(path.as_posix() for path in Path("csrc/cuda").glob("*.cc"))],
            depends=[*HEADERS, *sorted(path.as_posix() for path in Path("csrc/cuda").glob("*.cu"))],
            include_dirs=["csrc"],
            cxx_std=17,
            extra_compile_args=FLAGS,
            # The driver's own library is loaded when a kernel runs: the module can be imported without a GPU.
            libraries=["cudart_static", "dl", "rt"],
            extra_link_args=["-pthread"],
        )
    )

setup(ext_modules=extensions, cmdclass={"build_ext": BuildExtensions})
