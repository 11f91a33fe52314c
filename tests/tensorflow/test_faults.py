"""TensorFlow: a rank that dies in the middle of an exchange is an error on the others, and the job resumes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from faults import FAULTY, JOB_SECONDS, POINTS, ends, resumes_at, train, undisturbed

SCRIPT = Path(__file__).parent / "faulty_training.py"
NOTICED_SECONDS = 5.0


@pytest.mark.parametrize(
    "points", [pytest.param(("gather",), id="once"), pytest.param(POINTS, id="everywhere", marks=pytest.mark.long)]
)
@pytest.mark.timeout(5 * JOB_SECONDS)
def test_the_others_get_an_error_and_the_job_resumes_bit_for_bit(points: tuple[str, ...], tmp_path: Path) -> None:
    """One fault after another, each in a job that goes on from where the last one ended."""
    step = 0
    for point in points:
        step += 6
        job = train(SCRIPT, "horovodrun", tmp_path, "kill", point, str(FAULTY), str(step))
        what = f"killed in {point}:\n{job.finished.output[-3000:]}"
        assert job.finished.returncode not in (0, None), what
        seen = [json.loads(text) for text in job.read("seen-*")]
        # horovodrun may end a rank before it has said what it saw.
        assert seen, what
        for survivor in seen:
            # By one of these words Horovod's elastic.run tells what can be gone on from.
            assert re.search("HorovodInternalError|HorovodAll(reduce|gather)", survivor["error"]), f"{survivor} {what}"
            assert survivor["seconds"] < NOTICED_SECONDS, f"{survivor} {what}"
    job = train(SCRIPT, "horovodrun", tmp_path)
    assert job.finished.returncode == 0, job.finished.output[-3000:]
    assert ends(job, resumes_at(step)) == undisturbed(SCRIPT, "horovodrun")
