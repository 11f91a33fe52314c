"""What the benchmark of step times makes of its rows: efficiency, targets, errors of the cost model, and the page."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from cluster import scaling, scaling_report
from support.results import Results

from horovod_dgc import DGC, cost, shapes

ROOT = Path(__file__).parents[2]
FREE = {"encode": 0.0, "commit": 0.0, "decode": 0.0, "tensor": 0.0}


def row(**seconds: float) -> dict[str, Any]:
    """A job in which every step of a contender but one took as long as given, or 2 s, and 1 s without exchange."""
    steps = {name: [2.0] * 3 for name in scaling.CONTENDERS} | {scaling.ALONE: [0.98, 1.0, 1.01]}
    steps |= {name: [9.0, value, value] for name, value in seconds.items()}
    return {"seconds": steps, "rates": {name: FREE for name in scaling.PREDICTED}, "compute": 0.7}


def test_medians_count() -> None:
    found = row(DGC=1.25)
    assert scaling_report.step_seconds(found, "DGC") == 1.25
    assert scaling_report.exchange_seconds(found, "DGC") == 0.25
    assert scaling_report.efficiency(found, "DGC") == 0.8


def test_targets_compare_dgc_with_dense_on_a_network_ten_times_as_fast() -> None:
    rows = {
        ("resnet50", 2, "100mbit"): row(DGC=1.5),
        ("resnet50", 2, "1gbit"): row(DGC=1.1, dense=6.0),
        ("resnet50", 2, "10gbit"): row(dense=2.2),
        ("lstm-ptb", 4, "1gbit"): row(),
    }
    line = scaling_report.targets(rows).splitlines()[-1]
    # 2.2 / 1.1 and 1.2 / 0.1; 6.0 / 1.5 and 5.0 / 0.5; 1.1 / 1. A model without all three rates has no line.
    assert line == "| resnet50, 2 hosts | step 2.00, exchange 12.00 | step 4.00, exchange 10.00 | 1.10 |"
    # Steps without exchange vary by 0.03 s, so an exchange of 0.02 s is none.
    rows["resnet50", 2, "1gbit"] = row(DGC=1.02, dense=6.0)
    assert "| step 2.16, exchange not told |" in scaling_report.targets(rows)


def test_predictions_take_the_step_without_exchange_for_computation() -> None:
    key, found = ("resnet50", 4, "1gbit"), row()
    cluster = cost.Cluster(4, 1e9 / 8)
    for name, method in (("dense", None), ("DGC", DGC())):
        told = cost.predict(shapes.resnet50(), method, cluster, 1.0, rates=cost.Rates(), overlap=scaling_report.OVERLAP)
        assert scaling_report.predicted_seconds(key, found, name) == told.step


def test_errors_are_of_the_prediction() -> None:
    key = ("resnet50", 4, "1gbit")
    told = {name: scaling_report.predicted_seconds(key, row(), name) for name in scaling.PREDICTED}
    exact = {key: row(**told)}
    assert "| dense | 0 % | +0 % | +0 % |" in scaling_report.errors(exact)
    half = {key: row(**{**told, "dense": 2 * told["dense"]})}
    assert "| dense | 50 % | -50 % | +0 % |" in scaling_report.errors(half)


@pytest.mark.parametrize("name", scaling.PREDICTED)
def test_what_is_predicted_is_what_the_worker_is_told(name: str) -> None:
    kind, *arguments = scaling.CONTENDERS[name]
    method = scaling.PREDICTED[name]
    assert (kind, arguments) == ("dense", []) if method is None else ("method", [method])


def test_the_page_is_what_the_committed_rows_give(tmp_path: Path) -> None:
    (tmp_path / "scaling.md").write_text((ROOT / "docs" / "scaling.md").read_text())
    results = Results(ROOT / "benchmarks" / "cluster" / "scaling.jsonl", scaling.KEY)
    rows = scaling_report.found(scaling.settings(), results)
    assert len(rows) == len(scaling.MODELS) * len(scaling.HOSTS) * len(scaling.RATES)
    scaling_report.write(tmp_path, rows)
    assert (tmp_path / "scaling.md").read_text() == (ROOT / "docs" / "scaling.md").read_text()
