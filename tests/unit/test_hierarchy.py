"""Who compresses what where nodes, and not single ranks, exchange payloads."""

from __future__ import annotations

import math
import sys
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st

from horovod_dgc.hierarchy import Hierarchy, hierarchy, process_set


def worker(rank: int, size: int, local_rank: int, local_size: int) -> types.SimpleNamespace:
    """Horovod's module as a rank sees it."""
    told = {"rank": rank, "size": size, "local_rank": local_rank, "local_size": local_size}
    return types.SimpleNamespace(**{name: lambda value=value: value for name, value in told.items()})


SHAPES = st.lists(st.integers(1, 12), min_size=2, max_size=4)


@given(SHAPES, st.sampled_from(("first", "last")), st.integers(2, 9), st.integers(1, 4))
def test_the_parts_of_a_node_are_the_tensor(shape: list[int], outputs: str, local_size: int, nodes: int) -> None:
    workers = local_size * nodes
    rows = shape[0] if outputs == "first" else math.prod(shape[:-1])
    for node in range(nodes):
        ranks = range(node * local_size, (node + 1) * local_size)
        parts = [Hierarchy(rank, workers, local_size).part(shape, outputs) for rank in ranks]
        if rows < local_size:
            assert parts == [None] * local_size
            continue
        ends = [0, *(part.stop for part in parts)]
        assert [part.start for part in parts] == ends[:-1]
        assert ends[-1] == math.prod(shape)
        counts = [part.shape[0] for part in parts]
        assert max(counts) - min(counts) <= 1 and counts == sorted(counts, reverse=True)
        assert all(math.prod(part.shape) == part.numel for part in parts)


@pytest.mark.parametrize("shape", [(), (64,), (0, 8), (3, 0)])
def test_small_tensors_are_left_alone(shape: tuple[int, ...]) -> None:
    assert Hierarchy(0, 4, 2).part(shape, "first") is None


@given(st.integers(1, 8), st.integers(2, 8))
def test_every_rank_is_in_one_node_and_in_one_set_across(nodes: int, local_size: int) -> None:
    workers = nodes * local_size
    for rank in range(workers):
        placed = Hierarchy(rank, workers, local_size)
        assert set(placed.inside(placed.node)) & set(placed.across(placed.place)) == {rank}
    first = Hierarchy(0, workers, local_size)
    assert sorted(rank for node in range(nodes) for rank in first.inside(node)) == list(range(workers))
    assert sorted(rank for place in range(local_size) for rank in first.across(place)) == list(range(workers))


@pytest.mark.parametrize(("option", "local_size"), [(False, 4), (True, 1), (1, 4)])
def test_ranks_by_themselves(option: bool | int, local_size: int) -> None:
    assert hierarchy(option, worker(0, 8, 0, local_size)) is None


def test_nodes_of_horovod_or_of_a_number() -> None:
    assert hierarchy(True, worker(5, 8, 1, 4)) == Hierarchy(5, 8, 4)
    assert hierarchy(2, worker(5, 8, 1, 4)) == Hierarchy(5, 8, 2)


def test_ranks_that_are_dealt_out_to_the_nodes_are_said_to_be() -> None:
    """Rank 1 of 4 on the second node, as its first."""
    placed = hierarchy(True, worker(1, 4, 0, 2))
    assert "not numbered node by node" in placed.configuration
    assert "not numbered" not in hierarchy(True, worker(0, 4, 0, 2)).configuration


@pytest.mark.parametrize("option", [0, -1, 3, 16, 2.0, "2", None])
def test_refuses(option: object) -> None:
    with pytest.raises(ValueError, match=r"hierarchical must be .* got"):
        hierarchy(option, worker(0, 8, 0, 4))


class Sets:
    """Stands for Horovod's module of process sets."""

    class ProcessSet:
        process_set_id = None

        def __init__(self, ranks: list[int]) -> None:
            self.ranks = ranks

    def __init__(self, known: dict[int, list[int]], dynamic: bool) -> None:
        self._basics = types.SimpleNamespace(_get_process_set_ids_and_ranks=lambda: known)
        self._known, self._dynamic = known, dynamic

    def add_process_set(self, new: ProcessSet) -> ProcessSet:
        if not self._dynamic:
            raise ValueError("Set HOROVOD_DYNAMIC_PROCESS_SETS=1")
        new.process_set_id = len(self._known)
        self._known[new.process_set_id] = new.ranks
        return new


def pretend(monkeypatch: pytest.MonkeyPatch, sets: Sets) -> None:
    common = types.ModuleType("horovod.common")
    common.process_sets = sets
    monkeypatch.setitem(sys.modules, "horovod", types.ModuleType("horovod"))
    monkeypatch.setitem(sys.modules, "horovod.common", common)


def test_an_optimizer_with_a_process_set_of_its_own() -> None:
    with pytest.raises(ValueError, match="process_set of the optimizer's own"):
        Hierarchy(0, 4, 2).members(types.SimpleNamespace(process_set_id=3))


def test_every_rank_makes_every_set(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {0: [0, 1, 2, 3]}
    pretend(monkeypatch, Sets(known, dynamic=True))
    inside, across = Hierarchy(3, 4, 2).members(types.SimpleNamespace(process_set_id=0))
    assert (inside.process_set.ranks, inside.workers) == ([2, 3], 2)
    assert (across.process_set.ranks, across.workers) == ([1, 3], 2)
    assert list(known.values()) == [[0, 1, 2, 3], [0, 1], [2, 3], [0, 2], [1, 3]]


def test_a_process_set_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, Sets({0: [0, 1, 2, 3]}, dynamic=True))
    assert process_set([0, 1, 2, 3]).process_set_id == 0
    assert [process_set([0, 2]).process_set_id for _ in range(2)] == [1, 1]


def test_horovod_was_not_told_of_new_process_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, Sets({0: [0, 1]}, dynamic=False))
    with pytest.raises(ValueError, match="dynamic"):
        process_set([0])
