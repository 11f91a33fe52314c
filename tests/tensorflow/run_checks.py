"""Run on every rank: all ``check_*`` functions of one module. Usage: run_checks.py MODULE RESULT_FILE"""

from __future__ import annotations

import pickle
from typing import Any

import horovod.tensorflow as hvd
import tensorflow as tf
from rank import run_checks

from horovod_dgc.tensorflow.collectives import gather_bytes


def gather(value: Any, name: str) -> list[Any]:
    data = pickle.dumps(value)
    sizes = gather_bytes(len(data).to_bytes(8, "little"), f"{name}.size", hvd.global_process_set, 60)
    everything = gather_bytes(data, f"{name}.value", hvd.global_process_set, 60)
    values = []
    for i in range(hvd.size()):
        size = int.from_bytes(sizes[8 * i : 8 * i + 8], "little")
        values.append(pickle.loads(everything[:size]))
        everything = everything[size:]
    return values


tf.config.threading.set_intra_op_parallelism_threads(1)
tf.config.threading.set_inter_op_parallelism_threads(2)
hvd.init(process_sets="dynamic")
run_checks(hvd.rank(), gather)
hvd.shutdown()
