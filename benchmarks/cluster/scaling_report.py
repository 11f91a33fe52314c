"""What scaling.py measured: tables and plots in docs/scaling.md, beside what the cost model predicts."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from cluster import scaling
from matplotlib import pyplot
from support import report

from horovod_dgc import cost, shapes
from horovod_dgc.plan.units import rate_text
from horovod_dgc.registry import parse

PAGE = "scaling.md"
BEGIN = "<!-- scaling: written by benchmarks/cluster -->"
END = "<!-- scaling: end -->"
RATE_NAMES = {name: rate_text(bandwidth) for name, bandwidth in scaling.RATES.items()}
# The worker's backward pass, during which gradients travel.
OVERLAP = 2 / 3

Rows = Mapping[tuple[str, int, str], Mapping[str, Any]]


def found(chosen: Iterable[scaling.Setting], results: Any) -> dict[tuple[str, int, str], dict[str, Any]]:
    """The finished rows by model, hosts and rate."""
    rows = {(each.model, each.hosts, each.rate): results.get(each.key) for each in chosen}
    return {key: row for key, row in rows.items() if row is not None}


def step_seconds(row: Mapping[str, Any], name: str) -> float:
    return float(statistics.median(row["seconds"][name]))


def exchange_seconds(row: Mapping[str, Any], name: str) -> float:
    """What the exchange adds to a step."""
    return step_seconds(row, name) - step_seconds(row, scaling.ALONE)


def efficiency(row: Mapping[str, Any], name: str) -> float:
    return step_seconds(row, scaling.ALONE) / step_seconds(row, name)


def predicted_seconds(key: tuple[str, int, str], row: Mapping[str, Any], name: str) -> float:
    """The cost model's step, from the link's nominal rate and the rates of encoding that were measured beforehand."""
    model, hosts, rate = key
    method = scaling.PREDICTED[name]
    prediction = cost.predict(
        shapes.NAMED[model](),
        None if method is None else parse(method),
        cost.Cluster(workers=hosts, bandwidth=scaling.RATES[rate]),
        step_seconds(row, scaling.ALONE),
        rates=cost.Rates(**row["rates"][name]),
        overlap=OVERLAP,
    )
    return prediction.step


def markdown(rows: Rows) -> str:
    parts = []
    for model in dict.fromkeys(model for model, _, _ in rows):
        own = {key: row for key, row in rows.items() if key[0] == model}
        (compute,) = {row["compute"] for row in own.values()}
        parts += [
            f"### {scaling.MODELS[model]}",
            f"Seconds a step, with {compute:g} s of computation, and efficiency: the step without exchange / this one.",
            _table(own, scaling.CONTENDERS, lambda key, row, name: _step_text(row, name)),
            f"![Efficiency of {model} over the links' rate](scaling/{model}.svg)",
            "Predicted / measured step:",
            _table(
                own,
                scaling.PREDICTED,
                lambda key, row, name: f"{predicted_seconds(key, row, name) / step_seconds(row, name):.2f}",
            ),
        ]
    return "\n\n".join([*parts, "### Against the targets", targets(rows), "### Error of the cost model", errors(rows)])


def targets(rows: Rows) -> str:
    """DGC on a slow network beside dense on one ten times as fast, for each model and number of hosts."""
    lines = [
        "| | dense at 10 Gb/s / DGC at 1 Gb/s | dense at 1 Gb/s / DGC at 100 Mb/s | DGC at 1 Gb/s / no exchange |",
        "|---|---|---|---|",
    ]
    for model, hosts in dict.fromkeys((model, hosts) for model, hosts, _ in rows):
        needed = [rows.get((model, hosts, rate)) for rate in ("100mbit", "1gbit", "10gbit")]
        if None in needed:
            continue
        slow, middle, fast = (row for row in needed if row is not None)
        cells = [_faster(dense, dgc) for dense, dgc in ((fast, middle), (middle, slow))]
        cells.append(f"{1 / efficiency(middle, 'DGC'):.2f}")
        lines.append(f"| {model}, {hosts} hosts | {' | '.join(cells)} |")
    return "\n".join(lines)


def _faster(dense: Mapping[str, Any], dgc: Mapping[str, Any]) -> str:
    """How many times, by whole steps and by what the exchange adds, if that can be told from the steps' own spread."""
    added = exchange_seconds(dgc, "DGC")
    alone = dgc["seconds"][scaling.ALONE]
    ratio = f"{exchange_seconds(dense, 'dense') / added:.2f}" if added > max(alone) - min(alone) else "not told"
    return f"step {step_seconds(dense, 'dense') / step_seconds(dgc, 'DGC'):.2f}, exchange {ratio}"


