"""Each function of ``checks/`` on real processes, under horovodrun with Gloo or under mpirun, for each Keras.

Short, every check once with Keras 3; long, what depends on the launcher under the other as well, and with tf_keras.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest
from outcomes import LONG, Job, Launch, grid, long_grid, missing

HERE = Path(__file__).parent
CHECK_SECONDS = 240.0


def launch(launcher: str, ranks: int, environment: tuple[tuple[str, str], ...] = ()) -> Launch:
    return Launch(HERE, launcher, ranks, environment, CHECK_SECONDS)


KERAS_3 = importlib.metadata.version("keras").startswith("3")
if KERAS_3:
    EVERYWHERE = ("invariants", "refusals")
    # There a rank may hear nothing from another for longer than the 30 seconds that Gloo waits by itself.
    PATIENT = (("HOROVOD_GLOO_TIMEOUT_SECONDS", "120"),)
    # TensorFlow with tf_keras: what depends on Keras, Horovod's own optimizer included.
    LEGACY = (("TF_USE_LEGACY_KERAS", "1"),)
    CASES = [
        *grid((*EVERYWHERE, "checkpoints", "dense", "elastic", "family", "precision"), launch("mpirun", 2)),
        *grid(("fitting", "models"), launch("horovodrun", 3)),
        *grid(("misuse", "promises", "several", "unbuilt"), launch("horovodrun", 2)),
        *grid(("hierarchy",), launch("nodes", 4, PATIENT)),
        *grid(("one_worker",), launch("mpirun", 1)),
        # With all of their steps and combinations.
        *long_grid(("family", "invariants", "precision"), launch("mpirun", 2)),
        *long_grid(EVERYWHERE, launch("horovodrun", 3)),
        *long_grid(("fitting",), launch("mpirun", 2, LEGACY), prefix="tf_keras-"),
        *long_grid(("dense", "misuse", "promises", "unbuilt"), launch("horovodrun", 2, LEGACY), prefix="tf_keras-"),
        *long_grid(("one_worker",), launch("horovodrun", 1)),
    ]
else:
    # What depends on Keras or on how TensorFlow traces; methods and loss scales of a tape do not.
    CASES = [
        *grid(("checkpoints", "dense", "elastic", "invariants", "models", "refusals"), launch("mpirun", 2, LONG)),
        *grid(("fitting",), launch("horovodrun", 3, LONG)),
        *grid(("one_worker",), launch("mpirun", 1, LONG)),
        *grid(("one_worker",), launch("horovodrun", 1, LONG)),
    ]


@pytest.mark.parametrize(("launch", "check"), CASES)
def test_check(job: Job, check: str) -> None:
    job.assert_passed(check)


@pytest.mark.skipif(not KERAS_3, reason="with Keras 2, only what depends on it")
def test_every_check_is_run_in_the_short_length() -> None:
    assert not missing(HERE, [case for case in CASES if not case.id.startswith("long-")])
