"""The images task as real jobs: the examples for PyTorch and for Keras under horovodrun."""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from support import launch, report
from support.results import Results

PART = "processes"
EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS: Mapping[str, str] = {"PyTorch": "pytorch_images.py", "TensorFlow": "tensorflow_keras_images.py"}
COMPRESSIONS: Mapping[str, str] = {"dense": "none", "DGC 0.1 %": "dgc:density=0.001", "DGC 1 %": "dgc:density=0.01"}
WORKERS = 2
SEEDS = (42, 43, 44)
OPTIONS: Mapping[str, Any] = {
    "width": 16,
    "batch-size": 32,
    "epochs": 4,
    "base-lr": 0.05,
    "warmup-epochs": 0.4,
    "dgc-warmup-epochs": 0.4,
}
TIME_LIMIT = 3600.0


def key_of(framework: str, contender: str, seed: int) -> dict[str, Any]:
    return {
        "task": f"images, {framework}",
        "contender": contender,
        "workers": WORKERS,
        "seed": seed,
        "settings": {"script": SCRIPTS[framework], "compression": COMPRESSIONS[contender], **OPTIONS},
        "points": OPTIONS["epochs"],
    }


def run_all(results: Results) -> None:
    for contender, seed, framework in itertools.product(COMPRESSIONS, SEEDS, SCRIPTS):
        key = key_of(framework, contender, seed)
        if results.get(key) is None:
            with report.CONSOLE.status(f"{key['task']}: {contender}, seed {seed}, {WORKERS} processes"):
                results.add(key, run(framework, contender, seed))


def run(framework: str, contender: str, seed: int) -> dict[str, Any]:
    """The findings of one job, as those of a simulated one."""
    settings = {"compression": COMPRESSIONS[contender], "seed": seed, **OPTIONS}
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.jsonl"
        command = [str(EXAMPLES / SCRIPTS[framework]), "--log-json", str(log)]
        command += [f"--{name}={value}" for name, value in settings.items()]
        launch.run_command(command, workers=WORKERS, time_limit=TIME_LIMIT)
        *epochs, last = (json.loads(line) for line in log.read_text().splitlines())
    per_epoch = last["steps"] // len(epochs)
    curve, sent = [], 0
    for epoch in epochs:
        sent += round(epoch["bytes_per_step"] * per_epoch)
        figures = (epoch[name] for name in ("train_loss", "validation_accuracy", "validation_loss"))
        curve.append([epoch["epoch"] * per_epoch, *(float(f"{figure:.5g}") for figure in figures), sent])
    return {
        "figure": curve[-1][2],
        "last_nbytes": round(last["last_step_bytes_per_step"]),
        "mean_nbytes": round(sent / last["steps"]),
        "dense_nbytes": last["dense_bytes_per_step"],
        "steps_per_epoch": per_epoch,
        "curve": curve,
    }
