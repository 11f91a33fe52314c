"""The battery bites: methods that are wrong on purpose are caught, each by the part that is there for it."""

from __future__ import annotations

import math
import pickle
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from method_cases import F, between, largest, qsgd_neighbours, top

from horovod_dgc import DGC, QSGD, Method, Plan, PowerSGD, RandomK, SignSGD, TopK, Warmup, testing
from horovod_dgc.coding import codec, coordinates_to_send
from horovod_dgc.methods.accumulating import Accumulating


@dataclass(frozen=True)
class LosesRoundingErrors(TopK):
    values: str = "int8"
    density: float = 0.1

    def encode(self, grad: Any, state: Any, **settings: Any) -> Any:
        before = state.residual + grad
        payload = super().encode(grad, state, **settings)
        state.residual[state.residual != before] = 0
        return payload


@dataclass(frozen=True)
class LosesWhatIsTiny(TopK):
    def encode(self, grad: Any, state: Any, **settings: Any) -> Any:
        payload = super().encode(grad, state, **settings)
        state.residual[np.abs(state.residual) < 1e-30] = 0
        return payload


@dataclass(frozen=True)
class CountsTwice(TopK):
    def encode(self, grad: Any, state: Any, **settings: Any) -> Any:
        return super().encode(grad, state, **{**settings, "unscale": 2.0})


@dataclass(frozen=True)
class SendsNothing(Accumulating):
    def compressed(self, shape: Any, step: Any, outputs: Any) -> Plan:
        n = math.prod(shape)
        return self.accumulated(
            codec("coordinates", n=n, k=1, indices="int32", values="ternary", select="above", threshold=1e20)
        )


@dataclass(frozen=True)
class LeavesZerosOut(TopK):
    density: float = 0.5

    def encode(self, grad: Any, state: Any, **settings: Any) -> Any:
        return np.trim_zeros(super().encode(grad, state, **settings), "b")


@dataclass(frozen=True)
class TakesAnyLength(TopK):
    def decode(self, payloads: Any, out: Any, **settings: Any) -> Any:
        nbytes = self.payload_nbytes(settings["shape"], settings["step"])
        if payloads.shape[-1] != nbytes:
            return out
        return super().decode(payloads, out, **settings)


@dataclass(frozen=True)
class TakesNaNForZero(TopK):
    def encode(self, grad: Any, state: Any, **settings: Any) -> Any:
        return super().encode(np.nan_to_num(grad) if grad.dtype == F else grad, state, **settings)


@dataclass(frozen=True)
class KeepsNaN(TopK):
    def encode(self, grad: Any, state: Any, **settings: Any) -> Any:
        payload = super().encode(grad, state, **settings)
        if not np.isfinite(np.sum(grad)):
            state.step += 1
        return payload


@dataclass(frozen=True)
class IgnoresItsSeed(QSGD):
    def randomness(self, tensor: int, step: int, rank: int) -> Any:
        return QSGD().randomness(tensor, step, rank)


@dataclass(frozen=True)
class DrawsTheSameInEveryStep(QSGD):
    def randomness(self, tensor: int, step: int, rank: int) -> Any:
        return super().randomness(tensor, 0, rank)


@dataclass(frozen=True)
class DrawsAlikeOnAllRanks(QSGD):
    def randomness(self, tensor: int, step: int, rank: int) -> Any:
        return super().randomness(tensor, step, 0)


@dataclass(frozen=True)
class DrawsOtherCoordinatesOnEachRank(RandomK):
    def randomness(self, tensor: int, step: int, rank: int) -> Any:
        return super().randomness(tensor, step + rank, 0)


@dataclass(frozen=True)
class DrawsABasisOfItsOwn(PowerSGD):
    def randomness(self, tensor: int, step: int, rank: int) -> Any:
        return super().randomness(tensor, step + rank, rank)


@dataclass(frozen=True)
class HasNoSeed(Method):
    def compressed(self, shape: Any, step: Any, outputs: Any) -> Plan:
        return QSGD().compressed(shape, step, outputs)


@dataclass(frozen=True)
class SendsTooMuch(TopK):
    def compressed(self, shape: Any, step: Any, outputs: Any) -> Plan:
        return TopK(2 * self.density).compressed(shape, step, outputs)


