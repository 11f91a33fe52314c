"""Tables between the markers of docs/convergence.md and plots beside it, from finished rows alone."""

from __future__ import annotations

import functools
import itertools
import statistics
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from convergence import plan, plots, processes
from convergence.verdicts import Comparison, compared, deviation
from support import report
from support.contenders import DENSE, Contender
from support.results import Results

PAGE = "convergence.md"
FOLDER = "convergence"
MISSING = "missing"
COLUMNS = ("", "seeds", "{figure}", "worse than dense by", "verdict", "last bytes", "dense /", "mean bytes", "dense /")
FIGURES = {True: "accuracy, %", False: "perplexity"}

Rows = dict[str, dict[int, dict[str, Any]]]  # finished rows by contender and seed; empty where none is


def found_rows(results: Results, wanted: Iterable[tuple[str, int, dict[str, Any]]]) -> Rows:
    """Those that are finished of the wanted rows, each given by its contender, seed and key."""
    rows: Rows = {}
    for contender, seed, key in wanted:
        seeds = rows.setdefault(contender, {})
        row = results.get(key)
        if row is not None:
            seeds[seed] = row
    return rows


def finished(results: Results, runs: Iterable[plan.Run]) -> Rows:
    return found_rows(results, ((run.contender.name, run.training.seed, run.key) for run in runs))


def measured(task: str) -> str:
    """A task and the figure that it is judged by."""
    return f"{task}, {FIGURES[plan.TASKS[task].higher_is_better]}"


def shown(value: float, higher_is_better: bool) -> str:
    return f"{100 * value:.2f}" if higher_is_better else f"{value:.2f}"


def with_spread(values: list[float], higher_is_better: bool) -> str:
    spread = deviation(values)
    mean = shown(statistics.fmean(values), higher_is_better)
    return mean if spread is None else f"{mean} ± {shown(spread, higher_is_better)}"


def cells(
    name: str, rows: Mapping[int, dict[str, Any]], dense: Mapping[int, dict[str, Any]], higher_is_better: bool
) -> list[str]:
    """One row of a table; a run whose loss was not finite counts as missing a figure, and is named."""
    if not rows:
        return [name, "0", *[MISSING] * (len(COLUMNS) - 2)]
    figures = {seed: row["figure"] for seed, row in rows.items() if row["figure"] is not None}
    some = next(iter(rows.values()))
    traffic = [
        part
        for field in ("last_nbytes", "mean_nbytes")
        for part in (f"{some[field]:,}", f"{some['dense_nbytes'] / some[field]:,.0f}")
    ]
    if len(figures) < len(rows):
        diverged = f"diverged in {len(rows) - len(figures)}"
        return [name, str(len(rows)), diverged, "", "**worse**", *traffic]
    against = {seed: row["figure"] for seed, row in dense.items() if row["figure"] is not None}
    comparison = None if name == DENSE else compared(figures, against, higher_is_better=higher_is_better)
    mean = with_spread(list(figures.values()), higher_is_better)
    return [name, str(len(rows)), mean, *distance(comparison, higher_is_better), *traffic]


def distance(comparison: Comparison | None, higher_is_better: bool) -> list[str]:
    if comparison is None:
        return ["", ""]
    deficit = shown(comparison.deficit, higher_is_better)
    if comparison.margin is not None:
        deficit += f" ± {shown(comparison.margin, higher_is_better)}"
    return [deficit, comparison.verdict]


def markdown(columns: Iterable[str], rows: Iterable[list[str]]) -> str:
    columns = list(columns)
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def table(rows: Rows, dense: Mapping[int, dict[str, Any]], higher_is_better: bool) -> str:
    columns = (column.format(figure=FIGURES[higher_is_better]) for column in COLUMNS)
    return markdown(columns, (cells(name, seeds, dense, higher_is_better) for name, seeds in rows.items()))


