"""One checkpoint of a job: a shard of every rank, and a manifest, which alone makes them a checkpoint.

Each save writes shards under new names. Only when all of them are on disk is the manifest replaced, in one step, and
only then are the shards that it no longer names removed. So a crash at any moment leaves the previous checkpoint or
the new one, whole. Shards are safetensors files; nothing here unpickles.

This module knows no framework: arrays are NumPy's, and ranks reach each other through a callable.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import horovod_dgc
from horovod_dgc import agreement

FORMAT = "horovod_dgc checkpoint"
VERSION = 1
MANIFEST = "horovod_dgc.json"
# What this module writes, and may therefore remove.
OURS = re.compile(r"shard-[0-9a-f]{16}-\d{5}-of-\d{5}\.safetensors|horovod_dgc\.json\.[0-9a-f]{16}")
NAME = "horovod_dgc.checkpoint"
BLOCK_NBYTES = 1 << 20

FloatArray = npt.NDArray[np.float32]


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, read or fitted; the same on every rank, none of which has changed."""


@dataclass(frozen=True)
class Group:
    """The ranks that save or load together.

    Attributes:
        position: this rank's place among them, from 0.
        ranks: their global numbers, for messages.
        gather: from this rank's bytes (never none) and a name to the bytes of all, one after another.
    """

    position: int
    ranks: Sequence[int]
    gather: agreement.Gather

    def texts(self, text: str, name: str) -> list[str]:
        return agreement.texts(text, len(self.ranks), self.gather, f"{NAME}.{name}")


@dataclass(frozen=True)
class Manifest:
    """What a complete checkpoint consists of.

    Attributes:
        save: identifies the save; part of its shards' names.
        state: what is the same on all ranks, as JSON can hold it.
        shards: for each rank its ``file``, ``nbytes`` and ``sha256``.
        sha256: digest of all this.
    """

    folder: Path
    save: str
    state: dict[str, Any]
    shards: list[dict[str, Any]]
    sha256: str

    @property
    def workers(self) -> int:
        return len(self.shards)


def save(folder: Path, state: dict[str, Any], arrays: Mapping[str, FloatArray], group: Group) -> None:
    """Write a checkpoint; every rank of the group calls this with its own arrays.

    Args:
        folder: on a file system that all ranks share; made if it is missing.
        state: must be the same on all ranks, and the same after a round trip through JSON.
        arrays: float32, by name.

    Raises:
        CheckpointError: on every rank if one could not write; the previous checkpoint is as good as before.
    """
    first = group.position == 0
    if first:
        # Before anybody writes: what a save that failed has left behind may be what fills the disk.
        remove_unnamed(folder)
    save_id = group.texts(secrets.token_hex(8), "begin")[0]
    try:
        agreement.require(_encode(state).decode(), group.ranks, group.gather)
    except ValueError as error:
        raise CheckpointError(f"save on all ranks after the same step(). {error}") from error
    position, workers = group.position, len(group.ranks)
    shards = together(group, "write", lambda: write_shard(folder, save_id, position, workers, state, arrays))

    def publish() -> None:
        if first:
            write_manifest(folder, save_id, state, shards)
            remove_unnamed(folder)

    together(group, "publish", publish)


def together(group: Group, name: str, work: Callable[[], Any]) -> list[Any]:
    """Do something on every rank and return what it gave on each (as JSON holds it).

    Raises:
        CheckpointError: on every rank if it raised on any, with the first such rank's message.
    """
    failure: Exception | None = None
    answer: dict[str, Any] = {}
    try:
        answer["result"] = work()
    except Exception as error:
        failure = error
        kind = "" if isinstance(error, (CheckpointError, ValueError)) else f"{type(error).__name__}: "
        answer["error"] = f"{kind}{error}"
    answers = [json.loads(text) for text in group.texts(json.dumps(answer), name)]
    for rank, theirs in zip(group.ranks, answers):
        if "error" in theirs:
            raise CheckpointError(f"rank {rank}: {theirs['error']}") from failure
    return [theirs["result"] for theirs in answers]


