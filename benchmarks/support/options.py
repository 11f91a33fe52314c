"""Options of the studies whose finished rows are kept, and whose tables and plots are written from these alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

Command = Callable[..., None]
DOCS = Path(__file__).parents[2] / "docs"


def kept_rows(rows: Path, page: str) -> Callable[[Command], Command]:
    """The options ``path``, ``docs`` and ``tables_only``.

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
