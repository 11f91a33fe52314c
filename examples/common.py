"""What both examples share: options, Horovod set-up, learning-rate schedule, accounting and output."""

import json
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import horovod.torch as hvd
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from horovod_dgc import DGC, Warmup
from horovod_dgc.coding import INDICES, VALUES
from horovod_dgc.torch import Compression

POSITIVE = click.FloatRange(0, min_open=True)
NOT_NEGATIVE = click.FloatRange(0)
COUNT = click.IntRange(1)
FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, writable=True, path_type=Path)


def options(**defaults: Any) -> Callable[[Callable], Callable]:
    """Command-line options of both examples; `defaults` are their defaults where the examples differ."""
    declarations = [
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
        ("--compression", click.Choice(["none", "fp16", "dgc"]), "How gradients travel."),
        ("--density", click.FloatRange(0, 1, min_open=True), "dgc: share of the gradient that is sent."),
        ("--values", click.Choice(list(VALUES)), "dgc: how values are coded."),
        ("--indices", click.Choice(list(INDICES)), "dgc: how their positions are coded."),
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
        "density": 0.001,
        "values": "float16",
        "indices": "elias-fano",
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


def start(args: SimpleNamespace) -> torch.device:
    """Initialise Horovod and the generators; returns the device of this worker."""
    hvd.init()
    torch.set_num_threads(args.cpu_threads)
    torch.manual_seed(args.seed)
    if torch.cuda.is_available():
        torch.cuda.set_device(hvd.local_rank())
        return torch.device("cuda")
    return torch.device("cpu")


def average(value: float, weight: float) -> float:
    """Mean of `value` over all workers, each counting with its `weight`."""
    total = hvd.allreduce(torch.tensor([value * weight, weight], dtype=torch.float64), op=hvd.Sum)
    return (total[0] / total[1]).item()


class Trainer:
    """Momentum SGD through Horovod's optimizer, with the compression that the options ask for.

    Args:
        args: the options.
        model: on this worker's device.
        batches_per_epoch: training batches of one worker in an epoch.
    """

    def __init__(self, args: SimpleNamespace, model: torch.nn.Module, batches_per_epoch: int) -> None:
        self.args = args
        self.model = model
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.steps_per_epoch = batches_per_epoch // args.batches_per_allreduce
        if self.steps_per_epoch == 0:
            raise click.ClickException(
                f"{batches_per_epoch} batches of {args.batch_size} per epoch and worker are too few for "
                f"--batches-per-allreduce {args.batches_per_allreduce}: lower it or --batch-size"
            )
        self.lr_scale = hvd.size() * args.batches_per_allreduce
        optimizer = torch.optim.SGD(
            self.parameters, lr=args.base_lr * self.lr_scale, momentum=args.momentum, weight_decay=args.wd
        )
        if args.compression == "dgc":
            self.compression = Compression(self._method(), optimizer, model.named_parameters())
        else:
            self.compression = getattr(hvd.Compression, args.compression)
        self.optimizer = hvd.DistributedOptimizer(
            optimizer,
            named_parameters=model.named_parameters(),
            compression=self.compression,
            backward_passes_per_step=args.batches_per_allreduce,
            gradient_predivide_factor=args.gradient_predivide_factor,
        )
        hvd.broadcast_parameters(model.state_dict(), root_rank=0)
        hvd.broadcast_optimizer_state(self.optimizer, root_rank=0)

        # Dense bytes of a step, and those that Horovod's own compressors make of them.
        self.dense_bytes = 4 * sum(p.numel() for p in self.parameters)
        self.cast_bytes = self.dense_bytes // (2 if args.compression == "fp16" else 1)
        self.steps = 0

    def _method(self) -> DGC:
        args = self.args
        warmup = None
        if args.dgc_warmup_epochs:
            warmup = Warmup(epochs=args.dgc_warmup_epochs, steps_per_epoch=self.steps_per_epoch)
        return DGC(args.density, warmup, args.clip_norm, values=args.values, indices=args.indices)

    def fit(
        self,
        batches: Callable[[int], Iterable[Any]],
        loss_of: Callable[[Any], torch.Tensor],
        validate: Callable[[], dict[str, float]],
    ) -> None:
        """Train for the epochs asked for; report on rank 0.

        Args:
            batches: training batches of this worker in epoch number n, counted from 0.
            loss_of: mean loss of one batch.
            validate: figures over the validation data of all workers, by name.
        """
        passes = self.args.batches_per_allreduce
        started = time.perf_counter()
        sent_before = 0
        with Report(self.args.log_json) as report:
            for epoch in range(self.args.epochs):
                losses: list[float] = []
                durations: list[float] = []
                self.model.train()
                with report.progress(epoch + 1, self.steps_per_epoch) as advance:
                    begun = time.perf_counter()
                    whole_steps = islice(batches(epoch), self.steps_per_epoch * passes)
                    for number, batch in enumerate(whole_steps, 1):
                        loss = loss_of(batch)
                        (loss / passes).backward()
                        losses.append(loss.item())
                        if number % passes:
                            continue
                        self._step()
                        durations.append(time.perf_counter() - begun)
                        begun = time.perf_counter()
                        advance()
                self.model.eval()
                with torch.no_grad():
                    figures = validate()
                train_loss = average(statistics.fmean(losses), len(losses))
                sent, last_step = self._sent()
                record = {
                    "epoch": epoch + 1,
                    "train_loss": train_loss,
                    **figures,
                    **self._traffic("", (sent - sent_before) / self.steps_per_epoch),
                    "step_ms": 1e3 * statistics.median(durations),
                }
                report.epoch(record)
                sent_before = sent
            report.run(
                {
                    "workers": hvd.size(),
                    "compression": self.args.compression,
                    "parameters": sum(p.numel() for p in self.parameters),
                    "steps": self.steps,
                    "seconds": time.perf_counter() - started,
                    **figures,
                    "step_ms": record["step_ms"],
                    "dense_bytes_per_step": self.dense_bytes,
                    **self._traffic("whole_run_", sent / self.steps),
                    **self._traffic("last_step_", last_step),
                },
                self._summary(),
            )

    def _step(self) -> None:
        """Exchange and clip the gradients, update the weights, clear the gradients."""
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate(self.steps / self.steps_per_epoch)
        clipped_before_sending = self.args.compression == "dgc" and hvd.size() > 1
        if self.args.clip_norm is None or clipped_before_sending:
            self.optimizer.step()
        else:
            self.optimizer.synchronize()
            torch.nn.utils.clip_grad_norm_(self.parameters, self.args.clip_norm)
            with self.optimizer.skip_synchronize():
                self.optimizer.step()
        self.optimizer.zero_grad()
        self.steps += 1

    def _learning_rate(self, epoch: float) -> float:
        """Linear growth from the base rate to the scaled one (Goyal et al. 2017), then a cosine to zero."""
        args = self.args
        if epoch < args.warmup_epochs:
            return args.base_lr * (1 + (self.lr_scale - 1) * epoch / args.warmup_epochs)
        done = (epoch - args.warmup_epochs) / (args.epochs - args.warmup_epochs)
        return args.base_lr * self.lr_scale * 0.5 * (1 + math.cos(math.pi * done))

    def _sent(self) -> tuple[int, int]:
        """Bytes of gradients that this worker has handed to Horovod: in all, and in the last step."""
        if hvd.size() == 1:
            return 0, 0
        if self.args.compression == "dgc":
            stats = self.compression.stats()
            return stats.total.sent + stats.total.control, stats.last.sent + stats.last.control
        return self.cast_bytes * self.steps, self.cast_bytes

    def _traffic(self, prefix: str, sent: float) -> dict[str, float | None]:
        ratio = self.dense_bytes / sent if sent else None
        return {f"{prefix}bytes_per_step": sent, f"{prefix}ratio": ratio}

    def _summary(self) -> str:
        if hvd.size() == 1:
            return "one worker: nothing was exchanged"
        if self.args.compression == "dgc":
            return str(self.compression.stats())
        return f"{self.steps} steps, {self.cast_bytes:,} of {self.dense_bytes:,} bytes in each"


class Report:
    """Progress bar, lines on standard output and JSON lines in a file, on rank 0 only."""

    def __init__(self, log_json: Path | None) -> None:
        self._console = Console(quiet=hvd.rank() != 0, highlight=False, soft_wrap=True)
        self._log = log_json.open("w") if log_json and hvd.rank() == 0 else None

    def __enter__(self) -> "Report":
        return self

    def __exit__(self, *_: object) -> None:
        if self._log:
            self._log.close()

    @contextmanager
    def progress(self, epoch: int, steps: int) -> Iterator[Callable[[], None]]:
        """A bar over the steps of an epoch, on terminals only; yields the function that advances it."""
        columns = (
            TextColumn("epoch {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        shown = self._console.is_terminal and hvd.rank() == 0
        with Progress(*columns, console=self._console, transient=True, disable=not shown) as bar:
            task = bar.add_task(str(epoch), total=steps)
            yield lambda: bar.advance(task)

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
