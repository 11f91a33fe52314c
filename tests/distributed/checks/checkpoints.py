"""Invariant 6: a checkpoint resumes bit for bit; on another number of workers nothing that waits is lost."""

from __future__ import annotations

import copy
import io
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import horovod.torch as hvd
import numpy as np
import torch
from rank import raises
from torch import nn

from checks.common import Fed, assert_ranks_identical, batch, compressed, small_model, state_digest, vector
from horovod_dgc import DGC, Warmup, checkpoint
from horovod_dgc.torch import Compression, load_checkpoint, save_checkpoint

METHOD = DGC(density=0.05)
# Sums of gathered payloads are taken in rank order; an allreduce's order depends on what Horovod happens to fuse.
GATHER = {"transport": "gather"}
METHODS = (
    DGC(density=0.02, values="int8", warmup=Warmup(steps=12)),
    DGC(density=0.05, values="int4", exempt_values="int8", clip_norm=1.0),
    DGC(density=0.05, momentum_correction=False),
)


@contextmanager
def shared_folder() -> Iterator[Path]:
    """A new folder, the same on all ranks of this machine."""
    mine = tempfile.mkdtemp() if hvd.rank() == 0 else None
    folder = hvd.broadcast_object(mine, root_rank=0, name="folder")
    yield Path(folder)
    # Not after a failure: ranks that have not failed would wait for one another.
    hvd.barrier()
    if mine:
        shutil.rmtree(mine)


def nesterov(model: nn.Module, **settings: Any) -> torch.optim.Optimizer:
    chosen = {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01, **settings}
    return torch.optim.SGD(model.parameters(), **chosen)


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, numbers: range) -> None:
    for number in numbers:
        optimizer.zero_grad()
        images, labels = batch(number)
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()


def snapshot(model: nn.Module, optimizer: torch.optim.Optimizer, compression: Compression) -> dict[str, Any]:
    """Copied through torch.save and its restricted unpickler: plain tensors, numbers and texts."""
    parts = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "compression": compression.state_dict()}
    buffer = io.BytesIO()
    torch.save(parts, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def restore(saved: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])


def assert_same(ours: tuple[nn.Module, Compression], theirs: tuple[nn.Module, Compression], what: str) -> None:
    for (name, mine), other in zip(ours[0].state_dict().items(), theirs[0].state_dict().values()):
        assert torch.equal(mine, other), f"{what}: {name} differs"
    first, second = (compression.state_dict() for _, compression in (ours, theirs))
    assert {k: v for k, v in first.items() if k != "tensors"} == {k: v for k, v in second.items() if k != "tensors"}
    for name, entry in first["tensors"].items():
        other = second["tensors"][name]
        assert entry["stepped"] == other["stepped"]
        for field in ("residual", "velocity"):
            assert (entry[field] is None) == (other[field] is None), f"{what}: {field} of {name}"
            assert entry[field] is None or torch.equal(entry[field], other[field]), f"{what}: {field} of {name} differs"


def trained(method: DGC, count: int, **settings: Any) -> tuple[nn.Module, torch.optim.Optimizer, Compression]:
    model = small_model()
    optimizer, compression = compressed(method, model, nesterov(model, **settings), settings=GATHER)
    steps(model, optimizer, range(count))
    return model, optimizer, compression


def check_resume_is_bit_exact() -> None:
    """In a new process's place: a new model, optimizer and compression, in the middle of a warm-up."""
    for method in METHODS:
        model, optimizer, compression = trained(method, 7)
        saved = snapshot(model, optimizer, compression)
        steps(model, optimizer, range(7, 16))
        again = small_model(seed=99)
        resumed, theirs = compressed(method, again, nesterov(again), settings=GATHER)
        restore(saved, again, resumed)
        theirs.load_state_dict(saved["compression"])
        assert state_digest(theirs) != state_digest(compression)
        steps(again, resumed, range(7, 16))
        assert_same((model, compression), (again, theirs), str(method))
        assert theirs.stats().total.steps == 9
        assert_ranks_identical(again, str(method))


