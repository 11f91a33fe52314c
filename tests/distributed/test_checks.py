"""Each function of ``checks/`` on 2, 3 and 4 real processes, under horovodrun with Gloo and under mpirun."""

from __future__ import annotations

import ast
import functools
import json
import tempfile
from pathlib import Path

import pytest
from launch import LAUNCHERS, run

HERE = Path(__file__).parent
TIMEOUT_SECONDS = 240
MODULES = ("dense", "invariants", "models", "options", "refusals")


def _checks(module: str) -> list[str]:
    tree = ast.parse((HERE / "checks" / f"{module}.py").read_text())
    return [f.name for f in tree.body if isinstance(f, ast.FunctionDef) and f.name.startswith("check_")]


@functools.cache
def _outcome(launcher: str, ranks: int, module: str) -> dict[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "outcome.json"
        command = [str(HERE / "run_checks.py"), module, str(result)]
        finished = run(launcher, ranks, command, timeout=TIMEOUT_SECONDS)
        if finished.returncode != 0 or not result.exists():
            why = "hung" if finished.returncode is None else f"ended with {finished.returncode}"
            pytest.fail(f"{launcher} -np {ranks} {module} {why}:\n{finished.output[-6000:]}")
        return json.loads(result.read_text())


@pytest.mark.parametrize(
    ("launcher", "ranks", "module", "check"),
    [
        (launcher, ranks, module, check)
        for module in MODULES
        for launcher in LAUNCHERS
        for ranks in (2, 3, 4)
        for check in _checks(module)
    ],
)
@pytest.mark.timeout(TIMEOUT_SECONDS + 60)
def test_check(launcher: str, ranks: int, module: str, check: str) -> None:
    failure = _outcome(launcher, ranks, module)[check]
    assert not failure, failure
