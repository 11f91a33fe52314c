"""Invariant 6 in elastic jobs: a commit brings every method's state back, and who has another step's begins anew."""

from __future__ import annotations

from typing import Any

import horovod.tensorflow as hvd
import numpy as np
from rank import raises

from checks.common import Fed, Trainer, assert_ranks_identical, crossentropy, data, keras, keras_model, sgd, vector
from horovod_dgc import DGC, Method, PowerSGD, SignSGD, VarianceBased
from horovod_dgc.tensorflow import Compression, DistributedOptimizer
from horovod_dgc.tensorflow.elastic import TensorFlowKerasState, TensorFlowState
from horovod_dgc.tensorflow.takeover import state_of

# With velocities, without a residual, and with codecs that keep each rank's own or what is the same on all ranks.
METHODS = (DGC(density=0.02, values="int8"), SignSGD(), VarianceBased(cap=0.1), PowerSGD(rank=2))


def begin(method: Method) -> tuple[Trainer, TensorFlowState]:
    model = Fed()
    optimizer = sgd(learning_rate=0.01)
    optimizer.build(model.variables)
    trainer = Trainer(model, method, optimizer, settings={"transport": "gather"})
    state = TensorFlowState([*model.variables, *state_of(optimizer)], compression=trainer.compression)
    state.sync()
    return trainer, state


def kept(compression: Compression) -> dict[str, np.ndarray]:
    return {f"{t.label}.{name}": getattr(t, name).numpy() for t in compression.tensors for name in t.kept}


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(one[name].tobytes() == other[name].tobytes() for name in one)


def check_a_commit_brings_the_state_back() -> None:
    for method in METHODS:
        trainer, state = begin(method)
        trainer.run(3)
        state.save()
        committed, weights = kept(trainer.compression), vector(trainer.model.variables)
        trainer.run(3, first=3)
        went_on = kept(trainer.compression)
        assert not same(went_on, committed) or isinstance(method, SignSGD)
        state.restore()
        state.sync()
        assert same(kept(trainer.compression), committed), f"{method}: not what was committed"
        assert np.array_equal(vector(trainer.model.variables), weights)
        trainer.run(3, first=3)
        assert same(kept(trainer.compression), went_on), f"{method}: not what went on"
        assert_ranks_identical(trainer.model.variables, str(method))
        assert trainer.compression.stats().lost_ranks == 0


def check_a_rank_of_another_step_begins_anew() -> None:
    for method in METHODS:
        trainer, state = begin(method)
        trainer.run(3)
        last = hvd.size() - 1
        state.save()
        trainer.run(2, first=3)
        residuals = [t.residual for t in trainer.compression.tensors if t.residual is not None]
        before = vector(residuals) if residuals else np.zeros(0)
        if hvd.rank() == last:
            state.restore()
        state.sync()
        for tensor in trainer.compression.tensors:
            assert tensor.memory is None or not tensor.memory.numpy().any(), f"{method}: memories differ between ranks"
        if residuals:
            expected = np.zeros_like(before) if hvd.rank() == last else before
            assert np.array_equal(vector(residuals), expected), f"{method}: rank {last} keeps what has been sent"
        trainer.run(2, first=5)
        assert_ranks_identical(trainer.model.variables, str(method))
        assert trainer.compression.stats().lost_ranks == 1


def fitted(model: Any, epochs: int) -> np.ndarray:
    images, labels = data()
    model.fit(images, labels, batch_size=8, epochs=epochs, shuffle=False, verbose=0)
    return vector(model.trainable_variables)


def check_a_compiled_model_goes_on_from_a_commit() -> None:
    model = keras_model()
    optimizer = sgd()
    compression = Compression(DGC(density=0.05), optimizer, model.trainable_variables)
    model.compile(DistributedOptimizer(optimizer, compression=compression), loss=crossentropy())
    state = TensorFlowKerasState(model, compression=compression, epoch=0)
    state.sync()
    fitted(model, 1)
    state.epoch = 1
    state.save()
    ends = []
    for _ in range(2):
        ends.append((fitted(model, 2), kept(compression)))
        state.epoch = 3
        state.restore()
        # As Horovod does after it has been started anew.
        state.on_reset()
        state.sync()
        assert state.epoch == 1
    assert np.array_equal(ends[0][0], ends[1][0]) and same(ends[0][1], ends[1][1])
    assert_ranks_identical(model.trainable_variables, "a compiled model")
    assert compression.stats().lost_ranks == 0


def check_wrong_states_are_refused() -> None:
    model = keras_model()
    optimizer = sgd()
    compression = Compression(DGC(density=0.05), optimizer, model.trainable_variables)
    with raises(ValueError, "compression must be", "none"):
        TensorFlowState(model.trainable_variables, compression="none")
    with raises(ValueError, "built"):
        TensorFlowKerasState(keras.Sequential([keras.layers.Dense(3)]), optimizer, compression=compression)