def load(folder: Path, group: Group, fit: Callable[[Manifest], Any]) -> list[Any]:
    """Read the checkpoint on every rank and fit it there; returns what ``fit`` gave on each (as JSON holds it).

    Raises:
        CheckpointError: on every rank, if on one it is missing, damaged or does not fit, or is another one.
    """

    def read() -> dict[str, Any]:
        manifest = read_manifest(folder)
        return {"sha256": manifest.sha256, "fitted": fit(manifest)}

    reports = together(group, "load", read)
    for rank, report in zip(group.ranks, reports):
        if report["sha256"] != reports[0]["sha256"]:
            raise CheckpointError(f"rank {rank} reads another checkpoint in {folder} than rank {group.ranks[0]}")
    return [report["fitted"] for report in reports]


def what_was_dropped(lost: Sequence[Mapping[str, float]], saved: int) -> str | None:
    """For the user's eyes; None if nothing was.

    Args:
        lost: for each rank the squared norms of the "residual" and the "velocity" that it gave up.
        saved: number of workers whose state it was.
    """
    residuals, velocities = (math.sqrt(sum(squares[field] for squares in lost)) for field in ("residual", "velocity"))
    if not residuals and not velocities:
        return None
    return (
        f"state of {saved} workers dropped for {len(lost)}: residuals of norm {residuals:.6g} and "
        f"velocities of norm {velocities:.6g} are lost"
    )


def write_shard(
    folder: Path, save_id: str, position: int, workers: int, state: dict[str, Any], arrays: Mapping[str, FloatArray]
) -> dict[str, Any]:
    """Write one rank's arrays under a new name, durably, and return the shard's entry for the manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    _sync_folder(folder.parent)
    name = f"shard-{save_id}-{position:05d}-of-{workers:05d}.safetensors"
    header = {**_identity(save_id), "rank": position, "workers": workers, "state": state}
    data = _safetensors().numpy.save(dict(arrays), {FORMAT: _encode(header).decode()})
    _write(folder / name, data)
    _sync_folder(folder)
    return {"file": name, "nbytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def write_manifest(folder: Path, save_id: str, state: dict[str, Any], shards: list[dict[str, Any]]) -> None:
    """Put the manifest in place of the previous one, durably: from here on, these shards are the checkpoint."""
    for shard in shards:
        path = folder / shard["file"]
        if not path.is_file() or path.stat().st_size != shard["nbytes"]:
            raise CheckpointError(f"folder must be on a file system that all ranks share: {path} is not complete here")
    content = {**_identity(save_id), "state": state, "shards": shards}
    content["sha256"] = _digest(content)
    fresh = folder / f"{MANIFEST}.{save_id}"
    _write(fresh, _encode(content))
    os.replace(fresh, folder / MANIFEST)
    _sync_folder(folder)


def remove_unnamed(folder: Path) -> None:
    """Remove shards that the manifest does not name. Where it cannot be read, or they cannot be removed, they stay."""
    with contextlib.suppress(CheckpointError, OSError):
        named: set[str] = set()
        if (folder / MANIFEST).exists():
            named = {shard["file"] for shard in read_manifest(folder).shards}
        for path in folder.iterdir():
            if OURS.fullmatch(path.name) and path.name not in named:
                path.unlink()


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the checkpoint in a folder, checked against its own digest.

    Raises:
        CheckpointError: there is none, or it is damaged, foreign, or of another format version.
    """
    path = folder / MANIFEST
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{folder} holds no checkpoint: {error}") from error
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged or foreign: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path} must be a manifest of a {FORMAT}")
    if content.get("version") != VERSION:
        raise CheckpointError(
            f"{path} must have format version {VERSION}, got {content.get('version')!r}, "
            f"written by horovod_dgc {content.get('package')}; this is {horovod_dgc.__version__}"
        )
    digest = content.pop("sha256", None)
    try:
        # The second condition covers bytes that JSON does not care about.
        whole = digest == _digest(content) and data == _encode({**content, "sha256": digest})
    except RecursionError:
        whole = False
    if not whole:
        raise CheckpointError(f"{path} is damaged: its content does not match its sha256")
    if not _is_manifest(content):
        raise CheckpointError(f"{path} must name a save, its state and its shards as this package writes them")
    return Manifest(folder, content["save"], content["state"], content["shards"], digest)


