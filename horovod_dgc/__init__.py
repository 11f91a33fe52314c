"""Gradient compression for Horovod: methods that cut the traffic of distributed SGD several hundredfold.

This package imports neither torch, TensorFlow nor Horovod; :mod:`horovod_dgc.torch` is the PyTorch adapter.
"""

try:
    from horovod_dgc import _core  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"the C++ core of horovod_dgc in {__path__[0]} does not load ({error}): run pip install --force-reinstall "
        "--no-deps horovod_dgc, or in its source tree pip install -e ."
    ) from None

from horovod_dgc.methods.adacomp import AdaComp
from horovod_dgc.methods.base import Method, Plan, State
from horovod_dgc.methods.casts import BF16, FP16, Int8
from horovod_dgc.methods.countsketch import CountSketch
from horovod_dgc.methods.dgc import DGC
from horovod_dgc.methods.dorefa import DoReFa
from horovod_dgc.methods.dryden import FixedProportion
from horovod_dgc.methods.efsignsgd import EFSignSGD
from horovod_dgc.methods.gradient_dropping import GradientDropping
from horovod_dgc.methods.natural import NaturalCompression
from horovod_dgc.methods.onebit import OneBitSGD
from horovod_dgc.methods.powersgd import PowerSGD
from horovod_dgc.methods.qsgd import QSGD
from horovod_dgc.methods.randomk import RandomK
from horovod_dgc.methods.signsgd import SignSGD
from horovod_dgc.methods.signum import Signum
from horovod_dgc.methods.strom import ThresholdQuantization
from horovod_dgc.methods.terngrad import TernGrad
from horovod_dgc.methods.topk import TopK
from horovod_dgc.methods.vgc import VarianceBased
from horovod_dgc.registry import METHODS, method, register
from horovod_dgc.schedule import Warmup
from horovod_dgc.simulation import exchange
from horovod_dgc.traffic import Traffic, traffic

__version__ = "0.1.0"
__all__ = [
    "BF16",
    "DGC",
    "FP16",
    "METHODS",
    "QSGD",
    "AdaComp",
    "CountSketch",
    "DoReFa",
    "EFSignSGD",
    "FixedProportion",
    "GradientDropping",
    "Int8",
    "Method",
    "NaturalCompression",
    "OneBitSGD",
    "Plan",
    "PowerSGD",
    "RandomK",
    "SignSGD",
    "Signum",
    "State",
    "TernGrad",
    "ThresholdQuantization",
    "TopK",
    "Traffic",
    "VarianceBased",
    "Warmup",
    "__version__",
    "exchange",
    "method",
    "register",
    "traffic",
]
