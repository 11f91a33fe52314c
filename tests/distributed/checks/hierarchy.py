"""The hierarchical transport on 2 nodes of 2 ranks: every invariant holds, and a node sends what a rank sends else."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import horovod.torch as hvd
import numpy as np
import torch
from rank import raises

from checks.checkpoints import METHODS, assert_same, nesterov, restore, shared_folder, snapshot, steps
from checks.common import (
    Fed,
    assert_ranks_identical,
    assert_same_trajectory,
    compressed,
    digest,
    distribute,
    small_model,
    state_digest,
    train,
)
from horovod_dgc import DGC, Method, PowerSGD, Warmup, exchange
from horovod_dgc.checkpoint import CheckpointError
from horovod_dgc.torch import Compression, load_checkpoint, save_checkpoint

LOCAL = 2
NODES = hvd.size() // LOCAL
PLACE = hvd.rank() % LOCAL
# Horovod's own nodes where the launcher makes them, otherwise so many ranks count as one.
NODE = True if hvd.local_size() == LOCAL else LOCAL
EVERYTHING = DGC(density=1.0, values="float32")


def hierarchical(method: Method, model: Any, optimizer: Any, **options: Any) -> tuple[Any, Compression]:
    settings = {"hierarchical": NODE, **options.pop("settings", {})}
    return compressed(method, model, optimizer, settings=settings, **options)


def check_density_one_is_the_dense_run() -> None:
    def plain(model: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)

    builds: tuple[tuple[Callable[..., Any], dict[str, Any]], ...] = (
        (nesterov, {}),
        (plain, {"op": hvd.Sum}),
        (plain, {"gradient_predivide_factor": 2.0}),
        (lambda model: torch.optim.Adam(model.parameters(), lr=0.01), {}),
    )
    for (build, options), transport in zip(builds, itertools.cycle(("gather", "allreduce"))):
        model = small_model()
        dense = train(model, distribute(model, build(model), **options))
        model = small_model()
        optimizer, _ = hierarchical(EVERYTHING, model, build(model), settings={"transport": transport}, **options)
        assert_same_trajectory(train(model, optimizer), dense)


def check_plain_torch_equals_the_core_bit_for_bit() -> None:
    """There, tensors are proposed and finished together, those that nodes exchange and those that all ranks do."""
    ends = []
    for backend in ("auto", "torch"):
        model = Fed()
        optimizer = torch.optim.SGD(model.parameters(), lr=1 / 64, momentum=0.9)
        settings = {"transport": "gather", "backend": backend}
        optimizer, compression = hierarchical(DGC(density=0.05), model, optimizer, settings=settings, op=hvd.Sum)
        for step in range(3):
            optimizer.zero_grad()
            model.backward(model.feed(step, hvd.rank()))
            optimizer.step()
        ends.append((digest(model.parameters()), state_digest(compression)))
    assert ends[0] == ends[1]


def check_local_clipping_is_that_of_the_flat_transport() -> None:
    for scope in ("global", "tensor"):
        method = DGC(density=1.0, values="float32", clip_norm=0.05, clip_scope=scope)
        model = small_model()
        optimizer, _ = compressed(method, model, nesterov(model), settings={})
        flat = train(model, optimizer)
        model = small_model()
        optimizer, _ = hierarchical(method, model, nesterov(model))
        assert_same_trajectory(train(model, optimizer), flat)


def check_nothing_is_lost() -> None:
    """Summed over ranks and steps, to the last bit: halves of whole numbers are exact."""
    count = 12
    transports = ("auto", "gather", "allreduce", "sparse-allreduce")
    for transport, indices in zip(transports, itertools.cycle(("elias-fano", "runlength16"))):
        model = Fed()
        method = DGC(density=0.02, values="float32", indices=indices, warmup=Warmup(steps=6))
        optimizer, compression = hierarchical(
            method,
            model,
            torch.optim.SGD(model.parameters(), lr=1.0),
            settings={"transport": transport},
            op=hvd.Sum,
        )
        for step in range(count):
            optimizer.zero_grad()
            model.backward(model.feed(step, hvd.rank()))
            optimizer.step()
        entries = {entry.name: entry for entry in compression._tensors}
        residuals = hvd.allgather(entries["weight"].residual.view(1, -1), name="parts")
        # A part's residual is in units of the mean over a node.
        waiting = LOCAL * residuals.view(NODES, -1).sum(0)
        fed = sum(model.feed(s, r)[0] for s in range(count) for r in range(hvd.size()))
        lost = (waiting - model.weight.detach().view(-1) - fed.view(-1)).abs().max()
        assert lost == 0, f"{transport} {indices}: {lost} lost"
        assert waiting.any(), "nothing was left to send: nothing is shown"


def check_parts_are_exchanged_as_by_so_many_workers_as_nodes() -> None:
    for method in (DGC(density=0.05, values="int8"), PowerSGD(rank=2), DGC(density=0.03, momentum_correction=False)):
        corrected = method.corrects_momentum
        model = Fed()
        optimizer, _ = hierarchical(
            method,
            model,
            torch.optim.SGD(model.parameters(), lr=1 / 64, momentum=0.9 if corrected else 0.0),
            settings={"transport": "gather"},
        )
        shape = (40 // LOCAL, 50)
        states = [method.init(shape) for _ in range(NODES)]
        expected = np.zeros(shape, np.float32)
        for step in range(6):
            optimizer.zero_grad()
            model.backward(model.feed(step, hvd.rank()))
            optimizer.step()
            parts = [np.split(model.feed(step, rank)[0].numpy(), LOCAL)[PLACE].ravel() for rank in range(hvd.size())]
            means = [np.mean(parts[LOCAL * node :][:LOCAL], axis=0, dtype=np.float32) for node in range(NODES)]
            momentum = {"momentum": 0.9} if corrected else {}
            expected -= exchange(method, means, states, **momentum).reshape(shape) / 64
        mine = np.split(model.weight.detach().numpy(), LOCAL)[PLACE]
        np.testing.assert_allclose(mine, expected, rtol=1e-4, atol=1e-4, err_msg=str(method))


def check_ranks_identical() -> None:
    values_of = itertools.cycle(("float16", "int4", "float32", "int8"))
    for transport, values in zip(("gather", "allreduce", "auto", "sparse-allreduce"), values_of):
        model = small_model()
        method = DGC(density=0.05, values=values, warmup=Warmup(steps=4), clip_norm=2.0)
        optimizer, _ = hierarchical(method, model, nesterov(model), settings={"transport": transport})
        train(model, optimizer, steps=6)
        assert_ranks_identical(model, f"{values} {transport}")


def check_half_precision_gradients() -> None:
    model = small_model().bfloat16()
    optimizer, _ = hierarchical(DGC(density=0.05), model, nesterov(model))
    for step in range(5):
        optimizer.zero_grad()
        for parameter, gradient in zip(model.parameters(), small_model(step + hvd.rank()).parameters()):
            (parameter * gradient.detach().bfloat16()).sum().backward()
        optimizer.step()
    assert_ranks_identical(model, "bfloat16")


def check_a_skipped_step_changes_nothing() -> None:
    for where, value in (("weight", float("nan")), ("weight", float("inf")), ("bias", float("nan"))):
        model = Fed()
        optimizer, compression = hierarchical(
            DGC(density=0.05), model, torch.optim.SGD(model.parameters(), lr=1 / 64, momentum=0.9)
        )
        for step in range(6):
            poisoned = step == 3
            before = state_digest(compression)
            gradients = dict(zip(("weight", "bias"), model.feed(step, hvd.rank())))
            if poisoned and hvd.rank() == hvd.size() - 1:
                gradients[where].view(-1)[1] = value
            optimizer.zero_grad()
            model.backward(list(gradients.values()))
            optimizer.synchronize()
            if poisoned:
                for name, parameter in model.named_parameters():
                    assert parameter.grad.isnan().all() if name == where == "weight" else True
                    assert parameter.grad.isnan().any() if name == where else not parameter.grad.any(), name
                assert state_digest(compression) == before, f"{where}: the skipped step changed state"
                optimizer._synchronized = False
                continue
            with optimizer.skip_synchronize():
                optimizer.step()
        assert compression.stats().total.skipped == 1


def check_bytes_from_node_to_node_fall_by_the_local_size() -> None:
    sent, inside, residuals = [], [], []
    for node in (False, NODE):
        model = small_model()
        method = DGC(density=0.05, exempt_values="float32")
        optimizer, compression = compressed(
            method, model, nesterov(model), settings={"hierarchical": node, "transport": "gather"}
        )
        train(model, optimizer, steps=3)
        tensors = compression.stats().tensors
        matrices = [name for name, parameter in model.named_parameters() if parameter.dim() > 1]
        sent.append(sum(tensors[name].sent for name in matrices))
        inside.append(compression.stats().total.inside)
        residuals.append(sum(entry.residual.numel() for entry in compression._tensors if entry.name in matrices))
        if node:
            parts = {
                name: compression._by_parameter[id(p)].shape for name, p in model.named_parameters() if p.dim() > 1
            }
            assert sent[-1] == 3 * sum(method.payload_nbytes(shape) for shape in parts.values())
            elements = sum(p.numel() for p in model.parameters() if p.dim() > 1)
            assert inside[-1] == 3 * 4 * (elements + residuals[-1])
            assert residuals[-1] == sum(np.prod(shape) for shape in parts.values())
    assert inside[0] == 0
    everybody = hvd.allgather(torch.tensor([[sent[1], residuals[1]]]), name="sent")[:LOCAL].sum(0).tolist()
    # Each payload is rounded up to bytes, and to one coordinate, by itself.
    assert abs(everybody[0] - sent[0]) < 0.1 * sent[0], f"a node sends {everybody[0]}, a rank by itself {sent[0]}"
    assert everybody[1] == residuals[0]


def check_nodes_of_one_rank_are_the_flat_transport() -> None:
    ends = []
    for node in (False, 1):
        model = small_model()
        optimizer, compression = compressed(
            DGC(density=0.05), model, nesterov(model), settings={"hierarchical": node, "transport": "gather"}
        )
        train(model, optimizer, steps=5)
        ends.append((digest(model.parameters()), state_digest(compression)))
    assert ends[0] == ends[1]


def check_one_node_needs_no_compression() -> None:
    model = small_model()
    dense = train(model, distribute(model, nesterov(model)))
    model = small_model()
    method = DGC(density=0.01, exempt_values="float32")
    optimizer, compression = compressed(method, model, nesterov(model), settings={"hierarchical": hvd.size()})
    assert_same_trajectory(train(model, optimizer), dense)
    assert compression.stats().total.inside


def check_an_exchange_never_synchronized_is_forgotten() -> None:
    model = Fed()
    optimizer, compression = hierarchical(DGC(density=0.05), model, torch.optim.SGD(model.parameters(), lr=1 / 64))
    for step in range(3):
        optimizer.zero_grad()
        model.backward(model.feed(step, hvd.rank()))
        optimizer.step()
    before = state_digest(compression)
    optimizer.zero_grad()
    model.backward(model.feed(50, hvd.rank()))
    optimizer._handles.clear()
    optimizer._allreduce_delay = dict.fromkeys(optimizer._allreduce_delay, 1)
    assert state_digest(compression) == before
    model.backward(model.feed(51, hvd.rank()))
    optimizer.step()
    assert compression.stats().total.steps == 4
    assert_ranks_identical(model, "after an exchange that was never synchronized")


def check_resumes_bit_for_bit() -> None:
    for method in METHODS:
        model = small_model()
        optimizer, compression = hierarchical(method, model, nesterov(model), settings={"transport": "gather"})
        steps(model, optimizer, range(6))
        with shared_folder() as folder:
            save_checkpoint(folder, compression)
            saved = snapshot(model, optimizer, compression)
            steps(model, optimizer, range(6, 12))
            other = small_model(seed=8)
            theirs = nesterov(other)
            again, resumed = hierarchical(method, other, theirs, settings={"transport": "gather"})
            restore(saved, other, again)
            assert load_checkpoint(folder, resumed) == 6
            steps(other, again, range(6, 12))
            assert_same((model, compression), (other, resumed), str(method))
            with raises(CheckpointError, "hierarchical", "nodes of 1"):
                flat = small_model()
                load_checkpoint(folder, compressed(method, flat, nesterov(flat), settings={})[1])


def check_nodes_that_do_not_divide_the_job() -> None:
    model = small_model()
    with raises(ValueError, "hierarchical", "divides", "3"):
        compressed(DGC(), model, nesterov(model), settings={"hierarchical": 3})
    with raises(ValueError, "hierarchical", "'yes'"):
        compressed(DGC(), model, nesterov(model), settings={"hierarchical": "yes"})


def check_nodes_that_differ_between_ranks() -> None:
    model = small_model()
    node = 2 if hvd.rank() else 4
    optimizer, _ = compressed(DGC(), model, nesterov(model), settings={"hierarchical": node})
    with raises(ValueError, "differently", "nodes of 2 ranks"):
        train(model, optimizer, steps=1)


def check_horovod_nodes_that_do_not_fit() -> None:
    """Of different sizes, and with ranks dealt out to the nodes in turn."""
    two, one = {"local_size": lambda: 2}, {"local_size": lambda: 1}
    for pretended in (
        two if hvd.rank() < 2 else one,
        {**two, "local_rank": lambda: hvd.rank() // 2},
    ):
        with patch.multiple(hvd, **pretended):
            model = small_model()
            optimizer, _ = compressed(DGC(), model, nesterov(model), settings={"hierarchical": True})
        with raises(ValueError, "differently", "nodes of 2 ranks"):
            train(model, optimizer, steps=1)
