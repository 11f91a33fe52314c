"""A few hundred steps of ``soak.py``; ``make soak`` runs it for thousands."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from launch import SUPPORT, run

HERE = Path(__file__).parent
STEPS = int(os.environ.get("SOAK_STEPS", "250"))
TIMEOUT_SECONDS = 180 + STEPS
# Memory from step 150 on. What Horovod itself gains, a few hundred bytes a step, is the second term; see
# docs/reliability.md.
GROWTH_MIB = 4 + 1 / 1024 * STEPS


@pytest.mark.long
@pytest.mark.parametrize(("launcher", "ranks"), [("horovodrun", 2), ("mpirun", 3)])
@pytest.mark.timeout(TIMEOUT_SECONDS + 60)
def test_soak(launcher: str, ranks: int, tmp_path: Path) -> None:
    result = tmp_path / "figures.json"
    command = [str(HERE / "soak.py"), str(STEPS), str(result)]
    finished = run(launcher, ranks, command, timeout=TIMEOUT_SECONDS, paths=(HERE, SUPPORT))
    assert finished.returncode == 0, finished.output[-6000:]
    figures = json.loads(result.read_text())
    for rank, of_rank in enumerate(figures):
        warm = of_rank["rss"][2]
        peak = max(of_rank["rss"])
        what = f"{launcher} -np {ranks}, rank {rank}: {STEPS} steps, {of_rank['seconds']:.0f} s, {warm:.1f} MiB"
        print(f"{what}, at most {peak:.1f}", file=sys.stderr)
        assert peak - warm < GROWTH_MIB, f"{what}, then {[round(size, 1) for size in of_rank['rss']]}"
