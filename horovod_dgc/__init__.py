"""Gradient compression for Horovod: methods that cut the traffic of distributed SGD several hundredfold.

This package imports neither torch, TensorFlow nor Horovod; :mod:`horovod_dgc.torch` is the PyTorch adapter.
"""

from horovod_dgc.method import Method, Plan, State
from horovod_dgc.methods.dgc import DGC
from horovod_dgc.registry import METHODS, method
from horovod_dgc.schedule import Warmup
from horovod_dgc.simulation import exchange
from horovod_dgc.traffic import Traffic, traffic

__version__ = "0.1.0"
__all__ = [
    "DGC",
    "METHODS",
    "Method",
    "Plan",
    "State",
    "Traffic",
    "Warmup",
    "__version__",
    "exchange",
    "method",
    "traffic",
]
