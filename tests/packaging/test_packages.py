"""The sdist and the wheel, each installed into a fresh environment that holds nothing else but NumPy."""

import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.timeout(900)

# Run by the fresh environment's interpreter, isolated from the source tree and from this environment.
SMOKE = """
import importlib.metadata, importlib.util, sys
import numpy as np
import horovod_dgc

assert horovod_dgc.__file__.startswith(sys.prefix), horovod_dgc.__file__
assert importlib.metadata.version("horovod_dgc") == horovod_dgc.__version__
installed = {name for name in ("torch", "tensorflow", "horovod") if importlib.util.find_spec(name)}
assert not installed, installed

numel, density = 10_000, 0.01
method = horovod_dgc.DGC(density=density, values="float32", warmup=None)
state = method.init(numel)
gradient = np.random.default_rng(0).standard_normal(numel, dtype=np.float32)
payload = method.encode(gradient.copy(), state, momentum=0.9)
assert payload.dtype == np.uint8 and payload.nbytes == method.payload_nbytes(numel)

received = np.zeros(numel, np.float32)
method.decode(payload[None], received)
assert np.count_nonzero(received) == density * numel
np.testing.assert_array_equal(received + state.residual, gradient)
print("smoke passed")
"""


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    result = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, "HOROVOD_DGC_WITH_CUDA": "0", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, f"{' '.join(map(str, command))}\n{result.stdout}\n{result.stderr}"
    return result.stdout


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with an sdist, and the wheel that was built from that sdist."""
    folder = tmp_path_factory.mktemp("packages")
    source = folder / "source"
    # Without what earlier builds left: setuptools takes stale files along from build/ and *.egg-info.
    left_out = shutil.ignore_patterns(".*", "build", "dist", "demo", "*.egg-info", "*.so", "__pycache__")
    shutil.copytree(ROOT, source, ignore=left_out)
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, source]
    run(*build, cwd=folder, HOROVOD_DGC_WITH_TENSORFLOW="0")
    return folder


@pytest.fixture(scope="session")
def sdist(packages: Path) -> Path:
    (path,) = packages.glob("*.tar.gz")
    return path


@pytest.fixture(scope="session")
def wheel(packages: Path) -> Path:
    (path,) = packages.glob("*.whl")
    return path


def check_fresh_install(package: Path, folder: Path) -> None:
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", package, cwd=folder)
    others = {
        line.split("==")[0].lower().replace("-", "_")
        for line in run(python, "-m", "pip", "list", "--format=freeze", cwd=folder).split()
    } - {"pip", "setuptools", "horovod_dgc"}
    assert {"click", "numpy", "rich"} <= others
    assert not others & {"horovod", "matplotlib", "safetensors", "tensorflow", "torch"}
    assert "smoke passed" in run(python, "-I", "-c", SMOKE, cwd=folder)


def test_the_wheel_works_with_numpy_alone(wheel: Path, tmp_path: Path) -> None:
    check_fresh_install(wheel, tmp_path)


def test_the_sdist_works_with_numpy_alone(sdist: Path, tmp_path: Path) -> None:
    check_fresh_install(sdist, tmp_path)


def test_the_wheel_holds_the_package_and_its_types_only(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert "horovod_dgc/py.typed" in names
    assert "horovod_dgc/_core.pyi" in names
    assert any(name.startswith("horovod_dgc/_core.") and name.endswith(".so") for name in names)
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "horovod_dgc").rglob("*.py")}
    assert modules and modules <= set(names)
    # Those would fit one version of TensorFlow only.
    assert not any("_operations" in name for name in names)
    folders = {name.split("/")[0] for name in names}
    assert {name for name in folders if not name.endswith(".dist-info")} == {"horovod_dgc"}


def test_the_sdist_holds_the_sources_of_the_core(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = (path for path in (ROOT / "csrc").rglob("*") if path.suffix in {".cc", ".cu", ".h", ".txt"})
    here = {path.relative_to(ROOT).as_posix() for path in needed}
    assert here and here <= names
    assert {"setup.py", "pyproject.toml", "horovod_dgc/py.typed"} <= names


def refused_install(sdist: Path, folder: Path, **environment: str) -> str:
    """What pip prints where the package cannot be built."""
    venv.create(folder / "venv", with_pip=True)
    install = [folder / "venv" / "bin" / "python", "-m", "pip", "install", "--no-deps", sdist]
    env = {**os.environ, "HOROVOD_DGC_WITH_CUDA": "0", **environment}
    result = subprocess.run(install, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert result.returncode != 0
    return result.stdout + result.stderr


def test_the_tensorflow_operations_can_be_demanded_only_where_tensorflow_is(sdist: Path, tmp_path: Path) -> None:
    output = refused_install(sdist, tmp_path, HOROVOD_DGC_WITH_TENSORFLOW="1")
    assert "there is no TensorFlow in the building environment" in output
    assert "--no-build-isolation" in output


@pytest.mark.skipif(Path("/usr/local/cuda/bin/nvcc").exists(), reason="there is an nvcc where setup.py looks")
def test_the_kernels_can_be_demanded_only_where_nvcc_is(sdist: Path, tmp_path: Path) -> None:
    # pip itself needs no more than the interpreter's folder.
    output = refused_install(sdist, tmp_path, HOROVOD_DGC_WITH_CUDA="1", PATH=str(tmp_path), CUDA_HOME="")
    assert "HOROVOD_DGC_WITH_CUDA=1, but there is no nvcc" in output


def test_an_nvcc_that_fails_says_how_to_go_on(sdist: Path, tmp_path: Path) -> None:
    nvcc = tmp_path / "toolkit" / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text("#!/bin/sh\necho no license >&2\nexit 1\n")
    nvcc.chmod(0o755)
    output = refused_install(sdist, tmp_path, HOROVOD_DGC_WITH_CUDA="1", CUDA_HOME=str(tmp_path / "toolkit"))
    assert "no license" in output
    assert "HOROVOD_DGC_WITH_CUDA=0 leaves the CUDA kernels out" in output
