"""Compiling on demand: what is compiled again, for which ABI, where it goes and is found, and what failures say."""

from __future__ import annotations

import ctypes
import io
import os
import sys
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from horovod_dgc.building import extensions, on_demand, places, progress
from horovod_dgc.building.extensions import BuildError, Compiler, TensorFlow
from horovod_dgc.commands import commands

TENSORFLOW = TensorFlow("9.9.9", 1, [], [])
UNITS = {
    "one.cc": '#include "shared.h"\n#include <string>\n'
    'extern "C" int one() { return SHARED; }\nextern "C" int core_abi() { return _GLIBCXX_USE_CXX11_ABI; }\n',
    "folder/two.cc": 'extern "C" int two() { return 2; }\n',
    "shared.h": "#define SHARED 1\n",
    "tensorflow/operations.cc": 'extern "C" int one();\nextern "C" int twice() { return 2 * one(); }\n',
    # Of other parts: they would not compile.
    "tests/one_test.cc": "#error\n",
    "fuzz/fuzz.cc": "#error\n",
    "python/module.cc": "#error\n",
    "cuda/kernels.cc": "#error\n",
}
FLAGS = [flag if flag != "-fvisibility=hidden" else "-fvisibility=default" for flag in extensions.FLAGS]


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(extensions, "FLAGS", FLAGS)
    for name, text in UNITS.items():
        path = tmp_path / "csrc" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "csrc"


def build(sources: Path, tensorflow: TensorFlow = TENSORFLOW, name: str = "built.so") -> tuple[ctypes.CDLL, int]:
    """The library, and how many units have been compiled for it."""
    counts = [0]
    target = sources.parent / name
    compiler = Compiler(sources, sources.parent / "objects", lambda done, total: counts.append(total), jobs=1)
    compiler.operations(target, tensorflow)
    return ctypes.CDLL(str(target)), counts[-1] - 1


def rewrite(path: Path, text: str) -> None:
    path.write_text(text)
    later = path.stat().st_mtime_ns + 1_000_000_000
    os.utime(path, ns=(later, later))


def test_only_what_has_changed_is_compiled_again(sources: Path) -> None:
    library, compiled = build(sources)
    assert (library.one(), library.two(), library.twice(), compiled) == (1, 2, 2, 3)
    assert build(sources, name="again.so")[1] == 0
    rewrite(sources / "folder" / "two.cc", 'extern "C" int two() { return 22; }\n')
    library, compiled = build(sources, name="third.so")
    assert (library.two(), compiled) == (22, 1)


def test_units_follow_the_headers_that_they_include(sources: Path) -> None:
    build(sources)
    rewrite(sources / "shared.h", "#define SHARED 7\n")
    library, compiled = build(sources, name="again.so")
    assert (library.twice(), compiled) == (14, 1)


@pytest.mark.parametrize("abi", [0, 1])
def test_the_core_has_tensorflows_abi(sources: Path, abi: int) -> None:
    build(sources, name="before.so")
    library, _ = build(sources, TensorFlow("9.9.9", abi, [f"-D_GLIBCXX_USE_CXX11_ABI={abi}"], []))
    assert library.core_abi() == abi


def test_a_unit_that_does_not_compile_is_named_and_the_others_are_kept(sources: Path) -> None:
    good = (sources / "folder" / "two.cc").read_text()
    rewrite(sources / "folder" / "two.cc", "int two() { return no_such_name; }\n")
    with pytest.raises(BuildError, match=r"csrc/folder/two\.cc does not compile:(.|\n)*no_such_name"):
        build(sources)
    assert not (sources.parent / "built.so").exists()
    rewrite(sources / "folder" / "two.cc", good)
    compiled = build(sources)[1]
    assert 1 <= compiled < 3


