"""The examples as jobs: short runs of one and of two workers on made-up data, and how the demo ends one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import launch
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
import datasets
import demo

EXAMPLES = Path(datasets.__file__).parent
SECONDS = 240.0
LONG = pytest.mark.long
pytestmark = pytest.mark.timeout(SECONDS + 30)
rng = np.random.default_rng(0)


def write_images(folder: Path) -> list[str]:
    for name in datasets.FASHION_MNIST:
        count = 64 if name.startswith("train") else 12
        shape = (count, 28, 28) if "images" in name else (count,)
        array = rng.integers(0, 10, shape, np.uint8)
        sizes = np.array(shape, ">u4").tobytes()
        (folder / name).write_bytes(bytes([0, 0, 8, len(shape)]) + sizes + array.tobytes())
    return ["--width", "4", "--batch-size", "8"]


def write_text(folder: Path) -> list[str]:
    words = np.array(["a", "b", "c", "d"])
    for part, lines in {"train": 200, "valid": 40, "test": 40}.items():
        text = "\n".join(" ".join(line) for line in words[rng.integers(0, 4, (lines, 5))])
        (folder / f"ptb.{part}.txt").write_text(text)
    sizes = ["--width", "8", "--batch-size", "4", "--test-batch-size", "2", "--bptt", "5"]
    return ["--dataset", "ptb", *sizes]


WRITERS = {
    "pytorch_images.py": write_images,
    "pytorch_language_model.py": write_text,
    "tensorflow_keras_images.py": write_images,
    "tensorflow_language_model.py": write_text,
}


def run(folder: Path, workers: int, example: str, options: list[str]) -> tuple[str, list[dict]]:
    own = WRITERS[example](folder)
    log = folder / "log.jsonl"
    command = [str(EXAMPLES / example), *own, *options, "--data-dir", str(folder), "--log-json", str(log)]
    if workers > 1:
        finished = launch.run("horovodrun", workers, command, timeout=SECONDS)
    else:
        finished = launch.execute([sys.executable, *command], timeout=SECONDS)
    assert finished.returncode == 0, finished.output
    return finished.output, [json.loads(line) for line in log.read_text().splitlines()]


@pytest.mark.parametrize("example", WRITERS)
def test_two_workers_with_dgc(tmp_path: Path, example: str) -> None:
    options = [
        "--epochs",
        "2",
        "--density",
        "0.01",
        "--dgc-warmup-epochs",
        "1",
        "--batches-per-allreduce",
        "2",
    ]
    output, records = run(tmp_path, 2, example, options)
    first, second, whole = records
    assert [record["event"] for record in records] == ["epoch", "epoch", "run"]
    assert whole["workers"] == 2
    assert first["bytes_per_step"] > second["bytes_per_step"] == whole["last_step_bytes_per_step"]
    assert whole["whole_run_bytes_per_step"] == (first["bytes_per_step"] + second["bytes_per_step"]) / 2
    assert whole["last_step_ratio"] == whole["dense_bytes_per_step"] / whole["last_step_bytes_per_step"]
    assert all(np.isfinite([r["train_loss"] for r in (first, second)]))
    assert f"{whole['steps']} steps (0 skipped)" in output


@pytest.mark.parametrize(
    ("example", "method"),
    [
        ("pytorch_images.py", "powersgd:rank=2"),
        pytest.param("pytorch_language_model.py", "terngrad:shared_scale=true", marks=LONG),
        pytest.param("tensorflow_keras_images.py", "qsgd:bits=8", marks=LONG),
        pytest.param("tensorflow_language_model.py", "vgc:cap=0.05", marks=LONG),
    ],
)
def test_two_workers_with_other_methods(tmp_path: Path, example: str, method: str) -> None:
    output, records = run(tmp_path, 2, example, ["--epochs", "1", "--compression", method])
    whole = records[-1]
    assert whole["compression"] == method
    assert whole["last_step_bytes_per_step"] < 0.9 * whole["dense_bytes_per_step"]
    assert f"{whole['steps']} steps (0 skipped)" in output


def test_refuses_settings_that_the_method_does_not_have(tmp_path: Path) -> None:
    own = write_images(tmp_path)
    options = ["--compression", "qsgd", "--density", "0.1", "--epochs", "1", "--data-dir", str(tmp_path)]
    finished = launch.execute([sys.executable, str(EXAMPLES / "pytorch_images.py"), *own, *options], timeout=SECONDS)
    assert finished.returncode == 1
    assert "--density: qsgd has no density" in finished.output


@pytest.mark.parametrize(
    "example",
    [
        "pytorch_images.py",
        pytest.param("pytorch_language_model.py", marks=LONG),
        pytest.param("tensorflow_keras_images.py", marks=LONG),
        "tensorflow_language_model.py",
    ],
)
def test_one_worker(tmp_path: Path, example: str) -> None:
    output, records = run(tmp_path, 1, example, ["--epochs", "1"])
    assert records[-1]["last_step_ratio"] is None
    assert "nothing was exchanged" in output


def test_ends_a_run_that_takes_too_long(tmp_path: Path) -> None:
    sleeper = tmp_path / "sleeper.py"
    sleeper.write_text(
        "import os, pathlib, sys, time\n"
        f"pathlib.Path({str(tmp_path)!r}, f'pid-{{os.getpid()}}').touch()\n"
        "time.sleep(600)\n"
    )
    with pytest.raises(Exception, match="sleeper: not done after 15 s"):
        demo.launch("sleeper", sleeper, 2, [], 15)
    workers = [int(path.name.removeprefix("pid-")) for path in tmp_path.glob("pid-*")]
    assert len(workers) == 2
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
