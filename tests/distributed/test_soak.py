"""A few hundred steps of ``soak.py``; ``make soak`` runs it for thousands."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from launch import run

HERE = Path(__file__).parent
STEPS = int(os.environ.get("SOAK_STEPS", "250"))
TIMEOUT_SECONDS = 180 + STEPS
# What the allocator and Horovod's buffers may still take after the warm-up; a leak of one tensor a step is far more.
GROWTH_MIB = 6.0


@pytest.mark.parametrize(("launcher", "ranks"), [("horovodrun", 2), ("mpirun", 3)])
@pytest.mark.timeout(TIMEOUT_SECONDS + 60)
def test_soak(launcher: str, ranks: int, tmp_path: Path) -> None:
    result = tmp_path / "figures.json"
    command = [str(HERE / "soak.py"), str(STEPS), str(result)]
    paths = os.pathsep.join([str(HERE), str(HERE.parent / "support")])
    finished = run(launcher, ranks, command, timeout=TIMEOUT_SECONDS, extra={"PYTHONPATH": paths})
    assert finished.returncode == 0, finished.output[-6000:]
    figures = json.loads(result.read_text())
    for rank, of_rank in enumerate(figures):
        rounded = {name: round(value, 1) for name, value in of_rank.items()}
        print(f"{launcher} -np {ranks}, rank {rank}: {rounded}", file=sys.stderr)
        assert of_rank["peak"] - of_rank["warm"] < GROWTH_MIB, rounded
