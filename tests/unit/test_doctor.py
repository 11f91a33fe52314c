"""`horovod-dgc doctor`: what follows from what is installed, pieces that crash or hang, and a look at this machine."""

from __future__ import annotations

import importlib.machinery
import importlib.metadata
import json
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

import horovod_dgc
from horovod_dgc.commands import commands
from horovod_dgc.commands.doctor import TITLES
from horovod_dgc.doctor import combinations, diagnosis, probes
from horovod_dgc.doctor.probes import Piece
from horovod_dgc.registry import METHODS, parse

ROOT = Path(__file__).parents[2]
HERE = {"Python": "3.11.7", "system": "Linux x86_64", "executable": "/opt/env/bin/python"}
HOROVOD_PART = {"MPI": "Open MPI 4.1.4", "Gloo": True, "NCCL": False}
HEALTHY: dict[str, dict[str, Any]] = {
    "core": {"NumPy": "2.4.6", "instruction set": "avx2"},
    "torch": {"version": "2.13.0+cpu", "CUDA": None, "GPUs": []},
    "kernels": {"file": "/opt/env/_cuda.so"},
    "tensorflow": {"version": "2.21.0", "Keras": "3.15.1", "tf_keras": None, "NumPy": "2.4.6", "GPUs": []},
    "operations": {},
    "horovod": {
        "version": "0.28.1",
        "compiled for": {"torch": "2.13.0+cpu", "tensorflow": "2.21.0"},
        "horovodrun": "/opt/env/bin/horovodrun",
    },
    "horovod_torch": HOROVOD_PART,
    "horovod_tensorflow": HOROVOD_PART,
    "mpirun": {"version": "Open MPI 4.1.4", "path": "/usr/bin/mpirun", "refuses root": False},
    "mpi4py": {"version": "4.1.0", "MPI": "Open MPI 4.1.4"},
    "compiler": {"version": "g++ 12.2.0"},
    "cuda_compiler": {"version": "13.0", "path": "/usr/local/cuda/bin/nvcc"},
    "safetensors": {"version": "0.8.0"},
    "matplotlib": {"version": "3.11.2"},
}
MISSING, BROKEN = Piece("missing"), Piece("broken", error="ImportError: undefined symbol: dgc")
GPU = ["NVIDIA H100"]


def pieces(**changed: Piece | dict[str, Any]) -> dict[str, Piece]:
    """An environment in which all works, but for what is given: another piece, or other facts of it."""
    found = {name: Piece("ok", dict(facts)) for name, facts in HEALTHY.items()}
    for name, change in changed.items():
        found[name] = change if isinstance(change, Piece) else replace(found[name], facts={**HEALTHY[name], **change})
    return found


def diagnosed(**changed: Piece | dict[str, Any]) -> diagnosis.Diagnosis:
    return diagnosis.diagnose(pieces(**changed), HERE)


def test_every_piece_is_probed() -> None:
    assert set(HEALTHY) == set(probes.PIECES)


def test_a_healthy_environment_has_nothing_to_mend() -> None:
    found = diagnosed()
    assert found.works
    # The one trap of a Keras 3 that works.
    (note,) = found.findings
    assert note.level == "note" and "horovod_dgc.tensorflow.DistributedOptimizer" in note.message
    assert note.command is None
    assert [(tried.framework, tried.differences) for tried in found.tried] == [("torch", {}), ("tensorflow", {})]


