"""The variables that a Compression knows, with what it keeps of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import tensorflow as tf

from horovod_dgc.tensorflow.takeover import raw
from horovod_dgc.tensorflow.tensors import Tensor

DTYPES = (tf.float32, tf.float64, tf.float16, tf.bfloat16)


class Model:
    """Variables given one by one, or the model that has them, whose variables are read when they are needed.

    Args:
        given: variables, or a Keras model or layer, or a ``tf.Module``.
        make: what is kept of a variable, from its position, its name and itself.
        tensors: what is kept of all of them, in their order; grows with the model.

    Raises:
        ValueError: variables that are missing, repeated or of a wrong dtype.
    """

    def __init__(self, given: Any, make: Callable[[int, str, tf.Variable], Tensor], tensors: list[Tensor]) -> None:
        self._make = make
        self._tensors = tensors
        self._known: dict[Any, Tensor] = {}
        self._source = given if hasattr(type(given), "trainable_variables") else None
        if self._source is None:
            self._add(_listed(given))
            if not self._tensors:
                raise ValueError(
                    "variables must not be empty: give the model itself, or build it first and give its "
                    "trainable_variables"
                )
        elif self._built:
            self.read()

    def read(self) -> bool:
        """Look for variables that the model has got in the meantime; True if there are any."""
        if self._source is None:
            return False
        return self._add(self._source.trainable_variables)

    @property
    def _built(self) -> bool:
        """Whether the model may be asked for its variables; a ``tf.Module`` always."""
        return bool(getattr(self._source, "built", True))

    def require(self, what: str) -> None:
        """Raise ValueError unless the model has variables by now.

        Args:
            what: cannot be done without them.
        """
        if self._built:
            self.read()
        if not self._tensors:
            raise ValueError(f"the model has no variables yet: build it, or call it on a batch, before {what}")

    def find(self, variable: Any) -> Tensor:
        """What is kept of a variable.

        Raises:
            ValueError: it is none of this model.
        """
        tensor = self._known.get(raw(variable).ref())
        if tensor is None:
            raise ValueError(
                f"a gradient belongs to variable {variable.name!r} of shape {tuple(variable.shape)}, which this "
                "Compression does not know: give it the model itself, or all of its trainable variables"
            )
        return tensor

    def knows(self, variable: Any) -> bool:
        return raw(variable).ref() in self._known

    def _add(self, variables: Iterable[Any]) -> bool:
        named = _named(variables, self._known, {tensor.label for tensor in self._tensors})
        # Also where a graph is being traced.
        with tf.init_scope():
            for name, variable in named.items():
                tensor = self._make(len(self._tensors), name, variable)
                self._tensors.append(tensor)
                self._known[variable.ref()] = tensor
        return bool(named)


def _listed(given: Any) -> list[Any]:
    if isinstance(given, (str, bytes)) or not isinstance(given, Iterable):
        raise ValueError(f"variables must be a model or its trainable variables, got {given!r}")
    return list(given)


def _named(variables: Iterable[Any], known: dict[Any, Tensor], taken: set[str]) -> dict[str, tf.Variable]:
    """Name of each variable that is not known, checked."""
    names: dict[str, tf.Variable] = {}
    seen = set()
    for position, given in enumerate(variables):
        variable = raw(given)
        if not isinstance(variable, tf.Variable):
            raise ValueError(f"variables must hold variables of TensorFlow or Keras, got {given!r}")
        if variable.ref() in seen:
            raise ValueError(f"variables must be distinct, got {given.name!r} twice")
        seen.add(variable.ref())
        if variable.ref() in known:
            continue
        if variable.dtype not in DTYPES:
            allowed = ", ".join(dtype.name for dtype in DTYPES)
            raise ValueError(
                f"variable {given.name!r} must have one of the dtypes {allowed}, got {variable.dtype.name}"
            )
        name = getattr(given, "path", None) or variable.name
        names[name if name not in names and name not in taken else f"{name} ({position})"] = variable
    return names
