"""Invariant 6: a checkpoint resumes bit for bit, and into another number of workers with nothing lost."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import horovod.tensorflow as hvd
import numpy as np
from horovod.tensorflow.functions import broadcast_object
from rank import raises

from checks.common import Fed, Trainer, assert_ranks_identical, same, sgd, state, vector
from horovod_dgc import DGC, Method, TopK, VarianceBased, Warmup
from horovod_dgc import checkpoint as files
from horovod_dgc.checkpoint import CheckpointError
from horovod_dgc.tensorflow import load_checkpoint, save_checkpoint

FIELDS = ("residual", "velocity")
METHOD = DGC(density=0.02, values="int8", warmup=Warmup(steps=10))


@contextmanager
def shared_folder() -> Iterator[Path]:
    """The same new folder on all ranks, removed when all have left."""
    made = tempfile.mkdtemp() if hvd.rank() == 0 else None
    folder = Path(broadcast_object(made)) / "checkpoint"
    yield folder
    # Not after a failure: ranks that have not failed would wait for one another.
    hvd.allreduce(np.zeros(1, np.float32))
    if made:
        shutil.rmtree(made)


def trainer_of(method: Method = METHOD, op: Any = hvd.Average) -> Trainer:
    return Trainer(Fed(), method, sgd(learning_rate=0.5, momentum=0.5), settings={"transport": "gather"}, op=op)


def everything(trainer: Trainer) -> dict[str, np.ndarray]:
    memories = {t.label: t.memory.numpy() for t in trainer.compression.tensors if t.memory is not None}
    return {**state(trainer.compression), **memories, "": vector(trainer.model.variables)}


def check_resume_is_bit_exact() -> None:
    for method in (METHOD, VarianceBased(cap=0.1), TopK(density=0.02)):
        with shared_folder() as folder:
            first = trainer_of(method)
            first.run(4)
            assert save_checkpoint(folder, first.compression) == 4
            saved = [v.numpy() for v in [*first.model.variables, *first.optimizer.variables]]
            first.run(4, first=4)
            second = trainer_of(method)
            second.optimizer.build(second.model.variables)
            for variable, value in zip([*second.model.variables, *second.optimizer.variables], saved):
                variable.assign(value)
            assert load_checkpoint(folder, second.compression) == 4
            second.run(4, first=4)
            ends = everything(first), everything(second)
            differ = [name for name in ends[0] if not same({"": ends[0][name]}, {"": ends[1][name]})]
            assert ends[0].keys() == ends[1].keys() and not differ, f"{method}: {differ} not where the first job went"
            assert_ranks_identical(second.model.variables, str(method))


def write_as(workers: int, folder: Path, reduction: str) -> dict[str, np.ndarray]:
    """Write a checkpoint of another number of workers; returns its arrays, by name, one row for each."""
    trainer = trainer_of(op=hvd.Sum if reduction == "sum" else hvd.Average)
    trainer.run(3)
    save_checkpoint(folder, trainer.compression)
    manifest = files.read_manifest(folder)
    generator = np.random.default_rng(workers)
    shapes = {name: files.Shard(manifest, 0).array(name).shape for name in files.Shard(manifest, 0).names()}
    # Multiples of 60, so that N' / N times a sum is exact.
    held = {name: 60.0 * generator.integers(-99, 100, (workers, *shape)) for name, shape in shapes.items()}
    held = {name: values.astype(np.float32) for name, values in held.items()}
    hvd.allreduce(np.zeros(1, np.float32))
    if hvd.rank() == 0:
        save = "0123456789abcdef"
        shards = [
            files.write_shard(folder, save, rank, workers, manifest.state, {n: held[n][rank] for n in held})
            for rank in range(workers)
        ]
        files.write_manifest(folder, save, manifest.state, shards)
    hvd.allreduce(np.zeros(1, np.float32))
    return held


def check_resizing_conserves_what_will_be_applied() -> None:
    for workers in (1, 2, 3, 5):
        for op, reduction in ((hvd.Average, "average"), (hvd.Sum, "sum")):
            with shared_folder() as folder:
                held = write_as(workers, folder, reduction)
                trainer = trainer_of(op=op)
                assert load_checkpoint(folder, trainer.compression) == 3
                ratio = hvd.size() / workers if reduction == "average" else 1.0
                for tensor in trainer.compression.tensors:
                    for field in (name for name in FIELDS if name in tensor.kept):
                        total = hvd.allreduce(getattr(tensor, field).read_value(), op=hvd.Sum).numpy()
                        before = held[f"{field}:{tensor.position}"].sum(0, dtype=np.float64)
                        assert np.array_equal(total, (before * ratio).astype(np.float32)), (
                            f"{workers} -> {hvd.size()}: {field}"
                        )
                trainer.run(2, first=3)
                assert_ranks_identical(trainer.model.variables, f"{workers} -> {hvd.size()}")


def check_each_rank_reads_what_it_takes_over() -> None:
    """No other shard is opened: on a cluster each is a file of gigabytes on somebody's disk."""
    for workers in (1, 5):
        with shared_folder() as folder:
            write_as(workers, folder, "average")
            trainer = trainer_of()
            opened: list[int] = []

            class Recorded(files.Shard):
                def __init__(self, manifest: files.Manifest, position: int) -> None:
                    opened.append(position)  # noqa: B023
                    super().__init__(manifest, position)

            with patch.object(files, "Shard", Recorded):
                load_checkpoint(folder, trainer.compression)
            assert opened == list(range(hvd.rank(), workers, hvd.size())), f"{workers} -> {hvd.size()}: {opened}"


