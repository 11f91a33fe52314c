"""Deep Gradient Compression: Lin, Han, Mao, Wang, Dally, ICLR 2018, arXiv 1712.01887."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from horovod_dgc import _checks
from horovod_dgc.coding import VALUES, Coding, coordinates_to_send
from horovod_dgc.methods.base import Method, Outputs, Plan
from horovod_dgc.schedule import Warmup


@dataclass(frozen=True)
class DGC(Method):
    """Send the largest accumulated gradients; keep the rest, with momentum, on the worker.

    With g the worker's gradient, m the momentum, u the velocity and v the residual (section 3.1, equation 5)::

        u = m * u + g;  v = v + u;  send v where |v| is among the k largest;  clear u and v there

    Exactly k = ceil(density * numel) coordinates of every tensor with more than one dimension are sent, ties going
    to the lower index. Tensors with at most one dimension (biases, normalisation parameters) are exempt: sent
    whole, momentum applied to the aggregated gradient.

    Args:
        density: share of the coordinates sent after the warm-up, in (0, 1]; 0.001 in the paper.
        warmup: :class:`~horovod_dgc.Warmup`, None for none, or a callable from the number of the exchange
            (from 0) to a density; it must give the same answer on every rank.
        clip_norm: local gradient clipping threshold > 0, that of the mean gradient of the whole job: each of N
            workers clips its own at ``clip_norm * sqrt(N)`` before accumulation (section 3.2), since it is about
            sqrt(N) times as long as the mean; with ``op=hvd.Sum``, that of the sum, and so ``clip_norm / sqrt(N)``.
            None for no clipping.
        clip_scope: "global" clips by the norm over all tensors, which needs them all before the first can be
            encoded, so the exchange no longer overlaps the backward pass; "tensor" clips each by its own norm.
        values, indices: see :class:`~horovod_dgc.coding.Coding`. Rounding errors of the values stay in the residual.
        exempt_values: value coder of exempt tensors; None for the same as ``values``.
        momentum_correction: take momentum over from the optimizer and apply it before selection (section 3.2).
            Without it the method is gradient dropping with the optimizer's momentum applied afterwards.
        factor_masking: clear the velocity of sent coordinates (section 3.2). Where every coordinate is
            sent, none is stale, and the velocity is kept. Coordinates that are sent in nearly every step lose nearly
            all momentum by it; worth trying without at a density of 0.01 or more.
        sample_ratio: share of elements sampled for the threshold estimate, in (0, 1]. It changes the speed
            only: exactly the k largest are sent for any ratio.

    Raises:
        ValueError: an option out of range, naming it, its value and what is allowed.
    """

    density: float = 0.001
    warmup: Warmup | Callable[[int], float] | None = None
    clip_norm: float | None = None
    values: str = "float16"
    indices: str = "elias-fano"
    exempt_values: str | None = None
    factor_masking: bool = True
    momentum_correction: bool = True
    sample_ratio: float = 0.01
    clip_scope: str = "global"

    def __post_init__(self) -> None:
        _checks.in_range("density", self.density, 0, 1, low_open=True)
        _checks.in_range("sample_ratio", self.sample_ratio, 0, 1, low_open=True)
        if self.clip_norm is not None:
            _checks.in_range("clip_norm", self.clip_norm, 0, float("inf"), low_open=True, high_open=True)
        _checks.one_of("clip_scope", self.clip_scope, ("global", "tensor"))
        _checks.flag("factor_masking", self.factor_masking)
        _checks.flag("momentum_correction", self.momentum_correction)
        if self.warmup is not None and not isinstance(self.warmup, Warmup) and not callable(self.warmup):
            raise ValueError(f"warmup must be a Warmup, a callable or None, got {self.warmup!r}")
        Coding(self.values, self.indices)
        if self.exempt_values is not None:
            _checks.one_of("exempt_values", self.exempt_values, VALUES)

    @property
    def corrects_momentum(self) -> bool:
        return self.momentum_correction

    def density_at(self, step: int | None) -> float:
        """Density in exchange number ``step``; None stands for any exchange after the warm-up."""
        if self.warmup is None or step is None:
            return self.density
        if isinstance(self.warmup, Warmup):
            return self.warmup.density_at(step, self.density)
        return _checks.in_range(f"warmup({step})", self.warmup(step), 0, 1, low_open=True)

    def stages(self) -> tuple[int, ...] | None:
        if self.warmup is None:
            return (0,)
        return self.warmup.stages if isinstance(self.warmup, Warmup) else None

    @property
    def exempt_coding(self) -> Coding:
        return Coding(self.exempt_values or self.values, self.indices)

    def compressed(self, shape: tuple[int, ...], step: int | None, outputs: Outputs) -> Plan:
        numel = math.prod(shape)
        sent = coordinates_to_send(numel, self.density_at(step))
        return Plan(
            codec=Coding(self.values, self.indices).codec(numel, sent),
            momentum="local" if self.momentum_correction else None,
            masking=self.factor_masking,
            sample_ratio=self.sample_ratio,
        )
