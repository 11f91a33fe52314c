"""Variables, models and calls of every kind, and the state that belongs to them."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import horovod.tensorflow as hvd
import numpy as np
import tensorflow as tf

from checks.common import (
    EXACT_VALUES,
    Dense,
    Fed,
    Trainer,
    assert_ranks_identical,
    assert_same_trajectory,
    batch,
    keras,
    keras_model,
    same,
    sgd,
    state,
    vector,
)
from horovod_dgc import DGC, Warmup
from horovod_dgc.tensorflow import Compression
from horovod_dgc.tensorflow.takeover import raw

EXACT = DGC(**EXACT_VALUES)
SPARSE = DGC(density=0.05)


class Embeddings:
    """Two embeddings of equal shape, whose gradients are IndexedSlices, and a dense layer."""

    def __init__(self) -> None:
        normal = tf.random.stateless_normal
        self.one = tf.Variable(normal((30, 8), (1, 1)), name="one")
        self.two = tf.Variable(normal((30, 8), (1, 2)), name="two")
        self.out = tf.Variable(normal((8, 5), (1, 3)), name="out")
        self.variables = [self.one, self.two, self.out]

    def loss(self, words: tf.Tensor) -> tf.Tensor:
        hidden = tf.gather(self.one, words) * 2 + tf.gather(self.two, 29 - words)
        logits = hidden @ self.out
        return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(words % 5, logits))


def words(step: int) -> tf.Tensor:
    return tf.constant(np.random.default_rng((step, hvd.rank())).integers(0, 30, 12), tf.int64)


def check_sparse_as_dense_embeddings() -> None:
    trajectories = []
    for method in (EXACT, None):
        model = Embeddings()
        trajectories.append(Trainer(model, method, sgd(), sparse_as_dense=True).run(inputs=words))
        assert_ranks_identical(model.variables, str(method))
    assert_same_trajectory(*trajectories)


def check_sparse_gradients_bypass_compression_and_keep_the_optimizers_momentum() -> None:
    trajectories = []
    for method in (EXACT, None):
        model = Embeddings()
        trainer = Trainer(model, method, sgd(nesterov=True))
        trajectories.append(trainer.run(inputs=words))
        assert_ranks_identical(model.variables, str(method))
        if method:
            sent = {name: t.sent for name, t in trainer.compression.stats().tensors.items()}
            assert sent["out:0"] and not sent["one:0"] and not sent["two:0"]
    assert_same_trajectory(*trajectories)


def check_variables_without_gradient() -> None:
    class Branch(Dense):
        def __init__(self) -> None:
            super().__init__()
            self.unused = tf.Variable(tf.ones((3, 3)), name="unused")
            self.variables = [self.unused, *self.variables]

    trajectories = []
    for method in (EXACT, None):
        trajectories.append(Trainer(Branch(), method, sgd()).run(inputs=batch))
    assert_same_trajectory(*trajectories)


def check_scalars_and_empty_variables() -> None:
    class Odd(Dense):
        def __init__(self, empty: bool) -> None:
            super().__init__()
            self.scale = tf.Variable(1.5, name="scale")
            self.empty = tf.Variable(tf.zeros((0, 3)), name="empty")
            self.one = tf.Variable(tf.ones((1, 1)), name="one")
            self.variables += [self.scale, self.one, *([self.empty] if empty else [])]

        def loss(self, inputs: Any) -> tf.Tensor:
            return super().loss(inputs) * self.scale * self.one[0, 0] + tf.reduce_sum(self.empty)

    # Uncompressed Horovod has no allreduce of an empty tensor to compare with.
    trajectories = [Trainer(Odd(empty), method, sgd()).run(inputs=batch) for empty, method in ((1, EXACT), (0, None))]
    assert_same_trajectory(*trajectories)


def check_batches_of_other_shapes_are_traced_again() -> None:
    trajectories = []
    for method in (EXACT, None):
        trainer = Trainer(Dense(), method, sgd())
        trajectories.append(trainer.run(inputs=lambda step: batch(step, size=4 + step % 3)))
        assert trainer.traced >= 2
    assert_same_trajectory(*trajectories)


def check_ranks_that_trace_at_different_steps() -> None:
    model = Dense()
    trainer = Trainer(model, SPARSE, sgd())
    trainer.run(inputs=lambda step: batch(step, size=5 if (step + hvd.rank()) % 3 == 0 else 8))
    assert_ranks_identical(model.variables, "traced at different steps")


def check_no_python_runs_at_run_time() -> None:
    model = Dense()
    trainer = Trainer(model, DGC(density=0.05, warmup=Warmup(steps=3)), sgd())
    trainer.run(steps=2)
    traced = trainer.traced
    trainer.run(steps=4, first=2)
    assert trainer.traced == traced
    graph = trainer.step.get_concrete_function(batch(0)).graph.as_graph_def()
    kinds = {node.op for part in (graph, *graph.library.function) for node in _nodes(part)}
    assert "HorovodDgcPropose" in kinds and "HorovodDgcFinish" in kinds
    assert not any("PyFunc" in kind for kind in kinds), kinds


def _nodes(part: Any) -> Any:
    return part.node if hasattr(part, "node") else part.node_def


def check_loops_inside_the_graph() -> None:
    """Several steps in one call, as with Keras's steps_per_execution."""
    trajectories = []
    for loop in (True, False):
        model = Fed()
        trainer = Trainer(model, SPARSE, sgd(), settings={"transport": "gather"})
        feeds = [[model.feed(step, hvd.rank())[i] for step in range(6)] for i in range(2)]
        weights, biases = (tf.constant(np.stack(feed)) for feed in feeds)

        @tf.function
        def steps(weights: tf.Tensor, biases: tf.Tensor, trainer: Trainer = trainer) -> None:
            for i in tf.range(6):
                trainer._step([weights[i], biases[i]])

        if loop:
            steps(weights, biases)
        else:
            trainer.run(steps=6)
        assert trainer.compression.stats().total.steps == 6
        trajectories.append(vector(model.variables))
    assert np.array_equal(*trajectories)


