"""One entry for each method and variant: what its formula sends, transcribed, and how many bytes that takes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from horovod_dgc import (
    BF16,
    DGC,
    FP16,
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
    State,
    TernGrad,
    ThresholdQuantization,
    TopK,
    VarianceBased,
)

F = np.float32
Array = np.ndarray


@dataclass
class Worker:
    """One worker's state in the formulas' own words."""

    shape: tuple[int, ...]
    u: Array = field(init=False)
    r: Array = field(init=False)
    s: Array = field(init=False)

    def __post_init__(self) -> None:
        numel = math.prod(self.shape)
        self.u, self.r, self.s = (np.zeros(numel, F) for _ in range(3))


@dataclass
class Look:
    """What a formula is given: the accumulated gradient v, this step's part g of it, and, for what it cannot know
    (what was drawn at random), what was sent."""

    v: Array
    g: Array
    worker: Worker
    seen: Array
    opened: Array | None


# What is to be sent. For a method that draws, what was seen, once it has been found to be among what can be drawn.
Formula = Callable[[Look], Array]


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
    out = np.zeros(look.worker.shape, F).reshape(look.worker.shape[0], -1)
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
        v, worker = look.v, look.worker
        s = worker.s + look.g * look.g
        ready = np.flatnonzero(((v * v).astype(float) > alpha * s.astype(float)) & (np.abs(v) > tau))
        score = v[ready] * v[ready] / s[ready]
        ready = np.sort(ready[np.lexsort((ready, -score))[:k]])
        sent = at(ready, cast(v[ready]) if tau == 0 else np.sign(v[ready]) * F(tau), v.size)
        after = np.maximum(s - 2 * np.abs(v) * F(tau) + F(tau) ** 2, 0) if tau else np.zeros_like(s)
        worker.s = np.where(sent != 0, after, F(zeta) * s).astype(F)
        return sent

    return formula


def low_rank(rank: int) -> Formula:
    def formula(look: Look) -> Array:
        matrix = look.v.reshape(look.worker.shape[0], -1).astype(float)
        assert look.opened is not None
        p, _ = np.linalg.qr(look.opened.reshape(rank, -1).T.astype(float))
        return (p @ (p.T @ matrix)).ravel().astype(F)

    return formula


def whole(cast: Callable[[Array], Array] = lambda x: x) -> Formula:
    return lambda look: cast(look.v)


@dataclass(frozen=True)
class Case:
    """
    Attributes:
        method: configured for tensors of ``shape``.
        formula: what one worker sends.
        bits: of a payload by hand, index bits aside; of that many ``coordinates`` (None: all, without indices).
        opening: floats of the opening round.
        neighbours: for an unbiased method, the two values that each number may become.
        tolerance: of what is sent, relative to the largest.
        draws: "own" (each worker its own random numbers), "shared" (all the same), or None.
    """

    name: str
    method: Method
    formula: Formula
    bits: float
    coordinates: int | None = None
    opening: int = 0
    neighbours: Callable[[Array], tuple[Array, Array]] | None = None
    tolerance: float = 0.0
    draws: str | None = None
    shape: tuple[int, ...] = (20, 30)


def _random_neighbours(factor: float) -> Callable[[Array], tuple[Array, Array]]:
    return lambda v: (np.zeros(v.size), factor * v.astype(float))


def _unbiased(
    name: str,
    method: Method,
    neighbours: Callable[[Array], tuple[Array, Array]],
    bits: float,
    opening: int = 0,
) -> Case:
    return Case(name, method, between(neighbours), bits, opening=opening, neighbours=neighbours, draws="own")


def _sparse(name: str, method: Method, formula: Formula, bits: float, k: int, **more: object) -> Case:
    return Case(name, method, formula, bits, coordinates=k, **more)  # type: ignore[arg-type]


# Of shape (20, 30): 600 elements. Trits take a byte for every five of them, after two means of 32 bits.
CASES = [
    _sparse("dgc", DGC(0.01), top(6), 6 * 16, 6),
    _sparse("topk", TopK(0.01), top(6), 6 * 16, 6),
    _sparse("topk float32", TopK(0.05, "float32", "int32"), top(30, lambda x: x), 30 * 32, 30),
    _sparse("topk no feedback", TopK(0.01, error_feedback=False), top(6), 6 * 16, 6),
    _sparse("topk momentum", TopK(0.01, momentum_correction=True), top(6), 6 * 16, 6),
    _sparse("topk momentum unmasked", TopK(0.01, momentum_correction=True, factor_masking=False), top(6), 6 * 16, 6),
    _sparse("topk momentum no feedback", TopK(0.01, error_feedback=False, momentum_correction=True), top(6), 6 * 16, 6),
    Case("topk all", TopK(1.0, "int8", error_feedback=True), whole(int8), 600 * 8 + 3 * 32, tolerance=1e-6),
    _sparse("gradient-dropping", GradientDropping(), top(6), 6 * 16, 6),
    Case("randomk", RandomK(0.1), drawn(60, 1.0), 60 * 32, draws="shared"),
    Case("randomk float16", RandomK(0.1, "float16"), drawn(60, 1.0, float16), 60 * 16, draws="shared"),
    Case("randomk momentum", RandomK(0.1, momentum_correction=True), drawn(60, 1.0), 60 * 32, draws="shared"),
    Case(
        "randomk unbiased",
        RandomK(0.1, error_feedback=False),
        drawn(60, 10.0),
        60 * 32,
        neighbours=_random_neighbours(10.0),
        draws="shared",
    ),
    Case(
        "randomk unbiased momentum",
        RandomK(0.1, error_feedback=False, momentum_correction=True),
        drawn(60, 10.0),
        60 * 32,
        draws="shared",
    ),
    Case("signsgd", SignSGD(), signs, 600 + 32),
    Case("signum", Signum(), signs, 600 + 32),
    Case("efsignsgd", EFSignSGD(), mean_signs, 600 + 32, tolerance=1e-6),
    Case("efsignsgd momentum", EFSignSGD(momentum_correction=True), mean_signs, 600 + 32, tolerance=1e-6),
    Case("1bit", OneBitSGD(), one_bit, 600 + 20 * 2 * 32, tolerance=1e-6),
    Case("1bit no feedback", OneBitSGD(error_feedback=False), one_bit, 600 + 20 * 2 * 32, tolerance=1e-6),
    _unbiased("qsgd", QSGD(), qsgd_neighbours(4, 512), 600 * 4 + 2 * 32),
    _unbiased("qsgd 2", QSGD(2, 64, seed=3), qsgd_neighbours(2, 64), 600 * 2 + 10 * 32),
    _unbiased("qsgd 8", QSGD(8, 1000), qsgd_neighbours(8, 1000), 600 * 8 + 32),
    Case("terngrad", TernGrad(), between(terngrad_neighbours(2.5)), 600 * 1.6 + 64, draws="own"),
    _unbiased("terngrad unclipped", TernGrad(None), terngrad_neighbours(None), 600 * 1.6 + 64),
    _unbiased("terngrad shared", TernGrad(None, shared_scale=True), terngrad_neighbours(None), 600 * 1.6 + 64, 1),
    _unbiased("dorefa", DoReFa(), dorefa_neighbours(2), 600 * 2 + 32),
    _unbiased("dorefa 1", DoReFa(1), dorefa_neighbours(1), 600 + 32),
    _unbiased("dorefa 7", DoReFa(7), dorefa_neighbours(7), 600 * 7 + 32),
    _unbiased("natural", NaturalCompression(), natural_neighbours, 600 * 9),
    _sparse("strom", ThresholdQuantization(1.5, 0.05), strom(1.5, 30), 30 * 1.6 + 64, 30),
    _sparse(
        "strom momentum", ThresholdQuantization(4, 0.5, momentum_correction=True), strom(4, 300), 300 * 1.6 + 64, 300
    ),
    _sparse("dryden", FixedProportion(0.05), dryden(30), 30 * 1.6 + 64, 30, tolerance=1e-6),
    _sparse(
        "dryden no feedback",
        FixedProportion(0.05, error_feedback=False, momentum_correction=True),
        dryden(30),
        30 * 1.6 + 64,
        30,
        tolerance=1e-6,
    ),
    _sparse("adacomp", AdaComp(other_bin=100), adacomp(100, 30), 30 * 1.6 + 64, 30, tolerance=1e-6),
    _sparse(
        "adacomp convolution", AdaComp(cap=0.5), adacomp(50, 6), 2 * 8 + 64, 6, tolerance=1e-6, shape=(20, 5, 3, 2)
    ),
    _sparse("vgc", VarianceBased(cap=0.1), vgc(1, 0.999, 0, 60, power4), 60 * 4 + 32, 60),
    _sparse(
        "vgc float32", VarianceBased(1.5, 0.9, cap=0.5, values="float32"), vgc(1.5, 0.9, 0, 300, lambda x: x), 9600, 300
    ),
    _sparse(
        "vgc hybrid",
        VarianceBased(threshold=0.5, cap=0.1),
        vgc(1, 0.999, 0.5, 60, power4),
        60 * 1.6 + 64,
        60,
    ),
    Case("powersgd", PowerSGD(), low_rank(2), 30 * 2 * 32, opening=40, tolerance=1e-5, draws="shared"),
    Case("powersgd 1", PowerSGD(1, error_feedback=False), low_rank(1), 960, opening=20, tolerance=1e-5, draws="shared"),
    Case("powersgd whole", PowerSGD(15), whole(), 600 * 32),
    Case("countsketch", CountSketch(0.02, columns=4), drawn(12, 1.0), 12 * 32, opening=240, draws="shared"),
    Case(
        "countsketch momentum",
        CountSketch(0.02, 3, 2.5, momentum_correction=True),
        drawn(12, 1.0),
        12 * 32,
        opening=90,
        draws="shared",
    ),
    Case("countsketch whole", CountSketch(0.1, columns=2), whole(), 600 * 32),
    Case("fp16", FP16(), whole(float16), 600 * 16),
    Case("fp16 feedback", FP16(error_feedback=True), whole(float16), 600 * 16),
    Case("bf16", BF16(), whole(bfloat16), 600 * 16),
    Case("int8", Int8(), whole(int8), 600 * 8 + 3 * 32, tolerance=1e-6),
    Case("int8 no feedback", Int8(error_feedback=False), whole(int8), 600 * 8 + 3 * 32, tolerance=1e-6),
]


def step(
    method: Method, state: State, g: Array, *, rank: int = 0, opened: Array | None = None, **arithmetic: object
) -> tuple[Array, Array, Array | None]:
    """One worker's exchange with itself: payload, what it decodes to, and what the opening round came to."""
    if opened is None:
        opened = method.open(g, state, rank=rank, **arithmetic)
    number = state.step
    payload = method.encode(g, state, rank=rank, opened=opened, **arithmetic)  # type: ignore[arg-type]
    out = np.zeros(g.size, F)
    sent = method.decode(payload[None], out, step=number, shape=state.shape, opened=opened, state=state)
    return payload, sent, opened
