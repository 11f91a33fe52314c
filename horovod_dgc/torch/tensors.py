"""One parameter's compression state, in the framework's own storage."""

from __future__ import annotations

import dataclasses
import math
import weakref
from typing import Any

import torch

from horovod_dgc import sync
from horovod_dgc.hierarchy import Part
from horovod_dgc.methods.base import Plan
from horovod_dgc.stats import TensorStats
from horovod_dgc.torch.backends import Backend
from horovod_dgc.torch.takeover import Takeover


@dataclasses.dataclass
class Back:
    """A gradient that has come back; see :meth:`Tensor.came_back`. ``version``: how often it had been changed by then,
    or, once it has been ``applied``, by the end of that."""

    gradient: weakref.ref[torch.Tensor]
    version: int
    due: bool
    faithful: bool
    applied: bool = False


class Tensor:
    """A parameter with its residual, velocity and codec's memory (float32, flat, on its device) and its counts.

    The state is made at the first exchange. A method that keeps no residual is given one that takes no memory: a
    single zero, seen from every coordinate, of which the arithmetic knows nothing.

    Attributes:
        number: of the parameter in the model, the same on all ranks, for random numbers.
        part: what this rank keeps the state of, where a node's ranks share the parameter among them; else None.
        shape: of the parameter, or of the part.
        wire_name: what Horovod calls the parameter, and so what its collectives are called after.
        share: what the reduction multiplies the mean of the workers' velocities by.
        common: whether the velocity is the same on all ranks.
    """

    def __init__(
        self, number: int, name: str, parameter: torch.nn.Parameter, backend: Backend, part: Part | None = None
    ) -> None:
        self.number = number
        self.name = self.wire_name = name
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
        self.share = 1.0
        self.common = True
        self._back: Back | None = None

    def prepare(self, plan: Plan, takeover: Takeover, workers_added_up: float) -> None:
        """Make the state if there is none; the velocity goes on from where the optimizer's momentum buffer stands.

        That may be one that a checkpoint has brought at any time.

        Args:
            plan: of the tensor, in any step.
            workers_added_up: number of workers whose velocities the reduction adds up, each of which gets its share
                of the buffer; 1 where it takes their mean, or where momentum follows the reduction.
        """
        if self.residual is None:
            velocity = self._zeros(plan.numel) if takeover.momentum else None
            self.replace(self._zeros(plan.numel) if plan.residual else None, velocity, None, False)
            self.settle(plan)
            self.common = True
        self.share = workers_added_up
        buffer = takeover.momentum_buffer(self.parameter)
        if buffer is not None and self.velocity is not None:
            self.velocity.copy_(self._own(buffer.reshape(-1)) / workers_added_up)
            self.stepped = self.common = True

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
        """Go on from this state (float32, flat, on the parameter's device); None: as before the first exchange.

        Whether the velocity is :attr:`common` is then for others to find out.
        """
        self.common = velocity is None
        self.residual, self.velocity, self.memory, self.stepped = residual, velocity, memory, stepped
        self.residual_view = None if residual is None else self.backend.view(residual)
        self.velocity_view = None if velocity is None else self.backend.view(velocity)
        self.memory_view = None if memory is None else self.backend.view(memory)

    def settle(self, plan: Plan) -> None:
        """Fit the state to what the plan needs: no residual where none is kept, and the codec's memory.

        A residual that has been loaded and waits to be sent stays all the same.
        """
        if not plan.residual and (self.residual is None or not self.residual.any()):
            self.residual = self._zeros(1).expand(plan.numel)
            self.residual_view = None
        if plan.codec.memory and self.memory is None:
            self.memory = self._zeros(plan.codec.memory)
            self.memory_view = self.backend.view(self.memory)

    def came_back(self, *, due: bool, faithful: bool) -> None:
        """A gradient has come back, and Horovod is about to hand it over.

        Args:
            due: it is the mean itself, and momentum and weight decay are still to be applied to it.
            faithful: there is nothing else in it.
        """
        gradient = self.parameter.grad
        if gradient is not None:
            # By set_(), which counts as one change; with sparse gradients by several.
            self._back = Back(weakref.ref(gradient), gradient._version + 1, due, faithful or gradient.is_sparse)

    def forget_gradient(self) -> None:
        """What has come back is not to be applied."""
        self._back = None

    def applied(self) -> None:
        """The optimizer has applied what has come back."""
        if self._back is not None:
            gradient = self._back.gradient()
            self._back.version = 0 if gradient is None else gradient._version
            self._back.applied = True

    @property
    def due(self) -> bool:
        """Whether momentum and weight decay are to be applied to the gradient that the optimizer will see."""
        back = self._back
        if back is None or not back.due or self.parameter.grad is None:
            return False
        return not back.applied or back.gradient() is self.parameter.grad

    @property
    def gradient_changed(self) -> bool:
        """Whether what has come back, holds more than the mean, and is to be applied, is not what came back any more.

        Unscaling by a GradScaler does not count as a change.
        """
        back = self._back
        if back is None or back.faithful or back.applied:
            return False
        gradient = back.gradient()
        return gradient is None or gradient is not self.parameter.grad or gradient._version > back.version

    def exchanged_before(self, gradient: torch.Tensor, passes: int) -> bool:
        """Whether this holds more than the mean, has been applied, and has only been added to since.

        Zeroing it would have been one more change.

        Args:
            passes: backward passes before an exchange.
        """
        back = self._back
        if back is None or back.faithful or not back.applied or back.gradient() is not gradient:
            return False
        return gradient._version <= back.version + passes

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
