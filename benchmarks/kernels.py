"""Compress and decompress one tensor: the core's passes against the bare memory traffic, casts, top-k and torch code.

Every operation starts from the same state of the same arrays, restored before each timing, and all of them take
turns in one run, so that their ratios hold even where the machine's speed drifts. Ratios are medians of the
rounds' ratios.

    python benchmarks/kernels.py
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import horovod.torch as hvd
import numpy as np
import torch
from support import options, report
from support.floors import Floors
from support.reference_dgc import ReferenceDGC

from horovod_dgc import DGC, State, _core

MOMENTUM = 0.9
DENSITY = 0.001
STEPS_BEFORE = 20  # that state and gradient have the proportions of a run under way
WORKERS = (2, 16)
# Gradients of different steps and workers are windows of one long noise array at different offsets.
OFFSETS = 1 << 16

# Bytes that an operation must move per element, for the column of throughput.
FLOOR_BYTES = {"floor: read": 12, "floor: update": 20, "floor: check + update": 24, "floor: update + zero": 24}


@dataclass(frozen=True)
class Ratio:
    """One operation's time over another's, and what is wanted of it."""

    title: str
    over: str
    under: str
    wanted: str = ""


RATIOS = (
    Ratio("encode / floor: update", "encode", "floor: update", "<= 1.3"),
    Ratio("encode / floor: check + update", "encode", "floor: check + update"),
    Ratio("propose / floor: read", "propose", "floor: read"),
    Ratio("commit / floor: update + zero", "commit", "floor: update + zero"),
    Ratio("compress + decompress, N = 2 / fp16", "compress + decompress, N = 2", "fp16", "< 1"),
    Ratio("compress + decompress, N = 16 / fp16", "compress + decompress, N = 16", "fp16", "< 1"),
    Ratio("compress + decompress, N = 2 / fp16, kept", "compress + decompress, N = 2", "fp16, kept"),
    Ratio("reference DGC / encode", "reference DGC compress", "encode", ">= 6"),
    Ratio("reference DGC / ours, both ways, N = 2", "reference DGC, N = 2", "compress + decompress, N = 2"),
    Ratio("topk / encode", "topk", "encode"),
)


class Bench:
    """The arrays, and one method for each thing that is timed."""

    def __init__(self, numel: int, memory: str) -> None:
        generator = torch.Generator().manual_seed(1)
        self.noise = torch.randn(numel + OFFSETS, generator=generator)
        self.method = DGC(density=DENSITY)
        self.plan = self.method.plan((1, numel))
        self.update = _core.Update(momentum=MOMENTUM)
        self.grad, self.residual, self.velocity = (zeros(numel, memory) for _ in range(3))
        self.g, self.v, self.u = self.grad.numpy(), self.residual.numpy(), self.velocity.numpy()
        self.state = State(shape=(1, numel), residual=self.v, velocity=self.u)
        for step in range(STEPS_BEFORE):
            self.method.encode(self.window(step).numpy(), self.state, momentum=MOMENTUM)
        self.grad.copy_(self.window(STEPS_BEFORE))
        self.start = [tensor.clone() for tensor in (self.grad, self.residual, self.velocity)]
        self.half = torch.empty(numel, dtype=torch.float16)
        self.floors = Floors(MOMENTUM)
        self.reference = ReferenceDGC(self.velocity, self.residual, DENSITY, MOMENTUM)
        self.payloads = {workers: self.gathered(workers) for workers in WORKERS}
        self.proposal = self.propose(1)
        values, indices = self.method_sent()
        self.reference_gathered = values.repeat(2), torch.cat([indices, (indices + 1) % numel])

    def window(self, number: int) -> torch.Tensor:
        offset = 7919 * number % OFFSETS
        return self.noise[offset : offset + self.grad.numel()]

    def gathered(self, workers: int) -> np.ndarray:
        """Payloads whose coordinates were drawn at random, worker by worker."""
        layout = self.plan.codec.layout
        rows = []
        for worker in range(workers):
            drawn = np.random.default_rng(worker).choice(layout.n, 2 * layout.k)
            indices = np.unique(drawn)
            chosen = np.sort(np.random.default_rng(worker).permutation(indices)[: layout.k]).astype(np.uint32)
            rows.append(layout.pack(chosen, self.noise.numpy()[chosen])[0])
        return np.stack(rows)

    def method_sent(self) -> tuple[torch.Tensor, torch.Tensor]:
        sent = torch.from_numpy(self.proposal.sent.copy())
        return sent, torch.from_numpy(self.proposal.indices.astype(np.int64))

    def restore(self) -> None:
        for tensor, start in zip((self.grad, self.residual, self.velocity), self.start):
            tensor.copy_(start)

    def encode(self, threads: int) -> None:
        self.method.encode(self.g, self.state, momentum=MOMENTUM, threads=threads)

    def propose(self, threads: int) -> Any:
        ratio = self.plan.sample_ratio
        return _core.propose(self.plan.codec, self.update, self.g, self.v, self.u, sample_ratio=ratio, threads=threads)

    def commit(self, threads: int, proposal: Any = None) -> None:
        proposal = self.proposal if proposal is None else proposal
        proposal.commit(self.update, self.g, self.v, self.u, zero_grad=True, threads=threads)

    def decode(self, workers: int, threads: int) -> None:
        self.plan.codec.decode_add(self.payloads[workers], self.g, scale=1 / workers, threads=threads)

    def both_ways(self, workers: int, threads: int) -> None:
        self.commit(threads, self.propose(threads))
        self.decode(workers, threads)

    def fp16(self) -> torch.Tensor:
        return hvd.Compression.fp16.decompress(*hvd.Compression.fp16.compress(self.grad))

    def fp16_kept(self) -> None:
        self.half.copy_(self.grad)
        self.grad.copy_(self.half)

    def reference_both_ways(self) -> None:
        self.reference.compress(self.grad)
        self.reference.decompress(self.grad, *self.reference_gathered, workers=2)

    def operations(self, threads: int) -> dict[str, Callable[[], Any]]:
        floors, arrays = self.floors, (self.g, self.u, self.v, threads)
        return {
            "floor: read": lambda: floors.read(*arrays),
            "floor: update": lambda: floors.update(*arrays),
            "floor: check + update": lambda: (floors.read_one(self.g, threads), floors.update(*arrays)),
            "floor: update + zero": lambda: floors.update_and_zero(*arrays),
            "encode": lambda: self.encode(threads),
            "propose": lambda: self.propose(threads),
            "commit": lambda: self.commit(threads),
            "decode_add, N = 2": lambda: self.decode(2, threads),
            "decode_add, N = 16": lambda: self.decode(16, threads),
            "compress + decompress, N = 2": lambda: self.both_ways(2, threads),
            "compress + decompress, N = 16": lambda: self.both_ways(16, threads),
            "fp16": self.fp16,
            "fp16, kept": self.fp16_kept,
            "topk": lambda: torch.topk(self.grad, self.plan.sent),
            "reference DGC compress": lambda: self.reference.compress(self.grad),
            "reference DGC, N = 2": self.reference_both_ways,
        }


def zeros(numel: int, memory: str) -> torch.Tensor:
    """Zeros from torch's allocator, as in training, or from NumPy's, which asks for huge pages."""
    return torch.zeros(numel) if memory == "torch" else torch.from_numpy(np.zeros(numel, np.float32))


def measure(bench: Bench, threads: int, repeats: int) -> dict[str, list[float]]:
    """Seconds of each operation in each round, after one round that does not count."""
    operations = bench.operations(threads)
    names = list(operations)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    shuffle = random.Random(0)
    torch.set_num_threads(threads)
    gc.disable()
    for turn in range(repeats + 1):
        shuffle.shuffle(names)
        for name in names:
            bench.restore()
            began = time.perf_counter()
            result = operations[name]()
            elapsed = time.perf_counter() - began
            del result
            if turn:
                seconds[name].append(elapsed)
    gc.enable()
    return seconds


def summarize(seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Milliseconds of each operation and the ratios, each as lower quartile, median and upper quartile."""
    ratios = {}
    for ratio in RATIOS:
        pairs = zip(seconds[ratio.over], seconds[ratio.under])
        ratios[ratio.title] = report.quartiles([over / under for over, under in pairs])
    milliseconds = {name: report.quartiles([1e3 * s for s in values]) for name, values in seconds.items()}
    return {"milliseconds": milliseconds, "ratios": ratios}


