"""An elastic job that loses a rank and gains another. Usage: elastic_training.py FOLDER OP SIZE (elastic_worker.py)"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import horovod.tensorflow as hvd
import numpy as np
import tensorflow as tf
from checks.common import Fed, Trainer, sgd, vector
from elastic_worker import MOMENTUM, OP, Worker
from horovod.tensorflow.functions import allgather_object

from horovod_dgc import DGC, Warmup
from horovod_dgc.tensorflow.elastic import TensorFlowState
from horovod_dgc.tensorflow.takeover import state_of

tf.config.threading.set_intra_op_parallelism_threads(1)
tf.config.threading.set_inter_op_parallelism_threads(2)
hvd.init()
model = Fed()
settings = {"learning_rate": 1.0, "momentum": 0.0}
if MOMENTUM:
    settings = {"learning_rate": 0.01, "momentum": 0.9}
    model.weight.assign(tf.random.stateless_normal(model.weight.shape, (1, 2)))
optimizer = sgd(**settings)
optimizer.build(model.variables)
trainer = Trainer(
    model,
    DGC(density=0.02, values="float32", warmup=Warmup(steps=15)),
    optimizer,
    settings={"check_sync": 1},
    op=getattr(hvd, OP),
)
compression = trainer.compression
step: Any = None


def take_step(gradients: list[np.ndarray], strike: Callable[[], None]) -> None:
    strike()
    step([tf.constant(gradient) for gradient in gradients])


def train(state: TensorFlowState) -> None:
    global step
    step = tf.function(trainer._step)
    worker.train(state)


def residuals() -> list[np.ndarray | None]:
    return [None if tensor.residual is None else tensor.residual.numpy() for tensor in compression.tensors]


worker = Worker(hvd, residuals, take_step)
variables = [*model.variables, *state_of(optimizer)]
hvd.elastic.run(train)(TensorFlowState(variables, compression=compression, step=0))
digests = allgather_object(hashlib.sha256(vector(model.variables).tobytes()).hexdigest())
worker.end(compression.stats(), digests, [v.numpy() for v in model.variables])
