"""One model variable's compression state, in variables of TensorFlow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from horovod_dgc.hierarchy import Part
from horovod_dgc.methods.base import Plan
from horovod_dgc.stats import TensorStats
from horovod_dgc.tensorflow.operations import COUNTS, PROGRESS, library
from horovod_dgc.transport import FLOAT32_NBYTES

STEPS = COUNTS.index("steps")


class Tensor(tf.Module):  # type: ignore[misc]
    """A model variable with what compression keeps of it on this worker; all of it goes into checkpoints.

    Args:
        plan: of the variable, or of the part.
        part: what this rank keeps the state of, where a node's ranks share the variable among them.

    Attributes:
        shape, numel: of the variable, or of the part.
        residual: float32 (numel,): accumulated gradient that has not been sent; None for a method that keeps nothing.
        velocity: float32 (numel,) with momentum correction, else None.
        rate: float32 (): learning rate in whose units the velocity stands; 0 before the first step. None without
            momentum correction.
        memory: float32, one dimension: what the method's codec keeps besides; None if that is nothing.
        counts: int64 (2, len(COUNTS)); row 0 holds totals, row 1 the latest step.
    """

    def __init__(
        self,
        position: int,
        name: str,
        variable: tf.Variable,
        plan: Plan,
        corrected: bool,
        part: Part | None = None,
    ) -> None:
        super().__init__(name=f"tensor_{position}")
        self.position = position
        self.label = name
        self._model_variable = _Untracked(variable)
        self._whole = math.prod(variable.shape)
        self.part = part
        self.shape: tuple[int, ...] = tuple(variable.shape) if part is None else part.shape
        self.numel = math.prod(self.shape)
        with tf.device("CPU:0"):
            self.residual = _zeros(self.numel, "residual") if plan.residual else None
            self.memory = _zeros(plan.codec.memory, "memory") if plan.codec.memory else None
            self.counts = tf.Variable(tf.zeros((2, len(COUNTS)), tf.int64), trainable=False, name="counts")
            self.velocity = _zeros(self.numel, "velocity") if corrected else None
            self.rate = tf.Variable(tf.zeros((), tf.float32), trainable=False, name="rate") if corrected else None
            self.identity = int(library.horovod_dgc_identity(variable.handle))

    @property
    def variable(self) -> tf.Variable:
        return self._model_variable.value

    @property
    def corrected(self) -> bool:
        """Whether momentum is applied here, before selection, and not by the optimizer."""
        return self.velocity is not None

    @property
    def started(self) -> bool:
        """Whether the velocity is in use: a step was made, here or before the checkpoint that was restored; eager."""
        return self.rate is not None and bool(self.rate > 0)

    @property
    def steps(self) -> int:
        """Number of exchanges done, which the density schedule and all random choices go by; eager."""
        return int(self.counts[0, STEPS])

    @steps.setter
    def steps(self, steps: int) -> None:
        self.counts[0, STEPS].assign(steps)

    @property
    def kept(self) -> list[str]:
        """Which variables there are besides the counts, in the order in which the operations take them."""
        return [name for name in ("residual", "velocity", "rate", "memory") if getattr(self, name) is not None]

    @property
    def state(self) -> list[Any]:
        """Resource handles of the counts and of what is kept."""
        return [self.counts.handle, *(getattr(self, name).handle for name in self.kept)]

    def take_momentum(self, buffer: tf.Variable, rate: tf.Tensor, workers: int) -> tf.Tensor:
        """Go on from a Keras optimizer's momentum, minus the learning rate times the sum of ``workers`` velocities.

        Args:
            buffer: of the optimizer; zero afterwards.
            rate: of today, float32 (). Where it is zero, the units stay what they are, or become 1.

        Returns:
            A tensor that is there when all is done.
        """
        assert self.velocity is not None and self.rate is not None
        units = tf.where(rate > 0, rate, tf.where(self.rate > 0, self.rate, tf.ones_like(rate)))
        flat = tf.reshape(tf.cast(buffer, tf.float32), [-1])
        own = flat if self.part is None else flat[self.part.start : self.part.stop]
        self.velocity.assign(own / (-units * workers))
        self.rate.assign(units)
        buffer.assign(tf.zeros_like(buffer))
        return tf.identity(units)

    def measured(self) -> tuple[TensorStats, TensorStats]:
        """Counts in total, with the residual's norm as it stands, and of the latest step."""
        total, last = (self._stats(row) for row in self.counts.numpy())
        if self.residual is not None:
            total.residual_norm = math.sqrt(float(library.horovod_dgc_sum_squares(self.residual)))
        return total, last

    def _stats(self, row: Any) -> TensorStats:
        counts = by_name(COUNTS, row)
        steps, skipped, dense, inside = counts["steps"], counts["skipped"], counts["dense"], 0
        if self.part is not None:
            # The operations see the part alone, in float32.
            inside = FLOAT32_NBYTES * (self._whole + self.numel) * (steps + skipped)
            dense = self._whole * self.variable.dtype.size * (steps + skipped)
        return TensorStats(
            steps=steps,
            skipped=skipped,
            sent=counts["sent"],
            control=counts["control"],
            inside=inside,
            dense=dense,
            nonzero=counts["nonzero"],
            elements=steps * self.numel,
            overflow=counts["overflow"],
            encode=counts["encode"] / 1e9,
            decode=counts["decode"] / 1e9,
        )


def by_name(names: Sequence[str], values: Any) -> dict[str, int]:
    """Whole numbers by the names of their places."""
    return {name: int(value) for name, value in zip(names, values)}


def set_progress(progress: tf.Variable, steps: int, skipped: int) -> None:
    """Go on from so many exchanges of another run; the seconds of waiting stay this run's; eager."""
    progress[PROGRESS.index("steps")].assign(steps)
    progress[PROGRESS.index("skipped")].assign(skipped)


class _Untracked:
    """Keeps a variable out of its holder's checkpoints."""

    def __init__(self, value: tf.Variable) -> None:
        self.value = value


def _zeros(count: int, name: str) -> tf.Variable:
    return tf.Variable(tf.zeros(count, tf.float32), trainable=False, name=name)
