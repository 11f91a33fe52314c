"""Which collective carries a tensor: a matter of cost, with the same result either way."""

from __future__ import annotations

from typing import Literal, cast

from horovod_dgc import _checks
from horovod_dgc.method import Plan

Transport = Literal["gather", "allreduce"]
FLOAT32_NBYTES = 4


def forced(name: object) -> Transport | None:
    """The transport that the option ``transport`` forces for every tensor; None for "auto", the choice by cost."""
    _checks.one_of("transport", name, ("auto", "gather", "allreduce"))
    return None if name == "auto" else cast(Transport, name)


def received_nbytes(plan: Plan, workers: int, transport: Transport) -> float:
    """Bytes that cross each worker's link, one way, in a ring collective over ``workers`` workers.

    A gather brings every other worker's payload. An allreduce moves the dense tensor, or the payload where it
    can be summed as it is, 2 (N - 1) / N times.
    """
    if transport == "gather":
        return float((workers - 1) * plan.payload_nbytes)
    return 2 * (workers - 1) / workers * message_nbytes(plan, transport)


def choose(plan: Plan, workers: int) -> Transport:
    """The cheaper transport for one tensor; a tie goes to the allreduce, whose cost stays flat as N grows.

    It depends on nothing but the plan and the number of workers, so all ranks agree.
    """
    gather = received_nbytes(plan, workers, "gather")
    return "gather" if gather < received_nbytes(plan, workers, "allreduce") else "allreduce"


def message_nbytes(plan: Plan, transport: Transport) -> int:
    """Bytes that one worker hands to Horovod for this tensor."""
    if transport == "gather" or plan.summable:
        return plan.payload_nbytes
    return plan.numel * FLOAT32_NBYTES
