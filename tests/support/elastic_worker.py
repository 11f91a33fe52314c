"""The side of elastic jobs that runs on every rank: training by orders that lie in a folder, and books of it.

Gradients are whole numbers that depend on the step and the process. The command line is FOLDER OP SIZE. OP is "sum" or
"average", without momentum, so that sums are exact, or "momentum": the average with momentum, from weights that are not
zero. In FOLDER, `hosts` is what the discovery script prints; each process leaves its last commit (what it was fed with
and what waits in its residuals), and at the end its parameters. The process on the host that FOLDER/victim names, if
any, kills itself in step 10; in step 20 rank 0 changes the hosts to those in FOLDER/hosts-then. The job goes on until
SIZE ranks have trained together for some steps.
"""

from __future__ import annotations

import functools
import json
import os
import secrets
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

STEPS_TOGETHER = 6
COMMITTED_EVERY = 3
KILLED_IN = 10
CHANGED_IN = 20
STEP_SECONDS = 0.05
SHAPES = ((40, 50), (37,))

FOLDER = Path(sys.argv[1])
MOMENTUM = sys.argv[2] == "momentum"
OP = "Sum" if sys.argv[2] == "sum" else "Average"
SIZE = int(sys.argv[3])
ME = secrets.token_hex(4)
HOST = os.environ["HOROVOD_HOSTNAME"]

Arrays = list[np.ndarray]


class Worker:
    """One process of the job.

    Args:
        hvd: Horovod's module for the framework.
        residuals: what waits in the residual of each of the two tensors; None where there is none yet.
        take_step: trains a step with these gradients; calls the function that it is given where a rank may be killed.
    """

    def __init__(
        self,
        hvd: Any,
        residuals: Callable[[], list[np.ndarray | None]],
        take_step: Callable[[Arrays, Callable[[], None]], None],
    ) -> None:
        self._hvd, self._residuals, self._take_step = hvd, residuals, take_step
        self._victim = (FOLDER / "victim").read_text()
        self._committed = [np.zeros(shape) for shape in SHAPES]
        self._since: list[Arrays] = []

    def train(self, state: Any) -> None:
        """What ``hvd.elastic.run`` is to call."""
        # What was done after the last commit has been undone on all ranks.
        self._since = []
        hvd = self._hvd
        print(f"process {ME} on {HOST}: step {state.step} as rank {hvd.rank()} of {hvd.size()}", flush=True)
        # How long the driver takes to notice the change of hosts is not known beforehand.
        begun = state.step
        while state.step <= CHANGED_IN or hvd.size() != SIZE or state.step < begun + STEPS_TOGETHER:
            time.sleep(STEP_SECONDS)
            if state.step == CHANGED_IN and hvd.rank() == 0 and (FOLDER / "hosts-then").exists():
                os.replace(FOLDER / "hosts-then", FOLDER / "hosts")
            generator = np.random.default_rng((state.step, int(ME, 16)))
            gradients = [generator.integers(-99, 100, shape).astype(np.float32) for shape in SHAPES]
            self._take_step(gradients, functools.partial(self._strike, state.step))
            share = hvd.size() if OP == "Average" else 1
            self._since.append([gradient.astype(np.float64) / share for gradient in gradients])
            state.step += 1
            if state.step % COMMITTED_EVERY == 0:
                state.save()
                self._commit(state.step)
                state.check_host_updates()
        state.commit()
        self._commit(state.step)

    def end(self, stats: Any, digests: list[str], parameters: list[np.ndarray]) -> None:
        """Write how the job ended.

        Args:
            stats: of the compression.
            digests: of the parameters on each rank.
        """
        end = {
            "digests": digests,
            "process": ME,
            "size": self._hvd.size(),
            "lost_ranks": stats.lost_ranks,
            "lost_norm": stats.lost_norm,
            "parameters": [p.reshape(-1).tolist() for p in parameters],
        }
        (FOLDER / f"end-{ME}.json").write_text(json.dumps(end))

    def _strike(self, step: int) -> None:
        if step == KILLED_IN and self._victim == HOST:
            os.kill(os.getpid(), signal.SIGKILL)

    def _commit(self, step: int) -> None:
        for gradients in self._since:
            self._committed = [total + new for total, new in zip(self._committed, gradients)]
        self._since = []
        waiting = [np.zeros(c.size) if r is None else r for r, c in zip(self._residuals(), self._committed)]
        fresh = FOLDER / f"{ME}.new.npz"
        (fed0, fed1), (waits0, waits1) = self._committed, waiting
        np.savez(fresh, step=step, workers=self._hvd.size(), fed0=fed0, fed1=fed1, waits0=waits0, waits1=waits1)
        os.replace(fresh, FOLDER / f"book-{ME}.npz")
