"""Invariants 2, 3 and 5: nothing is lost, ranks stay identical, a skipped step changes nothing."""

from __future__ import annotations

import itertools

import horovod.torch as hvd
import numpy as np
import torch

from checks.common import (
    Fed,
    assert_ranks_identical,
    compressed,
    digest,
    small_model,
    state_digest,
    train,
    vector,
)
from horovod_dgc import DGC, Warmup, _core

VALUES = ("float32", "float16", "bfloat16", "int8", "int4")
INDICES = ("elias-fano", "runlength16", "int32")
TRANSPORTS = ("gather", "allreduce", "sparse-allreduce")


def conserve(method: DGC, transport: str, exact: bool) -> None:
    """sent + residual = accumulated, per coordinate, summed over ranks and steps."""
    steps = 25
    model = Fed()
    settings = {"transport": transport}
    optimizer, compression = compressed(
        method, model, torch.optim.SGD(model.parameters(), lr=1.0), settings=settings, op=hvd.Sum
    )
    for step in range(steps):
        optimizer.zero_grad()
        model.backward(model.feed(step, hvd.rank()))
        optimizer.step()
    received = [-p.detach() for p in model.parameters()]
    entries = {entry.name: entry for entry in compression._tensors}
    for name, total, position in (("weight", received[0], 0), ("bias", received[1], 1)):
        waiting = hvd.allreduce(entries[name].residual.contiguous(), op=hvd.Sum, name=f"residual.{name}")
        fed = sum(model.feed(s, r)[position] for s in range(steps) for r in range(hvd.size()))
        lost = (total.reshape(-1) + waiting - fed.reshape(-1)).abs().max().item()
        allowed = 0.0 if exact else 1e-6 * 99 * steps * hvd.size()
        assert lost <= allowed, f"{method} {transport} {name}: {lost} lost"


def check_nothing_is_lost_exactly() -> None:
    for indices, transport in itertools.product(INDICES, TRANSPORTS):
        conserve(DGC(density=0.02, values="float32", indices=indices), transport, exact=True)


def check_nothing_is_lost_with_rounded_values() -> None:
    for values, transport in itertools.product(VALUES[1:], TRANSPORTS):
        conserve(DGC(density=0.02, values=values), transport, exact=False)


def check_nothing_is_lost_in_warmup() -> None:
    conserve(DGC(density=0.01, values="float32", warmup=Warmup(steps=16)), "auto", exact=True)


def check_ranks_identical_for_every_coding_and_transport() -> None:
    grid = itertools.product(VALUES, INDICES, TRANSPORTS)
    for values, indices, transport in grid:
        model = small_model()
        method = DGC(density=0.05, values=values, indices=indices)
        build = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3)
        optimizer, _ = compressed(method, model, build, settings={"transport": transport})
        train(model, optimizer, steps=8)
        assert_ranks_identical(model, f"{values} {indices} {transport}")


def check_both_transports_give_the_same_result() -> None:
    """With gradients that do not depend on the weights, the sums differ by float rounding alone."""
    ends, residuals = [], []
    for transport in ("gather", "allreduce"):
        model = Fed()
        optimizer, compression = compressed(
            DGC(density=0.05, exempt_values="float32"),
            model,
            torch.optim.SGD(model.parameters(), lr=1 / 64, momentum=0.9),
            settings={"transport": transport},
        )
        for step in range(10):
            optimizer.zero_grad()
            model.backward(model.feed(step, hvd.rank()))
            optimizer.step()
        ends.append(vector(model.parameters()))
        residuals.append(digest(entry.residual for entry in compression._tensors))
        assert compression.stats().total.steps == 10
    assert torch.allclose(ends[0], ends[1], rtol=1e-5, atol=1e-5)
    assert residuals[0] == residuals[1]


