"""Bytes from shapes: the paper's published ratios, the package's own, and what is really sent."""

from __future__ import annotations

import math

import numpy as np
import pytest

from horovod_dgc import DGC, QSGD, RandomK, Warmup, shapes, traffic, transport

PAPER = DGC(values="float32", indices="runlength16")


def elements(model: shapes.Shapes) -> tuple[int, int]:
    weights = sum(int(np.prod(s)) for s in model.values() if len(s) > 1)
    return weights, sum(int(np.prod(s)) for s in model.values() if len(s) <= 1)


@pytest.mark.parametrize(
    ("model", "weights", "others"),
    [
        (shapes.resnet50(), 25_502_912, 54_120),
        (shapes.alexnet(), 60_954_656, 10_568),
        (shapes.ptb_lstm(), 51_000_000, 34_000),
    ],
)
def test_shapes_have_the_published_sizes(model: shapes.Shapes, weights: int, others: int) -> None:
    assert elements(model) == (weights, others)


@pytest.mark.parametrize(
    ("model", "published"), [(shapes.resnet50(), 277), (shapes.alexnet(), 597), (shapes.ptb_lstm(), 462)]
)
def test_the_papers_coding_gives_the_papers_ratio(model: shapes.Shapes, published: int) -> None:
    assert abs(traffic(model, PAPER).ratio - published) < 1


@pytest.mark.parametrize("name", shapes.MODELS)
def test_default_is_500_fold_and_best_1000_fold(name: str) -> None:
    model = shapes.MODELS[name]()
    assert traffic(model, DGC()).ratio >= 500
    assert traffic(model, DGC(values="int4")).ratio >= 1000


def test_payloads_are_as_long_as_traffic_says() -> None:
    rng = np.random.default_rng(1)
    for values in ("float32", "float16", "bfloat16", "int8", "int4"):
        for indices in ("elias-fano", "runlength16", "int32"):
            method = DGC(density=0.01, values=values, indices=indices, warmup=Warmup(steps=4))
            state = method.init(30_011)
            for step in range(6):
                payload = method.encode(rng.standard_normal(30_011).astype(np.float32), state, momentum=0.9)
                told = traffic([(1, 30_011)], method, step)
                assert payload.nbytes == told.sparse == told.total == method.payload_nbytes(30_011, step)


def test_exempt_tensors_are_counted_with_their_own_coder() -> None:
    model = {"w": (100, 100), "b": (64,), "scalar": ()}
    told = traffic(model, DGC(density=0.01, values="float32", indices="int32", exempt_values="float16"))
    assert (told.sparse, told.exempt, told.dense) == (100 * 8, 65 * 2, 4 * 10_065)
    assert told.ratio == told.dense / (told.sparse + told.exempt)


def test_nothing_to_send() -> None:
    assert traffic([], DGC()).total == 0
    assert traffic([(0, 3)], DGC()).total == 0


@pytest.mark.parametrize("workers", [1, 2, 3, 8, 32, 1000, 4000])
def test_transport_is_the_cheaper_one(workers: int) -> None:
    for method in (DGC(), DGC(density=0.25), DGC(density=1.0, values="float32"), DGC(values="int8")):
        for shape in ((64,), (500, 400)):
            plan = method.plan(shape)
            chosen = transport.choose(plan, workers)
            costs = {t: transport.received_nbytes(plan, workers, t) for t in ("gather", "allreduce")}
            assert costs[chosen] == min(costs.values())


def test_many_workers_turn_a_gather_into_an_allreduce() -> None:
    plan = DGC(density=0.25).plan((1000, 1000))
    assert transport.choose(plan, 2) == "gather"
    assert transport.choose(plan, 32) == "allreduce"


@pytest.mark.parametrize("workers", [2, 4, 16, 64, 1000, 10_000])
@pytest.mark.parametrize("density", [0.001, 0.01, 0.25])
def test_a_sparse_allreduce_where_a_gather_is_too_long_and_dense_twice_as_long(workers: int, density: float) -> None:
    plan = DGC(density=density).plan((1000, 1000))
    way, resolved = transport.resolved(plan, workers, None)
    divided = plan.divided(workers)
    gather, dense = (transport.received_nbytes(plan, workers, t) for t in ("gather", "allreduce"))
    by_ranges = math.inf if divided is None else transport.received_nbytes(divided, workers, "sparse-allreduce")
    expected = "gather" if gather < dense else "sparse-allreduce" if 2 * by_ranges <= dense else "allreduce"
    assert way == expected
    assert resolved == (divided if way == "sparse-allreduce" else plan)
    # Whatever it is, nobody receives more than twice the dense tensor.
    assert transport.received_nbytes(resolved, workers, way) <= dense


def test_what_a_sparse_allreduce_cannot_carry_goes_by_cost() -> None:
    for plan in (
        DGC(density=1.0).plan((100, 100)),
        DGC(density=0.5).plan((7, 1)),
        DGC().plan((64,)),
        RandomK(density=0.01).plan((100, 100)),
        QSGD().plan((100, 100)),
    ):
        assert plan.divided(8) is None
        assert transport.resolved(plan, 8, "sparse-allreduce") == (transport.choose(plan, 8), plan)


def test_parts_of_a_payload_have_one_length() -> None:
    plan = DGC(density=0.01, values="int8").plan((1003, 7))
    divided = plan.divided(6)
    assert divided.payload_nbytes % 6 == 0 and divided.codec.parts == 6
    assert plan.sent <= divided.sent < plan.sent + 6
    assert DGC(density=0.001).plan((50, 50)).divided(8).sent == 8
