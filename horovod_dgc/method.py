"""What a compression method is: configuration, and a plan for each tensor and step.

An adapter never asks which method it holds. It asks the method for a :class:`Plan` and follows it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

from horovod_dgc import _checks, _core

FloatArray = npt.NDArray[np.float32]
ByteArray = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Plan:
    """How one tensor travels in one step, the same on every rank.

    Attributes:
        layout: payload of the sent coordinates; its ``nbytes`` depends on nothing but this plan.
        summable: dtype in which payloads can be summed by an allreduce as they are, or None.
        momentum: where momentum is applied: "local" to this worker's gradient before selection (momentum
            correction), "aggregated" to the reduced gradient, or None where the optimizer keeps it.
        masking: clear the velocity of sent coordinates (momentum factor masking).
        sample_ratio: share of the elements that the threshold is estimated from.
    """

    layout: _core.Layout
    summable: np.dtype[Any] | None
    momentum: Literal["local", "aggregated"] | None
    masking: bool
    sample_ratio: float

    @property
    def numel(self) -> int:
        return self.layout.n

    @property
    def sent(self) -> int:
        """Number of coordinates in each payload."""
        return self.layout.k

    @property
    def payload_nbytes(self) -> int:
        return self.layout.nbytes

    @property
    def every_coordinate(self) -> bool:
        return self.sent == self.numel

    def whole(self) -> Plan:
        """The same tensor with everything sent as it is: what a lone worker does, which has nobody to send to."""
        layout = _core.Layout(self.numel, self.numel, self.layout.indices, _core.ValueCoder("float32"))
        return replace(self, layout=layout, summable=np.dtype(np.float32))


@dataclass
class State:
    """One tensor's training state on one worker.

    Attributes:
        residual: float32, shape (numel,): accumulated gradient that has not been sent.
        velocity: float32, shape (numel,): momentum of this worker's gradient; None without momentum correction.
        step: number of exchanges done, which the density schedule reads.
    """

    residual: FloatArray
    velocity: FloatArray | None
    step: int = field(default=0)


class Method(ABC):
    """A compression method: immutable configuration (a frozen dataclass) plus the arithmetic of its payload.

    Usable on NumPy arrays alone through :meth:`init`, :meth:`encode` and :meth:`decode`.
    """

    clip_norm: float | None
    clip_scope: str

    @property
    @abstractmethod
    def corrects_momentum(self) -> bool:
        """Whether momentum belongs to the method, so that the optimizer must apply none."""

    @abstractmethod
    def plan(self, shape: Sequence[int], step: int | None = None) -> Plan:
        """How a tensor of this shape travels in exchange number ``step`` (None: after any warm-up)."""

    def stages(self) -> tuple[int, ...] | None:
        """Numbers of the exchanges at which plans change, ascending from 0.

        None if that cannot be told beforehand: then the method works only where it can be asked at every step.
        """
        return (0,)

    def configuration(self) -> str:
        """The method and its settings in one line that is the same in every process."""
        settings = (f"{f.name}={_stable(getattr(self, f.name))}" for f in fields(cast(Any, self)))
        return f"{type(self).__name__}({', '.join(settings)})"

    def payload_nbytes(self, numel: int, step: int | None = None) -> int:
        """Bytes that a worker sends for a sparsified tensor of ``numel`` elements in exchange ``step``."""
        return self._flat_plan(numel, step).payload_nbytes

    def init(self, numel: int) -> State:
        """State of a sparsified tensor of ``numel`` elements (>= 0) before its first exchange: all zeros."""
        _checks.whole_number("numel", numel, 0)
        velocity = np.zeros(numel, np.float32) if self.corrects_momentum else None
        return State(np.zeros(numel, np.float32), velocity)

    def encode(
        self,
        grad: npt.NDArray[Any],
        state: State,
        *,
        momentum: float = 0.0,
        dampening: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        weights: npt.NDArray[Any] | None = None,
        unscale: float = 1.0,
        workers: int = 1,
        zero_grad: bool = False,
        threads: int = 1,
    ) -> ByteArray:
        """Accumulate one gradient into ``state`` and return the payload to send.

        Args:
            grad: shape (numel,), float32 or float16 (or uint16 holding bfloat16 bits), C-contiguous.
            state: from :meth:`init`; updated in place, left untouched if ``grad`` holds NaN or Inf.
            momentum, dampening, nesterov: as in ``torch.optim.SGD``; momentum in [0, 1).
            weight_decay: added as ``weight_decay * weights`` before momentum.
            weights: like ``grad``; needed if ``weight_decay`` is not zero.
            unscale: factor that the gradient is multiplied by first (the inverse of a loss scale).
            workers: number of workers N; local clipping uses ``clip_norm / sqrt(N)``.
            zero_grad: also leave ``grad`` zeroed.
            threads: processor threads for large tensors; the result does not depend on it.

        Returns:
            uint8, shape (payload_nbytes(numel, state.step),). A gradient with NaN or Inf gives a payload
            that decodes to NaN, so that every worker sees it.

        Raises:
            ValueError: shapes or dtypes that do not fit, or an option out of range.
        """
        if momentum and not self.corrects_momentum:
            raise ValueError(
                f"momentum must be 0 for a method without momentum correction, got {momentum!r}: "
                "apply it to the decoded gradient"
            )
        if self.clip_norm is not None:
            norm = math.sqrt(_core.sum_squares(grad, threads=threads)) * unscale
            unscale *= clip_factor(norm, self.clip_norm, workers)
        first = state.step == 0
        update = _core.Update(
            unscale=unscale,
            weight_decay=weight_decay,
            momentum=momentum,
            dampening=0.0 if first else dampening,
            nesterov=nesterov,
        )
        plan = self._flat_plan(state.residual.size, state.step)
        proposal = _core.encode(
            plan.layout,
            update,
            grad,
            state.residual,
            state.velocity,
            weights,
            mask_velocity=plan.masking,
            zero_grad=zero_grad,
            sample_ratio=plan.sample_ratio,
            threads=threads,
        )
        if proposal.finite:
            state.step += 1
        return proposal.payload

    def decode(
        self,
        payloads: ByteArray,
        out: FloatArray,
        *,
        scale: float = 1.0,
        step: int | None = None,
        threads: int = 1,
    ) -> FloatArray:
        """Add ``scale`` times each of N workers' payloads to ``out`` and return it.

        Args:
            payloads: uint8, shape (N, payload_nbytes(numel, step)) or (payload_nbytes(numel, step),).
            out: float32, shape (numel,), C-contiguous; changed in place.
            step: the exchange whose density the payloads have; None for the density after any warm-up.

        Raises:
            ValueError: payloads of another length, or malformed bytes; ``out`` is then unchanged.
        """
        layout = self._flat_plan(out.size, step).layout
        payloads = np.asarray(payloads)
        if payloads.ndim not in (1, 2) or payloads.shape[-1] != layout.nbytes:
            raise ValueError(
                f"payloads must have shape (N, {layout.nbytes}) for {layout.k} of {layout.n} coordinates, "
                f"got {payloads.shape}"
            )
        layout.decode_add(payloads, out, scale=scale, threads=threads)
        return out

    def _flat_plan(self, numel: int, step: int | None) -> Plan:
        # Two dimensions: a flat array given to the NumPy interface stands for a tensor to be sparsified.
        return self.plan((1, numel), step)


def checked(method: object) -> Method:
    """Return ``method``; raise ValueError unless it is one."""
    if not isinstance(method, Method):
        raise ValueError(f"method must be a horovod_dgc method such as DGC(density=0.001), got {method!r}")
    return method


def clip_factor(norm: float, clip_norm: float, workers: int) -> float:
    """Factor in (0, 1] that brings a local gradient norm under ``clip_norm / sqrt(workers)``.

    N independent gradients' norms add in quadrature, hence N**-0.5 (Lin et al., ICLR 2018, section 3.2,
    equation 8). A norm that is not finite gives 1: the proposal reports it.
    """
    limit = clip_norm / math.sqrt(workers)
    return limit / norm if math.isfinite(norm) and norm > limit else 1.0


def _stable(value: object) -> str:
    """Like repr(), but a function's address, which differs between processes, gives way to its name."""
    name = getattr(value, "__qualname__", None)
    return f"{getattr(value, '__module__', '')}.{name}" if callable(value) and name else repr(value)
