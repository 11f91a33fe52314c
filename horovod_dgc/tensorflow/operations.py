"""The compiled TensorFlow operations: ``horovod_dgc_propose`` and the others of ``csrc/tensorflow``."""

from __future__ import annotations

import ctypes
import importlib.machinery
from pathlib import Path
from typing import Any

import tensorflow as tf

REBUILD = "pip install --no-build-isolation --no-deps --force-reinstall horovod_dgc"


PATH = Path(__file__).with_name("_operations" + importlib.machinery.EXTENSION_SUFFIXES[0])


def _load() -> Any:
    if not PATH.exists():
        raise ImportError(
            "horovod_dgc was installed without its TensorFlow operations, which are compiled against the TensorFlow "
            f"that is there when it is built. With TensorFlow and a C++17 compiler installed, run: {REBUILD}"
        )
    try:
        return tf.load_op_library(str(PATH))
    except (tf.errors.OpError, OSError) as error:
        raise ImportError(
            f"horovod_dgc's TensorFlow operations do not load into TensorFlow {tf.__version__}; they must be compiled "
            f"against this very version. Run: {REBUILD}\n({error})"
        ) from error


def names(of: str) -> tuple[str, ...]:
    """What the operations call the elements of a vector that they share with Python, in order.

    Args:
        of: ``counts`` (each of its rows) or ``progress``.

    Raises:
        KeyError: the operations have no such vector.
    """
    ask = ctypes.CDLL(str(PATH)).horovod_dgc_names
    ask.argtypes, ask.restype = [ctypes.c_char_p], ctypes.c_char_p
    found: bytes | None = ask(of.encode())
    if found is None:
        raise KeyError(of)
    return tuple(found.decode().split())


library = _load()
COUNTS, PROGRESS = names("counts"), names("progress")
