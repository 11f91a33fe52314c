"""What all examples share, whatever the framework: options, schedules, accounting and output."""

import dataclasses
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import datasets
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from horovod_dgc import METHODS, Method, Warmup, registry
from horovod_dgc.coding import INDICES, VALUES

POSITIVE = click.FloatRange(0, min_open=True)
NOT_NEGATIVE = click.FloatRange(0)
COUNT = click.IntRange(1)
FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, writable=True, path_type=Path)


class MethodText(click.ParamType):
    """A method with its settings, such as "qsgd" or "dgc:density=0.01,values=int8"; "none" for none."""

    name = "method"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value != "none":
            try:
                registry.parse(value)
            except ValueError as error:
                self.fail(str(error), param, ctx)
        return value


def options(*own: tuple[str, Any, str | None], **defaults: Any) -> Callable[[Callable], Callable]:
    """Command-line options of an example: its `own`, then those of all; `defaults` are the defaults of either."""
    declarations = [
        *own,
        ("--batch-size", COUNT, "Training batch of one worker and one backward pass."),
        ("--test-batch-size", COUNT, "Validation batch of one worker."),
        ("--epochs", COUNT, "Passes over the training data."),
        ("--base-lr", POSITIVE, "Learning rate of one worker; it is multiplied by the number of workers."),
        ("--warmup-epochs", NOT_NEGATIVE, "Epochs in which the learning rate grows from the base rate."),
        ("--momentum", click.FloatRange(0, 1, max_open=True), "Momentum of SGD."),
        ("--wd", NOT_NEGATIVE, "Weight decay."),
        ("--seed", int, "Seed of the initial weights and of the order of the data."),
        ("--batches-per-allreduce", COUNT, "Backward passes per exchange; multiplies the learning rate too."),
        ("--gradient-predivide-factor", POSITIVE, "Share of the averaging done before the sum, see Horovod."),
        (
            "--compression",
            MethodText(),
            "How gradients travel: none, or a method with settings of its own if it is to have others than its "
            f"defaults, as in qsgd:bits=8. Methods: {', '.join(METHODS)}.",
        ),
        ("--density", click.FloatRange(0, 1, min_open=True), "Share of the gradient that the method sends."),
        ("--values", click.Choice(list(VALUES)), "How the method codes values."),
        ("--indices", click.Choice(list(INDICES)), "How the method codes their positions."),
        (
            "--dgc-warmup-epochs",
            NOT_NEGATIVE,
            "dgc: epochs in which the density falls from 25 %; 0 for none.",
        ),
        ("--clip-norm", POSITIVE, "Clip the gradient at this global norm; without it, not at all."),
        ("--data-dir", FOLDER, "Folder with your own copy of the data; nothing is fetched then."),
        ("--cpu-threads", COUNT, "Threads of one worker."),
        ("--log-json", FILE, "Write one JSON object per epoch, and one of the whole run, to this file."),
    ]
    defaults = {
        "gradient_predivide_factor": 1.0,
        "batches_per_allreduce": 1,
        "compression": "dgc",
        "cpu_threads": 1,
        "seed": 42,
    } | defaults

    def decorate(command: Callable) -> Callable:
        for flag, kind, text in reversed(declarations):
            default = defaults.get(flag[2:].replace("-", "_"))
            shown = default is not None
            command = click.option(flag, type=kind, default=default, show_default=shown, help=text)(command)
        return command

    return decorate


