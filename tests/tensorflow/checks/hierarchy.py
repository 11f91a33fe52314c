"""The hierarchical transport on 2 nodes of 2 ranks: every invariant holds, and a node sends what a rank sends else."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import horovod.tensorflow as hvd
import numpy as np
import tensorflow as tf
from horovod.tensorflow.functions import broadcast_object
from rank import raises

from checks.common import (
    Dense,
    Fed,
    Trainer,
    assert_ranks_identical,
    assert_same_trajectory,
    batch,
    crossentropy,
    data,
    keras_model,
    same,
    sgd,
    state,
    vector,
)
from horovod_dgc import DGC, Method, PowerSGD, Warmup, exchange
from horovod_dgc.checkpoint import CheckpointError
from horovod_dgc.tensorflow import load_checkpoint, save_checkpoint
from horovod_dgc.tensorflow.takeover import state_of

LOCAL = 2
NODES = hvd.size() // LOCAL
PLACE = hvd.rank() % LOCAL
# Horovod's own nodes where the launcher makes them, otherwise so many ranks count as one.
NODE = True if hvd.local_size() == LOCAL else LOCAL
EVERYTHING = DGC(density=1.0, values="float32")


def hierarchical(method: Method, model: Any, optimizer: Any, **options: Any) -> Trainer:
    settings = {"hierarchical": NODE, **options.pop("settings", {})}
    return Trainer(model, method, optimizer, settings=settings, **options)


def check_density_one_is_the_dense_run() -> None:
    for nesterov, transport, options in (
        (True, "gather", {}),
        (False, "allreduce", {"op": hvd.Sum}),
        (True, "auto", {"gradient_predivide_factor": 2.0}),
    ):
        dense = Trainer(Dense(), None, sgd(nesterov=nesterov), **options).run()
        settings = {"transport": transport}
        ours = hierarchical(EVERYTHING, Dense(), sgd(nesterov=nesterov), settings=settings, **options).run()
        assert_same_trajectory(ours, dense)


def check_local_clipping_is_that_of_the_flat_transport() -> None:
    for scope in ("global", "tensor"):
        method = DGC(density=1.0, values="float32", clip_norm=0.05, clip_scope=scope)
        flat = Trainer(Dense(), method, sgd()).run()
        assert_same_trajectory(hierarchical(method, Dense(), sgd()).run(), flat)


def check_nothing_is_lost() -> None:
    """Summed over ranks and steps, to the last bit: halves of whole numbers are exact."""
    count = 15
    for transport in ("auto", "gather", "allreduce", "sparse-allreduce"):
        model = Fed()
        method = DGC(density=0.02, values="float32", warmup=Warmup(steps=10))
        settings = {"transport": transport}
        trainer = hierarchical(method, model, sgd(learning_rate=1.0, momentum=0.0), settings=settings, op=hvd.Sum)
        trainer.run(steps=count)
        residuals = hvd.allgather(trainer.compression.tensors[0].residual.read_value()[None]).numpy()
        # A part's residual is in units of the mean over a node.
        waiting = LOCAL * residuals.reshape(NODES, -1).sum(0)
        fed = sum(model.feed(s, r)[0] for s in range(count) for r in range(hvd.size()))
        lost = np.abs(waiting - model.variables[0].numpy().ravel() - fed.ravel()).max()
        assert lost == 0, f"{transport}: {lost} lost"
        assert waiting.any(), "nothing was left to send: nothing is shown"


def check_parts_are_exchanged_as_by_so_many_workers_as_nodes() -> None:
    for method in (DGC(density=0.05, values="int8"), PowerSGD(rank=2)):
        corrected = method.corrects_momentum
        model = Fed()
        optimizer = sgd(learning_rate=1 / 64, momentum=0.9 if corrected else 0.0)
        trainer = hierarchical(method, model, optimizer, settings={"transport": "gather"})
        shape = (40 // LOCAL, 50)
        states = [method.init(shape, outputs="last") for _ in range(NODES)]
        expected = np.zeros(shape, np.float32)
        for step in range(6):
            trainer.run(steps=1, first=step)
            parts = [np.split(model.feed(step, rank)[0], LOCAL)[PLACE].ravel() for rank in range(hvd.size())]
            means = [np.mean(parts[LOCAL * node :][:LOCAL], axis=0, dtype=np.float32) for node in range(NODES)]
            momentum = {"momentum": 0.9} if corrected else {}
            expected -= exchange(method, means, states, **momentum).reshape(shape) / 64
        mine = np.split(model.variables[0].numpy(), LOCAL)[PLACE]
        np.testing.assert_allclose(mine, expected, rtol=1e-4, atol=1e-4, err_msg=str(method))


def check_ranks_identical() -> None:
    for values, transport in (("float16", "gather"), ("int4", "allreduce"), ("int8", "auto")):
        model = Dense()
        method = DGC(density=0.05, values=values, warmup=Warmup(steps=3), clip_norm=2.0)
        hierarchical(method, model, sgd(nesterov=True), settings={"transport": transport}).run(steps=6)
        assert_ranks_identical(model.variables, f"{values} {transport}")


def check_half_precision_models() -> None:
    model = Dense(dtype=tf.bfloat16)
    hierarchical(DGC(density=0.1), model, sgd()).run(steps=5)
    assert_ranks_identical(model.variables, "bfloat16")


def check_a_skipped_step_changes_nothing() -> None:
    for where, value in (("weight", np.nan), ("bias", np.inf)):
        model = Fed()
        trainer = hierarchical(DGC(density=0.05), model, sgd(learning_rate=1 / 64))
        trainer.run(steps=3)
        before = state(trainer.compression)
        gradients = dict(zip(("weight", "bias"), model.feed(99, hvd.rank())))
        if hvd.rank() == hvd.size() - 1:
            gradients[where].reshape(-1)[1] = value
        seen = dict(zip(gradients, trainer.gradients([tf.constant(g) for g in gradients.values()])))
        for label, gradient in seen.items():
            bad = np.isnan(gradient.numpy()).any() if label == where else not gradient.numpy().any()
            assert bad, f"{where} = {value}: {label}"
        assert same(before, state(trainer.compression)), f"{where} = {value}: the skipped step changed state"
        assert trainer.compression.stats().total.skipped == 1


def check_bytes_from_node_to_node_fall_by_the_local_size() -> None:
    flat, nodes = (
        Trainer(Fed(), DGC(density=0.05), sgd(), settings={"hierarchical": node, "transport": "gather"})
        for node in (False, NODE)
    )
    for trainer in (flat, nodes):
        trainer.run(steps=3)
    one, other = (trainer.compression.stats() for trainer in (flat, nodes))
    (name, bias), whole, part = one.tensors, 40 * 50, 40 * 50 // LOCAL
    method = DGC(density=0.05)
    assert one.tensors[name].sent == 3 * method.payload_nbytes((40, 50))
    assert other.tensors[name].sent == 3 * method.payload_nbytes((40 // LOCAL, 50))
    assert abs(LOCAL * other.tensors[name].sent - one.tensors[name].sent) < 0.1 * one.tensors[name].sent
    assert (one.total.inside, other.total.inside) == (0, 3 * 4 * (whole + part))
    assert other.tensors[bias].inside == 0
    assert one.total.dense == other.total.dense
    assert [t.numel for t in nodes.compression.tensors] == [part, 37]


def check_fit() -> None:
    """Keras trains through it, convolutions included, whose rows are all but the last axis."""
    from horovod_dgc.tensorflow import Compression, DistributedOptimizer

    model = keras_model()
    optimizer = sgd(nesterov=True)
    compression = Compression(DGC(density=0.1), optimizer, model.trainable_variables, hierarchical=NODE)
    model.compile(DistributedOptimizer(optimizer, compression=compression), loss=crossentropy())
    model.fit(*data(), batch_size=8, epochs=1, verbose=0, shuffle=False)
    assert_ranks_identical(model.trainable_variables, "fit")
    parts = [t.part for t in compression.tensors]
    assert sum(part is not None for part in parts) == 3
    assert compression.stats().total.steps == 6


def check_one_node_needs_no_compression() -> None:
    dense = Trainer(Dense(), None, sgd()).run()
    method = DGC(density=0.01, exempt_values="float32")
    trainer = Trainer(Dense(), method, sgd(), settings={"hierarchical": hvd.size()})
    assert_same_trajectory(trainer.run(), dense)
    assert trainer.compression.stats().total.inside


def check_resumes_bit_for_bit() -> None:
    method = DGC(density=0.05, values="int8", warmup=Warmup(steps=8))
    mine = tempfile.mkdtemp() if hvd.rank() == 0 else None
    folder = Path(broadcast_object(mine, name="folder"))
    settings = {"transport": "gather"}

    def job() -> tuple[Trainer, list[Any]]:
        model, optimizer = Fed(), sgd()
        optimizer.build(model.variables)
        return hierarchical(method, model, optimizer, settings=settings), [*model.variables, *state_of(optimizer)]

    trainer, variables = job()
    trainer.run(steps=5)
    save_checkpoint(folder, trainer.compression)
    values = [variable.numpy() for variable in variables]
    trainer.run(steps=5, first=5)
    resumed, variables = job()
    resumed.run(steps=1)
    for variable, value in zip(variables, values):
        variable.assign(value)
    assert load_checkpoint(folder, resumed.compression) == 5
    resumed.run(steps=5, first=5)
    assert np.array_equal(vector(trainer.model.variables), vector(resumed.model.variables))
    assert same(state(trainer.compression), state(resumed.compression))
    with raises(CheckpointError, "local_size"):
        load_checkpoint(folder, Trainer(Fed(), method, sgd()).compression)
    hvd.allreduce(tf.zeros(1), name="resumed")
    if mine:
        shutil.rmtree(mine)


def check_nodes_that_do_not_divide_the_job() -> None:
    with raises(ValueError, "hierarchical", "divides", "3"):
        Trainer(Fed(), DGC(), sgd(), settings={"hierarchical": 3})


def check_nodes_that_differ_between_ranks() -> None:
    trainer = Trainer(Dense(), DGC(), sgd(), settings={"hierarchical": 2 if hvd.rank() else 4})
    with raises(ValueError, "differently", "nodes of 2 ranks"):
        trainer.run(steps=1, inputs=batch)
