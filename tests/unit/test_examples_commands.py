"""The examples as commands: options, models, and short runs of one and of two workers on made-up data."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
import datasets
import demo
import pytorch_images
import pytorch_language_model
import tensorflow_keras_images
import tensorflow_language_model
import torch

EXAMPLES = Path(datasets.__file__).parent
COMMANDS = [
    pytorch_images.main,
    pytorch_language_model.main,
    tensorflow_keras_images.main,
    tensorflow_language_model.main,
]
rng = np.random.default_rng(0)


@pytest.mark.parametrize("command", [*COMMANDS, demo.main])
def test_help_names_every_option(command) -> None:
    result = CliRunner().invoke(command, ["--help"])
    assert result.exit_code == 0
    for parameter in command.params:
        assert parameter.opts[0] in result.output


@pytest.mark.parametrize(
    "options",
    [
        ["--values", "float8"],
        ["--indices", "huffman"],
        ["--density", "0"],
        ["--density", "1.5"],
        ["--compression", "topp"],
        ["--compression", "qsgd:bits=3"],
        ["--epochs", "0"],
        ["--clip-norm", "0"],
        ["--data-dir", "/nowhere"],
    ],
)
@pytest.mark.parametrize("command", COMMANDS)
def test_refuses_a_wrong_option_by_name(command, options: list[str]) -> None:
    result = CliRunner().invoke(command, options)
    assert result.exit_code == 2
    assert options[0] in result.output


@pytest.mark.parametrize("pair", [COMMANDS[::2], COMMANDS[1::2]])
def test_both_frameworks_have_the_same_options_and_defaults(pair) -> None:
    first, second = ([(p.opts, p.default, repr(p.type)) for p in command.params] for command in pair)
    assert first == second


def test_size_of_the_image_model() -> None:
    model = pytorch_images.ResidualNet(channels=1, classes=10)
    exempt = sum(p.numel() for p in model.parameters() if p.dim() <= 1)
    assert exempt == 1402
    assert sum(p.numel() for p in model.parameters()) - exempt == 679_512


def test_size_of_the_language_model() -> None:
    model = pytorch_language_model.WordModel(words=10_000, width=128, dropout=0.1)
    embedding, layer = 10_000 * 128, 2 * 4 * 128 * 128 + 2 * 4 * 128
    assert sum(p.numel() for p in model.parameters()) == embedding + 2 * layer


def test_both_frameworks_have_the_same_image_model() -> None:
    torch_model = pytorch_images.ResidualNet(channels=1, classes=10).eval()
    keras_model = tensorflow_keras_images.residual_net((28, 28, 1), classes=10)
    for weight, parameter in zip(keras_model.trainable_variables, torch_model.parameters(), strict=True):
        value = parameter.detach().numpy()
        weight.assign(value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T)
    images = rng.normal(size=(3, 28, 28, 1)).astype(np.float32)
    expected = torch_model(torch.tensor(images.transpose(0, 3, 1, 2))).detach().numpy()
    np.testing.assert_allclose(keras_model(images).numpy(), expected, atol=1e-5)


def test_both_frameworks_have_the_same_language_model() -> None:
    torch_model = pytorch_language_model.WordModel(words=11, width=8, dropout=0.5).eval()
    keras_model = tensorflow_language_model.WordModel(words=11, width=8, dropout=0.5, seed=0)
    words = rng.integers(0, 11, (5, 2))
    keras_model(words.T, keras_model.start(2))
    values = [torch_model.embedding.weight]
    for ih, hh, ih_bias, hh_bias in torch_model.lstm.all_weights:
        values += [ih.T, hh.T, ih_bias + hh_bias]
    for weight, value in zip(keras_model.trainable_variables, values, strict=True):
        weight.assign(value.detach().numpy())
    expected, torch_state = torch_model(torch.tensor(words), torch_model.start(2))
    scores, state = keras_model(words.T, keras_model.start(2))
    np.testing.assert_allclose(scores.numpy().swapaxes(0, 1), expected.detach().numpy(), atol=1e-6)
    for layer, (hidden, cell) in enumerate(state):
        np.testing.assert_allclose(hidden.numpy(), torch_state[0][layer].detach().numpy(), atol=1e-6)
        np.testing.assert_allclose(cell.numpy(), torch_state[1][layer].detach().numpy(), atol=1e-6)


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
    launcher = Path(sys.executable).with_name("horovodrun")
    if workers > 1 and not launcher.exists():
        pytest.skip("no horovodrun beside this interpreter")
    launch = [str(launcher), "--gloo", "-np", str(workers), "-H", f"localhost:{workers}"] if workers > 1 else []
    own = WRITERS[example](folder)
    log = folder / "log.jsonl"
    command = [*launch, sys.executable, str(EXAMPLES / example), *own, *options, "--data-dir", str(folder)]
    result = subprocess.run(
        [*command, "--log-json", str(log)], capture_output=True, text=True, timeout=240, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout, [json.loads(line) for line in log.read_text().splitlines()]


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
    list(zip(WRITERS, ["powersgd:rank=2", "terngrad:shared_scale=true", "qsgd:bits=8", "vgc:cap=0.05"])),
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
    result = subprocess.run(
        [sys.executable, str(EXAMPLES / "pytorch_images.py"), *own, *options],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert result.returncode == 1
    assert "--density: qsgd has no density" in result.stderr


@pytest.mark.parametrize("example", WRITERS)
def test_one_worker(tmp_path: Path, example: str) -> None:
    output, records = run(tmp_path, 1, example, ["--epochs", "1"])
    assert records[-1]["last_step_ratio"] is None
    assert "nothing was exchanged" in output


def test_ends_a_run_that_takes_too_long(tmp_path: Path) -> None:
    if not shutil.which(Path(sys.executable).with_name("horovodrun")):
        pytest.skip("no horovodrun beside this interpreter")
    sleeper = tmp_path / "sleeper.py"
    sleeper.write_text(
        "import os, pathlib, sys, time\n"
        f"pathlib.Path({str(tmp_path)!r}, f'pid-{{os.getpid()}}').touch()\n"
        "time.sleep(600)\n"
    )
    with pytest.raises(Exception, match="sleeper: not done after 30 s"):
        demo.launch("sleeper", sleeper, 2, [], 30)
    workers = [int(path.name.removeprefix("pid-")) for path in tmp_path.glob("pid-*")]
    assert len(workers) == 2
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
