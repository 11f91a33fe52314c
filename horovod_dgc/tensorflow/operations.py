"""The compiled TensorFlow operations: ``horovod_dgc_propose`` and the others of ``csrc/tensorflow``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tensorflow as tf

from horovod_dgc.building import extensions, places

BUILD = "python -m horovod_dgc build tensorflow"


def _load() -> Any:
    version, folder = tf.__version__, Path(__file__).parent
    path = places.find(folder, extensions.operations_name(version, tf.sysconfig.CXX11_ABI_FLAG))
    if path is None:
        there = ", ".join(sorted({each.name for each in folder.glob("_operations.*.so")}))
        raise ImportError(
            f"horovod_dgc has no operations for TensorFlow {version}: they are compiled against the very TensorFlow "
            f"that they run in{f' (there is {there})' if there else ''}. Run once: {BUILD}"
        )
    try:
        return tf.load_op_library(str(path))
    except (tf.errors.OpError, OSError) as error:
        raise ImportError(
            f"horovod_dgc's operations do not load into TensorFlow {version}. Run: {BUILD} --force\n({error})"
        ) from error


library = _load()
