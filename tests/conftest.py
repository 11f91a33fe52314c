"""What the tests of several folders share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from outcomes import Job, Jobs, Launch


@pytest.fixture(scope="session")
def jobs(request: pytest.FixtureRequest) -> Iterator[Jobs]:
    found = Jobs(request.session.items)
    yield found
    found.close()


@pytest.fixture
def job(jobs: Jobs, launch: Launch) -> Job:
    """The job that runs this test's check, and with it all others that have been selected for the same launch."""
    return jobs.started(launch)
