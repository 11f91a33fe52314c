"""The pytest side of checks that run on every rank: one job for all that one launch can run, one test per check."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import json
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from launch import SUPPORT, Running, command_for
from rank import STARTED, begins

# Until all ranks have imported what they need, on a busy machine.
START_SECONDS = 240.0
LONG = (("HOROVOD_DGC_TEST_LENGTH", "long"),)
# What is shown of the beginning, where the reason is, and of the end, where the ranks say where they are.
OUTPUT_CHARACTERS = 6000


@dataclasses.dataclass(frozen=True)
class Launch:
    """What checks must have in common to run in one job.

    Args:
        folder: of ``run_checks.py`` and ``checks/``.
        launcher, ranks: as for :func:`launch.command_for`.
        seconds: time limit of each check, after which the ranks print where they are.
        grace: until they have done so; and how long a rank on which a check has failed waits for the others, which may
            wait for it in the check.
    """

    folder: Path
    launcher: str
    ranks: int
    environment: tuple[tuple[str, str], ...] = ()
    seconds: float = 180.0
    grace: float = 30.0

    def __str__(self) -> str:
        return f"{self.launcher}-{self.ranks}"

    @property
    def test_seconds(self) -> float:
        """Time limit of a test: of the job's start, the check, and the job's end."""
        return START_SECONDS + self.seconds + 2 * self.grace + 30


def names(folder: Path, module: str) -> list[str]:
    """``module::check`` for each check of ``folder/checks/module.py``, read without importing it."""
    tree = ast.parse((folder / "checks" / f"{module}.py").read_text())
    functions = [f.name for f in tree.body if isinstance(f, ast.FunctionDef) and f.name.startswith("check_")]
    return [f"{module}::{function}" for function in functions]


def missing(folder: Path, cases: Iterable[Any]) -> set[str]:
    """The checks of ``folder`` that none of these cases runs."""
    modules = [path.stem for path in (folder / "checks").glob("[a-z]*.py")]
    return {check for module in modules for check in names(folder, module)} - {case.values[1] for case in cases}


def grid(modules: Iterable[str], launch: Launch, prefix: str = "", marks: Iterable[Any] = ()) -> list[Any]:
    """Parameters (launch, check) for every check of the modules; ``prefix`` begins the names of the tests."""
    marks = [pytest.mark.timeout(launch.test_seconds), *marks]
    return [
        pytest.param(launch, check, id=f"{prefix}{launch}-{check.replace('::', '-')}", marks=marks)
        for module in modules
        for check in names(launch.folder, module)
    ]


def long_grid(modules: Iterable[str], launch: Launch, prefix: str = "") -> list[Any]:
    """The same for `make test-all`, where checks repeat more."""
    return grid(
        modules,
        dataclasses.replace(launch, environment=launch.environment + LONG),
        prefix=f"long-{prefix}",
        marks=[pytest.mark.long],
    )


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Why a check failed, or "", and what the ranks printed then; how long it took."""

    failure: str = ""
    output: str = ""
    seconds: float = 0.0