def check_resume_is_bit_exact_with_dampening() -> None:
    """The first step is not dampened, a resumed one is."""
    settings = {"nesterov": False, "dampening": 0.3}
    model, optimizer, compression = trained(METHOD, 4, **settings)
    saved = snapshot(model, optimizer, compression)
    steps(model, optimizer, range(4, 8))
    again, resumed, theirs = trained(METHOD, 0, **settings)
    restore(saved, again, resumed)
    theirs.load_state_dict(saved["compression"])
    steps(again, resumed, range(4, 8))
    assert_same((model, compression), (again, theirs), "dampening")


def check_resume_through_files_after_broadcasts() -> None:
    """As a script does it: broadcast, then load on every rank. Saves into one folder replace each other."""
    with shared_folder() as folder:
        model, optimizer, compression = trained(METHODS[0], 3)
        assert save_checkpoint(folder / "state", compression) == 3
        steps(model, optimizer, range(3, 7))
        assert save_checkpoint(folder / "state", compression) == 7
        saved = snapshot(model, optimizer, compression)
        assert len(list((folder / "state").iterdir())) == hvd.size() + 1
        steps(model, optimizer, range(7, 16))

        again = small_model(seed=99)
        resumed, theirs = compressed(METHODS[0], again, nesterov(again), settings=GATHER)
        hvd.broadcast_parameters(again.state_dict(), root_rank=0)
        # It fills an optimizer that has no state with momentum buffers of a step of its own.
        hvd.broadcast_optimizer_state(resumed, root_rank=0)
        assert any("momentum_buffer" in state for state in resumed.state.values())
        again.load_state_dict(saved["model"])
        assert load_checkpoint(folder / "state", theirs) == 7
        steps(again, resumed, range(7, 16))
        assert_same((model, compression), (again, theirs), "files")
        assert not any("momentum_buffer" in state for state in resumed.state.values())


def check_going_back_in_the_middle_of_training() -> None:
    model, optimizer, compression = trained(METHODS[0], 5)
    saved = snapshot(model, optimizer, compression)
    steps(model, optimizer, range(5, 11))
    expected = copy.deepcopy(compression.state_dict()), vector(model.parameters())
    restore(saved, model, optimizer)
    compression.load_state_dict(saved["compression"])
    steps(model, optimizer, range(5, 11))
    assert torch.equal(vector(model.parameters()), expected[1])
    for name, entry in compression.state_dict()["tensors"].items():
        assert torch.equal(entry["residual"], expected[0]["tensors"][name]["residual"])
    assert compression.state_dict()["exchanges"] == 11


def check_loading_gives_up_a_step_under_way() -> None:
    model, optimizer, compression = trained(METHOD, 4)
    saved = snapshot(model, optimizer, compression)
    steps(model, optimizer, range(4, 8))
    expected = vector(model.parameters())

    restore(saved, model, optimizer)
    compression.load_state_dict(saved["compression"])
    images, labels = batch(50)
    nn.functional.cross_entropy(model(images), labels).backward()
    compression.load_state_dict(saved["compression"])
    with raises(RuntimeError, "given up", "load_state_dict"):
        optimizer.step()
    hvd.barrier()
    restore(saved, model, optimizer)
    steps(model, optimizer, range(4, 8))
    assert torch.equal(vector(model.parameters()), expected)
    assert compression.state_dict()["exchanges"] == 8


def check_a_state_saved_between_backward_and_step_is_the_one_before() -> None:
    model, optimizer, compression = trained(METHOD, 4)
    before = copy.deepcopy(compression.state_dict())
    images, labels = batch(4)
    nn.functional.cross_entropy(model(images), labels).backward()
    between = copy.deepcopy(compression.state_dict())
    optimizer.step()
    assert before["exchanges"] == between["exchanges"] == 4
    for name, entry in before["tensors"].items():
        assert torch.equal(entry["residual"], between["tensors"][name]["residual"])
        assert torch.equal(entry["velocity"], between["tensors"][name]["velocity"])


