"""Horovod jobs across the hosts of the lab, and their bytes as the interfaces and as ``stats()`` count them."""

from __future__ import annotations

from pathlib import Path

import pytest
from cluster import accounting
from cluster.lab import Lab

SCRIPT = """
import os, torch, horovod.torch as hvd
hvd.init()
total = hvd.allreduce(torch.ones(1 << 20), op=hvd.Sum).sum().item()
print(f"rank {hvd.rank()} of {hvd.size()} on {os.uname().nodename}, {hvd.local_size()} here: {total:.0f}", flush=True)
"""


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    "command",
    [
        ["horovodrun", "-np", "2", "-H", "node1:1,node2:1"],
        ["horovodrun", "--gloo", "-np", "2", "-H", "node1:1,node2:1", "--network-interfaces", "eth0"],
        ["mpirun", "-np", "2", "-H", "node1,node2"],
    ],
    ids=["horovodrun", "horovodrun-gloo", "mpirun"],
)
def test_plain_launchers_reach_both_hosts(command: list[str], tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    with Lab(rate="1gbit") as lab:
        before = lab.bytes()
        output = lab.run([*command, "python", str(script)], time_limit=120)
        after = lab.bytes()
    for rank, host in enumerate(lab.addresses):
        assert f"rank {rank} of 2 on {host}, 1 here: {2 << 20}" in output
        # Half of the sum travels each way, so it was not done in shared memory.
        assert (after[host] - before[host]).sent > 4 << 20


@pytest.mark.timeout(480)
@pytest.mark.parametrize("launcher", accounting.LAUNCHERS)
def test_the_interfaces_count_what_stats_says(launcher: str) -> None:
    with Lab(rate="1gbit") as lab:
        accounts = accounting.compare(lab, launcher=launcher, steps=10, transport="gather")
    for account in accounts:
        # Ten payloads of 4.4 million elements at 5 %: two bytes for each value, and less than one for its place.
        assert 10 * 4.4e6 * 0.05 * 2 < account.expected < 10 * 4.4e6 * 0.05 * 3.2
        # Beside the payloads there is a header for each 64 KiB handed to the link, and small messages that settle what
        # comes next, some 10 kB a step under Gloo. What is subtracted for these is right to a per cent of the whole.
        assert 0.98 < account.sent / account.expected < 1.04
        # On a wire each 1448 bytes have headers of 66, and what comes back is acknowledged in packets of 66.
        assert 1.03 < account.wire_sent / account.expected < 1.09


@pytest.mark.timeout(480)
def test_hosts_send_each_other_less_by_their_number_of_workers() -> None:
    """Of two workers: along a flat ring three payloads leave a host, more by other ways; of nodes two halves do."""
    with Lab() as lab:
        flat, nodes = (
            accounting.measure(
                lab,
                launcher="horovodrun",
                method="dgc:density=0.05",
                transport="gather",
                steps=5,
                workers_per_host=2,
                hierarchical=hierarchical,
            )
            for hierarchical in (False, True)
        )
    payload = flat.busy[0]["total"]["sent"] - flat.idle[0]["total"]["sent"]
    for before, after in zip(flat.traffic, nodes.traffic):
        assert before.sent > 2 * after.sent
        # Idle ranks talk more than busy ones, so a part too much is subtracted.
        assert 0.5 * payload < after.sent < 1.1 * payload


@pytest.mark.without_lab
def test_expected_bytes_follow_the_ring() -> None:
    tensors = {
        "gathered": {"sent": 1000, "control": 4, "dense": 40_000},
        "reduced": {"sent": 600, "control": 0, "dense": 1200},
    }
    answer = {"workers": 4, "tensors": tensors, "total": {"sent": 1600, "control": 4 + 4}}
    assert accounting.expected_bytes(answer) == 3 * 1000 + 2 * 3 / 4 * (600 + 8)