class Job:
    """Runs checks in one job, one after another. A check that fails ends it; another job then runs those that remain.

    Args:
        checks: those to run, ``module::check``.
        show: called with the ranks' output while they print it.
    """

    def __init__(self, launch: Launch, checks: Iterable[str], show: Callable[[str], None] = lambda text: None) -> None:
        self._launch, self._waiting, self._show = launch, list(checks), show
        self._known: dict[str, Outcome] = {}
        self._stack = contextlib.ExitStack()
        self._running: Running | None = None
        self._read = self._shown = 0
        self._started = False
        self._last, self._failed = "", ""
        self._deadline = 0.0

    def start(self) -> None:
        """Begin with the checks that remain, if none is under way; returns when all ranks are there."""
        if self._running is None and self._waiting:
            self._launch_ranks()
            while self._running is not None and not self._started:
                self._look()

    def outcome(self, check: str) -> Outcome:
        """Wait until it is known, and the last one until the job has ended.

        Raises:
            KeyError: it is none of this job's.
        """
        if check not in self._known and check not in self._waiting:
            raise KeyError(check)
        while check not in self._known or (self._running and not self._waiting):
            self.start()
            self._look()
        return self._known[check]

    def assert_passed(self, check: str) -> None:
        outcome = self.outcome(check)
        if outcome.failure:
            print(outcome.output)
            pytest.fail(outcome.failure, pytrace=False)

    def close(self) -> None:
        """Kill what is under way."""
        self._stack.close()
        self._running = None

    def _launch_ranks(self) -> None:
        self._results = Path(self._stack.enter_context(tempfile.TemporaryDirectory())) / "results.jsonl"
        launch = self._launch
        script = str(launch.folder / "run_checks.py")
        command = [script, str(self._results), str(launch.seconds), str(launch.grace), *self._waiting]
        self._running = self._stack.enter_context(
            Running(
                command_for(launch.launcher, launch.ranks, command),
                extra=dict(launch.environment),
                # For the checks and for what they share, wherever the job's processes are started.
                paths=(launch.folder, SUPPORT),
            )
        )
        self._read, self._shown, self._started, self._last, self._failed = 0, 0, False, "", ""
        self._deadline = time.monotonic() + START_SECONDS

    def _look(self) -> None:
        """Note what becomes known within a moment."""
        if self._running is None:
            return
        returncode = self._running.wait(0.1)
        output = self._running.output
        self._show(output[self._shown :])
        self._shown = len(output)
        self._take_results()
        if returncode is not None:
            self._take_end(f"ended with {returncode}", bad=returncode != 0)
        elif time.monotonic() > self._deadline:
            self._take_end("hung", bad=True)

    def _take_results(self) -> None:
        text = self._results.read_text() if self._results.exists() else ""
        lines = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
        for line in lines[self._read :]:
            self._read += 1
            result = json.loads(line)
            self._deadline = time.monotonic() + self._launch.seconds + self._launch.grace
            if result["check"] == STARTED:
                self._started = True
                continue
            assert self._waiting[0] == result["check"], (self._waiting[0], result)
            if result["failure"]:
                # The job is about to end; then all of the output is there.
                self._failed = result["failure"]
                self._deadline = time.monotonic() + self._launch.grace
            else:
                self._last = self._waiting.pop(0)
                self._known[self._last] = Outcome(seconds=result["seconds"])

    def _take_end(self, how: str, bad: bool) -> None:
        assert self._running is not None
        self._running.kill()
        output = self._running.output
        if self._failed:
            self._note(self._waiting.pop(0), self._failed, output)
        elif not self._started:
            what = f"{self._launch} {how} before its first check"
            first, *rest = self._waiting
            self._note(first, what, output)
            self._known.update({check: Outcome(f"{what}; its output is shown with {first}") for check in rest})
            self._waiting = []
        elif self._waiting:
            self._note(self._waiting.pop(0), f"{self._launch} {how} in this check", output)
        elif bad:
            self._note(self._last, f"{self._launch} {how} after its last check, which is this one", output)
        self.close()

    def _note(self, check: str, failure: str, output: str) -> None:
        """With what has been printed since the first rank began the check; before all checks, with everything."""
        _, begun, own = output.partition(begins(check))
        own = own.replace(begins(check), "") if begun else output
        if len(own) > 2 * OUTPUT_CHARACTERS:
            own = f"{own[:OUTPUT_CHARACTERS]}\n[...]\n{own[-OUTPUT_CHARACTERS:]}"
        self._known[check] = Outcome(failure, own)


class Jobs:
    """The jobs of a session, each with all the checks that have been selected for its launch.

    Args:
        items: all tests that will run.
    """

    def __init__(self, items: Iterable[pytest.Item]) -> None:
        self._selected: dict[Launch, list[str]] = {}
        self._jobs: dict[Launch, Job] = {}
        for item in items:
            parameters = item.callspec.params if hasattr(item, "callspec") else {}
            if isinstance(parameters.get("launch"), Launch):
                self._selected.setdefault(parameters["launch"], []).append(parameters["check"])

    def started(self, launch: Launch) -> Job:
        """The launch's job, begun; and no other is under way."""
        if launch not in self._jobs:
            self.close()
            self._jobs[launch] = Job(launch, self._selected[launch])
        self._jobs[launch].start()
        return self._jobs[launch]

    def close(self) -> None:
        for job in self._jobs.values():
            job.close()
