"""What the methods have in common that keep back what they do not send, or may be asked to."""

from __future__ import annotations

from horovod_dgc import _checks, _core
from horovod_dgc.method import Method, Plan


class Accumulating(Method):
    """A method with a residual, with or without momentum correction. Its dataclass has those of the options as
    fields that it leaves to the user.

    Attributes:
        error_feedback: add what was not sent to the next gradient (the residual). Without it, that is lost.
        momentum_correction: take momentum over from the optimizer and apply it to the worker's gradient before
            compression, as in :class:`~horovod_dgc.DGC`; otherwise the optimizer keeps it.
        factor_masking: with momentum correction, clear the velocity of sent coordinates, unless every coordinate is
            sent.
    """

    error_feedback: bool = True
    momentum_correction: bool = False
    factor_masking: bool = False

    def __post_init__(self) -> None:
        _checks.flag("error_feedback", self.error_feedback)
        _checks.flag("momentum_correction", self.momentum_correction)
        _checks.flag("factor_masking", self.factor_masking)
        _checks.seed(self.seed)

    @property
    def corrects_momentum(self) -> bool:
        return self.momentum_correction

    def accumulated(self, codec: _core.Codec) -> Plan:
        """The plan that makes this method's memory go with ``codec``."""
        return Plan(
            codec=codec,
            momentum="local" if self.momentum_correction else None,
            residual=self.error_feedback,
            masking=self.factor_masking and self.momentum_correction,
        )