def check_a_sparse_allreduce_is_what_its_ranges_make_of_it() -> None:
    """Against all workers in one process: parts, their sums, and what goes back to the residuals."""
    workers, steps = hvd.size(), 8
    for method in (DGC(density=0.05), DGC(density=0.05, values="int4", momentum_correction=False)):
        model = Fed()
        optimizer, compression = compressed(
            method,
            model,
            torch.optim.SGD(model.parameters(), lr=1.0),
            settings={"transport": "sparse-allreduce"},
            op=hvd.Sum,
        )
        plan = method.plan((40, 50)).divided(workers)
        codec, part_nbytes = plan.codec, plan.payload_nbytes // workers
        states = [method.init((40, 50)) for _ in range(workers)]
        expected = np.zeros(2000, np.float32)
        for step in range(steps):
            optimizer.zero_grad()
            model.backward(model.feed(step, hvd.rank()))
            optimizer.step()
            payloads = []
            for rank, state in enumerate(states):
                gradient = model.feed(step, rank)[0].cpu().numpy().ravel()
                proposal = _core.encode(codec, _core.Update(), gradient, state.residual, state.velocity)
                payloads.append(np.array(proposal.payload))
            parts = np.stack(payloads).reshape(workers, workers, part_nbytes)
            sums = []
            for rank, state in enumerate(states):
                part, begin, returned = codec.reduce(rank, np.ascontiguousarray(parts[:, rank]))
                state.residual[begin : begin + len(returned)] += returned
                sums.append(part)
            total = np.zeros(2000, np.float32)
            codec.decode_add(np.concatenate(sums), total)
            assert 0 < np.count_nonzero(total) <= plan.sent
            expected -= total
        entry = compression._tensors[1]
        assert entry.name == "weight"
        np.testing.assert_array_equal(model.weight.detach().cpu().numpy().ravel(), expected)
        np.testing.assert_array_equal(entry.residual.cpu().numpy(), states[hvd.rank()].residual)
        sent = steps * (plan.payload_nbytes + part_nbytes)
        assert compression.stats().tensors["weight"].sent == sent
        assert_ranks_identical(model, "sparse allreduce")


def check_plain_torch_equals_the_core_bit_for_bit() -> None:
    for method in (
        DGC(density=0.03, values="float16"),
        # Small values of such a payload are rounded to zero, so their velocity must stay.
        DGC(density=0.6, values="int4"),
        DGC(density=0.03, values="int4", indices="runlength16", clip_norm=0.5),
        DGC(density=0.03, values="bfloat16", warmup=Warmup(steps=8), clip_norm=0.1, clip_scope="tensor"),
    ):
        ends = []
        for backend in ("auto", "torch"):
            model = small_model()
            build = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01)
            settings = {"backend": backend, "transport": "gather"}
            optimizer, compression = compressed(method, model, build, settings=settings)
            train(model, optimizer)
            ends.append((digest(model.parameters()), state_digest(compression)))
        assert ends[0] == ends[1], f"{method}: plain torch differs from the core"


def _poisoned_run(where: str | None, method: DGC, transport: str, value: float) -> torch.Tensor:
    """Train 6 steps; before the fourth, one step's gradient of ``where`` is poisoned on the last rank."""
    model = Fed()
    build = torch.optim.SGD(model.parameters(), lr=1 / 64, momentum=0.9)
    optimizer, compression = compressed(method, model, build, settings={"transport": transport})
    for step in range(6):
        if step == 3 and where is not None:
            before = state_digest(compression), digest(model.parameters())
            gradients = dict(zip(dict(model.named_parameters()), model.feed(99, hvd.rank())))
            if hvd.rank() == hvd.size() - 1:
                gradients[where].view(-1)[1] = value
            optimizer.zero_grad()
            model.backward(list(gradients.values()))
            optimizer.synchronize()
            for name, p in model.named_parameters():
                if name == where:
                    assert p.grad.isnan().any(), f"{where} = {value}: not seen on this rank"
                else:
                    assert not p.grad.any(), f"{where} = {value}: {name} has a gradient in a skipped step"
            after = state_digest(compression), digest(model.parameters())
            assert before == after, f"{where} = {value}: the skipped step changed state"
            optimizer._synchronized = False
        optimizer.zero_grad()
        model.backward(model.feed(step, hvd.rank()))
        optimizer.step()
    assert compression.stats().total.skipped == (where is not None)
    residuals = [entry.residual for entry in compression._tensors]
    return torch.cat([vector(model.parameters()), vector(residuals)])


def check_a_skipped_step_changes_nothing() -> None:
    for method, transport in (
        (DGC(density=0.05), "gather"),
        (DGC(density=0.05), "allreduce"),
        (DGC(density=0.05, values="int4"), "auto"),
        (DGC(density=0.05, values="int8", clip_norm=1.0), "gather"),
        (DGC(density=0.05, clip_norm=1.0), "allreduce"),
        (DGC(density=0.05), "sparse-allreduce"),
    ):
        undisturbed = _poisoned_run(None, method, transport, 0.0)
        for where, value in (("weight", float("nan")), ("weight", float("-inf")), ("bias", float("inf"))):
            disturbed = _poisoned_run(where, method, transport, value)
            # The order of an allreduce's sums depends on what Horovod happens to fuse.
            tolerance = 1e-4 if transport == "allreduce" else 0.0
            assert torch.allclose(disturbed, undisturbed, rtol=0, atol=tolerance), f"{method} {transport} {where}"
