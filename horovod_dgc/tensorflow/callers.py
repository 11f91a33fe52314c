"""What Horovod's calling frames tell about a gradient, since ``compress(tensor)`` is given nothing but the tensor."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

import horovod.tensorflow as hvd
import tensorflow as tf

MISUSE = (
    "Compression works only as the compression= of horovod_dgc.tensorflow.DistributedOptimizer, or of Horovod's "
    "DistributedGradientTape or DistributedOptimizer"
)


@dataclass(frozen=True)
class Call:
    """The call of Horovod's gradient reducer that a gradient came with.

    Attributes:
        gradients: all gradients of the call, in the order of ``variables``; None where there is none.
        variables: the model's variables, as raw ``tf.Variable``.
        position: of the gradient among them.
        op: the reduction that the user chose.
        process_set: the Horovod process set that takes part.
        grouped: whether Horovod reduces several tensors, which must have one dtype, in one collective.
        holders: objects whose methods are on the way, from the inside out: tapes, optimizers, models.
    """

    gradients: Any
    variables: list[tf.Variable]
    position: int
    op: Any
    process_set: Any
    grouped: bool
    holders: list[Any]

    @property
    def workers(self) -> int:
        """Number of workers among which this one exchanges; 1 if it takes no part."""
        return int(self.process_set.size()) if self.process_set.included() else 1

    @property
    def eager(self) -> bool:
        """Whether the reducer's own graph is the only one: what comes before and after it runs eagerly."""
        graph = self.gradients[self.position].graph
        return str(graph.name) == "allreduce_grads" and not hasattr(graph.outer_graph, "outer_graph")


def find(tensor: tf.Tensor) -> Call:
    """Read the frames above ``compress(tensor)``.

    Horovod's reducer holds the gradients and their variables side by side. In code that AutoGraph has converted,
    they may be found one frame apart.

    Raises:
        ValueError: the caller is not Horovod's reducer, so nobody knows whose gradient it is.
    """
    frames = list(_frames(sys._getframe(2)))
    options = next((f for f in frames if "process_set" in f and isinstance(f.get("op"), type(hvd.Average))), None)
    for depth, names in enumerate(frames):
        gradients = names.get("grads")
        position = _find(tensor, gradients)
        if position is None:
            continue
        variables = next((f["vars"] for f in frames[depth:] if _as_many(f.get("vars"), gradients)), None)
        if variables is None or options is None:
            break
        return Call(
            gradients,
            list(variables),
            position,
            options["op"],
            options["process_set"],
            any(_find(tensor, names.get("tensors")) is not None for names in frames),
            _holders(frames),
        )
    raise ValueError(MISUSE)


def holders() -> list[Any]:
    """Objects whose methods are on the way to the caller's caller, from the inside out."""
    return _holders(_frames(sys._getframe(2)))


def _holders(frames: Iterable[dict[str, Any]]) -> list[Any]:
    return [names["self"] for names in frames if "self" in names]


def _frames(frame: FrameType | None) -> Iterator[dict[str, Any]]:
    while frame is not None:
        yield frame.f_locals
        frame = frame.f_back


def _find(tensor: tf.Tensor, sequence: Any) -> int | None:
    """Position of this very object."""
    if not isinstance(sequence, (list, tuple)):
        return None
    return next((i for i, element in enumerate(sequence) if element is tensor), None)


def _as_many(variables: Any, gradients: Any) -> bool:
    return isinstance(variables, (list, tuple)) and len(variables) == len(gradients)
