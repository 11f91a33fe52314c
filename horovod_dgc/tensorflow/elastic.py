"""Compression in elastic jobs: states for ``horovod.tensorflow.elastic.run`` that keep each rank's memory its own.

    state = TensorFlowKerasState(model, optimizer, compression=compression, epoch=0, batch=0)

    @hvd.elastic.run
    def train(state):
        step = tf.function(train_one_batch)
        ...

All ranks take the model's and the optimizer's variables from rank 0. Ranks that survive keep their residuals and
velocities, and new ones begin with zeros. What a lost rank had not sent yet is lost, and ``compression.stats()`` counts
it. With ``op=hvd.Average`` what is kept is multiplied by N' / N, so that what is still to be applied stays what it is.
What a method's codec keeps besides (second moments, a low-rank basis) goes on where all ranks are those of before, and
otherwise starts anew on all.

A graph holds the number of workers it was traced for. So the ``tf.function`` that trains must be made inside of the
function that ``run`` decorates, which Horovod calls anew after each change; a compiled model's is made anew here.
Elastic jobs train in Horovod's global process set, with two workers at least.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import horovod.tensorflow as hvd
import numpy as np
import tensorflow as tf
from horovod.common.elastic import ObjectState
from horovod.tensorflow.functions import allgather_object, broadcast_object

from horovod_dgc import resize
from horovod_dgc.elastic import NAME, Membership
from horovod_dgc.tensorflow.compression import Compression
from horovod_dgc.tensorflow.operations import PROGRESS
from horovod_dgc.tensorflow.takeover import raw, state_of
from horovod_dgc.tensorflow.tensors import Tensor, by_name, set_progress

__all__ = ["TensorFlowKerasState", "TensorFlowState"]


class TensorFlowState(ObjectState):  # type: ignore[misc]
    """Variables, a Compression, and any other objects, as attributes, that an elastic job goes on with.

    Args:
        variables: ``tf.Variable`` or Keras variables that all ranks take from rank 0: of the model and the optimizer.
        compression: of the optimizer that trains.
        objects: by name; rank 0's are everybody's.

    Raises:
        ValueError: ``compression`` is not a Compression, is hierarchical, or its model has no variables yet.
    """

    def __init__(self, variables: Sequence[Any], *, compression: Compression, **objects: Any) -> None:
        if not isinstance(compression, Compression):
            raise ValueError(f"compression must be a Compression of horovod_dgc.tensorflow, got {compression!r}")
        if compression._graphs.hierarchy is not None:
            raise ValueError("hierarchical does not go with elastic jobs, whose nodes may come and go in part")
        compression._graphs.model.require("an elastic state is made")
        self.compression = compression
        self._variables = [raw(variable) for variable in variables]
        self._membership = Membership()
        # Number of workers that the state is fitted to, now and at the last commit.
        self._workers = self._saved_workers = hvd.size()
        compression._graphs.follow = self._follow
        self._copy()
        super().__init__(bcast_object=broadcast_object, get_rank=hvd.rank, **objects)

    def save(self) -> None:
        """Commit: copy everything, and tell the other ranks how much waits in this one's residuals."""
        self._copy()
        super().save()
        # Others are there than those who had the state last: the first step brings _follow().
        if hvd.size() < 2 or not self._membership.follows(hvd.size()):
            return
        norm = sum(tensor.measured()[0].residual_norm ** 2 for tensor in self.compression.tensors)
        norms: list[float | None] = [None] * hvd.size()
        # Not an error of the commit, which is done: the next collective will meet it as well.
        with contextlib.suppress(tf.errors.UnknownError):
            norms = hvd.allgather(tf.constant([norm], tf.float64), name=f"{NAME}.norms").numpy().tolist()
        self._membership.commit(norms)

    def restore(self) -> None:
        """Go back to what was committed."""
        for variable, value in self._saved:
            variable.assign(value)
        for tensor, steps in zip(self.compression.tensors, self._saved_steps):
            tensor.steps = steps
        self._workers = self._saved_workers
        super().restore()

    def sync(self) -> None:
        """Take rank 0's variables and objects, and agree on who is there and what becomes of each rank's memory."""
        hvd.broadcast_variables(self._variables, root_rank=0)
        self._follow(joined=True)
        self._copy()
        super().sync()

    def reset(self) -> None:
        """Whatever was traced is for a job that is no more."""
        self.compression._graphs.forget()

    def _copy(self) -> None:
        kept = [getattr(tensor, name) for tensor in self.compression.tensors for name in tensor.kept]
        variables = [*self._variables, self.compression.progress, *kept]
        self._saved = [(variable, variable.numpy()) for variable in variables]
        self._saved_steps = [tensor.steps for tensor in self.compression.tensors]
        self._saved_workers = self._workers

    def _follow(self, joined: bool = False) -> None:
        """Fit the memory to the ranks that there are: in :meth:`sync`, and before a step that Horovod brings without.

        Args:
            joined: whether ranks may have come that know nothing of those before.
        """
        if not joined and (not self._membership.members or self._membership.follows(hvd.size())):
            return
        compression = self.compression
        made = by_name(PROGRESS, compression.progress.numpy())
        steps = made["steps"]
        reports = allgather_object(self._membership.report(steps > 0, steps, compression._graphs.lost), name=NAME)
        kept, compression._graphs.lost = self._membership.settle(reports)
        shared = [(t.steps, None if t.rate is None else float(t.rate)) for t in compression.tensors]
        common = broadcast_object((made, compression._graphs.reduction, shared), name=NAME)
        made, reduction, shared = common
        if len(reports) == 1 and made["steps"]:
            raise RuntimeError(
                "one worker is left, which Horovod lets train without compression: what waits in its residuals would "
                "never be applied. Start the job with --min-np 2"
            )
        keep = self._membership.identity in kept
        factor = resize.factor(reduction, len(reports), self._workers) if keep and reduction else float(keep)
        same_ranks = len(kept) == len(reports) == self._workers
        for tensor, (steps, rate) in zip(compression.tensors, shared):
            _fit(tensor, factor, same_ranks)
            tensor.steps = steps
            if tensor.rate is not None:
                tensor.rate.assign(rate)
        set_progress(compression.progress, made["steps"], made["skipped"])
        compression._graphs.reduction = reduction
        self._workers = len(reports)


