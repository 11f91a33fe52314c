"""Which collectives carry a tensor: a matter of cost. None of them loses anything, or differs between ranks."""

from __future__ import annotations

import math
from typing import Literal, cast, get_args

import numpy as np

from horovod_dgc import _checks
from horovod_dgc.methods.base import Plan

Transport = Literal["gather", "allreduce", "sparse-allreduce"]
NAMES = ("auto", *get_args(Transport))
FLOAT32_NBYTES = 4


def forced(name: object) -> Transport | None:
    """The transport that the option ``transport`` forces for every tensor; None for "auto", the choice by cost."""
    _checks.one_of("transport", name, NAMES)
    return None if name == "auto" else cast(Transport, name)


def resolved(plan: Plan, workers: int, wanted: Transport | None) -> tuple[Transport, Plan]:
    """How a tensor travels among ``workers``, and its plan for that.

    Args:
        wanted: None for the choice by cost, in which a sparse allreduce takes the place of a dense one where that pays.
            A tensor that cannot travel by "sparse-allreduce" is chosen for by cost.
    """
    chosen = choose(plan, workers) if wanted in (None, "sparse-allreduce") else wanted
    if workers > 1 and (wanted == "sparse-allreduce" or (wanted is None and chosen == "allreduce")):
        divided = plan.divided(workers)
        if divided is not None and (wanted is not None or _halves_dense(plan, divided, workers)):
            return "sparse-allreduce", divided
    return chosen, plan


def received_nbytes(plan: Plan, workers: int, transport: Transport) -> float:
    """Bytes that cross each worker's link, one way, in ring collectives over ``workers`` workers.

    A gather brings every other worker's payload. An allreduce moves the dense tensor, or the payload where it
    can be summed as it is, 2 (N - 1) / N times. A sparse allreduce brings every other worker's part of its payload,
    and then the other workers' sums, as long.

    Args:
        plan: for "sparse-allreduce" a divided one.
    """
    if transport == "gather":
        return float((workers - 1) * plan.payload_nbytes)
    if transport == "sparse-allreduce":
        return 2 * (workers - 1) / workers * plan.payload_nbytes
    return 2 * (workers - 1) / workers * message_nbytes(plan, transport)


def choose(plan: Plan, workers: int) -> Transport:
    """The cheaper of a gather and an allreduce for one tensor; a tie goes to the allreduce, which stays flat with N.

    It depends on nothing but the plan and the number of workers, so all ranks agree.
    """
    gather = received_nbytes(plan, workers, "gather")
    return "gather" if gather < received_nbytes(plan, workers, "allreduce") else "allreduce"


def message_nbytes(plan: Plan, transport: Transport) -> int:
    """Bytes that one worker hands to Horovod for this tensor, whose plan is a divided one for "sparse-allreduce"."""
    if transport == "sparse-allreduce":
        return plan.payload_nbytes + plan.payload_nbytes // plan.codec.parts
    if transport == "gather" or plan.summable:
        return plan.payload_nbytes
    return plan.numel * FLOAT32_NBYTES


def carriable(plan: Plan) -> bool:
    """Whether what is summed can travel as the gradient itself would, through Horovod's own allreduce.

    Not where workers agree on something first, where the sign of the sum is wanted, which takes no account of the
    factors that Horovod puts in, nor where :func:`summand_scale` is not 1.
    """
    return not plan.codec.opening[0] and not plan.codec.votes and plan.summable != np.float16


def summand_scale(plan: Plan, workers: int) -> float:
    """What each worker multiplies the numbers of its payload by that an allreduce adds up.

    In float16 the sum of finite numbers may be infinite. That of such parts of N numbers is not: it is at most their
    mean, with room for N roundings of 2**-11 each. A power of two, which rounds nothing but what is below 2**-14.
    """
    if plan.summable != np.float16:
        return 1.0
    return 2.0 ** -math.ceil(math.log2(workers * (1 + workers * 2.0**-11)))


def _halves_dense(plan: Plan, divided: Plan, workers: int) -> bool:
    """Whether a sparse allreduce at least halves the bytes of a dense one: it puts off a part of what has been sent."""
    dense = received_nbytes(plan, workers, "allreduce")
    return 2 * received_nbytes(divided, workers, "sparse-allreduce") <= dense
