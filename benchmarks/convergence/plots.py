"""Curves of figures against epochs and against bytes sent."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
from convergence import plan
from matplotlib import pyplot
from matplotlib.axes import Axes
from support.contenders import DENSE

# The few that a plot can show; all are in the tables.
COLOURS = {
    DENSE: "black",
    "fp16": "tab:grey",
    "gradient dropping 0.1 %": "tab:red",
    "DGC 1 %": "tab:green",
    plan.DGC_01: "tab:blue",
    plan.BEST: "tab:orange",
}
STYLES = ("-", "--")

Rows = Mapping[str, Mapping[int, Mapping[str, Any]]]


def curves(path: Path, found: Mapping[str, Rows], figure: str) -> None:
    """One figure of two panels into ``path``.

    Args:
        found: finished rows by group, contender and seed; each group has its own line style.
        figure: name of the vertical axis; one with "%" is drawn in per cent.
    """
    scale = 100 if "%" in figure else 1
    drawing, panels = pyplot.subplots(1, 2, figsize=(10, 4.2), sharey=True)
    levels: list[float] = []
    for style, (group, rows) in zip(STYLES, found.items()):
        for name, colour in COLOURS.items():
            if seeds := rows.get(name):
                label = f"{name}, {group}" if group else name
                levels += _draw(panels, list(seeds.values()), scale, label=label, color=colour, ls=style)
    panels[0].set(xlabel="epochs", ylabel=figure)
    panels[1].set(xlabel="bytes sent by a worker", xscale="log")
    for axes in panels:
        axes.grid(alpha=0.3)
    if levels:
        margin = 0.05 * (max(levels) - min(levels)) or 1.0
        panels[0].set_ylim(min(levels) - margin, max(levels) + margin)
        drawing.legend(*panels[0].get_legend_handles_labels(), loc="lower center", ncols=3, frameon=False, fontsize=9)
    drawing.tight_layout(rect=(0, 0.12, 1, 1))
    # Without a date and with fixed ids, the same figures give the same file.
    with pyplot.rc_context({"svg.hashsalt": path.stem}):
        drawing.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(drawing)


def _draw(panels: np.ndarray, rows: list[Mapping[str, Any]], scale: float, **style: Any) -> list[float]:
    """Mean over the seeds with a band from the lowest to the highest; returns the levels from a quarter on."""
    length = min(len(row["curve"]) for row in rows)
    if length == 0:
        return []
    tables = np.array([row["curve"][:length] for row in rows])
    steps, sent = tables[0, :, 0], tables[0, :, 4]
    figures = scale * tables[:, :, 2]
    axes: Axes
    for axes, places in zip(panels, (steps / rows[0]["steps_per_epoch"], sent)):
        axes.plot(places, figures.mean(0), lw=1.5, **style)
        if len(rows) > 1:
            axes.fill_between(places, figures.min(0), figures.max(0), color=style["color"], alpha=0.15, lw=0)
    return list(figures.mean(0)[length // 4 :])
