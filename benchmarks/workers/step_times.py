"""One worker of overhead.py: times steps of the same model under several compressions, in turns."""

from __future__ import annotations

import cProfile
import io
import json
import pstats
import random
import sys
import time
from pathlib import Path
from typing import Any

import horovod.torch as hvd
import torch
from support.model import Model

from horovod_dgc import DGC
from horovod_dgc.shapes import resnet50
from horovod_dgc.torch import Compression

METHODS = {
    "DGC": DGC(density=0.001),
    "DGC, int4": DGC(density=0.001, values="int4"),
}
LARGEST_EXTENT = 8  # of the small model's tensors
PHASES = ("encode", "wait", "decode")


class Contender:
    """One compression with a model and optimizer of its own."""

    def __init__(self, name: str, shapes: dict[str, tuple[int, ...]]) -> None:
        self.model = Model(shapes, name.replace(" ", ""), seed=hvd.rank())
        optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
        self.compression: Any
        if name in METHODS:
            self.compression = Compression(METHODS[name], optimizer, self.model.named_parameters())
        else:
            self.compression = {"dense": hvd.Compression.none, "fp16": hvd.Compression.fp16}[name]
        self.optimizer = hvd.DistributedOptimizer(
            optimizer, named_parameters=self.model.named_parameters(), compression=self.compression
        )
        self.exchange: list[float] = []
        self.step: list[float] = []
        self.phases: list[list[float]] = []

    def turn(self, steps: int) -> None:
        """Some steps in a row, with the mean of what the compression says of them."""
        before = self._phases()
        for _ in range(steps):
            self.run()
        if before:
            self.phases.append([(after - b) / steps for after, b in zip(self._phases(), before)])

    def run(self) -> None:
        """One step: the exchange is from the first gradient to the last result, the step includes the update."""
        self.model.fill_gradients()
        hvd.barrier()
        began = time.perf_counter()
        self.model.backward()
        self.optimizer.synchronize()
        exchanged = time.perf_counter()
        with self.optimizer.skip_synchronize():
            self.optimizer.step()
        self.step.append(time.perf_counter() - began)
        self.exchange.append(exchanged - began)

    def forget(self) -> None:
        """Drop what has been timed so far."""
        self.exchange, self.step, self.phases = [], [], []

    def answer(self) -> dict[str, Any]:
        """Seconds of each step: those of the slower worker, and this worker's phases."""
        everybody = hvd.allgather_object((self.step, self.exchange))
        slowest = [[max(times) for times in zip(*kind)] for kind in zip(*everybody)]
        phases = {phase: list(times) for phase, times in zip(PHASES, zip(*self.phases))}
        return {"step": slowest[0], "exchange": slowest[1], "phases": phases}

    def _phases(self) -> list[float]:
        if not isinstance(self.compression, Compression):
            return []
        total = self.compression.stats().total
        return [getattr(total, phase) for phase in PHASES]


def main(settings: dict[str, Any], answer: Path) -> None:
    hvd.init()
    torch.set_num_threads(1)
    shapes = resnet50()
    if settings["small"]:
        shapes = {name: tuple(min(extent, LARGEST_EXTENT) for extent in shape) for name, shape in shapes.items()}
    names = ["dense", "fp16", *METHODS]
    contenders = {name: Contender(name, shapes) for name in names}
    shuffle = random.Random(0)  # the same order on every rank
    for turn in range(settings["rounds"] + 1):
        shuffle.shuffle(names)
        for name in names:
            contenders[name].turn(settings["steps"])
        if turn == 0:
            for contender in contenders.values():
                contender.forget()
    found: dict[str, Any] = {name: contender.answer() for name, contender in contenders.items()}
    sizes = [torch.Size(shape).numel() for shape in shapes.values()]
    result = {"tensors": len(shapes), "elements": sum(sizes), "contenders": found}
    if settings["profile"]:
        result["profile"] = profile(contenders["DGC"], settings["steps"] * settings["rounds"])
    if hvd.rank() == 0:
        answer.write_text(json.dumps(result))


def profile(contender: Contender, steps: int) -> str:
    """Where this worker's Python thread spends processor time; its waiting is not counted."""
    profiler = cProfile.Profile(time.thread_time)
    profiler.enable()
    for _ in range(steps):
        contender.run()
    profiler.disable()
    text = io.StringIO()
    pstats.Stats(profiler, stream=text).sort_stats("tottime").print_stats(30)
    return f"{steps} steps\n{text.getvalue()}"


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Path(sys.argv[2]))
