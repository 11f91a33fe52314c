"""The compiled TensorFlow operations: ``horovod_dgc_propose`` and the others of ``csrc/tensorflow``."""

from __future__ import annotations

import importlib.machinery
from pathlib import Path
from typing import Any

import tensorflow as tf

REBUILD = "pip install --no-build-isolation --no-deps --force-reinstall horovod_dgc"


def _load() -> Any:
    path = Path(__file__).with_name("_operations" + importlib.machinery.EXTENSION_SUFFIXES[0])
    if not path.exists():
        raise ImportError(
            "horovod_dgc was installed without its TensorFlow operations, which are compiled against the TensorFlow "
            f"that is there when it is built. With TensorFlow and a C++17 compiler installed, run: {REBUILD}"
        )
    try:
        return tf.load_op_library(str(path))
    except (tf.errors.OpError, OSError) as error:
        raise ImportError(
            f"horovod_dgc's TensorFlow operations do not load into TensorFlow {tf.__version__}; they must be compiled "
            f"against this very version. Run: {REBUILD}\n({error})"
        ) from error


library = _load()
