"""Step times on the lab's hosts: models, contenders, rates and numbers of hosts, one job for each combination."""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cluster.accounting import command
from cluster.lab import Lab
from cluster.links import INTERFACE
from support import report
from support.results import Results

from horovod_dgc import rates
from horovod_dgc.plan import units
from horovod_dgc.registry import parse

WORKER = Path(__file__).parents[1] / "workers" / "paced_steps.py"
LAUNCHER = "horovodrun"
PORT = 29511
SECONDS_LIMIT = 1500.0
KEY = ("model", "hosts", "rate", "compute", "steps", "contenders")

MODELS: Mapping[str, str] = {"lstm-ptb": "LSTM, 51.0 M elements", "resnet50": "ResNet-50, 25.6 M elements"}
RATES: Mapping[str, float] = {name: units.bandwidth("rate", name) for name in ("100mbit", "1gbit", "10gbit", "25gbit")}
"""Bytes a second by the lab's name of the rate."""
HOSTS = (2, 4)
COMPUTE = 1.0
STEPS = 5
BUDGET = 25.0

ALONE = "no exchange"
# What the worker is told of each, and the method by which horovod_dgc.cost predicts it: None for float32, and no entry
# for what is not this package's.
CONTENDERS: Mapping[str, Sequence[Any]] = {
    ALONE: ("alone",),
    "dense": ("dense",),
    "fp16": ("fp16",),
    "DGC": ("method", "dgc"),
    "DGC, int4": ("method", "dgc:values=int4"),
    "PowerSGD": ("method", "powersgd:rank=2"),
    "DDP PowerSGD": ("ddp-powersgd", 2),
}
PREDICTED: Mapping[str, str | None] = {
    "dense": None,
    **{name: arguments[1] for name, arguments in CONTENDERS.items() if arguments[0] == "method"},
}


@dataclass(frozen=True)
class Setting:
    """One job.

    Attributes:
        compute: seconds that each worker waits in a step, in place of computation.
        steps: of each contender that count, fewer where they last longer than ``budget`` seconds together.
    """

    model: str
    hosts: int
    rate: str
    compute: float
    steps: int
    budget: float

    @property
    def key(self) -> dict[str, Any]:
        fields = {name: value for name, value in asdict(self).items() if name in KEY}
        return {**fields, "contenders": {name: list(arguments) for name, arguments in CONTENDERS.items()}}


def settings(
    models: Iterable[str] = tuple(MODELS),
    hosts: Iterable[int] = HOSTS,
    rates: Iterable[str] = tuple(RATES),
    *,
    compute: float = COMPUTE,
    steps: int = STEPS,
    budget: float = BUDGET,
) -> list[Setting]:
    """All combinations, the slowest links of a number of hosts first."""
    return [Setting(*each, compute, steps, budget) for each in itertools.product(models, hosts, rates)]


def run(setting: Setting) -> dict[str, list[float]]:
    """Seconds of each step by contender; they follow one another in one job, with one worker on each host."""
    with Lab(hosts=setting.hosts, rate=setting.rate) as lab, tempfile.TemporaryDirectory() as folder:
        told = {**setting.key, "budget": setting.budget, "master": f"{lab.addresses['node1']}:{PORT}"}
        start = command(LAUNCHER, list(lab.addresses), 1, [str(WORKER), json.dumps(told), folder])
        # One thread a worker, since the hosts share the machine's processors.
        one_thread = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": INTERFACE}
        lab.run(start, environment=one_thread, time_limit=SECONDS_LIMIT)
        seconds: dict[str, list[float]] = json.loads((Path(folder) / "0.json").read_text())
        return seconds


def carry_out(chosen: Sequence[Setting], results: Results) -> None:
    """Run what is not among the results yet."""
    left = [setting for setting in chosen if results.get(setting.key) is None]
    if not left:
        return
    measured = {
        name: asdict(rates.measured(None if method is None else parse(method))) for name, method in PREDICTED.items()
    }
    for number, setting in enumerate(left, start=1):
        title = f"{number} of {len(left)}: {setting.model}, {setting.hosts} hosts, {setting.rate}"
        neighbours = report.Neighbours()
        with report.CONSOLE.status(title):
            seconds = run(setting)
        others = neighbours.describe()["others"]
        rounded = {name: [round(each, 4) for each in steps] for name, steps in seconds.items()}
        results.add(setting.key, {"seconds": rounded, "rates": measured, "others": others})
        report.CONSOLE.print(title, highlight=False)
