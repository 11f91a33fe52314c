"""How long a step takes: a model of latency, bandwidth, and the rates of encoding and decoding.

With N workers on a ring, s bytes handed over by each, latency alpha (seconds a message) and bandwidth beta (bytes a
second, each way) of the slowest link of the ring::

    allreduce    2 (N - 1) alpha + 2 (N - 1) / N * s / beta
    allgather      (N - 1) alpha +   (N - 1)     * s / beta
    alltoall       (N - 1) alpha +   (N - 1) / N * s / beta
    reducescatter  (N - 1) alpha +   (N - 1) / N * s / beta

(Thakur, Rabenseifner, Gropp, Int. J. High Performance Computing Applications 19(1), 2005, sections 4.1 and 4.5;
Patarasuk and Yuan, J. Parallel and Distributed Computing 69(2), 2009.) With ``algorithm="doubling"`` ceil(log2 N) takes
the place of N - 1 in front of alpha (same source: recursive doubling and Rabenseifner's algorithm). The bytes
are those of :func:`horovod_dgc.transport.received_nbytes`.

Workers of a node stand next to each other on the ring, so each link between nodes carries what one worker
receives, however many workers a node has. A ring over several nodes waits for the links between them in every
step: their alpha and beta count, and those within the node only if there is no other node. With the hierarchical
transport L workers of a node scatter and gather at the node's own alpha and beta, and each of them is on a ring of its
own over the nodes, so that L rings share a node's link: beta / L for each.

Horovod puts tensors of one type that wait together into one message of up to a fusion threshold, so latency
is paid for ceil(bytes / threshold) messages, where an allgather's bytes are those of its result (Horovod 0.28.1,
``Controller::FuseResponses``). It fuses no alltoalls.

A step::

    network = the sum over all messages
    step = compute + encode + decode + tensors * handling + max(0, network - overlap * compute)
    efficiency = compute / step;  speedup = N * efficiency, over one worker with the same batch per worker

Encoding and decoding are never taken to be hidden. What is left out: contention, Horovod's cycle time and
negotiation, stragglers, and what the optimizer saves because momentum has been applied already.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

from horovod_dgc import _checks, transport
from horovod_dgc.hierarchy import Hierarchy
from horovod_dgc.methods.base import Method, Outputs, Plan

FUSION_NBYTES = 128 << 20
"""Horovod's own threshold (0.28.1, ``operations.cc``), which HOROVOD_FUSION_THRESHOLD changes."""
CONTROL_NBYTES = 4
"""Of the factor of a tensor that Horovod's own allreduce does not carry, and of the flag that all are finite."""

LATENCY_STEPS: dict[str, Callable[[int], int]] = {
    "ring": lambda workers: workers - 1,
    "doubling": lambda workers: (workers - 1).bit_length(),
}


Among = Literal["all", "node", "places"]
"""Who takes part in a collective: all workers, those of a node, or those of the same place on all nodes."""


@dataclass(frozen=True)
class Cluster:
    """Workers and the links between them.

    Args:
        workers: in all, >= 1; a multiple of ``workers_per_node``.
        bandwidth: of a node's link to the other nodes, bytes a second each way, > 0.
        latency: of a message between nodes, seconds, >= 0.
        workers_per_node: >= 1.
        local_bandwidth, local_latency: the same between the workers of a node. Assumed, not measured: about PCI
            Express 3.0 x16.
        algorithm: "ring" or "doubling", how the number of latencies grows with the workers.
        fusion_nbytes: largest message that tensors are fused into, > 0.

    Raises:
        ValueError: an argument out of range, naming it, its value and what is allowed.
    """

    workers: int
    bandwidth: float
    latency: float = 50e-6
    workers_per_node: int = 1
    local_bandwidth: float = 12.5e9
    local_latency: float = 10e-6
    algorithm: str = "ring"
    fusion_nbytes: int = FUSION_NBYTES

    def __post_init__(self) -> None:
        _checks.whole_number("workers", self.workers, 1)
        _checks.whole_number("workers_per_node", self.workers_per_node, 1)
        if self.workers % self.workers_per_node:
            raise ValueError(
                f"workers must be a multiple of workers_per_node = {self.workers_per_node}, got {self.workers!r}"
            )
        for name in ("bandwidth", "local_bandwidth"):
            _checks.in_range(name, getattr(self, name), 0, math.inf, low_open=True, high_open=True)
        for name in ("latency", "local_latency"):
            _checks.in_range(name, getattr(self, name), 0, math.inf, high_open=True)
        _checks.one_of("algorithm", self.algorithm, LATENCY_STEPS)
        _checks.whole_number("fusion_nbytes", self.fusion_nbytes, 1)

    @property
    def nodes(self) -> int:
        return self.workers // self.workers_per_node

    def ring(self, among: Among) -> tuple[int, float, float]:
        """Workers of such a ring, and latency and bandwidth of the links that it waits for."""
        if among == "places":
            return self.nodes, self.latency, self.bandwidth / self.workers_per_node
        if among == "all" and self.nodes > 1:
            return self.workers, self.latency, self.bandwidth
        return self.workers_per_node, self.local_latency, self.local_bandwidth

    def link_share(self, among: Among) -> int:
        """How many such rings cross a node's link; the link is a worker's where there is one node."""
        if among == "node":
            return 0 if self.nodes > 1 else 1
        return self.workers_per_node if among == "places" else 1


