"""Each function of ``checks/`` on real processes, under horovodrun with Gloo and under mpirun, for each Keras."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest
from outcomes import grid, outcome

HERE = Path(__file__).parent
TIMEOUT_SECONDS = 480
MPI, GLOO = ("mpirun", 2), ("horovodrun", 3)
LEGACY = (("TF_USE_LEGACY_KERAS", "1"),)

if importlib.metadata.version("keras").startswith("3"):
    CASES = [((), *case) for case in grid(HERE, ("invariants", "refusals"), (MPI, GLOO))]
    CASES += [((), *case) for case in grid(HERE, ("checkpoints", "dense", "elastic", "family", "precision"), (MPI,))]
    CASES += [((), *case) for case in grid(HERE, ("fitting", "models"), (GLOO,))]
    # There a rank may hear nothing from another for longer than the 30 seconds that Gloo waits by itself.
    patient = (("HOROVOD_GLOO_TIMEOUT_SECONDS", "120"),)
    CASES += [(patient, *case) for case in grid(HERE, ("hierarchy",), (("nodes", 4),))]
    # TensorFlow with tf_keras: what depends on Keras, Horovod's own optimizer included.
    CASES += [(LEGACY, *case) for case in grid(HERE, ("fitting",), (MPI,))]
    CASES += [(LEGACY, *case) for case in grid(HERE, ("dense",), (("horovodrun", 2),))]
else:
    # What depends on Keras or on how TensorFlow traces; methods and loss scales of a tape do not.
    MODULES = ("checkpoints", "dense", "elastic", "invariants", "models", "refusals")
    CASES = [((), *case) for case in grid(HERE, MODULES, (MPI,))]
    CASES += [((), *case) for case in grid(HERE, ("fitting",), (GLOO,))]


@pytest.mark.parametrize(
    ("environment", "launcher", "ranks", "module", "check"),
    CASES,
    ids=["-".join([*(["tf_keras"] if case[0] == LEGACY else []), *map(str, case[1:])]) for case in CASES],
)
@pytest.mark.timeout(TIMEOUT_SECONDS + 60)
def test_check(environment: tuple[tuple[str, str], ...], launcher: str, ranks: int, module: str, check: str) -> None:
    result = outcome(HERE, launcher, ranks, module, environment=environment, timeout=TIMEOUT_SECONDS)
    assert not result[check], result[check]
