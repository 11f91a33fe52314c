"""The benchmark of step times runs: every contender, on two hosts, and a finished job is not run again."""

from __future__ import annotations

from pathlib import Path

import pytest
from cluster import scaling
from support.results import Results

SHORT = scaling.Setting("resnet50", hosts=2, rate="unshaped", compute=0.05, steps=3, budget=1.0)


@pytest.mark.timeout(300)
def test_every_contender_trains_on_both_hosts(tmp_path: Path) -> None:
    results = Results(tmp_path / "scaling.jsonl", scaling.KEY)
    scaling.carry_out([SHORT], results)
    row = results.get(SHORT.key)
    assert row is not None
    assert list(row["seconds"]) == list(scaling.CONTENDERS)
    for seconds in row["seconds"].values():
        # Each step waits for as long as it is told to, whatever else it does.
        assert len(seconds) == SHORT.steps and min(seconds) > SHORT.compute
    assert set(row["rates"]) == set(scaling.PREDICTED)
    before = (tmp_path / "scaling.jsonl").read_text()
    scaling.carry_out([SHORT], Results(tmp_path / "scaling.jsonl", scaling.KEY))
    assert (tmp_path / "scaling.jsonl").read_text() == before
