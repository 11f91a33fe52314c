"""One parameter's compression state, in the framework's own storage."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch

from horovod_dgc import sync
from horovod_dgc.hierarchy import Part
from horovod_dgc.methods.base import Plan
from horovod_dgc.stats import TensorStats
from horovod_dgc.torch.backends import Backend
from horovod_dgc.torch.takeover import Takeover


class Tensor:
    """A parameter with its residual, velocity and codec's memory (float32, flat, on its device) and its counts.

    The state is made at the first exchange. A method that keeps no residual is given one that takes no memory: a
    single zero, seen from every coordinate, of which the arithmetic knows nothing.

    Attributes:
        number: of the parameter in the model, the same on all ranks, for random numbers.
        part: what this rank keeps the state of, where a node's ranks share the parameter among them; else None.
        shape: of the parameter, or of the part.
    """

    def __init__(
        self, number: int, name: str, parameter: torch.nn.Parameter, backend: Backend, part: Part | None = None
    ) -> None:
        self.number = number
        self.name = name
        self.parameter = parameter
        self.backend = backend
        self.part = part
        self.shape: tuple[int, ...] = tuple(parameter.shape) if part is None else part.shape
        self.stats = TensorStats()
        self.residual: torch.Tensor | None = None
        self.velocity: torch.Tensor | None = None
        self.memory: torch.Tensor | None = None
        self.residual_view: Any = None
        self.velocity_view: Any = None
        self.memory_view: Any = None
        self.stepped = False

    def prepare(self, plan: Plan, takeover: Takeover, workers_added_up: float) -> None:
        """Make the state; the velocity goes on from where the optimizer's momentum buffer stands.

        Args:
            plan: of the tensor, in any step.
            workers_added_up: number of workers whose velocities the reduction adds up, each of which gets its share
                of the buffer; 1 where it takes their mean, or where momentum follows the reduction.
        """
        velocity = self._zeros(plan.numel) if takeover.momentum else None
        self.replace(self._zeros(plan.numel) if plan.residual else None, velocity, None, False)
        self.settle(plan)
        if self.velocity is not None:
            buffer = takeover.momentum_buffer(self.parameter)
            if buffer is not None:
                self.velocity.copy_(self._own(buffer.reshape(-1)) / workers_added_up)
                self.stepped = True

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds: the parameter's shape, plain values, and the live residual and velocity."""
        shape = self.shape
        return {
            "shape": list(self.parameter.shape),
            "stepped": self.stepped,
            "residual": None if self.residual is None else self.residual.view(shape),
            "velocity": None if self.velocity is None else self.velocity.view(shape),
            "memory": self.memory,
        }

    def replace(
        self,
        residual: torch.Tensor | None,
        velocity: torch.Tensor | None,
        memory: torch.Tensor | None,
        stepped: bool,
    ) -> None:
        """Go on from this state (float32, flat, on the parameter's device); None: as before the first exchange."""
        self.residual, self.velocity, self.memory, self.stepped = residual, velocity, memory, stepped
        self.residual_view = None if residual is None else self.backend.view(residual)
        self.velocity_view = None if velocity is None else self.backend.view(velocity)
        self.memory_view = None if memory is None else self.backend.view(memory)

    def settle(self, plan: Plan) -> None:
        """Fit the state to what the plan needs: no residual where none is kept, and the codec's memory.

        A residual that has been loaded and waits to be sent stays all the same.
        """
        if not plan.residual and (self.residual is None or not self.residual.any()):
            self.residual = torch.zeros(1, device=self.parameter.device).expand(plan.numel)
            self.residual_view = None
        if plan.codec.memory and self.memory is None:
            self.memory = self._zeros(plan.codec.memory)
            self.memory_view = self.backend.view(self.memory)

    def weights_view(self) -> Any:
        """The values of the parameter, or of the part, flat, as the backend reads them."""
        return self.backend.view(self._own(flatten(self.parameter)))

    def measured(self) -> TensorStats:
        """The counts with the residual's norm as it stands."""
        if self.residual_view is not None:
            self.stats.residual_norm = math.sqrt(self.backend.sum_squares([self.residual_view])[0])
        return dataclasses.replace(self.stats)

    def _own(self, flat: torch.Tensor) -> torch.Tensor:
        return flat if self.part is None else flat[self.part.start : self.part.stop]

    def _zeros(self, numel: int) -> torch.Tensor:
        return torch.zeros(numel, dtype=torch.float32, device=self.parameter.device)


def flatten(tensor: torch.Tensor) -> torch.Tensor:
    """The elements in row-major order in a dtype that the backends read: a view where that is possible."""
    flat = tensor.detach().contiguous().view(-1)
    return flat.float() if flat.dtype == torch.float64 else flat


def digest(tensor: torch.Tensor) -> bytes:
    """Digest of the elements in row-major order, whatever their dtype and device."""
    flat = tensor.detach().contiguous().view(-1).cpu()
    return sync.digest(flat.view(torch.uint8).numpy().data)
