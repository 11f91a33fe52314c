"""What `make wheel` makes: what is in the sdist and in a wheel, and that they work where nothing else is."""

import ast
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import horovod_dgc

ROOT = Path(__file__).resolve().parents[2]
SMOKE = Path(__file__).with_name("smoke.py")
pytestmark = pytest.mark.timeout(900)


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    result = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, "HOROVOD_DGC_WITH_CUDA": "0", "HOROVOD_DGC_WITH_TENSORFLOW": "0", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, f"{' '.join(map(str, command))}\n{result.stdout}\n{result.stderr}"
    return result.stdout + result.stderr


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with an sdist, and this Python's wheel from that sdist; `log` holds what was said on the way."""
    folder = tmp_path_factory.mktemp("packages")
    tool = [sys.executable, ROOT / "tools" / "packages.py", "--dist", folder / "dist", sys.executable]
    (folder / "log").write_text(run(*tool, cwd=folder))
    return folder


@pytest.fixture(scope="session")
def sdist(packages: Path) -> Path:
    (path,) = packages.glob("dist/*.tar.gz")
    return path


@pytest.fixture(scope="session")
def wheel(packages: Path) -> Path:
    (path,) = packages.glob("dist/*.whl")
    return path


@pytest.fixture
def source(sdist: Path, tmp_path: Path) -> Path:
    """The unpacked sdist."""
    shutil.unpack_archive(sdist, tmp_path / "source")
    (path,) = (tmp_path / "source").iterdir()
    return path


def test_the_wheel_works_in_an_empty_environment(packages: Path, wheel: Path) -> None:
    assert f"{wheel.name} works in an empty environment" in (packages / "log").read_text()


def test_the_wheel_is_for_common_linux(wheel: Path) -> None:
    # glibc 2.34 and newer: Debian 12, Ubuntu 22.04, RHEL 9.
    assert "-manylinux_2_34_" in wheel.name


def test_the_wheel_holds_the_package_its_types_and_what_is_compiled_on_demand(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    assert {"horovod_dgc/py.typed", "horovod_dgc/_core.pyi"} <= names
    compiled = [name for name in names if name.endswith(".so")]
    # TensorFlow's operations would fit one version of TensorFlow only.
    assert len(compiled) == 1 and compiled[0].startswith("horovod_dgc/_core.")
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "horovod_dgc").rglob("*.py")}
    assert modules and modules <= names
    here = {path for path in (ROOT / "csrc").rglob("*") if path.suffix in {".cc", ".cu", ".h"}}
    sources = {path.relative_to(ROOT / "csrc") for path in here}
    needed = {f"horovod_dgc/csrc/{path}" for path in sources if path.parts[0] not in {"benchmarks", "fuzz", "tests"}}
    assert needed and {name for name in names if name.startswith("horovod_dgc/csrc/")} == needed
    folders = {name.split("/")[0] for name in names}
    assert {name for name in folders if not name.endswith(".dist-info")} == {"horovod_dgc"}


