"""Invariant 7: wrong use is a clear error on every rank, never a hang and never silent."""

from __future__ import annotations

import horovod.tensorflow as hvd
import horovod.tensorflow.keras as hvd_keras
import numpy as np
import tensorflow as tf
from rank import raises

from checks.common import (
    Dense,
    Fed,
    Trainer,
    assert_ranks_identical,
    batch,
    crossentropy,
    data,
    keras,
    keras_model,
    same,
    sgd,
    state,
)
from horovod_dgc import DGC, Warmup
from horovod_dgc.tensorflow import Compression, DistributedOptimizer
from horovod_dgc.tensorflow.takeover import KERAS_3

METHOD = DGC(density=0.05)


def check_density_differs_between_ranks() -> None:
    trainer = Trainer(Dense(), DGC(density=0.05 if hvd.rank() else 0.01), sgd())
    with raises(ValueError, "configured differently", "density=0.05", "density=0.01"):
        trainer.run(steps=1)


def check_coding_differs_on_the_last_rank() -> None:
    last = hvd.rank() == hvd.size() - 1
    trainer = Trainer(Dense(), DGC(values="int8" if last else "float16"), sgd())
    with raises(ValueError, "configured differently", "int8", "float16", f"rank {hvd.size() - 1}"):
        trainer.run(steps=1)


def check_models_differ_between_ranks() -> None:
    model = Dense()
    if hvd.rank() == 0:
        model.variables = model.variables[:-1]
    with raises(ValueError, "configured differently", "variable 3 (5,) float32"):
        Trainer(model, METHOD, sgd()).run(steps=1)


def check_schedules_and_optimizers_differ() -> None:
    with raises(ValueError, "configured differently", "steps=4", "steps=5"):
        Trainer(Dense(), DGC(warmup=Warmup(steps=4 + min(hvd.rank(), 1))), sgd()).run(steps=1)
    optimizer = sgd() if hvd.rank() else keras.optimizers.Adam()
    with raises(ValueError, "configured differently", "optimizer SGD", "optimizer Adam"):
        Trainer(Dense(), METHOD, optimizer).run(steps=1)


def check_training_goes_on_after_a_refusal() -> None:
    check_density_differs_between_ranks()
    model = Dense()
    Trainer(model, METHOD, sgd()).run(steps=3)
    assert_ranks_identical(model.variables, "after a refusal")


def check_reductions_that_need_dense_gradients() -> None:
    with raises(ValueError, "op must be", "Average"):
        Trainer(Dense(), METHOD, sgd(), op=hvd.Min).run(steps=1)
    # Horovod itself refuses Adasum on three ranks.
    if hvd.size() != 3:
        with raises(ValueError, "Adasum"):
            Trainer(Dense(), METHOD, sgd(), op=hvd.Adasum).run(steps=1)


def check_another_models_gradients() -> None:
    known, unknown = Dense(1), Dense(2)
    trainer = Trainer(known, METHOD, sgd())
    trainer.model = unknown
    with raises(ValueError, "kernel", "does not know"):
        trainer.run(steps=1)


def check_one_compression_for_two_models_of_equal_shapes() -> None:
    """Horovod traces its eager reducer for the first and runs the same graph for the second."""
    models = [Fed("a"), Fed("b")]
    trainer = Trainer(models[0], METHOD, sgd(), eager=True)
    trainer.run(steps=2)
    before = models[1].weight.numpy()
    trainer.model = models[1]
    with raises(Exception, "belongs to a variable of another model", "Compression of its own"):
        trainer.run(steps=1)
    assert np.array_equal(before, models[1].weight.numpy())


def check_direct_calls() -> None:
    model = Dense()
    compression = Compression(METHOD, sgd(), model.variables)
    with raises(ValueError, "DistributedGradientTape"):
        hvd.allreduce(tf.zeros((3, 3)), compression=compression)
    with raises(ValueError, "DistributedGradientTape"):
        tf.function(lambda: hvd.allreduce(tf.zeros((3, 3)), compression=compression))()


def check_construction_errors_name_argument_value_and_range() -> None:
    model = Dense()
    with raises(ValueError, "method", "DGC"):
        Compression("dgc", sgd(), model.variables)
    with raises(ValueError, "optimizer", "Keras"):
        Compression(METHOD, model, model.variables)
    with raises(ValueError, "variables", "empty", "build"):
        Compression(METHOD, sgd(), [])
    with raises(ValueError, "variables", "distinct"):
        Compression(METHOD, sgd(), [*model.variables, model.first])
    with raises(ValueError, "variables must hold"):
        Compression(METHOD, sgd(), [tf.zeros((3, 3))])
    with raises(ValueError, "dtypes", "complex64"):
        Compression(METHOD, sgd(), [tf.Variable(tf.zeros((3, 3), tf.complex64))])
    with raises(ValueError, "transport", "ring", "gather"):
        Compression(METHOD, sgd(), model.variables, transport="ring")
    with raises(ValueError, "agreement_timeout", "-1"):
        Compression(METHOD, sgd(), model.variables, agreement_timeout=-1)
    with raises(ValueError, "schedule", "Warmup"):
        Compression(DGC(warmup=lambda step: 0.5), sgd(), model.variables)
    with raises(ValueError, "MomentumOptimizer", "tf.keras.optimizers.SGD"):
        Compression(METHOD, tf.compat.v1.train.MomentumOptimizer(0.1, 0.9), model.variables)
    optimizer = sgd()
    Compression(METHOD, optimizer, model.variables)
    with raises(ValueError, "another Compression"):
        Compression(METHOD, optimizer, model.variables)