def check_momentum_buffers_are_still_handed_over() -> None:
    """A state saved before the first exchange leaves the optimizer's momentum where it is."""
    ends = []
    for load in (False, True):
        model, optimizer, compression = trained(METHOD, 0)
        for parameter in model.parameters():
            optimizer.state[parameter]["momentum_buffer"] = torch.ones_like(parameter)
        with shared_folder() as folder:
            if load:
                assert save_checkpoint(folder, compression) == 0
                assert load_checkpoint(folder, compression) == 0
        steps(model, optimizer, range(3))
        ends.append(vector(model.parameters()))
    assert torch.equal(*ends)


def check_adam_keeps_its_own_state() -> None:
    def adam() -> tuple[nn.Module, torch.optim.Optimizer, Compression]:
        model = small_model()
        return model, *compressed(METHOD, model, torch.optim.Adam(model.parameters(), lr=0.01), settings=GATHER)

    model, optimizer, compression = adam()
    steps(model, optimizer, range(4))
    saved = snapshot(model, optimizer, compression)
    assert all(entry["velocity"] is None for entry in saved["compression"]["tensors"].values())
    steps(model, optimizer, range(4, 8))
    again, resumed, theirs = adam()
    restore(saved, again, resumed)
    theirs.load_state_dict(saved["compression"])
    steps(again, resumed, range(4, 8))
    assert_same((model, compression), (again, theirs), "Adam")


def check_a_process_set_has_its_own_ranks() -> None:
    process_set = hvd.add_process_set([0, hvd.size() - 1] if hvd.size() > 2 else [1])
    options = {"settings": GATHER, "process_set": process_set}
    with shared_folder() as folder:
        if process_set.included():
            model, again = small_model(), small_model(seed=99)
            optimizer, compression = compressed(METHOD, model, nesterov(model), **options)
            steps(model, optimizer, range(3))
            assert save_checkpoint(folder, compression) == 3
            saved = snapshot(model, optimizer, compression)
            assert saved["compression"]["workers"] == process_set.size()
            steps(model, optimizer, range(3, 6))
            resumed, theirs = compressed(METHOD, again, nesterov(again), **options)
            restore(saved, again, resumed)
            assert load_checkpoint(folder, theirs, process_set=process_set) == 3
            steps(again, resumed, range(3, 6))
            assert_same((model, compression), (again, theirs), "process set")
    hvd.remove_process_set(process_set)


WORKERS_BEFORE = (1, 2, 3, 4, 6)


def fed(**settings: Any) -> tuple[Fed, torch.optim.Optimizer, Compression]:
    op = settings.pop("op", hvd.Average)
    model = Fed()
    method = settings.pop("method", DGC(density=1.0, values="float32"))
    optimizer, compression = compressed(
        method, model, torch.optim.SGD(model.parameters(), lr=1.0, **settings), settings=GATHER, op=op
    )
    return model, optimizer, compression


def write_as(workers: int, folder: Path, reduction: str) -> dict[str, np.ndarray]:
    """A checkpoint as so many workers would have written it; returns the arrays of all, stacked.

    Whole multiples of 12, so that N' / N times a sum, and a twelfth of it, are exact.
    """
    rng = np.random.default_rng(7)
    shapes = {"weight": (40, 50), "bias": (37,)}
    stacked = {
        f"{field}:{name}": rng.integers(-99, 100, (workers, *shape)).astype(np.float32) * 12
        for name, shape in shapes.items()
        for field in ("residual", "velocity")
    }
    # That of exempt tensors is the same on all ranks.
    stacked["velocity:bias"][:] = stacked["velocity:bias"][0]
    _, _, compression = fed(momentum=0.5)
    state = compression.state_dict()
    state = {key: value for key, value in state.items() if key not in ("rank", "workers")}
    for entry in state["tensors"].values():
        entry.update(stepped=True, residual="float32", velocity="float32")
    state.update(exchanges=9, reduction=reduction)
    if hvd.rank() == 0:
        shards = [
            checkpoint.write_shard(folder, "0" * 16, r, workers, state, {k: v[r] for k, v in stacked.items()})
            for r in range(workers)
        ]
        checkpoint.write_manifest(folder, "0" * 16, state, shards)
    hvd.barrier()
    return stacked


