"""The one table of methods under test: what each sends by its formula, transcribed, and how many bytes that takes.

The battery of horovod_dgc.testing takes every registered method from here, and so do the checks on ranks. A method
without an entry goes through both at its defaults, and a test asks for the entry.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import numpy as np

from horovod_dgc import (
    BF16,
    DGC,
    FP16,
    METHODS,
    QSGD,
    AdaComp,
    CountSketch,
    DoReFa,
    EFSignSGD,
    FixedProportion,
    GradientDropping,
    Int8,
    Method,
    NaturalCompression,
    OneBitSGD,
    PowerSGD,
    RandomK,
    SignSGD,
    Signum,
    TernGrad,
    ThresholdQuantization,
    TopK,
    VarianceBased,
)
from horovod_dgc.testing import Case, Formula, Look

F = np.float32
Array = np.ndarray


def float16(x: Array) -> Array:
    return np.clip(x, -65504, 65504).astype(np.float16).astype(F)


def bfloat16(x: Array) -> Array:
    bits = x.astype(F).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(F)


def int8(x: Array) -> Array:
    out = np.zeros_like(x)
    for first in range(0, x.size, 256):
        chunk = x[first : first + 256]
        scale = np.abs(chunk).max() / F(127)
        out[first : first + 256] = np.rint(chunk / scale) * scale if scale else 0
    return out


def largest(x: Array, k: int) -> Array:
    """Indices of the k of largest magnitude, ties to the lower index."""
    return np.lexsort((np.arange(x.size), -np.abs(x)))[:k]


def at(indices: Array, values: Array, numel: int) -> Array:
    out = np.zeros(numel, F)
    out[indices] = values
    return out


def top(k: int, cast: Callable[[Array], Array] = float16) -> Formula:
    def formula(look: Look) -> Array:
        chosen = largest(look.v, k)
        return at(chosen, cast(look.v[chosen]), look.v.size)

    return formula


def drawn(k: int, factor: float, cast: Callable[[Array], Array] = lambda x: x) -> Formula:
    def formula(look: Look) -> Array:
        support = np.flatnonzero(look.seen)
        assert support.size == k
        return at(support, cast(F(factor) * look.v[support]), look.v.size)

    return formula


def signs(look: Look) -> Array:
    return np.where(look.v >= 0, F(1), F(-1))


def mean_signs(look: Look) -> Array:
    return signs(look) * F(np.abs(look.v.astype(float)).mean())


def one_bit(look: Look) -> Array:
    out = np.zeros(look.shape, F).reshape(look.shape[0], -1)
    for row, q in zip(out, look.v.reshape(out.shape)):
        for side in (q >= 0, q < 0):
            if side.any():
                row[side] = q[side].mean(dtype=float)
    return out.ravel()


def between(neighbours: Callable[[Array], tuple[Array, Array]]) -> Formula:
    """Each value is one of two, as ``neighbours`` tells them."""

    def formula(look: Look) -> Array:
        low, high = neighbours(look.v)
        scale = np.abs(look.v).max()
        near = np.minimum(np.abs(look.seen - low), np.abs(look.seen - high))
        assert near.max() <= 1e-6 * scale
        # Both neighbours are met somewhere: it does draw.
        assert (np.abs(look.seen - low) > 1e-6 * scale).any() and (np.abs(look.seen - high) > 1e-6 * scale).any()
        return look.seen

    return formula


def qsgd_neighbours(bits: int, bucket: int) -> Callable[[Array], tuple[Array, Array]]:
    def neighbours(v: Array) -> tuple[Array, Array]:
        low, high = np.zeros(v.size), np.zeros(v.size)
        levels = 2 ** (bits - 1) - 1
        for first in range(0, v.size, bucket):
            x = v[first : first + bucket].astype(float)
            norm = np.linalg.norm(x) or 1.0
            whole = np.floor(levels * np.abs(x) / norm)
            low[first : first + bucket] = norm * np.sign(x) * whole / levels
            high[first : first + bucket] = norm * np.sign(x) * (whole + 1) / levels
        return low, high

    return neighbours


def terngrad_neighbours(clip: float | None) -> Callable[[Array], tuple[Array, Array]]:
    def neighbours(v: Array) -> tuple[Array, Array]:
        limit = math.inf if clip is None else clip * v.astype(float).std()
        return np.zeros(v.size), np.sign(v) * min(np.abs(v).max(), limit)

    return neighbours


def dorefa_neighbours(bits: int) -> Callable[[Array], tuple[Array, Array]]:
    def neighbours(v: Array) -> tuple[Array, Array]:
        most, steps = float(np.abs(v).max()), 2**bits - 1
        whole = np.minimum(np.floor(steps * (v.astype(float) / (2 * most) + 0.5)), steps - 1)
        return 2 * most * (whole / steps - 0.5), 2 * most * ((whole + 1) / steps - 0.5)

    return neighbours


def natural_neighbours(v: Array) -> tuple[Array, Array]:
    power = 2.0 ** np.floor(np.log2(np.abs(v.astype(float)), where=v != 0, out=np.zeros(v.size)))
    return np.sign(v) * power, np.sign(v) * 2 * power


def strom(threshold: float, k: int) -> Formula:
    def formula(look: Look) -> Array:
        chosen = largest(look.v, k)
        chosen = chosen[np.abs(look.v[chosen]) > F(threshold)]
        return at(chosen, np.sign(look.v[chosen]) * F(threshold), look.v.size)

    return formula


def dryden(k: int) -> Formula:
    def formula(look: Look) -> Array:
        v = look.v
        positives = math.floor(k * np.count_nonzero(v > 0) / np.count_nonzero(v) + 0.5)
        sent = np.zeros(v.size, F)
        for side, count in ((v > 0, positives), (v < 0, k - positives)):
            chosen = np.flatnonzero(side)
            chosen = chosen[largest(v[chosen], count)]
            sent[chosen] = v[chosen].mean(dtype=float)
        return sent

    return formula


def adacomp(length: int, k: int) -> Formula:
    def formula(look: Look) -> Array:
        ahead = np.abs(look.v + look.g)
        qualified, maxima = [], []
        for first in range(0, look.v.size, length):
            most = np.abs(look.v[first : first + length]).max()
            maxima.append(most)
            qualified.extend(first + np.flatnonzero(ahead[first : first + length] >= most))
        chosen = np.array(qualified)
        chosen = chosen[largest(look.v[chosen], k)]
        return at(chosen, np.sign(look.v[chosen]) * F(np.mean(maxima, dtype=float)), look.v.size)

    return formula


def power4(x: Array) -> Array:
    if not x.any():
        return np.zeros_like(x)
    most = 2.0 ** math.floor(math.log2(np.abs(x).max()))
    out = np.zeros(x.size, F)
    for i, value in enumerate(np.abs(x.astype(float))):
        powers = [most / 2**d for d in range(7)]
        nearest = min(powers, key=lambda p: (abs(value - p), -p))
        # Below three quarters of the smallest it is nearer to the next one, which is 0.
        out[i] = math.copysign(nearest, x[i]) if value >= 0.75 * powers[-1] else 0
    return out


def vgc(alpha: float, zeta: float, tau: float, k: int, cast: Callable[[Array], Array]) -> Formula:
    def formula(look: Look) -> Array:
        v = look.v
        s = look.memory + look.g * look.g
        ready = np.flatnonzero(((v * v).astype(float) > alpha * s.astype(float)) & (np.abs(v) > tau))
        score = v[ready] * v[ready] / s[ready]
        ready = np.sort(ready[np.lexsort((ready, -score))[:k]])
        sent = at(ready, cast(v[ready]) if tau == 0 else np.sign(v[ready]) * F(tau), v.size)
        after = np.maximum(s - 2 * np.abs(v) * F(tau) + F(tau) ** 2, 0) if tau else np.zeros_like(s)
        look.memory[:] = np.where(sent != 0, after, F(zeta) * s).astype(F)
        return sent

    return formula


def low_rank(rank: int) -> Formula:
    def formula(look: Look) -> Array:
        matrix = look.v.reshape(look.shape[0], -1).astype(float)
        assert look.opened is not None
        p, _ = np.linalg.qr(look.opened.reshape(rank, -1).T.astype(float))
        return (p @ (p.T @ matrix)).ravel().astype(F)

    return formula


def whole(cast: Callable[[Array], Array] = lambda x: x) -> Formula:
    return lambda look: cast(look.v)


@dataclass(frozen=True)
class Entry(Case):
    """
    Attributes:
        name: of the method and what is special about its settings.
        on_ranks: whether the checks on real processes take it, on a tensor of shape (40, 50) and a bias, with whole
            numbers from -99 to 99 as gradients.
    """

    name: str = ""
    on_ranks: bool = False


def index_bytes(method: Any, n: int, k: int) -> int:
    if method.indices == "int32":
        return 4 * k
    low = math.floor(math.log2(n / k))
    return math.ceil(k * low / 8) + math.ceil((k + ((n - 1) >> low)) / 8)


RESIDUAL = frozenset({"residual"})
VELOCITY = frozenset({"velocity"})
MASKED = frozenset({"velocity", "masking"})
NOTHING: frozenset[str] = frozenset()

# Of the gradients of the checks on ranks, for settings that fit those.
WHOLE_NUMBERS = 57.0


def entry(
    name: str,
    method: Method,
    formula: Formula,
    bits: float,
    coordinates: int | None = None,
    *,
    keeps: Collection[str] = RESIDUAL,
    opening: int = 0,
    draws: Any = "nothing",
    bias_nbytes: int = 4 * 300,
    **more: Any,
) -> Entry:
    """An entry whose bytes are counted in bits of the values, the coordinates whose indices are sent (None: none are),
    and floats of the opening round."""
    indices = 0 if coordinates is None else index_bytes(method, 600, coordinates)
    assert bits % 8 == 0, f"{name}: a payload of {bits} bits is no whole number of bytes"
    counted = {"nbytes": int(bits) // 8 + indices, "opening_nbytes": 4 * opening, "bias_nbytes": bias_nbytes}
    return Entry(method, formula, keeps=keeps, draws=draws, name=name, **counted, **more)


def unbiased(
    name: str, method: Method, neighbours: Callable[[Array], tuple[Array, Array]], bits: float, **more: Any
) -> Entry:
    formula = between(neighbours)
    return entry(name, method, formula, bits, keeps=NOTHING, neighbours=neighbours, draws="own", **more)


def _random_neighbours(factor: float) -> Callable[[Array], tuple[Array, Array]]:
    return lambda v: (np.zeros(v.size), factor * v.astype(float))


# Of shape (20, 30): 600 elements. Trits take a byte for every five of them, after two means of 32 bits.
ENTRIES = [
    entry("dgc", DGC(), top(1), 16, 1, keeps=RESIDUAL | MASKED, bias_nbytes=600),
    entry("dgc 1 %", DGC(0.01), top(6), 6 * 16, 6, keeps=RESIDUAL | MASKED, bias_nbytes=600),
    entry("dgc clipped", DGC(0.01, clip_norm=5.0), top(6), 6 * 16, 6, keeps=RESIDUAL | MASKED, bias_nbytes=600),
    entry(
        "dgc int8",
        DGC(0.01, values="int8"),
        top(6, int8),
        6 * 8 + 32,
        6,
        keeps=RESIDUAL | MASKED,
        bias_nbytes=308,
        tolerance=1e-6,
        on_ranks=True,
    ),
    entry(
        "dgc without momentum", DGC(0.01, momentum_correction=False), top(6), 6 * 16, 6, bias_nbytes=600, on_ranks=True
    ),
    entry("topk", TopK(), top(1), 16, 1),
    entry("topk 2 %", TopK(0.02), top(12), 12 * 16, 12, on_ranks=True),
    entry("topk float32", TopK(0.05, "float32", "int32"), top(30, lambda x: x), 30 * 32, 30),
    entry("topk no feedback", TopK(0.02, error_feedback=False), top(12), 12 * 16, 12, keeps=NOTHING, on_ranks=True),
    entry("topk momentum", TopK(0.01, momentum_correction=True), top(6), 6 * 16, 6, keeps=RESIDUAL | MASKED),
    entry(
        "topk momentum unmasked",
        TopK(0.01, momentum_correction=True, factor_masking=False),
        top(6),
        6 * 16,
        6,
        keeps=RESIDUAL | VELOCITY,
    ),
    entry(
        "topk momentum no feedback",
        TopK(0.01, error_feedback=False, momentum_correction=True),
        top(6),
        6 * 16,
        6,
        keeps=MASKED,
    ),
    entry("topk all", TopK(1.0, "int8", error_feedback=True), whole(int8), 600 * 8 + 3 * 32, tolerance=1e-6),
    entry("gradient-dropping", GradientDropping(), top(6), 6 * 16, 6),
    entry("gradient-dropping 2 %", GradientDropping(0.02), top(12), 12 * 16, 12, on_ranks=True),
    entry("gradient-dropping global", GradientDropping(0.02, scope="global"), top(12), 24 * 16, 24),
    entry(
        "gradient-dropping roomy",
        GradientDropping(0.02, scope="global", cap=0.1),
        top(12),
        60 * 16,
        60,
        on_ranks=True,
    ),
    entry("gradient-dropping crowded", GradientDropping(0.02, scope="global", cap=0.01), top(6), 6 * 16, 6),
    entry("randomk", RandomK(), drawn(6, 1.0), 6 * 32, draws="shared"),
    entry("randomk 5 %", RandomK(0.05), drawn(30, 1.0), 30 * 32, draws="shared", on_ranks=True),
    entry("randomk float16", RandomK(0.1, "float16"), drawn(60, 1.0, float16), 60 * 16, draws="shared"),
    entry(
        "randomk momentum",
        RandomK(0.1, momentum_correction=True),
        drawn(60, 1.0),
        60 * 32,
        keeps=RESIDUAL | MASKED,
        draws="shared",
    ),
    entry(
        "randomk unbiased",
        RandomK(0.1, error_feedback=False),
        drawn(60, 10.0),
        60 * 32,
        keeps=NOTHING,
        neighbours=_random_neighbours(10.0),
        draws="shared",
    ),
    entry(
        "randomk unbiased float16",
        RandomK(0.05, "float16", error_feedback=False),
        drawn(30, 20.0, float16),
        30 * 16,
        keeps=NOTHING,
        draws="shared",
        on_ranks=True,
    ),
    entry(
        "randomk unbiased momentum",
        RandomK(0.1, error_feedback=False, momentum_correction=True),
        drawn(60, 10.0),
        60 * 32,
        keeps=VELOCITY,  # unmasked: clearing it would make a bias
        draws="shared",
    ),
    entry("signsgd", SignSGD(), signs, 600 + 32, keeps=NOTHING),
    entry("signum", Signum(), signs, 600 + 32, keeps=VELOCITY),
    entry("efsignsgd", EFSignSGD(), mean_signs, 600 + 32, tolerance=1e-6),
    entry(
        "efsignsgd momentum",
        EFSignSGD(momentum_correction=True),
        mean_signs,
        600 + 32,
        keeps=RESIDUAL | VELOCITY,
        tolerance=1e-6,
    ),
    entry("1bit", OneBitSGD(), one_bit, 600 + 20 * 2 * 32, tolerance=1e-6),
    entry(
        "1bit no feedback",
        OneBitSGD(error_feedback=False),
        one_bit,
        600 + 20 * 2 * 32,
        keeps=NOTHING,
        tolerance=1e-6,
    ),
    unbiased("qsgd", QSGD(), qsgd_neighbours(4, 512), 600 * 4 + 2 * 32),
    unbiased("qsgd 2", QSGD(2, 64, seed=3), qsgd_neighbours(2, 64), 600 * 2 + 10 * 32),
    unbiased("qsgd 8", QSGD(8, 1000), qsgd_neighbours(8, 1000), 600 * 8 + 32),
    entry(
        "terngrad",
        TernGrad(),
        between(terngrad_neighbours(2.5)),
        600 * 1.6 + 64,
        keeps=NOTHING,
        draws="own",
        on_ranks=True,
    ),
    entry(
        "terngrad clipped shared",
        TernGrad(shared_scale=True),
        between(terngrad_neighbours(2.5)),
        600 * 1.6 + 64,
        opening=1,
        keeps=NOTHING,
        draws="own",
        on_ranks=True,
    ),
    unbiased("terngrad unclipped", TernGrad(None), terngrad_neighbours(None), 600 * 1.6 + 64),
    unbiased(
        "terngrad shared", TernGrad(None, shared_scale=True), terngrad_neighbours(None), 600 * 1.6 + 64, opening=1
    ),
    unbiased("dorefa", DoReFa(), dorefa_neighbours(2), 600 * 2 + 32),
    unbiased("dorefa 1", DoReFa(1), dorefa_neighbours(1), 600 + 32),
    unbiased("dorefa 7", DoReFa(7), dorefa_neighbours(7), 600 * 7 + 32),
    unbiased("natural", NaturalCompression(), natural_neighbours, 600 * 9),
    entry("strom", ThresholdQuantization(), strom(0.01, 6), 2 * 8 + 64, 6),
    entry("strom sparse", ThresholdQuantization(1.5, 0.05), strom(1.5, 30), 30 * 1.6 + 64, 30),
    entry(
        "strom whole numbers",
        ThresholdQuantization(40.0, 0.1),
        strom(40, 60),
        60 * 1.6 + 64,
        60,
        size=WHOLE_NUMBERS,
        on_ranks=True,
    ),
    entry(
        "strom momentum",
        ThresholdQuantization(4, 0.5, momentum_correction=True),
        strom(4, 300),
        300 * 1.6 + 64,
        300,
        keeps=RESIDUAL | MASKED,
    ),
    entry("dryden", FixedProportion(), dryden(6), 2 * 8 + 64, 6, tolerance=1e-6),
    entry("dryden 2 %", FixedProportion(0.02), dryden(12), 3 * 8 + 64, 12, tolerance=1e-6, on_ranks=True),
    entry("dryden 5 %", FixedProportion(0.05), dryden(30), 30 * 1.6 + 64, 30, tolerance=1e-6),
    entry(
        "dryden no feedback",
        FixedProportion(0.05, error_feedback=False, momentum_correction=True),
        dryden(30),
        30 * 1.6 + 64,
        30,
        keeps=MASKED,
        tolerance=1e-6,
    ),
    entry("adacomp", AdaComp(), adacomp(500, 10), 10 * 1.6 + 64, 10, tolerance=1e-6),
    entry("adacomp crowded", AdaComp(cap=0.1), adacomp(500, 1), 8 + 64, 1, tolerance=1e-6, on_ranks=True),
    entry("adacomp small bins", AdaComp(other_bin=100), adacomp(100, 30), 30 * 1.6 + 64, 30, tolerance=1e-6),
    entry("adacomp convolution", AdaComp(cap=0.5), adacomp(50, 6), 2 * 8 + 64, 6, tolerance=1e-6, shape=(20, 5, 3, 2)),
    entry("vgc", VarianceBased(), vgc(1, 0.999, 0, 6, power4), 6 * 4 + 32, 6),
    entry("vgc 10 %", VarianceBased(cap=0.1), vgc(1, 0.999, 0, 60, power4), 60 * 4 + 32, 60, on_ranks=True),
    entry(
        "vgc float32",
        VarianceBased(1.5, 0.9, cap=0.5, values="float32"),
        vgc(1.5, 0.9, 0, 300, lambda x: x),
        300 * 32,
        300,
    ),
    entry(
        "vgc hybrid",
        VarianceBased(threshold=0.5, cap=0.1),
        vgc(1, 0.999, 0.5, 60, power4),
        60 * 1.6 + 64,
        60,
    ),
    entry(
        "vgc whole numbers",
        VarianceBased(threshold=30.0, cap=0.1, values="float32"),
        vgc(1, 0.999, 30, 60, power4),
        60 * 1.6 + 64,
        60,
        size=WHOLE_NUMBERS,
        on_ranks=True,
    ),
    entry("powersgd", PowerSGD(), low_rank(2), 30 * 2 * 32, opening=40, tolerance=1e-5, draws="shared"),
    entry("powersgd 1", PowerSGD(1), low_rank(1), 960, opening=20, tolerance=1e-5, draws="shared", on_ranks=True),
    entry("powersgd 3", PowerSGD(3), low_rank(3), 2880, opening=60, tolerance=1e-5, draws="shared", on_ranks=True),
    entry(
        "powersgd no feedback",
        PowerSGD(1, error_feedback=False),
        low_rank(1),
        960,
        opening=20,
        keeps=NOTHING,
        tolerance=1e-5,
        draws="shared",
    ),
    entry("powersgd whole", PowerSGD(15), whole(), 600 * 32),
    entry("countsketch", CountSketch(), drawn(1, 1.0), 32, opening=100, draws="shared"),
    entry(
        "countsketch 2 %",
        CountSketch(0.02, columns=4),
        drawn(12, 1.0),
        12 * 32,
        opening=240,
        draws="shared",
        on_ranks=True,
    ),
    entry(
        "countsketch momentum",
        CountSketch(0.02, 3, 2.5, momentum_correction=True),
        drawn(12, 1.0),
        12 * 32,
        opening=90,
        keeps=RESIDUAL | MASKED,
        draws="shared",
    ),
    entry("countsketch whole", CountSketch(0.1, columns=2), whole(), 600 * 32),
    entry("fp16", FP16(), whole(float16), 600 * 16, keeps=NOTHING, bias_nbytes=600),
    entry("fp16 feedback", FP16(error_feedback=True), whole(float16), 600 * 16, bias_nbytes=600),
    entry("bf16", BF16(), whole(bfloat16), 600 * 16, keeps=NOTHING, bias_nbytes=600),
    entry("int8", Int8(), whole(int8), 600 * 8 + 3 * 32, bias_nbytes=308, tolerance=1e-6),
    entry(
        "int8 no feedback",
        Int8(error_feedback=False),
        whole(int8),
        600 * 8 + 3 * 32,
        keeps=NOTHING,
        bias_nbytes=308,
        tolerance=1e-6,
    ),
]


def names() -> dict[str, Entry]:
    """Every entry and, for a registered method without one at its defaults, those, by name."""
    found = {each.name: each for each in ENTRIES}
    for name, kind in METHODS.items():
        if not any(each.method == kind() for each in ENTRIES):
            found[f"{name} defaults"] = Entry(kind(), name=f"{name} defaults")
    return found


def on_ranks() -> list[Method]:
    """Every registered method, in the entries that say so; without such an entry at its defaults."""
    chosen = [each.method for each in ENTRIES if each.on_ranks]
    return [
        method for kind in METHODS.values() for method in [each for each in chosen if type(each) is kind] or [kind()]
    ]