class TensorFlowKerasState(TensorFlowState):
    """A Keras model, its optimizer, a Compression, and any other objects, that an elastic job goes on with.

    Args:
        model: built.
        optimizer: None for the one that the model is compiled with.
        compression: of this optimizer.
        objects: by name; rank 0's are everybody's.

    Raises:
        ValueError: the model is not built, or ``compression`` is not a Compression.
    """

    def __init__(self, model: Any, optimizer: Any = None, *, compression: Compression, **objects: Any) -> None:
        if not model.built:
            raise ValueError("model must be built first: call model.build(input_shape)")
        self.model = model
        self.optimizer = model.optimizer if optimizer is None else optimizer
        build = getattr(self.optimizer, "build", None)
        if build is not None and not getattr(self.optimizer, "built", getattr(self.optimizer, "_built", False)):
            build(model.trainable_variables)
        super().__init__([*model.weights, *state_of(self.optimizer)], compression=compression, **objects)

    def reset(self) -> None:
        super().reset()
        if getattr(self.model, "train_function", None) is not None:
            self.model.make_train_function(force=True)


def _fit(tensor: Tensor, factor: float, same_ranks: bool) -> None:
    for name in ("residual", "velocity"):
        variable = getattr(tensor, name)
        if variable is not None and factor != 1.0:
            variable.assign((variable.numpy().astype(np.float64) * factor).astype(np.float32))
    if tensor.memory is not None and not same_ranks:
        tensor.memory.assign(tf.zeros_like(tensor.memory))
