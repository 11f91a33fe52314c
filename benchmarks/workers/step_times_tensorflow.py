"""One worker of overhead.py: times TensorFlow's steps of the same model under several compressions, in turns."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import horovod.tensorflow as hvd
import tensorflow as tf
from support import turns

from horovod_dgc.tensorflow import Compression


class Contender(turns.Contender):
    """Gradients appear without arithmetic: they are drawn once and copied from variables, which is timed as well."""

    def __init__(self, name: str, shapes: turns.Shapes) -> None:
        super().__init__()
        label = name.replace(" ", "").replace(",", "_")
        self.variables = [tf.Variable(tf.zeros(shape), name=f"{label}.{key}") for key, shape in shapes.items()]
        self.drawn = [
            tf.Variable(tf.random.stateless_normal(shape, (hvd.rank(), i)), trainable=False)
            for i, shape in enumerate(shapes.values())
        ]
        # Weight decay stands for PyTorch's here; in both it reads the weights once more.
        optimizer = tf.keras.optimizers.SGD(0.1, momentum=0.9, weight_decay=1e-4)
        if name in turns.METHODS:
            self.compression = Compression(turns.METHODS[name], optimizer, self.variables)
        else:
            self.compression = {"dense": hvd.Compression.none, "fp16": hvd.Compression.fp16}[name]
        self.optimizer = optimizer
        self._exchange_graph = tf.function(self._exchange_only)
        self._step_graph = tf.function(self._step_whole)

    def run(self) -> None:
        for function, times in ((self._exchange_graph, self.exchange), (self._step_graph, self.step)):
            barrier()
            began = time.perf_counter()
            function()
            times.append(time.perf_counter() - began)

    def _exchange_only(self) -> list[tf.Tensor]:
        return [gradient[..., :0] for gradient in self._gradients()]

    def _step_whole(self) -> None:
        self.optimizer.apply_gradients(zip(self._gradients(), self.variables))

    def _gradients(self) -> list[tf.Tensor]:
        @tf.custom_gradient
        def touch(*variables: tf.Tensor) -> Any:
            # A copy, as a backward pass would write it: memory that nobody else needs, in every contender alike.
            return tf.zeros(()), lambda upstream: tuple(tf.raw_ops.DeepCopy(x=g.read_value()) for g in self.drawn)

        with tf.GradientTape() as tape:
            loss = touch(*[variable.read_value() for variable in self.variables])
        tape = hvd.DistributedGradientTape(tape, compression=self.compression)
        return tape.gradient(loss, self.variables)


def barrier() -> None:
    hvd.allreduce(tf.zeros(1), name="barrier").numpy()


def main(settings: dict[str, Any], answer: Path) -> None:
    hvd.init()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(settings["threads"])
    contenders = {name: Contender(name, turns.shapes_of(settings)) for name in turns.NAMES}
    turns.write(answer, hvd.rank(), turns.measure(settings, contenders, hvd.allgather_object))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Path(sys.argv[2]))
