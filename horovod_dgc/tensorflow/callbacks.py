"""Horovod's Keras callbacks for Keras 2 and 3: Horovod's own do not run with Keras 3."""

from __future__ import annotations

from typing import Any

import horovod.tensorflow as hvd
import tensorflow as tf

from horovod_dgc import _checks
from horovod_dgc.tensorflow.takeover import raw, state_of


class BroadcastGlobalVariablesCallback(tf.keras.callbacks.Callback):  # type: ignore[misc]
    """Gives all workers the weights and the optimizer's state of one rank before training begins.

    The states of random generators are left alone: dropout should differ between workers.

    Args:
        root_rank: the rank whose values are taken.
    """

    def __init__(self, root_rank: int = 0) -> None:
        super().__init__()
        self.root_rank = root_rank
        self._done = False

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        if self.model.built:
            self._broadcast()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """For a model that its first batch has built."""
        if not self._done:
            self._broadcast()

    def _broadcast(self) -> None:
        variables = [*self.model.weights, *state_of(self.model.optimizer)]
        hvd.broadcast_variables([raw(variable) for variable in variables], root_rank=self.root_rank)
        self._done = True


class MetricAverageCallback(tf.keras.callbacks.Callback):  # type: ignore[misc]
    """Averages the metrics of each epoch over all workers; stands before callbacks that read them."""

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if not logs or hvd.size() == 1:
            return
        names = sorted(logs)
        mean = hvd.allreduce(tf.constant([float(logs[name]) for name in names], tf.float64), op=hvd.Average)
        logs.update(zip(names, mean.numpy().tolist()))


class LearningRateWarmupCallback(tf.keras.callbacks.Callback):  # type: ignore[misc]
    """Raises the learning rate linearly from ``initial_lr / size`` to ``initial_lr``, batch by batch.

    Goyal et al. 2017, arXiv 1706.02677, section 2.2.

    Args:
        initial_lr: rate after the warm-up, > 0: that of one worker times the number of workers.
        warmup_epochs: length, > 0; may be a fraction.
        steps_per_epoch: batches per epoch; None for what Keras knows.
    """

    def __init__(self, initial_lr: float, warmup_epochs: float = 5, steps_per_epoch: int | None = None) -> None:
        super().__init__()
        self.initial_lr = _checks.in_range("initial_lr", initial_lr, 0, float("inf"), low_open=True)
        self.warmup_epochs = _checks.in_range("warmup_epochs", warmup_epochs, 0, float("inf"), low_open=True)
        self.steps_per_epoch = steps_per_epoch
        self._epoch = 0
        self._done = False

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self.steps_per_epoch = self.steps_per_epoch or (self.params or {}).get("steps")
        if not self.steps_per_epoch:
            raise ValueError("steps_per_epoch must be given where Keras does not know the number of batches")

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._epoch = epoch

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if self._done:
            return
        assert self.steps_per_epoch
        progress = min(1.0, (self._epoch + batch / self.steps_per_epoch) / self.warmup_epochs)
        share = (1 + progress * (hvd.size() - 1)) / hvd.size()
        self.model.optimizer.learning_rate = self.initial_lr * share
        self._done = progress == 1.0
