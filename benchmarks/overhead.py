"""Time of a whole exchange and step through Horovod on this machine's workers: dense, fp16 and DGC, in both frameworks.

Gradients appear without arithmetic, and nothing is there to hide behind, so this is what the plug-in and Horovod cost
in themselves over loopback. The contenders take turns in one job.

    python benchmarks/overhead.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from support import launch, options, report

MODELS = {"ResNet-50": False, "ResNet-50's tensors, every extent at most 8": True}
WORKERS = {"PyTorch": "step_times.py", "TensorFlow": "step_times_tensorflow.py"}
COLUMNS = ("compression", "exchange ms", "quartiles", "/ dense", "step ms", "/ dense", "encode", "wait", "decode")


def summarize(contenders: dict[str, Any]) -> dict[str, Any]:
    """Milliseconds per step as quartiles, and medians of the ratios to the dense steps of the same position."""
    summary = {}
    for name, times in contenders.items():
        entry: dict[str, Any] = {}
        for kind in ("exchange", "step"):
            entry[kind] = report.quartiles([1e3 * s for s in times[kind]])
            pairs = zip(times[kind], contenders["dense"][kind])
            entry[f"{kind}_over_dense"] = report.quartiles([mine / dense for mine, dense in pairs])[1]
        entry["phases"] = {phase: 1e3 * report.quartiles(s)[1] for phase, s in times["phases"].items()}
        summary[name] = entry
    return summary


def show(title: str, summary: dict[str, Any]) -> None:
    rows = []
    for name, entry in summary.items():
        low, exchange, high = entry["exchange"]
        phases = [f"{entry['phases'][p]:.2f}" if entry["phases"] else "" for p in ("encode", "wait", "decode")]
        times = [f"{exchange:.2f}", f"{low:.2f} - {high:.2f}", f"{entry['exchange_over_dense']:.2f}"]
        times += [f"{entry['step'][1]:.2f}", f"{entry['step_over_dense']:.2f}"]
        rows.append([name, *times, *phases])
    report.table(title, COLUMNS, rows)


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--workers", type=click.IntRange(2), default=2, show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=15, show_default=True, help="Turns that count.")
@click.option("--steps", type=click.IntRange(1), default=3, show_default=True, help="Steps of one turn.")
@click.option("--small-only", is_flag=True, help="Only the model of small tensors.")
@click.option("--tensors", type=click.IntRange(1), help="Only the model's first ones.")
@click.option("--framework", type=click.Choice([*WORKERS, "both"]), default="both", show_default=True)
@click.option(
    "--threads", type=click.IntRange(1), default=1, show_default=True, help="Between TensorFlow's operations."
)
@click.option("--profile", is_flag=True, help="Also show where Python's time goes in PyTorch's DGC steps on rank 0.")
@options.smallest(rounds=1, steps=1, small_only=True, tensors=6)
@report.json_option
def main(
    workers: int,
    rounds: int,
    steps: int,
    small_only: bool,
    tensors: int | None,
    framework: str,
    threads: int,
    profile: bool,
    json_path: Path | None,
) -> None:
    neighbours = report.Neighbours()
    found = []
    for model, small in MODELS.items():
        if small_only and not small:
            continue
        settings = {"small": small, "tensors": tensors, "rounds": rounds, "steps": steps}
        settings |= {"profile": profile, "threads": threads}
        for name, script in WORKERS.items():
            if framework not in (name, "both"):
                continue
            result = launch.run(script, settings, workers=workers)
            summary = summarize(result["contenders"])
            title = f"{name}, {model}: {result['tensors']} tensors, {result['elements']:,} elements, {workers} workers"
            show(title, summary)
            if "profile" in result:
                report.CONSOLE.print(result["profile"], highlight=False, markup=False)
            described = {"framework": name, "model": model, "tensors": result["tensors"]}
            found.append({**described, "elements": result["elements"], **summary})
    report.write_json(json_path, {"machine": neighbours.describe(), "workers": workers, "results": found})


if __name__ == "__main__":
    main()
