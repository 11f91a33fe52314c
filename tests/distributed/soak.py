"""Thousands of hard steps on every rank. Usage: soak.py STEPS RESULT_FILE

Three jobs side by side take every step: two with whole-numbered gradients, so that float32 sums are exact and what was
fed must equal what was applied plus what waits, and one with momentum, four-bit values and gradients of every kind.
Sizes, patterns and density change all the time, and parameters get no gradient in some steps, on each rank in others.
Rank 0 writes the figures; a broken promise is an AssertionError.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import horovod.torch as hvd
import numpy as np
import torch
from checks.common import compressed, digest
from torch import nn
from waiting import without_spinning

from horovod_dgc import DGC

SIZES = (0, 1, 2, 3, 31, 257, 1009, 4099, 10007)
CHECKED_EVERY = 50
REPORTED_EVERY = 100
LARGE = 10_000_000
DENSITIES = (0.01, 0.001, 0.25, 1.0, 0.05)
# Sums of this many gradients per coordinate stay whole numbers that float32 holds.
LARGEST = 1 << 10


def shapes(rng: np.random.Generator) -> list[tuple[int, ...]]:
    """Every size, as a vector (sent whole) and as a matrix (sparsified), and some drawn by chance."""
    drawn = [int(size) for size in rng.integers(1, 6000, 4)]
    return [shape for size in (*SIZES, *drawn) for shape in ((size,), (1, size))]


def whole_numbers(rng: np.random.Generator, size: int) -> np.ndarray:
    kind = rng.integers(5)
    values = np.zeros(size, np.float32)
    if kind == 1:
        values[:] = rng.integers(-9, 10)
    elif kind == 2 and size:
        values[rng.integers(size)] = LARGEST
    elif kind == 3:
        values[:] = rng.integers(-99, 100, size)
    elif kind == 4:
        values[:] = np.clip(np.rint(rng.standard_cauchy(size)), -LARGEST, LARGEST)
    return values


def real_numbers(rng: np.random.Generator, size: int) -> np.ndarray:
    kind = rng.integers(6)
    if kind == 0:
        return np.zeros(size, np.float32)
    if kind == 1:
        return np.full(size, rng.standard_normal(), np.float32)
    if kind == 2:
        return np.where(np.arange(size) == rng.integers(max(1, size)), 1e3, 0).astype(np.float32)
    if kind == 3:
        return (rng.standard_normal(size) * 1e-41).astype(np.float32)
    if kind == 4:
        return np.clip(rng.standard_cauchy(size), -1e6, 1e6).astype(np.float32)
    return rng.standard_normal(size).astype(np.float32)


class Job:
    """A model that is fed gradients, and what it was fed with.

    Args:
        exact: feed whole numbers, and check that nothing of them is lost.
        settings: of the Compression.
        sgd: of the optimizer.
    """

    def __init__(self, method: DGC, model: Sequence[tuple[int, ...]], exact: bool, settings: Any, **sgd: Any) -> None:
        self.model = nn.ParameterDict({f"{i:02d}": nn.Parameter(torch.zeros(s)) for i, s in enumerate(model)})
        self.exact = exact
        self.fed = {name: np.zeros(p.numel()) for name, p in self.model.items()}
        optimizer = torch.optim.SGD(self.model.parameters(), **sgd)
        self.optimizer, self.compression = compressed(method, self.model, optimizer, settings=settings, op=hvd.Sum)

    def step(self, rng: np.random.Generator) -> None:
        self.optimizer.zero_grad()
        loss = torch.zeros(())
        for name, parameter in self.model.items():
            if rng.random() < 0.2:
                continue
            gradient = (whole_numbers if self.exact else real_numbers)(rng, parameter.numel())
            self.fed[name] += gradient
            loss = loss + (parameter * torch.from_numpy(gradient).view(parameter.shape)).sum()
        if loss.requires_grad:
            loss.backward()
        self.optimizer.step()

    def check(self, number: int) -> None:
        digests = hvd.allgather_object(digest(self.model.parameters()), name="soak.digest")
        assert len(set(digests)) == 1, f"step {number}: the ranks' parameters differ"
        assert all(torch.isfinite(p).all() for p in self.model.parameters()), f"step {number}: not finite"
        if not self.exact:
            return
        for name, state in self.compression.state_dict()["tensors"].items():
            fed = hvd.allreduce(torch.from_numpy(self.fed[name]), op=hvd.Sum, name="soak.fed")
            waits = torch.zeros(len(fed)) if state["residual"] is None else state["residual"].reshape(-1)
            waiting = hvd.allreduce(waits.double(), op=hvd.Sum, name="soak.waiting")
            applied = -self.model[name].detach().reshape(-1).double()
            lost = (fed - applied - waiting).abs().max().item() if len(fed) else 0.0
            assert lost == 0, f"step {number}, {name} of {len(fed)} elements: {lost} lost"
            # Begin anew, for the sums to stay exact: what waits is as if fed from here on.
            self.model[name].data.zero_()
            self.fed[name][:] = waits.double().numpy()


def rss() -> float:
    """MiB of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def large_once() -> None:
    """One tensor of ten million elements, for three steps."""
    job = Job(DGC(values="float32"), [(LARGE // 1000, 1000)], True, {}, lr=1.0)
    rng = np.random.default_rng(hvd.rank())
    for number in range(3):
        job.step(rng)
        job.check(number)


def main() -> None:
    steps, result = int(sys.argv[1]), Path(sys.argv[2])
    without_spinning()
    torch.set_num_threads(1)
    hvd.init()
    common = np.random.default_rng(5)
    rng = np.random.default_rng((7, hvd.rank()))

    def density(number: int) -> float:
        return DENSITIES[number // 7 % len(DENSITIES)]

    jobs = [
        Job(DGC(values="float32", warmup=density), shapes(common), True, {}, lr=1.0),
        Job(DGC(values="float32", indices="int32", warmup=density), shapes(common), True, {"backend": "torch"}, lr=1.0),
        Job(DGC(values="int4", warmup=density), shapes(common), False, {"check_sync": 10}, lr=1e-3, momentum=0.9),
    ]
    large_once()
    gc.collect()
    began = time.monotonic()
    series = []
    for number in range(1, steps + 1):
        for job in jobs:
            job.step(rng)
        if number % CHECKED_EVERY:
            continue
        for job in jobs:
            job.check(number)
        series.append(rss())
        if number % REPORTED_EVERY == 0:
            # For a time limit that strikes: a stall looks different from a slow machine.
            elapsed = time.monotonic() - began
            print(f"rank {hvd.rank()}: step {number}, {elapsed:.1f} s, {series[-1]:.1f} MiB", flush=True)
    figures = {"steps": steps, "seconds": time.monotonic() - began, "rss": series}
    gathered = hvd.allgather_object(figures, name="soak.figures")
    if hvd.rank() == 0:
        result.write_text(json.dumps(gathered))
    hvd.shutdown()


main()
