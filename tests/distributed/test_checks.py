"""Each function of ``checks/`` on real processes, under horovodrun with Gloo or under mpirun.

Short, every check once; long, on 2, 3 and 4 processes and under both launchers.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from outcomes import Job, Launch, grid, long_grid, missing

HERE = Path(__file__).parent
# What is promised for every number of ranks under every launcher.
EVERYWHERE = ("invariants", "refusals")
MODULES = ("checkpoint_refusals", "checkpoints", "dense", "models", "options", "scripts")
# With more steps if long.
TRAININGS = ("family", "precision")
# PowerSGD is allreduced, and of three summands an allreduce's rounding depends on what Horovod happens to fuse.
UNFUSED = (("HOROVOD_FUSION_THRESHOLD", "0"),)


def launch(launcher: str, ranks: int, environment: tuple[tuple[str, str], ...] = ()) -> Launch:
    return Launch(HERE, launcher, ranks, environment)


SHORT = [
    *grid(MODULES + TRAININGS, launch("mpirun", 2)),
    *grid(EVERYWHERE, launch("horovodrun", 3)),
    *grid(["hierarchy"], launch("nodes", 4)),
    *grid(["elastic"], launch("mpirun", 2, UNFUSED)),
    *grid(["one_worker"], launch("mpirun", 1)),
]
LONG = [
    *long_grid(EVERYWHERE + TRAININGS, launch("mpirun", 2)),
    *long_grid(MODULES + TRAININGS, launch("horovodrun", 3)),
    *long_grid((*EVERYWHERE, *MODULES, "hierarchy"), launch("mpirun", 4)),
    *long_grid(EVERYWHERE, launch("horovodrun", 2)),
    *long_grid(EVERYWHERE, launch("mpirun", 3)),
    *long_grid(EVERYWHERE, launch("horovodrun", 4)),
    *long_grid(["elastic"], launch("horovodrun", 3, UNFUSED)),
    *long_grid(["one_worker"], launch("horovodrun", 1)),
]


@pytest.mark.parametrize(("launch", "check"), SHORT + LONG)
def test_check(job: Job, check: str) -> None:
    job.assert_passed(check)


def test_every_check_is_run_in_the_short_length() -> None:
    # The one for tests/gpu alone, the other for test_runner.py.
    assert {check.split("::")[0] for check in missing(HERE, SHORT)} == {"device", "faulty"}