class Shard:
    """One rank's arrays, readable one at a time; the file has been checked against the manifest.

    Args:
        manifest: of the checkpoint.
        position: the rank that wrote the shard, among those that saved together.

    Raises:
        CheckpointError: the file is missing, truncated, damaged or foreign.
    """

    def __init__(self, manifest: Manifest, position: int) -> None:
        safetensors = _safetensors()
        entry = manifest.shards[position]
        self._path = manifest.folder / entry["file"]
        try:
            nbytes = self._path.stat().st_size
            if nbytes != entry["nbytes"]:
                raise CheckpointError(f"{self._path} must have {entry['nbytes']} bytes, got {nbytes}: it is damaged")
            if _file_digest(self._path) != entry["sha256"]:
                raise CheckpointError(f"{self._path} does not match its sha256 in the manifest: it is damaged")
            self._file = safetensors.safe_open(self._path, framework="np")
            metadata = self._file.metadata() or {}
            header = json.loads(metadata.get(FORMAT, "{}"))
        except (OSError, ValueError, RecursionError, safetensors.SafetensorError) as error:
            raise CheckpointError(f"cannot read {self._path}: {error}") from error
        written = {**_identity(manifest.save), "rank": position, "workers": manifest.workers, "state": manifest.state}
        if not isinstance(header, dict) or {**header, "package": written["package"]} != written:
            raise CheckpointError(f"{self._path} is not rank {position}'s shard of the save that the manifest names")

    def names(self) -> list[str]:
        return sorted(self._file.keys())

    def array(self, name: str) -> FloatArray:
        """A copy of the array of this name, float32.

        Raises:
            CheckpointError: there is none of this name and dtype.
        """
        try:
            array: FloatArray = self._file.get_tensor(name)
        except (_safetensors().SafetensorError, TypeError, AttributeError, KeyError) as error:
            # The latter three: dtypes that NumPy does not have.
            raise CheckpointError(f"{self._path}: cannot read {name}: {error}") from error
        if array.dtype != np.float32:
            raise CheckpointError(f"{self._path}: {name} must be float32, got {array.dtype}")
        return array


def _safetensors() -> Any:
    # Not at import: the rest of the package does without, and every rank is to hear of the one that lacks it.
    try:
        import safetensors.numpy
    except ImportError as error:
        raise CheckpointError("checkpoints need safetensors: pip install safetensors") from error
    return safetensors


def _identity(save_id: str) -> dict[str, Any]:
    return {"format": FORMAT, "version": VERSION, "package": horovod_dgc.__version__, "save": save_id}


def _is_manifest(content: dict[str, Any]) -> bool:
    """Whether the parts that reading relies on are there; anybody can compute a digest."""
    shards = content.get("shards")
    return (
        isinstance(content.get("save"), str)
        and isinstance(content.get("state"), dict)
        and isinstance(shards, list)
        and len(shards) > 0
        and all(isinstance(shard, dict) and shard.keys() == {"file", "nbytes", "sha256"} for shard in shards)
        # A name of ours leads nowhere but into the folder itself.
        and all(isinstance(shard["file"], str) and OURS.fullmatch(shard["file"]) for shard in shards)
    )


def _encode(content: dict[str, Any]) -> bytes:
    return json.dumps(content, indent=1, sort_keys=True).encode()


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(_encode(content)).hexdigest()


def _file_digest(path: Path) -> str:
    sha = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK_NBYTES):
            sha.update(block)
    return sha.hexdigest()


def _write(path: Path, data: bytes) -> None:
    """Write a file that does not exist yet, durably; nothing is left of it if that fails."""
    try:
        with open(path, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        with contextlib.suppress(OSError):
            path.unlink()
        raise


def _sync_folder(folder: Path) -> None:
    """Make names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
