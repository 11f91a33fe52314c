"""What family.py found: a table on stdout, the same in Markdown between two markers, and a plot."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from support import report
from support.contenders import DENSE
from support.tasks import ImageTraining

BEGIN = "<!-- family: written by benchmarks/family.py -->"
END = "<!-- family: end -->"
PLOT = "family.svg"
COLUMNS = (
    "method",
    "ResNet-50, bytes",
    "dense /",
    "trained model, bytes",
    "dense /",
    "mean over training",
    "encode / copy",
    "decode / copy",
    "accuracy",
)

SHORT = ("method", "ResNet-50 B", "dense /", "trained B", "dense /", "mean B", "encode", "decode", "accuracy")

Found = dict[str, dict[str, Any]]


def rows_of(found: Found) -> list[list[str]]:
    """One row for each contender, in their order."""
    dense = found[DENSE]["traffic"]
    rows = []
    for name, parts in found.items():
        sizes, training, speed = parts["traffic"], parts["training"], parts.get("speed")
        accuracy = training["figure"]
        rows.append(
            [
                name,
                f"{sizes['resnet50']:,}",
                f"{dense['resnet50'] / sizes['resnet50']:.1f}",
                f"{sizes['trained']:,}",
                f"{dense['trained'] / sizes['trained']:.1f}",
                f"{training['mean_nbytes']:,.0f}",
                f"{speed['encode']:.2f}" if speed else "",
                f"{speed['decode']:.2f}" if speed else "",
                "diverged" if accuracy is None else f"{accuracy:.2%}".replace("%", " %"),
            ]
        )
    return rows


def show(found: Found) -> None:
    title = "Every method at its defaults: bytes per step and worker; times in units of a copy"
    report.table(title, SHORT, rows_of(found))


def markdown(found: Found, training: ImageTraining, steps: int) -> str:
    """The table with links to the pages of the methods, and how it was made."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    for row in rows_of(found):
        name = row[0] if row[0] == DENSE else f"[{row[0]}]({row[0]}.md)"
        lines.append("| " + " | ".join([name, *row[1:]]) + " |")
    rates = {name: parts["contender"].rate for name, parts in found.items() if parts["contender"].rate}
    exceptions = ", ".join(f"{name} {rate:g}" for name, rate in rates.items())
    training_of = (
        f"Training: {training.epochs} epochs of {training.images:,} images, {training.workers} workers of "
        f"{training.batch} images each, {steps} steps, seed {training.seed}; learning rate {training.rate:g}"
        + (f" ({exceptions}: on compressed tensors)" if exceptions else "")
        + "."
    )
    lines += ["", *textwrap.wrap(training_of, 120)]
    return "\n".join(lines)


def plot(found: Found, path: Path) -> None:
    """Accuracy against mean bytes per step and worker, on a logarithmic scale."""
    figure, axes = pyplot.subplots(figsize=(9, 6))
    points = [
        (name, parts["training"]["mean_nbytes"], 100 * parts["training"]["figure"])
        for name, parts in found.items()
        if parts["training"]["figure"] is not None
    ]
    axes.set_xscale("log")
    axes.scatter([size for _, size, _ in points], [accuracy for _, _, accuracy in points], s=16)
    axes.set(xlabel="bytes per step and worker, mean over the training", ylabel="test accuracy, %")
    axes.margins(x=0.12)
    axes.grid(alpha=0.3)
    low, high = axes.get_ylim()
    placed: list[tuple[float, float]] = []
    for name, size, accuracy in sorted(points, key=lambda point: point[2]):
        # A label moves up until no other one, and no point to its right, is where it would stand.
        height, step = accuracy, (high - low) / 76
        while any(abs(height - h) < 2 * step and 0.4 < size / s < 2.5 for s, h in placed) or any(
            abs(height - a) < 1.2 * step and 1 < s / size < 1.9 for _, s, a in points
        ):
            height += step
        placed.append((size, height))
        arrow = {"arrowstyle": "-", "lw": 0.4, "color": "grey"} if height != accuracy else None
        axes.annotate(
            name,
            (size, accuracy),
            (size * 1.08, height),
            fontsize=8,
            va="center",
            arrowprops=arrow,
            annotation_clip=False,
        )
    axes.set_ylim(low, max(high, max((height for _, height in placed), default=high) + (high - low) / 38))
    figure.tight_layout()
    # Without a date and with fixed ids, the same figures give the same file.
    with pyplot.rc_context({"svg.hashsalt": "family"}):
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)


def write(folder: Path, found: Found, training: ImageTraining, steps: int) -> None:
    """The table into ``README.md`` of ``folder``, and the plot beside it."""
    page = folder / "README.md"
    page.write_text(report.between(page.read_text(), BEGIN, END, markdown(found, training, steps)))
    plot(found, folder / PLOT)
