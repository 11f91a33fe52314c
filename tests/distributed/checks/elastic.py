"""Invariant 6 in elastic jobs: a commit brings every method's state back, and who has another step's begins anew."""

from __future__ import annotations

from typing import Any

import horovod.torch as hvd
import torch

from checks.common import Fed, assert_ranks_identical, compressed, digest
from horovod_dgc import DGC, Method, PowerSGD, SignSGD, VarianceBased
from horovod_dgc.torch.elastic import TorchState

# With velocities, without a residual, and with codecs that keep each rank's own or what is the same on all ranks.
METHODS = (DGC(density=0.02, values="int8"), SignSGD(), VarianceBased(cap=0.1), PowerSGD(rank=2))


def begin(method: Method) -> tuple[Fed, Any, Any, TorchState]:
    model = Fed()
    sgd = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    optimizer, compression = compressed(method, model, sgd, settings={"transport": "gather"})
    state = TorchState(model=model, optimizer=optimizer, compression=compression)
    state.sync()
    return model, optimizer, compression, state


def steps(model: Fed, optimizer: Any, numbers: range) -> None:
    for number in numbers:
        optimizer.zero_grad()
        model.backward(model.feed(number, hvd.rank()))
        optimizer.step()


def kept(compression: Any) -> str:
    """Digest of residuals, velocities and codecs' memories."""
    entries = compression.state_dict()["tensors"].values()
    return digest(e[field] for e in entries for field in ("residual", "velocity", "memory") if e[field] is not None)


def check_a_commit_brings_the_state_back() -> None:
    for method in METHODS:
        model, optimizer, compression, state = begin(method)
        steps(model, optimizer, range(3))
        state.save()
        committed = kept(compression), digest(model.parameters())
        steps(model, optimizer, range(3, 6))
        went_on = kept(compression)
        assert went_on != committed[0] or isinstance(method, SignSGD)
        state.restore()
        state.sync()
        assert (kept(compression), digest(model.parameters())) == committed, f"{method}: not what was committed"
        steps(model, optimizer, range(3, 6))
        assert kept(compression) == went_on, f"{method}: not what went on"
        assert_ranks_identical(model, str(method))
        assert compression.stats().lost_ranks == 0


def check_a_rank_of_another_step_begins_anew() -> None:
    for method in METHODS:
        model, optimizer, compression, state = begin(method)
        steps(model, optimizer, range(3))
        last = hvd.size() - 1
        state.save()
        steps(model, optimizer, range(3, 5))
        before = digest(t.residual for t in compression._tensors)
        if hvd.rank() == last:
            state.restore()
        state.sync()
        for tensor in compression._tensors:
            assert tensor.memory is None or not tensor.memory.any(), f"{method}: memories differ between ranks"
            assert hvd.rank() != last or not tensor.residual.any(), f"{method}: {tensor.name} keeps what has been sent"
        assert hvd.rank() == last or digest(t.residual for t in compression._tensors) == before
        steps(model, optimizer, range(5, 7))
        assert_ranks_identical(model, str(method))
        assert compression.stats().lost_ranks == 1


def check_a_loaded_state_is_kept() -> None:
    """A job may begin with a checkpoint, before anything has been committed."""
    model, optimizer, compression, _ = begin(METHODS[0])
    steps(model, optimizer, range(3))
    saved = compression.state_dict()
    again = Fed()
    sgd = torch.optim.SGD(again.parameters(), lr=0.01, momentum=0.9)
    _, resumed = compressed(METHODS[0], again, sgd, settings={"transport": "gather"})
    resumed.load_state_dict(saved)
    TorchState(model=again, compression=resumed).sync()
    assert kept(resumed) == kept(compression)
