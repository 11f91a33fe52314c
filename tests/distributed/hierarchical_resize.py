"""Nodes of two ranks train, save, and go on as another number of nodes: what was fed in = applied + waiting.

Usage: hierarchical_resize.py FOLDER save|load
"""

from __future__ import annotations

import sys
from pathlib import Path

import horovod.torch as hvd
import numpy as np
import torch
from checks.common import Fed, assert_ranks_identical, compressed

from horovod_dgc import DGC
from horovod_dgc.torch import load_checkpoint, save_checkpoint

LOCAL, SAVED_RANKS, STEPS = 2, 4, 10


def begin(reduction: str) -> tuple[Fed, torch.optim.Optimizer, object]:
    model = Fed()
    optimizer, compression = compressed(
        DGC(density=0.02, values="float32"),
        model,
        torch.optim.SGD(model.parameters(), lr=1.0),
        settings={"hierarchical": LOCAL},
        op=hvd.Sum if reduction == "sum" else hvd.Average,
    )
    return model, optimizer, compression


def train(model: Fed, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for step in range(steps):
        optimizer.zero_grad()
        model.backward(model.feed(step, hvd.rank()))
        optimizer.step()


def save(folder: Path, reduction: str) -> None:
    assert hvd.size() == SAVED_RANKS
    model, optimizer, compression = begin(reduction)
    train(model, optimizer, STEPS)
    save_checkpoint(folder / "state", compression)
    if hvd.rank() == 0:
        np.save(folder / "weight.npy", model.weight.detach().numpy())
        print(f"{reduction}: saved")


def load(folder: Path, reduction: str) -> None:
    model, optimizer, compression = begin(reduction)
    model.weight.data.copy_(torch.from_numpy(np.load(folder / "weight.npy")))
    assert load_checkpoint(folder / "state", compression) == STEPS
    entry = next(entry for entry in compression._tensors if entry.name == "weight")
    waiting = hvd.allgather(entry.residual.view(1, -1), name="parts").view(hvd.size() // LOCAL, -1).sum(0)
    # What the reduction makes of the nodes' sum of means over their ranks.
    waiting = waiting * LOCAL if reduction == "sum" else waiting * LOCAL / hvd.size()
    given = sum(model.feed(step, rank)[0] for step in range(STEPS) for rank in range(SAVED_RANKS))
    given = given if reduction == "sum" else given / SAVED_RANKS
    lost = (waiting.view(40, 50) - model.weight.detach() - given).abs().max().item()
    # Thirds of whole numbers are rounded once.
    allowed = 0.0 if reduction == "sum" or hvd.size() != 6 else 1e-3
    assert lost <= allowed, f"{reduction}, {hvd.size()} ranks: {lost} lost"
    assert waiting.any()
    train(model, optimizer, 3)
    assert_ranks_identical(model, "after a change of the number of nodes")
    if hvd.rank() == 0:
        print(f"{reduction}: nothing is lost")


hvd.init(process_sets="dynamic")
for each in ("sum", "average"):
    (Path(sys.argv[1]) / each).mkdir(exist_ok=True)
    {"save": save, "load": load}[sys.argv[2]](Path(sys.argv[1]) / each, each)
hvd.shutdown()