def check_two_models_do_not_share_state() -> None:
    settings = {"transport": "gather"}
    for eager in (False, True):
        models = [Dense(seed) for seed in (1, 2)]
        trainers = [Trainer(model, SPARSE, sgd(), settings=settings, eager=eager) for model in models]
        for step in range(4):
            for trainer in trainers:
                trainer.run(steps=1, first=step)
        for seed, model in zip((1, 2), models):
            alone = Trainer(Dense(seed), SPARSE, sgd(), settings=settings, eager=eager).run(steps=4)
            assert np.array_equal(alone[-1], vector(model.variables))


def check_layer_counters_that_differ_between_ranks() -> None:
    """Names of layers, and so of gradients, count up within a process; nothing may depend on them."""
    for _ in range(hvd.rank() * 2):
        keras_model()
    for eager in (False, True):
        model = keras_model(batch_norm=False)
        variables = [raw(v) for v in model.trainable_variables]

        class Wrapped:
            def __init__(self, model: Any, variables: list[Any]) -> None:
                self.model, self.variables = model, variables

            def loss(self, inputs: Any) -> tf.Tensor:
                images, labels = inputs
                logits = self.model(images)
                return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))

        Trainer(Wrapped(model, variables), SPARSE, sgd(), eager=eager).run(steps=3, inputs=batch)
        assert_ranks_identical(variables, f"eager={eager}")


def check_process_sets() -> None:
    """Members exchange among themselves; the others train as one worker each, their optimizer untouched."""
    members = [0, hvd.size() - 1] if hvd.size() > 2 else [0]
    process_set = hvd.add_process_set(members)
    trajectories = []
    for method in (EXACT, None):
        model = Dense()
        trainer = Trainer(model, method, sgd(nesterov=True), process_set=process_set)
        trajectories.append(trainer.run())
    assert_same_trajectory(*trajectories)
    if hvd.rank() not in members:
        alone, optimizer = Dense(), sgd(nesterov=True)
        for step in range(8):
            with tf.GradientTape() as tape:
                loss = alone.loss(batch(step))
            optimizer.apply_gradients(zip(tape.gradient(loss, alone.variables), alone.variables))
        assert_same_trajectory([trajectories[0][0], vector(alone.variables)], [trajectories[1][0], trajectories[0][-1]])
    hvd.remove_process_set(process_set)


