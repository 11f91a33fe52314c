"""The study of convergence: tasks, verdicts, rows that are not made twice, and a short training with a real bound."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import made_up_data
import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from convergence import plan, simulations, summary, verdicts
from support import simulated, tasks
from support.contenders import DENSE, Contender
from support.results import Results

from horovod_dgc import DGC

ROOT = Path(__file__).parents[2]
rng = np.random.default_rng(0)


@pytest.fixture
def spoken(tmp_path: Path) -> Path:
    return made_up_data.write_spoken_digits(tmp_path, 60)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    for name, words in (("ca01", 400), ("ca09", 200), ("ca10", 700)):
        (tmp_path / name).write_text(" ".join(f"w{word}/nn" for word in rng.integers(0, 9, words)))
    return tmp_path


SPOKEN = tasks.DigitTraining(epochs=1, workers=2, batch=4, channels=8, weight_decay=0.0, warmup=0.5)
TEXT = tasks.WordTraining(
    epochs=2, workers=2, batch=2, vocabulary=8, width=8, length=5, weight_decay=0.0, clip_norm=0.1, warmup=0.5
)


def trained(contender: Contender, common: simulated.Training, data_dir: Path) -> tuple[simulated.Task, dict]:
    training = contender.training(common)
    task = training.task(data_dir)
    method = contender.method_in(training, task.steps_per_epoch)
    return task, simulated.train(method, contender.rate, task, points=2)


def weights(task: simulated.Task) -> np.ndarray:
    return torch.cat([p.detach().flatten() for p in task.model.parameters()]).numpy()


def test_words_train_and_carry_their_state_on(text: Path) -> None:
    task, found = trained(plan.MAIN[DENSE], TEXT, text)
    curve = found["curve"]
    assert task.steps == 2 * ((400 // 4 - 1) // 5) and [point[0] for point in curve] == [task.steps // 2, task.steps]
    assert found["figure"] == pytest.approx(math.exp(curve[-1][3]))
    assert curve[-1][4] == task.steps * found["last_nbytes"] == task.steps * 4 * len(weights(task))
    state = task.model.start(2)
    assert not torch.equal(task._states[0][0], state[0])


def test_the_same_settings_give_the_same_numbers_and_another_seed_others(spoken: Path) -> None:
    rows = [trained(plan.MAIN["DGC 1 %"], replace(SPOKEN, seed=seed), spoken)[1] for seed in (0, 0, 1)]
    assert rows[0] == rows[1]
    assert rows[0]["curve"] != rows[2]["curve"]


def test_clipping_is_local_for_methods_that_can_and_after_the_exchange_for_others(text: Path) -> None:
    """One step at rate 1 without momentum: how far the weights go is the norm of the clipped update."""
    common = replace(TEXT, epochs=1, momentum=0.0, rate=1.0, clip_norm=0.001)
    for density, expected in ((1.0, 0.001 * math.sqrt(2)), (None, 0.001)):
        method = plan.MAIN[DENSE].method if density is None else DGC(density=density, values="float32")
        contender = Contender("one", method, changes={"warmup": 0})
        task = common.task(text)
        before = weights(task)
        job = simulated.Job(contender.method_in(common, task.steps_per_epoch), None, task)
        batches = next(task.batches())
        # Both workers have the same gradient, so that the mean is as long as each of them.
        job.run([batches[0], batches[0]])
        share = 1 / max(1, task.steps // 10)
        assert np.linalg.norm(weights(task) - before) == pytest.approx(expected * share, rel=1e-3)


def test_decay_after_the_exchange_is_sgd_where_everything_is_sent(spoken: Path) -> None:
    common = replace(SPOKEN, weight_decay=0.1, momentum=0.0)
    local, _ = trained(plan.MAIN[DENSE], common, spoken)
    aggregated, _ = trained(replace(plan.MAIN[DENSE], changes={"decay": "aggregated"}), common, spoken)
    without, _ = trained(plan.MAIN[DENSE], replace(common, weight_decay=0.0), spoken)
    np.testing.assert_allclose(weights(local), weights(aggregated), rtol=1e-4, atol=1e-6)
    assert not np.allclose(weights(local), weights(without), atol=1e-4)


def test_rows_are_not_made_twice(spoken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "results.jsonl"
    monkeypatch.setitem(plan.TASKS, "digits", SPOKEN)
    runs = [plan.run_of("digits", plan.MAIN[name], 0) for name in (DENSE, "DGC 1 %")]
    simulations.carry_out(runs[:1], Results(path, plan.KEY), 1, spoken)
    simulations.carry_out(runs, Results(path, plan.KEY), 2, spoken)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["contender"] for row in rows] == [DENSE, "DGC 1 %"]
    results = Results(path, plan.KEY)
    assert all(results.get(run.key) is not None for run in runs)
    assert results.get(plan.run_of("digits", plan.MAIN[DENSE], 1).key) is None
    other = plan.run_of("digits", Contender(DENSE, plan.MAIN[DENSE].method, changes={"warmup": 9.0}), 0)
    assert results.get(other.key) is None


def test_every_run_of_the_study_is_another_row() -> None:
    keys = [json.dumps(run.key, sort_keys=True) for runs in plan.PARTS.values() for run in runs()]
    assert len(keys) == len(set(keys))


def test_verdict() -> None:
    dense = {0: 0.90, 1: 0.92, 2: 0.91}
    near = verdicts.compared({0: 0.90, 1: 0.91, 2: 0.90}, dense, higher_is_better=True)
    assert near is not None and near.seeds == 3
    assert near.deficit == pytest.approx(0.02 / 3)
    assert near.spread == pytest.approx(0.01)
    # Student's t with 2 degrees of freedom times the standard error of 0, 0.01, 0.01.
    assert near.margin == pytest.approx(4.303 * math.sqrt(1 / 3) * 0.01 / math.sqrt(3), rel=1e-3)
    assert near.verdict == "within"
    far = verdicts.compared({0: 0.88, 1: 0.91, 2: 0.89}, dense, higher_is_better=True)
    assert far is not None and far.verdict == "**worse**"
    # A perplexity is the better the lower it is.
    lower = verdicts.compared({0: 0.88, 1: 0.91, 2: 0.89}, dense, higher_is_better=False)
    assert lower is not None and lower.verdict == "within" and lower.deficit < 0
    assert verdicts.compared({5: 0.9}, dense, higher_is_better=True) is None
    one = verdicts.compared({0: 0.9}, dense, higher_is_better=True)
    assert one is not None and one.verdict == "too few seeds" and one.margin is None


def test_tables_show_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / summary.PAGE).write_text((ROOT / "docs" / summary.PAGE).read_text())
    results = Results(tmp_path / "results.jsonl", plan.KEY)
    row = {"figure": 0.9, "last_nbytes": 10, "mean_nbytes": 20, "dense_nbytes": 1000, "steps_per_epoch": 5}
    curve = [[step, 1.0, 0.1 * step, 1.0, 10 * step] for step in range(1, 9)]
    results.add(plan.run_of("digits", plan.MAIN[DENSE], 0).key, {**row, "curve": curve})
    results.add(plan.run_of("digits", plan.MAIN["fp16"], 0).key, {**row, "figure": None, "curve": []})
    summary.write(tmp_path, results)
    written = (tmp_path / summary.PAGE).read_text().split("convergence, digits: ")[1]
    lines = written.splitlines()
    found = {line.split(" | ")[0].strip("| "): line for line in lines if line.startswith("| ")}
    assert "| 1 | 90.00 |" in found[DENSE] and "| 10 | 100 | 20 | 50 |" in found[DENSE]
    assert "missing" in found["DGC 1 %"] and "diverged in 1" in found["fp16"]
    assert (tmp_path / summary.FOLDER / "digits.svg").stat().st_size > 1000


def test_the_page_is_what_the_committed_rows_give(tmp_path: Path) -> None:
    page = (ROOT / "docs" / summary.PAGE).read_text()
    (tmp_path / summary.PAGE).write_text(page)
    summary.write(tmp_path, Results(ROOT / "benchmarks/convergence/results.jsonl", plan.KEY))
    assert (tmp_path / summary.PAGE).read_text() == page