@dataclass(frozen=True)
class DoesNotMask(TopK):
    def compressed(self, shape: Any, step: Any, outputs: Any) -> Plan:
        return replace(super().compressed(shape, step, outputs), masking=False)


asked = iter(range(10**9))


@dataclass(frozen=True)
class PlansByChance(TopK):
    def compressed(self, shape: Any, step: Any, outputs: Any) -> Plan:
        return replace(super().compressed(shape, step, outputs), sample_ratio=0.01 if next(asked) % 3 else 0.02)


WARMUP = Warmup(steps=8)


@dataclass(frozen=True)
class KeepsItsStagesToItself(DGC):
    warmup: Any = WARMUP

    def stages(self) -> tuple[int, ...]:
        return (0,)


@dataclass(frozen=True)
class HasAMomentumOfItsOwn(TopK):
    @property
    def corrects_momentum(self) -> bool:
        return True


@dataclass
class CanBeChanged(Accumulating):
    bits: int = 1

    def compressed(self, shape: Any, step: Any, outputs: Any) -> Plan:
        return SignSGD().compressed(shape, step, outputs)


class IsNotDecorated(TopK):
    def compressed(self, shape: Any, step: Any, outputs: Any) -> Plan:
        return super().compressed(shape, step, outputs)


@dataclass(frozen=True)
class IsEqualToOthers(TopK):
    density: float = field(default=0.01, compare=False)


@dataclass(frozen=True)
class HidesASetting(TopK):
    def configuration(self) -> str:
        return "HidesASetting()"


@dataclass(frozen=True)
class CannotBePickled(TopK):
    def __reduce__(self) -> Any:
        raise pickle.PicklingError("no")


@dataclass(frozen=True)
class FailsOnZeros(TopK):
    def encode(self, grad: Any, state: Any, **settings: Any) -> Any:
        if grad.size:
            1 / int(np.count_nonzero(grad))
        return super().encode(grad, state, **settings)


@dataclass(frozen=True)
class TakesEveryOther(TopK):
    def encode(self, grad: Any, state: Any, **settings: Any) -> Any:
        return super().encode(np.ascontiguousarray(grad), state, **settings)


@dataclass(frozen=True)
class GivesTheSum(TopK):
    def decode(self, payloads: Any, out: Any, **settings: Any) -> Any:
        return super().decode(payloads, out, **{**settings, "scale": 1.0})


class OfTwoParts(Plan):
    def divided(self, parts: int) -> Plan | None:
        return super().divided(2)


@dataclass(frozen=True)
class DividesForTwo(TopK):
    def compressed(self, shape: Any, step: Any, outputs: Any) -> Plan:
        return OfTwoParts(**vars(super().compressed(shape, step, outputs)))


@dataclass(frozen=True)
class TurnsSignsOverAndBack(SignSGD):
    def encode(self, grad: Any, state: Any, **settings: Any) -> Any:
        return super().encode(-grad if grad.dtype == F else grad, state, **settings)

    def decode(self, payloads: Any, out: Any, **settings: Any) -> Any:
        before = out.copy()
        super().decode(payloads, out, **settings)
        out[:] = 2 * before - out
        return out


def falling(step: int) -> float:
    return max(0.01, 0.3 / (step + 1))


@dataclass(frozen=True)
class SparseSigns(Accumulating):
    """A right one: the signs of the largest coordinates, and their mean magnitude."""

    density: float = 0.01

    def compressed(self, shape: Any, step: Any, outputs: Any) -> Plan:
        n = math.prod(shape)
        k = coordinates_to_send(n, self.density)
        return self.accumulated(codec("coordinates", n=n, k=k, indices="int32", values="meansign", select="largest"))


def largest_signs(look: testing.Look) -> np.ndarray:
    sent, chosen = np.zeros_like(look.v), largest(look.v, 6)
    sent[chosen] = np.sign(look.v[chosen]) * np.abs(look.v[chosen]).mean()
    return sent


@pytest.mark.parametrize(
    ("method", "known"),
    [
        (SparseSigns(), {"formula": largest_signs, "nbytes": 4 + 1 + 6 * 4, "tolerance": 1e-6, "draws": "nothing"}),
        (DGC(0.01, warmup=WARMUP), {}),
        (DGC(0.01, warmup=falling), {}),
    ],
    ids=["own", "warmup", "callable"],
)
def test_right_ones_pass(method: Method, known: dict[str, Any]) -> None:
    testing.check_method(method, **known)


