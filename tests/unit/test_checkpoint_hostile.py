"""Checkpoint files by somebody who computes digests as well: float32 arrays or a CheckpointError, nothing else."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from horovod_dgc import checkpoint
from horovod_dgc.checkpoint import MANIFEST, CheckpointError, Group

STATE = {"exchanges": 3, "tensors": {"a": {"shape": [2, 3]}}}
DTYPES = ("F32", "F16", "BF16", "F64", "F8_E4M3", "F8_E5M2", "C64", "I8", "U64", "BOOL", "F4", "X", "")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
RUNS = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    arrays = {"residual:a": np.ones((2, 3), np.float32)}
    checkpoint.save(tmp_path, STATE, arrays, Group(0, [0], lambda data, name: data))
    return tmp_path


def content(folder: Path) -> dict[str, Any]:
    return json.loads((folder / MANIFEST).read_text())


def seal(folder: Path, content: Any) -> None:
    """Write a manifest whose digest is right."""
    if isinstance(content, dict):
        content = {key: value for key, value in content.items() if key != "sha256"}
        content["sha256"] = checkpoint._digest(content)
    (folder / MANIFEST).write_bytes(checkpoint._encode(content))


def refused_or_float32(folder: Path) -> list[np.ndarray]:
    """The arrays, of as many as can be read before something is refused."""
    arrays = []
    try:
        manifest = checkpoint.read_manifest(folder)
        for position in range(min(manifest.workers, 3)):
            shard = checkpoint.Shard(manifest, position)
            arrays += [shard.array(name) for name in shard.names()]
    except CheckpointError:
        pass
    assert all(array.dtype == np.float32 for array in arrays)
    return arrays


@given(value=JSON)
@RUNS
def test_any_json_as_a_manifest(tmp_path: Path, value: Any) -> None:
    seal(tmp_path, value)
    assert not refused_or_float32(tmp_path)


@given(key=st.sampled_from(["save", "state", "shards", "package"]), value=JSON, keep=st.booleans())
@RUNS
def test_any_json_in_a_manifest(folder: Path, key: str, value: Any, keep: bool) -> None:
    original = (folder / MANIFEST).read_bytes()
    changed = content(folder)
    if keep:
        changed[key] = value
    else:
        del changed[key]
    seal(folder, changed)
    assert not refused_or_float32(folder) or key == "package"
    (folder / MANIFEST).write_bytes(original)


@given(key=st.sampled_from(["file", "nbytes", "sha256"]), value=JSON)
@RUNS
def test_any_json_in_the_entry_of_a_shard(folder: Path, key: str, value: Any) -> None:
    original = (folder / MANIFEST).read_bytes()
    changed = content(folder)
    changed["shards"][0][key] = value
    seal(folder, changed)
    assert not refused_or_float32(folder)
    (folder / MANIFEST).write_bytes(original)


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", ".", "", "a\0b", "shard"])
def test_shards_are_looked_for_in_the_folder_alone(folder: Path, name: str) -> None:
    (folder.parent / "outside").write_bytes(next(folder.glob("shard-*")).read_bytes())
    changed = content(folder)
    changed["shards"][0]["file"] = name
    seal(folder, changed)
    with pytest.raises(CheckpointError, match="as this package writes them"):
        checkpoint.read_manifest(folder)


def test_nesting_without_end(folder: Path) -> None:
    for opening, closing in (("[", "]"), ('{"a":', "}")):
        for depth in (300, 900, 5_000, 100_000):
            (folder / MANIFEST).write_text(opening * depth + "1" + closing * depth)
            assert not refused_or_float32(folder)


@given(
    dtype=st.sampled_from(DTYPES),
    shape=st.just([2, 3]) | st.lists(st.integers(-1, 5) | st.sampled_from([2**31, 2**63, 2**64]), max_size=3),
    offsets=st.just((0, 24)) | st.tuples(*[st.integers(-1, 40) | st.sampled_from([2**31, 2**64 - 1])] * 2),
    size=st.just(32) | st.integers(0, 64),
    body=st.just(24) | st.integers(0, 64),
    header=st.sampled_from(["ours", "none", "list", "nested", "foreign"]),
)
@RUNS
def test_any_shard(
    folder: Path, dtype: str, shape: list[int], offsets: tuple[int, int], size: int, body: int, header: str
) -> None:
    """safetensors files whose digest is in the manifest, with headers that lie about length, shape or dtype."""
    manifest = content(folder)
    ours = {key: manifest[key] for key in ("format", "version", "package", "save", "state")}
    metadata = {
        "ours": json.dumps({**ours, "rank": 0, "workers": 1}),
        "none": None,
        "list": "[1]",
        "nested": "[" * 50_000,
        "foreign": "{}",
    }[header]
    entries: dict[str, Any] = {"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}
    if metadata is not None:
        entries["__metadata__"] = {checkpoint.FORMAT: metadata}
    encoded = json.dumps(entries).encode()
    data = struct.pack("<Q", max(0, len(encoded) + size - 32)) + encoded + bytes(body)
    (folder / manifest["shards"][0]["file"]).write_bytes(data)
    manifest["shards"][0].update(nbytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    seal(folder, manifest)
    for array in refused_or_float32(folder):
        assert header == "ours" and dtype == "F32" and list(array.shape) == shape
