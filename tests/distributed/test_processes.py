"""What needs a job of its own: one worker, and a rank that does not take part."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from launch import LAUNCHERS, run

HERE = Path(__file__).parent


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_one_worker_is_plain_sgd(launcher: str) -> None:
    finished = run(launcher, 1, [str(HERE / "one_worker.py")], timeout=120)
    assert finished.returncode == 0, finished.output
    assert "one worker is plain SGD" in finished.output


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_one_worker_saves_and_loads(launcher: str) -> None:
    # For what its checks share with those of several ranks.
    paths = os.pathsep.join([str(HERE), str(HERE.parent / "support")])
    script = str(HERE / "one_worker_checkpoints.py")
    finished = run(launcher, 1, [script], timeout=120, extra={"PYTHONPATH": paths})
    assert finished.returncode == 0, finished.output
    assert "one worker's checkpoints are lossless" in finished.output


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("ranks", [2, 3])
def test_a_rank_without_compression_is_an_error_and_no_hang(launcher: str, ranks: int) -> None:
    finished = run(launcher, ranks, [str(HERE / "rank_without_compression.py")], timeout=120)
    assert finished.returncode, f"returncode {finished.returncode}:\n{finished.output}"
    assert "no answer from every rank" in finished.output
    assert "agreement_timeout=3" in finished.output


@pytest.mark.parametrize("reduction", ["sum", "average"])
@pytest.mark.timeout(400)
def test_hierarchical_checkpoints_on_another_number_of_nodes(reduction: str, tmp_path: Path) -> None:
    paths = os.pathsep.join([str(HERE), str(HERE.parent / "support")])
    for ranks, stage, said in ((4, "save", ""), (2, "load", "nothing is lost"), (6, "load", "nothing is lost")):
        command = [str(HERE / "hierarchical_resize.py"), str(tmp_path), reduction, stage]
        finished = run("mpirun", ranks, command, timeout=120, extra={"PYTHONPATH": paths})
        assert finished.returncode == 0, f"{ranks} ranks, {stage}:\n{finished.output}"
        assert said in finished.output
