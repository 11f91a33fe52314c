"""Argument checks whose messages name the argument, the value, and what is allowed."""

from __future__ import annotations

import difflib
import math
import operator
from collections.abc import Collection, Iterable


def in_range(
    name: str,
    value: object,
    low: float,
    high: float,
    *,
    low_open: bool = False,
    high_open: bool = False,
) -> float:
    """Return ``value`` as float; raise ValueError unless it is a real number within the interval."""
    interval = f"{'(' if low_open else '['}{low:g}, {high:g}{')' if high_open else ']'}"
    if isinstance(value, bool) or not hasattr(value, "__float__") or isinstance(value, complex):
        raise ValueError(f"{name} must be a number in {interval}, got {value!r}")
    number = float(value)
    inside = (number > low if low_open else number >= low) and (number < high if high_open else number <= high)
    if math.isnan(number) or not inside:
        raise ValueError(f"{name} must be in {interval}, got {value!r}")
    return number


def whole_number(name: str, value: object, low: int, high: int | None = None) -> int:
    """Return ``value`` as int; raise ValueError unless it is a whole number in [low, high] (None: without end)."""
    allowed = f">= {low}" if high is None else f"in [{low}, {high}]"
    try:
        number = None if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None or number < low or (high is not None and number > high):
        raise ValueError(f"{name} must be a whole number {allowed}, got {value!r}")
    return number


def shape(name: str, value: object) -> tuple[int, ...]:
    """Return ``value`` as a tuple of int; raise ValueError unless it is a sequence of whole numbers >= 0."""
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise ValueError(f"{name} must be a sequence of whole numbers such as (64, 3, 7, 7), got {value!r}")
    return tuple(whole_number(f"each number of {name}", extent, 0) for extent in value)


def seed(value: object) -> int:
    """Return the seed ``value`` as int; raise ValueError unless it is a whole number of 64 bits."""
    return whole_number("seed", value, 0, 2**64 - 1)


def one_of(name: str, value: object, allowed: Collection[str]) -> str:
    """Return ``value``; raise ValueError with the nearest match unless it is among ``allowed``."""
    if isinstance(value, str) and value in allowed:
        return value
    lower = {name.lower(): name for name in allowed}
    near = difflib.get_close_matches(str(value).lower(), lower, n=1)
    hint = f"; did you mean {lower[near[0]]!r}?" if near else ""
    raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}{hint}")


def flag(name: str, value: object) -> bool:
    """Return ``value``; raise ValueError unless it is True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, got {value!r}")
    return value


def reduction(op: object, allowed: Collection[object]) -> None:
    """Raise ValueError unless Horovod's reduction ``op`` is among ``allowed``, its Average and Sum."""
    if op not in allowed:
        raise ValueError(
            "op must be hvd.Average or hvd.Sum for compressed gradients: Adasum and other reductions need the dense "
            "gradient of every worker"
        )
