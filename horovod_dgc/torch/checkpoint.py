"""Compression state of all ranks in one folder: saved together, loaded by as many ranks or another number."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import horovod.torch as hvd
import numpy as np
import torch

from horovod_dgc import _checks, agreement, resize
from horovod_dgc import checkpoint as files
from horovod_dgc.torch import state as states
from horovod_dgc.torch.collectives import gather_bytes
from horovod_dgc.torch.compression import Compression

# What is a rank's own, and not part of what all ranks have in common.
PERSONAL = ("rank", "workers")
# What is fitted to another number of workers, and what a checkpoint holds besides.
FIELDS = ("residual", "velocity")
SAVED = (*FIELDS, "memory")


def save_checkpoint(folder: str | os.PathLike[str], compression: Compression, *, process_set: Any = None) -> int:
    """Save the state of all ranks; every rank calls this, after the same ``step()``.

    The folder holds one checkpoint: a shard of each rank and the manifest ``horovod_dgc.json``. A later save into the
    same folder replaces it; until the new one is complete and on disk, the previous one stays, whatever happens.
    A rank writes 8 bytes an element and needs as much memory again while it does.

    Args:
        folder: on a file system that all ranks share; made if it is missing. One job at a time may write there.
        compression: the one given to ``hvd.DistributedOptimizer``.
        process_set: the optimizer's, if that is not the global one and has not exchanged yet.

    Returns:
        The number of exchanges done, which :func:`load_checkpoint` returns as well.

    Raises:
        CheckpointError: on every rank, if one cannot write or holds the state of another step.
        RuntimeError: some rank did not call this within ``agreement_timeout`` seconds.
    """
    state = compression.state_dict()
    common = {key: value for key, value in state.items() if key not in PERSONAL}
    common["tensors"] = {
        name: {**entry, **{field: None if entry[field] is None else "float32" for field in SAVED}}
        for name, entry in state["tensors"].items()
    }
    arrays = {
        f"{field}:{name}": np.ascontiguousarray(entry[field].cpu().numpy())
        for name, entry in state["tensors"].items()
        for field in SAVED
        if entry[field] is not None
    }
    files.save(Path(folder), common, arrays, _group(compression, process_set, "call save_checkpoint()"))
    return int(state["exchanges"])


def load_checkpoint(
    folder: str | os.PathLike[str],
    compression: Compression,
    *,
    resize: str = "sum",
    process_set: Any = None,
) -> int:
    """Load what :func:`save_checkpoint` has saved; every rank calls this, after any broadcast of the optimizer's state.

    With as many workers as saved, the job goes on bit for bit. With N' workers instead of N, "sum" gives new rank r the
    sum of the residuals, and of the velocities, of old ranks r, r + N', r + 2 N', ...; ranks without any start from
    zero. With ``op=hvd.Average`` the sums are multiplied by N' / N, since each worker's share of the average is then
    1 / N' and no longer 1 / N. Thus what is still to be applied is what it was, to one rounding of each element.
    Velocities of exempt tensors are the same on all ranks, and stay so. What a method's codec keeps besides (second
    moments, a low-rank basis) starts anew.

    Args:
        folder: as for :func:`save_checkpoint`.
        compression: of the same method and parameters, before its first exchange or later.
        resize: with another number of workers, "sum" or "drop": residuals, and velocities of sparsified tensors, start
            from zero, and a warning on the first rank says how much is lost. A job of one worker can only drop.
        process_set: as for :func:`save_checkpoint`.

    Returns:
        The number of exchanges done when it was saved.

    Raises:
        ValueError: ``resize`` is neither.
        CheckpointError: on every rank, if on one the checkpoint is missing, damaged, of another version or does not
            fit; no rank's state has changed.
        RuntimeError: some rank did not call this within ``agreement_timeout`` seconds.
    """
    _checks.one_of("resize", resize, ("sum", "drop"))
    group = _group(compression, process_set, "call load_checkpoint()")
    puts = []

    def fit(manifest: files.Manifest) -> dict[str, Any]:
        state, lost = _read(manifest, compression, group.position, len(group.ranks), drop=resize == "drop")
        puts.append(compression._prepare_load(state, process_set))
        return {"lost": lost, "saved": manifest.workers, "exchanges": state["exchanges"]}

    reports = files.load(Path(folder), group, fit)
    puts[0]()
    dropped = files.what_was_dropped([report["lost"] for report in reports], reports[0]["saved"])
    if dropped and group.position == 0:
        warnings.warn(dropped, stacklevel=2)
    return int(reports[0]["exchanges"])


def _group(compression: Compression, process_set: Any, expected: str) -> files.Group:
    members = compression._members(process_set)
    return files.Group(
        members.rank(),
        agreement.ranks_of(members),
        lambda data, name: gather_bytes(data, name, members, compression._timeout, expected),
    )


def _read(
    manifest: files.Manifest, compression: Compression, position: int, workers: int, *, drop: bool
) -> tuple[dict[str, Any], dict[str, float]]:
    """The state for one rank, and the squared norms of what it leaves out."""
    state = {**manifest.state, "rank": position, "workers": workers}
    states.check_header(state, compression.method, compression._local_size)
    saved = manifest.workers
    sources = resize.sources(position, workers, saved)
    # The first rank that has the same part of each tensor.
    first = position % compression._local_size
    shards = {source: files.Shard(manifest, source) for source in {*sources, first}}
    shapes = {tensor.name: tensor.shape for tensor in compression._tensors}
    factor = resize.factor(state["reduction"], workers, saved)
    dropping, alone = drop and workers != saved, hvd.size() == 1
    lost = dict.fromkeys(FIELDS, 0.0)
    tensors = {}
    for name, entry in state["tensors"].items():
        tensors[name] = dict(entry)
        # Another model's tensors are found out when the state is put in place.
        shape = shapes.get(name, entry["shape"])
        aggregated = compression.method.plan(entry["shape"], state["exchanges"]).momentum == "aggregated"
        if entry["memory"] is not None:
            kept = workers == saved and not alone
            tensors[name]["memory"] = torch.from_numpy(shards[position].array(f"memory:{name}")) if kept else None
        for field in (field for field in FIELDS if entry[field] is not None):
            key = f"{field}:{name}"
            arrays = (shards[source].array(key) for source in sources)
            common = field == "velocity" and aggregated
            if dropping and (alone or not common):
                lost[field] += sum(float(np.square(array, dtype=np.float64).sum()) for array in arrays)
                # A worker alone holds no state: its optimizer runs as it is.
                tensors[name][field] = None if alone else _zeros(shape)
            elif common:
                tensors[name][field] = torch.from_numpy(shards[first].array(key))
            else:
                merged = resize.merged(arrays, factor)
                tensors[name][field] = _zeros(shape) if merged is None else torch.from_numpy(merged)
    return {**state, "tensors": tensors}, lost


def _zeros(shape: Sequence[int]) -> torch.Tensor:
    return torch.zeros(tuple(shape), dtype=torch.float32, device="cpu")
