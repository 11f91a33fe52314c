"""Random data in the files of the examples' data sets, so that what trains with them needs no network."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def write_images(folder: Path, train: int, test: int) -> Path:
    """Images and labels in Fashion-MNIST's four files; returns the folder."""
    rng = np.random.default_rng(0)
    for part, count in (("train", train), ("t10k", test)):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = rng.integers(0, 10, count, dtype=np.uint8)
        for name, array in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels)):
            head = b"\0\0\x08" + bytes([array.ndim]) + np.array(array.shape, ">u4").tobytes()
            (folder / name).write_bytes(head + array.tobytes())
    return folder


def write_spoken_digits(folder: Path, utterances: int) -> Path:
    """Utterances in the file of the spoken digits, as many of each digit; returns the folder."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(6, 40, utterances)
    frames = rng.standard_normal((lengths.sum(), 13)).astype(np.float32)
    np.savez(folder / "digits.npz", X=frames, y=np.arange(utterances) % 10, lengths=lengths)
    return folder
