"""Whether variables are the same on all ranks, as operations of the step's graph."""

from __future__ import annotations

from collections.abc import Sequence

import horovod.tensorflow as hvd
import tensorflow as tf

from horovod_dgc import agreement
from horovod_dgc.tensorflow.callers import Call
from horovod_dgc.tensorflow.tensors import Tensor

DIGEST_NBYTES = 8


def require(tensors: Sequence[Tensor], call: Call, exchanges: tf.Tensor, every: int, name: str) -> tf.Tensor:
    """A tensor whose computation fails on every rank if a variable is not the same on all of them.

    Args:
        tensors: those of the model, in its order, which must be the same on all ranks; not empty.
        call: the call of Horovod's reducer, for its process set.
        exchanges: number of exchanges done, int64 (); the same on all ranks.
        every: the variables are compared when this divides ``exchanges``.
        name: of the collective.
    """

    def compare() -> tf.Tensor:
        digests = tf.concat([_digest(tensor) for tensor in tensors], axis=1)
        gathered = hvd.allgather(digests, name=name, ignore_name_scope=True, process_set=call.process_set)
        rows = tf.reshape(gathered, [call.workers, len(tensors), DIGEST_NBYTES])
        differ = tf.reduce_any(rows != rows[:1], axis=2)
        variables, workers = tf.reduce_any(differ, axis=0), tf.reduce_any(differ, axis=1)
        ranks = tf.constant(list(agreement.ranks_of(call.process_set)))
        message = tf.strings.join(
            [
                "check_sync: variables differ between ranks before exchange ",
                tf.strings.as_string(exchanges),
                ". ",
                tf.gather([tensor.label for tensor in tensors], tf.argmax(variables)),
                " is the first of ",
                tf.strings.as_string(tf.math.count_nonzero(variables)),
                f" (of {len(tensors)}); not as on rank ",
                tf.strings.as_string(ranks[0]),
                ": rank ",
                tf.strings.reduce_join(tf.strings.as_string(tf.boolean_mask(ranks, workers)), separator=", "),
                ". Have they been broadcast, and does every rank change them in the same way?",
            ]
        )
        with tf.control_dependencies([tf.debugging.Assert(~tf.reduce_any(differ), [message])]):
            return tf.identity(exchanges)

    return tf.cond(tf.equal(exchanges % every, 0), compare, lambda: tf.identity(exchanges))


def _digest(tensor: Tensor) -> tf.Tensor:
    """Eight bytes, uint8 (1, 8), that tell the variable's values from others."""
    values = tf.bitcast(tensor.variable.read_value(), tf.uint8)
    return tf.raw_ops.Fingerprint(data=tf.reshape(values, [1, -1]), method="farmhash64")
