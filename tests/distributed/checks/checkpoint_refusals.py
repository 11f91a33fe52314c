"""Checkpoints that cannot be saved or do not fit: the same clear error on every rank, and nothing has changed."""

from __future__ import annotations

import copy
import os
from typing import Any

import horovod.torch as hvd
import torch
from rank import raises
from torch import nn

from checks.checkpoints import (
    GATHER,
    METHOD,
    fed,
    nesterov,
    restore,
    shared_folder,
    snapshot,
    steps,
    trained,
    write_as,
)
from checks.common import assert_ranks_identical, batch, compressed, small_model, state_digest
from horovod_dgc import checkpoint
from horovod_dgc.checkpoint import CheckpointError
from horovod_dgc.torch import load_checkpoint, save_checkpoint
from horovod_dgc.torch.collectives import gather_bytes


def check_a_state_loaded_for_another_process_set_is_refused() -> None:
    _, _, compression = trained(METHOD, 2)
    process_set = hvd.add_process_set(list(range(1, hvd.size())))
    if process_set.included():
        model = small_model()
        _, other = compressed(METHOD, model, nesterov(model), settings=GATHER, process_set=process_set)
        other.load_state_dict(compression.state_dict())
        images, labels = batch(0)
        with raises(ValueError, f"rank {hvd.rank()} of {hvd.size()}", "process_set="):
            nn.functional.cross_entropy(model(images), labels).backward()
    hvd.remove_process_set(process_set)


def check_damage_on_one_shard_changes_nothing_anywhere() -> None:
    with shared_folder() as folder:
        model, optimizer, compression = trained(METHOD, 3)
        save_checkpoint(folder, compression)
        steps(model, optimizer, range(3, 5))
        hvd.barrier()
        last = hvd.size() - 1
        if hvd.rank() == 0:
            (path,) = folder.glob(f"shard-*-{last:05d}-of-*")
            data = bytearray(path.read_bytes())
            data[-1] ^= 1
            path.write_bytes(data)
        hvd.barrier()
        before = state_digest(compression)
        with raises(CheckpointError, f"rank {last}:", "sha256", f"{last:05d}-of"):
            load_checkpoint(folder, compression)
        assert state_digest(compression) == before and compression.state_dict()["exchanges"] == 5
        with raises(CheckpointError, "rank 0:", "holds no checkpoint"):
            load_checkpoint(folder / "nowhere", compression)
        with raises(ValueError, "resize", "'add'", "'drop'"):
            load_checkpoint(folder, compression, resize="add")
        steps(model, optimizer, range(5, 7))
        assert_ranks_identical(model, "after a refused checkpoint")


def check_a_rank_that_cannot_write_leaves_the_previous_checkpoint() -> None:
    with shared_folder() as folder:
        model, optimizer, compression = trained(METHOD, 3)
        save_checkpoint(folder, compression)
        saved = snapshot(model, optimizer, compression)
        steps(model, optimizer, range(3, 5))
        fsync, last = os.fsync, hvd.size() - 1

        def full(_: int) -> None:
            raise OSError(28, "No space left on device")

        if hvd.rank() == last:
            os.fsync = full
        try:
            with raises(CheckpointError, f"rank {last}:", "No space left"):
                save_checkpoint(folder, compression)
        finally:
            os.fsync = fsync
        assert load_checkpoint(folder, compression) == 3
        restore(saved, model, optimizer)
        assert save_checkpoint(folder, compression) == 3
        assert len(list(folder.iterdir())) == hvd.size() + 1
        steps(model, optimizer, range(3, 5))
        assert_ranks_identical(model, "after a failed save")


def check_ranks_at_different_steps_are_not_saved() -> None:
    with shared_folder() as folder:
        _, _, compression = trained(METHOD, 2)
        state = compression.state_dict()
        state["exchanges"] += hvd.rank() == 1
        compression.load_state_dict(state)
        with raises(CheckpointError, "same step()", '"exchanges": 3'):
            save_checkpoint(folder, compression)


def check_a_rank_that_has_not_loaded_is_noticed() -> None:
    _, _, compression = trained(METHOD, 2)
    state = copy.deepcopy(compression.state_dict())
    model, _, fresh = trained(METHOD, 0)
    if hvd.rank() == 0:
        fresh.load_state_dict(state)
    images, labels = batch(0)
    with raises(ValueError, "configured differently", "exchanges done: 2", "exchanges done: 0"):
        nn.functional.cross_entropy(model(images), labels).backward()


