"""What ``Compression.state_dict()`` holds, and the checks that it passes before anything is changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

import horovod_dgc
from horovod_dgc import _checks
from horovod_dgc.methods.base import Method, Plan
from horovod_dgc.torch.tensors import Tensor

VERSION = 1
REDUCTIONS = ("average", "sum")
KEYS = (
    "version",
    "package",
    "method",
    "settings",
    "rank",
    "workers",
    "local_size",
    "reduction",
    "exchanges",
    "tensors",
)
TENSOR_KEYS = ("shape", "stepped", "residual", "velocity", "memory")
NAMES_SHOWN = 5


class Loaded(NamedTuple):
    """One tensor's state as it is to be put in place."""

    tensor: Tensor
    residual: torch.Tensor | None
    velocity: torch.Tensor | None
    memory: torch.Tensor | None
    stepped: bool

    def put(self, plan: Plan) -> None:
        self.tensor.replace(self.residual, self.velocity, self.memory, self.stepped)
        if self.residual is not None:
            self.tensor.settle(plan)


def collect(
    tensors: Iterable[Tensor],
    method: Method,
    *,
    rank: int,
    workers: int,
    local_size: int,
    reduction: str | None,
    exchanges: int,
) -> dict[str, Any]:
    """The state as numbers, texts and tensors; the tensors are the live ones."""
    return {
        "version": VERSION,
        "package": horovod_dgc.__version__,
        "method": type(method).__name__,
        "settings": method.configuration(),
        "rank": rank,
        "workers": workers,
        "local_size": local_size,
        "reduction": reduction,
        "exchanges": exchanges,
        "tensors": {tensor.name: tensor.state() for tensor in tensors},
    }


def is_empty(state: Mapping[str, Any]) -> bool:
    """Whether no tensor has been exchanged: one worker, or before the first exchange."""
    return all(entry["residual"] is None for entry in state["tensors"].values())


def check_header(state: Any, method: Method, local_size: int) -> None:
    """Raise ValueError unless everything but the tensors fits."""
    _exactly("state", state, KEYS)
    if state["version"] != VERSION:
        raise ValueError(
            f"state must have version {VERSION}, got {state['version']!r}, made by horovod_dgc {state['package']}; "
            f"this is {horovod_dgc.__version__}"
        )
    if state["method"] != type(method).__name__:
        raise ValueError(f"state must be of method {type(method).__name__}, got {state['method']!r}")
    _checks.whole_number("exchanges of the state", state["exchanges"], 0)
    _checks.whole_number("workers of the state", state["workers"], 1)
    _checks.whole_number("rank of the state", state["rank"], 0)
    if state["local_size"] != local_size:
        raise ValueError(
            f"state must be of nodes of {local_size} ranks, got {state['local_size']!r}: hierarchical must be what it "
            "was when the state was made"
        )
    if not isinstance(state["tensors"], Mapping):
        raise ValueError(f"tensors of the state must be a dict, got {type(state['tensors']).__name__}")
    for name, entry in state["tensors"].items():
        _exactly(f"state of {name!r}", entry, TENSOR_KEYS)
    if not is_empty(state):
        _checks.one_of("reduction of the state", state["reduction"], REDUCTIONS)


def check_tensors(
    state: Mapping[str, Any], tensors: Sequence[Tensor], plans: Sequence[Plan], *, momentum: bool
) -> list[Loaded]:
    """Copies of the state's tensors, in the order of ``tensors``.

    Args:
        plans: one for each tensor.
        momentum: whether velocities are held.

    Raises:
        ValueError: names, shapes, dtypes or values that do not fit.
    """
    _exactly("tensors of the state", state["tensors"], [tensor.name for tensor in tensors])
    return [
        _check_tensor(tensor, state["tensors"][tensor.name], plan, momentum) for tensor, plan in zip(tensors, plans)
    ]


def _check_tensor(tensor: Tensor, entry: Mapping[str, Any], plan: Plan, momentum: bool) -> Loaded:
    name, shape = tensor.name, tuple(tensor.parameter.shape)
    if list(entry["shape"]) != list(shape):
        raise ValueError(f"state of {name!r} must have shape {shape}, got {tuple(entry['shape'])}")
    _checks.flag(f"stepped of {name!r}", entry["stepped"])
    if entry["residual"] is None:
        if entry["velocity"] is not None:
            raise ValueError(f"state of {name!r} must not have a velocity without a residual")
        return Loaded(tensor, None, None, None, False)
    if momentum != (entry["velocity"] is not None):
        raise ValueError(
            f"state of {name!r} must {'' if momentum else 'not '}have a velocity: momentum is "
            f"{'' if momentum else 'not '}taken over from this optimizer"
        )
    residual = _copy(f"residual of {name!r}", entry["residual"], tensor, tensor.shape)
    velocity = _copy(f"velocity of {name!r}", entry["velocity"], tensor, tensor.shape) if momentum else None
    memory = None
    if entry["memory"] is not None:
        memory = _copy(f"memory of {name!r}", entry["memory"], tensor, (plan.codec.memory,))
    return Loaded(tensor, residual, velocity, memory, entry["stepped"])


def _copy(what: str, value: Any, tensor: Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    if not isinstance(value, torch.Tensor) or value.dtype != torch.float32 or tuple(value.shape) != shape:
        got = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, torch.Tensor) else repr(value)
        raise ValueError(f"{what} must be a float32 tensor of shape {shape}, got {got}")
    if not torch.isfinite(value).all():
        raise ValueError(f"{what} must be finite")
    copy = torch.empty(value.numel(), dtype=torch.float32, device=tensor.parameter.device)
    return copy.copy_(value.detach().reshape(-1))


def _exactly(what: str, mapping: Any, keys: Sequence[str]) -> None:
    if not isinstance(mapping, Mapping):
        raise ValueError(f"{what} must be a dict, got {type(mapping).__name__}")
    missing = [key for key in keys if key not in mapping]
    unknown = sorted(str(key) for key in mapping.keys() - set(keys))
    if missing or unknown:
        raise ValueError(f"{what}: missing {_shown(missing)}, unknown {_shown(unknown)}")


def _shown(names: list[str]) -> str:
    if not names:
        return "nothing"
    return ", ".join(map(repr, names[:NAMES_SHOWN])) + (", ..." if len(names) > NAMES_SHOWN else "")
