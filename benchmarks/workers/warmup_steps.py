"""One worker of negotiation.py: some steps with DGC, for the timeline that Horovod writes meanwhile."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import horovod.torch as hvd
import torch
from support.model import Model

from horovod_dgc import DGC, Warmup
from horovod_dgc.torch import Compression

# Weights and biases of a small network.
SHAPES = {f"layer{i}.{kind}": shape for i in range(8) for kind, shape in (("weight", (256, 256)), ("bias", (256,)))}


def unsteady(step: int) -> float:
    """Another density in every step: what payloads whose length follows the data would look like to Horovod."""
    return 0.001 * (1 + step % 7)


def main(settings: dict[str, Any], answer: Path) -> None:
    hvd.init()
    torch.set_num_threads(1)
    method = DGC(density=0.001, warmup=unsteady if settings["unsteady"] else Warmup(steps=settings["warmup"]))
    model = Model(SHAPES, "model", seed=hvd.rank())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    compression = Compression(method, optimizer, model.named_parameters())
    optimizer = hvd.DistributedOptimizer(optimizer, named_parameters=model.named_parameters(), compression=compression)
    steps = []
    for step in range(settings["steps"]):
        model.fill_gradients()
        model.backward()
        optimizer.step()
        steps.append({"density": method.density_at(step), "sent": compression.stats().last.sent})
    # Waits until all of it is written; at its own end Horovod drops what is not.
    hvd.stop_timeline()
    names = [name for name, _ in model.named_parameters()]
    if hvd.rank() == 0:
        answer.write_text(json.dumps({"parameters": names, "steps": steps}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Path(sys.argv[2]))
