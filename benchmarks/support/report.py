"""Tables on stdout, and the same numbers as JSON."""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import psutil
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


class Neighbours:
    """How much of the processors others use while a benchmark runs, in this system or beside it on the same host."""

    LIMIT = 0.03

    def __init__(self) -> None:
        self._began = self._seconds()

    def share(self) -> float:
        """Share of all processor time since the start that was not idle and not this program's, children included."""
        busy, mine, total = (now - then for now, then in zip(self._seconds(), self._began))
        return max(0.0, busy - mine) / total

    def describe(self) -> dict[str, Any]:
        """What the timings depend on; call it at the end. Says so where they must not be quoted."""
        share = self.share()
        line = f"{platform.machine()}, {os.cpu_count()} cores, others used {share:.1%} of them meanwhile"
        CONSOLE.print(line, highlight=False)
        if share > self.LIMIT:
            CONSOLE.print("[bold red]The machine was not idle: do not quote these timings.")
        return {"architecture": platform.machine(), "cores": os.cpu_count(), "others": round(share, 4)}

    @staticmethod
    def _seconds() -> tuple[float, float, float]:
        times = psutil.cpu_times()
        # Linux counts guests' time within user time as well.
        total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        idle = times.idle + getattr(times, "iowait", 0.0)
        usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return total - idle, sum(u.ru_utime + u.ru_stime for u in usage), total


def write_json(path: Path | None, content: dict[str, Any]) -> None:
    if path is not None:
        path.write_text(json.dumps(content, indent=1) + "\n")


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile of one or more values."""
    if len(values) == 1:
        return (values[0],) * 3
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def between(text: str, begin: str, end: str, content: str) -> str:
    """``text`` with ``content`` in place of what is between the markers ``begin`` and ``end``."""
    head, found_begin, rest = text.partition(begin)
    _, found_end, tail = rest.partition(end)
    if not found_begin or not found_end:
        raise ValueError(f"the text must hold the markers {begin!r} and {end!r}, in this order")
    return f"{head}{begin}\n{content}\n{end}{tail}"
