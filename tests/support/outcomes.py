"""The pytest side of checks that run on every rank: one job per module, one test per check."""

from __future__ import annotations

import ast
import functools
import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

import pytest
from launch import run

TIMEOUT_SECONDS = 240

# Jobs without an outcome whose output has been shown.
_SHOWN: set[tuple[object, ...]] = set()


def names(folder: Path, module: str) -> list[str]:
    """The checks of ``folder/checks/module.py``, read without importing it."""
    tree = ast.parse((folder / "checks" / f"{module}.py").read_text())
    return [f.name for f in tree.body if isinstance(f, ast.FunctionDef) and f.name.startswith("check_")]


def grid(folder: Path, modules: Iterable[str], launches: Iterable[tuple[str, int]]) -> list[tuple[str, int, str, str]]:
    """Every check of the modules with every (launcher, ranks)."""
    launches = list(launches)
    return [
        (launcher, ranks, module, check)
        for module in modules
        for launcher, ranks in launches
        for check in names(folder, module)
    ]


@functools.cache
def _job(
    folder: Path, launcher: str, ranks: int, module: str, environment: tuple[tuple[str, str], ...], timeout: float
) -> dict[str, str] | str:
    """Run the job once: what went wrong by check, or why there is no outcome."""
    with tempfile.TemporaryDirectory() as scratch:
        result = Path(scratch) / "outcome.json"
        # Shortly before the time limit every rank says where it is.
        command = [str(folder / "run_checks.py"), module, str(result), str(timeout - 10)]
        # For the checks and for what they share, wherever the job's processes are started.
        paths = os.pathsep.join([str(folder), str(Path(__file__).parent)])
        extra = {"PYTHONPATH": paths, **dict(environment)}
        finished = run(launcher, ranks, command, timeout=timeout, extra=extra)
        if finished.returncode != 0 or not result.exists():
            why = f"hung for {timeout} s" if finished.returncode is None else f"ended with {finished.returncode}"
            return f"{launcher} -np {ranks} {module} {why}:\n{finished.output[-12000:]}"
        return json.loads(result.read_text())


def outcome(
    folder: Path,
    launcher: str,
    ranks: int,
    module: str,
    *,
    environment: tuple[tuple[str, str], ...] = (),
    timeout: float = TIMEOUT_SECONDS,
) -> dict[str, str]:
    """For each check of the module, what went wrong on the ranks, or "". Runs the job at most once."""
    job = (folder, launcher, ranks, module, environment, timeout)
    result = _job(*job)
    if isinstance(result, str):
        shown = job in _SHOWN
        _SHOWN.add(job)
        pytest.fail(f"{result.splitlines()[0]} as shown above" if shown else result, pytrace=False)
    return result
