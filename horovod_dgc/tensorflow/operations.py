"""The compiled TensorFlow operations: ``horovod_dgc_propose`` and the others of ``csrc/tensorflow``."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import tensorflow as tf

from horovod_dgc.building import extensions, places

BUILD = "python -m horovod_dgc build tensorflow"


def _find() -> Path:
    version, folder = tf.__version__, Path(__file__).parent
    path = places.find(folder, extensions.operations_name(version, tf.sysconfig.CXX11_ABI_FLAG))
    if path is None:
        there = ", ".join(sorted({each.name for each in folder.glob("_operations.*.so")}))
        raise ImportError(
            f"horovod_dgc has no operations for TensorFlow {version}: they are compiled against the very TensorFlow "
            f"that they run in{f' (there is {there})' if there else ''}. Run once: {BUILD}"
        )
    return path


def _load(path: Path) -> Any:
    try:
        return tf.load_op_library(str(path))
    except (tf.errors.OpError, OSError) as error:
        raise ImportError(
            f"horovod_dgc's operations do not load into TensorFlow {tf.__version__}. Run: {BUILD} --force\n({error})"
        ) from error


def names(of: str) -> tuple[str, ...]:
    """What the operations call the elements of a vector that they share with Python, in order.

    Args:
        of: ``counts`` (each of its rows) or ``progress``.

    Raises:
        KeyError: the operations have no such vector.
    """
    ask = ctypes.CDLL(str(_PATH)).horovod_dgc_names
    ask.argtypes, ask.restype = [ctypes.c_char_p], ctypes.c_char_p
    found: bytes | None = ask(of.encode())
    if found is None:
        raise KeyError(of)
    return tuple(found.decode().split())


_PATH = _find()
library = _load(_PATH)
COUNTS, PROGRESS = names("counts"), names("progress")
