"""What the study trains: tasks, contenders, and the order of the runs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from support.contenders import DENSE, Contender, all_of_them
from support.simulated import Training
from support.tasks import DigitTraining, ImageTraining, WordTraining

from horovod_dgc import DGC, METHODS, GradientDropping

SEEDS = (0, 1, 2)
POINTS = 20

TASKS: dict[str, Any] = {
    "images": ImageTraining(epochs=4, batch=8, images=24_000, weight_decay=5e-4, warmup=0.4),
    "words": WordTraining(epochs=1, batch=4, rate=3.0, weight_decay=0.0, clip_norm=1.0, warmup=0.1),
    "digits": DigitTraining(epochs=24, batch=4, rate=0.05, weight_decay=0.0, warmup=2.4),
}
DGC_01 = "DGC 0.1 %"
BEST = "DGC 0.1 %, int4"


@dataclass(frozen=True)
class Run:
    """One row of the results: a contender in a task."""

    task: str
    contender: Contender
    training: Any

    @property
    def key(self) -> dict[str, Any]:
        """The fields that say which row it is."""
        training: Training = self.training
        settings = training.settings()
        return {
            "task": self.task,
            "contender": self.contender.name,
            "workers": settings.pop("workers"),
            "seed": settings.pop("seed"),
            "settings": {"method": self.contender.method.configuration(), "own_rate": self.contender.rate, **settings},
            "points": POINTS,
        }


KEY = ("task", "contender", "workers", "seed", "settings", "points")


def contenders(*listed: Contender) -> dict[str, Contender]:
    return {contender.name: contender for contender in listed}


REGISTRY = all_of_them()
MAIN = contenders(
    REGISTRY[DENSE],
    Contender(DGC_01, DGC(density=0.001)),
    Contender("gradient dropping 0.1 %", GradientDropping(density=0.001)),
    Contender("DGC 1 %", DGC(density=0.01)),
    replace(REGISTRY["fp16"], name="fp16"),
)
BEST_RATIO = contenders(
    Contender(BEST, DGC(density=0.001, values="int4")),
    Contender("DGC 0.1 %, int8", DGC(density=0.001, values="int8")),
    Contender("DGC 0.01 %", DGC(density=0.0001)),
)
ABLATIONS = contenders(
    Contender("no momentum correction", DGC(density=0.001, momentum_correction=False)),
    Contender("no factor masking", DGC(density=0.001, factor_masking=False)),
    Contender("DGC 1 %, no factor masking", DGC(density=0.01, factor_masking=False)),
    Contender("no warm-up", DGC(density=0.001), changes={"warmup": 0.0}),
)
# Only where a task has what is changed.
DECAY = contenders(Contender("weight decay after aggregation", DGC(density=0.001), changes={"decay": "aggregated"}))
FAMILY = {
    name: contender for name, contender in REGISTRY.items() if name not in (DENSE, "dgc", "fp16") and name in METHODS
}

# Peak learning rates beside a task's own, one seed each.
RATES: dict[str, tuple[float, ...]] = {"images": (0.05, 0.1, 0.2), "words": (0.3, 1.0, 3.0, 6.0, 10.0)}
AT_RATES = contenders(MAIN[DENSE], MAIN[DGC_01], ABLATIONS["no factor masking"])

# The same 128 images in a step and the same steps for any number of workers: only who computes the gradient differs.
WORKERS = (4, 8, 16, 32)
IMAGES_PER_STEP = 128
SPREAD: dict[str, Any] = {"epochs": 8}

# By task, how many times as many epochs; the warm-ups stay the same fraction of them.
LENGTHS: dict[str, tuple[int, ...]] = {"digits": (1, 4), "images": (1, 4), "words": (1, 4, 8)}


def ablations(task: str) -> dict[str, Contender]:
    """Ablations of DGC, at 0.1 % but for one, that make sense in a task, and a remedy."""
    training: Training = TASKS[task]
    dgc = DGC(density=0.001)
    longer = contenders(Contender("warm-up three times as long", dgc, changes={"warmup": 3 * training.warmup}))
    found = {**ABLATIONS, **longer, **(DECAY if training.weight_decay else {})}
    if (limit := training.clip_norm) is not None:
        # Where a worker's gradient is not divided by N before it is clipped, the paper's limit is N times too low.
        tight = {"clip_norm": limit / training.workers}
        found |= contenders(
            Contender("no clipping", dgc, changes={"clip_norm": None}),
            Contender("local limit N times lower", dgc, changes=tight),
        )
    return found


def set_epochs(epochs: int) -> None:
    """Train that many epochs in every task; the warm-ups stay the same fraction of them."""
    for name, training in TASKS.items():
        TASKS[name] = replace(training, epochs=epochs, warmup=training.warmup * epochs / training.epochs)


def spread(workers: int, seed: int) -> Any:
    """The images task with the same number of images in a step for any number of workers."""
    return replace(TASKS["images"], workers=workers, batch=IMAGES_PER_STEP // workers, seed=seed, **SPREAD)


def run_of(task: str, contender: Contender, seed: int) -> Run:
    return Run(task, contender, contender.training(replace(TASKS[task], seed=seed)))


def rate_run(task: str, contender: Contender, rate: float) -> Run:
    """With another peak rate than the task's own, if it is another."""
    if rate == TASKS[task].rate:
        return run_of(task, contender, SEEDS[0])
    other = replace(contender, name=f"{contender.name}, rate {rate:g}", changes={**contender.changes, "rate": rate})
    return run_of(task, other, SEEDS[0])


