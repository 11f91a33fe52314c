"""The commands of ``horovod-dgc``, which is also ``python -m horovod_dgc``."""

from __future__ import annotations

import click

import horovod_dgc
from horovod_dgc.commands.build import build
from horovod_dgc.commands.doctor import doctor
from horovod_dgc.commands.methods import methods
from horovod_dgc.plan.command import plan


@click.group()
@click.version_option(horovod_dgc.__version__)
def commands() -> None:
    """Gradient compression for Horovod."""


commands.add_command(build)
commands.add_command(doctor)
commands.add_command(methods)
commands.add_command(plan)
