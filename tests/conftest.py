"""What the tests of several folders share."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from outcomes import Job, Jobs, Launch


def pytest_configure(config: pytest.Config) -> None:
    """Who is told to end (a time limit, CI) ends its jobs first; xdist sees to its own processes."""
    if not hasattr(config, "workerinput"):
        signal.signal(signal.SIGTERM, signal.default_int_handler)


@pytest.fixture(scope="session")
def jobs(request: pytest.FixtureRequest) -> Iterator[Jobs]:
    found = Jobs(request.session.items)
    yield found
    found.close()


@pytest.fixture
def job(jobs: Jobs, launch: Launch) -> Job:
    """The job that runs this test's check, and with it all others that have been selected for the same launch."""
    return jobs.started(launch)
