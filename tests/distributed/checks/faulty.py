"""Checks for test_runner.py that end in every way in which a check can."""

from __future__ import annotations

import os
import time

import horovod.torch as hvd
import torch


def check_passes() -> None:
    print("nothing to see", flush=True)


def check_fails_on_one_rank() -> None:
    print("about to fail", flush=True)
    assert hvd.rank() != 1, "the reason"


def check_fails_while_another_rank_waits() -> None:
    assert hvd.rank() == 0, "nobody comes"
    hvd.allreduce(torch.ones(1), name="alone")


def check_hangs() -> None:
    print("about to hang", flush=True)
    time.sleep(600)


def check_dies() -> None:
    print("about to die", flush=True)
    if hvd.rank() == 1:
        os._exit(3)
    hvd.allreduce(torch.ones(1), name="orphaned")


def check_passes_after_all_that() -> None:
    assert hvd.allreduce(torch.ones(1), op=hvd.Sum, name="alone").item() == hvd.size()
