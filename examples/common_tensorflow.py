"""What the TensorFlow examples share: set-up of Horovod and TensorFlow, and the optimizer with its compression."""

from typing import Any

import common
import horovod.tensorflow as hvd
import tensorflow as tf

from horovod_dgc.tensorflow import Compression


def start(args: Any) -> None:
    """Initialise Horovod and the generators; each worker sees one GPU where there are any."""
    hvd.init()
    tf.config.threading.set_intra_op_parallelism_threads(args.cpu_threads)
    tf.config.threading.set_inter_op_parallelism_threads(args.cpu_threads)
    tf.keras.utils.set_random_seed(args.seed)
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        tf.config.set_visible_devices(gpus[hvd.local_rank()], "GPU")


def average(value: float, weight: float) -> float:
    """Mean of `value` over all workers, each counting with its `weight`."""
    total = hvd.allreduce(tf.constant([value * weight, weight], tf.float64), op=hvd.Sum)
    return float(total[0] / total[1])


def optimizer_and_compression(job: common.Job, model: tf.keras.Model) -> tuple[tf.keras.optimizers.Optimizer, Any]:
    """Momentum SGD, and the `compression=` that the options ask for, both for a model that has been built."""
    args = job.args
    optimizer = tf.keras.optimizers.SGD(
        job.learning_rate(),
        momentum=args.momentum,
        # In Keras it acts on the weights directly. In PyTorch it is part of the gradient, and momentum multiplies it.
        weight_decay=args.wd / (1 - args.momentum) or None,
        global_clipnorm=job.clip_norm_after_exchange(),
    )
    if job.method is not None:
        compression = Compression(job.method, optimizer, model.trainable_variables)
    else:
        compression = hvd.Compression.none
    job.compression = compression
    return optimizer, compression