def check_a_tape_for_each_part_of_the_model() -> None:
    """Two tapes in one step over one Compression, as for the two halves of an adversarial network."""
    model = Fed()
    optimizer = sgd()
    compression = Compression(SPARSE, optimizer, model.variables, transport="gather")

    @tf.function
    def step(weight: tf.Tensor, bias: tf.Tensor) -> None:
        for variable, fed in ((model.weight, weight), (model.bias, bias)):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(variable * fed)
            tape = hvd.DistributedGradientTape(tape, compression=compression)
            optimizer.apply_gradients(zip(tape.gradient(loss, [variable]), [variable]))

    together = Fed()
    trainer = Trainer(together, SPARSE, sgd(), settings={"transport": "gather"})
    if hasattr(optimizer, "build"):
        optimizer.build(model.variables)
    for number in range(5):
        step(*(tf.constant(g) for g in model.feed(number, hvd.rank())))
    trainer.run(steps=5)
    np.testing.assert_allclose(vector(model.variables), vector(together.variables), rtol=1e-6, atol=1e-6)


def check_momentum_that_the_optimizer_has_gathered_already() -> None:
    """Compression added in the middle of a training loses none of it."""
    for op in (hvd.Average, hvd.Sum):
        ends = []
        for late in (True, False):
            model, optimizer = Dense(), sgd(learning_rate=0.02)
            first = Trainer(model, None, optimizer, op=op)
            first.run(steps=3)
            trainer = Trainer(model, EXACT, optimizer, op=op) if late else first
            ends.append(trainer.run(steps=4, first=3))
        assert_same_trajectory(*ends)


def check_checkpoints_resume_bit_exactly() -> None:
    """Each rank with its own residuals, velocities and position in the density schedule."""
    method = DGC(density=0.02, values="int8", warmup=Warmup(steps=8))
    settings = {"transport": "gather"}

    def make() -> tuple[Dense, Trainer, tf.train.Checkpoint]:
        model = Dense()
        trainer = Trainer(model, method, sgd(nesterov=True), settings=settings)
        parts = {"compression": trainer.compression, "optimizer": trainer.optimizer}
        return model, trainer, tf.train.Checkpoint(variables=model.variables, **parts)

    with tempfile.TemporaryDirectory() as folder:
        _, trainer, checkpoint = make()
        trainer.run(steps=5)
        path = checkpoint.write(str(Path(folder) / f"rank{hvd.rank()}"))
        saved = state(trainer.compression)
        expected = trainer.run(steps=5, first=5)[-1]

        for used_before in (True, False):
            again, other, restored = make()
            if used_before:
                other.run(steps=1, first=40)
            else:
                other.optimizer.build(again.variables)
            restored.read(path).assert_existing_objects_matched()
            assert same(saved, state(other.compression))
            assert other.compression.stats().total.steps == 5
            assert np.array_equal(other.run(steps=5, first=5)[-1], expected), f"used before: {used_before}"
            assert_ranks_identical(again.variables, "after a checkpoint")
        names = [name for name, _ in tf.train.list_variables(path) if "compression" in name]
        assert sum("residual" in name for name in names) == len(again.variables)


def check_state_that_is_being_read_is_not_overwritten() -> None:
    """A value read from a variable shares its memory until the variable is written."""
    trainer = Trainer(Fed(), SPARSE, sgd())
    trainer.run(steps=2)
    tensor = trainer.compression.tensors[0]
    held = tensor.residual.read_value(), tensor.velocity.read_value()
    copies = [value.numpy().copy() for value in held]
    trainer.run(steps=2, first=2)
    assert not np.array_equal(copies[0], tensor.residual.numpy())
    for value, copy in zip(held, copies):
        assert np.array_equal(value.numpy(), copy)


def check_v1_optimizers() -> None:
    trajectories = []
    for method in (EXACT, None):
        model = Dense()
        optimizer = tf.compat.v1.train.GradientDescentOptimizer(0.05)
        trajectories.append(Trainer(model, method, optimizer, built=False).run())
    assert_same_trajectory(*trajectories)
    model = Dense()
    inner = tf.compat.v1.train.AdamOptimizer(0.01)
    compression = Compression(SPARSE, inner, model.variables)
    optimizer = hvd.DistributedOptimizer(inner, compression=compression)

    @tf.function
    def step(inputs: Any) -> None:
        optimizer.minimize(lambda: model.loss(inputs), var_list=model.variables)

    for number in range(4):
        step(batch(number))
    assert compression.stats().total.steps == 4
    assert_ranks_identical(model.variables, "v1")


def check_optimizers_keep_their_values_in_sight() -> None:
    optimizer = sgd(nesterov=True)
    trainer = Trainer(Dense(), EXACT, optimizer)
    trainer.run(steps=2)
    assert isinstance(optimizer, keras.optimizers.SGD)
    assert type(optimizer).__name__ == "SGD"
    config = optimizer.get_config()
    assert config["momentum"] == 0.9 and config["nesterov"] is True
