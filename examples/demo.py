"""Train the same model on the same images twice, dense and with DGC, and compare.

Prints one table, and saves `learning_curves.png` and `results.json`.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import click
import datasets
import matplotlib
from rich.console import Console
from rich.table import Table

matplotlib.use("Agg")
from matplotlib import pyplot


@dataclass(frozen=True)
class Framework:
    """A framework's name as it is written, and the example that uses it."""

    name: str
    example: Path


FRAMEWORKS = {
    "pytorch": Framework("PyTorch", Path(__file__).with_name("pytorch_images.py")),
    "tensorflow": Framework("TensorFlow", Path(__file__).with_name("tensorflow_keras_images.py")),
}
SECONDS_TO_END = 15
# Of one run with two workers on two cores: said before there is anything to measure.
MINUTES_PER_EPOCH = 0.5
ENVIRONMENT = {
    # The launcher imports TensorFlow where it is installed, which then talks about its build.
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TF_ENABLE_ONEDNN_OPTS": "0",
    # glibc would hand the memory of activations back to the kernel after each step and fault it in again, which
    # takes a fifth of the processor time of a model as small as this.
    "MALLOC_TRIM_THRESHOLD_": "2000000000",
    "MALLOC_MMAP_THRESHOLD_": "2000000000",
}


@dataclass
class Run:
    """One training run: what rank 0 wrote to its log."""

    label: str
    epochs: list[dict[str, Any]]
    whole: dict[str, Any]


def launch(label: str, example: Path, workers: int, options: list[str], time_limit: float) -> Run:
    """Run an example on this machine's workers, its output forwarded.

    Raises:
        click.ClickException: the run failed, or took more than `time_limit` seconds.
    """
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.jsonl"
        command = [
            *(str(Path(sys.executable).with_name("horovodrun")), "--gloo"),
            *("-np", str(workers), "-H", f"localhost:{workers}"),
            *(sys.executable, str(example), *options, "--log-json", str(log)),
        ]
        environment = {**ENVIRONMENT, **os.environ}
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True)
        forwarder = threading.Thread(target=forward, args=(process.stdout,), daemon=True)
        forwarder.start()
        try:
            status = process.wait(time_limit)
        except subprocess.TimeoutExpired:
            raise click.ClickException(f"{label}: not done after {time_limit:.0f} s, see --time-limit") from None
        finally:
            end(process)
        forwarder.join()
        if status != 0:
            raise click.ClickException(f"{label}: the run failed with status {status}")
        records = [json.loads(line) for line in log.read_text().splitlines()]
    return Run(label, [r for r in records if r["event"] == "epoch"], records[-1])


def forward(output: IO[str]) -> None:
    """Print the workers' lines without horovodrun's prefix: only rank 0 says anything."""
    for line in output:
        print("  " + line.removeprefix("[0]<stdout>:"), end="", flush=True)


def end(process: subprocess.Popen) -> None:
    """Ask horovodrun to end its workers; kill it where it does not."""
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(SECONDS_TO_END)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def table(framework: str, runs: list[Run]) -> Table:
    workers = runs[0].whole["workers"]
    result = Table(
        title=f"{framework}, {len(runs[0].epochs)} epochs, {workers} workers; bytes are those that one worker sends",
        caption="at end: last step; overall: whole run, density warm-up included",
    )
    result.add_column("run")
    for heading in (
        "accuracy",
        "bytes/step\nat end",
        "ratio\nat end",
        "bytes/step\noverall",
        "ratio\noverall",
        "step\ntime",
    ):
        result.add_column(heading, justify="right", no_wrap=True)
    for run in runs:
        whole = run.whole
        result.add_row(
            run.label,
            f"{whole['validation_accuracy']:.2%}",
            f"{whole['last_step_bytes_per_step']:,}",
            f"{whole['last_step_ratio']:.0f}x",
            f"{whole['whole_run_bytes_per_step']:,.0f}",
            f"{whole['whole_run_ratio']:.0f}x",
            f"{whole['step_ms']:.0f} ms",
        )
    return result


