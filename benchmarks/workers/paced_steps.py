"""One worker of a job on the cluster lab: times whole steps of a model whose computation is a wait of known length.

Called with settings as JSON and a folder, into which rank 0 writes 0.json. A third of the wait comes before the
backward pass, the rest within it, before each gradient by its share of the elements. A worker that waits leaves the
processor to the others, as it would if it were alone on its host, and gradients travel meanwhile.
"""

from __future__ import annotations

import gc
import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import horovod.torch as hvd
import torch
import torch.distributed
from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook as powersgd
from torch.nn.parallel import DistributedDataParallel

from horovod_dgc.registry import parse
from horovod_dgc.shapes import NAMED
from horovod_dgc.torch import Compression

FORWARD = 1 / 3
WARM_UP = 2
FEWEST_STEPS = 3
# Before its hook compresses, DDP exchanges this many steps dense; the least that it takes with error feedback.
DDP_DENSE_STEPS = 2
# With several buckets under Gloo its callbacks, which run in several threads, call collectives in an order that differs
# between ranks, and the job is aborted.
DDP_ONE_BUCKET_MB = 1024

Step = Callable[[], None]


class _Layer(torch.autograd.Function):
    """Passes on a scalar. Its backward pass takes ``seconds`` and gives ``parameter`` a gradient drawn beforehand."""

    @staticmethod
    def forward(
        ctx: Any, scalar: torch.Tensor, parameter: torch.Tensor, gradient: torch.Tensor, seconds: float
    ) -> torch.Tensor:
        ctx.gradient, ctx.seconds = gradient, seconds
        return scalar.clone()

    @staticmethod
    def backward(ctx: Any, scalar: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        time.sleep(ctx.seconds)
        return scalar, ctx.gradient, None, None


class PacedModel(torch.nn.Module):
    """Parameters of given shapes, ``seconds`` of computation a step, and gradients that are the same in all steps."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], seconds: float, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        elements = sum(math.prod(shape) for shape in shapes.values())
        self._forward_seconds = FORWARD * seconds
        self._layers: list[tuple[torch.nn.Parameter, torch.Tensor, float]] = []
        for name, shape in shapes.items():
            parameter = torch.nn.Parameter(torch.zeros(shape))
            self.register_parameter(name.replace(".", "_"), parameter)
            share = math.prod(shape) / elements
            drawn = torch.randn(shape, generator=generator)
            self._layers.append((parameter, drawn, (1 - FORWARD) * seconds * share))

    def forward(self) -> torch.Tensor:
        time.sleep(self._forward_seconds)
        scalar = torch.zeros((), requires_grad=True)
        for layer in self._layers:
            scalar = _Layer.apply(scalar, *layer)
        return scalar


def _sgd(model: torch.nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9)


def _step_of(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Step:
    def step() -> None:
        optimizer.zero_grad()
        model().backward()
        optimizer.step()

    return step


def alone(model: PacedModel) -> Step:
    """Without any exchange."""
    return _step_of(model, _sgd(model))


def horovod(model: PacedModel, compression: Any = hvd.Compression.none) -> Step:
    optimizer = hvd.DistributedOptimizer(
        _sgd(model), named_parameters=model.named_parameters(), compression=compression
    )
    return _step_of(model, optimizer)


def horovod_dgc(model: PacedModel, method: str) -> Step:
    """One of this package's methods, named as in the examples' --compression."""
    optimizer = _sgd(model)
    compression = Compression(parse(method), optimizer, model.named_parameters())
    distributed = hvd.DistributedOptimizer(
        optimizer, named_parameters=model.named_parameters(), compression=compression
    )
    return _step_of(model, distributed)


def ddp_powersgd(model: PacedModel, rank: int) -> Step:
    """PyTorch's DistributedDataParallel with its own PowerSGD hook, over its own Gloo."""
    wrapped = DistributedDataParallel(model, init_sync=False, bucket_cap_mb=DDP_ONE_BUCKET_MB)
    state = powersgd.PowerSGDState(None, matrix_approximation_rank=rank, start_powerSGD_iter=DDP_DENSE_STEPS)
    wrapped.register_comm_hook(state, powersgd.powerSGD_hook)
    return _step_of(wrapped, _sgd(model))


KINDS: Mapping[str, Callable[..., Step]] = {
    "alone": alone,
    "dense": horovod,
    "fp16": lambda model: horovod(model, hvd.Compression.fp16),
    "method": horovod_dgc,
    "ddp-powersgd": ddp_powersgd,
}


def timed(step: Step, warm_up: int, steps: int, budget: float) -> list[float]:
    """Seconds of each of up to ``steps`` steps after the warm-up, the slowest worker's.

    Where a step is slow they are as many as last about ``budget`` seconds, but at least :data:`FEWEST_STEPS`.
    """

    def one() -> float:
        hvd.barrier()
        began = time.perf_counter()
        step()
        return float(max(hvd.allgather_object(time.perf_counter() - began)))

    seconds = [one() for _ in range(warm_up)][-1]
    return [one() for _ in range(max(FEWEST_STEPS, min(steps, int(budget / seconds))))]


def main(settings: dict[str, Any], folder: Path) -> None:
    hvd.init()
    torch.set_num_threads(1)
    address = f"tcp://{settings['master']}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=hvd.rank(), world_size=hvd.size())
    found = {}
    for name, (kind, *arguments) in settings["contenders"].items():
        model = PacedModel(NAMED[settings["model"]](), settings["compute"], seed=hvd.rank())
        step = KINDS[kind](model, *arguments)
        warm_up = WARM_UP + (DDP_DENSE_STEPS if kind == "ddp-powersgd" else 0)
        found[name] = timed(step, warm_up, settings["steps"], settings["budget"])
        if hvd.rank() == 0:
            print(name, [round(seconds, 3) for seconds in found[name]], flush=True)
        del model, step
        gc.collect()
    torch.distributed.destroy_process_group()
    if hvd.rank() == 0:
        (folder / "0.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Path(sys.argv[2]))
