"""The files of a checkpoint: whole or refused, whatever happens to them and to whoever writes them."""

from __future__ import annotations

import builtins
import json
import os
import pickle
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from horovod_dgc import checkpoint, resize
from horovod_dgc.checkpoint import MANIFEST, CheckpointError, Group

STATE = {"exchanges": 3, "tensors": {"a": {"shape": [2, 3], "stepped": True}}}
LONE = Group(0, [0], lambda data, name: data)


def arrays(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "residual:a": rng.standard_normal((2, 3), dtype=np.float32),
        "velocity:ä/b:c": np.float32([0.0, -0.0, 1e-45]),
        "residual:scalar": np.array(seed, np.float32),
    }


def on_ranks(count: int, work: Callable[[Group], Any]) -> list[Any]:
    """What ``work`` returns or raises on each of ``count`` threads that gather from each other."""
    barrier = threading.Barrier(count, timeout=30)
    slots = [b""] * count
    outcomes: list[Any] = [None] * count

    def run(position: int) -> None:
        def gather(data: bytes, name: str) -> bytes:
            slots[position] = data
            barrier.wait()
            joined = b"".join(slots)
            barrier.wait()
            return joined

        try:
            outcomes[position] = work(Group(position, range(count), gather))
        except Exception as error:
            outcomes[position] = error

    threads = [threading.Thread(target=run, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def save(folder: Path, seed: int = 1, **state: Any) -> None:
    checkpoint.save(folder, {**STATE, **state}, arrays(seed), LONE)


def read(folder: Path, position: int = 0) -> dict[str, np.ndarray]:
    shard = checkpoint.Shard(checkpoint.read_manifest(folder), position)
    return {name: shard.array(name) for name in shard.names()}


def assert_equal(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        assert array.shape == theirs[name].shape and array.tobytes() == theirs[name].tobytes(), name


def rewrite(folder: Path, **changes: Any) -> None:
    """Change the manifest and give it the digest that fits."""
    content = json.loads((folder / MANIFEST).read_bytes())
    content.pop("sha256")
    content.update(changes)
    (folder / MANIFEST).write_bytes(checkpoint._encode({**content, "sha256": checkpoint._digest(content)}))


def shard_of(folder: Path) -> Path:
    (path,) = folder.glob("shard-*")
    return path


def test_round_trip_on_several_ranks(tmp_path: Path) -> None:
    for _ in range(2):
        assert on_ranks(3, lambda g: checkpoint.save(tmp_path, STATE, arrays(g.position), g)) == [None] * 3
    manifest = checkpoint.read_manifest(tmp_path)
    assert (manifest.workers, manifest.state) == (3, STATE)
    for rank in range(3):
        assert_equal(read(tmp_path, rank), arrays(rank))
    assert len(list(tmp_path.iterdir())) == 4, "the previous save's shards are still there"


def test_a_state_without_arrays(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "made" / "here", STATE, {}, LONE)
    assert read(tmp_path / "made" / "here") == {}


def test_files_of_others_stay(tmp_path: Path) -> None:
    others = ["model.pt", "shard-1.safetensors", "horovod_dgc.json.bak"]
    for name in others:
        (tmp_path / name).write_text("mine")
    save(tmp_path, 1)
    save(tmp_path, 2)
    assert [(tmp_path / name).read_text() for name in others] == ["mine"] * 3


@pytest.mark.parametrize("which", ["manifest", "shard"])
def test_truncated_anywhere(tmp_path: Path, which: str) -> None:
    save(tmp_path)
    path = tmp_path / MANIFEST if which == "manifest" else shard_of(tmp_path)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=path.name):
            read(tmp_path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(CheckpointError, match=path.name):
        read(tmp_path)


@given(where=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255), which=st.sampled_from([MANIFEST, "shard-*"]))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_changed_byte_anywhere(tmp_path: Path, where: float, flip: int, which: str) -> None:
    if not (tmp_path / MANIFEST).exists():
        save(tmp_path)
    (path,) = tmp_path.glob(which)
    whole = path.read_bytes()
    changed = bytearray(whole)
    changed[int(where * len(whole))] ^= flip
    path.write_bytes(changed)
    try:
        with pytest.raises(CheckpointError):
            read(tmp_path)
    finally:
        path.write_bytes(whole)


def test_whitespace_that_json_ignores_is_damage_as_well(tmp_path: Path) -> None:
    save(tmp_path)
    path = tmp_path / MANIFEST
    path.write_bytes(path.read_bytes().replace(b"\n", b"\t"))
    with pytest.raises(CheckpointError, match="damaged"):
        read(tmp_path)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"format": "other"}', b"\x80\x04K\x01.", b"\xff\xfe", b"1"])
def test_a_foreign_manifest(tmp_path: Path, content: bytes) -> None:
    (tmp_path / MANIFEST).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"foreign|must be a manifest"):
        checkpoint.read_manifest(tmp_path)


