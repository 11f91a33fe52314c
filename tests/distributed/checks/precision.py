"""Mixed precision: runs whose steps overflow now and then end where they would have ended without."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import horovod.torch as hvd
import torch
from rank import by_length
from torch import nn

from checks.common import assert_ranks_identical, batch, compressed, small_model, vector
from horovod_dgc import DGC

BATCHES = 12


@dataclass(frozen=True)
class End:
    parameters: torch.Tensor
    loss: float
    scales: set[float]


def loss_of(model: nn.Module, step: int, dtype: torch.dtype) -> torch.Tensor:
    images, labels = batch(step % BATCHES)
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        return nn.functional.cross_entropy(model(images).float(), labels)


def train(dtype: torch.dtype, steps: int, overflowing: bool) -> End:
    """Train until so many steps have not been skipped; each has the batch that it would have without overflows."""
    # Attempts that overflow on one rank.
    overflows = {0, 1, *range(7, steps, 13)} if overflowing else set()
    model = small_model()
    # Statistics of a skipped step's batch would stay.
    model[1].eval()
    # Without overflows the scale must not grow into some of its own.
    growth = 2.0 if overflows else 1.0 + 1e-9
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=8, growth_factor=growth)
    build = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    settings = {"grad_scaler": scaler, "transport": "gather"}
    optimizer, compression = compressed(DGC(density=0.05), model, build, settings=settings)
    scales, done = set(), 0
    for attempt in itertools.count():
        optimizer.zero_grad()
        loss = scaler.scale(loss_of(model, done, dtype))
        bad = attempt in overflows and hvd.rank() == attempt % hvd.size()
        (loss * float("inf") if bad else loss).backward()
        optimizer.synchronize()
        scaler.unscale_(optimizer)
        with optimizer.skip_synchronize():
            scaler.step(optimizer)
        before = scaler.get_scale()
        scaler.update()
        scales.add(before)
        skipped = scaler.get_scale() < before
        assert skipped == (attempt in overflows), f"attempt {attempt} at scale {before}: skipped {skipped}"
        done += not skipped
        if done == steps:
            break
    assert compression.stats().total.skipped == attempt + 1 - steps
    assert_ranks_identical(model, f"{dtype} with {len(overflows)} overflows")
    with torch.no_grad():
        loss = sum(loss_of(model, step, dtype).item() for step in range(BATCHES)) / BATCHES
    return End(vector(model.parameters()), loss, scales)


def check_float32_and_bfloat16_with_overflows_end_where_they_would_have_ended() -> None:
    """The scale is a power of two, and bfloat16 has float32's range: to the last bit."""
    for dtype in (torch.float32, torch.bfloat16):
        undisturbed, disturbed = (train(dtype, by_length(80, long=300), overflowing) for overflowing in (False, True))
        assert len(disturbed.scales) > 3, "the scale hardly changed: nothing is shown"
        assert torch.equal(undisturbed.parameters, disturbed.parameters), f"{dtype}: not where it would have ended"


def check_float16_with_overflows_ends_where_it_would_have_ended() -> None:
    """What is below float16's range depends on the scale: the losses differ by 2 % of the first at most."""
    undisturbed, disturbed = (train(torch.float16, 300, overflowing) for overflowing in (False, True))
    model = small_model()
    model[1].eval()
    with torch.no_grad():
        start = sum(loss_of(model, step, torch.float16).item() for step in range(BATCHES)) / BATCHES
    assert undisturbed.loss < 0.6 * start, f"{start} -> {undisturbed.loss}: nothing was learnt"
    assert abs(disturbed.loss - undisturbed.loss) < 0.02 * start, f"{undisturbed} {disturbed}"
