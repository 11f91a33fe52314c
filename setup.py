"""Compiles the extensions by horovod_dgc/building/extensions.py; all else is in pyproject.toml."""

import functools
import importlib.util
import os
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

# By its path: importing the package would want the very extensions that are made here.
spec = importlib.util.spec_from_file_location("extensions", "horovod_dgc/building/extensions.py")
extensions = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = extensions
spec.loader.exec_module(extensions)

SOURCES = Path("csrc")
CORE = "horovod_dgc._core"
OPERATIONS = "horovod_dgc.tensorflow._operations"
KERNELS = "horovod_dgc._cuda"


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


class BuildExtensions(build_ext):
    """Compiles what has changed since the last time; asks for whatever may be missing before anything is compiled."""

    def run(self) -> None:
        try:
            super().run()
        except extensions.BuildError as error:
            raise SystemExit(f"error: {error}") from None

    def build_extensions(self) -> None:
        objects = Path("build", "objects")
        compiler = extensions.Compiler(SOURCES, objects)
        makers = {
            CORE: compiler.core,
            OPERATIONS: lambda target: compiler.operations(target, installed_tensorflow()),
            KERNELS: lambda target: compiler.kernels(target, NVCC),
        }
        if KERNELS in self.ext_map:
            check_nvcc()
        with extensions.alone(objects, lambda: print("another build is at work here; waiting for it")):
            for extension in self.extensions:
                print(f"compiling {extension.name}")
                makers[extension.name](Path(self.get_ext_fullpath(extension.name)))

    def get_ext_filename(self, fullname: str) -> str:
        # TensorFlow's operations are no module of Python.
        if fullname.split(".")[-1] == OPERATIONS.split(".")[-1]:
            return os.path.join(*fullname.split(".")[:-1], installed_tensorflow().file_name)
        return super().get_ext_filename(fullname)


class BuildPackage(build_py):
    """Takes along, as the folder csrc of the package, what `horovod-dgc build` compiles."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for source, target in self.taken_along().items():
                self.mkpath(str(Path(target).parent))
                self.copy_file(source, target)

    def taken_along(self) -> "dict[str, str]":
        folder = Path(self.build_lib, "horovod_dgc")
        return {str(path): str(folder / path) for path in extensions.compiled_sources(SOURCES)}

    def get_outputs(self, include_bytecode: bool = True) -> "list[str]":
        outputs = super().get_outputs(include_bytecode)
        return outputs if self.editable_mode else [*outputs, *self.taken_along().values()]


@functools.cache
def installed_tensorflow() -> "extensions.TensorFlow":
    return extensions.find_tensorflow()


def check_nvcc() -> None:
    try:
        extensions.capabilities(NVCC)
        extensions.library_folder(extensions.toolkit_of(NVCC))
    except extensions.BuildError as error:
        raise extensions.BuildError(f"{error}; HOROVOD_DGC_WITH_CUDA=0 leaves the CUDA kernels out") from None


NVCC = extensions.find_nvcc()
names = [CORE]
if wanted(
    "TENSORFLOW",
    extensions.has_tensorflow(),
    "there is no TensorFlow in the building environment: install it and use pip install --no-build-isolation",
):
    names.append(OPERATIONS)
if wanted("CUDA", NVCC is not None, "there is no nvcc: put it on the PATH, or set CUDA_HOME to its toolkit"):
    names.append(KERNELS)

setup(
    ext_modules=[Extension(name, []) for name in names],
    cmdclass={"build_ext": BuildExtensions, "build_py": BuildPackage},
)
