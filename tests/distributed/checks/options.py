"""What Horovod's and the method's options promise."""

from __future__ import annotations

import gc
import itertools
import math
import weakref
from typing import Any

import horovod.torch as hvd
import torch
from torch import nn

from checks.common import (
    Fed,
    assert_ranks_identical,
    assert_same_trajectory,
    batch,
    compressed,
    distribute,
    small_model,
    train,
    vector,
)
from horovod_dgc import DGC, Warmup, traffic, transport

EXACT = DGC(density=1.0, values="float32")


def momentum_sgd(model: nn.Module, **settings: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), **{"lr": 0.05, "momentum": 0.9, **settings})


def check_process_sets() -> None:
    """Members exchange among themselves; the others train as one worker each, their optimizer untouched."""
    members = [0, hvd.size() - 1] if hvd.size() > 2 else [0]
    process_set = hvd.add_process_set(members)
    trajectories = []
    for compress in (True, False):
        model = small_model()
        optimizer = momentum_sgd(model, weight_decay=0.01)
        if compress:
            distributed, _ = compressed(EXACT, model, optimizer, settings={}, process_set=process_set)
        else:
            distributed = distribute(model, optimizer, process_set=process_set)
        trajectories.append(train(model, distributed))
    assert_same_trajectory(*trajectories)
    hvd.remove_process_set(process_set)


def check_a_process_set_of_one_is_plain_sgd() -> None:
    process_set = hvd.add_process_set([hvd.size() - 1])
    model, plain = small_model(), small_model()
    settings = {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}
    distributed, _ = compressed(
        DGC(density=0.01), model, momentum_sgd(model, **settings), settings={}, process_set=process_set
    )
    assert_same_trajectory(train(model, distributed), train(plain, momentum_sgd(plain, **settings)))
    hvd.remove_process_set(process_set)


def check_grouped_allreduce_of_sparse_and_exempt_tensors() -> None:
    ends = []
    for options in ({}, {"groups": 3}, {"num_groups": 2}):
        model = small_model()
        # Gathered payloads are summed in rank order; an allreduce's order depends on what Horovod happens to fuse.
        settings = {"transport": "gather"}
        optimizer, _ = compressed(DGC(density=0.05), model, momentum_sgd(model), settings=settings, **options)
        ends.append(train(model, optimizer)[-1])
        assert_ranks_identical(model, str(options))
    assert torch.equal(ends[0], ends[1])
    assert torch.equal(ends[0], ends[2])


def check_explicit_groups() -> None:
    model = small_model()
    groups = [list(model[0].parameters()), list(model[4].parameters())]
    optimizer, compression = compressed(DGC(density=0.05), model, momentum_sgd(model), settings={}, groups=groups)
    train(model, optimizer)
    assert_ranks_identical(model, "explicit groups")
    assert compression.stats().total.steps == 10


def check_backward_passes_with_sparse_payloads() -> None:
    """Gradients of several passes are summed before they are compressed: the same as one pass of the sum."""
    ends = []
    for passes in (1, 2):
        model = Fed()
        optimizer, compression = compressed(
            DGC(density=0.05), model, momentum_sgd(model), settings={}, backward_passes_per_step=passes
        )
        for step in range(5):
            gradients = [model.feed(2 * step + i, hvd.rank()) for i in range(2)]
            optimizer.zero_grad()
            for part in gradients if passes == 2 else [[a + b for a, b in zip(*gradients)]]:
                model.backward(part)
            optimizer.step()
        assert compression.stats().total.steps == 5
        ends.append(vector(model.parameters()))
    assert torch.equal(*ends)


def _norms(grads: list[torch.Tensor]) -> float:
    return math.sqrt(sum(float(g.double().square().sum()) for g in grads))


def check_local_clipping_follows_the_formula() -> None:
    """Each gradient g becomes g * min(1, L / |g|) with L = C sqrt(N) before it is averaged, C / sqrt(N) for a sum."""
    for scope, op, clip in itertools.product(("global", "tensor"), (hvd.Average, hvd.Sum), (0.05, 0.2)):
        model = small_model()
        model[1].eval()
        method = DGC(density=1.0, values="float32", clip_norm=clip, clip_scope=scope)
        distributed, _ = compressed(method, model, torch.optim.SGD(model.parameters(), lr=1.0), settings={}, op=op)
        start = [p.detach().clone() for p in model.parameters()]
        images, labels = batch(0)
        nn.functional.cross_entropy(model(images), labels).backward()
        local = [p.grad.clone() for p in model.parameters()]
        distributed.step()
        limit = clip * math.sqrt(hvd.size()) if op == hvd.Average else clip / math.sqrt(hvd.size())
        whole = _norms(local)
        assert whole > limit, "nothing was clipped: nothing is shown"
        for i, (before, after, g) in enumerate(zip(start, model.parameters(), local)):
            norm = whole if scope == "global" else max(_norms([g]), 1e-30)
            expected = before - hvd.allreduce(g * min(1.0, limit / norm), name=f"clipped.{i}", op=op)
            assert torch.allclose(after, expected, atol=1e-6)


