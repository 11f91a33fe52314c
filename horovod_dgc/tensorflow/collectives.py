"""Horovod's collectives as the rest of the package calls them."""

from __future__ import annotations

import functools
import threading
from typing import Any

import horovod.tensorflow as hvd
import tensorflow as tf
from horovod.common.exceptions import HorovodInternalError

from horovod_dgc import agreement

# How names of collectives begin. Horovod's elastic.run tells a job that has broken down by "HorovodAllreduce" or
# "HorovodAllgather" in the error of a graph, which holds the name of the node.
ALLREDUCE, ALLGATHER = "HorovodAllreduce_horovod_dgc", "HorovodAllgather_horovod_dgc"
REDUCESCATTER = "HorovodReducescatter_horovod_dgc"


def gather_bytes(
    data: bytes, name: str, process_set: Any, timeout: float, expected: str = agreement.FIRST_STEP
) -> bytes:
    """The bytes of all ranks of the process set, one after another; eager.

    Args:
        expected: what a rank that does not answer should have done, for the error.

    Raises:
        RuntimeError: some rank did not answer within ``timeout`` seconds.
        HorovodInternalError: the job has broken down.
    """
    answers: list[bytes] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            message = tf.constant(memoryview(data), tf.uint8) if data else tf.zeros(0, tf.uint8)
            answers.append(_gatherer(name, process_set)(message).numpy().tobytes())
        except tf.errors.UnknownError as error:
            failures.append(HorovodInternalError(error))
        except BaseException as error:
            failures.append(error)

    # A collective cannot be called off; one that nobody joins must not keep the process from ending.
    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    thread.join(timeout)
    if failures:
        raise failures[0]
    if not answers:
        raise agreement.no_answer(hvd.rank(), timeout, expected)
    return answers[0]


@functools.cache
def _gatherer(name: str, process_set: Any) -> Any:
    """A named allgather: in a graph, since Horovod's eager operations are matched by their order and not by name."""

    @tf.function(autograph=False, input_signature=[tf.TensorSpec([None], tf.uint8)])  # type: ignore[untyped-decorator]
    def gather(message: tf.Tensor) -> tf.Tensor:
        return hvd.allgather(message, name=name, ignore_name_scope=True, process_set=process_set)

    return gather
