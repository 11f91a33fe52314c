"""The methods that are compared, and which of them to take."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from horovod_dgc import registry
from horovod_dgc.cost import Cluster, Prediction, Rates, predict
from horovod_dgc.methods.base import Method
from horovod_dgc.plan.models import Model

DENSE = "dense"
# In the order of what they change in the training: the recommendation prefers the first of about equal ones.
DEFAULTS = (DENSE, "fp16", "int8", "powersgd:rank=2", "dgc", "dgc:values=int8", "dgc:values=int4")
# Predictions closer than this are not told apart.
NEAR = 0.05


@dataclass(frozen=True)
class Contender:
    """A method as it was named, how it travels, and its rates; ``method`` is None for the dense exchange."""

    name: str
    method: Method | None
    transport: str
    rates: Rates

    @property
    def label(self) -> str:
        return self.name if self.transport == "auto" else f"{self.name}, {self.transport}"


@dataclass(frozen=True)
class Job:
    """What is trained, where, and how long a step computes (seconds), ``overlap`` as for :func:`predict`."""

    model: Model
    cluster: Cluster
    compute: float
    overlap: float = 0.0

    def predict(self, contender: Contender) -> Prediction:
        return predict(
            self.model.shapes,
            contender.method,
            self.cluster,
            self.compute,
            rates=contender.rates,
            transport=contender.transport,
            overlap=self.overlap,
            outputs=self.model.outputs,
        )

    def on(self, nodes: int) -> Job:
        """The same on another number of nodes."""
        return replace(self, cluster=replace(self.cluster, workers=nodes * self.cluster.workers_per_node))


def contenders(
    names: Sequence[str], transports: Sequence[str], rates: Callable[[str, Method | None], Rates]
) -> list[Contender]:
    """Every method by every transport, the dense exchange first and once.

    Args:
        names: as :func:`horovod_dgc.registry.parse` reads them, or "dense".
        transports: keys of :data:`horovod_dgc.cost.TRANSPORTS`.
        rates: of a method, given its name and itself.

    Raises:
        ValueError: a name that is none.
    """
    made = [Contender(DENSE, None, "auto", rates(DENSE, None))]
    for name in dict.fromkeys(names):
        if name != DENSE:
            method = registry.parse(name)
            own = rates(name, method)
            made += [Contender(name, method, transport, own) for transport in transports]
    return made


def recommended(predictions: Mapping[str, Prediction]) -> str:
    """The first label whose step takes at most 5 % longer than the fastest one's."""
    fastest = min(prediction.step for prediction in predictions.values())
    return next(label for label, prediction in predictions.items() if prediction.step <= (1 + NEAR) * fastest)


def read_rates(path: Path) -> dict[str, Rates]:
    """Rates by method name, from the ``rates`` of a file that ``--json`` wrote or from one that holds only those.

    Raises:
        ValueError: not JSON, or not that.
    """
    try:
        content = json.loads(path.read_text())
        found = content.get("rates", content)
        return {str(name): Rates(**values) for name, values in found.items()}
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"rates must be a JSON file with encode, commit, decode and tensor, in seconds, for each method, "
            f"got {str(path)!r}: {error}"
        ) from None


def record(job: Job, made: Sequence[Contender], predictions: Mapping[str, Prediction]) -> dict[str, object]:
    """All of it as JSON can hold it."""
    return {
        "model": {
            "name": job.model.name,
            "tensors": len(job.model.shapes),
            "outputs": job.model.outputs,
            "left_out": list(job.model.left_out),
        },
        "cluster": asdict(job.cluster),
        "compute": job.compute,
        "overlap": job.overlap,
        "rates": {contender.name: asdict(contender.rates) for contender in made},
        "predictions": {
            label: {**asdict(p), "step": p.step, "efficiency": p.efficiency, "speedup": p.speedup}
            for label, p in predictions.items()
        },
        "recommended": recommended(predictions),
    }
