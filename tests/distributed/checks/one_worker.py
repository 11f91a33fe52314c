"""Invariant 4 and checkpoints, with one worker: the model is that of plain SGD, and there is nothing to keep back."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

import horovod.torch as hvd
import torch
from rank import raises

from checks.checkpoints import METHODS, assert_same, fed, nesterov, restore, snapshot, steps, write_as
from checks.common import compressed, small_model, train
from horovod_dgc import DGC
from horovod_dgc.checkpoint import CheckpointError
from horovod_dgc.torch import load_checkpoint, save_checkpoint

assert hvd.size() == 1


def check_one_worker_is_plain_sgd() -> None:
    """Bit for bit."""
    settings = {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}
    model, plain = small_model(), small_model()
    optimizer, compression = compressed(
        DGC(density=0.001, clip_norm=0.1), model, torch.optim.SGD(model.parameters(), **settings), settings={}
    )
    ours = train(model, optimizer)
    theirs = train(plain, torch.optim.SGD(plain.parameters(), **settings))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs))
    assert compression.stats().total.sent == 0
    assert optimizer.param_groups[0]["momentum"] == 0.9


def check_one_worker_saves_and_loads() -> None:
    """Its checkpoints hold no residuals, and those of several workers cannot be applied by one."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model, again = small_model(), small_model(seed=99)
        optimizer, compression = compressed(METHODS[0], model, nesterov(model), settings={})
        steps(model, optimizer, range(3))
        assert save_checkpoint(folder / "one", compression) == 0
        saved = snapshot(model, optimizer, compression)
        steps(model, optimizer, range(3, 6))
        resumed, theirs = compressed(METHODS[0], again, nesterov(again), settings={})
        restore(saved, again, resumed)
        assert load_checkpoint(folder / "one", theirs) == 0
        theirs.load_state_dict(saved["compression"])
        steps(again, resumed, range(3, 6))
        assert_same((model, compression), (again, theirs), "one worker")

        for workers in (1, 3):
            write_as(workers, folder / f"of {workers}", "average")
            _, _, other = fed(momentum=0.5)
            with raises(CheckpointError, "one worker", "resize='drop'"):
                load_checkpoint(folder / f"of {workers}", other)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert load_checkpoint(folder / "of 3", other, resize="drop") == 9
        assert len(caught) == 1 and "3 workers dropped for 1" in str(caught[0].message), caught
        assert save_checkpoint(folder / "again", other) == 9
        assert all(entry["residual"] is None for entry in other.state_dict()["tensors"].values())
