"""What a compression method is: configuration, and a plan for each tensor and step.

An adapter never asks which method it holds. It asks the method for a :class:`Plan` and follows it.
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

from horovod_dgc import _checks, _core
from horovod_dgc.coding import VALUES, Coding, divided

Outputs = Literal["first", "last"]
FloatArray = npt.NDArray[np.float32]
ByteArray = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Plan:
    """How one tensor travels in one step, the same on every rank.

    Attributes:
        codec: what makes payloads of an accumulated gradient; its ``nbytes`` depends on nothing but this plan.
        momentum: where momentum is applied: "local" to this worker's gradient before selection (momentum
            correction), "aggregated" to the reduced gradient, or None where the optimizer keeps it.
        residual: whether what is not sent is kept and added to the next gradient (error feedback).
        masking: clear the velocity of sent coordinates (momentum factor masking).
        sample_ratio: share of the elements that a threshold is estimated from.
    """

    codec: _core.Codec
    momentum: Literal["local", "aggregated"] | None = None
    residual: bool = True
    masking: bool = False
    sample_ratio: float = 0.01

    @property
    def numel(self) -> int:
        return self.codec.n

    @property
    def sent(self) -> int:
        """Number of coordinates that each payload gives values to."""
        return self.codec.sent

    @property
    def payload_nbytes(self) -> int:
        return self.codec.nbytes

    @property
    def every_coordinate(self) -> bool:
        return self.sent == self.numel

    @property
    def casts(self) -> bool:
        """Whether every coordinate is sent in one of :data:`~horovod_dgc.coding.VALUES`, so that what comes back is the
        sum, to rounding."""
        layout = self.codec.layout
        return layout is not None and self.every_coordinate and layout.values.name in VALUES and not self.codec.votes

    @property
    def lossless(self) -> bool:
        """Whether every coordinate is sent as it is, in float32, so that what comes back is the sum itself."""
        layout = self.codec.layout
        return self.casts and layout is not None and layout.values.name == "float32"

    @property
    def summable(self) -> np.dtype[Any] | None:
        """Type of the numbers of payloads whose sum is the payload of the sum, so that an allreduce can take them.

        Not float16 where there is a residual: an allreduce adds halves up in halves, so that the sum of finite numbers
        may be infinite, and is rounded, and no worker can tell what it has lost by that. Such payloads are added up in
        float32, by those who gather them or as a dense tensor.
        """
        summable = None if self.codec.summable is None else np.dtype(self.codec.summable)
        return None if summable == np.float16 and self.residual else summable

    @property
    def opening_nbytes(self) -> int:
        """Bytes that a worker hands over to the others in the opening round; 0 without one."""
        count, reduction = self.codec.opening
        return 0 if reduction == "quantile" else count * 4

    def divided(self, parts: int) -> Plan | None:
        """The same with payloads of ``parts`` parts, each with the largest of one range of the coordinates.

        Each part holds one coordinate at least, so that many parts may hold more than :attr:`sent` together. None where
        that cannot be: it takes a residual, for what a range's worker finds no room for, a worker's own choice of
        coordinates by magnitude, and as many coordinates as parts.
        """
        layout = self.codec.layout
        if layout is None or not self.residual or self.every_coordinate or self.numel < parts:
            return None
        return replace(self, codec=divided(layout, parts))

    def whole(self) -> Plan:
        """The same tensor with everything sent as it is: what a lone worker does, which has nobody to send to."""
        return replace(self, codec=Coding("float32").codec(self.numel, self.numel))


@dataclass
class State:
    """One tensor's training state on one worker.

    Attributes:
        shape: of the tensor.
        outputs: which of its axes counts output units, see :meth:`Method.plan`.
        residual: float32, shape (numel,): accumulated gradient that has not been sent; None for a method that keeps
            nothing.
        velocity: float32, shape (numel,): momentum of this worker's gradient; None without momentum correction.
        memory: float32, one dimension: what the method's codec keeps besides; None if that is nothing.
        step: number of exchanges done, which the density schedule reads.
        method: name of the class of the method that it belongs to; None if that is not known.
    """

    shape: tuple[int, ...]
    residual: FloatArray | None
    velocity: FloatArray | None
    memory: FloatArray | None = None
    step: int = field(default=0)
    outputs: Outputs = "first"
    method: str | None = None


class Method(ABC):
    """A compression method: immutable configuration (a frozen dataclass) plus the arithmetic of its payload.

    Usable on NumPy arrays alone through :meth:`init`, :meth:`open`, :meth:`encode` and :meth:`decode`, and for all
    workers of a job in one process through :func:`horovod_dgc.exchange`.

    Tensors with at most one dimension (biases, normalisation parameters) are exempt: sent whole.

    Attributes:
        clip_norm, clip_scope: local gradient clipping, see :class:`~horovod_dgc.DGC`.
        seed: of random numbers, >= 0; what is drawn follows from it, the tensor, the step and the rank alone.
    """

    clip_norm: float | None = None
    clip_scope: str = "global"
    seed: int = 0

    @property
    def corrects_momentum(self) -> bool:
        """Whether momentum belongs to the method, so that the optimizer must apply none."""
        return False

    @property
    def exempt_coding(self) -> Coding:
        """How the values of exempt tensors are coded; their rounding errors stay in a residual."""
        return Coding("float32")

    @abstractmethod
    def compressed(self, shape: tuple[int, ...], step: int | None, outputs: Outputs) -> Plan:
        """:meth:`plan` for a tensor that is not exempt."""

    def plan(self, shape: Sequence[int], step: int | None = None, outputs: Outputs = "first") -> Plan:
        """How a tensor of this shape travels in exchange number ``step`` (None: after any warm-up).

        Args:
            outputs: which axis counts a layer's output units, as the framework has it: the first (PyTorch) or the
                last (Keras).
        """
        dimensions = tuple(shape)
        numel = math.prod(dimensions)
        if len(dimensions) > 1 and numel:
            return self.compressed(dimensions, step, outputs)
        coding = self.exempt_coding
        return Plan(
            codec=coding.codec(numel, numel),
            momentum="aggregated" if self.corrects_momentum else None,
            residual=coding.values != "float32",
        )

    def stages(self) -> tuple[int, ...] | None:
        """Numbers of the exchanges at which plans change, ascending from 0.

        None if that cannot be told beforehand: then the method works only where it can be asked at every step.
        """
        return (0,)

    def configuration(self) -> str:
        """The method and its settings in one line that is the same in every process."""
        settings = (f"{f.name}={_stable(getattr(self, f.name))}" for f in fields(cast(Any, self)))
        return f"{type(self).__name__}({', '.join(settings)})"

    def randomness(self, tensor: int, step: int, rank: int) -> _core.Randomness:
        """What the random numbers of one tensor (by its number in the model) in one exchange follow from."""
        return _core.Randomness(self.seed, tensor, step, rank)

    def compress(self, tensor: object) -> tuple[object, object]:
        """Raise: Horovod calls this where it has been given a method instead of a ``Compression``.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            f"compression must be a Compression made with the method, such as Compression({type(self).__name__}(), "
            f"optimizer, model), got the method itself, {self!r}"
        )

    def payload_nbytes(self, shape: int | Sequence[int], step: int | None = None) -> int:
        """Bytes that a worker sends for a tensor in exchange ``step``, besides those of an opening round.

        Args:
            shape: of the tensor, or the number of elements of one to be compressed.
        """
        return self.plan(_shape(shape), step).payload_nbytes

    def init(self, shape: int | Sequence[int], outputs: Outputs = "first") -> State:
        """State of a tensor before its first exchange: all zeros.

        Args:
            shape: of the tensor, or the number of elements (>= 0) of one to be compressed.
            outputs: which axis counts output units, see :meth:`plan`.
        """
        dimensions = _shape(shape)
        plan = self.plan(dimensions, 0, outputs)
        return State(
            shape=dimensions,
            outputs=outputs,
            method=type(self).__name__,
            residual=np.zeros(plan.numel, np.float32) if plan.residual else None,
            velocity=np.zeros(plan.numel, np.float32) if plan.momentum == "local" else None,
            memory=np.zeros(plan.codec.memory, np.float32) if plan.codec.memory else None,
        )

    def open(
        self,
        grad: npt.NDArray[Any],
        state: State,
        *,
        tensor: int = 0,
        rank: int = 0,
        threads: int = 1,
        **arithmetic: Any,
    ) -> FloatArray | None:
        """This worker's part of the opening round; None for a method without one.

        What :func:`~horovod_dgc.simulation.opened` makes of all workers' (or tensors') parts goes to :meth:`encode`
        and :meth:`decode`. Arguments as for :meth:`encode`; changes nothing.
        """
        plan = self.plan(state.shape, state.step, state.outputs)
        # What encode() takes besides plays no part here.
        weights = arithmetic.pop("weights", None)
        for name in ("zero_grad", "squares", "opened"):
            arithmetic.pop(name, None)
        update = self._update(grad, state, threads=threads, **arithmetic)
        if not plan.codec.opening[0]:
            return None
        _, opening = _core.open(
            plan.codec,
            update,
            grad,
            state.residual,
            state.velocity,
            weights,
            randomness=self.randomness(tensor, state.step, rank),
            memory=state.memory,
            threads=threads,
        )
        return opening

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
        tensor: int = 0,
        rank: int = 0,
        opened: FloatArray | None = None,
        squares: FloatArray | None = None,
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
            workers: number of workers N >= 1; local clipping uses ``clip_norm * sqrt(N)``.
            zero_grad: also leave ``grad`` zeroed.
            tensor, rank: numbers of the tensor in the model and of this worker, for random numbers.
            opened: float32: what the opening round came to, for a method that has one.
            squares: float32, shape (numel,): second moments of this step's gradient, for a method that uses them;
                None for the gradient's own squares.
            threads: processor threads for large tensors; the result does not depend on it.

        Returns:
            uint8, shape (payload_nbytes(shape, state.step),). A gradient with NaN or Inf gives a payload
            that decodes to NaN, so that every worker sees it.

        Raises:
            ValueError: shapes or dtypes that do not fit, a state of another method, or an option out of range.
        """
        update = self._update(
            grad,
            state,
            momentum=momentum,
            dampening=dampening,
            nesterov=nesterov,
            weight_decay=weight_decay,
            unscale=unscale,
            workers=workers,
            threads=threads,
        )
        plan = self.plan(state.shape, state.step, state.outputs)
        proposal = _core.encode(
            plan.codec,
            update,
            grad,
            state.residual,
            state.velocity,
            weights,
            randomness=self.randomness(tensor, state.step, rank),
            opened=opened,
            memory=state.memory,
            squares=squares,
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
        shape: Sequence[int] | None = None,
        outputs: Outputs = "first",
        tensor: int = 0,
        opened: FloatArray | None = None,
        state: State | None = None,
        threads: int = 1,
    ) -> FloatArray:
        """Add ``scale`` times the sum of N workers' payloads (times its sign, by majority vote) to ``out``; return it.

        Args:
            payloads: uint8, shape (N, payload_nbytes(shape, step)) or (payload_nbytes(shape, step),).
            out: float32, shape (numel,), C-contiguous; changed in place.
            step: the exchange that the payloads come from; None for one after any warm-up.
            shape, outputs: of the tensor, as for :meth:`init`; without a shape a flat one to be compressed.
            tensor, opened: as for :meth:`encode`.
            state: this worker's, for a method that learns from what came back; changed in place.

        Raises:
            ValueError: payloads of another length, or malformed bytes; ``out`` is then unchanged.
        """
        _checks.in_range("scale", scale, -math.inf, math.inf, low_open=True, high_open=True)
        plan = self.plan(_shape(out.size if shape is None else shape), step, outputs)
        payloads = np.asarray(payloads)
        if payloads.ndim not in (1, 2) or payloads.shape[-1] != plan.payload_nbytes:
            raise ValueError(
                f"payloads must have shape (N, {plan.payload_nbytes}) for {plan.sent} of {plan.numel} coordinates, "
                f"got {payloads.shape}"
            )
        shared: dict[str, Any] = {"randomness": self.randomness(tensor, step or 0, 0), "opened": opened}
        if plan.codec.votes:
            plan.codec.decode_votes(payloads, out, scale, threads)
        else:
            plan.codec.decode_add(payloads, out, scale, threads, **shared)
        if state is not None and state.memory is not None:
            plan.codec.absorb(payloads, state.memory)
        return out

    def _update(
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
        threads: int = 1,
    ) -> _core.Update:
        _checks.whole_number("workers", workers, 1)
        if not isinstance(state, State):
            raise ValueError(f"state must be one that {type(self).__name__}.init() has made, got {state!r}")
        if state.method not in (None, type(self).__name__):
            raise ValueError(
                f"state must be one that {type(self).__name__}.init() has made, got one of {state.method}: they do not "
                "keep the same"
            )
        if momentum and state.velocity is None:
            raise ValueError(
                f"momentum must be 0 for a method without momentum correction, got {momentum!r}: "
                "apply it to the decoded gradient"
            )
        if self.clip_norm is not None:
            norm = math.sqrt(_core.sum_squares(grad, threads=threads)) * unscale
            unscale *= clip_factor(norm, clip_limit(self.clip_norm, workers))
        return _core.Update(
            unscale=unscale,
            weight_decay=weight_decay,
            momentum=momentum,
            dampening=0.0 if state.step == 0 else dampening,
            nesterov=nesterov,
        )


def _shape(given: int | Sequence[int]) -> tuple[int, ...]:
    if isinstance(given, Iterable):
        return _checks.shape("shape", given)
    # Two dimensions: a flat array given to the NumPy interface stands for a tensor to be compressed.
    return (1, _checks.whole_number("numel", given, 0))


def checked(method: object) -> Method:
    """Return ``method``; raise ValueError unless it is one."""
    if isinstance(method, type) and issubclass(method, Method):
        raise ValueError(f"method must be a method and not its class: write {method.__name__}(), got {method!r}")
    if not isinstance(method, Method):
        raise ValueError(f"method must be a horovod_dgc method such as DGC(density=0.001), got {method!r}")
    return method


def checked_class(kind: object) -> type[Method]:
    """Return ``kind``; raise ValueError unless it is a class of methods that can be told apart by their settings."""
    name = getattr(kind, "__name__", repr(kind))
    if not isinstance(kind, type) or not issubclass(kind, Method):
        raise ValueError(f"a method must be a class derived from horovod_dgc.Method, got {kind!r}")
    if inspect.isabstract(kind):
        raise ValueError(f"{name} must define {', '.join(sorted(kind.__abstractmethods__))}")
    # Of its own: settings that a class adds are fields only if it is decorated as well.
    if "__dataclass_fields__" not in vars(kind) or not kind.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise ValueError(f"{name} must be decorated with @dataclass(frozen=True)")
    for setting in fields(kind):  # type: ignore[arg-type]
        if setting.init and setting.default is MISSING and setting.default_factory is MISSING:
            raise ValueError(f"{setting.name} of {name} must have a default, so that the name alone makes a method")
    return kind


def clip_limit(clip_norm: float, workers: int, reduced: float = 1.0) -> float:
    """Norm at which a worker clips its gradient, so that what the reduction makes of all is about ``clip_norm`` long.

    The mean of N independent gradients is 1 / sqrt(N) times as long as each of them. The N**-0.5 of Lin et al., ICLR
    2018, section 3.2, equation 8, is the same rule for gradients that are added up after the clipping, as theirs are.

    Args:
        reduced: what the reduction makes of the mean: 1 for an average, N for a sum.
    """
    return clip_norm * math.sqrt(workers) / reduced


def clip_factor(norm: float, limit: float) -> float:
    """Factor in (0, 1] that brings a norm under a limit; 1 for a norm that is not finite, which the proposal shows."""
    return limit / norm if math.isfinite(norm) and norm > limit else 1.0


def _stable(value: object) -> str:
    """Like repr(), but a function's address, which differs between processes, gives way to its name."""
    name = getattr(value, "__qualname__", None)
    return f"{getattr(value, '__module__', '')}.{name}" if callable(value) and name else repr(value)
