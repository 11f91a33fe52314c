"""The runner of checks itself: each way in which a check can end is told, and the others are run all the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from outcomes import Job, Launch, names

HERE = Path(__file__).parent
CHECKS = names(HERE, "faulty")


@pytest.fixture(scope="module", params=["mpirun", pytest.param("horovodrun", marks=pytest.mark.long)])
def faulty(request: pytest.FixtureRequest) -> Iterator[Job]:
    job = Job(Launch(HERE, request.param, 2, seconds=4.0, grace=4.0), CHECKS)
    yield job
    job.close()


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("check", "failure", "printed"),
    [
        ("check_passes", "", ""),
        ("check_fails_on_one_rank", "AssertionError: the reason", "about to fail"),
        ("check_fails_while_another_rank_waits", "in this check", "AssertionError: nobody comes"),
        ("check_hangs", "hung in this check", "in check_hangs"),
        ("check_dies", "in this check", "about to die"),
        ("check_passes_after_all_that", "", ""),
    ],
    ids=CHECKS,
)
def test_how_a_check_ends(faulty: Job, check: str, failure: str, printed: str) -> None:
    outcome = faulty.outcome(f"faulty::{check}")
    assert failure in outcome.failure and bool(failure) == bool(outcome.failure)
    assert printed in outcome.output
    others = {"about to fail", "about to hang", "about to die", "nothing to see"} - {printed}
    assert check == "check_hangs" or not any(words in outcome.output for words in others), "another check's output"


def test_a_job_that_cannot_start_fails_every_check_at_once() -> None:
    job = Job(Launch(HERE, "mpirun", 2), ["nowhere::check_a", "nowhere::check_b"])
    first, second = job.outcome("nowhere::check_a"), job.outcome("nowhere::check_b")
    assert "before its first check" in first.failure and "No module named 'checks.nowhere'" in first.output
    assert "shown with nowhere::check_a" in second.failure
    job.close()