def plot(framework: str, runs: list[Run], path: Path) -> None:
    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(15, 4.5), layout="constrained")
    figure.suptitle(f"{framework}, {runs[0].whole['workers']} workers")
    for run in runs:
        epochs = [record["epoch"] for record in run.epochs]
        accuracy = [100 * record["validation_accuracy"] for record in run.epochs]
        per_step = [record["bytes_per_step"] for record in run.epochs]
        steps = run.whole["steps"] / len(epochs)
        sent = [sum(per_step[: n + 1]) * steps / 1e6 for n in range(len(epochs))]
        left.plot(epochs, accuracy, marker="o", label=run.label)
        middle.plot(epochs, per_step, marker="o", label=run.label)
        right.plot(sent, accuracy, marker="o", label=run.label)
    for axes in (left, middle):
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
    for axes in (left, right):
        axes.set_ylabel("validation accuracy [%]")
    middle.set_yscale("log")
    middle.set_ylabel("bytes sent per step and worker, mean of the epoch")
    right.set_xscale("log")
    right.set_xlabel("sent by each worker so far [MB]")
    for axes in (left, middle, right):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=110)


@click.command(help=__doc__)
@click.option("--framework", type=click.Choice(list(FRAMEWORKS)), default="pytorch", show_default=True)
@click.option("--epochs", type=click.IntRange(2), default=2, show_default=True,
              help="Of each run; in the first the density falls to its value.")  # fmt: skip
@click.option("--workers", type=click.IntRange(2), default=2, show_default=True)
@click.option("--density", type=click.FloatRange(0, 1, min_open=True), default=0.001, show_default=True)
@click.option("--data-dir", type=click.Path(exists=True, file_okay=False, path_type=Path),
              help="Folder with your own copy of Fashion-MNIST; nothing is fetched then.")  # fmt: skip
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), default="demo", show_default=True,
              help="Folder for the plot and the figures.")  # fmt: skip
@click.option("--time-limit", type=click.FloatRange(1), default=900, show_default=True,
              help="Seconds that each of the two runs may take.")  # fmt: skip
def main(
    framework: str,
    epochs: int,
    workers: int,
    density: float,
    data_dir: Path | None,
    output: Path,
    time_limit: float,
) -> None:
    name, example = FRAMEWORKS[framework].name, FRAMEWORKS[framework].example
    console = Console(highlight=False)
    # Ends the workers as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    images = datasets.fashion_mnist(data_dir)
    console.print(
        f"Fashion-MNIST: {len(images.train_images):,} images to train on, {len(images.test_images):,} to test"
    )
    shared = ["--epochs", str(epochs), *(["--data-dir", str(data_dir.resolve())] if data_dir else [])]
    settings = {
        "dense": ["--compression", "none", *shared],
        f"DGC {density:.1%}": ["--compression", "dgc", "--density", str(density), *shared],
    }
    runs: list[Run] = []
    begun = time.monotonic()
    for number, (label, options) in enumerate(settings.items(), 1):
        minutes = epochs * MINUTES_PER_EPOCH if not runs else (time.monotonic() - begun) / 60
        console.print(
            f"{name}, run {number} of {len(settings)}, {label}: {workers} workers, {' '.join(options)} "
            f"(about {minutes:.1f} min)"
        )
        runs.append(launch(label, example, workers, options, time_limit))
    console.print(table(name, runs))
    output.mkdir(parents=True, exist_ok=True)
    plot(name, runs, output / "learning_curves.png")
    results = {
        run.label: {"framework": framework, "options": settings[run.label], **run.whole, "epochs": run.epochs}
        for run in runs
    }
    (output / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    console.print(f"{(time.monotonic() - begun) / 60:.1f} min of training.")
    console.print(f"Plot: {output / 'learning_curves.png'}. All figures: {output / 'results.json'}.")
    console.print("Read next, in README.md: Three lines in your training script.")


if __name__ == "__main__":
    main()