image_options = options(
    ("--dataset", click.Choice(list(datasets.IMAGES)), None),
    ("--width", COUNT, "Channels after the stem."),
    dataset="fashion-mnist",
    width=24,
    batch_size=64,
    test_batch_size=500,
    epochs=5,
    base_lr=0.025,
    warmup_epochs=1.0,
    momentum=0.9,
    wd=5e-4,
    dgc_warmup_epochs=1.0,
)
language_model_options = options(
    ("--dataset", click.Choice(list(datasets.TEXTS)), None),
    ("--vocabulary", click.IntRange(2), "Known words."),
    ("--width", COUNT, "Of embedding and LSTM layers."),
    ("--dropout", click.FloatRange(0, 1, max_open=True), None),
    ("--bptt", COUNT, "Time steps per batch."),
    dataset="brown",
    vocabulary=10_000,
    width=128,
    dropout=0.0,
    bptt=25,
    batch_size=10,
    test_batch_size=10,
    epochs=1,
    base_lr=0.25,
    warmup_epochs=0.1,
    momentum=0.9,
    wd=0.0,
    dgc_warmup_epochs=0.25,
    clip_norm=2.0,
)


class Job:
    """One worker's training run: its schedules, what it has sent, and the output, which is rank 0's.

    Args:
        args: the options.
        rank, workers: this worker's number, and how many there are.
        batches_per_epoch: training batches of one worker in an epoch.
        parameters: number of trainable weights.

    Attributes:
        steps_per_epoch: exchanges of gradients in an epoch.
        steps: exchanges so far.
        lr_scale: what the base learning rate is multiplied by.
        method: how gradients are compressed; None if they are not.
        compression: to be set before training; with a method its counts are reported.
    """

    def __init__(self, args: SimpleNamespace, rank: int, workers: int, batches_per_epoch: int, parameters: int) -> None:
        self.args = args
        self.workers = workers
        self.parameters = parameters
        self.steps_per_epoch = batches_per_epoch // args.batches_per_allreduce
        if self.steps_per_epoch == 0:
            raise click.ClickException(
                f"{batches_per_epoch} batches of {args.batch_size} per epoch and worker are too few for "
                f"--batches-per-allreduce {args.batches_per_allreduce}: lower it or --batch-size"
            )
        self.steps = 0
        self.lr_scale = workers * args.batches_per_allreduce
        self.method = None if args.compression == "none" else self._method(registry.parse(args.compression))
        self.compression: Any = None
        self._dense_bytes = 4 * parameters
        self._epochs = 0
        self._sent_before = 0
        self._durations: list[float] = []
        self._rank = rank

    def __enter__(self) -> "Job":
        self._report = Report(self.args.log_json, shown=self._rank == 0)
        self._started = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self._report.close()

    def _method(self, method: Method) -> Method:
        """The method with what the options say about it."""
        args = self.args
        settings = {"density": args.density, "values": args.values, "indices": args.indices}
        settings = {name: value for name, value in settings.items() if value is not None}
        known = {field.name for field in dataclasses.fields(method)}
        for name in settings.keys() - known:
            raise click.ClickException(f"--{name}: {args.compression} has no {name}")
        if "warmup" in known and args.dgc_warmup_epochs:
            settings["warmup"] = Warmup(epochs=args.dgc_warmup_epochs, steps_per_epoch=self.steps_per_epoch)
        if "clip_norm" in known and args.clip_norm:
            settings["clip_norm"] = args.clip_norm
        return dataclasses.replace(method, **settings)

    def clip_norm_after_exchange(self) -> float | None:
        """Norm at which the reduced gradient is clipped; None if not at all, or by the method before it is sent."""
        clipped_before = self.method is not None and self.method.clip_norm is not None and self.workers > 1
        return None if clipped_before else self.args.clip_norm

    def learning_rate(self) -> float:
        """For the next step: linear growth from the base rate to the scaled one (Goyal et al. 2017), then a cosine."""
        args = self.args
        epoch = self.steps / self.steps_per_epoch
        if epoch < args.warmup_epochs:
            return args.base_lr * (1 + (self.lr_scale - 1) * epoch / args.warmup_epochs)
        done = (epoch - args.warmup_epochs) / (args.epochs - args.warmup_epochs)
        return args.base_lr * self.lr_scale * 0.5 * (1 + math.cos(math.pi * done))

    def begin_epoch(self) -> None:
        self._durations = []
        self._report.open_bar(self._epochs + 1, self.steps_per_epoch)
        self._begun = time.perf_counter()

    def end_step(self) -> None:
        now = time.perf_counter()
        self._durations.append(now - self._begun)
        self._begun = now
        self.steps += 1
        self._report.advance_bar()
        if len(self._durations) == self.steps_per_epoch:
            self._report.close_bar()

    def end_epoch(self, train_loss: float, figures: dict[str, float]) -> None:
        """Report the epoch: mean losses and other figures over all workers, the latter of the validation data."""
        self._epochs += 1
        self._figures = figures
        self._step_ms = 1e3 * statistics.median(self._durations)
        sent, _ = self._sent()
        self._report.epoch(
            {
                "epoch": self._epochs,
                "train_loss": train_loss,
                **figures,
                **self._traffic("", (sent - self._sent_before) / self.steps_per_epoch),
                "step_ms": self._step_ms,
            }
        )
        self._sent_before = sent

    def end(self) -> None:
        """Report the whole run."""
        sent, last_step = self._sent()
        self._report.run(
            {
                "workers": self.workers,
                "compression": self.args.compression,
                "parameters": self.parameters,
                "steps": self.steps,
                "seconds": time.perf_counter() - self._started,
                **self._figures,
                "step_ms": self._step_ms,
                "dense_bytes_per_step": self._dense_bytes,
                **self._traffic("whole_run_", sent / self.steps),
                **self._traffic("last_step_", last_step),
            },
            self._summary(),
        )

    def _sent(self) -> tuple[int, int]:
        """Bytes of gradients that this worker has handed to Horovod: in all, and in the last step."""
        if self.workers == 1:
            return 0, 0
        if self.method is not None:
            stats = self.compression.stats()
            return stats.total.sent + stats.total.control, stats.last.sent + stats.last.control
        return self._dense_bytes * self.steps, self._dense_bytes

    def _traffic(self, prefix: str, sent: float) -> dict[str, float | None]:
        ratio = self._dense_bytes / sent if sent else None
        return {f"{prefix}bytes_per_step": sent, f"{prefix}ratio": ratio}

    def _summary(self) -> str:
        if self.workers == 1:
            return "one worker: nothing was exchanged"
        if self.method is not None:
            return str(self.compression.stats())
        return f"{self.steps} steps, {self._dense_bytes:,} bytes in each"


