"""Run distributed jobs on hosts of a network lab: namespaces on this machine, joined by links of a given rate.

Needs root, and Debian's packages iproute2, openssh-client and openssh-server. The machine's own network is not touched.

    python benchmarks/cluster lab --hosts 2 --rate 1gbit -- horovodrun -np 2 -H node1:1,node2:1 python script.py
"""

from __future__ import annotations

import functools
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).parents[1]))
from cluster import accounting, folders, scaling
from cluster.lab import MOST_HOSTS, Lab
from cluster.links import RATES, Traffic
from support import options, report
from support.results import Results

from horovod_dgc.transport import NAMES

FOLDER = Path(__file__).parent

hosts_option = click.option(
    "--hosts", type=click.IntRange(1, MOST_HOSTS), default=2, show_default=True, help="They are node1, node2, ..."
)
rate_option = click.option(
    "--rate",
    type=click.Choice(list(RATES)),
    default="unshaped",
    show_default=True,
    help="Of each host's link, in each direction.",
)
launcher_option = click.option(
    "--launcher", type=click.Choice(accounting.LAUNCHERS), default="horovodrun", show_default=True
)
method_option = click.option(
    "--method", default="dgc:density=0.05", show_default=True, help="As in the examples' --compression."
)
steps_option = click.option("--steps", type=click.IntRange(1), default=20, show_default=True)


def several(name: str, variable: str, values: Iterable[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """An option that may be given several times; without it all ``values`` are meant."""
    every = tuple(values)
    return click.option(
        name, variable, type=click.Choice(every), multiple=True, default=every, help="May be given several times."
    )


def end(number: int, frame: FrameType | None) -> None:
    """Leave by an exception, so that the lab is taken down on the way out."""
    raise SystemExit(128 + number)


@click.group(help=__doc__)
def main() -> None:
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)


@main.command(context_settings={"ignore_unknown_options": True})
@hosts_option
@rate_option
@click.option("--bytes", "with_bytes", is_flag=True, help="Tell at the end what crossed each host's link.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def lab(hosts: int, rate: str, with_bytes: bool, command: tuple[str, ...]) -> None:
    """Set up a lab, run COMMAND on its first host, take the lab down, and end with COMMAND's status."""
    with Lab(hosts=hosts, rate=rate) as made:
        status = made.call(command)
        if with_bytes:
            show(made.bytes())
    sys.exit(status)


@main.command("bytes")
@hosts_option
@rate_option
@launcher_option
@method_option
@click.option("--transport", type=click.Choice(NAMES), default="auto", show_default=True)
@steps_option
def compare_bytes(hosts: int, rate: str, launcher: str, method: str, transport: str, steps: int) -> None:
    """Train a known number of steps and compare the bytes at each interface with what stats() says was sent."""
    with Lab(hosts=hosts, rate=rate) as made:
        accounts = accounting.compare(made, launcher=launcher, method=method, transport=transport, steps=steps)
    report.table(
        f"{steps} steps of {method} under {launcher}, {hosts} hosts, {rate}: bytes sent by each host",
        ["host", "by stats()", "at the interface", "as on a wire", "wire / stats()", "overhead, subtracted"],
        [
            [
                host,
                f"{account.expected:,.0f}",
                f"{account.sent:,}",
                f"{account.wire_sent:,}",
                f"{account.wire_sent / account.expected:.3f}",
                f"{account.overhead:,}",
            ]
            for host, account in zip(made.addresses, accounts)
        ],
    )


@main.command()
@hosts_option
@rate_option
@launcher_option
@method_option
@click.option("--workers-per-host", type=click.IntRange(2), default=2, show_default=True)
@steps_option
def hierarchy(hosts: int, rate: str, launcher: str, method: str, workers_per_host: int, steps: int) -> None:
    """Train with several workers on each host, flat and hierarchically, and compare the bytes at each interface."""
    with Lab(hosts=hosts, rate=rate) as made:
        flat, nodes = (
            accounting.measure(
                made,
                launcher=launcher,
                method=method,
                transport="gather",
                steps=steps,
                workers_per_host=workers_per_host,
                hierarchical=hierarchical,
            )
            for hierarchical in (False, True)
        )
    report.table(
        f"{steps} steps of {method} under {launcher}, {workers_per_host} workers on each of {hosts} hosts, {rate}: "
        "bytes sent by each host",
        ["host", "flat", "hierarchical", "flat / hierarchical"],
        [
            [host, f"{one.sent:,}", f"{other.sent:,}", f"{one.sent / other.sent:.2f}"]
            for host, one, other in zip(made.addresses, flat.traffic, nodes.traffic)
        ],
    )


@main.command("scaling")
@several("--model", "models", scaling.MODELS)
@several("--hosts", "hosts", scaling.HOSTS)
@several("--rate", "rates", scaling.RATES)
@click.option(
    "--compute", default=scaling.COMPUTE, show_default=True, help="Seconds of each step that stand for computation."
)
@click.option("--steps", type=click.IntRange(3), default=scaling.STEPS, show_default=True, help="Of each contender.")
@click.option(
    "--budget", default=scaling.BUDGET, show_default=True, help="Seconds after which fewer steps have to do, but 3."
)
@options.kept_rows(FOLDER / "scaling.jsonl", "scaling")
@options.smallest(
    rows="scaling",
    page="scaling",
    models=("resnet50",),
    hosts=(2,),
    rates=("10gbit",),
    compute=0.05,
    steps=3,
    budget=1.0,
)
def measure_scaling(
    models: tuple[str, ...],
    hosts: tuple[int, ...],
    rates: tuple[str, ...],
    compute: float,
    steps: int,
    budget: float,
    path: Path,
    docs: Path,
    tables_only: bool,
) -> None:
    """Time whole steps, dense and compressed, for each model, number of hosts and rate; 40 minutes; resumable."""
    from cluster import scaling_report

    results = Results(path, scaling.KEY)
    settings = functools.partial(scaling.settings, compute=compute, steps=steps, budget=budget)
    if not tables_only:
        scaling.carry_out(settings(models, hosts, rates), results)
    scaling_report.write(docs, scaling_report.found(settings(), results))


@main.command("list")
def list_labs() -> None:
    """Show the labs on this machine."""
    for name, in_use in folders.labs().items():
        click.echo(f"{name}: {'in use' if in_use else 'left over'}")


@main.command()
@click.argument("names", nargs=-1)
def down(names: tuple[str, ...]) -> None:
    """Take down the labs of these NAMES, or all, in use or left over."""
    known = folders.labs()
    for name in names:
        if name not in known:
            raise click.ClickException(f"there is no lab {name!r}; there are: {', '.join(known) or 'none'}")
    for name in names or known:
        folders.take_down(name)
        click.echo(f"{name}: taken down")


def show(traffic: dict[str, Traffic]) -> None:
    report.table(
        "Bytes at each host's interface",
        ["host", "sent", "received", "sent, as on a wire", "received, as on a wire"],
        [
            [host, f"{t.sent:,}", f"{t.received:,}", f"{t.wire_sent:,}", f"{t.wire_received:,}"]
            for host, t in traffic.items()
        ],
    )


if __name__ == "__main__":
    main()
