"""The commands of ``horovod-dgc``, which is also ``python -m horovod_dgc``."""

from __future__ import annotations

import click

from horovod_dgc.commands.build import build
from horovod_dgc.plan.command import plan


@click.group()
def commands() -> None:
    """Gradient compression for Horovod."""


commands.add_command(build)
commands.add_command(plan)