def check_resizing_conserves_what_will_be_applied() -> None:
    """Exactly: with zero gradients from here on, the parameters end where the old job's would have."""
    for workers in WORKERS_BEFORE:
        for op, reduction in ((hvd.Average, "average"), (hvd.Sum, "sum")):
            with shared_folder() as folder:
                held = write_as(workers, folder, reduction)
                model, optimizer, compression = fed(momentum=0.5, op=op)
                assert load_checkpoint(folder, compression) == 9
                entries = compression.state_dict()["tensors"]
                for name, entry in entries.items():
                    assert entry["stepped"]
                    waiting = entry["residual"].contiguous()
                    total = hvd.allreduce(waiting, op=hvd.Sum, name=f"held.{name}").double().numpy()
                    before = held[f"residual:{name}"].sum(0, dtype=np.float64)
                    ratio = hvd.size() / workers if reduction == "average" else 1.0
                    assert np.array_equal(total, before * ratio), f"{workers} -> {hvd.size()}, {reduction}: {name}"
                for _ in range(3):
                    optimizer.zero_grad()
                    model.backward([torch.zeros_like(p) for p in model.parameters()])
                    optimizer.step()
            share = workers if reduction == "average" else 1
            # The velocity goes on to give 1/2 + 1/4 + 1/8 of itself.
            weight = (held["residual:weight"] + held["velocity:weight"] * 0.875).sum(0) / share
            bias = held["residual:bias"].sum(0) / share
            # That of an exempt tensor takes what arrives, then its momentum: b, b/2, b/4 of the first arrival.
            bias = bias * 1.75 + held["velocity:bias"][0] * 0.875
            assert np.array_equal(-model.weight.detach().numpy(), weight.astype(np.float32)), f"{workers} {reduction}"
            assert np.array_equal(-model.bias.detach().numpy(), bias.astype(np.float32)), f"{workers} {reduction}"


def check_dropping_says_what_is_lost() -> None:
    for workers in WORKERS_BEFORE:
        with shared_folder() as folder:
            held = write_as(workers, folder, "average")
            _, _, compression = fed(momentum=0.5)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                assert load_checkpoint(folder, compression, resize="drop") == 9
            entries = compression.state_dict()["tensors"]
            texts = [str(w.message) for w in caught]
            if workers == hvd.size():
                assert not texts and entries["weight"]["residual"].any(), "nothing was to be dropped"
                continue
            assert not any(e["residual"].any() for e in entries.values()) and not entries["weight"]["velocity"].any()
            assert np.array_equal(entries["bias"]["velocity"], held["velocity:bias"][0])
            residual = np.sqrt(sum((held[f"residual:{n}"] ** 2).sum(dtype=np.float64) for n in ("weight", "bias")))
            velocity = np.sqrt((held["velocity:weight"] ** 2).sum(dtype=np.float64))
            assert len(texts) == (hvd.rank() == 0), texts
            if texts:
                assert f"{residual:.6g}" in texts[0] and f"{velocity:.6g}" in texts[0], texts


def check_sparse_training_goes_on_after_resizing() -> None:
    for workers in WORKERS_BEFORE:
        with shared_folder() as folder:
            write_as(workers, folder, "average")
            model, optimizer, compression = fed(momentum=0.5, method=DGC(density=0.02, values="float32"))
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                load_checkpoint(folder, compression)
            assert [("density=0.02" in str(w.message)) for w in caught] == [True] * (hvd.rank() == 0)
        for step in range(4):
            optimizer.zero_grad()
            model.backward(model.feed(step, hvd.rank()))
            optimizer.step()
        assert_ranks_identical(model, f"{workers} -> {hvd.size()}")
