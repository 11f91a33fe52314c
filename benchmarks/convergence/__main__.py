"""Does it keep the accuracy? Trainings on real data, dense and compressed, with several seeds.

Workers are simulated in one process, through the encoding and decoding of a real job. A finished run is a row of
results.jsonl beside this file and is not made again unless its settings have changed; tables and plots are written
from these rows alone. The parts run in the order in which they are listed.

    python benchmarks/convergence
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).parents[1]))
from convergence import plan, processes, simulations, summary
from support import options
from support.results import Results

FOLDER = Path(__file__).parent


@click.command(help=__doc__.split("\n\n")[0])
@click.option(
    "--part",
    "parts",
    type=click.Choice([*plan.PARTS, processes.PART]),
    multiple=True,
    help="Only this one; may be given several times.",
)
@click.option("--task", "tasks", type=click.Choice(list(plan.TASKS)), multiple=True, help="Only this one, likewise.")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Simulated runs at a time.")
@click.option(
    "--epochs", type=click.IntRange(1), help="In place of the tasks' own; the density then falls for the same share."
)
@options.kept_rows(FOLDER / "results.jsonl", "convergence")
@options.smallest(rows="convergence", page="convergence", parts=("main",), tasks=("digits",), epochs=1)
@click.option("--data-dir", type=click.Path(file_okay=False, path_type=Path), help="Your own copy of a task's data.")
def main(
    parts: tuple[str, ...],
    tasks: tuple[str, ...],
    jobs: int,
    epochs: int | None,
    path: Path,
    docs: Path,
    tables_only: bool,
    data_dir: Path | None,
) -> None:
    if data_dir is not None and len(tasks) != 1:
        raise click.BadParameter("goes with exactly one --task, whose data it holds", param_hint="--data-dir")
    if epochs is not None:
        plan.set_epochs(epochs)
    results = Results(path, plan.KEY)
    if not tables_only:
        chosen = [runs() for name, runs in plan.PARTS.items() if name in (parts or plan.PARTS)]
        runs = [run for part in chosen for run in part if run.task in (tasks or plan.TASKS)]
        simulations.carry_out(runs, results, jobs, data_dir)
        if not parts or processes.PART in parts:
            processes.run_all(results)
    summary.write(docs, results)


if __name__ == "__main__":
    main()
