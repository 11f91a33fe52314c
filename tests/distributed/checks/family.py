"""Every method of the family, in the adapter, against all workers in one process."""

from __future__ import annotations

import math
from typing import Any

import horovod.torch as hvd
import numpy as np
import torch
from family import MOMENTUM, STEPS, compared_steps, dropped_globally, reduced_alone
from method_cases import on_ranks

from checks.common import Fed, assert_ranks_identical, compressed
from horovod_dgc import GradientDropping, Method, VarianceBased
from horovod_dgc.cost import Cluster, Rates, predict
from horovod_dgc.torch import SecondMoments


def follow(method: Method, transport: str, op: Any, steps: int = STEPS, backend: str = "auto") -> None:
    model = Fed()
    feeds = [[[g.cpu().numpy() for g in model.feed(step, rank)] for rank in range(hvd.size())] for step in range(steps)]
    expected = reduced_alone(method, feeds, factor=1.0 if op == hvd.Average else float(hvd.size()))
    compared = compared_steps([method.plan(p.shape, steps) for p in model.parameters()])
    # The optimizer applies its own momentum where the method takes none over: then it is left out.
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=MOMENTUM if method.corrects_momentum else 0.0)
    settings = {"transport": transport, "backend": backend}
    optimizer, compression = compressed(method, model, optimizer, settings=settings, op=op)
    for step in range(steps):
        optimizer.zero_grad()
        model.backward(model.feed(step, hvd.rank()))
        # From 0, so that a step at rate 1 is what has been applied, to the last bit.
        for p in model.parameters():
            p.data.zero_()
        optimizer.step()
        for p, result in zip(model.parameters(), expected[step] if step < compared else ()):
            difference = np.abs(-p.detach().cpu().numpy().ravel() - result).max()
            scale = max(1.0, np.abs(result).max())
            assert difference <= 2e-5 * scale, f"{method} by {transport}, step {step}: {difference} of {scale}"
    assert_ranks_identical(model, f"{method} by {transport}")
    last = compression.stats().last
    if transport == "gather":
        plans = [method.plan(p.shape, steps) for p in model.parameters()]
        assert last.sent == sum(plan.payload_nbytes + plan.opening_nbytes for plan in plans)
    if method.clip_norm is None:
        shapes, cluster = [p.shape for p in model.parameters()], Cluster(hvd.size(), bandwidth=1e9)
        told = predict(shapes, method, cluster, 1.0, rates=Rates(), transport=transport, step=steps)
        assert (last.sent, last.control, last.dense) == (told.sent_nbytes, told.control_nbytes, told.dense_nbytes)


def check_every_method_by_gathered_payloads() -> None:
    for method in on_ranks():
        follow(method, "gather", hvd.Average)


def check_every_method_by_allreduce() -> None:
    for method in on_ranks():
        follow(method, "allreduce", hvd.Sum)


def check_every_method_in_plain_torch() -> None:
    for method in on_ranks():
        follow(method, "gather", hvd.Average, steps=8, backend="torch")


def check_tensors_share_a_threshold() -> None:
    shapes = ((20, 30), (40, 25), (20, 30))
    rng = [np.random.default_rng(rank) for rank in range(hvd.size())]
    # Of very different size, so that thresholds of their own would send something else.
    feeds = [
        [[size * r.standard_normal(s).astype(np.float32) for s, size in zip(shapes, (1, 8, 2))] for r in rng]
        for _ in range(6)
    ]
    expected = dropped_globally(0.02, feeds)
    method = GradientDropping(0.02, "float32", scope="global", cap=0.5)
    for backend in ("auto", "torch"):
        model = torch.nn.ParameterList([torch.zeros(shape) for shape in shapes])
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        optimizer, compression = compressed(
            method, model, optimizer, settings={"transport": "gather", "backend": backend}
        )
        for ranks, results in zip(feeds, expected):
            optimizer.zero_grad()
            sum((p * torch.from_numpy(g)).sum() for p, g in zip(model, ranks[hvd.rank()])).backward()
            optimizer.synchronize()
            for p, result in zip(model, results):
                np.testing.assert_allclose(p.grad.cpu().numpy(), result, rtol=1e-6, atol=1e-6)
            with optimizer.skip_synchronize():
                optimizer.step()
        assert compression.stats().last.nonzero == math.ceil(0.02 * 2200)


def check_second_moments_reach_the_method() -> None:
    """Variance-based compression with the samples' own moments, against the same formula in this process alone."""
    method = VarianceBased(alpha=1.0, cap=0.2, values="float32")
    torch.manual_seed(3)
    model = torch.nn.Linear(30, 20, bias=False)
    scale = 128.0
    inputs = [torch.randn(6, 30, generator=torch.Generator().manual_seed(100 * r)) for r in range(hvd.size())]
    state = [method.init((20, 30)) for _ in inputs]
    # The scale is taken out by the rate, and not of the gradients.
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1 / scale)
    scaler = Scaler(scale)
    settings = {"second_moments": SecondMoments(model), "grad_scaler": scaler, "transport": "gather"}
    optimizer, _ = compressed(method, model, optimizer, settings=settings)
    sent = 0
    for step in range(6):
        samples = [x + 0.1 * step for x in inputs]
        total = np.zeros(600, np.float32)
        for rank, x in enumerate(samples):
            # Each sample's gradient of mean(sum(output**2) / 2).
            outputs = x @ model.weight.detach().T
            own = torch.einsum("zo,zi->zoi", outputs, x) / len(x)
            squares = own.square().sum(0).reshape(-1).numpy()
            payload = method.encode(own.sum(0).reshape(-1).numpy(), state[rank], rank=rank, squares=squares)
            method.decode(payload, total, scale=1 / hvd.size())
        optimizer.zero_grad()
        x = samples[hvd.rank()]
        (scale * model(x).square().sum(1).mean() / 2).backward()
        optimizer.synchronize()
        with optimizer.skip_synchronize():
            difference = np.abs(model.weight.grad.numpy().ravel() / scale - total).max()
            assert difference < 1e-4 * max(1.0, np.abs(total).max()), f"step {step}: {difference}"
            sent += np.count_nonzero(total)
            optimizer.step()
    assert 0 < sent < 6 * 600, "everything or nothing was unambiguous"


class Scaler:
    """A loss scale that does not change."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def get_scale(self) -> float:
        return self.scale
