"""Carries out the simulated runs, several at a time."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

from convergence import plan
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from support import report
from support.results import Results
from support.simulated import train


def simulate(run: plan.Run, data_dir: Path | None) -> dict[str, Any]:
    """The row's findings: final figure, bytes and curve, in few digits."""
    task = run.training.task(data_dir)
    method = run.contender.method_in(run.training, task.steps_per_epoch)
    found = train(method, run.contender.rate, task, plan.POINTS)
    curve = [[int(step), *(rounded(x) for x in values), int(sent)] for step, *values, sent in found["curve"]]
    return {
        "figure": None if found["figure"] is None else rounded(found["figure"]),
        "last_nbytes": found["last_nbytes"],
        "mean_nbytes": round(found["mean_nbytes"]),
        "dense_nbytes": 4 * sum(p.numel() for p in task.model.parameters()),
        "steps_per_epoch": task.steps_per_epoch,
        "curve": curve,
    }


def rounded(value: float) -> float:
    return float(f"{value:.5g}")


def carry_out(runs: Iterable[plan.Run], results: Results, jobs: int, data_dir: Path | None) -> None:
    """Carry out what is not among the results yet, ``jobs`` runs at a time, in order."""
    missing = [run for run in runs if results.get(run.key) is None]
    columns = (TextColumn("{task.description:60}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with (
        Progress(*columns, console=report.CONSOLE) as progress,
        ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool,
    ):
        bar = progress.add_task("", total=len(missing))
        running: dict[Future[dict[str, Any]], plan.Run] = {}
        while missing or running:
            while missing and len(running) < jobs:
                run = missing.pop(0)
                running[pool.submit(simulate, run, data_dir)] = run
            names = "; ".join(f"{r.task}: {r.contender.name}, seed {r.training.seed}" for r in running.values())
            progress.update(bar, description=names)
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                results.add(running.pop(future).key, future.result())
                progress.advance(bar)
