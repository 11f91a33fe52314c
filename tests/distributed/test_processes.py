"""What needs a job of its own: a rank that does not take part, and nodes whose number changes."""

from __future__ import annotations

from pathlib import Path

import pytest
from launch import SUPPORT, Finished, run

HERE = Path(__file__).parent
LONG = pytest.mark.long


@pytest.mark.parametrize(
    ("launcher", "ranks"),
    [
        ("mpirun", 2),
        pytest.param("mpirun", 3, marks=LONG),
        pytest.param("horovodrun", 2, marks=LONG),
        pytest.param("horovodrun", 3, marks=LONG),
    ],
)
def test_a_rank_without_compression_is_an_error_and_no_hang(launcher: str, ranks: int) -> None:
    finished = run(launcher, ranks, [str(HERE / "rank_without_compression.py")], timeout=120, paths=(HERE,))
    assert finished.returncode, f"returncode {finished.returncode}:\n{finished.output}"
    assert "no answer from every rank" in finished.output
    assert "agreement_timeout=3" in finished.output


@pytest.fixture(scope="module")
def resized(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Finished]:
    """Jobs of both reductions, by their number of ranks: the first saves, and two load what it has saved."""
    folder = tmp_path_factory.mktemp("resized")
    finished = {}
    for ranks, stage in ((4, "save"), (2, "load"), (6, "load")):
        command = [str(HERE / "hierarchical_resize.py"), str(folder), stage]
        finished[ranks] = run("mpirun", ranks, command, timeout=120, paths=(HERE, SUPPORT))
    return finished


@pytest.mark.parametrize("reduction", ["sum", "average"])
@pytest.mark.timeout(400)
def test_hierarchical_checkpoints_on_another_number_of_nodes(reduction: str, resized: dict[int, Finished]) -> None:
    assert f"{reduction}: saved" in resized[4].output, resized[4].output
    for ranks in (2, 6):
        assert f"{reduction}: nothing is lost" in resized[ranks].output, resized[ranks].output
    assert all(finished.returncode == 0 for finished in resized.values())
