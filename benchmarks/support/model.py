"""A model that is nothing but its parameters: gradients appear at no cost, so that a step's time is the exchange's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

Shapes = Mapping[str, tuple[int, ...]]


class _Touch(torch.autograd.Function):
    """A scalar that depends on every parameter. Its backward pass computes nothing but sets off every hook."""

    @staticmethod
    def forward(ctx: Any, *parameters: torch.Tensor) -> torch.Tensor:
        ctx.count = len(parameters)
        return torch.zeros(())

    @staticmethod
    def backward(ctx: Any, _: torch.Tensor) -> tuple[None, ...]:
        return (None,) * ctx.count


class Model:
    """Parameters of given shapes with gradients drawn once.

    Args:
        shapes: by name.
        prefix: put before each name, so that several models can share one Horovod job.
        seed: of the gradients; each rank has its own.
    """

    def __init__(self, shapes: Shapes, prefix: str, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._parameters = {
            f"{prefix}.{name}": torch.nn.Parameter(torch.zeros(shape)) for name, shape in shapes.items()
        }
        self._drawn = [torch.randn(p.shape, generator=generator) for p in self._parameters.values()]
        for p in self._parameters.values():
            p.grad = torch.empty_like(p)

    def parameters(self) -> list[torch.nn.Parameter]:
        return list(self._parameters.values())

    def named_parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        return iter(self._parameters.items())

    def fill_gradients(self) -> None:
        """What a backward pass would have left in ``p.grad``; not to be timed."""
        with torch.no_grad():
            for p, drawn in zip(self._parameters.values(), self._drawn):
                assert p.grad is not None
                p.grad.copy_(drawn)

    def backward(self) -> None:
        """Set off the hooks that hand each gradient to Horovod, the last parameter's first."""
        _Touch.apply(*self._parameters.values()).backward()
