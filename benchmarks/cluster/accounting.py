"""Bytes counted at the hosts' interfaces, beside those that ``Compression.stats()`` says were handed to Horovod."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.lab import Lab
from cluster.links import INTERFACE, Traffic

WORKER = Path(__file__).parents[1] / "workers" / "known_training.py"
LAUNCHERS = ("horovodrun", "mpirun")
SECONDS_LIMIT = 240.0
# Idle ranks ask each other for news in every cycle, by default 1 ms, but working ranks less often. With long cycles
# what is subtracted is small, and so is the error of taking the one for the other.
CYCLE_MS = 25


@dataclass(frozen=True)
class Account:
    """One host's part of a number of steps, with all other traffic subtracted.

    Attributes:
        expected: bytes that the collectives must carry away from this host, by ``stats()``.
        sent: bytes that its interface sent.
        wire_sent: the same as they would be on a wire, every packet with its headers.
        overhead: bytes subtracted: the job's start and end, its first step, and the ranks' talk over the same time
            with nothing to do.
    """

    expected: float
    sent: int
    wire_sent: int
    overhead: int


def expected_bytes(answer: Mapping[str, Any]) -> float:
    """Bytes that leave a worker's host in ring collectives for what its ``stats()`` counted; one worker a host.

    What is gathered is passed on along the ring, so that every link carries N - 1 payloads. What is allreduced crosses
    each link 2 (N - 1) / N times: gradients sent dense, factors and flags.
    """
    workers = answer["workers"]
    gathered = sum(each["sent"] for each in answer["tensors"].values() if each["control"])
    # A tensor that is allreduced itself needs no factor beside it.
    reduced = answer["total"]["sent"] - gathered + answer["total"]["control"]
    return float((workers - 1) * gathered + 2 * (workers - 1) / workers * reduced)


def command(launcher: str, hosts: Sequence[str], workers_per_host: int, arguments: Sequence[str]) -> list[str]:
    """The launcher's command."""
    workers = str(len(hosts) * workers_per_host)
    places = ",".join(f"{host}:{workers_per_host}" for host in hosts)
    if launcher == "horovodrun":
        start = ["horovodrun", "--gloo", "-np", workers, "-H", places, "--network-interfaces", INTERFACE]
    else:
        start = ["mpirun", "-np", workers, "-H", places, "--bind-to", "none"]
    return [*start, "python", *arguments]


def job(
    lab: Lab, launcher: str, workers_per_host: int, settings: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], list[Traffic]]:
    """Run the worker on every host; each rank's answer, and each host's traffic from the job's start to its end."""
    hosts = list(lab.addresses)
    before = lab.bytes()
    with tempfile.TemporaryDirectory() as folder:
        arguments = [str(WORKER), json.dumps(settings), folder]
        lab.run(command(launcher, hosts, workers_per_host, arguments), time_limit=SECONDS_LIMIT)
        ranks = range(len(hosts) * workers_per_host)
        answers = [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in ranks]
    after = lab.bytes()
    return answers, [after[host] - before[host] for host in hosts]


@dataclass(frozen=True)
class Steps:
    """A job of a number of steps, and one that waits for as long instead.

    Attributes:
        busy, idle: what each rank answered.
        traffic: each host's in the steps alone.
        overhead: bytes that each host sent in the idle job.
    """

    busy: list[dict[str, Any]]
    idle: list[dict[str, Any]]
    traffic: list[Traffic]
    overhead: list[int]


def measure(
    lab: Lab,
    *,
    launcher: str,
    method: str,
    transport: str,
    steps: int,
    workers_per_host: int = 1,
    hierarchical: bool = False,
) -> Steps:
    """Train ``steps`` steps, then idle for as long in a job that is otherwise the same."""
    settings = {"method": method, "transport": transport, "hierarchical": hierarchical, "cycle_ms": CYCLE_MS}
    busy, traffic = job(lab, launcher, workers_per_host, {**settings, "steps": steps, "idle": 0.0})
    seconds = max(answer["seconds"] for answer in busy)
    idle, overhead = job(lab, launcher, workers_per_host, {**settings, "steps": 0, "idle": seconds})
    alone = [total - rest for total, rest in zip(traffic, overhead)]
    return Steps(busy, idle, alone, [rest.sent for rest in overhead])


def compare(
    lab: Lab,
    *,
    launcher: str = "horovodrun",
    method: str = "dgc:density=0.05",
    transport: str = "auto",
    steps: int = 20,
) -> list[Account]:
    """Bytes by ``stats()`` beside those at the interface, host by host, with one worker on each."""
    found = measure(lab, launcher=launcher, method=method, transport=transport, steps=steps)
    return [
        Account(
            expected=expected_bytes(with_steps) - expected_bytes(without),
            sent=traffic.sent,
            wire_sent=traffic.wire_sent,
            overhead=overhead,
        )
        for with_steps, without, traffic, overhead in zip(found.busy, found.idle, found.traffic, found.overhead)
    ]
