"""Signum: Bernstein, Zhao, Azizzadenesheli, Anandkumar, ICLR 2019, arXiv 1810.05291."""

from __future__ import annotations

from dataclasses import dataclass

from horovod_dgc.coding import every_coordinate
from horovod_dgc.method import Method, Outputs, Plan


@dataclass(frozen=True)
class Signum(Method):
    """The signs of each worker's momentum, with majority vote::

        u = m * u + g;  send sign(u);  result = sign(sum of the workers' signs)

    :class:`~horovod_dgc.SignSGD` with momentum taken over from the optimizer and applied before the signs are taken.
    The paper's (1 - m) * g has the same signs. What is said there of zeros, ties, learning rate and exempt tensors
    holds here. The formula is the field's common account of the method.
    """

    @property
    def corrects_momentum(self) -> bool:
        return True

    def compressed(self, shape: tuple[int, ...], step: int | None, outputs: Outputs) -> Plan:
        return Plan(codec=every_coordinate(shape, "sign", vote=True), momentum="local", residual=False)
