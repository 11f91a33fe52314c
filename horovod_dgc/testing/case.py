"""A method and what it is held against; a worker's step; and how a part of the battery says what does not hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from horovod_dgc import _core
from horovod_dgc.methods.base import ByteArray, FloatArray, Method, Outputs, State, clip_factor, clip_limit
from horovod_dgc.simulation import opened

F = np.float32
Reals = npt.NDArray[Any]

# Of the workers, for a method that takes momentum over from the optimizer.
MOMENTUM = 0.9
COMPRESSED = ((1, 1), (1, 7), (7, 1), (3, 2, 2, 2), (40, 30))
EXEMPT = ((), (1,), (37,))
EMPTY = ((0,), (0, 3), (3, 0))
OUTPUTS: tuple[Outputs, ...] = ("first", "last")


@dataclass
class Look:
    """What a formula is given of one worker's step. Arrays are float32, of shape (numel,) unless said otherwise.

    Attributes:
        v: what was accumulated: the residual, if the method keeps one, plus ``g``.
        g: this step's part of it: the gradient, or, with momentum correction, the velocity.
        shape: of the tensor.
        seen: what the method sent, for a formula that cannot know it, as where coordinates are drawn at random.
        opened: float32, one dimension: what the opening round came to; None without one.
        memory: float32, one dimension: what the codec kept from the step before; None if that is nothing. A formula
            of second moments puts there what the codec must keep now.
    """

    v: FloatArray
    g: FloatArray
    shape: tuple[int, ...]
    seen: FloatArray
    opened: FloatArray | None
    memory: FloatArray | None


# What is to be sent, 0 where nothing is. Of a method that draws: what was seen, if that is among what can be drawn.
Formula = Callable[[Look], Reals]


@dataclass(frozen=True)
class Case:
    """A method, and what it is held against. What is None is not compared; all the rest of the battery is the same.

    Attributes:
        method: with settings that suit a tensor of ``shape``.
        formula: what one worker sends, transcribed in NumPy from where the method was published.
        nbytes: of a payload, counted by hand.
        opening_nbytes: that a worker hands over in the opening round, counted by hand.
        bias_nbytes: of the payload of a bias of 300 elements, counted by hand.
        keeps: what a worker keeps, some of "residual", "velocity" (momentum correction) and "masking" (of the velocity,
            where something was sent).
        neighbours: of an unbiased method: from float32 values the two values (low, high) that each can become, whose
            mean over many steps then has to be the value.
        draws: "own" for random numbers that each worker draws on its own, "shared" for such as all draw alike,
            "nothing" for none. With None it is found out whether the seed is used, but not which of these it is.
        tolerance: of ``formula``, relative to the largest of ``v``.
        shape: of the tensor, two dimensions or more.
        size: standard deviation of the gradients, of which a threshold has to be a fitting multiple.
    """

    method: Method
    formula: Formula | None = None
    nbytes: int | None = None
    opening_nbytes: int | None = None
    bias_nbytes: int | None = None
    keeps: Collection[str] | None = None
    neighbours: Callable[[FloatArray], tuple[Reals, Reals]] | None = None
    draws: Literal["own", "shared", "nothing"] | None = None
    tolerance: float = 0.0
    shape: tuple[int, ...] = (20, 30)
    size: float = 1.0

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def momentum(self) -> float:
        return MOMENTUM if self.method.corrects_momentum else 0.0

    def gradients(self, count: int, seed: int) -> FloatArray:
        """float32, shape (count, numel): normal, of coordinates of unequal size."""
        rng = np.random.default_rng(seed)
        spread = rng.lognormal(0, 0.5, self.numel)
        return (self.size * spread * rng.standard_normal((count, self.numel))).astype(F)


class Sent(NamedTuple):
    """A worker's exchange with itself: payload, float32 values that it decodes to, and what was opened."""

    payload: ByteArray
    values: FloatArray
    opened: FloatArray | None


def send(
    method: Method,
    state: State,
    grad: FloatArray,
    *,
    rank: int = 0,
    opening: FloatArray | None = None,
    **arithmetic: Any,
) -> Sent:
    """One exchange of a worker with itself, which updates ``state``.

    Args:
        opening: what the opening round came to, for a worker among others; None for what it comes to for this one.
        arithmetic: as for :meth:`Method.encode`.
    """
    step = state.step
    if opening is None:
        own = method.open(grad, state, rank=rank, **arithmetic)
        opening = opened(method.plan(state.shape, step, state.outputs), [own])[0]
    payload = method.encode(grad, state, rank=rank, opened=opening, **arithmetic)
    place: dict[str, Any] = {"step": step, "shape": state.shape, "outputs": state.outputs, "opened": opening}
    return Sent(payload, method.decode(payload[None], np.zeros(grad.size, F), state=state, **place), opening)


def encoded(
    method: Method, grads: FloatArray, states: Sequence[State], **arithmetic: Any
) -> tuple[list[ByteArray], list[FloatArray | None]]:
    """Payload of each worker, and what the opening round came to for it."""
    plan = method.plan(states[0].shape, states[0].step, states[0].outputs)
    ranks = list(enumerate(zip(grads, states)))
    arithmetic["workers"] = len(ranks)
    known = opened(plan, [method.open(g, s, rank=rank, **arithmetic) for rank, (g, s) in ranks])
    return [method.encode(g, s, rank=r, opened=known[r], **arithmetic) for r, (g, s) in ranks], known


def clipping(method: Method, grad: FloatArray, workers: int = 1) -> float:
    """Factor of the local clipping of one of so many workers."""
    if method.clip_norm is None:
        return 1.0
    return clip_factor(math.sqrt(_core.sum_squares(grad)), clip_limit(method.clip_norm, workers))


def same_state(a: State, b: State) -> bool:
    arrays = ((a.residual, b.residual), (a.velocity, b.velocity), (a.memory, b.memory))
    return a.step == b.step and all(
        (x is None) is (y is None) and (x is None or y is None or x.tobytes() == y.tobytes()) for x, y in arrays
    )


def hold(condition: object, what: str) -> None:
    if not condition:
        raise AssertionError(what)


def close(what: str, found: Reals, expected: Reals, tolerance: Any = 0.0) -> None:
    """Raise AssertionError unless ``found`` is within ``tolerance`` (one number, or one for each) of ``expected``."""
    away = np.abs(np.subtract(found, expected, dtype=float))
    # Not "any is beyond": NaN is neither.
    outside = ~(away <= tolerance)
    if outside.any():
        at = int(np.argmax(outside))
        raise AssertionError(
            f"{what} must be as expected: {np.count_nonzero(outside)} of {outside.size} are not, the first at "
            f"coordinate {at}: {found[at]:g} instead of {expected[at]:g}"
        )


def refused(call: Callable[[], object], what: str) -> None:
    try:
        call()
    except ValueError:
        return
    raise AssertionError(f"{what} must be refused with a ValueError")