class Report:
    """Progress bar, lines on standard output and JSON lines in a file; nothing of it where it is not `shown`."""

    def __init__(self, log_json: Path | None, *, shown: bool) -> None:
        self._shown = shown
        self._console = Console(quiet=not shown, highlight=False, soft_wrap=True)
        self._log = log_json.open("w") if log_json and shown else None
        self._bar: Progress | None = None

    def close(self) -> None:
        self.close_bar()
        if self._log:
            self._log.close()

    def open_bar(self, epoch: int, steps: int) -> None:
        """Show a bar over the steps of an epoch, on terminals only."""
        if not (self._shown and self._console.is_terminal):
            return
        columns = (
            TextColumn("epoch {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=self._console, transient=True)
        self._task = self._bar.add_task(str(epoch), total=steps)
        self._bar.start()

    def advance_bar(self) -> None:
        if self._bar:
            self._bar.advance(self._task)

    def close_bar(self) -> None:
        if self._bar:
            self._bar.stop()
            self._bar = None

    def epoch(self, record: dict[str, Any]) -> None:
        self._write({"event": "epoch", **record})
        shown = {name: value for name, value in record.items() if value is not None and name != "epoch"}
        figures = "  ".join(f"{name} {_short(value)}" for name, value in shown.items())
        self._console.print(f"epoch {record['epoch']}  {figures}")

    def run(self, record: dict[str, Any], summary: str) -> None:
        self._write({"event": "run", **record})
        self._console.print(summary)

    def _write(self, record: dict[str, Any]) -> None:
        if self._log:
            print(json.dumps(record), file=self._log, flush=True)


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
