"""Trains, saves every few steps and resumes from what is saved; one rank can be made to fail on the way.

Usage: faulty_training.py FOLDER [FAULT POINT RANK STEP]

FAULT is "kill" (SIGKILL), "stop" (SIGSTOP: all threads, Horovod's too), "sleep" (the training thread alone, for good)
or "nap" (for eleven seconds, longer than any time-out that is set). It strikes RANK in step number STEP at the second
tensor's POINT: "encode", "gather" (its payload handed over) or "decode" (payloads received); with commas between
several points, one step apart. In FOLDER each rank leaves its process number, the time when it struck, what it saw of
it and when, and the digest of its final state.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import faulty_worker
import horovod.torch as hvd
import torch
from checks.checkpoints import METHODS, nesterov, restore, steps
from checks.common import compressed, digest, small_model, state_digest
from faults import SAVED_EVERY

from horovod_dgc.torch import load_checkpoint, save_checkpoint
from horovod_dgc.torch.backends import CoreBackend
from horovod_dgc.torch.exchange import Exchange

STEPS = 24
SLEEPS = {"sleep": 600.0, "nap": 11.0}
SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}
POINTS = {"encode": (CoreBackend, "propose"), "gather": (Exchange, "_send"), "decode": (CoreBackend, "decode_add")}


class Trap:
    """Strikes at the second call of a function in the chosen step."""

    def __init__(self, folder: Path, fault: str, point: str, step: int) -> None:
        self.folder, self.fault, self.step = folder, fault, step
        self.now, self.calls = -1, 0
        owner, name = POINTS[point]
        function = getattr(owner, name)
        # A payload is under way only once it has been handed over.
        after = point == "gather"

        def wrapped(*arguments: Any) -> Any:
            result = function(*arguments) if after else None
            self.calls += self.now == self.step
            if self.calls == 2:
                self.strike()
            return result if after else function(*arguments)

        setattr(owner, name, wrapped)

    def strike(self) -> None:
        faulty_worker.strikes(self.folder)
        if self.fault in SLEEPS:
            time.sleep(SLEEPS[self.fault])
        else:
            os.kill(os.getpid(), SIGNALS[self.fault])


def train(folder: Path, traps: list[Trap]) -> None:
    model = small_model()
    # Sums of gathered payloads have one order; see checks/checkpoints.py.
    optimizer, compression = compressed(METHODS[0], model, nesterov(model), settings={"transport": "gather"})
    first = 0
    saved = faulty_worker.latest(folder)
    if saved is not None:
        restore(torch.load(saved / "rest.pt", weights_only=True), model, optimizer)
        first = load_checkpoint(saved / "state", compression)
    print(f"rank {hvd.rank()} begins at step {first}", flush=True)
    for step in range(first, STEPS):
        for trap in traps:
            trap.now = step
        steps(model, optimizer, range(step, step + 1))
        if (step + 1) % SAVED_EVERY == 0:
            save(folder / f"after-{step + 1}", model, optimizer, compression)
    end = f"{first} {digest(model.parameters())} {state_digest(compression)}"
    (folder / f"end-{hvd.rank()}").write_text(end)


def save(folder: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, compression: Any) -> None:
    save_checkpoint(folder / "state", compression)
    if hvd.rank() == 0:
        rest = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save(rest, folder / "rest.pt")
        faulty_worker.publish(folder)
    hvd.barrier()


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    hvd.init()
    traps = []
    if len(sys.argv) > 2:
        fault, points, rank, step = sys.argv[2:]
        if hvd.rank() == int(rank):
            traps = [Trap(folder, fault, point, int(step) + i) for i, point in enumerate(points.split(","))]
    faulty_worker.run(lambda: train(folder, traps), folder, hvd.rank())


main()
