"""What the workers of overhead.py share: contenders take turns, and the slower worker counts."""

from __future__ import annotations

import itertools
import json
import math
import random
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

from horovod_dgc import DGC
from horovod_dgc.shapes import resnet50

METHODS = {
    "DGC": DGC(density=0.001),
    "DGC, int4": DGC(density=0.001, values="int4"),
}
NAMES = ("dense", "fp16", *METHODS)
LARGEST_EXTENT = 8  # of the small model's tensors
PHASES = ("encode", "wait", "decode")

Shapes = dict[str, tuple[int, ...]]


class Contender(ABC):
    """One compression with a model and optimizer of its own.

    Attributes:
        compression: a Compression, or one of Horovod's.
    """

    compression: Any

    def __init__(self) -> None:
        self.exchange: list[float] = []
        self.step: list[float] = []
        self.phases: list[list[float]] = []

    @abstractmethod
    def run(self) -> None:
        """One step: the exchange is from the first gradient to the last result, the step includes the update."""

    def turn(self, steps: int) -> None:
        """Some steps in a row, with the mean of what the compression says of them."""
        before = self._phases()
        for _ in range(steps):
            self.run()
        if before:
            self.phases.append([(after - b) / steps for after, b in zip(self._phases(), before)])

    def forget(self) -> None:
        """Drop what has been timed so far."""
        self.exchange, self.step, self.phases = [], [], []

    def answer(self, gather: Callable[[Any], list[Any]]) -> dict[str, Any]:
        """Seconds of each step: those of the slower worker, and this worker's phases."""
        slowest = [[max(times) for times in zip(*kind)] for kind in zip(*gather((self.step, self.exchange)))]
        phases = {phase: list(times) for phase, times in zip(PHASES, zip(*self.phases))}
        return {"step": slowest[0], "exchange": slowest[1], "phases": phases}

    def _phases(self) -> list[float]:
        if not hasattr(self.compression, "stats"):
            return []
        total = self.compression.stats().total
        return [getattr(total, phase) for phase in PHASES]


def shapes_of(settings: dict[str, Any]) -> Shapes:
    shapes = dict(itertools.islice(resnet50().items(), settings["tensors"]))
    if settings["small"]:
        shapes = {name: tuple(min(extent, LARGEST_EXTENT) for extent in shape) for name, shape in shapes.items()}
    return shapes


def measure(
    settings: dict[str, Any], contenders: dict[str, Contender], gather: Callable[[Any], list[Any]]
) -> dict[str, Any]:
    """All contenders in turns, in the same random order on every rank; the first turn does not count."""
    names = list(contenders)
    shuffle = random.Random(0)
    for turn in range(settings["rounds"] + 1):
        shuffle.shuffle(names)
        for name in names:
            contenders[name].turn(settings["steps"])
        if turn == 0:
            for contender in contenders.values():
                contender.forget()
    shapes = shapes_of(settings)
    return {
        "tensors": len(shapes),
        "elements": sum(math.prod(shape) for shape in shapes.values()),
        "contenders": {name: contender.answer(gather) for name, contender in contenders.items()},
    }


def write(answer: Path, rank: int, result: dict[str, Any]) -> None:
    if rank == 0:
        answer.write_text(json.dumps(result))
