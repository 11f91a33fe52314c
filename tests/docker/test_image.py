"""The image of docker/Dockerfile, really built: two containers in two network namespaces train the example together."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from cluster.lab import Lab
from engine import LIMITS, Engine

IMAGE = "localhost/horovod_dgc"
USER = 1000
EXAMPLE = ["python", "/opt/examples/pytorch_images.py", "--data-dir", "/data", "--epochs", "2", "--batch-size", "16"]
# The first test to run waits for the image to be built.
pytestmark = pytest.mark.timeout(3600)


def write_idx(path: Path, array: np.ndarray) -> None:
    path.write_bytes(bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes())


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Images in MNIST's format: for each class a bright row, at another height, in noise."""
    folder = tmp_path / "data"
    folder.mkdir()
    random = np.random.default_rng(0)
    for name, count in (("train", 320), ("t10k", 80)):
        labels = np.arange(count, dtype=np.uint8) % 10
        images = random.integers(0, 100, (count, 28, 28), np.uint8)
        images[np.arange(count), 2 + 2 * labels] = 255
        write_idx(folder / f"{name}-images-idx3-ubyte", images)
        write_idx(folder / f"{name}-labels-idx1-ubyte", labels)
    return folder


class Cluster:
    """A lab whose hosts' networks are containers'; node1 is the head."""

    def __init__(self, engine: Engine, lab: Lab, keys: Path, data: Path) -> None:
        self._engine = engine
        self.lab = lab
        names = [f"--add-host={name}:{address}" for name, address in lab.addresses.items()]
        self._common = [*LIMITS, *names, "--volume", f"{keys}:/cluster", "--volume", f"{data}:/data:ro"]

    def start_worker(self, host: str) -> None:
        self._engine.podman("run", "--detach", *self._place(host), *self._common, IMAGE, "worker")

    def on_head(self, *command: str) -> str:
        wait = ["--env", "CLUSTER_HOSTS=node2"]
        run = ["run", "--rm", *wait, *self._place("node1"), *self._common, IMAGE, "head", *command]
        return self._engine.podman(*run, time_limit=600)

    def _place(self, host: str) -> list[str]:
        return ["--name", host, "--hostname", host, "--network", f"ns:{self.lab.network(host)}"]


@pytest.fixture
def cluster(engine: Engine, tmp_path: Path, data: Path) -> Iterator[Cluster]:
    """Two hosts at 1 Gb/s, a worker waiting on the second."""
    keys = tmp_path / "keys"
    keys.mkdir(mode=0o700)
    for folder in (keys, *list(tmp_path.parents)[:2]):
        folder.chmod(0o755)
    os.chown(keys, USER, USER)
    with Lab(rate="1gbit") as lab:
        try:
            made = Cluster(engine, lab, keys, data)
            made.start_worker("node2")
            yield made
        finally:
            engine.podman("rm", "--all", "--force", "--time", "0", check=False)


@pytest.mark.parametrize(
    "launcher",
    [
        ["horovodrun", "-np", "2", "-H", "node1:1,node2:1", "--network-interfaces", "eth0"],
        ["mpirun", "-np", "2", "-H", "node1,node2"],
    ],
    ids=["horovodrun", "mpirun"],
)
def test_two_containers_train_together(cluster: Cluster, launcher: list[str]) -> None:
    before = cluster.lab.bytes()
    script = " ".join([*launcher, *EXAMPLE, "--log-json", "/tmp/log"]) + " >&2 && cat /tmp/log"
    output = cluster.on_head("sh", "-c", script)
    after = cluster.lab.bytes()
    summary = json.loads(output.splitlines()[-1])
    assert (summary["workers"], summary["compression"], summary["steps"]) == (2, "dgc", 20)
    # Chance is 0.1.
    assert summary["validation_accuracy"] > 0.5
    for host in cluster.lab.addresses:
        # What the example says that it sent has left each host, and is not all: there is the login, too.
        assert (after[host] - before[host]).sent > summary["whole_run_bytes_per_step"] * summary["steps"]


def test_each_container_has_a_host_key_of_its_own_and_no_key_is_in_the_image(engine: Engine, cluster: Cluster) -> None:
    look = ["sh", "-c", "find / -xdev -name 'ssh_host_*' -o -xdev -name 'id_*' -o -xdev -name host_key; id -u"]
    found = engine.podman("run", "--rm", *LIMITS, "--network", "none", IMAGE, *look, check=False).splitlines()
    assert [line for line in found if "Permission denied" not in line] == [str(USER)]
    show = (
        "cat ~/.ssh/host_key.pub; ssh node2 cat .ssh/host_key.pub; ssh node2 'id -u; hostname; command -v horovodrun'"
    )
    one, other, user, name, program = cluster.on_head("sh", "-c", show).splitlines()[-5:]
    assert one.startswith("ssh-ed25519 ") and other.startswith("ssh-ed25519 ") and one != other
    assert (user, name, program) == (str(USER), "node2", "/opt/horovod_dgc/bin/horovodrun")


def test_a_worker_without_a_key_says_what_is_missing(engine: Engine) -> None:
    run = ["run", "--rm", *LIMITS, "--network", "none", "--env", "CLUSTER_SECONDS=1", IMAGE, "worker"]
    assert "no key id_* in /cluster after 1 s: mount the folder" in engine.podman(*run, check=False)
