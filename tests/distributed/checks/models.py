"""Parameters of every kind that a model may have."""

from __future__ import annotations

from typing import Any

import horovod.torch as hvd
import torch
from torch import nn

from checks.common import (
    assert_ranks_identical,
    assert_same_trajectory,
    batch,
    compressed,
    distribute,
    small_model,
    train,
    vector,
)
from horovod_dgc import DGC

EXACT = DGC(density=1.0, values="float32")
SPARSE = DGC(density=0.05)


def sgd(model: nn.Module, **settings: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        (p for p in model.parameters() if p.requires_grad), **{"lr": 0.05, "momentum": 0.9, **settings}
    )


def follow(model: nn.Module, optimizer: torch.optim.Optimizer, step: Any, steps: int = 8) -> list[torch.Tensor]:
    """Train on the loss ``step(model, number)`` and return all parameters as one vector after each step."""
    trajectory = []
    for number in range(steps):
        optimizer.zero_grad()
        step(model, number).backward()
        optimizer.step()
        assert all(p.grad.dtype == p.dtype for p in model.parameters() if p.requires_grad)
        trajectory.append(vector(model.parameters()))
    return trajectory


def both(build: Any, step: Any, dense: Any = None) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Trajectories of the compressed run at density 1 and of the dense run; ranks are compared, too.

    ``dense`` builds the model of the dense run where that must differ.
    """
    trajectories = []
    for compress in (True, False):
        model = build() if compress else (dense or build)()
        optimizer = sgd(model)
        if compress:
            distributed, _ = compressed(EXACT, model, optimizer, settings={"transport": "gather"})
        else:
            distributed = distribute(model, optimizer)
        trajectories.append(follow(model, distributed, step))
        assert_ranks_identical(model, f"compress={compress}")
    return trajectories[0], trajectories[1]


def classify(model: nn.Module, number: int) -> torch.Tensor:
    images, labels = batch(number)
    return nn.functional.cross_entropy(model(images), labels)


def channels_last_model() -> nn.Module:
    return small_model().to(memory_format=torch.channels_last)


def check_frozen_parameters() -> None:
    def build() -> nn.Module:
        model = small_model()
        model[0].requires_grad_(False)
        return model

    assert_same_trajectory(*both(build, classify))


def check_gradients_missing_on_some_ranks_and_steps() -> None:
    """Horovod puts zeros in their place, and iterates them in an order of its own on each rank."""

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(3)
            self.branches = nn.ModuleList(nn.Linear(36, 5) for _ in range(6))

    def step(model: nn.Module, number: int) -> torch.Tensor:
        images, labels = batch(number)
        chosen = [(number + hvd.rank()) % 6, (2 * number + 3 * hvd.rank()) % 6]
        logits = sum(model.branches[i](images.flatten(1)) for i in chosen)
        return nn.functional.cross_entropy(logits, labels)

    assert_same_trajectory(*both(Branches, step))


def check_tied_weights() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(4)
            self.encoder = nn.Linear(36, 36)
            self.decoder = nn.Linear(36, 36)
            self.decoder.weight = self.encoder.weight

    def step(model: nn.Module, number: int) -> torch.Tensor:
        images = batch(number)[0].flatten(1)
        return nn.functional.mse_loss(model.decoder(model.encoder(images).relu()), images)

    assert_same_trajectory(*both(Tied, step))


def check_gradients_that_are_not_contiguous() -> None:
    """Uncompressed Horovod refuses them, so the dense run has the same model in row-major order."""

    class Product(nn.Module):
        def __init__(self, transposed: bool) -> None:
            super().__init__()
            torch.manual_seed(5)
            weight = torch.randn(5, 36).t()
            self.weight = nn.Parameter(weight if transposed else weight.contiguous())

    def step(model: nn.Module, number: int) -> torch.Tensor:
        images, labels = batch(number)
        return nn.functional.cross_entropy(images.flatten(1) @ model.weight, labels)

    assert not Product(transposed=True).weight.is_contiguous()
    assert_same_trajectory(*both(lambda: Product(True), step, dense=lambda: Product(False)))
    assert_same_trajectory(*both(channels_last_model, classify, dense=small_model))


def check_empty_tensors_and_scalars() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(6)
            self.linear = nn.Linear(36, 5)
            self.scale = nn.Parameter(torch.tensor(1.5))
            self.empty = nn.Parameter(torch.zeros(0, 3))
            self.one = nn.Parameter(torch.ones(1, 1))

    def step(model: nn.Module, number: int) -> torch.Tensor:
        images, labels = batch(number)
        logits = model.linear(images.flatten(1)) * model.scale * model.one + model.empty.sum()
        return nn.functional.cross_entropy(logits, labels)

    trajectories = []
    for method in (EXACT, None):
        model = Odd()
        optimizer = sgd(model)
        if method:
            distributed, _ = compressed(method, model, optimizer, settings={})
        else:
            # Uncompressed Horovod has no allreduce of an empty tensor to compare with.
            names = [(n, p) for n, p in model.named_parameters() if p.numel()]
            distributed = hvd.DistributedOptimizer(
                torch.optim.SGD([p for _, p in names], lr=0.05, momentum=0.9), named_parameters=names
            )
        trajectories.append(follow(model, distributed, step))
    assert_same_trajectory(*trajectories)


def check_sparse_as_dense_embeddings() -> None:
    """Two embeddings of equal shape: the gradient handed over is a copy that only the caller can name."""

    class Embeddings(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(8)
            self.first = nn.Embedding(30, 8, sparse=True)
            self.second = nn.Embedding(30, 8, sparse=True)
            self.out = nn.Linear(8, 5)

    def step(model: nn.Module, number: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(50 * number + hvd.rank())
        words = torch.randint(0, 30, (12,), generator=generator)
        hidden = model.first(words) * 2 + model.second(29 - words)
        return nn.functional.cross_entropy(model.out(hidden), words % 5)

    trajectories = []
    for compress in (True, False):
        model = Embeddings()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        if compress:
            distributed, _ = compressed(EXACT, model, optimizer, settings={}, sparse_as_dense=True)
        else:
            distributed = distribute(model, optimizer, sparse_as_dense=True)
        trajectories.append(follow(model, distributed, step, steps=6))
    assert_same_trajectory(*trajectories)


def check_sparse_gradients_that_bypass_compression() -> None:
    """Without sparse_as_dense Horovod exchanges them itself; the rest is compressed."""

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(9)
            self.words = nn.Embedding(30, 8, sparse=True)
            self.out = nn.Linear(8, 5)

    model = Mixed()
    optimizer, compression = compressed(SPARSE, model, torch.optim.SGD(model.parameters(), lr=0.1), settings={})
    for number in range(4):
        optimizer.zero_grad()
        words = (torch.arange(12) * (number + 1) + hvd.rank()) % 30
        nn.functional.cross_entropy(model.out(model.words(words)), words % 5).backward()
        optimizer.step()
    assert_ranks_identical(model, "mixed")
    assert compression.stats().total.steps == 4


def check_models_in_float64() -> None:
    def step(model: nn.Module, number: int) -> torch.Tensor:
        images, labels = batch(number)
        return nn.functional.cross_entropy(model(images.double()), labels)

    assert_same_trajectory(*both(lambda: small_model().double(), step))


def check_models_in_half_precision() -> None:
    """Ranks stay identical and the loss falls; float32 state means that small gradients still arrive."""
    for dtype in (torch.float16, torch.bfloat16):
        for transport in ("gather", "allreduce"):
            torch.manual_seed(11)
            model = nn.Sequential(nn.Flatten(), nn.Linear(36, 64), nn.Tanh(), nn.Linear(64, 5)).to(dtype)
            optimizer, compression = compressed(
                DGC(density=0.1), model, sgd(model, lr=0.1), settings={"transport": transport}
            )
            losses = []
            for _ in range(30):
                optimizer.zero_grad()
                images, labels = batch(0, rank=0)
                loss = nn.functional.cross_entropy(model(images.to(dtype)).float(), labels)
                loss.backward()
                optimizer.step()
                assert all(p.grad.dtype == dtype for p in model.parameters())
                losses.append(loss.item())
            assert_ranks_identical(model, f"{dtype} {transport}")
            assert losses[-1] < 0.5 * losses[0], f"{dtype} {transport}: loss {losses[0]:.3f} -> {losses[-1]:.3f}"
            assert all(entry.residual.dtype == torch.float32 for entry in compression._tensors)


def check_two_models_do_not_share_state() -> None:
    models = [small_model(seed) for seed in (1, 2)]
    settings = {"transport": "gather"}
    pairs = [compressed(SPARSE, m, sgd(m), settings=settings) for m in models]
    for step in range(4):
        for model, (optimizer, _) in zip(models, pairs):
            optimizer.zero_grad()
            classify(model, step).backward()
            optimizer.step()
    together = [vector(model.parameters()) for model in models]
    for seed, expected in zip((1, 2), together):
        model = small_model(seed)
        optimizer, _ = compressed(SPARSE, model, sgd(model), settings=settings)
        assert torch.equal(train(model, optimizer, steps=4)[-1], expected)
