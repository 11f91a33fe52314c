"""Training with N workers simulated in one process, through the encoding and decoding of a real job."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from horovod_dgc import Method, exchange
from horovod_dgc.methods.base import clip_factor, clip_limit


@dataclass(frozen=True)
class Training:
    """What all contenders of a task have in common.

    Attributes:
        epochs: passes over the training data.
        batch: examples of one worker in one step.
        rate: peak of the learning rate, which rises over the first tenth of the steps and then falls as a cosine.
        decay: where weight decay is added: "local" to each worker's gradient, before momentum, as the adapters do it,
            or "aggregated" to what comes out of the exchange, as an optimizer does that still has it.
        clip_norm: of the global norm; by the method before it accumulates where that is able to, otherwise of what
            comes out of the exchange. None for no clipping.
        warmup: epochs in which the density falls, of a method that has a warm-up; 0 for none.
        higher_is_better: whether the figure that a task is judged by should grow.
    """

    higher_is_better: ClassVar[bool] = True

    epochs: int = 2
    workers: int = 4
    batch: int = 16
    rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    decay: str = "local"
    clip_norm: float | None = None
    warmup: float = 1.0
    seed: int = 0

    def settings(self) -> dict[str, Any]:
        return asdict(self)


class Task(ABC):
    """One model, the data that it is trained with and how it is judged; made anew for each run."""

    model: nn.Module
    steps_per_epoch: int

    def __init__(self, training: Training) -> None:
        self.training = training
        torch.manual_seed(training.seed)

    @property
    def steps(self) -> int:
        return self.training.epochs * self.steps_per_epoch

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        return [tuple(p.shape) for p in self.model.parameters()]

    @abstractmethod
    def batches(self) -> Iterator[list[Any]]:
        """Each step's batches, one for each worker; every contender gets the same."""

    @abstractmethod
    def loss(self, worker: int, batch: Any) -> torch.Tensor:
        """Mean loss of one worker's batch."""

    @abstractmethod
    def evaluate(self) -> tuple[float, float]:
        """The figure and the mean loss on the test data; the model is in evaluation mode, and nothing is recorded."""


def sent_nbytes(shapes: list[tuple[int, ...]], method: Method, step: int | None = None) -> int:
    """Bytes that a worker hands over in one step, opening rounds included."""
    plans = [method.plan(shape, step) for shape in shapes]
    return sum(plan.payload_nbytes + plan.opening_nbytes for plan in plans)


