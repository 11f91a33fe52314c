"""The command line of ``horovod-dgc plan``."""

from __future__ import annotations

import json
from pathlib import Path

import click
from rich.console import Console

from horovod_dgc import rates, shapes
from horovod_dgc.cost import LATENCY_STEPS, TRANSPORTS, Cluster, Rates
from horovod_dgc.methods.base import Method
from horovod_dgc.plan import models, units, view
from horovod_dgc.plan.contenders import DEFAULTS, Contender, Job, contenders, read_rates, record

# Figures that are cut off are worse than long lines.
WIDTH = 135
FILE = click.Path(dir_okay=False, path_type=Path)
EXISTING = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.option("--model", help=f"A model file (.pt, .pth, .safetensors, .keras), or one of {', '.join(shapes.NAMED)}.")
@click.option("--shapes", "shapes_path", type=EXISTING, help="JSON: shapes by parameter name, instead of --model.")
@click.option("--workers", type=int, required=True, help="Processes in all.")
@click.option("--workers-per-node", type=int, default=1, show_default=True)
@click.option("--bandwidth", required=True, help="Of a node's link, each way: 1gbit, 10gbit, 1.25GB/s.")
@click.option("--latency", default="50us", show_default=True, help="Of a message between nodes.")
@click.option("--local-bandwidth", default="100gbit", show_default=True, help="Within a node.")
@click.option("--local-latency", default="10us", show_default=True, help="Within a node.")
@click.option("--step-time", required=True, help="A worker's step without any exchange, measured: 180ms.")
@click.option("--overlap", type=float, default=0.0, show_default=True,
              help="Share of that time that the exchange may hide behind, 0 to 1.")  # fmt: skip
@click.option("--method", "names", multiple=True, default=DEFAULTS, show_default=True,
              help="As in --compression of the examples, for instance qsgd:bits=4; dense is always there.")  # fmt: skip
@click.option("--transport", "transports", multiple=True, type=click.Choice(list(TRANSPORTS)),
              help="Repeat it to compare. By default auto; with several workers a node hierarchical, too.")  # fmt: skip
@click.option("--algorithm", type=click.Choice(list(LATENCY_STEPS)), default="ring", show_default=True,
              help="How often a collective pays the latency: about N times, or log2 N times.")  # fmt: skip
@click.option("--fusion-mib", type=int, default=128, show_default=True, help="Horovod's fusion threshold.")
@click.option("--calibrate", is_flag=True, help="Measure encoding and decoding on this machine's processor.")
@click.option("--rates", "rates_path", type=EXISTING, help="Rates from a file that --json wrote.")
@click.option("--network-only", is_flag=True, help="Count encoding, decoding and calls as nothing, as Lin et al. do.")
@click.option("--json", "json_path", type=FILE, help="Write all figures to this file.")
@click.option("--plot", "plot_path", type=FILE, help="Draw speedup and efficiency over nodes: FILE.svg.")
@click.option("--max-nodes", type=click.IntRange(1, 1 << 20), default=4096, show_default=True, help="Of the plot.")
def plan(
    model: str | None,
    shapes_path: Path | None,
    workers: int,
    workers_per_node: int,
    bandwidth: str,
    latency: str,
    local_bandwidth: str,
    local_latency: str,
    step_time: str,
    overlap: float,
    names: tuple[str, ...],
    transports: tuple[str, ...],
    algorithm: str,
    fusion_mib: int,
    calibrate: bool,
    rates_path: Path | None,
    network_only: bool,
    json_path: Path | None,
    plot_path: Path | None,
    max_nodes: int,
) -> None:
    """Predict the step time of a model on a cluster, dense and with each method, and say which to take."""
    try:
        if calibrate + (rates_path is not None) + network_only > 1:
            raise ValueError("at most one of --calibrate, --rates and --network-only may be given")
        job = Job(
            _model(model, shapes_path),
            Cluster(
                workers=workers,
                bandwidth=units.bandwidth("bandwidth", bandwidth),
                latency=units.seconds("latency", latency),
                workers_per_node=workers_per_node,
                local_bandwidth=units.bandwidth("local-bandwidth", local_bandwidth),
                local_latency=units.seconds("local-latency", local_latency),
                algorithm=algorithm,
                fusion_nbytes=fusion_mib << 20,
            ),
            units.seconds("step-time", step_time),
            overlap,
        )
        transports = transports or (("auto", "hierarchical") if workers_per_node > 1 else ("auto",))
        source, made = _contenders(names, transports, calibrate, rates_path, network_only)
        predictions = {contender.label: job.predict(contender) for contender in made}
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    console = Console(highlight=False, width=max(WIDTH, Console().width))
    view.describe(console, job, predictions, source)
    if json_path is not None:
        json_path.write_text(json.dumps(record(job, made, predictions), indent=2) + "\n")
    if plot_path is not None:
        _plot(plot_path, job, made, max_nodes)


def _model(name: str | None, shapes_path: Path | None) -> models.Model:
    if shapes_path is not None and name is None:
        return models.from_json(shapes_path)
    if name is None or shapes_path is not None:
        raise ValueError(f"one of --model and --shapes must be given, got {name!r} and {shapes_path!r}")
    return models.load(name)


def _contenders(
    names: tuple[str, ...],
    transports: tuple[str, ...],
    calibrate: bool,
    rates_path: Path | None,
    network_only: bool,
) -> tuple[str, list[Contender]]:
    """Where the rates come from, in words, and the contenders with theirs."""
    if network_only:
        return "counted as nothing", contenders(names, transports, lambda name, method: Rates())
    if calibrate:
        return (
            "measured here, on one thread of the processor",
            contenders(names, transports, lambda name, method: rates.measured(method)),
        )
    if rates_path is not None:
        known = read_rates(rates_path)

        def read(name: str, method: Method | None) -> Rates:
            if name not in known:
                raise ValueError(f"rates must hold every method that is compared, got none of {name!r}")
            return known[name]

        return f"from {rates_path.name}", contenders(names, transports, read)
    return (
        "assumed, those of docs/performance.md and docs/methods (one thread of a processor)",
        contenders(names, transports, lambda name, method: rates.assumed(method)),
    )


def _plot(path: Path, job: Job, made: list[Contender], most: int) -> None:
    try:
        view.plot(path, job, made, most)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        raise click.ClickException("--plot needs matplotlib: pip install 'horovod_dgc[plan]'") from None
    except ValueError as error:
        raise click.UsageError(f"--plot must name a file of a known format, got {str(path)!r}: {error}") from None
