"""The last rank forgets ``compression=``: the others must end with an error that says so."""

import horovod.torch as hvd
import torch
from checks.common import batch, compressed, distribute, small_model
from torch import nn

from horovod_dgc import DGC

hvd.init()
model = small_model()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
if hvd.rank() == hvd.size() - 1:
    optimizer = distribute(model, optimizer)
else:
    optimizer, _ = compressed(DGC(), model, optimizer, settings={"agreement_timeout": 3.0})
images, labels = batch(0)
nn.functional.cross_entropy(model(images), labels).backward()
optimizer.step()
