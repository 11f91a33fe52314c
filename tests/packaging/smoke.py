"""Run by an interpreter that has the installed package and what it asks for, and nothing else."""

import importlib.metadata
import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np

import horovod_dgc
from horovod_dgc.building import places

assert horovod_dgc.__file__.startswith(sys.prefix), horovod_dgc.__file__
assert importlib.metadata.version("horovod_dgc") == horovod_dgc.__version__
others = ("torch", "tensorflow", "horovod", "matplotlib", "safetensors", "pybind11")
assert not [name for name in others if importlib.util.find_spec(name)]

numel, density = 10_000, 0.01
method = horovod_dgc.DGC(density=density, values="float32", warmup=None)
state = method.init(numel)
gradient = np.random.default_rng(0).standard_normal(numel, dtype=np.float32)
payload = method.encode(gradient.copy(), state, momentum=0.9)
assert payload.dtype == np.uint8 and payload.nbytes == method.payload_nbytes(numel)

received = np.zeros(numel, np.float32)
method.decode(payload[None], received)
assert np.count_nonzero(received) == density * numel
np.testing.assert_array_equal(received + state.residual, gradient)

# What `build` compiles, when there is something to compile it for.
assert (places.sources() / "tensorflow" / "operations.h").is_relative_to(sys.prefix)
assert (places.sources() / "tensorflow" / "operations.h").exists()
refused = subprocess.run(
    [Path(sys.executable).with_name("horovod-dgc"), "build", "tensorflow"], capture_output=True, text=True, check=False
)
assert refused.returncode == 1 and "TensorFlow is not installed" in refused.stderr, refused
print("smoke passed")
