"""TensorFlow adapter: methods of :mod:`horovod_dgc` as the ``compression=`` of Horovod's optimizers and tapes."""

from horovod_dgc.tensorflow.callbacks import (
    BroadcastGlobalVariablesCallback,
    LearningRateWarmupCallback,
    MetricAverageCallback,
)
from horovod_dgc.tensorflow.checkpoint import load_checkpoint, save_checkpoint
from horovod_dgc.tensorflow.compression import Compression
from horovod_dgc.tensorflow.moments import SecondMoments
from horovod_dgc.tensorflow.optimizer import DistributedOptimizer

__all__ = [
    "BroadcastGlobalVariablesCallback",
    "Compression",
    "DistributedOptimizer",
    "LearningRateWarmupCallback",
    "MetricAverageCallback",
    "SecondMoments",
    "load_checkpoint",
    "save_checkpoint",
]
