"""Training with N workers simulated in one process, through the encoding and decoding of a real job."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from horovod_dgc import Method, exchange

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
import datasets
from pytorch_images import ResidualNet, flipped, normalised


@dataclass(frozen=True)
class Training:
    """What all contenders have in common.

    Attributes:
        images: of the training set that are used, the first ones.
        batch: images of one worker in one step.
        rate: peak of the learning rate, which rises over the first tenth of the steps and then falls as a cosine.
    """

    images: int = 12_800
    epochs: int = 2
    workers: int = 4
    batch: int = 16
    width: int = 16
    rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    seed: int = 0

    @property
    def steps_per_epoch(self) -> int:
        return self.images // (self.workers * self.batch)

    @property
    def steps(self) -> int:
        return self.epochs * self.steps_per_epoch

    def rate_at(self, step: int) -> float:
        """Learning rate in a step as a share of its peak."""
        rise = max(1, self.steps // 10)
        return min(1.0, (step + 1) / rise) * (1 + math.cos(math.pi * step / self.steps)) / 2

    def settings(self) -> dict[str, Any]:
        return asdict(self)


def model_of(training: Training) -> nn.Module:
    torch.manual_seed(training.seed)
    return ResidualNet(1, 10, training.width)


def shapes_of(training: Training) -> list[tuple[int, ...]]:
    return [tuple(p.shape) for p in model_of(training).parameters()]


def sent_nbytes(shapes: list[tuple[int, ...]], method: Method, step: int | None = None) -> int:
    """Bytes that a worker hands over in one step, opening rounds included."""
    plans = [method.plan(shape, step) for shape in shapes]
    return sum(plan.payload_nbytes + plan.opening_nbytes for plan in plans)


class Job:
    """One model, and N workers' states of each of its tensors.

    Momentum is where the adapters put it: with the worker where the plan says "local", otherwise on the reduced
    gradient. Weight decay acts on the worker's gradient, before momentum.
    """

    def __init__(self, method: Method, rate: float | None, training: Training) -> None:
        self._method, self._training = method, training
        self.model = model_of(training)
        self._parameters = list(self.model.parameters())
        self._states = [[method.init(tuple(p.shape)) for _ in range(training.workers)] for p in self._parameters]
        self._velocities = [np.zeros(p.numel(), np.float32) for p in self._parameters]
        self._rates = [training.rate if rate is None or p.ndim <= 1 else rate for p in self._parameters]
        self._step = 0

    def run(self, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
        """One step with a batch for each worker: the mean loss. Not finite: then nothing has changed."""
        grads, losses = [], []
        for images, labels in batches:
            loss = functional.cross_entropy(self.model(images), labels)
            grads.append(torch.autograd.grad(loss, self._parameters))
            losses.append(loss.item())
        if all(math.isfinite(loss) for loss in losses):
            for number in range(len(self._parameters)):
                self._update(number, [np.ascontiguousarray(g[number].numpy().reshape(-1)) for g in grads])
            self._step += 1
        return float(np.mean(losses))

    def _update(self, number: int, grads: list[np.ndarray]) -> None:
        training, parameter = self._training, self._parameters[number]
        weights = parameter.detach().view(-1).numpy()
        plan = self._method.plan(tuple(parameter.shape), self._step)
        local = plan.momentum == "local"
        update = exchange(
            self._method,
            grads,
            self._states[number],
            tensor=number,
            momentum=training.momentum if local else 0.0,
            weight_decay=training.weight_decay,
            weights=weights,
        )
        if not local:
            velocity = self._velocities[number]
            velocity *= training.momentum
            velocity += update
            update = velocity
        weights -= np.float32(self._rates[number] * training.rate_at(self._step)) * update


@dataclass(frozen=True)
class Data:
    images: torch.Tensor
    labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor


def data_of(training: Training, data_dir: Path | None = None) -> Data:
    """Fashion-MNIST: the first images of its training set, and its whole test set."""
    images = datasets.fashion_mnist(data_dir)
    train = images.train_images[: training.images]
    scale = train.mean(), train.std()
    return Data(
        normalised(train, *scale),
        torch.tensor(images.train_labels[: training.images]),
        normalised(images.test_images, *scale),
        torch.tensor(images.test_labels),
    )


def batches_of(training: Training, data: Data) -> Iterator[list[tuple[torch.Tensor, torch.Tensor]]]:
    """Each step's batches, one for each worker; every contender gets the same."""
    torch.manual_seed(training.seed + 1)
    size = training.workers * training.batch
    for _ in range(training.epochs):
        order = torch.randperm(len(data.images))
        for start in range(0, training.steps_per_epoch * size, size):
            parts = order[start : start + size].split(training.batch)
            yield [(flipped(data.images[part]), data.labels[part]) for part in parts]


def accuracy_of(model: nn.Module, data: Data) -> float:
    model.eval()
    with torch.no_grad():
        outputs = torch.cat([model(part) for part in data.test_images.split(500)])
    return (outputs.argmax(1) == data.test_labels).float().mean().item()


def train(
    method: Method, rate: float | None, training: Training, data: Data, progress: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Train once: test accuracy, None if the loss stopped being finite, and bytes per step and worker."""
    torch.set_num_threads(1)
    job = Job(method, rate, training)
    shapes = shapes_of(training)
    sizes, losses = [], []
    for step, batches in enumerate(batches_of(training, data)):
        sizes.append(sent_nbytes(shapes, method, step))
        losses.append(job.run(batches))
        progress()
        if not math.isfinite(losses[-1]):
            break
    finite = math.isfinite(losses[-1])
    return {
        "accuracy": accuracy_of(job.model, data) if finite else None,
        "loss": float(np.mean(losses[-20:])) if finite else None,
        "last_nbytes": sizes[-1],
        "mean_nbytes": float(np.mean(sizes)),
    }