def check_horovods_own_optimizer_under_keras_3() -> None:
    model = keras_model()
    optimizer = sgd()
    compression = Compression(METHOD, optimizer, model.trainable_variables)
    if KERAS_3:
        for build in (hvd_keras.DistributedOptimizer, hvd.DistributedOptimizer):
            with raises(ValueError, "Keras 3", "horovod_dgc.tensorflow.DistributedOptimizer"):
                build(optimizer, compression=compression)


def check_misuse_of_the_keras_3_optimizer() -> None:
    if not KERAS_3:
        return
    with raises(ValueError, "LossScaleOptimizer", "DistributedOptimizer(LossScaleOptimizer"):
        model = keras_model()
        scaled = keras.optimizers.LossScaleOptimizer(DistributedOptimizer(sgd()))
        model.compile(scaled, loss=crossentropy())
        model.fit(*data(16), batch_size=8, verbose=0)
    with raises(ValueError, "distributed already"):
        DistributedOptimizer(DistributedOptimizer(sgd()))
    with raises(ValueError, "gradient_accumulation_steps", "backward_passes_per_step"):
        DistributedOptimizer(sgd(gradient_accumulation_steps=2))
    with raises(ValueError, "backward_passes_per_step", "0"):
        DistributedOptimizer(sgd(), backward_passes_per_step=0)
    with raises(ValueError, "op", "Average"):
        DistributedOptimizer(sgd(), op=hvd.Adasum)
    with raises(ValueError, "Keras optimizer"):
        DistributedOptimizer(tf.compat.v1.train.GradientDescentOptimizer(0.1))
    with raises(ValueError, "sparse_as_dense"):
        model = keras.Sequential([keras.layers.Embedding(30, 4), keras.layers.Flatten(), keras.layers.Dense(5)])
        model.build((None, 6))
        model.compile(DistributedOptimizer(sgd(), backward_passes_per_step=2), loss=crossentropy())
        model.fit(np.zeros((16, 6), "int64"), np.zeros(16, "int64"), batch_size=8, verbose=0)


def check_scale_that_does_not_exist_yet() -> None:
    if not KERAS_3:
        return
    model = Dense()
    scaled = keras.optimizers.LossScaleOptimizer(sgd())
    with raises(ValueError, "optimizer.build"):
        Trainer(model, METHOD, scaled, built=False).step(batch(0))


def check_variables_out_of_sync() -> None:
    """By one bit: an error on every rank which names the first variable and the ranks, before anything changes."""
    model = Dense()
    trainer = Trainer(model, METHOD, sgd(), settings={"check_sync": 2})
    trainer.run(steps=2)
    if hvd.rank() == hvd.size() - 1:
        model.first.assign(tf.bitcast(tf.bitwise.bitwise_xor(tf.bitcast(model.first, tf.int32), 1), tf.float32))
    before = state(trainer.compression)
    name = next(tensor.label for tensor in trainer.compression.tensors if tensor.variable is model.first)
    words = ("before exchange 2", f"{name} is the first of 1 (of 4)", f"as on rank 0: rank {hvd.size() - 1}.")
    with raises(tf.errors.InvalidArgumentError, "check_sync", *words):
        trainer.run(steps=1)
    assert same(before, state(trainer.compression))


def check_variables_are_compared_as_often_as_wanted() -> None:
    trainer = Trainer(Dense(seed=hvd.rank()), METHOD, sgd(), eager=True, settings={"check_sync": 100})
    with raises(tf.errors.InvalidArgumentError, "before exchange 0", "is the first of"):
        trainer.run(steps=1)
    Trainer(Dense(seed=hvd.rank()), METHOD, sgd()).run(steps=2)
    model = Fed()
    trainer = Trainer(model, METHOD, sgd(), settings={"check_sync": 3})
    trainer.run(steps=4)
    if hvd.rank() == 0:
        model.bias.assign_add(tf.ones_like(model.bias))
    trainer.run(steps=2)
    with raises(tf.errors.InvalidArgumentError, "before exchange 6", "rank 1"):
        trainer.run(steps=1)


def check_sync_of_keras_models() -> None:
    model = keras_model()
    optimizer = sgd()
    compression = Compression(METHOD, optimizer, model.trainable_variables, check_sync=1)
    model.compile(DistributedOptimizer(optimizer, compression=compression), loss=crossentropy())
    images, labels = data()
    model.fit(images, labels, batch_size=16, epochs=1, verbose=0)
    if hvd.rank() == 0:
        kernel = model.trainable_variables[-1]
        kernel.assign(kernel + 1.0)
    with raises(tf.errors.InvalidArgumentError, "before exchange 3", "is the first of 1"):
        model.fit(images, labels, batch_size=16, epochs=1, verbose=0)


def check_check_sync_must_be_a_whole_number_and_the_same() -> None:
    model = Dense()
    for wrong in (-1, 2.5, "1", True, None):
        with raises(ValueError, "check_sync", repr(wrong)):
            Compression(METHOD, sgd(), model.variables, check_sync=wrong)
    trainer = Trainer(model, METHOD, sgd(), settings={"check_sync": min(hvd.rank(), 1)})
    with raises(ValueError, "configured differently", "check_sync 0", "check_sync 1"):
        trainer.run(steps=1)
