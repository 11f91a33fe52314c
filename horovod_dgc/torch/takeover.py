"""Momentum and weight decay, taken over from the optimizer for as long as its arithmetic runs."""

from __future__ import annotations

import contextlib
import inspect
import time
from collections.abc import Iterator
from typing import Any

import torch

from horovod_dgc import _core


def plain_sgd(kind: type[torch.optim.Optimizer]) -> bool:
    """Whether the arithmetic of this class is that of ``torch.optim.SGD``, and not a ``step()`` of its own."""
    return issubclass(kind, torch.optim.SGD) and all(
        inspect.unwrap(getattr(kind, name)) is inspect.unwrap(getattr(torch.optim.SGD, name))
        for name in ("step", "_init_group")
    )


def wrapped_kind(owner: torch.optim.Optimizer) -> type[torch.optim.Optimizer]:
    """The class of the optimizer that ``hvd.DistributedOptimizer`` has wrapped: the base of the class that it makes."""
    kind: type[torch.optim.Optimizer] = type(owner).__mro__[1]
    return kind


class Takeover:
    """Keeps an SGD optimizer from applying a second time what has been applied already.

    The parameter groups hold the user's values at all times, so that schedulers, closures, checkpoints and whoever
    handles an exception read and write them; only while the optimizer's own arithmetic runs are the keys taken over set
    to zero. Optimizers with other arithmetic have no momentum that commutes with the exchange: they keep all of theirs.

    Args:
        optimizer: the ``hvd.DistributedOptimizer``.
        momentum: whether the method applies momentum.

    Attributes:
        active: whether weight decay, at least, is taken over.
        momentum: whether momentum is: the method applies it, and the optimizer has it.
        step_called: ``time.perf_counter()`` of the latest call of ``step()``.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, *, momentum: bool) -> None:
        self._optimizer = optimizer
        self.active = plain_sgd(wrapped_kind(optimizer))
        self.momentum = momentum and self.active
        self._keys = ("weight_decay", "momentum") if self.momentum else ("weight_decay",)
        self.step_called = 0.0

    def attach(self) -> None:
        """From now on the time of each ``step()`` is noted."""
        self._optimizer.register_step_pre_hook(self._note_time)

    def group_of(self) -> dict[int, dict[str, Any]]:
        """Parameter group of each parameter, by the parameter's id, as it stands now."""
        return {id(p): group for group in self._optimizer.param_groups for p in group["params"]}

    def moves(self, group: dict[str, Any]) -> bool:
        """Whether momentum is applied to this group at present. At 0 SGD leaves its buffers alone."""
        return self.momentum and float(group["momentum"]) != 0.0

    def update(
        self, group: dict[str, Any], *, unscale: float, dense_factor: float, first: bool, momentum: bool
    ) -> _core.Update:
        """The arithmetic of one tensor's step.

        Args:
            unscale: factor of the gradient: inverse loss scale times clip factor.
            dense_factor: what the reduction multiplies the mean gradient by (1 for Average, N for Sum); weight
                decay added on each worker is divided by it, so that it counts once.
            first: the tensor's first step, which SGD does not dampen.
            momentum: whether momentum is applied at this point.
        """
        if not self.active:
            return _core.Update(unscale=unscale)
        decay = self.decay(group) / dense_factor
        if not momentum:
            return _core.Update(unscale=unscale, weight_decay=decay)
        return _core.Update(
            unscale=unscale,
            weight_decay=decay,
            momentum=float(group["momentum"]),
            dampening=0.0 if first else float(group["dampening"]),
            nesterov=bool(group["nesterov"]),
        )

    def decay(self, group: dict[str, Any]) -> float:
        """What the weights are multiplied by and added to the gradient."""
        decay = float(group["weight_decay"])
        return -decay if group["maximize"] else decay

    def momentum_buffer(self, parameter: torch.Tensor) -> torch.Tensor | None:
        """The buffer that the optimizer has kept, or has been given by a checkpoint; handed over, not copied."""
        if not self.momentum:
            return None
        buffer = self._optimizer.state.get(parameter, {}).pop("momentum_buffer", None)
        return buffer if isinstance(buffer, torch.Tensor) else None

    def refuse_sparse(self) -> None:
        """Raise if a sparse gradient that bypasses compression would lose momentum or weight decay."""
        for group in self._optimizer.param_groups if self.active else ():
            for key in self._keys:
                if group[key]:
                    raise ValueError(
                        f"a sparse gradient cannot be exchanged with {key}={group[key]!r}, which Compression has taken "
                        "over: give hvd.DistributedOptimizer sparse_as_dense=True, or use sparse=False in the model"
                    )

    @contextlib.contextmanager
    def set_to_zero(self) -> Iterator[None]:
        """Meanwhile the optimizer's arithmetic applies none of what has been taken over."""
        groups = self._optimizer.param_groups if self.active else []
        users = [{key: group[key] for key in self._keys} for group in groups]
        try:
            for group in groups:
                group.update(dict.fromkeys(self._keys, 0.0))
            yield
        finally:
            for group, values in zip(groups, users):
                group.update(values)

    def _note_time(self, *_: Any) -> None:
        self.step_called = time.perf_counter()
