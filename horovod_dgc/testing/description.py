"""Parts of the battery: what a method says of itself before a gradient is there."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
import pickle
import sys
from typing import Any, cast

import numpy as np

from horovod_dgc import registry
from horovod_dgc.methods.base import Method, Outputs, Plan, checked_class
from horovod_dgc.simulation import opened
from horovod_dgc.testing.case import COMPRESSED, EMPTY, EXEMPT, OUTPUTS, Case, F, hold, refused

# Of bias_nbytes.
BIAS = (300,)


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
        hold(other == method and hash(other) == hash(method), f"{what} must be equal, with the same hash")
        hold(other.configuration() == method.configuration(), f"{what} must have the same configuration()")
    for field in known:
        hold(f"{field.name}=" in repr(method), f"repr() must tell {field.name}, got {method!r}")
        other = _changed(method, field.name)
        if other is not None:
            what = f"{getattr(other, field.name)!r} instead of {getattr(method, field.name)!r} as {field.name}"
            hold(other != method, f"a method with {what} must not be equal")
            hold(other.configuration() != method.configuration(), f"configuration() must tell {what}")
    plain = all(isinstance(getattr(method, field.name), (str, int, float, type(None))) for field in known)
    if registry.name_of(method) is not None and plain:
        text = registry.text(method)
        hold(registry.parse(text) == method, f"{text!r} must parse to the method")


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


def check_plans(case: Case) -> None:
    """A plan follows from shape and step alone, changes only where ``stages()`` says so, and says what is kept."""
    method, again = case.method, dataclasses.replace(cast(Any, case.method))
    stages = method.stages()
    ascend = stages is None or (stages[:1] == (0,) and list(stages) == sorted(set(stages)))
    hold(ascend, f"stages() must ascend from 0, got {stages}")
    steps = [None, *range(20), *(step + near for step in stages or () for near in (-1, 0, 1, 1000) if step + near >= 0)]
    for shape in (case.shape, *COMPRESSED, *EXEMPT, *EMPTY):
        for outputs in OUTPUTS:
            plans = {step: _told(method.plan(shape, step, outputs)) for step in steps}
            for step in reversed(steps):
                same = (
                    plans[step] == _told(method.plan(shape, step, outputs)) == _told(again.plan(shape, step, outputs))
                )
                hold(same, f"plan({shape}, {step}, {outputs!r}) must be the same whenever it is asked for")
                if stages is not None:
                    began = max((stage for stage in stages if step is not None and stage <= step), default=stages[-1])
                    what = f"plan({shape}, {step}, {outputs!r}) must be that of step {began} by stages() {stages}"
                    hold(plans[step] == plans[began], what)
            _check_plan(method, shape, outputs)
    plan = method.plan(case.shape)
    kept = {"residual": plan.residual, "velocity": plan.momentum == "local"}
    kept["masking"] = plan.masking and kept["velocity"]
    found = {word for word, keeps in kept.items() if keeps}
    hold(case.keeps is None or found == set(case.keeps), f"the plan must keep {case.keeps}, got {sorted(found)}")


def _told(plan: Plan) -> tuple[object, ...]:
    """All that a plan says, in what can be compared."""
    return (plan.codec.description, plan.momentum, plan.residual, plan.masking, plan.sample_ratio)


def _check_plan(method: Method, shape: tuple[int, ...], outputs: Outputs) -> None:
    plan, numel, what = method.plan(shape, None, outputs), math.prod(shape), f"plan({shape}, None, {outputs!r})"
    hold(plan.numel == numel, f"{what} must be for {numel} elements, got {plan.numel}")
    hold(min(1, numel) <= plan.sent <= numel, f"{what} must send from 1 to {numel} elements, got {plan.sent}")
    hold(numel > 0 or plan.payload_nbytes == 0, f"{what} must be empty, got {plan.payload_nbytes} bytes")
    momentum = plan.momentum is not None
    hold(
        momentum == method.corrects_momentum, f"{what} must have a momentum if corrects_momentum, got {plan.momentum!r}"
    )
    hold(0 < plan.sample_ratio <= 1, f"{what} must have a sample_ratio in (0, 1], got {plan.sample_ratio}")
    whole = plan.summable is None or plan.payload_nbytes % plan.summable.itemsize == 0
    hold(whole, f"{what} must send whole numbers of {plan.summable}, got {plan.payload_nbytes} bytes")
    if outputs == "first":
        hold(method.payload_nbytes(shape) == plan.payload_nbytes, f"payload_nbytes({shape}) must be that of {what}")
    state, first = method.init(shape, outputs), method.plan(shape, 0, outputs)
    wanted = {"residual": numel if first.residual else None, "velocity": numel if first.momentum == "local" else None}
    for name, count in {**wanted, "memory": first.codec.memory or None}.items():
        array = getattr(state, name)
        found = None if array is None else (array.shape, array.dtype, bool(array.any()))
        expected = None if count is None else ((count,), np.dtype(F), False)
        hold(found == expected, f"{name} of init({shape}) must be zeros as planned, {expected}, got {found}")


def check_size(case: Case) -> None:
    """A payload is as long as was counted by hand, whatever the data, and no other length is taken."""
    method, plan, rng = case.method, case.method.plan(case.shape), np.random.default_rng(1)
    for what, counted, told in (
        ("a payload", case.nbytes, plan.payload_nbytes),
        ("an opening", case.opening_nbytes, plan.opening_nbytes),
        (f"the payload of a bias of shape {BIAS}", case.bias_nbytes, method.plan(BIAS).payload_nbytes),
    ):
        hold(counted is None or counted == told, f"{what} must be of {counted} bytes, got {told}")
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
            hold(
                count == planned.codec.opening[0],
                f"an opening must be of {planned.codec.opening[0]} floats, got {count}",
            )
            known = opened(planned, [opening])[0]
            payload = method.encode(grad, each, opened=known)
            found = (payload.dtype, payload.shape)
            wanted = (np.dtype(np.uint8), (planned.payload_nbytes,))
            hold(found == wanted, f"a payload must be of {wanted} whatever the data, got {found}")
            place: dict[str, Any] = {"step": each.step - 1, "shape": case.shape, "opened": known, "state": each}
            method.decode(payload, np.zeros(case.numel, F), **place)
    payload, out = np.zeros(method.payload_nbytes(case.shape, 0), np.uint8), np.zeros(case.numel, F)
    for wrong in (payload[:-1], np.append(payload, payload[:1])):
        what = "a payload of another length"
        refused(functools.partial(method.decode, wrong, out, step=0, shape=case.shape), what)
        hold(not out.any(), f"decode() must leave out unchanged by {what}")
