"""Run checks on every rank. Usage: run_checks.py RESULTS SECONDS GRACE MODULE[::CHECK]... (tests/support/rank.py)"""

from __future__ import annotations

import gc
import json
from typing import Any

import horovod.tensorflow as hvd
import tensorflow as tf
from rank import run_checks

from horovod_dgc import agreement
from horovod_dgc.tensorflow.collectives import gather_bytes


def gather(value: Any, name: str) -> list[Any]:
    everybody = hvd.global_process_set
    # TensorFlow takes no colons in names.
    name = name.replace("::", ".")
    texts = agreement.texts(
        json.dumps(value), hvd.size(), lambda data, label: gather_bytes(data, label, everybody, 60), name
    )
    return [json.loads(text) for text in texts]


def refresh() -> None:
    """Count layers from one again, on every rank."""
    tf.keras.backend.clear_session()
    gc.collect()


tf.config.threading.set_intra_op_parallelism_threads(1)
tf.config.threading.set_inter_op_parallelism_threads(2)
hvd.init(process_sets="dynamic")
run_checks(hvd.rank(), gather, refresh)
hvd.shutdown()
