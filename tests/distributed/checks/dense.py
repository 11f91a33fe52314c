"""Invariant 1: with density 1 and float32 values, the trajectory is that of uncompressed Horovod."""

from __future__ import annotations

import functools
from typing import Any

import horovod.torch as hvd
import torch
from torch import nn

from checks.common import (
    assert_ranks_identical,
    assert_same_trajectory,
    compressed,
    distribute,
    small_model,
    train,
)
from horovod_dgc import DGC

EXACT = DGC(density=1.0, values="float32")
SGD = torch.optim.SGD


def same_as_dense(
    build: Any,
    *,
    transports: tuple[str, ...] = ("gather", "allreduce"),
    passes: int = 1,
    schedule: Any = None,
    **options: Any,
) -> None:
    def run(transport: str | None) -> list[torch.Tensor]:
        model = small_model()
        optimizer = build(model)
        scheduler = schedule(optimizer) if schedule else None
        if transport is None:
            distributed = distribute(model, optimizer, **options)
        else:
            distributed, _ = compressed(EXACT, model, optimizer, settings={"transport": transport}, **options)
        trajectory = train(
            model, distributed, passes=passes, after_step=lambda _: scheduler.step() if scheduler else None
        )
        assert_ranks_identical(model, f"{transport}")
        return trajectory

    dense = run(None)
    for transport in transports:
        assert_same_trajectory(run(transport), dense)


def sgd(**settings: Any) -> Any:
    return lambda model: SGD(model.parameters(), **{"lr": 0.05, **settings})


def two_groups(model: nn.Module) -> torch.optim.Optimizer:
    weights = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() <= 1]
    return SGD(
        [
            {"params": weights, "momentum": 0.9, "weight_decay": 0.01, "nesterov": True},
            {"params": rest, "momentum": 0.5, "lr": 0.1, "dampening": 0.3},
        ],
        lr=0.05,
    )


def check_plain_sgd() -> None:
    same_as_dense(sgd())


def check_momentum() -> None:
    same_as_dense(sgd(momentum=0.9))


def check_nesterov_and_weight_decay() -> None:
    same_as_dense(sgd(momentum=0.9, nesterov=True, weight_decay=0.01))


def check_dampening() -> None:
    same_as_dense(sgd(momentum=0.9, dampening=0.4, weight_decay=0.01))


def check_maximize() -> None:
    same_as_dense(sgd(momentum=0.9, weight_decay=0.01, maximize=True, lr=0.01))


def check_foreach_and_fused() -> None:
    same_as_dense(sgd(momentum=0.9, foreach=True), transports=("gather",))
    same_as_dense(sgd(momentum=0.9, fused=True), transports=("gather",))


def check_parameter_groups() -> None:
    same_as_dense(two_groups)


def check_one_cycle_schedule_of_rate_and_momentum() -> None:
    one_cycle = functools.partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=11)
    same_as_dense(sgd(momentum=0.9), schedule=one_cycle)


def check_multiplicative_momentum_schedule() -> None:
    class Decay:
        """Reads the momentum of the step before and writes a smaller one, down to exactly zero."""

        def __init__(self, optimizer: torch.optim.Optimizer) -> None:
            self.groups, self.steps = optimizer.param_groups, 0

        def step(self) -> None:
            self.steps += 1
            for group in self.groups:
                group["momentum"] = group["momentum"] * 0.8 if self.steps < 6 else 0.0

    same_as_dense(sgd(momentum=0.9, weight_decay=0.01), schedule=Decay)


def check_sum() -> None:
    same_as_dense(sgd(momentum=0.9, weight_decay=0.01, lr=0.01), op=hvd.Sum)


def check_predivide() -> None:
    same_as_dense(sgd(momentum=0.9, weight_decay=0.01), gradient_predivide_factor=2.0)


def check_backward_passes_per_step() -> None:
    same_as_dense(sgd(momentum=0.9, lr=0.02), passes=3, backward_passes_per_step=3)


def check_groups() -> None:
    same_as_dense(sgd(momentum=0.9), groups=2)


def check_adam_and_adamw() -> None:
    same_as_dense(lambda model: torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=0.01))
    same_as_dense(lambda model: torch.optim.AdamW(model.parameters(), lr=0.01))


def check_rmsprop_keeps_its_own_momentum() -> None:
    same_as_dense(lambda model: torch.optim.RMSprop(model.parameters(), lr=0.001, momentum=0.9))


def check_without_momentum_correction() -> None:
    """The optimizer's own momentum then follows the exchange."""

    def run(compress: bool) -> list[torch.Tensor]:
        model = small_model()
        optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
        if not compress:
            return train(model, distribute(model, optimizer))
        method = DGC(density=1.0, values="float32", momentum_correction=False)
        distributed, _ = compressed(method, model, optimizer, settings={})
        return train(model, distributed)

    assert_same_trajectory(run(True), run(False))


def check_momentum_buffers_are_taken_over() -> None:
    """Compression switched on where the optimizer has momentum already loses none of it, and adds none."""
    for op in (hvd.Average, hvd.Sum):
        trajectories = []
        for compress in (False, True):
            model = small_model()
            optimizer = SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=0.01, dampening=0.2)
            if compress:
                distributed, _ = compressed(EXACT, model, optimizer, settings={}, op=op)
            else:
                distributed = distribute(model, optimizer, op=op)
            hvd.broadcast_parameters(model.state_dict(), root_rank=0)
            hvd.broadcast_optimizer_state(distributed, root_rank=0)
            generator = torch.Generator().manual_seed(5)
            for parameter in model.parameters():
                buffer = torch.randn(parameter.shape, generator=generator).to(parameter.device)
                distributed.state[parameter]["momentum_buffer"] = buffer
            trajectories.append(train(model, distributed))
        assert_same_trajectory(trajectories[1], trajectories[0])


def check_groups_show_the_users_values_between_steps() -> None:
    model = small_model()
    distributed, compression = compressed(
        EXACT, model, SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01), settings={}
    )
    train(model, distributed, steps=2)
    assert compression._owned[distributed][0].momentum
    for group in distributed.param_groups:
        assert (group["momentum"], group["weight_decay"]) == (0.9, 0.01)
    assert not any("momentum_buffer" in state for state in distributed.state.values())


def check_loading_a_checkpoint_of_the_optimizer() -> None:
    """load_state_dict() replaces the parameter groups; the new ones are the ones that count."""
    trajectories = []
    for compress in (False, True):
        model = small_model()
        optimizer = SGD(model.parameters(), lr=0.05, momentum=0.1)
        if compress:
            distributed, _ = compressed(EXACT, model, optimizer, settings={})
        else:
            distributed = distribute(model, optimizer)
        train(model, distributed, steps=2)
        saved = distributed.state_dict()
        for group in saved["param_groups"]:
            group.update(momentum=0.9, weight_decay=0.02)
        distributed.load_state_dict(saved)
        trajectories.append(train(model, distributed))
    assert_same_trajectory(trajectories[1], trajectories[0])
