"""``horovod-dgc doctor``."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import click
from rich.console import Console
from rich.table import Column, Table

import horovod_dgc
from horovod_dgc.doctor import diagnosis, probes
from horovod_dgc.doctor.diagnosis import Diagnosis, Tried

# Paths that are cut off are worse than long lines.
WIDTH = 120
TITLES: Mapping[str, str] = {
    "core": "C++ core",
    "torch": "PyTorch",
    "kernels": "CUDA kernels",
    "tensorflow": "TensorFlow",
    "operations": "TensorFlow operations",
    "horovod": "Horovod",
    "horovod_torch": "Horovod for PyTorch",
    "horovod_tensorflow": "Horovod for TensorFlow",
    "mpirun": "mpirun",
    "mpi4py": "mpi4py",
    "compiler": "C++ compiler",
    "cuda_compiler": "CUDA compiler",
    "safetensors": "safetensors",
    "matplotlib": "matplotlib",
}
HEADINGS: Mapping[str, str] = {"broken": "Broken", "missing": "Missing", "note": "Good to know"}
STYLES: Mapping[str, str] = {"ok": "green", "missing": "yellow", "broken": "bold red"}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print all of it as JSON.")
@click.option(
    "--time-limit",
    type=click.FloatRange(min=0, min_open=True),
    default=probes.SECONDS,
    show_default=True,
    help="Seconds for a framework and what is with it; what takes longer is broken.",
)
def doctor(as_json: bool, time_limit: float) -> None:
    """Tell what is installed, whether it works together, and what mends what does not.

    Frameworks are imported in processes of their own, so it takes some seconds, and a broken one is reported.

    \b
    Exit status:
      0  all that is installed works together; something may be missing
      1  something that is installed does not work
    """
    console = Console(stderr=True)
    with console.status("importing the frameworks") if console.is_terminal else contextlib.nullcontext():
        pieces = probes.examine(seconds=time_limit)
    found = diagnosis.diagnose(pieces, probes.here())
    if as_json:
        click.echo(json.dumps(record(found), indent=2))
    else:
        show(Console(highlight=False, soft_wrap=True, width=max(WIDTH, console.width)), found)
    click.get_current_context().exit(0 if found.works else 1)


def record(found: Diagnosis) -> dict[str, Any]:
    """All of it as JSON holds it."""
    return {
        "horovod_dgc": horovod_dgc.__version__,
        "works": found.works,
        **dataclasses.asdict(found),
    }


def show(console: Console, found: Diagnosis) -> None:
    """Print a table of the pieces, the findings with their commands, and how the versions compare."""
    here = found.here
    console.print(f"horovod_dgc {horovod_dgc.__version__}, Python {here['Python']}, {here['system']}\n", style="bold")
    table = Table.grid("piece", "state", Column("facts", overflow="fold"), padding=(0, 2))
    for name, title in TITLES.items():
        piece = found.pieces[name]
        facts = ", ".join(filter(None, (_fact(label, value) for label, value in piece.facts.items())))
        table.add_row(title, f"[{STYLES[piece.state]}]{piece.state}[/]", facts)
    console.print(table)
    for level, heading in HEADINGS.items():
        findings = [finding for finding in found.findings if finding.level == level]
        if findings:
            console.print(f"\n{heading}", style="bold")
        for finding in findings:
            console.print(f"- {finding.message}", markup=False)
            if finding.command:
                console.print(f"    {finding.command}", markup=False, style="cyan")
    if found.tried:
        console.print("\nVersions", style="bold")
    for tried in found.tried:
        console.print(f"- {comparison(tried)}", markup=False)
    broken = sum(finding.level == "broken" for finding in found.findings)
    verdict = f"Broken: {broken}; see above." if broken else "All that is installed works together."
    console.print(f"\n{verdict}", style="bold red" if broken else "bold green")


def comparison(tried: Tried) -> str:
    """One sentence on the versions of a framework and what is with it."""
    title, installed = diagnosis.FRAMEWORKS[tried.framework], tried.installed
    if not tried.differences:
        versions = ", ".join(f"{_name(name)} {installed[name]}" for name in installed if name != "MPI")
        return f"{title}: tried together ({versions}). Wrap the optimizer with {tried.combination.optimizer}."
    others = ", ".join(
        f"{_name(name)} {version} ({installed[name]} here)" for name, version in tried.differences.items()
    )
    return f"{title}: not tried together. What was tried nearest to it has {others}."


def _name(name: str) -> str:
    return {**diagnosis.FRAMEWORKS, "MPI": "MPI:"}.get(name, name)


def _fact(label: str, value: Any) -> str:
    """As in "Keras 3.15.1"; nothing for what says nothing."""
    if label == "GPUs":
        return ", ".join(value) or "no GPU"
    if label == "compiled for":
        return " and ".join(f"for {name} {version}" for name, version in value.items() if version)
    if label == "refuses root" or (not value and label not in ("MPI", "Gloo", "NCCL")):
        return ""
    if label in ("version", "path", "file", "horovodrun"):
        return str(value)
    if not value:
        return f"no {label}"
    if value is True:
        return label
    return str(value) if label == "MPI" else f"{label} {value}"