# What is different; and the level, the piece, words of the message and the command of the finding that follows.
CASES: dict[str, tuple[dict[str, Any], str, str, str, str | None]] = {
    "core": ({"core": BROKEN}, "broken", "core", "undefined symbol: dgc", "pip install --force-reinstall"),
    "torch": ({"torch": BROKEN}, "broken", "torch", "PyTorch cannot be imported", "pip install"),
    "tensorflow": ({"tensorflow": BROKEN}, "broken", "tensorflow", "undefined symbol", "pip install"),
    "no framework": (
        {"torch": MISSING, "tensorflow": MISSING},
        "missing",
        "frameworks",
        "training",
        "pip install torch",
    ),
    "no Horovod": (
        {"horovod": MISSING, "horovod_torch": MISSING, "horovod_tensorflow": MISSING},
        "missing",
        "horovod",
        "not installed",
        "horovod-dgc build horovod",
    ),
    "broken Horovod": ({"horovod": BROKEN}, "broken", "horovod", "undefined symbol", "build horovod --force"),
    "not on the PATH": ({"horovod": {"horovodrun": None}}, "note", "horovod", "PATH", "/opt/env/bin"),
    "another torch": (
        {"torch": {"version": "2.14.0"}},
        "broken",
        "horovod_torch",
        "compiled for PyTorch 2.13.0+cpu, and 2.14.0 is installed",
        "horovod-dgc build horovod",
    ),
    "another TensorFlow": (
        {"tensorflow": {"version": "2.22.0"}, "horovod_tensorflow": BROKEN},
        "broken",
        "horovod_tensorflow",
        "2.22.0 is installed: ImportError: undefined symbol",
        "horovod-dgc build horovod",
    ),
    "without torch": ({"horovod_torch": MISSING}, "missing", "horovod_torch", "without PyTorch", "build horovod"),
    "broken part": ({"horovod_torch": BROKEN}, "broken", "horovod_torch", "undefined symbol", "build horovod --force"),
    "neither MPI nor Gloo": (
        {"horovod_torch": {"MPI": None, "Gloo": False}},
        "broken",
        "horovod_torch",
        "neither MPI nor Gloo",
        "build horovod --force",
    ),
    "no NCCL": ({"torch": {"GPUs": GPU}}, "note", "horovod_torch", "host memory", "build horovod --nccl"),
    "no kernels": (
        {"torch": {"GPUs": GPU}, "kernels": MISSING},
        "missing",
        "kernels",
        "slowly",
        "horovod-dgc build cuda",
    ),
    "broken kernels": ({"kernels": BROKEN}, "broken", "kernels", "undefined symbol", "build cuda --force"),
    "no operations": ({"operations": MISSING}, "missing", "operations", "2.21.0", "horovod-dgc build tensorflow"),
    "other operations": ({"operations": BROKEN}, "broken", "operations", "2.21.0", "build tensorflow --force"),
    "another mpirun": (
        {"mpirun": {"version": "MPICH 4.1", "path": "/opt/mpich/bin/mpirun"}},
        "broken",
        "mpirun",
        "compiled with Open MPI 4.1.4, and mpirun (/opt/mpich/bin/mpirun) is MPICH 4.1",
        "build horovod --force",
    ),
    "another MPI of mpi4py": ({"mpi4py": {"MPI": "MPICH 4.1"}}, "broken", "mpi4py", "MPICH 4.1", "--no-binary mpi4py"),
    "broken mpi4py": ({"mpi4py": BROKEN}, "broken", "mpi4py", "undefined symbol", "pip install"),
    "no mpirun": ({"mpirun": MISSING}, "missing", "mpirun", "horovodrun --gloo", "openmpi-bin"),
    "broken mpirun": ({"mpirun": BROKEN}, "broken", "mpirun", "does not run", "openmpi-bin"),
    "root": ({"mpirun": {"refuses root": True}}, "note", "mpirun", "root", "export OMPI_ALLOW_RUN_AS_ROOT=1"),
    "no compiler": (
        {"operations": MISSING, "compiler": MISSING},
        "missing",
        "compiler",
        "C++ compiler",
        "apt-get install g++",
    ),
    "checkpoints": ({"safetensors": MISSING}, "missing", "safetensors", "checkpoints", "horovod_dgc[checkpoints]"),
    "plots": ({"matplotlib": MISSING}, "missing", "matplotlib", "--plot", "horovod_dgc[plan]"),
}


@pytest.mark.parametrize("case", CASES)
def test_one_sentence_and_the_command_that_mends_it(case: str) -> None:
    changed, level, about, words, command = CASES[case]
    found = diagnosed(**changed)
    finding = next(each for each in found.findings if each.about == about and each.level == level)
    assert words in finding.message and finding.message.endswith(".")
    assert finding.command is not None and command is not None and command in finding.command
    assert found.works == (level != "broken")


@pytest.mark.parametrize(
    ("changed", "allowed"),
    [
        # Nobody is told twice of one fault, nor of what only matters with what is not there.
        ({"torch": BROKEN, "horovod_torch": BROKEN}, {"torch"}),
        ({"torch": MISSING, "horovod_torch": MISSING}, set()),
        ({"tensorflow": MISSING, "operations": MISSING, "horovod_tensorflow": MISSING}, set()),
        ({"kernels": MISSING}, set()),
        ({"torch": MISSING, "tensorflow": MISSING, "safetensors": MISSING}, {"frameworks"}),
        ({"compiler": MISSING, "cuda_compiler": MISSING, "mpi4py": MISSING}, set()),
        ({"mpirun": MISSING, "horovod_torch": {"MPI": None}, "horovod_tensorflow": {"MPI": None}}, set()),
        ({"torch": {"version": "2.13.0+cu130"}}, set()),
    ],
)
def test_nothing_else_is_found(changed: dict[str, Any], allowed: set[str]) -> None:
    assert {finding.about for finding in diagnosed(**changed).findings if finding.level != "note"} == allowed