def check_a_rank_that_does_not_save_is_an_error() -> None:
    model = small_model()
    settings = {**GATHER, "agreement_timeout": 2.0}
    _, compression = compressed(METHOD, model, nesterov(model), settings=settings)
    with shared_folder() as folder:
        if hvd.rank() != 1:
            with raises(RuntimeError, "no answer", "agreement_timeout=2", "call save_checkpoint()"):
                save_checkpoint(folder, compression)
        hvd.barrier()
        if hvd.rank() == 1:
            # What the others have left under way would stay so.
            gather_bytes(bytes(8), f"{checkpoint.NAME}.begin.lengths", hvd.global_process_set, 60.0)


def check_the_op_must_be_that_of_the_state() -> None:
    with shared_folder() as folder:
        write_as(hvd.size(), folder, "sum")
        model, _, compression = fed(momentum=0.5, op=hvd.Average)
        load_checkpoint(folder, compression)
        with raises(ValueError, "op must be", "sum", "average"):
            model.backward(model.feed(0, hvd.rank()))


def check_what_does_not_fit_is_refused_and_changes_nothing() -> None:
    _, _, compression = trained(METHOD, 2)
    before = state_digest(compression)
    good = copy.deepcopy(compression.state_dict())
    name = "4.weight"

    def refused(*words: str, **changes: Any) -> None:
        with raises(ValueError, *words):
            compression.load_state_dict({**good, **changes})
        assert state_digest(compression) == before and compression.state_dict()["exchanges"] == 2

    def tensor(**changes: Any) -> dict[str, Any]:
        return {"tensors": {**good["tensors"], name: {**good["tensors"][name], **changes}}}

    refused("version 1", "got 2", version=2)
    refused("version 1", "got 0", version=0)
    refused("method DGC", "'AdaComp'", method="AdaComp")
    refused("exchanges", "-1", exchanges=-1)
    refused("exchanges", "'2'", exchanges="2")
    refused("reduction", "'mean'", reduction="mean")
    refused("missing nothing", "unknown 'surprise'", surprise=1)
    refused(f"rank {hvd.rank()} of {hvd.size()}", f"of {hvd.size() + 1}", workers=hvd.size() + 1)
    refused(f"rank {hvd.rank()} of", f"got rank {hvd.rank() + 1}", rank=hvd.rank() + 1)
    refused("tensors", "dict", "list", tensors=[])
    refused("missing '4.weight'", tensors={k: v for k, v in good["tensors"].items() if k != name})
    refused("unknown 'other'", tensors={**good["tensors"], "other": good["tensors"][name]})
    refused(name, "shape (16, 144)", "(144, 16)", **tensor(shape=[144, 16]))
    refused(name, "residual", "float32", "float64", **tensor(residual=torch.zeros(16, 144).double()))
    refused(name, "residual", "(16, 144)", "(2304,)", **tensor(residual=torch.zeros(2304)))
    refused(name, "residual", "float32 tensor", "[1.0]", **tensor(residual=[1.0]))
    refused(name, "velocity", "finite", **tensor(velocity=torch.full((16, 144), float("nan"))))
    refused(name, "must have a velocity", **tensor(velocity=None))
    refused(name, "without a residual", **tensor(residual=None))
    refused("stepped", "'yes'", **tensor(stepped="yes"))
    refused(name, "unknown 'extra'", **tensor(extra=1))
    with raises(ValueError, "state must be a dict", "list"):
        compression.load_state_dict([])
    model = small_model()
    _, adam = compressed(METHOD, model, torch.optim.Adam(model.parameters()), settings={})
    with raises(ValueError, "must not have a velocity"):
        adam.load_state_dict(good)
    compression.load_state_dict(good)


def check_a_model_that_does_not_fit_is_refused_on_every_rank() -> None:
    with shared_folder() as folder:
        _, _, compression = trained(METHOD, 2)
        save_checkpoint(folder, compression)
        model = small_model()
        if hvd.rank() == 1:
            model.append(nn.Linear(5, 5))
        _, other = compressed(METHOD, model, nesterov(model), settings={})
        with raises(CheckpointError, "rank 1:", "missing '7.bias', '7.weight'"):
            load_checkpoint(folder, other)
        assert all(entry["residual"] is None for entry in other.state_dict()["tensors"].values())