def test_the_metadata_say_what_it_is(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (name,) = (each for each in names if each.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(name).decode())
        (license_file,) = (each for each in names if each.endswith(".dist-info/licenses/LICENSE"))
        assert archive.read(license_file) == (ROOT / "LICENSE").read_bytes()
    assert metadata["Version"] == horovod_dgc.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata["Requires-Python"] == ">=3.9"
    assert metadata.get_payload().startswith((ROOT / "README.md").read_text()[:100])
    required = [each for each in metadata.get_all("Requires-Dist") if "extra ==" not in each]
    assert sorted(each.split(">")[0] for each in required) == ["click", "numpy", "rich"]
    tried = {f"Programming Language :: Python :: {version}" for version in packages_tool().VERSIONS}
    assert {each for each in metadata.get_all("Classifier") if "Python :: 3." in each} == tried


def test_the_version_is_written_once() -> None:
    literals = [
        (path.name, node.value)
        for path in [ROOT / "setup.py", *(ROOT / "horovod_dgc").rglob("*.py")]
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and node.value == horovod_dgc.__version__
    ]
    assert literals == [("__init__.py", horovod_dgc.__version__)]
    assert horovod_dgc.__version__ not in (ROOT / "pyproject.toml").read_text()


def test_the_sdist_holds_the_sources_of_the_core(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = (path for path in (ROOT / "csrc").rglob("*") if path.suffix in {".cc", ".cu", ".h", ".txt"})
    here = {path.relative_to(ROOT).as_posix() for path in needed}
    assert here and here <= names
    assert {"setup.py", "pyproject.toml", "LICENSE", "README.md", "horovod_dgc/py.typed"} <= names


def refused(source: Path, **environment: str) -> str:
    """What setup.py says where it does not build, and that it compiles nothing before it says it."""
    result = subprocess.run(
        [sys.executable, "setup.py", "build_ext"],
        cwd=source,
        env={**os.environ, "HOROVOD_DGC_WITH_CUDA": "0", "HOROVOD_DGC_WITH_TENSORFLOW": "0", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode != 0
    assert not list(source.rglob("*.o"))
    return result.stdout + result.stderr


def test_an_nvcc_that_fails_says_how_to_go_on(source: Path, tmp_path: Path) -> None:
    nvcc = tmp_path / "toolkit" / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text("#!/bin/sh\necho no license >&2\nexit 1\n")
    nvcc.chmod(0o755)
    output = refused(source, HOROVOD_DGC_WITH_CUDA="1", CUDA_HOME=str(tmp_path / "toolkit"))
    assert "no license" in output
    assert "HOROVOD_DGC_WITH_CUDA=0 leaves the CUDA kernels out" in output


def test_a_part_is_wanted_or_not(source: Path) -> None:
    output = refused(source, HOROVOD_DGC_WITH_CUDA="yes")
    assert "HOROVOD_DGC_WITH_CUDA must be 0, 1 or unset, got 'yes'" in output


def test_a_compiler_that_is_not_there(source: Path) -> None:
    output = refused(source, CXX="no-such-compiler")
    assert "error: CXX names 'no-such-compiler', which is not on the PATH" in output


def refused_install(sdist: Path, folder: Path, **environment: str) -> str:
    """What pip prints where the package cannot be built in an empty environment."""
    venv.create(folder / "venv", with_pip=True)
    install = [folder / "venv" / "bin" / "python", "-m", "pip", "install", "--no-deps", sdist]
    env = {**os.environ, "HOROVOD_DGC_WITH_CUDA": "0", **environment}
    result = subprocess.run(install, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert result.returncode != 0
    return result.stdout + result.stderr


@pytest.mark.long
def test_the_tensorflow_operations_can_be_demanded_only_where_tensorflow_is(sdist: Path, tmp_path: Path) -> None:
    output = refused_install(sdist, tmp_path, HOROVOD_DGC_WITH_TENSORFLOW="1")
    assert "there is no TensorFlow in the building environment" in output
    assert "--no-build-isolation" in output


@pytest.mark.long
@pytest.mark.skipif(Path("/usr/local/cuda/bin/nvcc").exists(), reason="there is an nvcc where setup.py looks")
def test_the_kernels_can_be_demanded_only_where_nvcc_is(sdist: Path, tmp_path: Path) -> None:
    # pip itself needs no more than the interpreter's folder.
    output = refused_install(sdist, tmp_path, HOROVOD_DGC_WITH_CUDA="1", PATH=str(tmp_path), CUDA_HOME="")
    assert "HOROVOD_DGC_WITH_CUDA=1, but there is no nvcc" in output


@pytest.mark.long
def test_pip_compiles_the_sdist_in_an_empty_environment(sdist: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", sdist, cwd=tmp_path)
    assert "smoke passed" in run(python, "-I", SMOKE, cwd=tmp_path)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_wheel_for_every_python_works_and_passes_the_unit_tests(tmp_path: Path) -> None:
    said = run(sys.executable, ROOT / "tools" / "packages.py", "--dist", tmp_path, "--unit-tests", cwd=tmp_path)
    wheels = sorted(path.name for path in tmp_path.glob("*.whl"))
    assert wheels
    for name in wheels:
        assert f"{name} works in an empty environment" in said
        assert f"{name}: " in said and " passed" in said


def packages_tool():  # type: ignore[no-untyped-def]
    spec = importlib.util.spec_from_file_location("packages_tool", ROOT / "tools" / "packages.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
