"""What the checks share: small models with known data, training loops, and comparisons across ranks."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from typing import Any

import horovod.torch as hvd
import torch
from torch import nn

from horovod_dgc import Method
from horovod_dgc.torch import Compression

# Where models live, and whether payloads made on a GPU go to Horovod there: "device", "host", or as Horovod was built.
DEVICE = torch.device(os.environ.get("HOROVOD_DGC_TEST_DEVICE", "cpu"))
COLLECTIVES = {"device": True, "host": False}.get(os.environ.get("HOROVOD_DGC_TEST_COLLECTIVES", ""))

Build = Callable[[nn.Module], torch.optim.Optimizer]


def small_model(seed: int = 7) -> nn.Module:
    """Same weights on every rank: weights of two and four dimensions, biases, and batch normalisation.

    The convolution has no bias: in front of batch normalisation its gradient is nothing but rounding errors, and
    Adam divides it by its own size.
    """
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * 6 * 6, 16),
        nn.ReLU(),
        nn.Linear(16, 5),
    ).to(DEVICE)


class Fed(nn.Module):
    """A model whose gradients are whatever it is fed: the loss is the inner product with them."""

    def __init__(self, device: torch.device = DEVICE) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(40, 50, device=device))
        self.bias = nn.Parameter(torch.zeros(37, device=device))

    def feed(self, step: int, rank: int) -> list[torch.Tensor]:
        """Whole numbers, so that float32 sums are exact in any order."""
        generator = torch.Generator().manual_seed(100 * step + rank)
        return [torch.randint(-99, 100, p.shape, generator=generator).float().to(p.device) for p in self.parameters()]

    def backward(self, gradients: list[torch.Tensor]) -> None:
        sum((p * g).sum() for p, g in zip(self.parameters(), gradients)).backward()


def batch(step: int, rank: int | None = None, size: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch that depends on the step and the rank alone."""
    generator = torch.Generator().manual_seed(1000 * step + (hvd.rank() if rank is None else rank))
    images = torch.randn(size, 1, 6, 6, generator=generator)
    return images.to(DEVICE), torch.randint(0, 5, (size,), generator=generator).to(DEVICE)


def distribute(
    model: nn.Module, optimizer: torch.optim.Optimizer, compression: Any = None, **options: Any
) -> torch.optim.Optimizer:
    return hvd.DistributedOptimizer(
        optimizer,
        named_parameters=model.named_parameters(),
        compression=compression or hvd.Compression.none,
        **options,
    )


def compressed(
    method: Method,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    settings: dict[str, Any],
    **options: Any,
) -> tuple[torch.optim.Optimizer, Compression]:
    """The distributed optimizer with compression, and the compression itself."""
    settings = {"device_collectives": COLLECTIVES, **settings}
    compression = Compression(method, optimizer, model.named_parameters(), **settings)
    return distribute(model, optimizer, compression, **options), compression


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: int = 10,
    passes: int = 1,
    after_step: Callable[[int], None] | None = None,
) -> list[torch.Tensor]:
    """Train and return all parameters as one vector, in host memory, after each step."""
    trajectory = []
    for step in range(steps):
        optimizer.zero_grad()
        for i in range(passes):
            images, labels = batch(step * passes + i)
            nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        if after_step:
            after_step(step)
        trajectory.append(vector(model.parameters()))
    return trajectory


def vector(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    return torch.cat([t.detach().double().reshape(-1) for t in tensors]).cpu()


def assert_same_trajectory(ours: list[torch.Tensor], dense: list[torch.Tensor], tolerance: float = 2e-5) -> None:
    """Equal after every step, to float rounding relative to the size of the parameters."""
    moved = (dense[-1] - dense[0]).abs().max()
    assert moved > 100 * tolerance, f"the dense run moved by {moved} only: nothing is shown"
    for step, (a, b) in enumerate(zip(ours, dense)):
        error = ((a - b).abs() / (1 + b.abs())).max().item()
        assert error < tolerance, f"step {step}: parameters differ by {error:.3g}"


def digest(tensors: Iterable[torch.Tensor]) -> str:
    sha = hashlib.sha256()
    for tensor in tensors:
        sha.update(tensor.detach().contiguous().view(-1).view(torch.uint8).cpu().numpy().tobytes())
    return sha.hexdigest()


def assert_ranks_identical(model: nn.Module, what: str) -> None:
    digests = hvd.allgather_object(digest(model.parameters()), name="digest")
    assert len(set(digests)) == 1, f"{what}: the ranks' parameters differ"


def state_digest(compression: Compression) -> str:
    """Digest of everything that a skipped step must leave alone."""
    state = [t for entry in compression._tensors for t in (entry.residual, entry.velocity) if t is not None]
    return digest(state)
