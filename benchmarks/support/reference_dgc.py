"""What the DGC authors' published PyTorch code does with one tensor, in the same torch operations, for comparison.

It is the yardstick of kernels.py and nothing else: the number of coordinates that it sends varies with the data, and
its payload is not coded.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import torch

# Their defaults.
SAMPLE_RATIO = 0.01
TOO_MANY = 1.3
TOO_FEW = 0.8
MOST_ROUNDS = 10


@dataclass
class ReferenceDGC:
    """Momentum correction, sampled threshold, adaptation, selection and masking of one flat float32 tensor.

    Attributes:
        velocity, residual: float32, shape (numel,), updated in place.
        density: share of the coordinates to send.
        momentum: of momentum correction, without Nesterov's form.
    """

    velocity: torch.Tensor
    residual: torch.Tensor
    density: float
    momentum: float

    def compress(self, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Values, and int64 indices, of at most ceil(density * numel) coordinates."""
        self.velocity.mul_(self.momentum).add_(grad)
        self.residual.add_(self.velocity)
        indices = self._select(self.residual.abs())
        values = self.residual[indices]
        self.velocity.index_fill_(0, indices, 0)
        self.residual.index_fill_(0, indices, 0)
        return values, indices

    @staticmethod
    def decompress(grad: torch.Tensor, values: torch.Tensor, indices: torch.Tensor, workers: int) -> torch.Tensor:
        """The mean of what ``workers`` workers sent, in the gradient's own memory."""
        return grad.zero_().index_put_([indices], values, accumulate=True).mul_(1 / workers)

    def _select(self, importance: torch.Tensor) -> torch.Tensor:
        numel = importance.numel()
        wanted = math.ceil(numel * self.density)
        sample = self._sample(importance)
        threshold = torch.topk(sample, math.ceil(sample.numel() * self.density), sorted=False).values.min()
        indices = (importance >= threshold).nonzero().view(-1)
        for _ in range(MOST_ROUNDS):
            if indices.numel() > TOO_MANY * wanted:
                chosen = torch.topk(importance[indices], wanted, sorted=False).indices
                return indices[chosen]
            if indices.numel() >= TOO_FEW * wanted:
                break
            threshold = threshold * TOO_FEW
            indices = (importance >= threshold).nonzero().view(-1)
        return indices[:wanted]

    def _sample(self, importance: torch.Tensor) -> torch.Tensor:
        """Every stride-th element from a random start, at least 2 / density of them where there are as many."""
        numel = importance.numel()
        least = max(math.ceil(numel * SAMPLE_RATIO), math.ceil(2 / self.density))
        if numel <= least:
            return importance
        # An odd stride, so that a sample does not run along one column of a matrix.
        stride = math.ceil(numel / least / 32) * 32 + 1
        while stride > 1 and numel // stride < least:
            stride = max(1, stride - 8)
        return importance[random.randrange(stride) :: stride]
