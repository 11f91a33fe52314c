"""``horovod-dgc methods``."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import click

from horovod_dgc.registry import METHODS


@click.command()
def methods() -> None:
    """List the methods with their settings, as in --compression dgc:density=0.001,values=int8."""
    width = max(map(len, METHODS))
    for name, kind in METHODS.items():
        settings = ",".join(f"{field.name}={_word(field.default)}" for field in dataclasses.fields(cast(Any, kind)))
        click.echo(f"{name:{width}}  {settings}".rstrip())


def _word(value: object) -> str:
    """A default as a command line has it."""
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)
