"""``horovod-dgc build horovod``. It imports nothing of the package's but this folder, which need not be installed."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from horovod_dgc.building import horovod, places
from horovod_dgc.building.extensions import BuildError
from horovod_dgc.building.progress import say


@click.command("horovod")
@click.option(
    "--python", default=sys.executable, show_default=True, help="Interpreter of the environment to build for."
)
@click.option("--framework", "frameworks", multiple=True, type=click.Choice(list(horovod.FRAMEWORKS)),
              help="Repeat it for both; by default those that are installed there.")  # fmt: skip
@click.option("--mpi/--no-mpi", default=None, help="With MPI, beside Gloo; by default where mpicxx is found.")
@click.option("--nccl", is_flag=True, help="With NCCL, for GPUs: for torch alone, out of pip's CUDA packages.")
@click.option("--cache", type=click.Path(file_okay=False, path_type=Path),
              help="Folder for what is compiled; by default HOROVOD_DGC_CACHE or the user's cache.")  # fmt: skip
@click.option("--dependencies/--no-dependencies", default=True, help="Install what Horovod imports, where missing.")
@click.option("--wheel-only", is_flag=True, help="Install nothing; print the wheel's path.")
@click.option("--force", is_flag=True, help="Compile again what the cache has.")
def build_horovod(
    python: str,
    frameworks: tuple[str, ...],
    mpi: bool | None,
    nccl: bool,
    cache: Path | None,
    dependencies: bool,
    wheel_only: bool,
    force: bool,
) -> None:
    """Compile Horovod 0.28.1 for the frameworks of this environment, and install it there.

    The released source does not compile against torch >= 2.1 or TensorFlow >= 2.16: four small edits mend that. It
    takes two to four minutes on two cores, needs g++ and make, and for MPI its compiler. What has been compiled is
    kept in the cache: a second run, or another environment with the same versions, only installs it.
    """
    try:
        target = horovod.target(python, frameworks, mpi, nccl)
        if mpi is None and not target.mpi:
            say("there is no mpicxx on the PATH: Horovod will have Gloo alone (horovodrun --gloo); --mpi demands it")
        path = horovod.wheel(target, cache or places.cache(), force=force)
        if wheel_only:
            print(path)
            return
        horovod.install(target, path, dependencies=dependencies)
    except BuildError as error:
        raise click.ClickException(str(error)) from None
    frameworks_text = " and ".join(f"{horovod.FRAMEWORKS[name]} {v}" for name, v in target.frameworks.items())
    say(f"installed Horovod {horovod.VERSION} for {frameworks_text} into {target.facts['prefix']}")


if __name__ == "__main__":
    build_horovod(prog_name="build horovod")
