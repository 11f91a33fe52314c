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


def command(launcher: str, hosts: Sequence[str], arguments: Sequence[str]) -> list[str]:
    """The launcher's command for one worker on each host."""
    if launcher == "horovodrun":
        places = ",".join(f"{host}:1" for host in hosts)
        start = ["horovodrun", "--gloo", "-np", str(len(hosts)), "-H", places, "--network-interfaces", INTERFACE]
    else:
        start = ["mpirun", "-np", str(len(hosts)), "-H", ",".join(hosts)]
    return [*start, "python", *arguments]


def job(lab: Lab, launcher: str, settings: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[Traffic]]:
    """Run the worker on every host; each rank's answer, and each host's traffic from the job's start to its end."""
    hosts = list(lab.addresses)
    before = lab.bytes()
    with tempfile.TemporaryDirectory() as folder:
        arguments = [str(WORKER), json.dumps(settings), folder]
        lab.run(command(launcher, hosts, arguments), time_limit=SECONDS_LIMIT)
        answers = [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(len(hosts))]
    after = lab.bytes()
    return answers, [after[host] - before[host] for host in hosts]


def compare(
    lab: Lab,
    *,
    launcher: str = "horovodrun",
    method: str = "dgc:density=0.05",
    transport: str = "auto",
    steps: int = 20,
) -> list[Account]:
    """Train ``steps`` steps, then idle for as long in a job that is otherwise the same, and compare, host by host."""
    settings = {"method": method, "transport": transport, "cycle_ms": CYCLE_MS}
    busy, traffic = job(lab, launcher, {**settings, "steps": steps, "idle": 0.0})
    seconds = max(answer["seconds"] for answer in busy)
    idle, overhead = job(lab, launcher, {**settings, "steps": 0, "idle": seconds})
    return [
        Account(
            expected=expected_bytes(with_steps) - expected_bytes(without),
            sent=(total - rest).sent,
            wire_sent=(total - rest).wire_sent,
            overhead=rest.sent,
        )
        for with_steps, without, total, rest in zip(busy, idle, traffic, overhead)
    ]
