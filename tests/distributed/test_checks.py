"""Each function of ``checks/`` on 2, 3 and 4 real processes, under horovodrun with Gloo and under mpirun."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from launch import LAUNCHERS
from outcomes import TIMEOUT_SECONDS, grid, outcome

HERE = Path(__file__).parent
MODULES = ("checkpoint_refusals", "checkpoints", "dense", "invariants", "models", "options", "refusals")
CASES = [
    *grid(HERE, MODULES, itertools.product(LAUNCHERS, (2, 3, 4))),
    *grid(HERE, ["elastic", "family"], [("mpirun", 2), ("horovodrun", 3)]),
]


@pytest.mark.parametrize(("launcher", "ranks", "module", "check"), CASES)
@pytest.mark.timeout(TIMEOUT_SECONDS + 60)
def test_check(launcher: str, ranks: int, module: str, check: str) -> None:
    failure = outcome(HERE, launcher, ranks, module)[check]
    assert not failure, failure