def check_synchronize_clip_skip_synchronize() -> None:
    """Horovod's own recipe for clipping the reduced gradient."""
    trajectories = []
    for compress in (True, False):
        model = small_model()
        optimizer = momentum_sgd(model, momentum=0.0)
        distributed = compressed(EXACT, model, optimizer, settings={})[0] if compress else distribute(model, optimizer)
        trajectory = []
        for number in range(6):
            distributed.zero_grad()
            images, labels = batch(number)
            nn.functional.cross_entropy(model(images), labels).backward()
            distributed.synchronize()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            with distributed.skip_synchronize():
                distributed.step()
            trajectory.append(vector(model.parameters()))
        trajectories.append(trajectory)
    assert_same_trajectory(*trajectories)


def check_stats_agree_with_traffic_and_with_what_was_sent() -> None:
    method = DGC(density=0.05, warmup=Warmup(steps=4))
    model = small_model()
    optimizer, compression = compressed(method, model, momentum_sgd(model), settings={"transport": "gather"})
    assert "no exchange" in str(compression.stats())
    train(model, optimizer, steps=6)
    stats = compression.stats()
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    expected = sum(traffic(shapes, method, step).total for step in range(6))
    assert stats.total.sent == expected == sum(t.sent for t in stats.tensors.values())
    assert stats.last.sent == traffic(shapes, method).total
    assert stats.total.dense == 6 * traffic(shapes, method).dense
    assert stats.total.control == 6 * 4 * (len(shapes) + 1)
    assert stats.total.steps == 6 and stats.last.steps == 1
    for seconds in (stats.total.encode, stats.total.wait, stats.total.decode):
        assert 0 < seconds < 60
    norms = [float(entry.residual.norm()) for entry in compression._tensors]
    assert math.isclose(stats.total.residual_norm, math.hypot(*norms), rel_tol=1e-5)
    weights = [t for name, t in stats.tensors.items() if len(shapes[name]) > 1]
    assert all(0 < t.density <= 0.25 for t in weights)
    assert "last step" in str(stats)


def check_automatic_transport_follows_the_cost() -> None:
    model = small_model()
    method = DGC(density=0.05, warmup=lambda step: 0.5 if step == 0 else 0.05)
    optimizer, compression = compressed(method, model, momentum_sgd(model), settings={})
    train(model, optimizer, steps=1)
    for step in (0, 1):
        expected = 0
        for p in model.parameters():
            plan = method.plan(tuple(p.shape), step)
            expected += transport.message_nbytes(plan, transport.choose(plan, hvd.size()))
        assert compression.stats().last.sent == expected
        train(model, optimizer, steps=1)


def check_an_exchange_never_synchronized_is_forgotten() -> None:
    """backward() without step(), then load_state_dict(), which resets Horovod's handles."""
    model = small_model()
    optimizer, compression = compressed(DGC(density=0.05), model, momentum_sgd(model), settings={})
    train(model, optimizer, steps=2)
    saved = [entry.residual.clone() for entry in compression._tensors]
    images, labels = batch(50)
    nn.functional.cross_entropy(model(images), labels).backward()
    hvd.barrier()
    optimizer.load_state_dict(optimizer.state_dict())
    for before, entry in zip(saved, compression._tensors):
        assert torch.equal(before, entry.residual)
    train(model, optimizer, steps=2)
    assert compression.stats().total.steps == 4
    assert_ranks_identical(model, "after a forgotten exchange")


def check_nothing_but_the_state_is_kept_between_steps() -> None:
    """Two float32 values an element: gradients, payloads and dense messages are let go."""
    for transport_name in ("gather", "allreduce"):
        model = small_model()
        settings = {"transport": transport_name}
        optimizer, compression = compressed(DGC(density=0.05), model, momentum_sgd(model), settings=settings)
        train(model, optimizer, steps=2)
        gradients = [weakref.ref(p.grad) for p in model.parameters()]
        optimizer.zero_grad()
        gc.collect()
        assert not any(reference() is not None for reference in gradients)
        state = {id(t) for e in compression._tensors for t in (e.residual, e.velocity, e.parameter)}
        large = [t for t in reachable_tensors(compression) if t.numel() > 100 and id(t) not in state]
        assert not large, [tuple(t.shape) for t in large]


def check_a_step_goes_without_the_garbage_collector() -> None:
    """In a process of many objects it runs once in thousands of steps; also with gradients of no elements."""
    model = nn.ParameterList([nn.Parameter(torch.ones(30, 20)), nn.Parameter(torch.ones(1, 0))])
    optimizer, compression = compressed(DGC(density=0.05), model, momentum_sgd(model), settings={})
    gc.collect()
    gc.disable()
    try:
        steps = []
        for _ in range(3):
            optimizer.zero_grad()
            sum((p * hvd.rank()).sum() for p in model).backward()
            optimizer.step()
            steps.append(weakref.ref(compression._step))
        assert [step() is None for step in steps] == [True, True, False]
    finally:
        gc.enable()


def reachable_tensors(root: object) -> list[torch.Tensor]:
    """Tensors that this package's objects below ``root`` refer to."""
    found, seen, waiting = [], set(), [root]
    while waiting:
        item = waiting.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, torch.Tensor):
            found.append(item)
        elif isinstance(item, dict):
            waiting.extend(item.values())
        elif isinstance(item, (list, tuple)):
            waiting.extend(item)
        elif type(item).__module__.startswith("horovod_dgc"):
            waiting.extend(getattr(item, "__dict__", {}).values())
    return found
