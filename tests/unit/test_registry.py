"""Methods by name and from text, and what they say of themselves."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import pytest
from method_cases import ENTRIES

import horovod_dgc
from horovod_dgc import (
    DGC,
    FP16,
    METHODS,
    QSGD,
    AdaComp,
    Method,
    Plan,
    RandomK,
    SignSGD,
    TernGrad,
    TopK,
    VarianceBased,
    Warmup,
    method,
    register,
    registry,
)
from horovod_dgc.coding import every_coordinate
from horovod_dgc.methods.accumulating import Accumulating
from horovod_dgc.registry import parse


@pytest.mark.parametrize("name", METHODS)
def test_every_name_makes_its_method(name: str) -> None:
    made = method(name)
    assert type(made) is METHODS[name] and made == METHODS[name]() == parse(name)
    assert getattr(horovod_dgc, type(made).__name__) is METHODS[name]
    assert type(made).__name__ in horovod_dgc.__all__
    assert made.stages() == (0,)


def test_settings_are_passed_on() -> None:
    assert method("dgc", density=0.01, warmup=Warmup(steps=3)) == DGC(density=0.01, warmup=Warmup(steps=3))
    assert method("qsgd", bits=8, seed=4) == QSGD(8, seed=4)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("qsgd", QSGD()),
        ("qsgd:bits=2", QSGD(bits=2)),
        ("dgc:density=0.01,values=int8", DGC(density=0.01, values="int8")),
        ("dgc:clip_norm=2,exempt_values=float32", DGC(clip_norm=2.0, exempt_values="float32")),
        ("dgc:momentum_correction=False", DGC(momentum_correction=False)),
        ("dgc:clip_norm=none,warmup=None", DGC()),
        ("topk:density=1e-3,error_feedback=false", TopK(error_feedback=False)),
        ("terngrad:clip=none,shared_scale=true", TernGrad(None, True)),
        ("vgc:threshold=0.25,alpha=2", VarianceBased(2, threshold=0.25)),
        ("adacomp:cap=2", AdaComp(cap=2)),
        ("randomk:seed=18446744073709551615", RandomK(seed=2**64 - 1)),
        ("signsgd", SignSGD()),
    ],
)
def test_text(text: str, expected: Method) -> None:
    assert parse(text) == method(text) == expected


def test_settings_win_over_those_of_the_text() -> None:
    assert method("dgc:density=0.01,values=int8", density=0.1) == DGC(density=0.1, values="int8")
    with pytest.raises(ValueError, match=r"setting of 'dgc' must be one of .*'densty'"):
        method("dgc:density=0.01", densty=0.1)
    with pytest.raises(ValueError, match="method must be one of"):
        method("dcg:density=0.01")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ("method must be one of", "'dgc'", "''")),
        ("qsdg", ("method must be one of", "'qsdg'", "did you mean 'qsgd'?", "'powersgd'")),
        ("qsgd:", ("setting of 'qsgd' must be written as setting=value", "''")),
        ("qsgd:bits", ("setting=value", "'bits'")),
        ("qsgd:bits=", ("setting=value", "'bits='")),
        ("qsgd:bist=4", ("setting of 'qsgd' must be one of", "'bist'", "did you mean 'bits'?", "'bucket'")),
        ("qsgd:bits=four", ("bits must be a whole number", "'four'")),
        ("qsgd:bits=4.0", ("bits must be a whole number", "'4.0'")),
        ("qsgd:bits=none", ("bits must be a whole number", "'none'")),
        ("qsgd:bits=3", ("bits must be 2, 4 or 8", "3")),
        ("qsgd:bits=4,bits=8", ("bits of 'qsgd' must be given once",)),
        ("qsgd:seed=-1", ("seed must be a whole number in [0, 18446744073709551615]", "-1")),
        ("topk:density=much", ("density must be a number", "'much'")),
        ("topk:density=nan", ("density must be in (0, 1]", "nan")),
        ("topk:error_feedback=yes", ("error_feedback must be one of 'true', 'false'", "'yes'")),
        ("topk:values=ternary", ("values must be one of", "'ternary'")),
        ("randomk:values=int8", ("values must be one of 'float32', 'float16'", "'int8'")),
        ("dgc:warmup=5", ("warmup must be a Warmup", "5")),
        ("signsgd:bits=1", ("'signsgd' has no settings", "'bits'")),
    ],
)
def test_wrong_text_is_refused(text: str, words: tuple[str, ...]) -> None:
    with pytest.raises(ValueError) as caught:
        parse(text)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("top-k", {}, ("method", "did you mean 'topk'?")),
        ("topk", {"densities": 0.1}, ("setting of 'topk'", "'densities'", "did you mean 'density'?")),
        ("topk", {"density": 0}, ("density must be in (0, 1]", "0")),
        ("topk", {"indices": "ef"}, ("indices", "'elias-fano'")),
        ("topk", {"momentum_correction": 1}, ("momentum_correction must be True or False",)),
        ("topk", {"factor_masking": None}, ("factor_masking must be True or False",)),
        ("gradient-dropping", {"density": 2}, ("density",)),
        ("randomk", {"error_feedback": "no"}, ("error_feedback",)),
        ("efsignsgd", {"error_feedback": 0}, ("error_feedback",)),
        ("1bit", {"momentum_correction": 0}, ("momentum_correction",)),
        ("qsgd", {"bits": 5}, ("bits must be 2, 4 or 8, got 5",)),
        ("qsgd", {"bits": True}, ("bits", "True")),
        ("qsgd", {"bucket": 0}, ("bucket must be a whole number in [1, 999999999], got 0",)),
        ("terngrad", {"clip": 0}, ("clip must be in (0, 1e+30], got 0",)),
        ("terngrad", {"shared_scale": 1}, ("shared_scale",)),
        ("dorefa", {"bits": 9}, ("bits must be a whole number in [1, 8], got 9",)),
        ("natural", {"seed": 2**64}, ("seed",)),
        ("natural", {"seed": 1.5}, ("seed", "1.5")),
        ("strom", {"threshold": 0}, ("threshold must be in [1e-30, 1e+30], got 0",)),
        ("strom", {"cap": 0.0}, ("cap",)),
        ("dryden", {"density": -1}, ("density",)),
        ("dryden", {"indices": 4}, ("indices",)),
        ("adacomp", {"convolution_bin": 0}, ("convolution_bin",)),
        ("adacomp", {"other_bin": 0.5}, ("other_bin",)),
        ("adacomp", {"cap": float("inf")}, ("cap must be in (0, inf)",)),
        ("vgc", {"alpha": 0}, ("alpha",)),
        ("vgc", {"zeta": 1.01}, ("zeta must be in [0, 1], got 1.01",)),
        ("vgc", {"threshold": 0}, ("threshold",)),
        ("vgc", {"values": "ternary"}, ("values", "'power4'")),
        ("powersgd", {"rank": 0}, ("rank must be a whole number >= 1, got 0",)),
        ("countsketch", {"rows": 100}, ("rows must be a whole number in [1, 99], got 100",)),
        ("countsketch", {"columns": 0}, ("columns",)),
        ("fp16", {"error_feedback": 2}, ("error_feedback",)),
    ],
)
def test_wrong_settings_are_refused(name: str, settings: dict[str, object], words: tuple[str, ...]) -> None:
    with pytest.raises(ValueError) as caught:
        method(name, **settings)
    for word in words:
        assert word in str(caught.value)


def test_configurations_tell_methods_apart_and_are_the_same_in_every_process() -> None:
    configurations = [case.method.configuration() for case in ENTRIES]
    assert len(set(configurations)) == len({repr(case.method) for case in ENTRIES})
    assert configurations == [case.method.configuration() for case in ENTRIES]
    assert FP16().configuration() == "FP16(error_feedback=False)"
    code = "import horovod_dgc as h\nprint(*(h.method(name).configuration() for name in h.METHODS), sep='\\n')"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.splitlines() == [method(name).configuration() for name in METHODS]


@pytest.mark.parametrize("case", ENTRIES, ids=[case.name for case in ENTRIES])
def test_settings_survive_their_own_description(case: object) -> None:
    made = case.method  # type: ignore[attr-defined]
    assert eval(made.configuration(), vars(horovod_dgc)) == made


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> dict[str, type[Method]]:
    """The registry, which is as before after the test."""
    methods = dict(METHODS)
    monkeypatch.setattr(registry, "METHODS", methods)
    return methods


@dataclass(frozen=True)
class Own(TopK):
    share: float = 0.5


def test_a_registered_method_is_known_by_its_name(registered: dict[str, type[Method]]) -> None:
    assert register("own-topk")(Own) is Own and registered["own-topk"] is Own
    assert method("own-topk", share=0.25) == parse("own-topk:share=0.25") == Own(share=0.25)
    assert registry.text(Own(share=0.25)) == "own-topk:share=0.25" and registry.name_of(Own()) == "own-topk"
    with pytest.raises(ValueError, match="did you mean 'own-topk'"):
        parse("own-tpok")
    # As when the cell of a notebook runs again.
    again = type("Own", (Own,), {"__module__": Own.__module__, "__qualname__": Own.__qualname__})
    assert register("own-topk")(dataclass(frozen=True)(again)) is registered["own-topk"] is not Own


class Undecorated(TopK):
    pass


class Whole(Accumulating):
    def compressed(self, shape: Any, step: Any, outputs: Any) -> Plan:
        return self.accumulated(every_coordinate(shape, "float32"))


@dataclass
class Changeable(Whole):
    pass


@dataclass(frozen=True)
class Demanding(Whole):
    bits: int


@dataclass(frozen=True)
class Abstract(Method):
    pass


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("topk", Own, ("name of Own must be a new one", "'topk'", "TopK")),
        ("Own", Own, ("lower-case letters", "'Own'")),
        ("own_topk", Own, ("lower-case letters", "'own_topk'")),
        ("own:topk", Own, ("lower-case letters", "'own:topk'")),
        ("", Own, ("lower-case letters", "''")),
        ("dense", Own, ("neither 'dense' nor 'none'",)),
        (Own, Own, ("lower-case letters", "Own")),
        ("own", TopK(), ("class derived from horovod_dgc.Method", "TopK(")),
        ("own", dict, ("class derived from horovod_dgc.Method", "dict")),
        ("own", Abstract, ("Abstract must define compressed",)),
        ("own", Changeable, ("Changeable must be decorated with @dataclass(frozen=True)",)),
        ("own", Undecorated, ("Undecorated must be decorated with @dataclass(frozen=True)",)),
        ("own", Demanding, ("bits of Demanding must have a default",)),
    ],
    ids=str,
)
def test_what_cannot_be_registered_is_refused(
    registered: dict[str, type[Method]], name: Any, kind: Any, words: tuple[str, ...]
) -> None:
    before = dict(registered)
    with pytest.raises(ValueError) as caught:
        register(name)(kind)
    for word in words:
        assert word in str(caught.value)
    assert registered == before


@pytest.mark.parametrize("case", ENTRIES, ids=[case.name for case in ENTRIES])
def test_text_of_a_method_parses_to_it(case: Any) -> None:
    assert parse(registry.text(case.method)) == case.method


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (DGC(), "dgc"),
        (DGC(density=0.01, clip_norm=2.0), "dgc:density=0.01,clip_norm=2.0"),
        (TernGrad(None, True), "terngrad:clip=None,shared_scale=True"),
        (RandomK(seed=2**64 - 1), f"randomk:seed={2**64 - 1}"),
    ],
)
def test_only_what_differs_from_the_defaults_is_in_the_text(made: Method, text: str) -> None:
    assert registry.text(made) == text


@pytest.mark.parametrize("made", [DGC(warmup=Warmup(steps=3)), Own(), Undecorated(), "topk"])
def test_what_text_cannot_say_is_refused(made: Any) -> None:
    with pytest.raises(ValueError, match="method"):
        registry.text(made)