def stand_in(folder: Path, body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler that answers --version, and else does this."""
    script = folder / "compiler"
    script.write_text(f'#!/bin/sh\n[ "$1" = --version ] && exit 0\n{body}\n')
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("echo 'fatal error: error writing to x.s: No space left on device'; exit 1", "is full: free some 200 MB"),
        ("kill -9 $$", "was killed at .*want of memory: try it with --jobs 1"),
    ],
)
def test_what_is_not_the_sources_fault(sources: Path, monkeypatch: pytest.MonkeyPatch, body: str, says: str) -> None:
    monkeypatch.setattr(extensions, "_launcher", list)
    stand_in(sources.parent, body, monkeypatch)
    with pytest.raises(BuildError, match=says):
        build(sources)


def test_no_compiler(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(sources))
    with pytest.raises(BuildError, match="there is no C\\+\\+ compiler on the PATH: install g\\+\\+"):
        build(sources)
    monkeypatch.setenv("CXX", "no-such-compiler -m64")
    with pytest.raises(BuildError, match="CXX names 'no-such-compiler', which is not on the PATH"):
        build(sources)


def test_a_folder_that_cannot_be_written_to(sources: Path) -> None:
    (sources.parent / "objects").write_text("a file")
    with pytest.raises(BuildError, match=r"cannot write to .*objects"):
        build(sources)


@pytest.fixture
def package(sources: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package with these sources inside."""
    folder = sources.parent / "site-packages" / "horovod_dgc"
    folder.mkdir(parents=True)
    sources.rename(folder / "csrc")
    monkeypatch.setattr(places, "PACKAGE", folder)
    monkeypatch.setenv("HOROVOD_DGC_CACHE", str(folder.parents[1] / "cache"))
    return folder


def test_what_is_compiled_goes_into_the_package_or_the_users_cache(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert places.target().is_relative_to(package)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert places.target().is_relative_to(places.cache())


@pytest.mark.parametrize("number", [0, 1])
def test_it_is_found_in_both_until_the_sources_change(package: Path, number: int) -> None:
    folder = places.folders()[number]
    folder.mkdir(parents=True)
    (folder / TENSORFLOW.file_name).touch()
    # One that came with the package, and may not load, is no obstacle.
    (package / "tensorflow").mkdir()
    (package / "tensorflow" / TENSORFLOW.file_name).touch()
    assert places.find(package / "tensorflow", TENSORFLOW.file_name) == folder / TENSORFLOW.file_name
    assert places.find(package / "tensorflow", TensorFlow("9.9.8", 1, [], []).file_name) is None
    (package / "csrc" / "shared.h").write_text("#define SHARED 2\n")
    installed = package / "tensorflow" / TENSORFLOW.file_name
    assert places.find(package / "tensorflow", TENSORFLOW.file_name) == installed


def test_building_says_what_it_does_and_does_it_once(
    package: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(extensions, "find_tensorflow", lambda: TENSORFLOW)
    monkeypatch.setattr(on_demand, "LOADS_OPERATIONS", "pass")
    target = on_demand.build_tensorflow()
    assert ctypes.CDLL(str(target)).twice() == 2
    assert on_demand.build_tensorflow() == target
    said = capfd.readouterr().err
    assert "compiling the operations for TensorFlow 9.9.9 (usually 2 min)" in said
    assert f"they are in {target} and are found there" in said
    assert f"already there, in {target}" in said


def test_what_does_not_load_is_said(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extensions, "find_tensorflow", lambda: TENSORFLOW)
    monkeypatch.setattr(on_demand, "LOADS_OPERATIONS", "raise ImportError('undefined symbol')")
    with pytest.raises(BuildError, match="does not load: ImportError: undefined symbol"):
        on_demand.build_tensorflow()


def test_the_second_of_two_waits(tmp_path: Path) -> None:
    waiting, order = threading.Event(), []

    def second() -> None:
        with extensions.alone(tmp_path / "objects", waiting.set):
            order.append("second")

    thread = threading.Thread(target=second)
    with extensions.alone(tmp_path / "objects", lambda: order.append("the first waited")):
        thread.start()
        assert waiting.wait(60)
        order.append("first")
    thread.join(60)
    assert order == ["first", "second"]


@pytest.mark.parametrize(
    ("part", "missing", "says"),
    [
        ("tensorflow", "has_tensorflow", f"Error: TensorFlow is not installed for {sys.executable}"),
        ("cuda", "find_nvcc", "Error: there is no CUDA compiler: install the CUDA toolkit"),
    ],
)
def test_commands_say_what_is_missing(part: str, missing: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extensions, missing, lambda: None)
    result = CliRunner().invoke(commands, ["build", part])
    assert result.exit_code == 1
    assert says in result.output


class Counts:
    """A step that notes how far it is said to be."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def advance(self, done: int, total: int) -> None:
        self.seen.append((done, total))

    def note(self, text: str) -> None:
        raise AssertionError(text)


def test_progress_is_read_from_make_and_ninja() -> None:
    counts = Counts()
    for line in ("[ 42%] Building CXX object a.o", "[12/80] g++ -c b.cc", "  [100%] Linking", "warning: [12] unused"):
        progress.read(counts, line)
    assert counts.seen == [(42, 100), (12, 80), (100, 100)]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (42, "42 s"), (60, "1 min"), (185, "3 min 5 s"), (59.7, "1 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert progress.duration(seconds) == text


def test_without_a_terminal_there_are_lines_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "INTERVAL", 0.01)
    output = io.StringIO()
    told = threading.Event()
    write = output.write
    monkeypatch.setattr(output, "write", lambda text: (told.set() if "25 %" in text else None, write(text))[1])
    with progress.step("compiling", usually=90, console=Console(file=output)) as step:
        step.advance(1, 4)
        assert told.wait(60)
    lines = output.getvalue().splitlines()
    assert lines[0] == "compiling (usually 1 min 30 s)"
    assert lines[-1] == "compiling: done in 0 s"


def test_a_step_that_fails_is_not_done() -> None:
    output = io.StringIO()
    with pytest.raises(RuntimeError), progress.step("compiling", console=Console(file=output)):
        raise RuntimeError
    assert "done" not in output.getvalue()
