"""The battery that every method must pass, for the methods of this package and for one of your own::

    from horovod_dgc.testing import check_method

    def test_sparse_signs() -> None:
        check_method(SparseSigns(), formula=what_it_sends, nbytes=12)

It needs NumPy only, takes a fraction of a second, and draws the same numbers every time. What fails is an
AssertionError that names the method, the part of the battery and what was found.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from horovod_dgc.methods.base import Method, checked
from horovod_dgc.testing.arithmetic import check_conservation, check_formula, check_unbiased, conserved
from horovod_dgc.testing.case import Case, Formula, Look, Sent, send
from horovod_dgc.testing.description import check_plans, check_settings, check_size
from horovod_dgc.testing.inputs import check_not_finite, check_odd_tensors
from horovod_dgc.testing.workers import check_adapters, check_seeds, check_sparse_allreduce, check_workers

__all__ = ["PARTS", "Case", "Formula", "Look", "Sent", "check_method", "conserved", "send"]

# The parts of the battery, by what they look at.
PARTS: dict[str, Callable[[Case], None]] = {
    "settings": check_settings,
    "plans": check_plans,
    "size": check_size,
    "formula": check_formula,
    "conservation": check_conservation,
    "unbiased": check_unbiased,
    "odd tensors": check_odd_tensors,
    "not finite": check_not_finite,
    "seeds": check_seeds,
    "workers": check_workers,
    "sparse allreduce": check_sparse_allreduce,
    "adapters": check_adapters,
}


def check_method(method: Method, **held_against: Any) -> None:
    """Put ``method`` through the battery, all of :data:`PARTS`, in their order.

    Args:
        method: an instance, of a class that may be registered or not.
        held_against: what is known of it, as :class:`Case` has it: ``formula``, ``nbytes`` and so on.

    Raises:
        AssertionError: what the method does not do as it must; of the first part that fails.
        ValueError: no method.
    """
    case = Case(checked(method), **held_against)
    for name, part in PARTS.items():
        try:
            part(case)
        except Exception as error:
            what = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
            raise AssertionError(f"{method!r} fails in {name!r}: {what.strip()}") from error
