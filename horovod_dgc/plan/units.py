"""Bandwidths, times and how they are written."""

from __future__ import annotations

import math
import re

_PREFIXES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}
_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
_NUMBER = r"(\d+(?:\.\d*)?|\.\d+)\s*"


def bandwidth(name: str, text: str) -> float:
    """Bytes a second of, for example, "10gbit", "100Mb/s" or "1.25GB/s": b is for bits, B for bytes, k is 1000.

    Raises:
        ValueError: anything else, or nothing at all.
    """
    found = re.fullmatch(_NUMBER + r"([kKmMgGtT]?)(bit(?:/s|ps)?|b(?:/s|ps)|B/s)", text.strip())
    value = math.nan
    if found:
        number, prefix, unit = found.groups()
        value = float(number) * _PREFIXES[prefix.lower()] / (1 if unit.startswith("B") else 8)
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be a rate above 0 such as 10gbit, 100Mb/s or 1.25GB/s, got {text!r}")
    return value


def seconds(name: str, text: str) -> float:
    """Seconds of, for example, "50us", "1.5ms" or "0.2s".

    Raises:
        ValueError: anything else.
    """
    found = re.fullmatch(_NUMBER + r"(s|ms|us|ns)", text.strip())
    if not found or not math.isfinite(float(found[1])):
        raise ValueError(f"{name} must be a time such as 50us, 1.5ms or 0.2s, got {text!r}")
    return float(found[1]) * _SECONDS[found[2]]


def time_text(value: float) -> str:
    """``value`` seconds as people write them."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if value >= size:
            return f"{value / size:.3g} {unit}" if value < 1000 * size else f"{value / size:,.0f} {unit}"
    return f"{value * 1e6:.3g} us"


def rate_text(value: float) -> str:
    """``value`` bytes a second in bits."""
    bits = 8 * value
    for unit, size in (("Tb/s", 1e12), ("Gb/s", 1e9), ("Mb/s", 1e6), ("kb/s", 1e3)):
        if bits >= size:
            return f"{bits / size:.4g} {unit}"
    return f"{bits:.4g} b/s"