def spread_run(workers: int, contender: Contender, seed: int) -> Run:
    return Run("images", contender, contender.training(spread(workers, seed)))


def length_run(task: str, times: int, contender: Contender, seed: int) -> Run:
    common = TASKS[task]
    longer = replace(common, epochs=times * common.epochs, warmup=times * common.warmup, seed=seed)
    return Run(task, contender, contender.training(longer))


def _everywhere(listed: dict[str, Contender]) -> Iterator[Run]:
    """Each contender in each task, one seed after the other."""
    for seed in SEEDS:
        for contender in listed.values():
            for task in TASKS:
                yield run_of(task, contender, seed)


def main_runs() -> Iterator[Run]:
    return _everywhere(MAIN)


def ablation_runs() -> Iterator[Run]:
    for seed in SEEDS:
        for task in TASKS:
            for contender in ablations(task).values():
                yield run_of(task, contender, seed)


def best_ratio_runs() -> Iterator[Run]:
    return _everywhere(BEST_RATIO)


def worker_runs() -> Iterator[Run]:
    for seed in SEEDS:
        for workers in WORKERS:
            for name in (DENSE, DGC_01):
                yield spread_run(workers, MAIN[name], seed)


def length_runs() -> Iterator[Run]:
    """Only those that no other part has."""
    for task, lengths in LENGTHS.items():
        for times, seed, name in itertools.product(lengths, SEEDS, (DENSE, DGC_01)):
            if times != 1:
                yield length_run(task, times, MAIN[name], seed)


def rate_runs() -> Iterator[Run]:
    """Only those that no other part has."""
    for task, rates in RATES.items():
        for rate in rates:
            if rate != TASKS[task].rate:
                yield from (rate_run(task, contender, rate) for contender in AT_RATES.values())


def family_runs() -> Iterator[Run]:
    """One seed: what a method costs and about where it ends, not whether it is as good as another."""
    for contender in FAMILY.values():
        yield run_of("images", contender, SEEDS[0])


PARTS = {
    "main": main_runs,
    "ablations": ablation_runs,
    "rates": rate_runs,
    "best-ratio": best_ratio_runs,
    "length": length_runs,
    "workers": worker_runs,
    "family": family_runs,
}
