"""The versions that the whole package has been tested with, as README's table has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Combination:
    """Versions that were tried together.

    Attributes:
        framework: the module that a training script imports, "torch" or "tensorflow".
        versions: by name: the framework's, and what is different for it from :data:`EVERYWHERE`.
        optimizer: what a script wraps its optimizer with.
    """

    framework: str
    versions: Mapping[str, str]
    optimizer: str

    def everything(self) -> dict[str, str]:
        return {**self.versions, **EVERYWHERE}


EVERYWHERE: Mapping[str, str] = {"Horovod": "0.28.1", "Python": "3.11", "MPI": "Open MPI 4.1.4"}
HOROVOD_KERAS = "horovod.tensorflow.keras.DistributedOptimizer(optimizer, compression=...)"
COMBINATIONS = (
    Combination("torch", {"torch": "2.13.0"}, "horovod.torch.DistributedOptimizer(optimizer, ..., compression=...)"),
    Combination(
        "tensorflow",
        {"tensorflow": "2.21.0", "Keras": "3.15.1", "NumPy": "2.4.6"},
        "horovod_dgc.tensorflow.DistributedOptimizer(optimizer, compression=...)",
    ),
    # Keras 2 as tf_keras, by TF_USE_LEGACY_KERAS=1.
    Combination("tensorflow", {"tensorflow": "2.21.0", "Keras": "2.21.0", "NumPy": "2.4.6"}, HOROVOD_KERAS),
    Combination("tensorflow", {"tensorflow": "2.15.1", "Keras": "2.15.0", "NumPy": "1.26.4"}, HOROVOD_KERAS),
)


def nearest(framework: str, installed: Mapping[str, str]) -> tuple[Combination, dict[str, str]]:
    """The combination that is most like what is installed, and the versions in which it differs.

    Args:
        installed: versions by the names that combinations use. What is not there, as MPI with a Horovod that has
            none, is not compared.
    """

    def differences(combination: Combination) -> dict[str, str]:
        tried = combination.everything()
        return {name: tried[name] for name, version in installed.items() if name in tried and tried[name] != version}

    # Of those with as many differences the one whose framework is the same: it is the first of the versions.
    return min(
        ((each, differences(each)) for each in COMBINATIONS if each.framework == framework),
        key=lambda found: (len(found[1]), framework in found[1]),
    )
