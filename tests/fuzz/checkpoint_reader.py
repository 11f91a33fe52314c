"""Coverage-guided fuzzing of the checkpoint reader. Usage: checkpoint_reader.py FOLDER [libFuzzer's options]

Whatever the files hold, also where somebody has computed the digests anew, reading gives float32 arrays or a
CheckpointError. The first byte says what the others are: a manifest as it is, a manifest's content under a right
digest, or a shard under a manifest that names its digest. Begins with a checkpoint of its own making; what it finds to
be new stays in FOLDER/corpus for the next run.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["json", "horovod_dgc.checkpoint"]):
    import json.decoder

    from horovod_dgc import checkpoint

import numpy as np

KINDS = MANIFEST, RESEALED, SHARD = range(3)


def whole(folder: Path) -> tuple[bytes, bytes]:
    """The manifest and the shard of a valid checkpoint in this folder."""
    arrays = {"residual:a": np.arange(6, dtype=np.float32).reshape(2, 3), "velocity:a": np.zeros((2, 3), np.float32)}
    lone = checkpoint.Group(0, [0], lambda data, name: data)
    checkpoint.save(folder, {"exchanges": 3, "tensors": {"a": {"shape": [2, 3]}}}, arrays, lone)
    return (folder / checkpoint.MANIFEST).read_bytes(), next(folder.glob("shard-*")).read_bytes()


def seal(content: dict[str, object]) -> bytes:
    content = {key: value for key, value in content.items() if key != "sha256"}
    return checkpoint._encode({**content, "sha256": checkpoint._digest(content)})


class Reader:
    """Reads from a folder whose files are what the fuzzer gives."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest, self.shard = whole(folder)
        self.name = next(folder.glob("shard-*")).name

    def seeds(self) -> list[bytes]:
        return [bytes([MANIFEST]) + self.manifest, bytes([RESEALED]) + self.manifest, bytes([SHARD]) + self.shard]

    def __call__(self, data: bytes) -> None:
        kind, body = data[0] % len(KINDS) if data else MANIFEST, data[1:]
        manifest, shard = self.manifest, self.shard
        if kind == MANIFEST:
            manifest = body
        elif kind == RESEALED:
            try:
                manifest = seal(json.loads(body))
            except (ValueError, RecursionError, AttributeError):
                return
        else:
            shard = body
            content = json.loads(self.manifest)
            content["shards"][0].update(nbytes=len(shard), sha256=hashlib.sha256(shard).hexdigest())
            manifest = seal(content)
        (self.folder / checkpoint.MANIFEST).write_bytes(manifest)
        (self.folder / self.name).write_bytes(shard)
        try:
            read = checkpoint.read_manifest(self.folder)
            for position in range(min(read.workers, 4)):
                part = checkpoint.Shard(read, position)
                for name in part.names():
                    assert part.array(name).dtype == np.float32
        except checkpoint.CheckpointError:
            pass


def main() -> None:
    folder = Path(sys.argv[1])
    for name in ("checkpoint", "seeds"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in ("checkpoint", "seeds", "corpus"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    reader = Reader(folder / "checkpoint")
    for number, seed in enumerate(reader.seeds()):
        (folder / "seeds" / str(number)).write_bytes(seed)
    options = ["-max_len=4096", "-len_control=0", *sys.argv[2:]]
    atheris.Setup([sys.argv[0], *options, str(folder / "corpus"), str(folder / "seeds")], reader)
    atheris.Fuzz()


main()
