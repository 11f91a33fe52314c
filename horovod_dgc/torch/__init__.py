"""PyTorch adapter: methods of :mod:`horovod_dgc` as the ``compression=`` of ``hvd.DistributedOptimizer``."""

from horovod_dgc.torch.compression import Compression

__all__ = ["Compression"]
