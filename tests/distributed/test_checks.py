"""Each function of ``checks/`` on 2, 3 and 4 real processes, under horovodrun with Gloo or under mpirun."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from launch import LAUNCHERS
from outcomes import TIMEOUT_SECONDS, grid, outcome

HERE = Path(__file__).parent
# Every number of ranks under every launcher.
EVERYWHERE = ("invariants", "refusals")
# Every number of ranks and every launcher.
MODULES = ("checkpoint_refusals", "checkpoints", "dense", "models", "options")
# Horovod asks the ranks of each process set for news in turn, which takes long where processes share a core.
SECONDS = {"hierarchy": 3 * TIMEOUT_SECONDS}
# There a rank may hear nothing from another for longer than the 30 seconds that Gloo waits by itself.
ENVIRONMENT = {"hierarchy": (("HOROVOD_GLOO_TIMEOUT_SECONDS", "120"),)}
CASES = [
    *grid(HERE, EVERYWHERE, itertools.product(LAUNCHERS, (2, 3, 4))),
    *grid(HERE, MODULES, [("horovodrun", 2), ("mpirun", 3), ("mpirun", 4)]),
    *grid(HERE, ["hierarchy"], [("nodes", 4), ("mpirun", 4)]),
    *grid(HERE, ["elastic", "family", "precision"], [("mpirun", 2), ("horovodrun", 3)]),
]


@pytest.mark.parametrize(("launcher", "ranks", "module", "check"), CASES)
@pytest.mark.timeout(max(SECONDS.values()) + 60)
def test_check(launcher: str, ranks: int, module: str, check: str) -> None:
    seconds = SECONDS.get(module, TIMEOUT_SECONDS)
    environment = ENVIRONMENT.get(module, ())
    failure = outcome(HERE, launcher, ranks, module, environment=environment, timeout=seconds)[check]
    assert not failure, failure
