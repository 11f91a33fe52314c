"""Run checks on every rank. Usage: run_checks.py RESULTS SECONDS GRACE MODULE[::CHECK]... (tests/support/rank.py)"""

from __future__ import annotations

import os

import horovod.torch as hvd
import torch
from rank import run_checks
from waiting import without_spinning

without_spinning()
torch.set_num_threads(1)
# On one GPU NCCL takes only ranks that say that they are on hosts of their own; then they talk over the network.
os.environ.setdefault("NCCL_HOSTID", os.environ.get("HOROVOD_RANK", "0"))
# Of two runs that are compared, both round as float32 does.
torch.backends.cudnn.allow_tf32 = False
hvd.init(process_sets="dynamic")
run_checks(hvd.rank(), lambda value, name: hvd.allgather_object(value, name=name))
hvd.shutdown()