def test_keras_2_needs_no_other_optimizer() -> None:
    assert not diagnosed(tensorflow={"Keras": "2.21.0"}).findings


def test_versions_are_compared_with_the_nearest_that_were_tried() -> None:
    (torch, tensorflow) = diagnosis.diagnose(
        pieces(
            tensorflow={"version": "2.15.1", "Keras": "2.15.0", "NumPy": "1.26.3"},
            horovod={"compiled for": {"tensorflow": "2.15.1"}},
            horovod_torch={"MPI": None},
        ),
        {**HERE, "Python": "3.12.1"},
    ).tried
    assert torch.differences == {"Python": "3.11"} and "MPI" not in torch.installed
    assert tensorflow.differences == {"NumPy": "1.26.4", "Python": "3.11"}
    assert tensorflow.combination.versions["tensorflow"] == "2.15.1"


def section(page: str, title: str) -> str:
    return (ROOT / page).read_text().split(f"## {title}\n")[1].split("\n## ")[0]


def test_the_combinations_are_those_of_the_readme() -> None:
    readme = section("README.md", "Versions tried")
    pages = readme + section("docs/reliability.md", "Versions that were tried")
    for combination in combinations.COMBINATIONS:
        for name, version in combination.everything().items():
            assert version in pages, f"{name} {version}"
    first_columns = " ".join(line.split("|")[1] for line in readme.splitlines() if line.startswith("| "))
    known = {version for each in combinations.COMBINATIONS for version in each.versions.values()}
    assert set(re.findall(r"\d+\.\d+\.\d+", first_columns)) <= known


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Open MPI v4.1.4, package: Debian OpenMPI, ident: 4.1.4, repo rev: v4.1.4, May 26, 2022", "Open MPI 4.1.4"),
        ("mpirun (Open MPI) 4.1.4\n\nReport bugs to http://www.open-mpi.org/community/help/", "Open MPI 4.1.4"),
        ("MPICH Version:      4.0.2\nMPICH Release date: Thu Apr  7 12:34:45 CDT 2022", "MPICH 4.0.2"),
        ("HYDRA build details:\n    Version:                                 4.0.2", "MPICH 4.0.2"),
        ("Intel(R) MPI Library for Linux* OS, Version 2021.9 Build 20230307", "Intel MPI 2021.9"),
        ("Some MPI\nof nobody", "Some MPI"),
    ],
)
def test_a_library_and_a_program_of_one_mpi_have_the_same_name(text: str, name: str) -> None:
    assert probes.mpi_name(text) == name


FAKE_TORCH = """
__version__ = "9.9"
print("a library may print this")
class version: cuda = None
class cuda:
    @staticmethod
    def is_available(): return False
"""


