"""The adapter on a GPU: real ranks that share it, with NCCL where Horovod has it, and by way of host memory."""

from __future__ import annotations

from pathlib import Path

import horovod.torch as hvd
import pytest
import torch
from outcomes import LONG, Job, Launch, grid

FOLDER = Path(__file__).parents[1] / "distributed"
MODULES = ("device", "invariants", "dense", "precision")
DEVICE = f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cuda"
# What NCCL needs to find ranks of one machine that claim to be on several.
NCCL = (("NCCL_SOCKET_IFNAME", "lo"), ("NCCL_IB_DISABLE", "1"))
WITHOUT_NCCL = pytest.mark.skipif(not hvd.nccl_built(), reason="Horovod was built without NCCL")


def launch(collectives: str) -> Launch:
    on_device = (("HOROVOD_DGC_TEST_DEVICE", DEVICE), ("HOROVOD_DGC_TEST_COLLECTIVES", collectives))
    return Launch(FOLDER, "horovodrun", 2, (*on_device, *NCCL, *LONG))


@pytest.mark.parametrize(
    ("launch", "check"),
    [
        *grid(MODULES, launch("device"), prefix="device-", marks=[WITHOUT_NCCL]),
        *grid(MODULES, launch("host"), prefix="host-"),
    ],
)
def test_check(job: Job, check: str) -> None:
    job.assert_passed(check)
