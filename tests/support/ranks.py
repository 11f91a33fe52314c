"""Run checks on real processes and show what every rank prints. `make ranks` calls it."""

from __future__ import annotations

import contextlib
import functools
import sys
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).parent))
from launch import LAUNCHERS
from outcomes import LONG, Job, Launch, names

FOLDERS = {"torch": "distributed", "tensorflow": "tensorflow"}


@click.command(help=__doc__)
@click.argument("chosen", metavar="MODULE[::CHECK]...", nargs=-1, required=True)
@click.option("--framework", type=click.Choice(list(FOLDERS)), default="torch", show_default=True)
@click.option("--launcher", type=click.Choice([*LAUNCHERS, "nodes"]), default="mpirun", show_default=True)
@click.option("--ranks", type=click.IntRange(1), default=2, show_default=True)
@click.option("--seconds", type=click.FloatRange(1), default=120.0, show_default=True, help="Time limit of each check.")
@click.option("--long", is_flag=True, help="With as many steps as in `make test-all`.")
def main(chosen: tuple[str, ...], framework: str, launcher: str, ranks: int, seconds: float, long: bool) -> None:
    folder = Path(__file__).parents[1] / FOLDERS[framework]
    checks = [check for name in chosen for check in found(folder, name)]
    environment = (("HOROVOD_GLOO_TIMEOUT_SECONDS", "120"), *(LONG if long else ()))
    launch = Launch(folder, launcher, ranks, environment, seconds)
    # Also where it is interrupted, no rank is left behind.
    with contextlib.closing(Job(launch, checks, functools.partial(click.echo, nl=False))) as job:
        outcomes = {check: job.outcome(check) for check in checks}
    click.echo()
    for check, outcome in outcomes.items():
        click.echo(f"{check}: {outcome.failure or f'passed in {outcome.seconds:.1f} s'}")
    sys.exit(any(outcome.failure for outcome in outcomes.values()))


def found(folder: Path, name: str) -> list[str]:
    """The checks that MODULE or MODULE::CHECK stands for."""
    module, _, check = name.partition("::")
    modules = sorted(path.stem for path in (folder / "checks").glob("[a-z]*.py"))
    if module not in modules:
        raise click.BadParameter(f"{name}: no module {module} in {folder}/checks; allowed: {', '.join(modules)}")
    checks = names(folder, module)
    if check and name not in checks:
        raise click.BadParameter(f"{name}: no such check in {module}; allowed: {', '.join(checks)}")
    return [name] if check else checks


main()