def beside_dense(results: Results, task: str, run: Callable[[Contender, int], plan.Run]) -> list[str]:
    """DGC at 0.1 % and dense under the same circumstances: both figures, seeds, distance and verdict.

    Args:
        run: the run of a contender and a seed under these circumstances.
    """
    higher_is_better = plan.TASKS[task].higher_is_better
    rows = finished(results, [run(plan.MAIN[name], seed) for name in (DENSE, plan.DGC_01) for seed in plan.SEEDS])
    dense, dgc = rows[DENSE], rows[plan.DGC_01]
    return [cells(DENSE, dense, dense, higher_is_better)[2], *cells(plan.DGC_01, dgc, dense, higher_is_better)[1:5]]


BESIDE_DENSE = ("dense", "seeds", plan.DGC_01, "worse by", "verdict")


def worker_table(results: Results) -> str:
    lines = []
    for workers in plan.WORKERS:
        figures = beside_dense(results, "images", functools.partial(plan.spread_run, workers))
        lines.append([str(workers), str(plan.IMAGES_PER_STEP // workers), *figures])
    return markdown(("workers", "images each", *BESIDE_DENSE), lines)


def length_table(results: Results) -> str:
    lines = []
    for task, lengths in plan.LENGTHS.items():
        for times in lengths:
            figures = beside_dense(results, task, functools.partial(plan.length_run, task, times))
            lines.append([measured(task), f"{times * plan.TASKS[task].epochs:g}", *figures])
    return markdown(("task", "epochs", *BESIDE_DENSE), lines)


def rate_table(results: Results) -> str:
    """Final figures of one seed, by task and peak learning rate; the task's own rate is in bold."""
    lines = []
    for task, rates in plan.RATES.items():
        training = plan.TASKS[task]
        for rate in rates:
            found = [results.get(plan.rate_run(task, each, rate).key) for each in plan.AT_RATES.values()]
            own = f"**{rate:g}**" if rate == training.rate else f"{rate:g}"
            lines.append([measured(task), own])
            lines[-1] += [final(row, training.higher_is_better) for row in found]
    return markdown(("task", "peak rate", *plan.AT_RATES), lines)


def final(row: Mapping[str, Any] | None, higher_is_better: bool) -> str:
    if row is None:
        return MISSING
    return "diverged" if row["figure"] is None else shown(row["figure"], higher_is_better)


def process_rows(results: Results) -> dict[str, Rows]:
    """By framework."""
    each = list(itertools.product(processes.COMPRESSIONS, processes.SEEDS))
    return {
        framework: found_rows(results, ((name, seed, processes.key_of(framework, name, seed)) for name, seed in each))
        for framework in processes.SCRIPTS
    }


def process_table(found: dict[str, Rows]) -> str:
    lines = [
        [framework, *cells(name, seeds, rows[DENSE], True)]
        for framework, rows in found.items()
        for name, seeds in rows.items()
    ]
    columns = [column.format(figure=FIGURES[True]) for column in COLUMNS]
    return markdown(["", *columns], lines)


def write(docs: Path, results: Results) -> None:
    """All tables and plots; what is not finished is shown as missing."""
    folder = docs / FOLDER
    folder.mkdir(exist_ok=True)
    tables = {}
    for task in plan.TASKS:
        listed = {**plan.MAIN, **plan.BEST_RATIO, **plan.ablations(task)}
        rows = finished(results, [plan.run_of(task, c, seed) for c in listed.values() for seed in plan.SEEDS])
        higher_is_better = plan.TASKS[task].higher_is_better
        tables[task] = table(rows, rows[DENSE], higher_is_better)
        plots.curves(folder / f"{task}.svg", {"": rows}, FIGURES[higher_is_better])
    family = finished(results, [plan.run_of("images", plan.MAIN[DENSE], plan.SEEDS[0]), *plan.family_runs()])
    tables["family"] = table(family, family[DENSE], True)
    tables["rates"] = rate_table(results)
    tables["workers"] = worker_table(results)
    tables["length"] = length_table(results)
    found = process_rows(results)
    tables[processes.PART] = process_table(found)
    plots.curves(folder / f"{processes.PART}.svg", found, FIGURES[True])
    page = docs / PAGE
    text = page.read_text()
    for name, content in tables.items():
        begin = f"<!-- convergence, {name}: written by make convergence -->"
        text = report.between(text, begin, f"<!-- convergence, {name}: end -->", content)
    page.write_text(text)
