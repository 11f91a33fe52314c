"""Invariant 4, in a process of its own: with one worker the trained model is that of plain SGD, bit for bit."""

from __future__ import annotations

import horovod.tensorflow as hvd
import numpy as np
from checks.common import Dense, Trainer, crossentropy, data, keras_model, sgd, vector

from horovod_dgc import DGC
from horovod_dgc.tensorflow import Compression, DistributedOptimizer

hvd.init()
assert hvd.size() == 1
METHOD = DGC(density=0.001, clip_norm=0.1)
ours, plain = Dense(), Dense()
trainer = Trainer(ours, METHOD, sgd(nesterov=True))
trainer.run()
Trainer(plain, None, sgd(nesterov=True)).run()
assert np.array_equal(vector(ours.variables), vector(plain.variables))
assert trainer.compression.stats().total.sent == 0

ends = []
for compress in (True, False):
    model, optimizer = Dense(), sgd()
    Trainer(model, None, optimizer).run(steps=3)
    # The optimizer keeps the momentum that it has gathered before there was a Compression.
    ends.append(Trainer(model, METHOD if compress else None, optimizer).run(steps=3, first=3)[-1])
assert np.array_equal(*ends)

ends = []
for compress in (True, False):
    model, optimizer = keras_model(), sgd(nesterov=True)
    if compress:
        compression = Compression(METHOD, optimizer, model.trainable_variables)
        optimizer = DistributedOptimizer(optimizer, compression=compression)
    model.compile(optimizer, loss=crossentropy())
    model.fit(*data(), batch_size=8, epochs=2, shuffle=False, verbose=0)
    ends.append(vector(model.trainable_variables))
assert np.array_equal(*ends)
print("one worker is plain SGD")
