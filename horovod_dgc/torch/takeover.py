"""Momentum and weight decay, taken over from the optimizer for as long as its ``step()`` runs."""

from __future__ import annotations

import time
from typing import Any

import torch

from horovod_dgc import _core


class Takeover:
    """Keeps an SGD optimizer from applying a second time what has been applied before compression.

    The parameter groups hold the user's values at all times, so that schedulers and checkpoints read and write
    them; only while ``step()`` does its arithmetic are the keys taken over set to zero. Optimizers other than SGD
    have no momentum that commutes with the exchange: they keep all of theirs.

    Args:
        optimizer: the ``hvd.DistributedOptimizer``.
        momentum: whether the method applies momentum.

    Attributes:
        momentum: whether momentum is applied before compression: the method does, and the optimizer has it.
        step_called: ``time.perf_counter()`` of the latest call of ``step()``.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, *, momentum: bool) -> None:
        self._optimizer = optimizer
        self._is_sgd = isinstance(optimizer, torch.optim.SGD)
        self.momentum = momentum and self._is_sgd
        self._keys = ("weight_decay", "momentum") if self.momentum else ("weight_decay",)
        self._set_aside: dict[int, dict[str, float]] = {}
        self.step_called = 0.0

    def attach(self) -> None:
        """From now on the optimizer's own step applies none of what has been taken over."""
        self._optimizer.register_step_pre_hook(self._note_time)
        if self._is_sgd:
            self._optimizer.register_step_pre_hook(self._set_to_zero)
            self._optimizer.register_step_post_hook(self._give_back)

    def group_of(self) -> dict[int, dict[str, Any]]:
        """Parameter group of each parameter, by the parameter's id, as it stands now."""
        return {id(p): group for group in self._optimizer.param_groups for p in group["params"]}

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
        if not self._is_sgd:
            return _core.Update(unscale=unscale)
        values = {**group, **self._set_aside.get(id(group), {})}
        decay = float(values["weight_decay"]) / dense_factor
        if not momentum:
            return _core.Update(unscale=unscale, weight_decay=-decay if values["maximize"] else decay)
        return _core.Update(
            unscale=unscale,
            weight_decay=-decay if values["maximize"] else decay,
            momentum=float(values["momentum"]),
            dampening=0.0 if first else float(values["dampening"]),
            nesterov=bool(values["nesterov"]),
        )

    def momentum_buffer(self, parameter: torch.Tensor) -> torch.Tensor | None:
        """The buffer that the optimizer has kept for a parameter so far; it is handed over, not copied."""
        if not self.momentum:
            return None
        buffer = self._optimizer.state.get(parameter, {}).pop("momentum_buffer", None)
        return buffer if isinstance(buffer, torch.Tensor) else None

    def refuse_sparse(self) -> None:
        """Raise if a sparse gradient that bypasses compression would lose momentum or weight decay."""
        for group in self._optimizer.param_groups if self._is_sgd else ():
            for key in self._keys:
                if self._set_aside.get(id(group), group)[key]:
                    raise ValueError(
                        f"a sparse gradient cannot be exchanged with {key}={group[key]!r}, which Compression has taken "
                        "over: give hvd.DistributedOptimizer sparse_as_dense=True, or use sparse=False in the model"
                    )

    def _note_time(self, *_: Any) -> None:
        self.step_called = time.perf_counter()

    # The wrapped optimizer's step() runs inside the distributed one's, and the hooks run around both: the values
    # go at the first of the two and come back after the inner one, when the arithmetic is done.
    def _set_to_zero(self, *_: Any) -> None:
        for group in self._optimizer.param_groups:
            if id(group) not in self._set_aside:
                self._set_aside[id(group)] = {key: group[key] for key in self._keys}
                group.update(dict.fromkeys(self._keys, 0.0))

    def _give_back(self, *_: Any) -> None:
        for group in self._optimizer.param_groups:
            group.update(self._set_aside.pop(id(group), {}))
