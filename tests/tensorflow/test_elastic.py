"""TensorFlow: an elastic job goes on when workers die, leave and join, and loses only what a lost one had not sent."""

from __future__ import annotations

from pathlib import Path

import elastic_jobs
import pytest

SCRIPT = Path(__file__).parent / "elastic_training.py"
pytestmark = pytest.mark.timeout(elastic_jobs.LIMIT_SECONDS + 60)


@pytest.mark.parametrize(("op", "rank"), [("sum", 2)])
def test_a_worker_is_killed_and_another_joins(op: str, rank: int, tmp_path: Path) -> None:
    elastic_jobs.check_that_a_killed_worker_is_replaced(SCRIPT, tmp_path, op, rank)


@pytest.mark.long
def test_a_host_is_taken_away(tmp_path: Path) -> None:
    elastic_jobs.check_that_a_host_can_be_taken_away(SCRIPT, tmp_path)


@pytest.mark.long
def test_a_worker_joins_where_there_is_momentum(tmp_path: Path) -> None:
    elastic_jobs.check_that_a_worker_can_join_where_there_is_momentum(SCRIPT, tmp_path)
