"""Compression state of all ranks in one folder: saved together, loaded by as many ranks or another number."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import horovod.tensorflow as hvd
import numpy as np

from horovod_dgc import _checks, agreement, resize
from horovod_dgc import checkpoint as files
from horovod_dgc.tensorflow.collectives import gather_bytes
from horovod_dgc.tensorflow.compression import Compression
from horovod_dgc.tensorflow.operations import PROGRESS
from horovod_dgc.tensorflow.tensors import Tensor, by_name, set_progress

# What is fitted to another number of workers, and what a checkpoint holds besides.
FIELDS = ("residual", "velocity")
SAVED = (*FIELDS, "memory")
REDUCTIONS = ("average", "sum")


def save_checkpoint(folder: str | os.PathLike[str], compression: Compression, *, process_set: Any = None) -> int:
    """Save the compression state of all ranks; every rank calls this, after the same step; eager.

    The folder holds one checkpoint: a shard of each rank and the manifest ``horovod_dgc.json``. A later save into the
    same folder replaces it; until the new one is complete and on disk, the previous one stays, whatever happens. The
    model and the optimizer are saved as ever, by one rank.

    Args:
        folder: on a file system that all ranks share; made if it is missing. One job at a time may write there.
        compression: the one given to the optimizer or tape.
        process_set: the optimizer's, if that is not the global one.

    Returns:
        The number of exchanges done, which :func:`load_checkpoint` returns as well.

    Raises:
        ValueError: the model has no variables yet.
        CheckpointError: on every rank, if one cannot write or holds the state of another step.
        RuntimeError: some rank did not call this within ``agreement_timeout`` seconds.
    """
    compression._graphs.model.require("save_checkpoint()")
    progress = by_name(PROGRESS, compression.progress.numpy())
    exchanges, skipped = progress["steps"], progress["skipped"]
    common = {
        **_header(compression),
        "reduction": compression._graphs.reduction,
        "exchanges": exchanges,
        "skipped": skipped,
        "tensors": {
            str(tensor.position): {
                **_expected(tensor),
                "steps": tensor.steps,
                "rate": None if tensor.rate is None else float(tensor.rate),
            }
            for tensor in compression.tensors
        },
    }
    arrays = {
        f"{field}:{tensor.position}": getattr(tensor, field).numpy()
        for tensor in compression.tensors
        for field in SAVED
        if getattr(tensor, field) is not None
    }
    files.save(Path(folder), common, arrays, _group(compression, process_set, "call save_checkpoint()"))
    return exchanges


def load_checkpoint(
    folder: str | os.PathLike[str], compression: Compression, *, resize: str = "sum", process_set: Any = None
) -> int:
    """Load what :func:`save_checkpoint` has saved; every rank calls this, after the optimizer's state is restored.

    With as many workers as saved, the job goes on bit for bit. With N' workers instead of N, "sum" gives new rank r the
    sum of the residuals, and of the velocities, of old ranks r, r + N', r + 2 N', ...; ranks without any start from
    zero. With ``op=hvd.Average`` the sums are multiplied by N' / N. Thus what is still to be applied is what it was, to
    one rounding of each element. What a method's codec keeps besides (second moments, a low-rank basis) starts anew.

    Args:
        folder: as for :func:`save_checkpoint`.
        compression: of the same method and variables.
        resize: with another number of workers, "sum" or "drop": residuals and velocities start from zero, and a warning
            on the first rank says how much is lost. A job of one worker can only drop.
        process_set: as for :func:`save_checkpoint`.

    Returns:
        The number of exchanges done when it was saved.

    Raises:
        ValueError: ``resize`` is neither, or the model has no variables yet.
        CheckpointError: on every rank, if on one the checkpoint is missing, damaged, of another version or does not
            fit; no rank's state has changed.
        RuntimeError: some rank did not call this within ``agreement_timeout`` seconds.
    """
    _checks.one_of("resize", resize, ("sum", "drop"))
    compression._graphs.model.require("load_checkpoint()")
    group = _group(compression, process_set, "call load_checkpoint()")
    found: list[tuple[dict[str, Any], dict[str, np.ndarray]]] = []

    def fit(manifest: files.Manifest) -> dict[str, Any]:
        _check(manifest.state, compression)
        arrays, lost = _fitted(manifest, compression, group.position, len(group.ranks), drop=resize == "drop")
        found.append((manifest.state, arrays))
        return {"lost": lost, "saved": manifest.workers}

    reports = files.load(Path(folder), group, fit)
    ((state, arrays),) = found
    for tensor in compression.tensors:
        for field in (field for field in SAVED if getattr(tensor, field) is not None):
            getattr(tensor, field).assign(arrays[f"{field}:{tensor.position}"])
        entry = state["tensors"][str(tensor.position)]
        tensor.steps = entry["steps"]
        if tensor.rate is not None:
            tensor.rate.assign(entry["rate"])
    set_progress(compression.progress, state["exchanges"], state["skipped"])
    compression._graphs.reduction = state["reduction"]
    dropped = files.what_was_dropped([report["lost"] for report in reports], reports[0]["saved"])
    if dropped and group.position == 0:
        warnings.warn(dropped, stacklevel=2)
    return int(state["exchanges"])


def _group(compression: Compression, process_set: Any, expected: str) -> files.Group:
    members = hvd.global_process_set if process_set is None else process_set
    timeout = compression._graphs.timeout
    return files.Group(
        members.rank(),
        agreement.ranks_of(members),
        lambda data, name: gather_bytes(data, name, members, timeout, expected),
    )


def _header(compression: Compression) -> dict[str, Any]:
    graphs = compression._graphs
    return {"framework": "tensorflow", "method": graphs.method.configuration(), "local_size": graphs.local_size}


def _expected(tensor: Tensor) -> dict[str, Any]:
    """What a checkpoint must say of this variable, but for its rate and steps."""
    return {"shape": list(tensor.variable.shape), **{field: getattr(tensor, field) is not None for field in SAVED}}


def _check(state: Mapping[str, Any], compression: Compression) -> None:
    """Raise ValueError unless the state, whose digest is right, is one of this compression."""
    for name, value in _header(compression).items():
        if state.get(name) != value:
            raise ValueError(f"{name} of the checkpoint must be {value!r}, got {state.get(name)!r}")
    _checks.whole_number("exchanges of the checkpoint", state.get("exchanges"), 0)
    _checks.whole_number("skipped of the checkpoint", state.get("skipped"), 0)
    if state["exchanges"]:
        _checks.one_of("reduction of the checkpoint", state.get("reduction"), REDUCTIONS)
    tensors = state.get("tensors")
    positions = [str(tensor.position) for tensor in compression.tensors]
    if not isinstance(tensors, Mapping) or sorted(tensors) != sorted(positions):
        raise ValueError(f"the checkpoint must be of {len(positions)} variables, as this compression is")
    for tensor in compression.tensors:
        entry, expected = tensors[str(tensor.position)], _expected(tensor)
        own = {"rate": None, "steps": None}
        if not isinstance(entry, Mapping) or {**entry, **own} != {**expected, **own}:
            raise ValueError(f"variable {tensor.label!r} of the checkpoint must have {expected}, got {entry!r}")
        _checks.whole_number(f"steps of {tensor.label!r} in the checkpoint", entry.get("steps"), 0)
        if tensor.rate is not None:
            what = f"rate of {tensor.label!r} in the checkpoint"
            _checks.in_range(what, entry.get("rate"), 0.0, math.inf, high_open=True)


def _fitted(
    manifest: files.Manifest, compression: Compression, position: int, workers: int, *, drop: bool
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """The arrays for one rank, and the squared norms of what it leaves out."""
    saved = manifest.workers
    alone = hvd.size() == 1 and manifest.state["exchanges"] > 0
    if alone and not drop:
        raise ValueError(
            "one worker trains without compression, so residuals would never be applied: resize='drop' drops them"
        )
    dropping = alone or (drop and workers != saved)
    sources = resize.sources(position, workers, saved)
    shards = {source: files.Shard(manifest, source) for source in sources}
    factor = resize.factor(manifest.state["reduction"], workers, saved)
    lost = dict.fromkeys(FIELDS, 0.0)
    arrays = {}

    def read(source: int, key: str, size: int) -> np.ndarray:
        array = shards[source].array(key)
        if array.shape != (size,) or not np.isfinite(array).all():
            raise ValueError(f"{key} of rank {source} must be {size} finite numbers, got shape {array.shape}")
        return array

    for tensor in compression.tensors:
        for field in (field for field in SAVED if getattr(tensor, field) is not None):
            key, size = f"{field}:{tensor.position}", int(getattr(tensor, field).shape[0])
            if field == "memory":
                kept = workers == saved and not alone
                arrays[key] = read(position, key, size) if kept else np.zeros(size, np.float32)
                continue
            parts = [read(source, key, size) for source in sources]
            if dropping:
                lost[field] += sum(float(np.square(part, dtype=np.float64).sum()) for part in parts)
            merged = None if dropping else resize.merged(parts, factor)
            arrays[key] = np.zeros(size, np.float32) if merged is None else merged
    return arrays, lost
