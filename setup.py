import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension, build_ext
from setuptools import Extension, setup

# Contraction to fused multiply-adds would let two passes over the same arrays compute different bits.
FLAGS = ["-O3", "-ffp-contract=off", "-fvisibility=hidden", "-pthread"]
CORE = sorted(path.as_posix() for path in Path("csrc").glob("*.cc"))
HEADERS = sorted(path.as_posix() for path in Path("csrc").rglob("*.h"))

ParallelCompile("NPY_NUM_BUILD_JOBS", default=2).install()


def tensorflow_wanted() -> bool:
    """HOROVOD_DGC_WITH_TENSORFLOW=1 demands the TensorFlow operations, 0 forbids them; else as TensorFlow is there."""
    wanted = os.environ.get("HOROVOD_DGC_WITH_TENSORFLOW", "")
    if wanted not in ("", "0", "1"):
        raise SystemExit(f"HOROVOD_DGC_WITH_TENSORFLOW must be 0, 1 or unset, got {wanted!r}")
    found = importlib.util.find_spec("tensorflow") is not None
    if wanted == "1" and not found:
        raise SystemExit(
            "HOROVOD_DGC_WITH_TENSORFLOW=1, but there is no TensorFlow in the building environment: install it and "
            "use pip install --no-build-isolation"
        )
    return found and wanted != "0"


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
    """Asks TensorFlow for its flags only when something is really compiled."""

    def build_extension(self, ext: Extension) -> None:
        if ext.name == OPERATIONS:
            compile_flags, link_flags = tensorflow_flags()
            ext.extra_compile_args += compile_flags
            ext.extra_link_args += link_flags
        super().build_extension(ext)


OPERATIONS = "horovod_dgc.tensorflow._operations"

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
if tensorflow_wanted():
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

setup(ext_modules=extensions, cmdclass={"build_ext": BuildExtensions})
