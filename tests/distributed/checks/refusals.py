"""Invariant 7: wrong use is a clear error on every rank, never a hang and never silent."""

from __future__ import annotations

import horovod.torch as hvd
import torch
from rank import raises
from torch import nn

from checks.common import assert_ranks_identical, batch, compressed, distribute, small_model, train
from horovod_dgc import DGC, Warmup
from horovod_dgc.torch import Compression

METHOD = DGC(density=0.05)


def one_backward(model: nn.Module) -> None:
    images, labels = batch(0)
    nn.functional.cross_entropy(model(images), labels).backward()


def sgd(model: nn.Module, **settings: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), **{"lr": 0.05, "momentum": 0.9, **settings})


def check_density_differs_between_ranks() -> None:
    model = small_model()
    method = DGC(density=0.05 if hvd.rank() else 0.01)
    compressed(method, model, sgd(model), settings={})
    with raises(ValueError, "configured differently", "density=0.05", "density=0.01"):
        one_backward(model)


def check_coding_differs_on_the_last_rank() -> None:
    model = small_model()
    last = hvd.rank() == hvd.size() - 1
    compressed(DGC(values="int8" if last else "float16"), model, sgd(model), settings={})
    with raises(ValueError, "configured differently", "int8", "float16", f"rank {hvd.size() - 1}"):
        one_backward(model)


def check_models_differ_between_ranks() -> None:
    model = small_model()
    if hvd.rank() == 0:
        model.append(nn.Linear(5, 5))
    compressed(METHOD, model, sgd(model), settings={})
    with raises(ValueError, "configured differently", "parameter 7.weight (5, 5)"):
        one_backward(model)


def check_optimizers_differ_between_ranks() -> None:
    model = small_model()
    optimizer = sgd(model) if hvd.rank() else torch.optim.Adam(model.parameters())
    compressed(METHOD, model, optimizer, settings={})
    with raises(ValueError, "configured differently", "optimizer SGD", "optimizer Adam"):
        one_backward(model)


def check_training_goes_on_after_a_refusal() -> None:
    check_density_differs_between_ranks()
    model = small_model()
    optimizer, _ = compressed(METHOD, model, sgd(model), settings={})
    train(model, optimizer, steps=3)
    assert_ranks_identical(model, "after a refusal")


def check_schedules_that_disagree() -> None:
    """Schedules given as code cannot be compared beforehand; their first different payload is refused."""
    model = small_model()
    rank = hvd.rank()

    def schedule(step: int) -> float:
        return 0.05 if step < 2 or rank else 0.1

    optimizer, _ = compressed(DGC(warmup=schedule), model, sgd(model), settings={"transport": "gather"})
    train(model, optimizer, steps=2)
    one_backward(model)
    with raises(ValueError, "density schedule"):
        optimizer.step()
    for name, _ in model.named_parameters():
        hvd.allreduce(torch.zeros(1), name=f"settle.{name}")


def check_adasum_is_refused() -> None:
    # Horovod itself refuses Adasum on three ranks.
    if hvd.size() == 3:
        return
    model = small_model()
    compressed(METHOD, model, sgd(model), settings={}, op=hvd.Adasum)
    with raises(ValueError, "Adasum", "Average"):
        one_backward(model)


def check_minimum_is_refused() -> None:
    model = small_model()
    compressed(METHOD, model, sgd(model), settings={}, op=hvd.Min)
    with raises(ValueError, "op must be"):
        one_backward(model)


def check_another_models_optimizer_is_refused() -> None:
    known, unknown = small_model(1), small_model(2)
    compression = Compression(METHOD, sgd(known), known.named_parameters())
    distribute(unknown, sgd(unknown), compression)
    with raises(ValueError, "same named_parameters"):
        one_backward(unknown)


def check_direct_calls_are_refused() -> None:
    model = small_model()
    compression = Compression(METHOD, sgd(model), model.named_parameters())
    one_backward(model)
    with raises(ValueError, "DistributedOptimizer"):
        compression.compress(model[0].weight.grad)


def check_sparse_gradients_with_momentum_are_refused() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(30, 8, sparse=True))
    optimizer, _ = compressed(METHOD, model, sgd(model), settings={})
    model(torch.tensor([1, 2, 3])).sum().backward()
    with raises(ValueError, "sparse_as_dense"):
        optimizer.step()


def check_construction_errors_name_argument_value_and_range() -> None:
    model = small_model()
    optimizer = sgd(model)
    named = list(model.named_parameters())
    with raises(ValueError, "method", "DGC"):
        Compression("dgc", optimizer, named)
    with raises(ValueError, "optimizer"):
        Compression(METHOD, model, named)
    with raises(ValueError, "transport", "ring", "gather"):
        Compression(METHOD, optimizer, named, transport="ring")
    with raises(ValueError, "agreement_timeout", "-1"):
        Compression(METHOD, optimizer, named, agreement_timeout=-1)
    with raises(ValueError, "grad_scaler"):
        Compression(METHOD, optimizer, named, grad_scaler=2.0)
    with raises(ValueError, "lacks a name", "(16, 144)"):
        Compression(METHOD, optimizer, [pair for pair in named if pair[0] != "4.weight"])
    with raises(ValueError, "twice", "0.weight"):
        Compression(METHOD, optimizer, [*named, named[0]])
    whole = nn.Parameter(torch.zeros(3, 3, dtype=torch.complex64))
    with raises(ValueError, "dtypes", "complex64"):
        Compression(METHOD, torch.optim.SGD([whole], lr=0.1), [("whole", whole)])
    wide = nn.Parameter(torch.zeros(1000, 1000))
    with raises(ValueError):
        Compression(DGC(density=1e-6, indices="runlength16"), torch.optim.SGD([wide], lr=0.1), [("wide", wide)])


def check_configuration_includes_the_schedule() -> None:
    model = small_model()
    compressed(DGC(warmup=Warmup(steps=4 + hvd.rank())), model, sgd(model), settings={})
    with raises(ValueError, "configured differently", "steps=4", "steps=5"):
        one_backward(model)