def errors(rows: Rows) -> str:
    """Median and largest deviation of the predicted step from the measured one, by contender and by rate."""
    deviations = {
        (key, name): predicted_seconds(key, row, name) / step_seconds(row, name) - 1
        for key, row in rows.items()
        for name in scaling.PREDICTED
    }
    lines = ["| | median of the deviations' size | furthest below | furthest above |", "|---|---|---|---|"]

    def line(label: str, chosen: Sequence[float]) -> None:
        size = statistics.median(map(abs, chosen))
        lines.append(f"| {label} | {size:.0%} | {min(*chosen, 0.0):+.0%} | {max(*chosen, 0.0):+.0%} |")

    for name in scaling.PREDICTED:
        line(name, [value for (_, other), value in deviations.items() if other == name])
    for rate in dict.fromkeys(rate for _, _, rate in rows):
        line(RATE_NAMES[rate], [value for ((_, _, other), _), value in deviations.items() if other == rate])
    return "\n".join(lines).replace("%", " %")


def _step_text(row: Mapping[str, Any], name: str) -> str:
    seconds = f"{step_seconds(row, name):.2f}"
    return seconds if name == scaling.ALONE else f"{seconds} ({efficiency(row, name):.0%})".replace("%", " %")


def _table(
    rows: Rows, names: Iterable[str], text: Callable[[tuple[str, int, str], Mapping[str, Any], str], str]
) -> str:
    """A line for each contender, a column for each number of hosts and rate."""
    lines = [
        "| | " + " | ".join(f"{hosts} hosts, {RATE_NAMES[rate]}" for _, hosts, rate in rows) + " |",
        "|---" * (len(rows) + 1) + "|",
    ]
    lines += [f"| {name} | " + " | ".join(text(key, row, name) for key, row in rows.items()) + " |" for name in names]
    return "\n".join(lines)


def plot(path: Path, model: str, rows: Rows) -> None:
    """Efficiency over the links' rate, a panel for each number of hosts; marks are measured, thin lines predicted."""
    own = {key: row for key, row in rows.items() if key[0] == model}
    numbers = list(dict.fromkeys(hosts for _, hosts, _ in own))
    with pyplot.rc_context({"svg.hashsalt": "scaling", "svg.fonttype": "none"}):
        figure, axes = pyplot.subplots(
            1, len(numbers), figsize=(4.6 * len(numbers) + 1.8, 4), sharey=True, squeeze=False, layout="constrained"
        )
        for panel, hosts in zip(axes[0], numbers):
            shown = {key: row for key, row in own.items() if key[1] == hosts}
            rates = [scaling.RATES[rate] * 8 for _, _, rate in shown]
            for name in scaling.CONTENDERS:
                if name == scaling.ALONE:
                    continue
                (line,) = panel.plot(
                    rates,
                    [100 * efficiency(row, name) for row in shown.values()],
                    marker="o",
                    linewidth=1.5,
                    label=name,
                )
                if name in scaling.PREDICTED:
                    guessed = [
                        100 * step_seconds(row, scaling.ALONE) / predicted_seconds(key, row, name)
                        for key, row in shown.items()
                    ]
                    panel.plot(rates, guessed, color=line.get_color(), linewidth=0.8, linestyle=":")
            panel.set_xscale("log")
            panel.set_xticks(rates, [RATE_NAMES[rate] for _, _, rate in shown])
            panel.minorticks_off()
            panel.set_title(f"{hosts} hosts")
            panel.grid(alpha=0.3)
        axes[0][0].set_ylabel("efficiency [%]: step without exchange / step")
        axes[0][0].set_ylim(bottom=0)
        handles, labels = axes[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center", fontsize="small", title="dotted: predicted")
        figure.suptitle(scaling.MODELS[model])
        figure.savefig(path, metadata={"Date": None})
        pyplot.close(figure)


def write(docs: Path, rows: Rows) -> None:
    """Put tables between the page's markers, and draw one plot for each model."""
    page = docs / PAGE
    page.write_text(report.between(page.read_text(), BEGIN, END, markdown(rows)))
    folder = docs / "scaling"
    folder.mkdir(exist_ok=True)
    for model in dict.fromkeys(model for model, _, _ in rows):
        plot(folder / f"{model}.svg", model, rows)
