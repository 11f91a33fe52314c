"""Run on every rank: all ``check_*`` functions of one module. Usage: run_checks.py MODULE RESULT_FILE [SECONDS]"""

from __future__ import annotations

import horovod.torch as hvd
import torch
from rank import run_checks

torch.set_num_threads(1)
hvd.init(process_sets="dynamic")
run_checks(hvd.rank(), lambda value, name: hvd.allgather_object(value, name=name))
hvd.shutdown()