@dataclass(frozen=True)
class Rates:
    """What a worker's own arithmetic costs, in seconds, all >= 0.

    Args:
        encode: for each element of a tensor.
        commit: for each element of a tensor that has a residual or a velocity: the pass that updates them.
        decode: for each coordinate of each payload that is decoded.
        tensor: for each tensor, whatever its size: calls, and Horovod's handling.

    Raises:
        ValueError: a rate that is negative or not finite.
    """

    encode: float = 0.0
    commit: float = 0.0
    decode: float = 0.0
    tensor: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            _checks.in_range(field.name, getattr(self, field.name), 0, math.inf, high_open=True)


@dataclass(frozen=True)
class Collective:
    """One kind of collective over N workers that hand over s bytes each.

    Attributes:
        phases: how many times it pays the algorithm's latencies.
        received: from s and N to the bytes that cross each worker's link one way.
        buffer: from s and N to the bytes that Horovod compares with its fusion threshold.
    """

    phases: int
    received: Callable[[int, int], float]
    buffer: Callable[[int, int], int]

    def seconds(self, nbytes: int, cluster: Cluster, among: Among = "all") -> float:
        """Time for all tensors of one type together."""
        workers, latency, bandwidth = cluster.ring(among)
        messages = math.ceil(self.buffer(nbytes, workers) / cluster.fusion_nbytes)
        steps = messages * self.phases * LATENCY_STEPS[cluster.algorithm](workers)
        return steps * latency + self.received(nbytes, workers) / bandwidth

    def link_nbytes(self, nbytes: int, cluster: Cluster, among: Among) -> float:
        """What crosses a node's link one way."""
        return cluster.link_share(among) * self.received(nbytes, cluster.ring(among)[0])


COLLECTIVES: dict[str, Collective] = {
    "allreduce": Collective(2, lambda s, n: 2 * (n - 1) / n * s, lambda s, n: s),
    "allgather": Collective(1, lambda s, n: float((n - 1) * s), lambda s, n: n * s),
    "alltoall": Collective(1, lambda s, n: (n - 1) / n * s, lambda s, n: s),
    "reducescatter": Collective(1, lambda s, n: (n - 1) / n * s, lambda s, n: s),
}


@dataclass(frozen=True)
class Tensor:
    """One gradient in one step, by its number in the model: what a transport has to carry."""

    number: int
    method: Method
    shape: tuple[int, ...]
    outputs: Outputs
    step: int | None

    @property
    def plan(self) -> Plan:
        return self.method.plan(self.shape, self.step, self.outputs)


@dataclass(frozen=True)
class Message:
    """A tensor's part in one collective; parts of the same ``collective``, ``group`` and ring may be fused."""

    collective: str
    group: str
    nbytes: int
    among: Among = "all"


Ring = tuple[str, str, Among]
"""Collective, group and who takes part: what messages are fused by."""


@dataclass(frozen=True)
class Load:
    """What a transport makes of one tensor.

    Attributes:
        transport: which one it really is.
        plan: of what a worker encodes.
        messages: the gradient's, in order.
        control: messages besides.
        decoded: coordinates that a worker decodes, over all payloads.
        inside: dense messages inside a node.
    """

    transport: str
    plan: Plan
    messages: tuple[Message, ...]
    control: tuple[Message, ...]
    decoded: int
    inside: tuple[Message, ...] = ()


