"""An elastic job that loses a rank and gains another. Usage: elastic_training.py FOLDER OP SIZE

Gradients are whole numbers that depend on the step and the process. OP is "sum" or "average", without momentum, so that
sums are exact, or "momentum": the average with momentum, and weight decay of weights that are not zero. In FOLDER,
`hosts` is what the discovery script prints; each process leaves its last commit (what it was fed with and what waits in
its residual), and at the end its parameters. The process on the host that FOLDER/victim names, if any, kills itself in
step 10; in step 20 rank 0 changes the hosts to those in FOLDER/hosts-then. The job goes on until SIZE ranks have
trained together for some steps.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import sys
import time
from pathlib import Path
from typing import Any

import horovod.torch as hvd
import numpy as np
import torch
from checks.common import Fed, compressed, digest

from horovod_dgc import DGC
from horovod_dgc.torch.elastic import TorchState

STEPS_TOGETHER = 6
COMMITTED_EVERY = 3
KILLED_IN = 10
CHANGED_IN = 20
STEP_SECONDS = 0.05

folder, op, size = Path(sys.argv[1]), "Sum" if sys.argv[2] == "sum" else "Average", int(sys.argv[3])
me = secrets.token_hex(4)


class Book:
    """What this process was fed with, as of its last commit and since."""

    def __init__(self) -> None:
        self.committed = [np.zeros((40, 50)), np.zeros(37)]
        self.since: list[list[np.ndarray]] = []

    def commit(self, step: int, compression: Any, workers: int) -> None:
        for gradients in self.since:
            self.committed = [total + new for total, new in zip(self.committed, gradients)]
        self.since = []
        residuals = [t.residual for t in sorted(compression._tensors, key=lambda t: t.name, reverse=True)]
        waiting = [np.zeros(c.size) if r is None else r.numpy() for r, c in zip(residuals, self.committed)]
        fresh = folder / f"{me}.new.npz"
        (fed0, fed1), (waits0, waits1) = self.committed, waiting
        np.savez(fresh, step=step, workers=workers, fed0=fed0, fed1=fed1, waits0=waits0, waits1=waits1)
        os.replace(fresh, folder / f"book-{me}.npz")


hvd.init()
torch.set_num_threads(1)
model = Fed()
settings = {"lr": 1.0}
if sys.argv[2] == "momentum":
    settings = {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.01}
    torch.nn.init.normal_(model.weight)
optimizer, compression = compressed(
    DGC(density=0.02, values="float32"),
    model,
    torch.optim.SGD(model.parameters(), **settings),
    settings={"check_sync": 1},
    op=getattr(hvd, op),
)
book = Book()
host, victim = os.environ["HOROVOD_HOSTNAME"], (folder / "victim").read_text()


@hvd.elastic.run
def train(state: Any) -> None:
    # What was done after the last commit has been undone on all ranks.
    book.since = []
    where = f"step {state.step} as rank {hvd.rank()} of {hvd.size()}"
    print(f"process {me} on {host}: {where}, norm {compression.stats().total.residual_norm:.6g}", flush=True)
    # How long the driver takes to notice the change of hosts is not known beforehand.
    begun = state.step
    while state.step <= CHANGED_IN or hvd.size() != size or state.step < begun + STEPS_TOGETHER:
        time.sleep(STEP_SECONDS)
        if state.step == CHANGED_IN and hvd.rank() == 0 and (folder / "hosts-then").exists():
            os.replace(folder / "hosts-then", folder / "hosts")
        generator = torch.Generator().manual_seed(1000 * state.step + int(me, 16) % 1000)
        gradients = [torch.randint(-99, 100, p.shape, generator=generator).float() for p in model.parameters()]
        optimizer.zero_grad()
        model.backward(gradients)
        if state.step == KILLED_IN and host == victim:
            os.kill(os.getpid(), signal.SIGKILL)
        optimizer.step()
        share = hvd.size() if op == "Average" else 1
        book.since.append([gradient.numpy().astype(np.float64) / share for gradient in gradients])
        state.step += 1
        if state.step % COMMITTED_EVERY == 0:
            state.save()
            book.commit(state.step, compression, hvd.size())
            state.check_host_updates()
    state.commit()
    book.commit(state.step, compression, hvd.size())


train(TorchState(model=model, optimizer=optimizer, compression=compression, step=0))
stats = compression.stats()
digests = hvd.allgather_object(digest(model.parameters()), name="digest")
end = {
    "digests": digests,
    "process": me,
    "size": hvd.size(),
    "lost_ranks": stats.lost_ranks,
    "lost_norm": stats.lost_norm,
    "parameters": [p.detach().reshape(-1).tolist() for p in model.parameters()],
}
(folder / f"end-{me}.json").write_text(json.dumps(end))
