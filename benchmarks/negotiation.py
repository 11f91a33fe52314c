"""Whether Horovod renegotiates tensors after the first step of a density, read from Horovod's own timeline.

Horovod answers a request that it has seen before, of the same name, dtype and shape, from its response cache; any
other goes to the coordinator, which hears of it from every rank. Rank 0's timeline has a NEGOTIATE phase for both, but
only in the second a tick for each rank that has reported: in controller.cc of Horovod 0.28.1, CoordinateCacheAndState
opens and closes the phase and nothing else, and IncrementTensorCount calls NegotiateRankReady. So a phase with ticks is
a negotiation, and one without was answered from the cache. Two runs that must renegotiate show that the reading
is right: one without a cache, and one whose payloads change their length in every step.

    python benchmarks/negotiation.py
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import click
from support import launch, options, report

RUNS = {
    "DGC": ({"unsteady": False}, {}),
    "no cache": ({"unsteady": False}, {"HOROVOD_CACHE_CAPACITY": "0"}),
    "varying length": ({"unsteady": True}, {}),
}


def requests_by_step(timeline: Path, parameters: list[str]) -> list[Counter[str]]:
    """For each step: how many "tensors" were requested, and how many of them "negotiated".

    A step begins with the second request of any one name: nobody asks for a tensor again before having it.
    """
    ours = {*parameters, *(f"horovod_dgc.{name}" for name in parameters), "horovod_dgc.nonfinite"}
    names: dict[int, str] = {}
    steps: list[Counter[str]] = [Counter()]
    requested: set[str] = set()
    ticked: set[str] = set()
    for event in json.loads(timeline.read_text()):
        if event["ph"] == "M":
            if "name" in event["args"]:
                names[event["pid"]] = event["args"]["name"].removeprefix("allreduce.").removeprefix("allgather.")
            continue
        name = names.get(event.get("pid", -1))
        if name not in ours:
            continue
        if event["ph"] == "B" and event["name"].startswith("NEGOTIATE_"):
            if name in requested:
                steps.append(Counter())
                requested.clear()
            requested.add(name)
            ticked.discard(name)
            steps[-1]["tensors"] += 1
        elif event["ph"] == "X" and name not in ticked:
            ticked.add(name)
            steps[-1]["negotiated"] += 1
    return steps


def observe(settings: dict[str, Any], environment: dict[str, str], workers: int) -> list[dict[str, Any]]:
    """One job's steps: density, bytes sent, tensors requested and tensors negotiated."""
    with tempfile.TemporaryDirectory() as folder:
        timeline = Path(folder) / "timeline.json"
        environment = {**environment, "HOROVOD_TIMELINE": str(timeline)}
        answer = launch.run("warmup_steps.py", settings, workers=workers, environment=environment)
        counts = requests_by_step(timeline, answer["parameters"])
    if len(counts) != len(answer["steps"]):
        raise click.ClickException(f"{len(answer['steps'])} steps, but the timeline shows {len(counts)}")
    return [
        {**step, "tensors": count["tensors"], "negotiated": count["negotiated"]}
        for step, count in zip(answer["steps"], counts)
    ]


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--workers", type=click.IntRange(2), default=2, show_default=True)
@click.option("--warmup", type=click.IntRange(1), default=8, show_default=True, help="Steps of warm-up, four stages.")
@click.option("--steps", type=click.IntRange(1), default=14, show_default=True)
@options.smallest(warmup=4, steps=6)
@report.json_option
def main(workers: int, warmup: int, steps: int, json_path: Path | None) -> None:
    found = {
        run: observe({**settings, "warmup": warmup, "steps": steps}, environment, workers)
        for run, (settings, environment) in RUNS.items()
    }
    rows = []
    for number, step in enumerate(found["DGC"]):
        others = [f"{run[number]['negotiated']} of {run[number]['tensors']}" for run in list(found.values())[1:]]
        mine = [f"{step['density']:.2%}", f"{step['sent']:,}", str(step["tensors"]), str(step["negotiated"])]
        rows.append([str(number), *mine, *others])
    columns = ["step", "density", "bytes sent", "requests", "negotiated", *list(RUNS)[1:]]
    report.table(f"Requests of {workers} workers that Horovod negotiated, step by step", columns, rows)
    report.write_json(json_path, {"workers": workers, "runs": found})


if __name__ == "__main__":
    main()
