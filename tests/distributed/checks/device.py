"""Models on a GPU, beside the same models in host memory."""

from __future__ import annotations

import itertools
import random

import horovod.torch as hvd
import torch

from checks.common import DEVICE, Fed, assert_ranks_identical, compressed, digest, state_digest
from horovod_dgc import DGC, Method, Warmup
from horovod_dgc.torch import kernels

HOST = torch.device("cpu")


def fed(method: Method, device: torch.device, steps: int = 12, disturb: bool = False, **settings: object) -> list[str]:
    """Digests of parameters and state after each step; the gradients do not depend on the parameters."""
    model = Fed(device)
    build = torch.optim.SGD(model.parameters(), lr=1 / 64, momentum=0.9, nesterov=True)
    # Sums in rank order, on every device.
    optimizer, compression = compressed(method, model, build, settings={"transport": "gather", **settings})
    found = []
    for step in range(steps):
        optimizer.zero_grad()
        gradients = model.feed(step, hvd.rank())
        if disturb:
            torch.cuda._sleep(random.randrange(1, 20_000_000))
        model.backward(gradients)
        if disturb:
            # What is free too early is taken, and overwritten, at once.
            for _ in range(50):
                torch.full((random.choice((100, 1000, 4000)),), -1, dtype=torch.int32, device=device)
            torch.cuda._sleep(random.randrange(1, 20_000_000))
        optimizer.step()
        if disturb:
            for _ in range(50):
                torch.full((random.choice((100, 1000, 4000)),), -1, dtype=torch.int32, device=device)
        found.append(digest(model.parameters()) + state_digest(compression))
    assert_ranks_identical(model, f"{method} on {device}")
    assert compression.stats().total.steps == steps
    return found


def methods() -> list[Method]:
    codings = itertools.product(("float32", "float16", "bfloat16", "int8", "int4"), ("elias-fano", "int32"))
    return [
        *(DGC(density=0.03, values=values, indices=indices) for values, indices in codings),
        DGC(density=0.03, indices="runlength16"),
        DGC(density=0.02, warmup=Warmup(steps=8), clip_norm=30.0),
        DGC(density=0.05, factor_masking=False, exempt_values="float32"),
        DGC(density=0.05, momentum_correction=False),
    ]


def check_it_is_kernels_that_run() -> None:
    model = Fed()
    build = torch.optim.SGD(model.parameters(), lr=0.1)
    _, compression = compressed(DGC(density=0.03), model, build, settings={})
    assert all(isinstance(entry.backend, kernels.CudaBackend) for entry in compression._tensors)
    assert all(entry.backend.knows(DGC().plan((40, 50)).codec) for entry in compression._tensors)


def check_a_gpu_gives_what_host_memory_gives() -> None:
    for method in methods():
        assert fed(method, DEVICE) == fed(method, HOST), f"{method}: a GPU gives another result"


def check_slow_and_fast_ranks_give_the_same() -> None:
    """Kernels and collectives under way for long, at random, and memory that is taken as soon as it is free."""
    random.seed(hvd.rank())
    for method in (DGC(density=0.03), DGC(density=0.05, values="int4", exempt_values="bfloat16")):
        assert fed(method, DEVICE, steps=60, disturb=True) == fed(method, HOST, steps=60)


def check_counts_are_those_of_host_memory() -> None:
    counts = []
    for device in (DEVICE, HOST):
        model = Fed(device)
        build = torch.optim.SGD(model.parameters(), lr=1 / 64, momentum=0.9)
        method = DGC(density=0.3, values="int4")
        optimizer, compression = compressed(method, model, build, settings={"transport": "gather"})
        for step in range(5):
            optimizer.zero_grad()
            model.backward(model.feed(step, hvd.rank()))
            optimizer.step()
        total = compression.stats().total
        counts.append((total.sent, total.control, total.dense, total.nonzero, total.elements, total.steps))
        last = compression.stats().last
        counts[-1] += (last.nonzero, last.elements)
    assert counts[0] == counts[1], counts
    assert 0 < counts[0][3] < counts[0][4]
