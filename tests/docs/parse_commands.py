"""Reads command lines of the project's Markdown as the programs would: ``parse_commands.py torch|tensorflow``.

On standard input a JSON list of [where, program, words]. A program is a script with a click command called ``main``, or
"horovod_dgc" for the package's commands. Options must exist and have as many values as are given; whether a file exists
that is only an example is not asked.
"""

from __future__ import annotations

import functools
import json
import runpy
import sys
from pathlib import Path

import click

from horovod_dgc.commands import commands

ROOT = Path(__file__).resolve().parents[2]


@functools.cache
def program(name: str) -> click.Command | None:
    """The program's command, without running it; None if it is not one of click's."""
    if name == "horovod_dgc":
        return commands
    path = ROOT / name
    sys.path.insert(0, str(path if path.is_dir() else path.parent))
    try:
        names = runpy.run_path(str(path), run_name="parsed")
    finally:
        del sys.path[0]
    main = names.get("main")
    return main if isinstance(main, click.Command) else None


def parse(command: click.Command, words: list[str]) -> None:
    """Read `words`.

    Raises:
        click.UsageError: an option that there is not, or one without its value.
    """
    context = click.Context(command, info_name=command.name)
    if isinstance(command, click.Group) and words and not words[0].startswith("-"):
        _, chosen, rest = command.resolve_command(context, words)
        assert chosen is not None
        parse(chosen, rest)
    else:
        command.make_parser(context).parse_args(words)


def main() -> None:
    done = 0
    for where, name, words in json.load(sys.stdin):
        try:
            command = program(name)
            if command is not None:
                parse(command, list(words))
            done += 1
        except click.UsageError as wrong:
            print(f"{where}: {wrong.format_message()}")
    print(f"did {done}")


main()
