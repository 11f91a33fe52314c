"""Tables on stdout, and the same numbers as JSON."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

# Wide enough for every table here where stdout is a file or a pipe.
CONSOLE = Console(width=None if Console().is_terminal else 120, soft_wrap=False)

json_option = click.option(
    "--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Write the numbers to this file."
)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, text_columns: int = 1) -> None:
    """Print one table; all columns after the first ``text_columns`` are numbers."""
    view = Table(title=title, title_justify="left")
    for position, column in enumerate(columns):
        text = position < text_columns
        view.add_column(column, justify="left" if text else "right", no_wrap=True)
    for row in rows:
        view.add_row(*row)
    CONSOLE.print(view)


def machine() -> dict[str, Any]:
    """What the timings depend on. A load that is not close to 0 before a run spoils it."""
    load = os.getloadavg()[0]
    return {"architecture": platform.machine(), "cores": os.cpu_count(), "load_before": round(load, 2)}


def say_machine(found: dict[str, Any]) -> None:
    """One line on the machine, with a warning where something else is running."""
    line = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in found.items())
    CONSOLE.print(line, highlight=False)
    if found["load_before"] > 0.5:
        CONSOLE.print("[bold red]The machine is not idle: do not quote these timings.")


def write_json(path: Path | None, content: dict[str, Any]) -> None:
    if path is not None:
        path.write_text(json.dumps(content, indent=1) + "\n")


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile of one or more values."""
    if len(values) == 1:
        return (values[0],) * 3
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high
