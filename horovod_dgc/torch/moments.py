"""Second moments of the gradient over samples, for methods that weigh a gradient by them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.grad import conv1d_weight, conv2d_weight

from horovod_dgc import _checks

# Samples whose gradients are held at a time: a layer's worth of memory each.
SAMPLES_AT_A_TIME = 16
CONVOLUTIONS: dict[type[nn.Module], Any] = {nn.Conv1d: conv1d_weight, nn.Conv2d: conv2d_weight}


class SecondMoments:
    """For each weight of a model, the sum over samples z of (g_z)**2 in the backward passes since it was last taken.

    What g_z is follows from the loss: with a mean over B samples, its gradient is (1/B) times the sample's own, as
    variance-based compression wants it (Tsuzuku et al. 2018). Give it to ``Compression(second_moments=...)``.

    ``samples="exact"`` looks into every ``Linear``, ``Conv1d``, ``Conv2d`` and ``Embedding`` at each sample's own
    gradient, at the cost of one more pass of the kind that makes the weight's gradient. A module that is used several
    times in one pass counts each use as a sample of its own. ``samples="micro-batches"`` takes each backward pass as
    one sample, in any model, at the cost of a multiplication; it needs several passes per step
    (``backward_passes_per_step``) to tell a gradient from its noise.

    Args:
        model: whose weights of more than one dimension are looked at.
        samples: "exact" or "micro-batches".
        batch_axis: axis of the modules' inputs that counts samples, for "exact".

    Raises:
        ValueError: an option out of range; or, for "exact", a weight of another kind of module, naming it.
    """

    def __init__(self, model: nn.Module, *, samples: str = "exact", batch_axis: int = 0) -> None:
        _checks.one_of("samples", samples, ("exact", "micro-batches"))
        self._axis = _checks.whole_number("batch_axis", batch_axis, 0)
        self._sums: dict[int, torch.Tensor] = {}
        weights = {id(p): name for name, p in model.named_parameters() if p.dim() > 1 and p.requires_grad}
        if samples == "micro-batches":
            for parameter in model.parameters():
                if id(parameter) in weights:
                    parameter.register_hook(self._square(parameter))  # type: ignore[no-untyped-call]
            return
        for module in model.modules():
            if weights.pop(id(getattr(module, "weight", None)), None) is not None:
                module.register_forward_hook(self._observe)
                if _moments_of(module) is None:
                    weights[id(module.weight)] = type(module).__name__
        if weights:
            raise ValueError(
                f'samples must be "micro-batches" for this model: weights of {", ".join(sorted(weights.values()))} '
                "belong to no Linear, Conv1d, Conv2d or Embedding"
            )

    def take(self, parameter: torch.Tensor) -> torch.Tensor | None:
        """The sums for this weight, float32 and flat, and begin anew; None if nothing has been seen."""
        moments = self._sums.pop(id(parameter), None)
        return None if moments is None else moments.reshape(-1)

    def _add(self, parameter: torch.Tensor, moments: torch.Tensor) -> None:
        known = self._sums.get(id(parameter))
        self._sums[id(parameter)] = moments if known is None else known.add_(moments)

    def _square(self, parameter: nn.Parameter) -> Callable[[torch.Tensor], None]:
        return lambda gradient: self._add(parameter, gradient.detach().float().square())

    def _observe(self, module: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        if not output.requires_grad:
            return
        samples = inputs[0].detach().movedim(self._axis, 0)
        moments_of = _moments_of(module)
        assert moments_of is not None

        def add(gradient: torch.Tensor) -> None:
            deltas = gradient.detach().movedim(self._axis, 0)
            for x, delta in zip(_parts(samples), _parts(deltas)):
                self._add(module.weight, moments_of(module, x, delta.float()))

        output.register_hook(add)  # type: ignore[no-untyped-call]


def _parts(samples: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.split(samples, SAMPLES_AT_A_TIME)


def _moments_of(module: nn.Module) -> Callable[[Any, torch.Tensor, torch.Tensor], torch.Tensor] | None:
    if isinstance(module, nn.Linear):
        return _linear
    if isinstance(module, tuple(CONVOLUTIONS)) and getattr(module, "padding_mode", None) == "zeros":
        return _convolution
    return _embedding if isinstance(module, nn.Embedding) and module.max_norm is None else None


def _linear(_: nn.Linear, x: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    x = x.float()
    if x.dim() == 2:
        return delta.square().T @ x.square()
    gradients = torch.einsum("zto,zti->zoi", delta.flatten(1, -2), x.flatten(1, -2))
    return gradients.square().sum(0)


def _convolution(module: Any, x: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    """Each sample as a group of one large convolution, whose weight gradient then holds the samples' own."""
    count, weight = len(x), module.weight
    gradients = CONVOLUTIONS[type(module)](
        x.float().reshape(1, -1, *x.shape[2:]),
        (count * weight.shape[0], *weight.shape[1:]),
        delta.reshape(1, -1, *delta.shape[2:]),
        stride=module.stride,
        padding=module.padding,
        dilation=module.dilation,
        groups=count * module.groups,
    )
    moments: torch.Tensor = gradients.reshape(count, *weight.shape).square().sum(0)
    return moments


def _embedding(module: nn.Embedding, words: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    """Only the rows of the words that occur in a sample have a gradient there."""
    sample = torch.arange(len(words), device=words.device).view(-1, *[1] * (words.dim() - 1))
    keys, rows = torch.unique(sample * module.num_embeddings + words, return_inverse=True)
    gradients = torch.zeros(len(keys), module.embedding_dim, dtype=torch.float32, device=delta.device)
    gradients.index_add_(0, rows.reshape(-1), delta.reshape(-1, module.embedding_dim))
    shape = (module.num_embeddings, module.embedding_dim)
    moments = torch.zeros(shape, dtype=torch.float32, device=delta.device)
    moments.index_add_(0, keys % module.num_embeddings, gradients.square())
    if module.padding_idx is not None:
        moments[module.padding_idx] = 0
    return moments
