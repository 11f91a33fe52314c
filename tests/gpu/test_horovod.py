"""The adapter on a GPU: real ranks that share it, with NCCL where Horovod has it, and by way of host memory."""

from __future__ import annotations

from pathlib import Path

import horovod.torch as hvd
import pytest
import torch
from outcomes import grid, outcome

FOLDER = Path(__file__).parents[1] / "distributed"
MODULES = ("device", "invariants", "dense", "precision")
SECONDS = 150
# What NCCL needs to find ranks of one machine that claim to be on several.
NCCL = (("NCCL_SOCKET_IFNAME", "lo"), ("NCCL_IB_DISABLE", "1"))


@pytest.mark.parametrize("collectives", ["device", "host"])
@pytest.mark.parametrize(("launcher", "ranks", "module", "check"), grid(FOLDER, MODULES, [("horovodrun", 2)]))
@pytest.mark.timeout(SECONDS + 60)
def test_check(launcher: str, ranks: int, module: str, check: str, collectives: str) -> None:
    if collectives == "device" and not hvd.nccl_built():
        pytest.skip("Horovod was built without NCCL")
    environment = (
        ("HOROVOD_DGC_TEST_DEVICE", f"cuda:{torch.cuda.current_device()}"),
        ("HOROVOD_DGC_TEST_COLLECTIVES", collectives),
        *NCCL,
    )
    failure = outcome(FOLDER, launcher, ranks, module, environment=environment, timeout=SECONDS)[check]
    assert not failure, failure
