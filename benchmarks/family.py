"""Every method beside the others: bytes per step, time of encoding and decoding, accuracy after the same training.

Each method runs at its own defaults. Training is simulated with several workers in one process, through the
encoding and decoding of a real job; its data are Fashion-MNIST. What is finished is kept in a file of JSON lines, one
for each method and part, and not run again unless its settings have changed.

    python benchmarks/family.py
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from support import family_report, options, report
from support.contenders import DENSE, Contender, all_of_them
from support.one_tensor import Gradients, encode_and_decode
from support.results import Results
from support.simulated import Task, sent_nbytes, train
from support.tasks import ImageTraining

from horovod_dgc import shapes

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "build" / "family.jsonl"
MATRIX = (5000, 5120)  # 25.6 million elements
ROUNDS = 5


def results_in(path: Path) -> Results:
    return Results(path, ("part", "name", "settings"))


def traffic_of(contender: Contender, task: Task) -> dict[str, int]:
    models = {"resnet50": list(shapes.resnet50().values()), "trained": task.shapes}
    return {model: sent_nbytes(tensors, contender.method) for model, tensors in models.items()}


class Runner:
    """Runs what is not among the results yet, with a bar for each part."""

    def __init__(self, results: Results, progress: Progress) -> None:
        self._results, self._progress = results, progress

    def part(
        self,
        part: str,
        contenders: list[Contender],
        settings: Callable[[Contender], dict[str, Any]],
        run: Callable[[Contender, Callable[[], None]], dict[str, Any]],
        ticks: int = 1,
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Names and rows; ``run`` may tick ``ticks`` times in all."""
        bar = self._progress.add_task(part, total=ticks * len(contenders))
        for number, contender in enumerate(contenders):
            self._progress.update(bar, description=f"{part}: {contender.name}")
            key = {"part": part, "name": contender.name, "settings": settings(contender)}
            if self._results.get(key) is None:
                self._results.add(key, run(contender, lambda: self._progress.advance(bar)))
            self._progress.update(bar, completed=ticks * (number + 1))
            row = self._results.get(key)
            assert row is not None
            yield contender.name, row
        self._progress.update(bar, description=part)


def measure(
    contenders: dict[str, Contender],
    training: ImageTraining,
    results: Results,
    *,
    matrix: tuple[int, int] = MATRIX,
    rounds: int = ROUNDS,
    data_dir: Path | None = None,
) -> dict[str, dict[str, Any]]:
    """Parts by contender: "traffic", "training" and, but for dense, "speed"."""
    task = training.task(data_dir)
    found: dict[str, dict[str, Any]] = {
        name: {"contender": contender, "traffic": traffic_of(contender, task)} for name, contender in contenders.items()
    }
    columns = (TextColumn("{task.description:32}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=report.CONSOLE) as progress:
        runner = Runner(results, progress)
        chosen = list(contenders.values())

        def trained_with(contender: Contender) -> dict[str, Any]:
            method = contender.method_in(training, task.steps_per_epoch)
            return {"method": method.configuration(), "rate": contender.rate, **training.settings()}

        def run_training(contender: Contender, tick: Callable[[], None]) -> dict[str, Any]:
            method = contender.method_in(training, task.steps_per_epoch)
            row = train(method, contender.rate, training.task(data_dir), progress=tick)
            return {name: row[name] for name in ("figure", "loss", "last_nbytes", "mean_nbytes")}

        for name, row in runner.part("training", chosen, trained_with, run_training, task.steps):
            found[name]["training"] = row

        def timed_with(contender: Contender) -> dict[str, Any]:
            return {"method": contender.method.configuration(), "matrix": list(matrix), "rounds": rounds}

        compressed = [contender for contender in chosen if contender.name != DENSE]
        gradients: list[Gradients] = []

        def run_speed(contender: Contender, _: Callable[[], None]) -> dict[str, Any]:
            if not gradients:
                gradients.append(Gradients(matrix, rounds + 2))
            return encode_and_decode(contender.method, gradients[0], rounds)

        for name, row in runner.part("speed", compressed, timed_with, run_speed):
            found[name]["speed"] = row
    return found


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--method", "names", multiple=True, help="Only this one and dense; may be given several times.")
@click.option(
    "--results",
    "path",
    type=click.Path(dir_okay=False, path_type=Path),
    default=RESULTS,
    show_default="build/family.jsonl",
    help="Where finished rows are kept; delete it to measure all anew.",
)
@click.option(
    "--images", type=click.IntRange(1), default=ImageTraining.images, show_default=True, help="Of the training."
)
@click.option("--epochs", type=click.IntRange(1), default=ImageTraining.epochs, show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=ROUNDS, show_default=True, help="Of encoding and decoding.")
@click.option(
    "--matrix", type=(int, int), default=MATRIX, show_default=True, help="Rows and columns of what is encoded."
)
@click.option("--seed", default=0, show_default=True, help="Of the model, the order of the images and the flips.")
@click.option("--data-dir", type=click.Path(file_okay=False, path_type=Path), help="Your own copy of Fashion-MNIST.")
@click.option(
    "--docs",
    type=click.Path(file_okay=False, exists=True, path_type=Path),
    help="Folder whose README.md gets the table, between its markers, and beside it the plot.",
)
@options.smallest(rows="family", images=64, epochs=1, rounds=1, matrix=(40, 50))
def main(
    names: tuple[str, ...],
    path: Path,
    images: int,
    epochs: int,
    rounds: int,
    matrix: tuple[int, int],
    seed: int,
    data_dir: Path | None,
    docs: Path | None,
) -> None:
    contenders = all_of_them()
    if unknown := set(names) - set(contenders):
        raise click.BadParameter(f"no method is called {sorted(unknown)[0]!r}; there are {', '.join(contenders)}")
    chosen = {name: contender for name, contender in contenders.items() if not names or name in (DENSE, *names)}
    training = ImageTraining(images=images, epochs=epochs, seed=seed)
    neighbours = report.Neighbours()
    found = measure(chosen, training, results_in(path), matrix=matrix, rounds=rounds, data_dir=data_dir)
    family_report.show(found)
    neighbours.describe()
    if docs is not None:
        family_report.write(docs, found, training, training.task(data_dir).steps)


if __name__ == "__main__":
    main()
