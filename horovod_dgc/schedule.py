"""Density schedules: how the density falls to its final value in the first part of training."""

from __future__ import annotations

from dataclasses import dataclass

from horovod_dgc import _checks

PAPER_DENSITIES = (0.25, 0.0625, 0.015625, 0.004)


@dataclass(frozen=True)
class Warmup:
    """Exponentially falling density in equal stages (Lin et al., ICLR 2018, section 3.3).

    With the default stages, sparsity is 75, 93.75, 98.4375 and 99.6 % for a quarter of the warm-up each, and the
    method's own density afterwards. A stage never sends less than the method's own density.

    Args:
        steps: length of the warm-up in exchanges (calls of ``optimizer.step()``), >= 1.
        epochs, steps_per_epoch: the same length as a product, instead of ``steps``; ``epochs`` > 0 may be a
            fraction. The paper used 4 epochs of 164 on CIFAR-10, 4 of 90 on ImageNet, and 1 of 40 or 80 on
            Penn Treebank and speech.
        densities: density of each stage, each in (0, 1].

    Raises:
        ValueError: neither or both forms of length given, or a value out of range.
    """

    steps: int | None = None
    epochs: float | None = None
    steps_per_epoch: int | None = None
    densities: tuple[float, ...] = PAPER_DENSITIES

    def __post_init__(self) -> None:
        by_epochs = self.epochs is not None or self.steps_per_epoch is not None
        if by_epochs == (self.steps is not None):
            raise ValueError(
                "Warmup needs either steps or both epochs and steps_per_epoch, got "
                f"steps={self.steps!r}, epochs={self.epochs!r}, steps_per_epoch={self.steps_per_epoch!r}"
            )
        if by_epochs:
            epochs = _checks.in_range("epochs", self.epochs, 0, float("inf"), low_open=True, high_open=True)
            per_epoch = _checks.whole_number("steps_per_epoch", self.steps_per_epoch, 1)
            object.__setattr__(self, "steps", max(1, round(epochs * per_epoch)))
        _checks.whole_number("steps", self.steps, 1)
        object.__setattr__(self, "densities", tuple(self.densities))
        if not self.densities:
            raise ValueError("densities must name at least one stage, got ()")
        for density in self.densities:
            _checks.in_range("densities", density, 0, 1, low_open=True)

    def density_at(self, step: int, final: float) -> float:
        """Density of exchange number ``step`` (from 0), where ``final`` is the density after the warm-up."""
        assert self.steps is not None
        if step >= self.steps:
            return final
        stage = step * len(self.densities) // self.steps
        return max(self.densities[stage], final)

    @property
    def stages(self) -> tuple[int, ...]:
        """Numbers of the exchanges at which the density changes, from 0 to the end of the warm-up, ascending."""
        assert self.steps is not None
        count = len(self.densities)
        # The first step of a stage is the least with step * count // steps == stage.
        firsts = {-(-stage * self.steps // count) for stage in range(count)}
        return tuple(sorted(firsts | {self.steps}))
