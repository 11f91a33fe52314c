"""Models for `python -m horovod_dgc plan` from Keras's files."""

from __future__ import annotations

from pathlib import Path

import keras
import pytest

from horovod_dgc.plan import models


def test_trainable_variables_of_a_keras_file(tmp_path: Path) -> None:
    path = tmp_path / "net.keras"
    image = keras.Input((8, 8, 3))
    convolved = keras.layers.BatchNormalization()(keras.layers.Conv2D(5, 3)(image))
    keras.Model(image, convolved).save(path)
    found = models.load(str(path))
    assert sorted(found.shapes.values()) == [(3, 3, 3, 5), (5,), (5,), (5,)]
    assert found.outputs == "last"


def test_code_in_a_keras_file_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "net.keras"
    numbers = keras.Input((3,))
    keras.Model(numbers, keras.layers.Lambda(lambda x: x)(numbers)).save(path)
    with pytest.raises(ValueError, match="model must be a readable Keras file"):
        models.load(str(path))
    path.write_bytes(b"PK")
    with pytest.raises(ValueError, match="model must be a readable Keras file"):
        models.load(str(path))
