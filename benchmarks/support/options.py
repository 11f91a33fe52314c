"""Options that several benchmarks have."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

Command = Callable[..., None]
ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
SMALLEST = ROOT / "build" / "smallest"


def smallest(*, rows: str | None = None, page: str | None = None, **values: Any) -> Callable[[Command], Command]:
    """The flag ``--smallest``: ``values`` take the place of other options' defaults, by the names of their parameters.

    Args:
        rows: name of a benchmark that keeps finished rows: here in a file that begins anew, for the parameter ``path``.
        page: as for :func:`kept_rows`; what is written here is a copy, for the parameter ``docs``.
    """

    def take(context: click.Context, _: click.Parameter, chosen: bool) -> None:
        if not chosen:
            return
        context.default_map = dict(values)
        if rows is not None:
            path = SMALLEST / f"{rows}.jsonl"
            path.unlink(missing_ok=True)
            context.default_map["path"] = path
        if page is not None:
            docs = SMALLEST / "docs"
            docs.mkdir(parents=True, exist_ok=True)
            shutil.copy(DOCS / f"{page}.md", docs)
            context.default_map["docs"] = docs

    return click.option(
        "--smallest",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=take,
        help="The smallest size, done in seconds: shows that the benchmark works. Its figures say nothing.",
    )


def kept_rows(rows: Path, page: str) -> Callable[[Command], Command]:
    """The options ``path``, ``docs`` and ``tables_only`` of a study.

    Its finished rows are kept in a file, and its tables and plots are written from these alone.

    Args:
        rows: file that they are kept in by default, beside the command.
        page: name of the page in docs/, and of the folder with its plots.
    """

    def add(command: Command) -> Command:
        for option in reversed(
            (
                click.option(
                    "--results",
                    "path",
                    type=click.Path(dir_okay=False, path_type=Path),
                    default=rows,
                    show_default=f"{rows.name} beside the command",
                    help="Where finished rows are kept; delete it to make all anew.",
                ),
                click.option(
                    "--docs",
                    type=click.Path(file_okay=False, exists=True, path_type=Path),
                    default=DOCS,
                    show_default="docs/",
                    help=f"Folder whose {page}.md gets the tables, and whose folder {page} gets the plots.",
                ),
                click.option(
                    "--tables-only", is_flag=True, help="Run nothing: write tables and plots from what is finished."
                ),
            )
        ):
            command = option(command)
        return command

    return add
