"""PyTorch adapter: methods of :mod:`horovod_dgc` as the ``compression=`` of ``hvd.DistributedOptimizer``."""

from horovod_dgc.torch.checkpoint import load_checkpoint, save_checkpoint
from horovod_dgc.torch.compression import Compression
from horovod_dgc.torch.moments import SecondMoments

__all__ = ["Compression", "SecondMoments", "load_checkpoint", "save_checkpoint"]