class Job:
    """The model of a task, and N workers' states of each of its tensors.

    Momentum is where the adapters put it: with the worker where the plan says "local", otherwise on the reduced
    gradient.

    Args:
        method: how gradients travel.
        rate: peak learning rate of tensors with more than one dimension; None for the training's.
        task: whose model is trained.
    """

    def __init__(self, method: Method, rate: float | None, task: Task) -> None:
        training = task.training
        self._task, self._training, self._clip_norm = task, training, method.clip_norm
        # A gradient's norm is that of all tensors, which the exchange of one does not see: clipped here.
        self._method: Method = method if method.clip_norm is None else replace(method, clip_norm=None)
        self._parameters = list(task.model.parameters())
        self._states = [[method.init(tuple(p.shape)) for _ in range(training.workers)] for p in self._parameters]
        self._velocities = [np.zeros(p.numel(), np.float32) for p in self._parameters]
        self._rates = [training.rate if rate is None or p.ndim <= 1 else rate for p in self._parameters]
        self._step = 0

    def run(self, batches: list[Any]) -> float:
        """One step with a batch for each worker: the mean loss. Not finite: then nothing has changed."""
        grads, losses = [], []
        for worker, batch in enumerate(batches):
            loss = self._task.loss(worker, batch)
            grads.append(self._clipped(self._gradient(loss)))
            losses.append(loss.item())
        if all(math.isfinite(loss) for loss in losses):
            self._update(grads)
            self._step += 1
        return float(np.mean(losses))

    def _gradient(self, loss: torch.Tensor) -> list[np.ndarray]:
        grads = torch.autograd.grad(loss, self._parameters)
        return [np.ascontiguousarray(grad.numpy().reshape(-1)) for grad in grads]

    def _clipped(self, grads: list[np.ndarray]) -> list[np.ndarray]:
        """One worker's gradient, clipped if the method asks for it."""
        if self._clip_norm is None:
            return grads
        factor = np.float32(clip_factor(norm_of(grads), clip_limit(self._clip_norm, self._training.workers)))
        return [grad * factor for grad in grads]

    def _update(self, grads: list[list[np.ndarray]]) -> None:
        training = self._training
        updates = [self._exchanged(number, [g[number] for g in grads]) for number in range(len(self._parameters))]
        if training.clip_norm is not None and self._clip_norm is None:
            factor = np.float32(clip_factor(norm_of(updates), training.clip_norm))
            updates = [update * factor for update in updates]
        share = self._rate_share()
        for number, (parameter, update) in enumerate(zip(self._parameters, updates)):
            weights = parameter.detach().view(-1).numpy()
            if training.decay == "aggregated":
                update = update + np.float32(training.weight_decay) * weights
            if not self._is_local(number):
                velocity = self._velocities[number]
                velocity *= training.momentum
                velocity += update
                update = velocity
            weights -= np.float32(self._rates[number] * share) * update

    def _exchanged(self, number: int, grads: list[np.ndarray]) -> np.ndarray:
        training = self._training
        decay = training.weight_decay if training.decay == "local" else 0.0
        return exchange(
            self._method,
            grads,
            self._states[number],
            tensor=number,
            momentum=training.momentum if self._is_local(number) else 0.0,
            weight_decay=decay,
            weights=self._parameters[number].detach().view(-1).numpy() if decay else None,
        )

    def _is_local(self, number: int) -> bool:
        return self._method.plan(tuple(self._parameters[number].shape), self._step).momentum == "local"

    def _rate_share(self) -> float:
        """Learning rate in this step as a share of its peak."""
        steps = self._task.steps
        rise = max(1, steps // 10)
        return min(1.0, (self._step + 1) / rise) * (1 + math.cos(math.pi * self._step / steps)) / 2


def norm_of(tensors: list[np.ndarray]) -> float:
    return math.sqrt(sum(float(np.dot(tensor, tensor)) for tensor in tensors))


def train(
    method: Method, rate: float | None, task: Task, points: int = 1, progress: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Train once.

    Args:
        points: number of evaluations, at equal distances, the last one after the last step.
        progress: called after each step.

    Returns:
        "figure" and "loss" (training loss of the last 20 steps), None if the loss stopped being finite; "last_nbytes"
        and "mean_nbytes", bytes per step and worker; and "curve", for each evaluation the steps done, the mean
        training loss since the one before, the figure, the test loss, and the bytes that a worker has sent.
    """
    torch.set_num_threads(1)
    job = Job(method, rate, task)
    sizes: list[int] = []
    losses: list[float] = []
    curve: list[list[float]] = []
    at = [round(task.steps * point / points) for point in range(1, points + 1)]
    for step, batches in enumerate(task.batches()):
        sizes.append(sent_nbytes(task.shapes, method, step))
        losses.append(job.run(batches))
        progress()
        if not math.isfinite(losses[-1]):
            break
        if step + 1 in at:
            since = curve[-1][0] if curve else 0
            figure, loss = evaluated(task)
            curve.append([step + 1, float(np.mean(losses[int(since) :])), figure, loss, sum(sizes)])
    finite = math.isfinite(losses[-1])
    return {
        "figure": curve[-1][2] if finite else None,
        "loss": float(np.mean(losses[-20:])) if finite else None,
        "last_nbytes": sizes[-1],
        "mean_nbytes": float(np.mean(sizes)),
        "curve": curve,
    }


def evaluated(task: Task) -> tuple[float, float]:
    task.model.eval()
    with torch.no_grad():
        result = task.evaluate()
    task.model.train()
    return result
