"""The battery that every method must pass, for the methods of this package and for one of your own::

    from horovod_dgc.testing import check_method

    def test_sparse_signs() -> None:
        check_method(SparseSigns(), formula=what_it_sends, nbytes=12)

It needs NumPy only, takes a fraction of a second, and draws the same numbers every time. What fails is an
AssertionError that names the method, the part of the battery and what was found.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
import pickle
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from horovod_dgc import _core, registry
from horovod_dgc.methods.base import (
    ByteArray,
    FloatArray,
    Method,
    Outputs,
    Plan,
    State,
    checked,
    checked_class,
    clip_factor,
    clip_limit,
)
from horovod_dgc.simulation import exchange, opened

__all__ = ["PARTS", "Case", "Formula", "Look", "Sent", "check_method", "conserved", "send"]

F = np.float32
Reals = npt.NDArray[Any]

# Of the workers, for a method that takes momentum over from the optimizer.
MOMENTUM = 0.9
COMPRESSED = ((1, 1), (1, 7), (7, 1), (3, 2, 2, 2), (40, 30))
EXEMPT = ((), (1,), (37,))
EMPTY = ((0,), (0, 3), (3, 0))
# Of bias_nbytes.
BIAS = (300,)


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


def check_method(method: Method, **held_against: Any) -> None:
    """Put ``method`` through the battery, all of :data:`PARTS`, in their order.

    Args:
        method: an instance, of a class that may be registered or not.
        held_against: what is known of it, as :class:`Case` has it: ``formula``, ``nbytes`` and so on.

    Raises:
        AssertionError: what the method does not do as it must; of the first part that fails.
        ValueError: no method.
    """
    case = Case(checked(method), **held_against)
    for name, part in PARTS.items():
        try:
            part(case)
        except Exception as error:
            what = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
            raise AssertionError(f"{method!r} fails in {name!r}: {what.strip()}") from error


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


def check_settings(case: Case) -> None:
    """Methods are told apart by their settings alone: equality, hash, copies, repr, and the words for each."""
    method = case.method
    try:
        checked_class(type(method))
    except ValueError as error:
        raise AssertionError(str(error)) from error
    known = [field for field in dataclasses.fields(cast(Any, method)) if field.init]
    same = dataclasses.replace(cast(Any, method))
    copies = {"a method of the same settings": same, "a deep copy": copy.deepcopy(method)}
    if _importable(type(method)):
        copies["a pickled copy"] = pickle.loads(pickle.dumps(method))
    for what, other in copies.items():
        _hold(other == method and hash(other) == hash(method), f"{what} must be equal, with the same hash")
        _hold(other.configuration() == method.configuration(), f"{what} must have the same configuration()")
    for field in known:
        _hold(f"{field.name}=" in repr(method), f"repr() must tell {field.name}, got {method!r}")
        other = _changed(method, field.name)
        if other is not None:
            what = f"{getattr(other, field.name)!r} instead of {getattr(method, field.name)!r} as {field.name}"
            _hold(other != method, f"a method with {what} must not be equal")
            _hold(other.configuration() != method.configuration(), f"configuration() must tell {what}")
    plain = all(isinstance(getattr(method, field.name), (str, int, float, type(None))) for field in known)
    if registry.name_of(method) is not None and plain:
        text = registry.text(method)
        _hold(registry.parse(text) == method, f"{text!r} must parse to the method")


def check_plans(case: Case) -> None:
    """A plan follows from shape and step alone, changes only where ``stages()`` says so, and says what is kept."""
    method, again = case.method, dataclasses.replace(cast(Any, case.method))
    stages = method.stages()
    ascend = stages is None or (stages[:1] == (0,) and list(stages) == sorted(set(stages)))
    _hold(ascend, f"stages() must ascend from 0, got {stages}")
    steps = [None, *range(20), *(step + near for step in stages or () for near in (-1, 0, 1, 1000) if step + near >= 0)]
    for shape in (case.shape, *COMPRESSED, *EXEMPT, *EMPTY):
        for outputs in _OUTPUTS:
            plans = {step: _told(method.plan(shape, step, outputs)) for step in steps}
            for step in reversed(steps):
                same = (
                    plans[step] == _told(method.plan(shape, step, outputs)) == _told(again.plan(shape, step, outputs))
                )
                _hold(same, f"plan({shape}, {step}, {outputs!r}) must be the same whenever it is asked for")
                if stages is not None:
                    began = max((stage for stage in stages if step is not None and stage <= step), default=stages[-1])
                    what = f"plan({shape}, {step}, {outputs!r}) must be that of step {began} by stages() {stages}"
                    _hold(plans[step] == plans[began], what)
            _check_plan(method, shape, outputs)
    plan = method.plan(case.shape)
    kept = {"residual": plan.residual, "velocity": plan.momentum == "local"}
    kept["masking"] = plan.masking and kept["velocity"]
    found = {word for word, keeps in kept.items() if keeps}
    _hold(case.keeps is None or found == set(case.keeps), f"the plan must keep {case.keeps}, got {sorted(found)}")


def _check_plan(method: Method, shape: tuple[int, ...], outputs: Outputs) -> None:
    plan, numel, what = method.plan(shape, None, outputs), math.prod(shape), f"plan({shape}, None, {outputs!r})"
    _hold(plan.numel == numel, f"{what} must be for {numel} elements, got {plan.numel}")
    _hold(min(1, numel) <= plan.sent <= numel, f"{what} must send from 1 to {numel} elements, got {plan.sent}")
    _hold(numel > 0 or plan.payload_nbytes == 0, f"{what} must be empty, got {plan.payload_nbytes} bytes")
    momentum = plan.momentum is not None
    _hold(
        momentum == method.corrects_momentum, f"{what} must have a momentum if corrects_momentum, got {plan.momentum!r}"
    )
    _hold(0 < plan.sample_ratio <= 1, f"{what} must have a sample_ratio in (0, 1], got {plan.sample_ratio}")
    whole = plan.summable is None or plan.payload_nbytes % plan.summable.itemsize == 0
    _hold(whole, f"{what} must send whole numbers of {plan.summable}, got {plan.payload_nbytes} bytes")
    if outputs == "first":
        _hold(method.payload_nbytes(shape) == plan.payload_nbytes, f"payload_nbytes({shape}) must be that of {what}")
    state, first = method.init(shape, outputs), method.plan(shape, 0, outputs)
    wanted = {"residual": numel if first.residual else None, "velocity": numel if first.momentum == "local" else None}
    for name, count in {**wanted, "memory": first.codec.memory or None}.items():
        array = getattr(state, name)
        found = None if array is None else (array.shape, array.dtype, bool(array.any()))
        expected = None if count is None else ((count,), np.dtype(F), False)
        _hold(found == expected, f"{name} of init({shape}) must be zeros as planned, {expected}, got {found}")


def check_size(case: Case) -> None:
    """A payload is as long as was counted by hand, whatever the data, and no other length is taken."""
    method, plan, rng = case.method, case.method.plan(case.shape), np.random.default_rng(1)
    for what, counted, told in (
        ("a payload", case.nbytes, plan.payload_nbytes),
        ("an opening", case.opening_nbytes, plan.opening_nbytes),
        (f"the payload of a bias of shape {BIAS}", case.bias_nbytes, method.plan(BIAS).payload_nbytes),
    ):
        _hold(counted is None or counted == told, f"{what} must be of {counted} bytes, got {told}")
    one = np.zeros(case.numel, F)
    one[rng.integers(case.numel)] = case.size
    kinds = [*case.gradients(2, 1), one, 0 * one, one + F(2), *(rng.choice([1e-30, 1, 1e30], (2, case.numel)))]
    state = method.init(case.shape)
    for grad in (np.asarray(kind, F) for kind in kinds):
        fresh = method.init(case.shape)
        for each in (fresh, state):
            planned = method.plan(case.shape, each.step)
            opening = method.open(grad, each)
            count = 0 if opening is None else opening.size
            _hold(
                count == planned.codec.opening[0],
                f"an opening must be of {planned.codec.opening[0]} floats, got {count}",
            )
            known = opened(planned, [opening])[0]
            payload = method.encode(grad, each, opened=known)
            found = (payload.dtype, payload.shape)
            wanted = (np.dtype(np.uint8), (planned.payload_nbytes,))
            _hold(found == wanted, f"a payload must be of {wanted} whatever the data, got {found}")
            place: dict[str, Any] = {"step": each.step - 1, "shape": case.shape, "opened": known, "state": each}
            method.decode(payload, np.zeros(case.numel, F), **place)
    payload, out = np.zeros(method.payload_nbytes(case.shape, 0), np.uint8), np.zeros(case.numel, F)
    for wrong in (payload[:-1], np.append(payload, payload[:1])):
        what = "a payload of another length"
        _refused(functools.partial(method.decode, wrong, out, step=0, shape=case.shape), what)
        _hold(not out.any(), f"decode() must leave out unchanged by {what}")


def check_formula(case: Case) -> None:
    """What is sent, kept and cleared is, step by step, what the formula says."""
    if case.formula is None:
        return
    method, state = case.method, case.method.init(case.shape)
    residual, velocity = np.zeros(case.numel, F), np.zeros(case.numel, F)
    for step, grad in enumerate(case.gradients(8, 1)):
        plan = method.plan(case.shape, step)
        memory = None if state.memory is None else state.memory.copy()
        _, seen, opening = send(method, state, grad, momentum=case.momentum)
        grad = F(_clipping(method, grad)) * grad
        velocity = F(case.momentum) * velocity + grad
        part = velocity if plan.momentum == "local" else grad
        v = residual + part if plan.residual else part
        sent = case.formula(Look(v, part, case.shape, seen, opening, memory))
        _close(f"what is sent in step {step}", seen, sent, case.tolerance * np.abs(v).max())
        if state.residual is not None:
            residual = v - seen
            _close(f"the residual after step {step}", state.residual, residual)
        if plan.masking and not plan.every_coordinate:
            velocity[seen != 0] = 0
        if state.velocity is not None:
            _close(f"the velocity after step {step}", state.velocity, velocity)
        if plan.codec.wants_squares and memory is not None and state.memory is not None:
            _close(f"the memory after step {step}", state.memory, memory, 1e-6 * (case.size**2 + np.abs(memory)))


def check_conservation(case: Case) -> None:
    """What is sent and what is kept make up what was accumulated, at every coordinate, and something is sent."""
    method, rng = case.method, np.random.default_rng(2)
    normal = case.gradients(40, 2)
    state, plain = method.init(case.shape), 0.0
    for grad in normal:
        plain += float(np.abs(send(method, state, grad).values).sum())
    _hold(
        plain > 0,
        f"something must be sent in 40 steps of gradients of size {case.size:g}: does the size suit the settings?",
    )
    magnitudes = 10 ** rng.uniform(-35, 35, (6, case.numel)) * rng.choice([-1.0, 1.0], (6, case.numel))
    sparse = normal * (rng.random(normal.shape) < 0.02)
    for gradients in (normal, magnitudes, 1e-42 * normal[:6], sparse[:6]):
        for momentum in {0.0, case.momentum}:
            conserved(method, case.shape, gradients.astype(F), momentum=momentum)
    conserved(method, case.shape, normal, momentum=case.momentum, rank=1)
    for shape in (*COMPRESSED, *EXEMPT):
        for outputs in _OUTPUTS:
            conserved(method, shape, rng.standard_normal((3, math.prod(shape))).astype(F), outputs=outputs)
    for shape in EXEMPT:
        grad, state = rng.standard_normal(math.prod(shape)).astype(F), method.init(shape)
        if state.residual is None:
            # As exact as 8 bits, of which one is the sign.
            whole = f"what is sent of a tensor of shape {shape}, none of which is kept,"
            grad *= F(_clipping(method, grad))
            _close(whole, send(method, state, grad).values, grad, np.abs(grad).max() / 250)


def conserved(
    method: Method,
    shape: Sequence[int],
    gradients: FloatArray,
    *,
    momentum: float = 0.0,
    outputs: Outputs = "first",
    rank: int = 0,
) -> None:
    """Raise AssertionError unless, to float32's rounding, nothing of these gradients is lost where there is a residual.

    Args:
        gradients: float32, shape (steps, numel), finite, and so small that their sums are finite, too.
        momentum: of the worker; for plans that apply it to its gradient.
        outputs: as for :meth:`Method.plan`.
        rank: of the worker.
    """
    state = method.init(shape, outputs)
    for step, grad in enumerate(gradients):
        local = method.plan(shape, step, outputs).momentum == "local"
        used = momentum if local else 0.0
        kept = np.zeros(grad.size) if state.residual is None else state.residual.astype(float)
        before = np.zeros(grad.size) if state.velocity is None else used * state.velocity.astype(float)
        payload, sent, _ = send(method, state, grad, rank=rank, momentum=used)
        _hold(payload.size == method.plan(shape, step, outputs).payload_nbytes, "a payload must be as long as planned")
        _hold(np.isfinite(sent).all(), f"what is sent of finite gradients must be finite, step {step} of {shape}")
        count, most = np.count_nonzero(sent), method.plan(shape, step, outputs).sent
        _hold(count <= most, f"no more than {most} coordinates must be sent, got {count}")
        if state.residual is None:
            continue
        grad = _clipping(method, grad) * grad.astype(float)
        missing = state.residual + sent.astype(float) - (kept + before + grad)
        # Four roundings, each by at most half a unit in the last place. A subnormal velocity becomes 0.
        rounding = 2.0**-22 * (np.abs(kept) + np.abs(before) + np.abs(grad) + np.abs(sent))
        rounding += 2.0**-125 if local else 2.0**-148
        at = int(np.argmax(np.abs(missing) - rounding)) if missing.size else 0
        if missing.size and abs(missing[at]) > rounding[at]:
            _hold(
                False,
                f"sent + residual must be what was accumulated, step {step} of {tuple(shape)}: at coordinate {at} "
                f"{sent[at]:g} + {state.residual[at]:g} of {(kept + before + grad)[at]:g}",
            )


def check_unbiased(case: Case) -> None:
    """The mean of what is sent of a value in many steps is the value, of a method that says so."""
    if case.neighbours is None:
        return
    draws, v, state = 3_000, case.gradients(1, 3)[0], case.method.init(case.shape)
    total = np.zeros(v.size)
    for _ in range(draws):
        total += send(case.method, state, v).values
    _hold(state.step == draws, f"the state's step must be {draws}, got {state.step}")
    low, high = case.neighbours(v)
    deviation = np.sqrt(np.abs((high - v) * (v - low)) / draws)
    # Of 600 elements, one in 3,000 files would be more than five standard errors away.
    _close(f"the mean over {draws} steps", total / draws, v, 5 * deviation + 1e-6 * np.abs(v).max())


def check_odd_tensors(case: Case) -> None:
    """Tensors of no or one element, zeros, equal or extreme values; other types; arrays that must be refused."""
    for shape in (*COMPRESSED, *EXEMPT, *EMPTY):
        for kind, gradients in _odd(shape):
            _check_odd_tensor(case.method, shape, kind, gradients)
    _check_types(case)


def _odd(shape: tuple[int, ...]) -> Iterator[tuple[str, FloatArray]]:
    """By name, float32 gradients of shape (steps, workers, numel)."""
    size = (3, 2, math.prod(shape))
    normal = np.random.default_rng(4).standard_normal(size)
    one, spike = np.zeros(size), normal.copy()
    if size[2]:
        one[..., size[2] // 2] = -3
        spike[..., size[2] // 2] = 1e30
    values = {"zeros": 0 * np.abs(normal), "negative zeros": np.full(size, -0.0), "equal values": np.full(size, 0.1)}
    values |= {"one element": one, "one huge element": spike, "huge": 1e36 * normal, "subnormal": 1e-42 * normal}
    for kind, value in values.items():
        yield kind, value.astype(F)


def _check_odd_tensor(method: Method, shape: tuple[int, ...], kind: str, gradients: FloatArray) -> None:
    what = f"{kind}, shape {shape}"
    states = [method.init(shape) for _ in range(2)]
    fed, received = np.zeros(gradients.shape[2]), np.zeros(gradients.shape[2])
    for grads in gradients:
        result = exchange(method, list(grads), states)
        kept = [x for s in states for x in (s.residual, s.velocity, s.memory) if x is not None]
        finite = all(np.isfinite(x).all() for x in (result, *kept))
        _hold(finite, f"what is sent and kept of {what}, must be finite")
        if "zeros" in kind:
            expected = 1 if method.plan(shape).codec.votes else 0
            _hold((result == expected).all(), f"what comes of {what}, must be {expected} everywhere, got {result}")
        fed += np.sum([_clipping(method, grad, 2) * grad.astype(float) for grad in grads], axis=0)
        received += 2 * result.astype(float)
    if states[0].residual is not None:
        left = np.sum([s.residual.astype(float) for s in states if s.residual is not None], axis=0)
        # Subnormal velocities become 0.
        rounding = 1e-38 if states[0].velocity is not None else 1e-43
        most = np.abs(fed).max(initial=0)
        _close(f"sent and residual of {what}", received + left, fed, 1e-5 * most + rounding)


def _check_types(case: Case) -> None:
    method, plan = case.method, case.method.plan(case.shape)
    grad = case.gradients(1, 5)[0]
    half = grad.astype(np.float16)
    bits = (grad.view(np.uint32) >> 16).astype(np.uint16)
    for name, narrow, wide in (
        ("float16", half, half.astype(F)),
        ("bfloat16", bits, (bits.astype(np.uint32) << 16).view(F)),
    ):
        payloads = [
            send(method, method.init(case.shape), cast(FloatArray, g)).payload.tobytes() for g in (narrow, wide)
        ]
        _hold(payloads[0] == payloads[1], f"a gradient in {name} must give the payload of its values in float32")
    for what, wrong in (
        ("of every other element of an array", np.repeat(grad, 2)[::2]),
        ("in float64", grad.astype(float)),
        ("of another length", grad[:-1].copy()),
        ("of two dimensions", grad.reshape(1, -1)),
    ):
        state = method.init(case.shape)
        known = np.zeros(plan.codec.opening[0], F) if plan.codec.opening[0] else None
        before = copy.deepcopy(state)
        _refused(functools.partial(method.encode, cast(FloatArray, wrong), state, opened=known), f"a gradient {what}")
        _hold(_same_state(state, before), f"a gradient {what} must leave the state unchanged")


def check_not_finite(case: Case) -> None:
    """A gradient with NaN or Inf decodes to NaN on every worker and leaves the state of its own as it was."""
    method = case.method
    for shape in (case.shape, (37,)):
        place: dict[str, Any] = {"shape": shape}
        plan, numel = method.plan(shape), math.prod(shape)
        rng = np.random.default_rng(6)
        for bad in (np.nan, np.inf, -np.inf):
            for at in (0, numel - 1):
                momentum = case.momentum if plan.momentum == "local" else 0.0
                states = [method.init(shape) for _ in range(2)]
                for _ in range(3):
                    exchange(
                        method, list(case.size * rng.standard_normal((2, numel)).astype(F)), states, momentum=momentum
                    )
                before = copy.deepcopy(states)
                grads = (case.size * rng.standard_normal((2, numel))).astype(F)
                grads[1, at] = bad
                payloads, known = _encoded(method, grads, states, momentum=momentum)
                what = f"{bad} at coordinate {at} of shape {shape}"
                _hold(_same_state(states[1], before[1]), f"{what} must leave the state unchanged")
                # What all workers have to agree upon is spoilt for all of them.
                agreed = plan.opening_nbytes > 0
                _hold(
                    not agreed or _same_state(states[0], before[0]), f"{what} must leave every worker's state unchanged"
                )
                place = {"step": before[0].step, "shape": shape, "opened": known[0]}
                for received in (payloads[1][None], np.stack(payloads)):
                    told = np.isnan(method.decode(received, np.zeros(numel, F), **place)).any()
                    _hold(told, f"{what} must decode to NaN, so that every worker skips the step")


class _Drawn(NamedTuple):
    """All that can follow from random numbers: payload, coordinates, and what a worker opens with."""

    payload: bytes
    coordinates: tuple[int, ...]
    opening: bytes | None
    lossless: bool


def _drawn(case: Case, *, other: int = 0, seed: int = 0, step: int = 0, rank: int = 0, tensor: int = 0) -> _Drawn:
    """Of the case's first or ``other`` gradient, with another seed if ``seed`` is added; the opening is the first's."""
    method, grads = case.method, case.gradients(2, 7)
    if seed:
        method = dataclasses.replace(cast(Any, method), seed=(method.seed + seed) % 2**64)
    state = method.init(case.shape)
    state.step = step
    own = method.open(grads[0], state, rank=rank, tensor=tensor)
    known = opened(method.plan(case.shape, step), [own])[0]
    payload = method.encode(grads[other], state, rank=rank, tensor=tensor, opened=known)
    place: dict[str, Any] = {"step": step, "shape": case.shape, "tensor": tensor, "opened": known}
    values = method.decode(payload[None], np.zeros(case.numel, F), **place)
    coordinates, lossless = tuple(np.flatnonzero(values).tolist()), bool((values == grads[other]).all())
    return _Drawn(payload.tobytes(), coordinates, None if own is None else own.tobytes(), lossless)


def check_seeds(case: Case) -> None:
    """The same seed draws the same; another seed, and where workers draw on their own another rank, something else."""
    method, first = case.method, _drawn(case)
    has_seed = any(field.name == "seed" for field in dataclasses.fields(cast(Any, method)))
    _hold(first == _drawn(case), "the same settings must send the same of the same gradient")
    by_rank, by_tensor, by_step = _drawn(case, rank=1), _drawn(case, tensor=1), _drawn(case, step=7)
    if case.draws == "nothing":
        unchanged = first == by_rank == by_tensor == by_step
        _hold(unchanged, "payloads must not depend on rank, step or tensor of a method that draws nothing")
        return
    if not has_seed:
        drawing = case.draws is not None or not first == by_rank == by_tensor
        _hold(not drawing, "a method that draws, by rank or tensor, must have a seed among its settings")
        return
    other = _drawn(case, seed=1)
    # What is sent as it is needs no random numbers, whatever the seed.
    lossless = first.lossless and case.draws is None
    _hold(first != other or lossless, "another seed must draw something else")
    if case.draws == "own" or (case.draws is None and first != by_rank):
        for name, changed in (("rank", by_rank), ("tensor", by_tensor), ("step", by_step)):
            _hold(changed.payload != first.payload, f"another {name} must draw something else")
        state, grad = method.init(case.shape), case.gradients(1, 7)[0]
        sent = [send(method, state, grad).payload.tobytes() for _ in range(2)]
        _hold(sent[0] != sent[1], "the next step must draw something else")
    if case.draws == "shared":
        theirs = _drawn(case, other=1, rank=1)
        alike = (first.coordinates, first.opening) == (theirs.coordinates, theirs.opening)
        _hold(alike, "the coordinates and the opening round must be drawn alike by all workers")
        changed_too = (first.coordinates, first.opening) != (other.coordinates, other.opening)
        _hold(changed_too, "another seed must draw other coordinates, or another opening round")


def check_workers(case: Case) -> None:
    """All workers get the mean of what each of them sent, or its sign where they vote, and it fits their states."""
    method, plan, workers = case.method, case.method.plan(case.shape), 3
    together, apart = ([method.init(case.shape) for _ in range(workers)] for _ in range(2))
    for step, grads in enumerate(case.gradients(5 * workers, 8).reshape(5, workers, -1)):
        result = exchange(method, list(grads), together, momentum=case.momentum)
        payloads, known = _encoded(method, grads, apart, momentum=case.momentum)
        place: dict[str, Any] = {"step": step, "shape": case.shape}
        sent = [
            method.decode(payload[None], np.zeros(case.numel, F), opened=o, **place)
            for payload, o in zip(payloads, known)
        ]
        for state in apart:
            if state.memory is not None:
                plan.codec.absorb(np.stack(payloads), state.memory)
        total = np.sum(sent, axis=0, dtype=float)
        expected = np.sign(total) if plan.codec.votes else total / workers
        rounding = 1e-5 * np.abs(expected) + 1e-6 * np.abs(total).max()
        _close(f"what {workers} workers get in step {step}", result, expected, rounding)
        _hold(all(map(_same_state, together, apart)), f"states after step {step} must follow from what each worker did")
    if plan.codec.memory and plan.codec.opening[0]:
        memories = {s.memory.tobytes() for s in together if s.memory is not None}
        learnt = all(s.memory is not None and s.memory.any() for s in together)
        _hold(len(memories) == 1 and learnt, "what workers have agreed upon must be kept, the same by all of them")


def check_adapters(case: Case) -> None:
    """The adapters follow ``plan`` alone, in two passes and on several threads: they must send and keep the same."""
    method, rng = case.method, np.random.default_rng(9)
    for shape in (case.shape, (37,)):
        numel, ours, theirs = math.prod(shape), method.init(shape), method.init(shape)
        for step in range(4):
            grad = (case.size * rng.standard_normal(numel)).astype(F)
            momentum = case.momentum if method.plan(shape, step).momentum == "local" else 0.0
            sent = send(method, ours, grad, momentum=momentum)
            payload, values = _as_adapters_do(method, theirs, grad, momentum)
            for what, same in (
                ("the payload", sent.payload.tobytes() == payload.tobytes()),
                ("what is decoded", sent.values.tobytes() == values.tobytes()),
                ("the state", _same_state(ours, theirs)),
            ):
                _hold(same, f"{what} of step {step}, shape {shape}, must be what an adapter makes of it: {_FOLLOWED}")


def _as_adapters_do(method: Method, state: State, grad: FloatArray, momentum: float) -> tuple[ByteArray, FloatArray]:
    """Payload and the values it decodes to, by plan() and randomness() alone; updates ``state``."""
    plan, randomness = method.plan(state.shape, state.step), method.randomness(0, state.step, 0)
    update = _core.Update(momentum=momentum, unscale=_clipping(method, grad))
    kept, known = (state.residual, state.velocity), None
    if plan.codec.opening[0]:
        _, own = _core.open(plan.codec, update, grad, *kept, randomness=randomness, memory=state.memory)
        known = opened(plan, [own])[0]
    proposal = _core.propose(
        plan.codec,
        update,
        grad,
        *kept,
        randomness=randomness,
        opened=known,
        memory=state.memory,
        sample_ratio=plan.sample_ratio,
        threads=3,
    )
    proposal.commit(update, grad, *kept, memory=state.memory, mask_velocity=plan.masking)
    state.step += 1
    values, payload = np.zeros(grad.size, F), proposal.payload
    if plan.codec.votes:
        plan.codec.decode_votes(payload, values)
    else:
        plan.codec.decode_add(payload, values, randomness=randomness, opened=known)
    if state.memory is not None:
        plan.codec.absorb(payload, state.memory)
    return payload, values


_FOLLOWED = "adapters follow plan() and randomness(), and never call open, encode or decode"
_OUTPUTS: tuple[Outputs, ...] = ("first", "last")

# The parts of the battery, by what they look at.
PARTS: dict[str, Callable[[Case], None]] = {
    "settings": check_settings,
    "plans": check_plans,
    "size": check_size,
    "formula": check_formula,
    "conservation": check_conservation,
    "unbiased": check_unbiased,
    "odd tensors": check_odd_tensors,
    "not finite": check_not_finite,
    "seeds": check_seeds,
    "workers": check_workers,
    "adapters": check_adapters,
}


def _hold(condition: object, what: str) -> None:
    if not condition:
        raise AssertionError(what)


def _close(what: str, found: Reals, expected: Reals, tolerance: Any = 0.0) -> None:
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


def _refused(call: Callable[[], object], what: str) -> None:
    try:
        call()
    except ValueError:
        return
    raise AssertionError(f"{what} must be refused with a ValueError")


def _clipping(method: Method, grad: FloatArray, workers: int = 1) -> float:
    """Factor of the local clipping of one of so many workers."""
    if method.clip_norm is None:
        return 1.0
    return clip_factor(math.sqrt(_core.sum_squares(grad)), clip_limit(method.clip_norm, workers))


def _importable(kind: type) -> bool:
    """Whether pickle finds the class by its name, as it does none that is defined within a function."""
    found: object = sys.modules.get(kind.__module__)
    for name in kind.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is kind


def _changed(method: Method, setting: str) -> Any:
    """The method with another value of the setting; None where there is no telling which would be allowed."""
    value = getattr(method, setting)
    if isinstance(value, bool):
        other: object = not value
    elif isinstance(value, int):
        other = value + 1
    elif isinstance(value, float):
        other = value / 2
    else:
        return None
    try:
        return dataclasses.replace(cast(Any, method), **{setting: other})
    except ValueError:
        return None


def _told(plan: Plan) -> tuple[object, ...]:
    """All that a plan says, in what can be compared."""
    return (plan.codec.description, plan.momentum, plan.residual, plan.masking, plan.sample_ratio)


def _encoded(
    method: Method, grads: FloatArray, states: Sequence[State], **arithmetic: Any
) -> tuple[list[ByteArray], list[FloatArray | None]]:
    """Payload of each worker, and what the opening round came to for it."""
    plan = method.plan(states[0].shape, states[0].step, states[0].outputs)
    ranks = list(enumerate(zip(grads, states)))
    arithmetic["workers"] = len(ranks)
    known = opened(plan, [method.open(g, s, rank=rank, **arithmetic) for rank, (g, s) in ranks])
    return [method.encode(g, s, rank=r, opened=known[r], **arithmetic) for r, (g, s) in ranks], known


def _same_state(a: State, b: State) -> bool:
    arrays = ((a.residual, b.residual), (a.velocity, b.velocity), (a.memory, b.memory))
    return a.step == b.step and all(
        (x is None) is (y is None) and (x is None or y is None or x.tobytes() == y.tobytes()) for x, y in arrays
    )
