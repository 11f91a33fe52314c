"""What needs a job of its own: one worker, and a rank that does not take part."""

from __future__ import annotations

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
@pytest.mark.parametrize("ranks", [2, 3])
def test_a_rank_without_compression_is_an_error_and_no_hang(launcher: str, ranks: int) -> None:
    finished = run(launcher, ranks, [str(HERE / "rank_without_compression.py")], timeout=120)
    assert finished.returncode, f"returncode {finished.returncode}:\n{finished.output}"
    assert "no answer from every rank" in finished.output
    assert "agreement_timeout=3" in finished.output
