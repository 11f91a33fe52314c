"""Elastic jobs on one machine whose hosts change, and what must hold at their end."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from launch import SUPPORT, execute

LIMIT_SECONDS = 150
# Names of this machine: Horovod never uses a host again on which a worker has failed.
HERE_TWICE, OTHER, THIRD = "localhost:2", "127.0.0.1:1", f"{socket.gethostname()}:1"


def run_elastic(
    script: Path, folder: Path, op: str, hosts: list[str], then: list[str], size: int, victim: str = "nobody"
) -> str:
    """Train until ``size`` ranks have trained together after the change of hosts; returns the output.

    Args:
        script: the training, with a Worker (elastic_worker.py).
    """
    discover = folder / "discover.sh"
    discover.write_text(f"#!/bin/sh\ncat {folder}/hosts\n")
    discover.chmod(0o755)
    (folder / "hosts").write_text("\n".join(hosts))
    (folder / "hosts-then").write_text("\n".join(then))
    (folder / "victim").write_text(victim.split(":")[0])
    extra = {
        # Survivors wait that long for a dead rank; and a new one must have started within it on a busy machine.
        "HOROVOD_GLOO_TIMEOUT_SECONDS": "20" if victim != "nobody" else "60",
    }
    command = ["horovodrun", "--gloo", "-np", "2", "--min-np", "2", "--max-np", "3"]
    command += ["--host-discovery-script", str(discover), "--network-interface", "lo"]
    command += [sys.executable, str(script), str(folder), op, str(size)]
    finished = execute(command, timeout=LIMIT_SECONDS, extra=extra, paths=(script.parent, SUPPORT))
    why = "hung" if finished.returncode is None else f"ended with {finished.returncode}"
    assert finished.returncode == 0, f"{why}:\n{finished.output[-6000:]}"
    return finished.output


def read(folder: Path, output: str, size: int) -> tuple[list[dict[str, Any]], dict[str, Any], Any]:
    """The ends of those that are there at the end, and the last commits of all by name; and of the one lost, if any."""
    ends = [json.loads(path.read_text()) for path in folder.glob("end-*.json")]
    books = {path.stem.split("-")[1]: np.load(path) for path in folder.glob("book-*.npz")}
    assert len(ends) == size and all(end["size"] == size for end in ends), output[-6000:]
    assert len({digest for end in ends for digest in end["digests"]}) == 1
    lost = [name for name in books if name not in {end["process"] for end in ends}]
    assert len(lost) == len(books) - size <= 1, output[-6000:]
    return ends, books, books[lost[0]] if lost else None


def assert_only_that_is_lost(ends: list[dict[str, Any]], books: dict[str, Any], lost: Any, op: str) -> None:
    """What each was fed with = what was applied + what waits on the survivors + what the lost one had not sent."""
    for position in (0, 1):
        fed = sum(book[f"fed{position}"].reshape(-1) for book in books.values())
        applied = -np.array(ends[0]["parameters"][position])
        waits = {
            name: book[f"waits{position}"].astype(np.float64) / (int(book["workers"]) if op == "average" else 1)
            for name, book in books.items()
        }
        # The mean rounds, and so does the change of its weight.
        np.testing.assert_allclose(applied + sum(waits.values()), fed, rtol=0, atol=0.02 if op == "average" else 0)
    norm = np.sqrt(sum(np.square(lost[f"waits{i}"], dtype=np.float64).sum() for i in (0, 1)))
    assert norm > 0
    for end in ends:
        assert end["lost_ranks"] == 1
        assert end["lost_norm"] == pytest.approx(norm)


def check_that_a_killed_worker_is_replaced(script: Path, folder: Path, op: str, rank: int) -> None:
    hosts = [OTHER, HERE_TWICE] if rank == 0 else [HERE_TWICE, OTHER]
    output = run_elastic(script, folder, op, hosts, [HERE_TWICE, THIRD], 3, victim=OTHER)
    ends, books, lost = read(folder, output, 3)
    assert len(books) == 4 and int(lost["step"]) == 9
    assert_only_that_is_lost(ends, books, lost, op)


def check_that_a_host_can_be_taken_away(script: Path, folder: Path) -> None:
    """Horovod then goes on without synchronizing states."""
    output = run_elastic(script, folder, "average", [HERE_TWICE, OTHER], [HERE_TWICE], 2)
    ends, books, lost = read(folder, output, 2)
    assert len(books) == 3 and int(lost["step"]) > 20
    assert_only_that_is_lost(ends, books, lost, "average")


def check_that_a_worker_can_join_where_there_is_momentum(script: Path, folder: Path) -> None:
    """The ranks compare their parameters in every step."""
    output = run_elastic(script, folder, "momentum", [HERE_TWICE], [HERE_TWICE, THIRD], 3)
    ends, _, lost = read(folder, output, 3)
    assert lost is None and all(end["lost_ranks"] == 0 and end["lost_norm"] == 0 for end in ends)
