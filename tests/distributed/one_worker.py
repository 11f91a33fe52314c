"""Invariant 4, in a process of its own: with one worker the trained model is that of plain SGD, bit for bit."""

import horovod.torch as hvd
import torch
from checks.common import compressed, small_model, train

from horovod_dgc import DGC

hvd.init()
assert hvd.size() == 1
settings = {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}
model, plain = small_model(), small_model()
optimizer, compression = compressed(
    DGC(density=0.001, clip_norm=0.1), model, torch.optim.SGD(model.parameters(), **settings), settings={}
)
ours = train(model, optimizer)
theirs = train(plain, torch.optim.SGD(plain.parameters(), **settings))
assert all(torch.equal(a, b) for a, b in zip(ours, theirs))
assert compression.stats().total.sent == 0
assert optimizer.param_groups[0]["momentum"] == 0.9
print("one worker is plain SGD")
