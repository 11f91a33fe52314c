"""Parameter shapes by a model's name, or from a file of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from horovod_dgc import _checks
from horovod_dgc.methods.base import Outputs
from horovod_dgc.shapes import NAMED, Shapes

# What normalisation layers of PyTorch keep in a state dict beside their parameters.
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
# Where training scripts put a model's state dict in a checkpoint of theirs.
_INSIDE = ("state_dict", "model_state_dict", "model")


@dataclass(frozen=True)
class Model:
    """Shapes to plan for.

    Attributes:
        name: for people.
        shapes: by parameter name, as far as a gradient is expected for it.
        outputs: which axis counts output units, see :meth:`horovod_dgc.Method.plan`.
        left_out: names in the file that were taken for no parameter.
    """

    name: str
    shapes: Shapes
    outputs: Outputs = "first"
    left_out: tuple[str, ...] = ()


def load(text: str) -> Model:
    """The model of a known name, or of a file.

    A file's suffix tells what it is: ``.safetensors``, ``.json`` (see :func:`from_json`), ``.keras`` (imports
    TensorFlow), or ``.pt``, ``.pth``, ``.bin`` and ``.ckpt`` with a PyTorch state dict (imports torch). Nothing in a
    file is executed: PyTorch's are read with ``weights_only=True``, Keras's with ``safe_mode=True``.

    Raises:
        ValueError: neither a known name nor a file of these, or one that cannot be read.
    """
    path = Path(text)
    if text in NAMED or not (path.suffix or path.exists()):
        return Model(text, NAMED[_checks.one_of("model", text, NAMED)]())
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"model must be a name or a file that ends in {', '.join(_READERS)}, got {text!r}")
    if not path.is_file():
        raise ValueError(f"model must be a file that exists, or one of {', '.join(map(repr, NAMED))}, got {text!r}")
    model = reader(path)
    if not model.shapes:
        raise ValueError(f"model must hold at least one parameter, got none in {text!r}")
    return model


def from_json(path: Path) -> Model:
    """Shapes written as JSON: an object from names to lists of extents, or a list of such lists.

    Raises:
        ValueError: not JSON, or not that.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"shapes must be a readable JSON file, got {str(path)!r}: {error}") from None
    named = dict(enumerate(content)) if isinstance(content, list) else content
    if not isinstance(named, dict) or not named:
        raise ValueError(
            f"shapes must be a JSON object from names to lists of extents, or a list of such lists, got {path.name!r} "
            f"with {type(content).__name__} of {len(named) if isinstance(named, dict) else 0}"
        )
    shapes: Shapes = {}
    for name, extents in named.items():
        if not isinstance(extents, list):
            raise ValueError(f"shapes[{name!r}] must be a list of extents such as [64, 3, 7, 7], got {extents!r}")
        shapes[str(name)] = tuple(_checks.whole_number(f"shapes[{name!r}]", extent, 0) for extent in extents)
    return Model(path.stem, shapes)


def _from_safetensors(path: Path) -> Model:
    try:
        from safetensors import SafetensorError, safe_open
    except ModuleNotFoundError:
        raise ValueError(f"{path.name!r} needs safetensors to be read: pip install safetensors") from None
    found: dict[str, tuple[tuple[int, ...], bool]] = {}
    try:
        with safe_open(path, framework="numpy") as file:
            # Not a mapping: it has keys() and no iteration in older versions.
            for name in file.keys():  # noqa: SIM118
                part = file.get_slice(name)
                found[name] = tuple(part.get_shape()), _floating(str(part.get_dtype()))
    except (SafetensorError, OSError) as error:
        raise ValueError(f"model must be a readable safetensors file, got {str(path)!r}: {error}") from None
    return _parameters(path, found)


def _from_torch(path: Path) -> Model:
    try:
        import torch
    except ModuleNotFoundError:
        raise ValueError(f"{path.name!r} needs PyTorch to be read: pip install torch") from None
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"model must be a file of torch.save(model.state_dict(), ...), since nothing else is read without running "
            f"what it holds, got {str(path)!r}: {reason}"
        ) from None
    for name in _INSIDE:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
            break
    if not isinstance(content, Mapping):
        raise ValueError(f"model must be a file of torch.save(model.state_dict(), ...), got {type(content).__name__}")
    found: dict[str, tuple[tuple[int, ...], bool]] = {}
    seen: set[tuple[int, tuple[int, ...]]] = set()
    for name, value in content.items():
        if isinstance(value, torch.Tensor):
            # A weight that two layers share has one gradient.
            place = (value.data_ptr(), tuple(value.shape))
            if value.numel() == 0 or place not in seen:
                seen.add(place)
                found[str(name)] = tuple(value.shape), value.is_floating_point()
    return _parameters(path, found)


def _from_keras(path: Path) -> Model:
    try:
        import keras
    except ModuleNotFoundError:
        raise ValueError(f"{path.name!r} needs TensorFlow and Keras to be read: pip install tensorflow") from None
    try:
        model = keras.models.load_model(path, compile=False, safe_mode=True)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"model must be a readable Keras file, got {str(path)!r}: {reason}") from None
    # Keras 2 knows no paths, and its names need not differ.
    names = [f"{n}.{getattr(v, 'path', v.name)}" for n, v in enumerate(model.trainable_variables)]
    shapes = {name: tuple(variable.shape) for name, variable in zip(names, model.trainable_variables)}
    return Model(path.stem, shapes, outputs="last")


def _parameters(path: Path, found: Mapping[str, tuple[tuple[int, ...], bool]]) -> Model:
    """What of a file of tensors gets a gradient: floating-point, and no statistics of normalisation layers."""
    left_out = tuple(
        name for name, (_, floating) in found.items() if not floating or name.rpartition(".")[2] in _BUFFERS
    )
    return Model(path.stem, {n: shape for n, (shape, _) in found.items() if n not in set(left_out)}, "first", left_out)


def _floating(dtype: str) -> bool:
    return dtype.upper().lstrip("B").startswith("F")


_READERS = {
    ".safetensors": _from_safetensors,
    ".json": from_json,
    ".keras": _from_keras,
    **dict.fromkeys((".pt", ".pth", ".bin", ".ckpt"), _from_torch),
}
