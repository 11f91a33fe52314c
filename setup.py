from pathlib import Path

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension
from setuptools import setup

# Contraction to fused multiply-adds would let two passes over the same arrays compute different bits.
FLAGS = ["-O3", "-ffp-contract=off", "-fvisibility=hidden", "-pthread"]

ParallelCompile("NPY_NUM_BUILD_JOBS", default=2).install()

setup(
    ext_modules=[
        Pybind11Extension(
            "horovod_dgc._core",
            sorted(path.as_posix() for path in Path("csrc").glob("*.cc")),
            depends=sorted(path.as_posix() for path in Path("csrc").glob("*.h")),
            include_dirs=["csrc"],
            cxx_std=17,
            extra_compile_args=FLAGS,
            extra_link_args=["-pthread"],
        )
    ]
)
