"""The battery, on every registered method, and what only hypothesis can think of."""

from __future__ import annotations

import math

import method_cases
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from method_cases import ENTRIES, Entry, F

from horovod_dgc import (
    BF16,
    FP16,
    METHODS,
    QSGD,
    AdaComp,
    DoReFa,
    EFSignSGD,
    Int8,
    Method,
    NaturalCompression,
    OneBitSGD,
    SignSGD,
    TernGrad,
    ThresholdQuantization,
    VarianceBased,
    testing,
    traffic,
)

every_entry = pytest.mark.parametrize("case", ENTRIES, ids=[case.name for case in ENTRIES])


@pytest.mark.parametrize("part", testing.PARTS)
@pytest.mark.parametrize("case", method_cases.names().values(), ids=method_cases.names())
def test_battery(case: Entry, part: str) -> None:
    testing.PARTS[part](case)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_its_formula_in_the_table(name: str) -> None:
    method = METHODS[name]()
    found = [case for case in ENTRIES if case.method == method]
    if not found:
        pytest.fail(
            f"{name!r} has no formula: add entry({name!r}, {type(method).__name__}(), ...) to ENTRIES in "
            "tests/support/method_cases.py, with what it sends, in NumPy, and the bits of that"
        )
    assert found[0].name == name


@every_entry
def test_every_entry_is_held_against_all_there_is(case: Entry) -> None:
    assert case.formula and None not in (case.nbytes, case.opening_nbytes, case.bias_nbytes, case.keeps, case.draws)


def test_checks_on_ranks_take_every_method() -> None:
    assert {type(method) for method in method_cases.on_ranks()} == set(METHODS.values())
    for method in method_cases.on_ranks():
        compressed = method.plan((40, 50)).payload_nbytes < 4 * 2000
        assert compressed, f"{method} sends a tensor of the checks on ranks whole"


def test_a_method_without_an_entry_goes_through_battery_and_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(method_cases, "ENTRIES", [case for case in ENTRIES if not isinstance(case.method, QSGD)])
    assert method_cases.names()["qsgd defaults"].method == QSGD()
    assert [method for method in method_cases.on_ranks() if isinstance(method, QSGD)] == [QSGD()]


@every_entry
def test_biases_are_sent_whole(case: Entry) -> None:
    plan = case.method.plan((300,))
    assert plan.every_coordinate
    assert plan.momentum == ("aggregated" if case.method.corrects_momentum else None)
    g = np.random.default_rng(2).standard_normal(300).astype(F)
    g *= F(1 if case.method.clip_norm is None else case.method.clip_norm / 20)
    sent = testing.send(case.method, case.method.init((300,)), g).values
    np.testing.assert_allclose(sent, g, rtol=2**-8, atol=np.abs(g).max() / 250 if case.bias_nbytes == 308 else 0)
    assert not case.method.plan(()).codec.opening[0]


@pytest.mark.parametrize(
    ("method", "nbytes"),
    [
        (SignSGD(), 10 + 4),
        (EFSignSGD(), 10 + 4),
        (OneBitSGD(), 10 + 7 * 2 * 4),
        (QSGD(4, 10), 39 + 8 * 4),
        (TernGrad(), 16 + 2 * 4),
        (DoReFa(3), 29 + 4),
        (NaturalCompression(), 10 + 77),
        (FP16(), 2 * 77),
        (BF16(), 2 * 77),
        (Int8(), 77 + 4),
        (ThresholdQuantization(cap=1.0), 16 + 2 * 4),
        (AdaComp(), 1 + 2 * 4 + math.ceil(5 * 3 / 8) + math.ceil((5 + (76 >> 3)) / 8)),
        (VarianceBased(cap=1.0), 39 + 4),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Method) else "",
)
def test_bytes_of_a_tensor_of_odd_size(method: Method, nbytes: int) -> None:
    assert method.payload_nbytes((7, 11)) == nbytes


def test_traffic_counts_the_opening_round() -> None:
    method = next(case.method for case in ENTRIES if case.name == "powersgd")
    assert traffic([(20, 30), (30,)], method).sparse == 30 * 2 * 4 + 20 * 2 * 4


SHAPES = st.lists(st.integers(1, 9), min_size=2, max_size=4).map(tuple)
OUTPUTS = st.sampled_from(["first", "last"])


@settings(max_examples=300, deadline=None)
@given(case=st.sampled_from(ENTRIES), shape=SHAPES, outputs=OUTPUTS, seed=st.integers(0, 2**32))
def test_any_shape(case: Entry, shape: tuple[int, ...], outputs: str, seed: int) -> None:
    plan = case.method.plan(shape, outputs=outputs)
    assert plan.numel == math.prod(shape) and 1 <= plan.sent <= plan.numel
    gradients = np.random.default_rng(seed).standard_normal((3, plan.numel)).astype(F)
    testing.conserved(case.method, shape, gradients, momentum=case.momentum, outputs=outputs)


# Huge and tiny, subnormal and zero, whose sums over a few steps are finite.
VALUES = st.floats(-(2.0**120), 2.0**120, width=32)


@settings(max_examples=300, deadline=None)
@given(case=st.sampled_from(ENTRIES), shape=SHAPES, data=st.data())
def test_nothing_is_lost_of_any_values(case: Entry, shape: tuple[int, ...], data: st.DataObject) -> None:
    gradients = data.draw(arrays(F, (3, math.prod(shape)), elements=VALUES))
    testing.conserved(case.method, shape, gradients, momentum=case.momentum)
