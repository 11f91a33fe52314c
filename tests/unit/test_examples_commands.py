"""The examples as commands: options and models. Runs of them are in tests/jobs."""

import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
import demo
import pytorch_images
import pytorch_language_model
import tensorflow_keras_images
import tensorflow_language_model
import torch

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
