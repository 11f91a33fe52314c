"""Feed the same gradients to one of the two adapters and save its state after every step.

Usage: same_gradients.py torch|tensorflow FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from horovod_dgc import DGC, Warmup

STEPS = 8
SHAPES = {"weight": (40, 50), "kernel": (3, 3, 4, 8), "bias": (37,)}
METHODS = {
    "paper": DGC(density=0.02, values="float32", indices="runlength16"),
    "default": DGC(density=0.02, warmup=Warmup(steps=5)),
    "int4": DGC(density=0.05, values="int4", exempt_values="float16", clip_norm=40.0),
    "int8": DGC(density=0.05, values="int8", clip_norm=40.0, clip_scope="tensor"),
    "without": DGC(density=0.05, momentum_correction=False, values="bfloat16"),
    "whole": DGC(density=1.0),
}


def gradients(step: int, rank: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng((step, rank))
    return {name: generator.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}


def with_torch(method: DGC, nesterov: bool) -> Any:
    import horovod.torch as hvd
    import torch

    from horovod_dgc.torch import Compression

    hvd.init()
    parameters = {name: torch.nn.Parameter(torch.zeros(shape)) for name, shape in SHAPES.items()}
    optimizer = torch.optim.SGD(parameters.values(), lr=0.1, momentum=0.9, nesterov=nesterov)
    compression = Compression(method, optimizer, parameters.items(), transport="gather")
    optimizer = hvd.DistributedOptimizer(optimizer, parameters.items(), compression=compression)
    tensors = {tensor.name: tensor for tensor in compression._tensors}
    for step in range(STEPS):
        optimizer.zero_grad()
        fed = gradients(step, hvd.rank())
        sum((parameters[name] * torch.from_numpy(fed[name])).sum() for name in SHAPES).backward()
        optimizer.step()
        yield tensors, compression


def with_tensorflow(method: DGC, nesterov: bool) -> Any:
    import horovod.tensorflow as hvd
    import tensorflow as tf

    from horovod_dgc.tensorflow import Compression

    hvd.init()
    variables = {name: tf.Variable(tf.zeros(shape)) for name, shape in SHAPES.items()}
    optimizer = tf.keras.optimizers.SGD(0.1, momentum=0.9, nesterov=nesterov)
    compression = Compression(method, optimizer, variables.values(), transport="gather")
    tensors = dict(zip(SHAPES, compression.tensors))

    @tf.function
    def train(fed: list[Any]) -> None:
        with tf.GradientTape() as tape:
            loss = tf.add_n([tf.reduce_sum(v * g) for v, g in zip(variables.values(), fed)])
        tape = hvd.DistributedGradientTape(tape, compression=compression)
        found = tape.gradient(loss, list(variables.values()))
        optimizer.apply_gradients(zip(found, variables.values()))

    for step in range(STEPS):
        train([tf.constant(g) for g in gradients(step, hvd.rank()).values()])
        yield tensors, compression


def main() -> None:
    adapter = {"torch": with_torch, "tensorflow": with_tensorflow}[sys.argv[1]]
    saved: dict[str, np.ndarray] = {}
    for label, method in METHODS.items():
        for nesterov in (False, True):
            for step, (tensors, compression) in enumerate(adapter(method, nesterov)):
                prefix = f"{label}.{nesterov}.{step}"
                for name, tensor in tensors.items():
                    # One adapter has no residual where none is kept, the other a view of a single zero.
                    kept = tensor.residual is not None
                    residual = tensor.residual.numpy() if kept else np.zeros(tensor.numel, np.float32)
                    saved[f"{prefix}.{name}.residual"] = np.array(residual)
                    # Of tensors that are sent whole, TensorFlow's optimizer keeps the momentum.
                    if name != "bias" and method.momentum_correction:
                        saved[f"{prefix}.{name}.velocity"] = np.array(tensor.velocity.numpy())
                last = compression.stats().last
                saved[f"{prefix}.sent"] = np.array([last.sent, last.dense, last.nonzero])
    rank = sys.modules[f"horovod.{sys.argv[1]}"].rank()
    np.savez(Path(sys.argv[2]) / f"{sys.argv[1]}-{rank}.npz", **saved)


if __name__ == "__main__":
    main()
