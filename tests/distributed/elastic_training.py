"""An elastic job that loses a rank and gains another. Usage: elastic_training.py FOLDER OP SIZE (elastic_worker.py)"""

from __future__ import annotations

from collections.abc import Callable

import horovod.torch as hvd
import numpy as np
import torch
from checks.common import Fed, compressed, digest
from elastic_worker import MOMENTUM, OP, Worker
from waiting import without_spinning

from horovod_dgc import DGC, Warmup
from horovod_dgc.torch.elastic import TorchState

without_spinning()
hvd.init()
torch.set_num_threads(1)
model = Fed()
settings = {"lr": 1.0}
if MOMENTUM:
    settings = {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.01}
    torch.nn.init.normal_(model.weight)
optimizer, compression = compressed(
    DGC(density=0.02, values="float32", warmup=Warmup(steps=15)),
    model,
    torch.optim.SGD(model.parameters(), **settings),
    settings={"check_sync": 1},
    op=getattr(hvd, OP),
)


def take_step(gradients: list[np.ndarray], strike: Callable[[], None]) -> None:
    optimizer.zero_grad()
    model.backward([torch.from_numpy(gradient) for gradient in gradients])
    strike()
    optimizer.step()


def residuals() -> list[np.ndarray | None]:
    tensors = {tensor.name: tensor.residual for tensor in compression._tensors}
    return [None if tensors[name] is None else tensors[name].numpy() for name, _ in model.named_parameters()]


worker = Worker(hvd, residuals, take_step)
hvd.elastic.run(worker.train)(TorchState(model=model, optimizer=optimizer, compression=compression, step=0))
digests = hvd.allgather_object(digest(model.parameters()), name="digest")
worker.end(compression.stats(), digests, [p.detach().numpy() for p in model.parameters()])
