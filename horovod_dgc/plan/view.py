"""What people get to see of a plan: a table, and a plot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from horovod_dgc.cost import Prediction
from horovod_dgc.plan.contenders import NEAR, Contender, Job, recommended
from horovod_dgc.plan.units import rate_text, time_text


def describe(console: Console, job: Job, predictions: Mapping[str, Prediction], source: str) -> None:
    """Print the assumptions, one row for each contender, and the recommendation."""
    model, cluster = job.model, job.cluster
    elements = sum(math.prod(shape) for shape in model.shapes.values())
    console.print(
        f"{model.name}: {len(model.shapes)} tensors, {elements:,} elements, {4 * elements / 2**20:.2f} MiB in float32"
        + (f"; {len(model.left_out)} entries of the file left out as no parameters" if model.left_out else "")
    )
    _, latency, bandwidth = cluster.ring("all")
    between = "between nodes" if cluster.nodes > 1 else "within the node"
    console.print(
        f"{cluster.workers} workers on {cluster.nodes} node{'s' if cluster.nodes > 1 else ''}, "
        f"{rate_text(bandwidth)} and {time_text(latency)} {between}, {cluster.algorithm} collectives; "
        f"{time_text(job.compute)} of computation"
        + (
            f", {job.overlap:.0%} of which hides the exchange"
            if job.overlap
            else ", which hides nothing of the exchange"
        )
    )
    console.print(f"rates of encoding and decoding: {source}")
    choice = recommended(predictions)
    table = Table(
        caption="bytes: handed over by one worker in a step; link: what a node's link carries one way",
        caption_justify="left",
    )
    table.add_column("method", overflow="fold")
    table.add_column("gather +\nsparse +\nallreduce", justify="right", no_wrap=True)
    for column in ("bytes", "dense /", "link bytes", "encode", "decode", "network", "step", "efficiency", "speedup"):
        table.add_column(column, justify="right", no_wrap=True)
    for label, p in predictions.items():
        sent = p.sent_nbytes + p.control_nbytes
        table.add_row(
            label,
            " + ".join(str(p.transports.get(way, 0)) for way in ("gather", "sparse-allreduce", "allreduce")),
            f"{sent:,}",
            f"{p.dense_nbytes / sent:.1f}" if sent else "",
            f"{p.link_nbytes:,.0f}",
            *(time_text(value) if value else "0" for value in (p.encode, p.decode, p.network)),
            time_text(p.step),
            f"{p.efficiency:.1%}",
            f"{p.speedup:.1f}",
            style="bold" if label == choice else None,
        )
    console.print(table)
    console.print(_advice(choice, predictions))


def _advice(choice: str, predictions: Mapping[str, Prediction]) -> str:
    dense, taken = next(iter(predictions.values())), predictions[choice]
    reason = f"the first in this order within {NEAR:.0%} of the fastest step"
    if taken is dense:
        return f"recommended: {choice}, {reason}: compression has nothing to gain here"
    advice = f"recommended: {choice}, {reason}, {dense.step / taken.step:.2f} times as fast as dense"
    return f"{advice}. The model knows nothing of accuracy: see docs/methods and docs/convergence.md."


def node_counts(most: int) -> list[int]:
    """1, 2, 4 and so on, up to ``most``."""
    return [2**power for power in range(most.bit_length())]


def plot(path: Path, job: Job, made: Sequence[Contender], most: int) -> None:
    """Draw speedup and efficiency over 1 to ``most`` nodes into a file whose suffix names the format.

    Raises:
        ModuleNotFoundError: matplotlib is missing.
        ValueError: a format that matplotlib does not know.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    counts = node_counts(most)
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    cluster = job.cluster
    left.plot(counts, [n * cluster.workers_per_node for n in counts], color="0.7", linestyle=":", label="ideal")
    for contender in made:
        found = [job.on(nodes).predict(contender) for nodes in counts]
        style = {"color": "black", "linestyle": "--"} if contender.method is None else {"linestyle": "-"}
        left.plot(counts, [p.speedup for p in found], label=contender.label, **style)
        right.plot(counts, [100 * p.efficiency for p in found], **style)
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("nodes" if cluster.workers_per_node > 1 else "nodes of one worker")
        axes.grid(alpha=0.3)
    left.set_yscale("log", base=2)
    left.yaxis.set_major_formatter("{x:g}")
    left.set_ylabel("speedup over one worker")
    left.legend(fontsize="small")
    right.set_ylim(0, 102)
    right.set_ylabel("scaling efficiency [%]")
    figure.suptitle(
        f"{job.model.name}, {rate_text(cluster.bandwidth)}, {time_text(job.compute)} of computation a step, predicted"
    )
    with rc_context({"svg.hashsalt": "plan", "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