def test_no_checkpoint_there(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(CheckpointError, match="holds no checkpoint"):
            checkpoint.read_manifest(folder)


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_format_version(tmp_path: Path, version: object) -> None:
    save(tmp_path)
    rewrite(tmp_path, version=version, package="9.9")
    with pytest.raises(CheckpointError, match=f"version 1, got {version!r}, written by horovod_dgc 9.9"):
        checkpoint.read_manifest(tmp_path)


def test_the_packages_version_may_differ(tmp_path: Path) -> None:
    save(tmp_path)
    rewrite(tmp_path, package="0.0.9")
    assert_equal(read(tmp_path), arrays(1))


class Trap:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return os.putenv, ("HOROVOD_DGC_TRAP", "sprung")


def test_nothing_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("unpickled")

    save(tmp_path)
    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    assert_equal(read(tmp_path), arrays(1))
    path = shard_of(tmp_path)
    data = pickle.dumps(Trap())
    path.write_bytes(data)
    entry = {"file": path.name, "nbytes": len(data), "sha256": checkpoint._file_digest(path)}
    rewrite(tmp_path, shards=[entry])
    with pytest.raises(CheckpointError, match="cannot read"):
        read(tmp_path)
    (tmp_path / MANIFEST).write_bytes(data)
    with pytest.raises(CheckpointError, match="foreign"):
        read(tmp_path)


def test_a_shard_that_is_not_the_one_named(tmp_path: Path) -> None:
    """Whole safetensors files, with the right digest, but another rank's, another save's, somebody else's."""
    on_ranks(2, lambda g: checkpoint.save(tmp_path / "a", STATE, arrays(g.position), g))
    on_ranks(2, lambda g: checkpoint.save(tmp_path / "b", STATE, arrays(g.position), g))
    first, second = checkpoint.read_manifest(tmp_path / "a").shards
    other = checkpoint.read_manifest(tmp_path / "b").shards[0]
    (tmp_path / "b" / other["file"]).rename(tmp_path / "a" / other["file"])
    foreign = safetensors.numpy.save(arrays(0))
    path = tmp_path / "a" / first["file"].replace("-00000-", "-00007-")
    path.write_bytes(foreign)
    theirs = {"file": path.name, "nbytes": len(foreign), "sha256": checkpoint._file_digest(path)}
    for shards in ([second, first], [other, second], [theirs, second]):
        rewrite(tmp_path / "a", shards=shards)
        with pytest.raises(CheckpointError, match="is not rank 0's shard"):
            read(tmp_path / "a")
    rewrite(tmp_path / "a", shards=[{**first, "sha256": second["sha256"]}, second])
    with pytest.raises(CheckpointError, match="does not match its sha256"):
        read(tmp_path / "a")


def test_a_missing_shard(tmp_path: Path) -> None:
    save(tmp_path)
    path = shard_of(tmp_path)
    path.unlink()
    with pytest.raises(CheckpointError, match=path.name):
        read(tmp_path)


def test_other_dtypes_are_refused(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, STATE, {"residual:a": np.zeros(3, np.float64)}, LONE)
    with pytest.raises(CheckpointError, match="residual:a must be float32, got float64"):
        read(tmp_path)


def interrupt(monkeypatch: pytest.MonkeyPatch, number: int, stop: Callable[[], None]) -> None:
    """Let ``stop`` act at the given number, from 0, of the calls that reach the file system; a write stops half-way."""
    count = iter(range(10**6))

    def wrap(holder: Any, name: str) -> None:
        original = getattr(holder, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if next(count) == number:
                stop()
            return original(*args, **kwargs)

        monkeypatch.setattr(holder, name, wrapped)

    def opened(path: Path, mode: str) -> Any:
        file = builtins.open(path, mode)  # noqa: SIM115
        if "x" not in mode:
            return file

        class HalfWay:
            def __enter__(self) -> HalfWay:
                return self

            def __exit__(self, *_: Any) -> None:
                file.close()

            def __getattr__(self, name: str) -> Any:
                return getattr(file, name)

            def write(self, data: bytes) -> int:
                file.write(data[: len(data) // 2])
                file.flush()
                if next(count) == number:
                    stop()
                return file.write(data[len(data) // 2 :])

        return HalfWay()

    monkeypatch.setattr(checkpoint, "open", opened, raising=False)
    for holder, name in ((os, "fsync"), (os, "replace"), (Path, "unlink"), (Path, "mkdir")):
        wrap(holder, name)


def fail() -> None:
    raise OSError(28, "No space left on device")


def attempts(folder: Path, attempt: Callable[[int], bool]) -> list[bool]:
    """Saves stopped at each call in turn, until one is not; for each, whether the new state is there."""
    news = []
    for number in range(100):
        save(folder, 1, exchanges=1)
        finished = attempt(number)
        manifest = checkpoint.read_manifest(folder)
        new = manifest.state["exchanges"] == 2
        assert_equal(read(folder), arrays(2 if new else 1))
        news.append(new)
        if finished:
            return news
    raise AssertionError("never finished")


def check_attempts(folder: Path, news: list[bool]) -> None:
    assert len(news) > 9 and not news[0] and news[-1]
    assert news == sorted(news), "the old state came back"
    save(folder, 3)
    assert len(list(folder.iterdir())) == 2, "interrupted saves have left files behind"


def test_a_crash_at_any_point_leaves_one_checkpoint_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def attempt(number: int) -> bool:
        child = os.fork()
        if not child:
            try:
                interrupt(monkeypatch, number, lambda: os._exit(1))
                save(tmp_path, 2, exchanges=2)
                os._exit(0)
            finally:
                os._exit(2)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in (0, 1)
        return status == 0

    check_attempts(tmp_path, attempts(tmp_path, attempt))


def test_an_error_at_any_point_leaves_one_checkpoint_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raised = []

    def attempt(number: int) -> bool:
        reached = []

        def stop() -> None:
            reached.append(number)
            fail()

        with monkeypatch.context() as patch:
            interrupt(patch, number, stop)
            try:
                save(tmp_path, 2, exchanges=2)
            except CheckpointError as error:
                raised.append(str(error))
        return not reached

    check_attempts(tmp_path, attempts(tmp_path, attempt))
    assert len(raised) > 6 and all("rank 0: OSError" in message and "No space" in message for message in raised)


@pytest.mark.parametrize("bad", [0, 2])
def test_a_rank_that_cannot_write_is_the_same_error_on_all(tmp_path: Path, bad: int) -> None:
    on_ranks(3, lambda g: checkpoint.save(tmp_path, STATE, arrays(g.position), g))

    def work(group: Group) -> None:
        mine = arrays(9) if group.position != bad else {"residual:a": object()}
        checkpoint.save(tmp_path, STATE, mine, group)  # type: ignore[arg-type]

    outcomes = on_ranks(3, work)
    assert all(isinstance(outcome, CheckpointError) for outcome in outcomes)
    assert len({str(outcome) for outcome in outcomes}) == 1
    assert f"rank {bad}: " in str(outcomes[0])
    for rank in range(3):
        assert_equal(read(tmp_path, rank), arrays(rank))


def test_ranks_after_different_steps_are_refused(tmp_path: Path) -> None:
    outcomes = on_ranks(2, lambda g: checkpoint.save(tmp_path, {**STATE, "exchanges": g.position}, arrays(0), g))
    for outcome in outcomes:
        assert isinstance(outcome, CheckpointError) and '"exchanges": 1' in str(outcome)
    assert not (tmp_path / MANIFEST).exists()


def test_a_folder_that_is_not_shared(tmp_path: Path) -> None:
    outcomes = on_ranks(2, lambda g: checkpoint.save(tmp_path / str(g.position), STATE, arrays(0), g))
    for outcome in outcomes:
        assert isinstance(outcome, CheckpointError) and "all ranks share" in str(outcome)


def test_without_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(CheckpointError, match="pip install safetensors"):
        save(tmp_path)


@given(
    old=st.integers(1, 9), new=st.integers(1, 9), reduction=st.sampled_from(["average", "sum"]), seed=st.integers(0, 99)
)
@settings(max_examples=200, deadline=None)
def test_what_will_be_applied_is_conserved_exactly(old: int, new: int, reduction: Any, seed: int) -> None:
    # Multiples of every N, so that N' / N times a sum is whole.
    held = np.random.default_rng(seed).integers(-9, 10, (old, 7)).astype(np.float32) * 2520
    factor = resize.factor(reduction, new, old)
    given_to = [resize.merged((held[s] for s in resize.sources(r, new, old)), factor) for r in range(new)]
    assert sorted(s for r in range(new) for s in resize.sources(r, new, old)) == list(range(old))
    total = sum(array.astype(np.float64) for array in given_to if array is not None)
    if reduction == "average":
        np.testing.assert_array_equal(total * old, held.sum(0, dtype=np.float64) * new)
    else:
        np.testing.assert_array_equal(total, held.sum(0, dtype=np.float64))


def test_the_same_number_of_workers_keeps_every_bit() -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, 10_000, dtype=np.uint32)
    array = bits.view(np.float32)
    array = np.append(array[np.isfinite(array)], np.float32(-0.0))
    assert resize.merged([array], resize.factor("average", 4, 4)).tobytes() == array.tobytes()
