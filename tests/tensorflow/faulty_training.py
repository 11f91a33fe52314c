"""Trains, saves every few steps and resumes from what is saved; one rank can be made to die on the way.

Usage: faulty_training.py FOLDER [kill POINT RANK STEP]

RANK kills itself in step number STEP at the second variable's POINT: "encode" (before its payload is made), "gather"
(it is made, and about to be handed over) or "decode" (payloads received). In FOLDER each rank leaves its process
number, the time when it struck, what it saw of it and when, and the digest of its final state.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from pathlib import Path
from typing import Any

import faulty_worker
import horovod.tensorflow as hvd
import numpy as np
import tensorflow as tf
from checks.common import Dense, Trainer, batch, sgd, state, vector
from faults import SAVED_EVERY

from horovod_dgc import DGC
from horovod_dgc.tensorflow import load_checkpoint, save_checkpoint, step
from horovod_dgc.tensorflow.takeover import state_of

STEPS = 24
# The operation before whose result the rank dies.
POINTS = {"encode": "horovod_dgc_propose", "gather": "allgather", "decode": "horovod_dgc_finish"}


class Trap:
    """In place of a module, with one function before which the process dies in the chosen step."""

    def __init__(self, module: Any, name: str, folder: Path, number: int) -> None:
        self._module, self._name, self._folder, self._number = module, name, folder, number
        self._calls = 0
        self.now = -1

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._module, name)
        if name != self._name:
            return function

        def trapped(*arguments: Any, **options: Any) -> Any:
            self._calls += 1
            if self._calls != 2:
                return function(*arguments, **options)
            # Once everything is there that the function works on.
            with tf.control_dependencies([argument for argument in arguments if tf.is_tensor(argument)]):
                strike = tf.py_function(self._strike, [], [])
            with tf.control_dependencies([strike]):
                return function(tf.identity(arguments[0]), *arguments[1:], **options)

        return trapped

    def _strike(self) -> None:
        if self.now == self._number:
            faulty_worker.strikes(self._folder)
            os.kill(os.getpid(), signal.SIGKILL)


def train(folder: Path, traps: list[Trap]) -> None:
    model = Dense()
    optimizer = sgd(nesterov=True)
    optimizer.build(model.variables)
    # Sums of gathered payloads have one order.
    trainer = Trainer(model, DGC(density=0.05, values="int8"), optimizer, settings={"transport": "gather"})
    variables = [*model.variables, *state_of(optimizer)]
    first = 0
    saved = faulty_worker.latest(folder)
    if saved is not None:
        for variable, value in zip(variables, np.load(saved / "rest.npz").values()):
            variable.assign(value)
        first = load_checkpoint(saved / "state", trainer.compression)
    print(f"rank {hvd.rank()} begins at step {first}", flush=True)
    for number in range(first, STEPS):
        for trap in traps:
            trap.now = number
        trainer.step(batch(number))
        if (number + 1) % SAVED_EVERY == 0:
            save(folder / f"after-{number + 1}", variables, trainer.compression)
    sha = hashlib.sha256(vector(model.variables).tobytes())
    for value in state(trainer.compression).values():
        sha.update(value.tobytes())
    (folder / f"end-{hvd.rank()}").write_text(f"{first} {sha.hexdigest()}")


def save(folder: Path, variables: list[Any], compression: Any) -> None:
    save_checkpoint(folder / "state", compression)
    if hvd.rank() == 0:
        np.savez(folder / "rest.npz", *(variable.numpy() for variable in variables))
        faulty_worker.publish(folder)
    hvd.allreduce(tf.zeros(1), name="saved")


def main() -> None:
    folder = Path(sys.argv[1])
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(2)
    hvd.init()
    traps = []
    if len(sys.argv) > 2:
        _, point, rank, number = sys.argv[2:]
        if hvd.rank() == int(rank):
            holder = "hvd" if point == "gather" else "library"
            traps = [Trap(getattr(step, holder), POINTS[point], folder, int(number))]
            setattr(step, holder, traps[0])
    faulty_worker.run(lambda: train(folder, traps), folder, hvd.rank())


main()