@pytest.mark.parametrize(
    ("method", "known", "part", "words"),
    [
        (LosesRoundingErrors(), {}, "conservation", "sent + residual must be what was accumulated"),
        (LosesWhatIsTiny(), {}, "conservation", "sent + residual must be what was accumulated"),
        (CountsTwice(), {}, "conservation", "sent + residual must be what was accumulated"),
        (SendsNothing(), {}, "conservation", "something must be sent"),
        (LeavesZerosOut(), {}, "size", "whatever the data"),
        (TakesAnyLength(), {}, "size", "a payload of another length must be refused"),
        (TopK(0.01), {"nbytes": 99}, "size", "must be of 99 bytes, got 19"),
        (QSGD(), {"bias_nbytes": 300}, "size", "must be of 300 bytes, got 1200"),
        (TakesNaNForZero(), {}, "not finite", "must leave the state unchanged"),
        (KeepsNaN(), {}, "not finite", "must leave the state unchanged"),
        (IgnoresItsSeed(), {}, "seeds", "another seed must draw something else"),
        (DrawsTheSameInEveryStep(), {}, "seeds", "another step must draw something else"),
        (DrawsAlikeOnAllRanks(), {"draws": "own"}, "seeds", "another rank must draw something else"),
        (DrawsOtherCoordinatesOnEachRank(), {}, "conservation", "sent + residual must be what was accumulated"),
        (DrawsABasisOfItsOwn(), {"draws": "shared"}, "seeds", "drawn alike by all workers"),
        (HasNoSeed(), {}, "seeds", "must have a seed"),
        (QSGD(), {"draws": "nothing"}, "seeds", "must not depend on rank"),
        (SendsTooMuch(0.01), {"formula": top(6)}, "formula", "what is sent in step 0"),
        (TopK(0.01, values="int8"), {"formula": top(6)}, "formula", "what is sent in step 0"),
        (DoesNotMask(momentum_correction=True), {"keeps": {"residual", "velocity", "masking"}}, "plans", "must keep"),
        (PlansByChance(), {}, "plans", "must be the same whenever it is asked for"),
        (KeepsItsStagesToItself(), {}, "plans", "by stages() (0,)"),
        (HasAMomentumOfItsOwn(), {}, "plans", "must have a momentum"),
        (CanBeChanged(), {}, "settings", "must be decorated with @dataclass(frozen=True)"),
        (IsNotDecorated(), {}, "settings", "must be decorated with @dataclass(frozen=True)"),
        (IsEqualToOthers(), {}, "settings", "must not be equal"),
        (HidesASetting(), {}, "settings", "configuration() must tell"),
        (CannotBePickled(), {}, "settings", "PicklingError"),
        (TopK(0.1, error_feedback=False), {"neighbours": lambda v: (0 * v, 10 * v)}, "unbiased", "the mean over"),
        (QSGD(2), {"neighbours": qsgd_neighbours(4, 512)}, "unbiased", "the mean over"),
        (QSGD(2), {"formula": between(qsgd_neighbours(4, 512))}, "formula", ""),
        (FailsOnZeros(), {}, "odd tensors", "ZeroDivisionError"),
        (TakesEveryOther(), {}, "odd tensors", "of every other element of an array must be refused"),
        (GivesTheSum(), {}, "workers", "what 3 workers get"),
        (DividesForTwo(0.1), {}, "sparse allreduce", "must have as many parts, got 2"),
        (TurnsSignsOverAndBack(), {}, "adapters", "adapters follow plan() and randomness()"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Method) else "",
)
def test_caught(method: Method, known: dict[str, Any], part: str, words: str) -> None:
    with pytest.raises(Exception) as caught:
        testing.PARTS[part](testing.Case(method, **known))
    assert words in f"{type(caught.value).__name__}: {caught.value}"
    with pytest.raises(AssertionError) as whole:
        testing.check_method(method, **known)
    assert str(whole.value).startswith(f"{method!r} fails in ")


def test_what_is_no_method_is_refused() -> None:
    with pytest.raises(ValueError, match="method must be a method and not its class"):
        testing.check_method(TopK)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="formulas"):
        testing.check_method(TopK(), formulas=top(1))
