"""Invariant 7: wrong use is a clear error on every rank, never a hang and never silent."""

from __future__ import annotations

import horovod.torch as hvd
import torch
from rank import raises
from torch import nn

from checks.common import assert_ranks_identical, batch, compressed, distribute, small_model, state_digest, train
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
    for wrong in (-1, 2.5, "1", True, None):
        with raises(ValueError, "check_sync", repr(wrong)):
            Compression(METHOD, optimizer, named, check_sync=wrong)
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


def flip_a_bit(parameter: torch.Tensor) -> None:
    parameter.detach().view(-1)[-1:].view(torch.int32).bitwise_xor_(1)


def check_parameters_out_of_sync_by_one_bit() -> None:
    """In the step that follows, on every rank, naming the first parameter in the model's order, and the ranks."""
    last = hvd.size() - 1
    for rank, others in ((last, f"{last}"), (0, ", ".join(map(str, range(1, last + 1))))):
        model = small_model()
        optimizer, compression = compressed(METHOD, model, sgd(model), settings={"check_sync": 1})
        train(model, optimizer, steps=3)
        if hvd.rank() == rank:
            flip_a_bit(model[1].weight)
            flip_a_bit(model[1].bias)
        before = state_digest(compression)
        with raises(RuntimeError, "exchange 3", "'1.weight' is the first of 2 (of 7)", f"on rank 0: rank {others}."):
            one_backward(model)
        assert state_digest(compression) == before


def check_parameters_that_were_never_broadcast() -> None:
    model = small_model(seed=hvd.rank())
    compressed(METHOD, model, sgd(model), settings={"check_sync": 100})
    with raises(RuntimeError, "before exchange 0", "'0.weight' is the first of"):
        one_backward(model)


def check_parameters_are_compared_as_often_as_wanted() -> None:
    model = small_model()
    optimizer, _ = compressed(METHOD, model, sgd(model), settings={"check_sync": 4})
    train(model, optimizer, steps=2)
    if hvd.rank() == 1:
        flip_a_bit(model[6].bias)
    train(model, optimizer, steps=2)
    with raises(RuntimeError, "check_sync", "before exchange 4", "rank 1"):
        one_backward(model)
    model = small_model(seed=hvd.rank())
    optimizer, _ = compressed(METHOD, model, sgd(model), settings={"check_sync": 0})
    train(model, optimizer, steps=2)


def check_parameters_of_every_kind_are_compared() -> None:
    """Scalars, empty ones, columns, other dtypes, frozen ones; equal ones pass, whatever their layout in memory."""
    torch.manual_seed(0)
    shapes = {"scalar": (), "empty": (0, 3), "plain": (4, 5)}
    tensors = {name: torch.randn(shape) for name, shape in shapes.items()}
    tensors["half"], tensors["short"] = torch.randn(7).half(), torch.randn(3, 3).bfloat16()
    columns = torch.randn(3, 4)
    tensors["columns"] = columns if hvd.rank() == 0 else columns.t().contiguous().t()
    named = [(name, nn.Parameter(tensor)) for name, tensor in tensors.items()]
    named.append(("frozen", nn.Parameter(torch.ones(2), requires_grad=False)))
    optimizer = torch.optim.SGD([p for _, p in named], lr=0.1)
    compression = Compression(METHOD, optimizer, named, check_sync=1)
    optimizer = hvd.DistributedOptimizer(optimizer, named_parameters=named, compression=compression)
    for _ in range(2):
        optimizer.zero_grad()
        sum(p.float().sum() for _, p in named).backward()
        optimizer.step()
    if hvd.rank() == 0:
        flip_a_bit(named[-1][1])
    with raises(RuntimeError, "'frozen' is the first of 1 (of 7)"):
        sum(p.float().sum() for _, p in named).backward()


def check_check_sync_differs_between_ranks() -> None:
    model = small_model()
    compressed(METHOD, model, sgd(model), settings={"check_sync": 3 + min(hvd.rank(), 1)})
    with raises(ValueError, "configured differently", "check_sync 3", "check_sync 4"):
        one_backward(model)
