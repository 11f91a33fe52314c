"""One worker of overhead.py: times PyTorch's steps of the same model under several compressions, in turns."""

from __future__ import annotations

import cProfile
import io
import json
import pstats
import sys
import time
from pathlib import Path
from typing import Any

import horovod.torch as hvd
import torch
from support import turns
from support.model import Model

from horovod_dgc.torch import Compression


class Contender(turns.Contender):
    def __init__(self, name: str, shapes: turns.Shapes) -> None:
        super().__init__()
        self.model = Model(shapes, name.replace(" ", ""), seed=hvd.rank())
        optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
        if name in turns.METHODS:
            self.compression = Compression(turns.METHODS[name], optimizer, self.model.named_parameters())
        else:
            self.compression = {"dense": hvd.Compression.none, "fp16": hvd.Compression.fp16}[name]
        self.optimizer = hvd.DistributedOptimizer(
            optimizer, named_parameters=self.model.named_parameters(), compression=self.compression
        )

    def run(self) -> None:
        self.model.fill_gradients()
        hvd.barrier()
        began = time.perf_counter()
        self.model.backward()
        self.optimizer.synchronize()
        exchanged = time.perf_counter()
        with self.optimizer.skip_synchronize():
            self.optimizer.step()
        self.step.append(time.perf_counter() - began)
        self.exchange.append(exchanged - began)


def main(settings: dict[str, Any], answer: Path) -> None:
    hvd.init()
    torch.set_num_threads(1)
    contenders = {name: Contender(name, turns.shapes_of(settings)) for name in turns.NAMES}
    result = turns.measure(settings, contenders, hvd.allgather_object)
    if settings["profile"]:
        result["profile"] = profile(contenders["DGC"], settings["steps"] * settings["rounds"])
    turns.write(answer, hvd.rank(), result)


def profile(contender: Contender, steps: int) -> str:
    """Where this worker's Python thread spends processor time; its waiting is not counted."""
    profiler = cProfile.Profile(time.thread_time)
    profiler.enable()
    for _ in range(steps):
        contender.run()
    profiler.disable()
    text = io.StringIO()
    pstats.Stats(profiler, stream=text).sort_stats("tottime").print_stats(30)
    return f"{steps} steps\n{text.getvalue()}"


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Path(sys.argv[2]))
