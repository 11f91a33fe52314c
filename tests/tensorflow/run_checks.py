"""Run on every rank: all ``check_*`` functions of one module. Usage: run_checks.py MODULE RESULT_FILE [SECONDS]"""

from __future__ import annotations

import json
from typing import Any

import horovod.tensorflow as hvd
import tensorflow as tf
from rank import run_checks

from horovod_dgc import agreement
from horovod_dgc.tensorflow.collectives import gather_bytes


def gather(value: Any, name: str) -> list[Any]:
    everybody = hvd.global_process_set
    texts = agreement.texts(
        json.dumps(value), hvd.size(), lambda data, label: gather_bytes(data, label, everybody, 60), name
    )
    return [json.loads(text) for text in texts]


tf.config.threading.set_intra_op_parallelism_threads(1)
tf.config.threading.set_inter_op_parallelism_threads(2)
hvd.init(process_sets="dynamic")
run_checks(hvd.rank(), gather)
hvd.shutdown()
