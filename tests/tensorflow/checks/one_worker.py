"""Invariant 4: with one worker the trained model is that of plain SGD, bit for bit."""

from __future__ import annotations

import horovod.tensorflow as hvd
import numpy as np

from checks.common import Dense, Trainer, crossentropy, data, keras_model, sgd, vector
from horovod_dgc import DGC
from horovod_dgc.tensorflow import Compression, DistributedOptimizer

METHOD = DGC(density=0.001, clip_norm=0.1)
assert hvd.size() == 1


def check_one_worker_is_plain_sgd() -> None:
    ours, plain = Dense(), Dense()
    trainer = Trainer(ours, METHOD, sgd(nesterov=True))
    trainer.run()
    Trainer(plain, None, sgd(nesterov=True)).run()
    assert np.array_equal(vector(ours.variables), vector(plain.variables))
    assert trainer.compression.stats().total.sent == 0


def check_the_optimizer_keeps_the_momentum_gathered_before() -> None:
    ends = []
    for compress in (True, False):
        model, optimizer = Dense(), sgd()
        Trainer(model, None, optimizer).run(steps=3)
        ends.append(Trainer(model, METHOD if compress else None, optimizer).run(steps=3, first=3)[-1])
    assert np.array_equal(*ends)


def check_one_worker_fits_as_plain_sgd() -> None:
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