@pytest.mark.parametrize(
    ("code", "state", "error"),
    [
        (FAKE_TORCH, "ok", ""),
        ("import os; os.abort()", "broken", r"crashed the process \(signal 6\)"),
        (
            "import os, sys; print('a\\nlibrary is of another version.\\nI0000 loaded', file=sys.stderr); os._exit(3)",
            "broken",
            "ended the process with status 3; library is of another version$",
        ),
        ("import sys; sys.exit('no GPU, no torch')", "broken", "SystemExit: no GPU, no torch"),
        ("import time; time.sleep(600)", "broken", "not done after 3 s"),
        ("raise ImportError('libc10.so:\\n undefined symbol.')", "broken", "ImportError: libc10.so: undefined symbol"),
        ("import a_module_that_nobody_has", "broken", "ModuleNotFoundError: No module named 'a_module"),
        ("raise ModuleNotFoundError('No module named torch', name='torch')", "missing", ""),
    ],
)
def test_no_piece_takes_the_others_along(
    code: str, state: str, error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    found = probes.examine([["torch", "safetensors"], ["matplotlib"]], seconds=3 if "sleep" in code else 60)
    assert found["torch"].state == state
    assert re.search(error, found["torch"].error)
    assert found["torch"].facts.get("version") == ("9.9" if state == "ok" else None)
    assert found["safetensors"].facts == {"version": importlib.metadata.version("safetensors")}
    assert found["matplotlib"].state == "ok"


def doctor(monkeypatch: pytest.MonkeyPatch, *arguments: str, **changed: Piece | dict[str, Any]) -> Result:
    monkeypatch.setattr(probes, "examine", lambda seconds: pieces(**changed))
    monkeypatch.setattr(probes, "here", lambda: HERE)
    return CliRunner().invoke(commands, ["doctor", *arguments])


def test_the_status_is_for_scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor(monkeypatch).exit_code == 0
    assert doctor(monkeypatch, operations=MISSING).exit_code == 0
    assert doctor(monkeypatch, operations=BROKEN).exit_code == 1
    result = doctor(monkeypatch, "--json", torch={"version": "2.14.0"}, safetensors=MISSING)
    assert result.exit_code == 1
    found = json.loads(result.output)
    assert found["works"] is False and found["pieces"]["torch"]["facts"]["version"] == "2.14.0"
    assert [finding["level"] for finding in found["findings"]] == ["broken", "missing", "note"]
    assert found["tried"][0]["differences"] == {"torch": "2.13.0"}


def test_what_is_printed_has_every_piece_and_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    changed = {"torch": {"version": "2.14.0"}, "safetensors": MISSING, "operations": BROKEN}
    output = doctor(monkeypatch, **changed).output
    lines = output.splitlines()
    for name in probes.PIECES:
        assert any(line.startswith(TITLES[name]) for line in lines), name
    for finding in diagnosed(**changed).findings:
        at = lines.index(f"- {finding.message}")
        assert finding.command is None or lines[at + 1] == f"    {finding.command}"
    assert "…" not in output
    assert "PyTorch: not tried together. What was tried nearest to it has PyTorch 2.13.0 (2.14.0 here)." in output
    assert "TensorFlow: tried together" in output
    assert lines[-1] == "Broken: 2; see above."
    assert doctor(monkeypatch).output.splitlines()[-1] == "All that is installed works together."


def test_commands_that_mend_are_commands() -> None:
    """Those of this package parse."""
    said = [finding.command for case in CASES.values() for finding in diagnosed(**case[0]).findings]
    ours = {command for command in said if command is not None and command.startswith("horovod-dgc ")}
    assert len(ours) > 4
    for command in ours:
        _, *arguments = shlex.split(command)
        found: click.Command = commands
        while isinstance(found, click.Group):
            found = found.commands[arguments.pop(0)]
        found.make_context(command, arguments, resilient_parsing=False)


def test_this_environment(tmp_path: Path) -> None:
    """Whatever is wrong here, the command says it and ends in time; versions are those of the packages."""
    result = subprocess.run(
        [sys.executable, "-m", "horovod_dgc", "doctor", "--json"],
        check=False,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert result.returncode in (0, 1) and not result.stderr, result.stderr
    found = json.loads(result.stdout)
    assert found["works"] == (result.returncode == 0)
    for name, distribution in (("torch", "torch"), ("horovod", "horovod"), ("safetensors", "safetensors")):
        piece = found["pieces"][name]
        assert piece["state"] == "ok", piece
        assert piece["facts"]["version"] == importlib.metadata.version(distribution)
    assert found["pieces"]["core"]["facts"]["instruction set"] in ("portable", "avx2", "avx512")
    assert found["pieces"]["horovod_torch"]["facts"]["Gloo"] is True


@pytest.mark.parametrize("damaged", [False, True])
def test_a_core_that_is_not_there_or_damaged_is_one_sentence(damaged: bool, tmp_path: Path) -> None:
    """Not even the doctor can start without it."""
    package = Path(
        shutil.copytree(ROOT / "horovod_dgc", tmp_path / "horovod_dgc", ignore=shutil.ignore_patterns("*.so"))
    )
    if damaged:
        suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
        (package / f"_core{suffix}").write_bytes(b"\x7fELF")
    # Without the finder of an editable installation, which would give its own core.
    code = (
        "import importlib.machinery as m, sys; sys.meta_path[:] = [m.BuiltinImporter, m.FrozenImporter, m.PathFinder]; "
        f"sys.path.insert(0, {str(tmp_path)!r}); import horovod_dgc.commands"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert f"in {package} does not load (" in last and "run pip install --force-reinstall" in last
    assert damaged == ("file too short" in last)


def test_methods_lists_what_a_command_line_takes() -> None:
    lines = CliRunner().invoke(commands, ["methods"]).output.splitlines()
    assert [line.split()[0] for line in lines] == list(METHODS)
    for line in lines:
        assert parse(":".join(line.split())) == METHODS[line.split()[0]]()


def test_version() -> None:
    assert horovod_dgc.__version__ in CliRunner().invoke(commands, ["--version"]).output
