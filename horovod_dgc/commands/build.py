"""``horovod-dgc build``: compile what could not be in the installed package."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import click

from horovod_dgc.building import on_demand
from horovod_dgc.building.extensions import BuildError
from horovod_dgc.building.horovod_command import build_horovod

jobs = click.option("--jobs", type=click.IntRange(1), help="Files at a time; by default as cores and memory allow.")
force = click.option("--force", is_flag=True, help="Compile again what is already there.")


@click.group()
def build() -> None:
    """Compile what depends on your Horovod's frameworks, TensorFlow or CUDA, once; it is found afterwards."""


build.add_command(build_horovod)


@build.command()
@jobs
@force
def tensorflow(jobs: int | None, force: bool) -> None:
    """Compile the TensorFlow operations against the installed TensorFlow."""
    with in_one_sentence():
        on_demand.build_tensorflow(jobs, force)


@build.command()
@jobs
@force
def cuda(jobs: int | None, force: bool) -> None:
    """Compile the CUDA kernels for PyTorch; no GPU is needed for it.

    HOROVOD_DGC_CUDA_CAPABILITIES chooses the GPUs, as in 80,90.
    """
    with in_one_sentence():
        on_demand.build_cuda(jobs, force)


@contextlib.contextmanager
def in_one_sentence() -> Iterator[None]:
    """A build that fails ends the command with its message and status 1."""
    try:
        yield
    except BuildError as error:
        raise click.ClickException(str(error)) from None
    except KeyboardInterrupt:
        raise click.ClickException("interrupted; run it again to go on with what is left") from None
