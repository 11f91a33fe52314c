"""signSGD with majority vote: Bernstein, Wang, Azizzadenesheli, Anandkumar, ICML 2018, arXiv 1802.04434."""

from __future__ import annotations

from dataclasses import dataclass

from horovod_dgc.coding import every_coordinate
from horovod_dgc.method import Method, Outputs, Plan


@dataclass(frozen=True)
class SignSGD(Method):
    """Send the signs, 1 bit an element; the result is the sign of the majority::

        send sign(g);  result = sign(sum of the workers' signs)

    A zero counts as positive. The result is +1 or -1, or 0 where as many workers say one as the other, whatever the
    size of the gradient: the learning rate must be some hundred times smaller than for SGD. Nothing is kept back.
    Exempt tensors are averaged as they are. The formula is the field's common account of the method.
    """

    def compressed(self, shape: tuple[int, ...], step: int | None, outputs: Outputs) -> Plan:
        return Plan(codec=every_coordinate(shape, "sign", vote=True), residual=False)