_FACTOR = Message("allreduce", "float32", CONTROL_NBYTES)


def _gather(tensor: Tensor, cluster: Cluster) -> Load:
    plan = tensor.plan
    payload = Message("allgather", "payload", plan.payload_nbytes)
    return Load("gather", plan, (*_opening(plan), payload), (_FACTOR,), cluster.workers * plan.sent)


def _allreduce(tensor: Tensor, cluster: Cluster) -> Load:
    plan = tensor.plan
    kind = "float32" if plan.summable is None else str(plan.summable)
    message = Message("allreduce", kind, transport.message_nbytes(plan, "allreduce"))
    control = () if transport.carriable(plan) else (_FACTOR,)
    return Load("allreduce", plan, (*_opening(plan), message), control, plan.sent)


def _sparse_allreduce(tensor: Tensor, cluster: Cluster) -> Load:
    way, plan = transport.resolved(tensor.plan, cluster.workers, "sparse-allreduce")
    if way != "sparse-allreduce":
        return TRANSPORTS[way](tensor, cluster)
    parts = Message("alltoall", str(tensor.number), plan.payload_nbytes)
    sums = Message("allgather", "payload", plan.payload_nbytes // cluster.workers)
    # The parts that come here, and then the sums.
    return Load("sparse-allreduce", tensor.plan, (parts, sums), (_FACTOR,), 2 * plan.sent)


def _auto(tensor: Tensor, cluster: Cluster) -> Load:
    return TRANSPORTS[transport.resolved(tensor.plan, cluster.workers, None)[0]](tensor, cluster)


def _hierarchical(tensor: Tensor, cluster: Cluster) -> Load:
    """As "auto", between the nodes, of the part of a node's mean gradient that its first worker has."""
    local = cluster.workers_per_node
    part = Hierarchy(0, cluster.workers, local).part(tensor.shape, tensor.outputs) if local > 1 else None
    if part is None:
        return _auto(tensor, cluster)
    across = replace(cluster, workers=cluster.nodes, workers_per_node=1)
    # A part's rows are its output units in every framework.
    load = _auto(replace(tensor, shape=part.shape, outputs="first"), across)
    dense = transport.FLOAT32_NBYTES * math.prod(tensor.shape)
    return replace(
        load,
        messages=tuple(replace(message, among="places") for message in load.messages),
        control=(_FACTOR,),
        inside=(
            Message("reducescatter", "scatter", dense, "node"),
            Message("allgather", "gather", transport.FLOAT32_NBYTES * part.numel, "node"),
        ),
    )


def _opening(plan: Plan) -> tuple[Message, ...]:
    return (Message("allreduce", "opening", plan.opening_nbytes),) if plan.opening_nbytes else ()


TRANSPORTS: dict[str, Callable[[Tensor, Cluster], Load]] = {
    "auto": _auto,
    "gather": _gather,
    "allreduce": _allreduce,
    "sparse-allreduce": _sparse_allreduce,
    "hierarchical": _hierarchical,
}
"""From a tensor and a cluster to what has to be carried; "auto" is what ``Compression`` does of itself."""


@dataclass(frozen=True)
class Prediction:
    """One step of one method, on each worker.

    Attributes:
        workers: how many there are.
        compute, encode, decode, handling, network: seconds; encode includes the pass that updates the state.
        hidden: seconds of ``network`` behind computation.
        dense_nbytes: of the float32 gradients.
        payload_nbytes: as :func:`horovod_dgc.traffic` counts: payloads and openings.
        sent_nbytes: handed to Horovod's collectives as gradients by the transports chosen, ``stats().last.sent``.
        control_nbytes: handed over besides, ``stats().last.control`` in PyTorch without ``clip_norm``, which
            makes every tensor wait for the last and so adds four bytes to each.
        inside_nbytes: handed over inside the node, dense; ``stats().last.inside``.
        link_nbytes: cross a node's link one way, gradients and control together; where there is one node, a worker's.
        transports: number of tensors by transport.
    """

    workers: int
    compute: float
    encode: float
    decode: float
    handling: float
    network: float
    hidden: float
    dense_nbytes: int
    payload_nbytes: int
    sent_nbytes: int
    control_nbytes: int
    inside_nbytes: int
    link_nbytes: float
    transports: Mapping[str, int]

    @property
    def step(self) -> float:
        """Seconds."""
        # The part of the network's time first: a difference of two rounded sums could come out below zero.
        return self.compute + self.encode + self.decode + self.handling + (self.network - self.hidden)

    @property
    def efficiency(self) -> float:
        """Share of the step that is computation, in (0, 1]."""
        return self.compute / self.step

    @property
    def speedup(self) -> float:
        """Over one worker with the same batch per worker, in (0, workers]."""
        return self.workers * self.efficiency


def predict(
    shapes: Iterable[Sequence[int]] | Mapping[str, Sequence[int]],
    method: Method | None,
    cluster: Cluster,
    compute: float,
    *,
    rates: Rates,
    transport: str = "auto",
    overlap: float = 0.0,
    outputs: Outputs = "first",
    step: int | None = None,
) -> Prediction:
    """What one step takes, by the formulas at the head of this module.

    Args:
        shapes: one per parameter, or a mapping from names to shapes.
        method: None for Horovod's own allreduce of float32 gradients.
        compute: seconds of a worker's step without any exchange, > 0.
        rates: of the method, as :func:`horovod_dgc.rates.assumed` or :func:`horovod_dgc.rates.measured` gives them.
        transport: "auto", "gather", "allreduce" or "sparse-allreduce", as for ``Compression``, or "hierarchical" for
            ``Compression(..., hierarchical=True)``.
        overlap: share of the computation that the exchange may hide behind, in [0, 1]; 0 hides nothing.
        outputs: which axis counts a layer's output units: "first" (PyTorch) or "last" (Keras).
        step: number of the exchange, for a warm-up schedule; None for after it.

    Raises:
        ValueError: an argument out of range, naming it, its value and what is allowed.
    """
    _checks.in_range("compute", compute, 0, math.inf, low_open=True, high_open=True)
    _checks.in_range("overlap", overlap, 0, 1)
    _checks.one_of("transport", transport, TRANSPORTS)
    workers = cluster.workers
    sent: Counter[Ring] = Counter()
    control: Counter[Ring] = Counter()
    inside: Counter[Ring] = Counter()
    transports: Counter[str] = Counter()
    dense = payload = elements = stateful = decoded = tensors = 0
    for shape in shapes.values() if isinstance(shapes, Mapping) else shapes:
        dimensions = tuple(_checks.whole_number("shapes", extent, 0) for extent in shape)
        numel = math.prod(dimensions)
        tensors += 1
        dense += numel * 4
        if method is None:
            payload += numel * 4
            sent["allreduce", "float32", "all"] += numel * 4
            transports["allreduce"] += 1
            continue
        load = TRANSPORTS[transport](Tensor(tensors, method, dimensions, outputs, step), cluster)
        for counts, messages in ((sent, load.messages), (control, load.control), (inside, load.inside)):
            for message in messages:
                counts[message.collective, message.group, message.among] += message.nbytes
        plan = load.plan
        payload += plan.opening_nbytes + plan.payload_nbytes
        elements += plan.numel
        stateful += plan.numel if plan.residual or plan.momentum == "local" else 0
        decoded += load.decoded
        transports[load.transport] += 1
    if method is not None and tensors:
        control["allreduce", "flag", "all"] += CONTROL_NBYTES
    if workers == 1:
        # Horovod calls no compression and sends nothing.
        sent, control, inside, transports = Counter(), Counter(), Counter(), Counter()
        elements = stateful = decoded = tensors = 0
    together = sent + control + inside
    network = sum(COLLECTIVES[kind].seconds(nbytes, cluster, among) for (kind, _, among), nbytes in together.items())
    return Prediction(
        workers=workers,
        compute=compute,
        encode=elements * rates.encode + stateful * rates.commit,
        decode=decoded * rates.decode,
        handling=tensors * rates.tensor,
        network=network,
        hidden=min(network, overlap * compute),
        dense_nbytes=dense,
        payload_nbytes=payload,
        sent_nbytes=sum(sent.values()),
        control_nbytes=sum(control.values()),
        inside_nbytes=sum(inside.values()),
        link_nbytes=sum(
            COLLECTIVES[kind].link_nbytes(nbytes, cluster, among) for (kind, _, among), nbytes in together.items()
        ),
        transports=dict(transports),
    )
