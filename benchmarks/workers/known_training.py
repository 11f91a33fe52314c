"""One worker of a job on the cluster lab: a known number of steps, and what ``stats()`` says that they sent.

Called with settings as JSON and a folder, into which each rank writes <rank>.json. One step comes first, in which the
ranks compare configurations; then come ``steps`` more, or as long an idle wait in a job that is there to be subtracted.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import horovod.torch as hvd
import torch

from horovod_dgc.registry import parse
from horovod_dgc.torch import Compression

# 4.5 million elements in six tensors.
WIDTHS = (1024, 2048, 1024, 256)
BATCH = 4


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    layers: list[torch.nn.Module] = []
    for inputs, outputs in zip(WIDTHS, WIDTHS[1:]):
        layers += [torch.nn.Linear(inputs, outputs), torch.nn.Tanh()]
    return torch.nn.Sequential(*layers)


def main(settings: dict[str, Any], folder: Path) -> None:
    os.environ["HOROVOD_CYCLE_TIME"] = str(settings["cycle_ms"])
    hvd.init(process_sets="dynamic")
    torch.set_num_threads(1)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    compression = Compression(
        parse(settings["method"]),
        optimizer,
        model.named_parameters(),
        transport=settings["transport"],
        hierarchical=settings["hierarchical"],
    )
    optimizer = hvd.DistributedOptimizer(optimizer, named_parameters=model.named_parameters(), compression=compression)
    generator = torch.Generator().manual_seed(hvd.rank())

    def step() -> None:
        inputs = torch.randn(BATCH, WIDTHS[0], generator=generator)
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        optimizer.step()

    step()
    hvd.barrier()
    began = time.monotonic()
    for _ in range(settings["steps"]):
        step()
    time.sleep(settings["idle"])
    seconds = time.monotonic() - began
    stats = compression.stats()
    print(stats)
    tensors = {
        name: {"sent": each.sent, "control": each.control, "dense": each.dense} for name, each in stats.tensors.items()
    }
    total = dataclasses.asdict(stats.total)
    answer = {"seconds": seconds, "workers": hvd.size(), "total": total, "tensors": tensors}
    (folder / f"{hvd.rank()}.json").write_text(json.dumps(answer))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Path(sys.argv[2]))