def check_dropping_says_what_is_lost() -> None:
    with shared_folder() as folder:
        held = write_as(5, folder, "average")
        trainer = trainer_of()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            load_checkpoint(folder, trainer.compression, resize="drop")
        for tensor in trainer.compression.tensors:
            assert not any(getattr(tensor, name).numpy().any() for name in FIELDS if name in tensor.kept)
        said = [str(warning.message) for warning in caught if "are lost" in str(warning.message)]
        norm = np.sqrt(sum(np.square(v, dtype=np.float64).sum() for k, v in held.items() if k.startswith("residual")))
        assert len(said) == (hvd.rank() == 0) and all(f"residuals of norm {norm:.6g}" in text for text in said)


def check_what_does_not_fit_changes_nothing_on_any_rank() -> None:
    with shared_folder() as folder:
        trainer = trainer_of()
        trainer.run(3)
        save_checkpoint(folder, trainer.compression)
        trainer.run(2, first=3)
        before = everything(trainer)
        with raises(ValueError, "resize", "'mean'"):
            load_checkpoint(folder, trainer.compression, resize="mean")
        with raises(CheckpointError, "holds no checkpoint"):
            load_checkpoint(folder / "elsewhere", trainer.compression)
        with raises(CheckpointError, "method", "TopK", "DGC"):
            load_checkpoint(folder, trainer_of(TopK()).compression)
        other = Fed()
        optimizer = sgd(learning_rate=0.5, momentum=0.5)
        with raises(CheckpointError, "1 variables"):
            load_checkpoint(folder, Trainer(_Only(other.weight), METHOD, optimizer).compression)
        last = hvd.size() - 1
        if hvd.rank() == 0:
            (path,) = folder.glob(f"shard-*-{last:05d}-of-*")
            data = bytearray(path.read_bytes())
            data[-1] ^= 1
            path.write_bytes(data)
        hvd.allreduce(np.zeros(1, np.float32))
        with raises(CheckpointError, f"rank {last}:", "sha256"):
            load_checkpoint(folder, trainer.compression)
        assert same(before, everything(trainer))
        if hvd.rank() == last:
            trainer.compression.progress.assign_add([1, 0, 0, 0])
        with raises(CheckpointError, "same step"):
            save_checkpoint(folder, trainer.compression)


class _Only:
    def __init__(self, variable: Any) -> None:
        self.variables = [variable]