def show(numel: int, results: dict[int, dict[str, Any]]) -> None:
    rows = []
    for name in next(iter(results.values()))["milliseconds"]:
        row = [name]
        for result in results.values():
            low, middle, high = result["milliseconds"][name]
            moved = f"{FLOOR_BYTES[name] * numel / middle / 1e6:.1f}" if name in FLOOR_BYTES else ""
            row += [f"{middle:.2f}", f"{low:.2f} - {high:.2f}", moved]
        rows.append(row)
    columns = [c for threads in results for c in (f"ms, {threads} thr", "quartiles", "GB/s")]
    report.table(f"{numel / 1e6:g} M elements, density {DENSITY:g}", ["operation", *columns], rows)
    rows = []
    for ratio in RATIOS:
        row = [ratio.title, ratio.wanted]
        for result in results.values():
            low, middle, high = result["ratios"][ratio.title]
            row += [f"{middle:.2f}", f"{low:.2f} - {high:.2f}"]
        rows.append(row)
    columns = [c for threads in results for c in (f"{threads} thr", "quartiles")]
    report.table("Ratios of times in the same round", ["ratio", "wanted", *columns], rows, text_columns=2)


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--millions", multiple=True, type=click.FloatRange(0.01), default=(1, 25.6, 100), show_default=True,
              help="Elements of the tensor, in millions; may be given several times.")  # fmt: skip
@click.option("--threads", multiple=True, type=click.IntRange(1), default=(1, 2), show_default=True)
@click.option("--repeats", type=click.IntRange(1), default=15, show_default=True, help="Rounds that count.")
@click.option("--memory", type=click.Choice(["torch", "numpy"]), default="torch", show_default=True,
              help="Whose allocator makes gradient and state. NumPy's asks for huge pages.")  # fmt: skip
@options.smallest(millions=(0.01,), repeats=1)
@report.json_option
def main(
    millions: tuple[float, ...], threads: tuple[int, ...], repeats: int, memory: str, json_path: Path | None
) -> None:
    neighbours = report.Neighbours()
    found = []
    for numel in (round(1e6 * m) for m in millions):
        bench = Bench(numel, memory)
        results = {}
        for count in threads:
            # Small tensors take less than a millisecond: more rounds cost nothing.
            rounds = repeats * max(1, min(10, 10_000_000 // numel))
            seconds = measure(bench, count, rounds)
            results[count] = summarize(seconds)
            found.append({"numel": numel, "threads": count, "rounds": rounds, **results[count]})
        show(numel, results)
        del bench
    machine = {**neighbours.describe(), "instructions": Floors(MOMENTUM).instructions}
    report.CONSOLE.print(f"instruction set of the core and of the floors: {machine['instructions']}", highlight=False)
    report.write_json(
        json_path, {"machine": machine, "density": DENSITY, "momentum": MOMENTUM, "memory": memory, "results": found}
    )


if __name__ == "__main__":
    main()
