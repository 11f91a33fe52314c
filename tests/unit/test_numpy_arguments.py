"""Invariant 7 of what runs on NumPy alone: wrong use is one clear sentence, and nothing has changed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from horovod_dgc import DGC, METHODS, QSGD, Method, TopK, exchange, method, traffic
from horovod_dgc.registry import parse

N = 64
GRAD = np.random.default_rng(0).standard_normal(N).astype(np.float32)
SPARSE = DGC(density=0.1)
CLIPPED = DGC(density=0.1, clip_norm=1.0)


def payload() -> np.ndarray:
    return SPARSE.encode(GRAD, SPARSE.init(N))


WRONG: dict[str, tuple[Any, tuple[str, ...]]] = {
    "workers 0": (lambda: SPARSE.encode(GRAD, SPARSE.init(N), workers=0), ("workers", ">= 1", "0")),
    "workers -4": (lambda: CLIPPED.encode(GRAD, CLIPPED.init(N), workers=-4), ("workers", ">= 1", "-4")),
    "workers 1.5": (lambda: CLIPPED.encode(GRAD, CLIPPED.init(N), workers=1.5), ("workers", "whole number", "1.5")),
    "workers of open": (lambda: QSGD().open(GRAD, QSGD().init(N), workers=0), ("workers", ">= 1", "0")),
    "no state": (lambda: SPARSE.encode(GRAD, None), ("state", "DGC.init()", "None")),
    "scale nan": (lambda: SPARSE.decode(payload(), np.zeros(N, np.float32), scale=float("nan")), ("scale", "nan")),
    "scale text": (lambda: SPARSE.decode(payload(), np.zeros(N, np.float32), scale="1"), ("scale", "'1'")),
    "shape array": (lambda: SPARSE.init(np.array([3.5, 4.0])), ("shape", "whole number", "3.5")),
    "shape text": (lambda: SPARSE.init("10"), ("shape", "whole numbers", "'10'")),
    "shape number": (lambda: SPARSE.init(10.0), ("numel", "whole number", "10.0")),
    "exchange class": (lambda: exchange(DGC, [GRAD], [SPARSE.init(N)]), ("method", "write DGC()")),
    "traffic class": (lambda: traffic([(3, 4)], DGC), ("method", "write DGC()")),
    "traffic name": (lambda: traffic([(3, 4)], "dgc"), ("method", "DGC(density=0.001)", "'dgc'")),
    "traffic shapes": (lambda: traffic(3, SPARSE), ("shapes", "got 3")),
    "traffic shape": (lambda: traffic([3, 4], SPARSE), ("shape", "(64, 3, 7, 7)", "got 3")),
    "traffic extent": (lambda: traffic([(3, -4)], SPARSE), ("shape", ">= 0", "-4")),
    "traffic step": (lambda: traffic([(3, 4)], SPARSE, step=-1), ("step", ">= 0", "-1")),
    "parse None": (lambda: parse(None), ("text", "'dgc:density=0.01'", "None")),
    "parse method": (lambda: parse(SPARSE), ("text", "'dgc:density=0.01'", "DGC(")),
    "case": (lambda: method("DGC"), ("method", "did you mean 'dgc'?")),
    "case of class": (lambda: method("GradientDropping"), ("did you mean 'gradient-dropping'?",)),
    "case in text": (lambda: parse("TopK:density=0.1"), ("did you mean 'topk'?",)),
    "setting": (lambda: method("dgc", Density=0.1), ("did you mean 'density'?",)),
    "method None": (lambda: method(None), ("method", "'dgc'", "None")),
    "compression": (lambda: SPARSE.compress(GRAD), ("compression", "Compression(DGC(), optimizer, model)")),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_use_says_what_to_write(name: str) -> None:
    call, words = WRONG[name]
    with pytest.raises(ValueError) as raised:
        call()
    message = str(raised.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


@pytest.mark.parametrize("kind", METHODS.values())
def test_a_state_of_another_method_is_refused_and_unchanged(kind: type[Method]) -> None:
    one, other = kind(), TopK() if kind is not TopK else DGC()
    state = other.init((4, 16))
    before = None if state.residual is None else state.residual.copy()
    with pytest.raises(ValueError, match=f"state must be one that {kind.__name__}.init.* got one of "):
        one.encode(GRAD, state)
    assert state.step == 0 and np.array_equal(state.residual, before)


def test_states_serve_other_settings_of_the_same_method() -> None:
    state = DGC(density=0.5).init((4, 16))
    DGC(density=0.1).encode(GRAD, state)
    assert state.step == 1


def test_shapes_may_be_arrays() -> None:
    assert SPARSE.init(np.array([4, 16])).shape == (4, 16)
    assert traffic(np.array([[4, 16], [2, 8]]), SPARSE).dense == 4 * (64 + 16)


@pytest.mark.parametrize("kind", METHODS.values())
def test_an_opening_round_takes_what_encoding_takes(kind: type[Method]) -> None:
    states = [kind().init((4, 16)) for _ in range(2)]
    weights = np.ones(N, np.float32)
    result = exchange(kind(), [GRAD, -GRAD], states, weights=weights, weight_decay=0.5, zero_grad=False)
    assert np.isfinite(result).all() and all(state.step == 1 for state in states)
