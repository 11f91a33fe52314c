"""What is trained in the simulated jobs: models and data of the examples."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from support.simulated import Task, Training
from torch import nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
import datasets
from pytorch_images import ResidualNet, flipped, normalised
from pytorch_language_model import WordModel

Pair = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class ImageTraining(Training):
    """Attributes: images: of the training set that are used, the first ones; width: channels after the stem."""

    images: int = 12_800
    width: int = 16

    def task(self, data_dir: Path | None = None) -> Task:
        return Images(self, data_dir)


class Classification(Task):
    """Judged by its accuracy on a test set; each epoch goes through the examples in a new order."""

    examples: Pair
    test: Pair

    @property
    def steps_per_epoch(self) -> int:
        return len(self.examples[1]) // (self.training.workers * self.training.batch)

    def augmented(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs

    def batches(self) -> Iterator[list[Pair]]:
        training = self.training
        inputs, labels = self.examples
        torch.manual_seed(training.seed + 1)
        size = training.workers * training.batch
        for _ in range(training.epochs):
            order = torch.randperm(len(labels))
            for start in range(0, self.steps_per_epoch * size, size):
                parts = order[start : start + size].split(training.batch)
                yield [(self.augmented(inputs[part]), labels[part]) for part in parts]

    def loss(self, worker: int, batch: Pair) -> torch.Tensor:
        return functional.cross_entropy(self.model(batch[0]), batch[1])

    def evaluate(self) -> tuple[float, float]:
        inputs, labels = self.test
        outputs = torch.cat([self.model(part) for part in inputs.split(500)])
        right = (outputs.argmax(1) == labels).float().mean().item()
        return right, functional.cross_entropy(outputs, labels).item()


class Images(Classification):
    """The residual network of examples/pytorch_images.py and Fashion-MNIST, its whole test set."""

    def __init__(self, training: ImageTraining, data_dir: Path | None = None) -> None:
        super().__init__(training)
        self.model = ResidualNet(1, 10, training.width)
        self.examples, self.test = _images(training.images, data_dir)

    def augmented(self, inputs: torch.Tensor) -> torch.Tensor:
        return flipped(inputs)


@functools.cache
def _images(count: int, data_dir: Path | None) -> tuple[Pair, Pair]:
    images = datasets.fashion_mnist(data_dir)
    train = images.train_images[:count]
    scale = train.mean(), train.std()
    return (
        (normalised(train, *scale), torch.tensor(images.train_labels[:count])),
        (normalised(images.test_images, *scale), torch.tensor(images.test_labels)),
    )


@dataclass(frozen=True)
class DigitTraining(Training):
    """Attributes:
    frames: of an utterance that are used, the first ones.
    channels: of the convolutions.
    noise: standard deviation of what is added to every coefficient, whose own is 1: anew in every step of the
        training, once and for all in the test set. Without it the digits are too easy to tell methods apart.
    """

    frames: int = 32
    channels: int = 128
    noise: float = 1.0

    def task(self, data_dir: Path | None = None) -> Task:
        return Digits(self, data_dir)


class Digits(Classification):
    """Three convolutions over time and the spoken digits of the Free Spoken Digit Dataset."""

    def __init__(self, training: DigitTraining, data_dir: Path | None = None) -> None:
        super().__init__(training)
        self.examples, (inputs, labels) = _digits(training.frames, data_dir)
        noise = torch.randn(inputs.shape, generator=torch.Generator().manual_seed(0))
        self.test = inputs + training.noise * noise, labels
        self._noise, channels = training.noise, training.channels
        self.model = nn.Sequential(
            nn.Conv1d(self.examples[0].shape[1], channels, 5, padding=2),
            nn.ReLU(),
            nn.Conv1d(channels, channels, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv1d(channels, channels, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.AdaptiveAvgPool1d(1),
            nn.Flatten(),
            nn.Linear(channels, 10),
        )

    def augmented(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs + self._noise * torch.randn_like(inputs)


@functools.cache
def _digits(frames: int, data_dir: Path | None) -> tuple[Pair, Pair]:
    """Coefficients with mean 0 and deviation 1 in the training set, zeros after an utterance's end."""
    digits = datasets.spoken_digits(data_dir)
    spoken = np.concatenate(digits.train_features)
    mean, deviation = spoken.mean(0), spoken.std(0)

    def padded(utterances: list[np.ndarray]) -> torch.Tensor:
        inputs = torch.zeros(len(utterances), len(mean), frames)
        for row, utterance in zip(inputs, utterances):
            part = (utterance[:frames] - mean) / deviation
            row[:, : len(part)] = torch.from_numpy(part.T)
        return inputs

    return (
        (padded(digits.train_features), torch.tensor(digits.train_labels)),
        (padded(digits.test_features), torch.tensor(digits.test_labels)),
    )


@dataclass(frozen=True)
class WordTraining(Training):
    """``batch`` counts columns of text.

    Attributes:
        vocabulary: known words.
        width: of embedding and LSTM layers.
        length: words in a column per step.
        test_words: of the test text that are used, the first ones.
    """

    higher_is_better = False

    vocabulary: int = 2000
    width: int = 128
    length: int = 16
    test_words: int = 30_000

    def task(self, data_dir: Path | None = None) -> Task:
        return Words(self, data_dir)


class Words(Task):
    """The two-layer LSTM of examples/pytorch_language_model.py and the Brown corpus, judged by its perplexity.

    The text begins at a place that the seed decides and goes round, so that runs differ in more than their initial
    weights.
    """

    def __init__(self, training: WordTraining, data_dir: Path | None = None) -> None:
        super().__init__(training)
        corpus = _corpus(training.vocabulary, data_dir)
        self._length, self._workers, self._batch = training.length, training.workers, training.batch
        self.model = WordModel(len(corpus.vocabulary), training.width, dropout=0.0)
        begin = np.random.default_rng(training.seed).integers(len(corpus.train))
        text = np.roll(corpus.train, -begin)
        self._columns = [
            datasets.Columns(text, self._batch, self._length, rank, self._workers) for rank in range(self._workers)
        ]
        self._test = datasets.Columns(corpus.test[: training.test_words], 50, self._length, 0, 1)
        self.steps_per_epoch = len(self._columns[0])

    def batches(self) -> Iterator[list[tuple[np.ndarray, np.ndarray]]]:
        for _ in range(self.training.epochs):
            self._states = [self.model.start(self._batch) for _ in range(self._workers)]
            yield from map(list, zip(*self._columns))

    def loss(self, worker: int, batch: tuple[np.ndarray, np.ndarray]) -> torch.Tensor:
        loss, self._states[worker] = self._loss(batch, self._states[worker])
        return loss

    def evaluate(self) -> tuple[float, float]:
        state, losses = self.model.start(50), []
        for batch in self._test:
            loss, state = self._loss(batch, state)
            losses.append(loss.item())
        mean = float(np.mean(losses))
        return math.exp(mean), mean

    def _loss(self, batch: tuple[np.ndarray, np.ndarray], state: tuple) -> tuple[torch.Tensor, tuple]:
        words, following = (torch.from_numpy(part) for part in batch)
        scores, (hidden, cell) = self.model(words, state)
        loss = functional.cross_entropy(scores.flatten(0, 1), following.flatten())
        return loss, (hidden.detach(), cell.detach())


@functools.cache
def _corpus(vocabulary: int, data_dir: Path | None) -> datasets.Corpus:
    return datasets.index_words(datasets.brown(data_dir), vocabulary)
