"""What needs a job of its own: a rank that does not take part, and the other framework."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from launch import run

HERE = Path(__file__).parent


@pytest.mark.parametrize("launcher", ["mpirun", pytest.param("horovodrun", marks=pytest.mark.long)])
def test_a_rank_without_compression_is_an_error_and_no_hang(launcher: str) -> None:
    finished = run(launcher, 3, [str(HERE / "rank_without_compression.py")], timeout=120, paths=(HERE,))
    assert finished.returncode, f"returncode {finished.returncode}:\n{finished.output}"
    assert "no answer from every rank" in finished.output
    assert "agreement_timeout=3" in finished.output


@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.long)])
@pytest.mark.timeout(540)
def test_both_frameworks_hold_the_same_state_and_send_the_same_bytes(ranks: int, tmp_path: Path) -> None:
    """Residuals and velocities after every step, and the bytes counted, are equal to the bit."""
    for framework in ("torch", "tensorflow"):
        command = [str(HERE / "same_gradients.py"), framework, str(tmp_path)]
        finished = run("mpirun", ranks, command, timeout=240, paths=(HERE,))
        assert finished.returncode == 0, finished.output
    for rank in range(ranks):
        torch, tensorflow = (
            dict(np.load(tmp_path / f"{framework}-{rank}.npz")) for framework in ("torch", "tensorflow")
        )
        assert torch.keys() == tensorflow.keys()
        differ = [name for name in torch if torch[name].tobytes() != tensorflow[name].tobytes()]
        assert not differ, f"rank {rank}: {differ}"
        residuals = [value for name, value in torch.items() if "residual" in name]
        assert len(residuals) > 10 and any(value.any() for value in residuals)
