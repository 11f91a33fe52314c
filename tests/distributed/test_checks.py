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
# PowerSGD is allreduced, and of three summands an allreduce's rounding depends on what Horovod happens to fuse.
ENVIRONMENT = {"elastic": (("HOROVOD_FUSION_THRESHOLD", "0"),)}
CASES = [
    *grid(HERE, EVERYWHERE, itertools.product(LAUNCHERS, (2, 3, 4))),
    *grid(HERE, MODULES, [("horovodrun", 2), ("mpirun", 3), ("mpirun", 4)]),
    *grid(HERE, ["hierarchy"], [("nodes", 4), ("mpirun", 4)]),
    *grid(HERE, ["elastic", "family", "precision"], [("mpirun", 2), ("horovodrun", 3)]),
]


@pytest.mark.parametrize(("launcher", "ranks", "module", "check"), CASES)
@pytest.mark.timeout(TIMEOUT_SECONDS + 60)
def test_check(launcher: str, ranks: int, module: str, check: str) -> None:
    failure = outcome(HERE, launcher, ranks, module, environment=ENVIRONMENT.get(module, ()))[check]
    assert not failure, failure
