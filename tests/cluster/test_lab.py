"""The network lab: hosts that see each other and nothing else, at the rate that was asked for, and gone afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from cluster import folders, tools
from cluster.lab import Lab
from cluster.tools import LabError
from left_behind import Machine, networks_of, processes_in

ROOT = Path(__file__).resolve().parents[2]
CLI = [sys.executable, str(ROOT / "benchmarks" / "cluster")]
MEGABYTES = 6
# Sends so many megabytes to node2, and prints bits per second of what has arrived there.
TRANSFER = f"""
import socket, subprocess, sys, time
receiver = '''
import socket, time
with socket.create_server(("", 7777)) as server:
    print("ready", flush=True)
    connection, _ = server.accept()
    received, began = 0, time.monotonic()
    while data := connection.recv(1 << 20):
        received += len(data)
    print(8 * received / (time.monotonic() - began))
'''
there = subprocess.Popen(["ssh", "node2", "python", "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
there.stdin.write(receiver)
there.stdin.close()
assert there.stdout.readline() == "ready\\n"
with socket.create_connection(("node2", 7777)) as connection:
    connection.sendall(bytes({MEGABYTES} << 20))
print(there.stdout.readline())
"""
pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def machine() -> Iterator[Machine]:
    """The machine's state before the test, which it must have after it."""
    before = Machine.now()
    yield before
    assert Machine.now() == before


def networks(lab: Lab) -> set[str]:
    return {os.readlink(lab.network(host)) for host in lab.addresses}


def python(lab: Lab, script: str) -> str:
    return lab.run(["python", "-c", script], time_limit=60)


def test_hosts_know_each_other_and_reach_nothing_else(machine: Machine) -> None:
    with Lab(hosts=3) as lab:
        assert lab.run(["hostname"], host="node3") == "node3\n"
        assert lab.run(["ssh", "node3", "hostname; ssh node2 hostname"]) == "node3\nnode2\n"
        assert lab.run(["ssh", "10.77.0.2", "hostname"]) == "node2\n"
        assert lab.run(["sh", "-c", "ls /sys/class/net"]) == "eth0\nlo\n"
        assert lab.run(["ip", "route"]).splitlines() == ["10.77.0.0/24 dev eth0 proto kernel scope link src 10.77.0.1 "]
        assert Machine.now() == machine


def test_a_login_finds_the_same_python_and_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/it's/a path")
    with Lab() as lab:
        here = lab.run(["sh", "-c", "command -v python; echo $PYTHONPATH"])
        assert here == f"{Path(sys.executable).parent}/python\n/it's/a path\n"
        assert lab.run(["ssh", "node2", "command -v python; echo $PYTHONPATH"]) == here


def test_nothing_is_left_of_a_lab(machine: Machine) -> None:
    with Lab() as lab:
        assert folders.labs()[lab.name]
        held, name = networks(lab), lab.name
        lab.run(["ssh", "node2", "setsid sleep 1000 >/dev/null 2>&1 &"])
        assert len(processes_in(held)) >= 2
    assert processes_in(held) == []
    assert name not in folders.labs()


def test_what_a_command_left_running_is_killed_before_the_next() -> None:
    with Lab() as lab:
        lab.run(["ssh", "node2", "setsid sleep 1000 >/dev/null 2>&1 &"])
        assert not any("sleep 1000" in command for command in processes_in(networks(lab)))


def test_labs_exist_side_by_side(machine: Machine) -> None:
    with Lab() as one, Lab(hosts=1) as other:
        assert one.name != other.name
        one.run(["sh", "-c", "echo one >/run/whose"])
        assert one.run(["ssh", "node2", "ssh node1 cat /run/whose"]) == "one\n"
        assert "No such file" in other.run(["sh", "-c", "cat /run/whose 2>&1 || true"])


def start_and_wait(seconds: float) -> tuple[subprocess.Popen[str], set[str]]:
    """A lab with a long command, of which ``seconds`` have passed since its first process; and its networks."""
    job = "echo up; ssh node2 sleep 1000 & sleep 1000"
    process = subprocess.Popen([*CLI, "lab", "--", "sh", "-c", job], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    if seconds == 0.0:
        assert process.stdout.readline() == "up\n"
        # The sleep on the other host is there a little later.
        time.sleep(0.3)
    else:
        while not networks_of(psutil.Process(process.pid).children(recursive=True)):
            assert process.poll() is None
            time.sleep(0.001)
        time.sleep(seconds)
    return process, networks_of(psutil.Process(process.pid).children(recursive=True))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
# 0: while the command runs; else so long after the first process, which is while the lab is being set up.
@pytest.mark.parametrize("seconds", [0.0, 0.001, 0.05, 0.15])
def test_nothing_is_left_of_an_interrupted_lab(machine: Machine, number: signal.Signals, seconds: float) -> None:
    before = folders.labs()
    process, held = start_and_wait(seconds)
    process.send_signal(number)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == (1 if number == signal.SIGINT else 128 + number), output
    assert held
    assert processes_in(held) == []
    assert folders.labs().keys() <= before.keys()


def test_a_killed_lab_is_gone_and_its_folder_goes_with_the_next(machine: Machine) -> None:
    process, held = start_and_wait(0.0)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while processes_in(held) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes_in(held) == []
    left_over = [name for name, in_use in folders.labs().items() if not in_use]
    assert left_over
    with Lab(hosts=1) as lab:
        assert folders.labs()[lab.name]
        assert not set(left_over) & set(folders.labs())


def test_down_ends_a_lab_in_use(machine: Machine) -> None:
    with Lab() as lab:
        held = networks(lab)
        shown = subprocess.run([*CLI, "list"], capture_output=True, text=True, check=True).stdout
        assert f"{lab.name}: in use" in shown.splitlines()
        down = threading.Timer(1.0, subprocess.run, [[*CLI, "down", lab.name]], {"check": True})
        down.start()
        with pytest.raises(LabError, match=r"sleep failed|node1 ended"):
            lab.run(["sleep", "60"])
        down.join()
        assert processes_in(held) == []
    result = subprocess.run([*CLI, "down", "nonsense"], capture_output=True, text=True, check=False)
    assert result.returncode == 1 and "there is no lab 'nonsense'" in result.stderr


def test_a_command_has_its_status_its_output_and_its_time() -> None:
    with Lab() as lab:
        with pytest.raises(LabError, match=r"(?s)sh failed with status 7:.*reason"):
            lab.run(["sh", "-c", "echo reason >&2; exit 7"])
        with pytest.raises(LabError, match=r"(?s)sh: not done after 1 s:\nso far"):
            lab.run(["sh", "-c", "echo so far; ssh node2 sleep 1000"], time_limit=1)
        assert not any("sleep 1000" in command for command in processes_in(networks(lab)))
        assert lab.run(["echo", "still there"]) == "still there\n"
    result = subprocess.run([*CLI, "lab", "--hosts", "1", "--", "sh", "-c", "exit 7"], check=False)
    assert result.returncode == 7


def test_100mbit_are_delivered_and_no_more() -> None:
    with Lab(rate="100mbit") as lab:
        # 95.7 are to be had, less on a machine that is busy with other things.
        assert 50e6 < float(python(lab, TRANSFER)) < 100e6
    with Lab() as lab:
        assert float(python(lab, TRANSFER)) > 150e6


def test_bytes_are_counted_with_and_without_headers() -> None:
    with Lab(rate="1gbit") as lab:
        before = lab.bytes()
        python(lab, TRANSFER)
        after = lab.bytes()
    sender, receiver = (after[host] - before[host] for host in ("node1", "node2"))
    assert sender.sent == receiver.received and sender.wire_sent == receiver.wire_received
    assert sender.received == receiver.sent and sender.wire_received == receiver.wire_sent
    payload = MEGABYTES << 20
    assert payload < sender.sent < 1.05 * payload
    # Each 1448 bytes travel with 66 of headers; the login that starts the receiver comes on top.
    assert 1514 / 1448 * payload < sender.wire_sent < 1514 / 1448 * payload + 50_000


@pytest.mark.without_lab
def test_wrong_arguments_are_named() -> None:
    with pytest.raises(LabError, match="hosts must be 1 to 250, got 0"):
        Lab(hosts=0)
    with pytest.raises(LabError, match=r"rate must be one of 100mbit, .*, unshaped, got '1mbit'"):
        Lab(rate="1mbit")
    with pytest.raises(LabError, match="use it in a with statement"):
        Lab().run(["true"])


def test_an_unknown_host_is_named() -> None:
    with Lab() as lab, pytest.raises(LabError, match="host must be one of node1, node2, got 'node3'"):
        lab.run(["true"], host="node3")


@pytest.mark.without_lab
def test_what_is_missing_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(LabError, match="needs root"):
        Lab().__enter__()
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(tools, "ADMINISTRATORS", ())
    for program in tools.PACKAGES:
        if program not in ("tc", "sshd"):
            (tmp_path / program).symlink_to("/bin/true")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LabError, match=r"tc, sshd missing: apt-get install .* iproute2 openssh-server"):
        Lab().__enter__()
