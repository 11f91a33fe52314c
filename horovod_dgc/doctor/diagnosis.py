"""What follows from what is installed: what is broken or missing, the command that mends it, and versions tried."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from horovod_dgc.doctor.combinations import Combination, nearest
from horovod_dgc.doctor.probes import Facts, Piece

Level = Literal["broken", "missing", "note"]
LEVELS: tuple[Level, ...] = ("broken", "missing", "note")
FRAMEWORKS = {"torch": "PyTorch", "tensorflow": "TensorFlow"}
BUILD_HOROVOD = "horovod-dgc build horovod"


@dataclass(frozen=True)
class Finding:
    """One sentence that tells what is the matter, and what mends it.

    Attributes:
        level: "broken" is what is installed and does not work, "missing" what some use needs, "note" what to know.
        about: the piece.
        command: for a shell; None where there is nothing to mend.
    """

    level: Level
    about: str
    message: str
    command: str | None = None


@dataclass(frozen=True)
class Tried:
    """How an installed framework and what is with it compare with the versions that were tried.

    Attributes:
        combination: the nearest one.
        differences: by name the version that was tried where another is installed; empty: this is what was tried.
    """

    framework: str
    installed: Mapping[str, str]
    combination: Combination
    differences: Mapping[str, str]


@dataclass(frozen=True)
class Diagnosis:
    """All that is known.

    Attributes:
        here: Python and machine.
        findings: the broken first, then the missing, then notes.
    """

    here: Facts
    pieces: Mapping[str, Piece]
    findings: list[Finding]
    tried: list[Tried]

    @property
    def works(self) -> bool:
        """Whether all that is installed works together."""
        return not any(finding.level == "broken" for finding in self.findings)


def diagnose(pieces: Mapping[str, Piece], here: Facts) -> Diagnosis:
    """What follows from the pieces."""
    found = [*_core(pieces), *_frameworks(pieces), *_horovod(pieces, here), *_mpi(pieces), *_extensions(pieces)]
    found += _optional(pieces)
    if any(f.command and "build" in f.command for f in found) and pieces["compiler"].state != "ok":
        message = "There is no C++ compiler, which the commands that build something need."
        found.append(Finding("missing", "compiler", message, "apt-get install g++ make"))
    found.sort(key=lambda finding: LEVELS.index(finding.level))
    return Diagnosis(here, pieces, found, _tried(pieces, here))


def _ok(pieces: Mapping[str, Piece], name: str) -> bool:
    return pieces[name].state == "ok"


def public(version: str) -> str:
    """A version without what a build adds, as in 2.13.0+cpu."""
    return version.partition("+")[0]


def _core(pieces: Mapping[str, Piece]) -> Iterator[Finding]:
    if not _ok(pieces, "core"):
        message = f"The C++ core does not work: {pieces['core'].error}."
        yield Finding("broken", "core", message, "pip install --force-reinstall --no-deps horovod_dgc")


def _frameworks(pieces: Mapping[str, Piece]) -> Iterator[Finding]:
    for name, title in FRAMEWORKS.items():
        if pieces[name].state == "broken":
            message = f"{title} cannot be imported: {pieces[name].error}."
            yield Finding("broken", name, message, f"pip install --force-reinstall {name}")
    if all(pieces[name].state == "missing" for name in FRAMEWORKS):
        message = "Neither PyTorch nor TensorFlow is installed, one of which training needs."
        yield Finding("missing", "frameworks", message, "pip install torch")


def _horovod(pieces: Mapping[str, Piece], here: Facts) -> Iterator[Finding]:
    installed = [name for name in FRAMEWORKS if _ok(pieces, name)]
    horovod = pieces["horovod"]
    if horovod.state == "broken":
        message = f"Horovod cannot be imported: {horovod.error}."
        yield Finding("broken", "horovod", message, f"{BUILD_HOROVOD} --force")
    if horovod.state == "missing" and installed:
        yield Finding("missing", "horovod", "Horovod is not installed, which training needs.", BUILD_HOROVOD)
    if horovod.state != "ok":
        return
    if horovod.facts["horovodrun"] is None:
        folder = Path(here["executable"]).parent
        yield Finding("note", "horovod", "horovodrun is not on the PATH.", f'export PATH="{folder}:$PATH"')
    for name in installed:
        yield from _horovod_with(name, pieces)


def _horovod_with(name: str, pieces: Mapping[str, Piece]) -> Iterator[Finding]:
    """Findings of Horovod's part for one framework, which is installed and works."""
    title, part = FRAMEWORKS[name], pieces[f"horovod_{name}"]
    about, facts = f"horovod_{name}", part.facts
    version, compiled = pieces[name].facts["version"], pieces["horovod"].facts["compiled for"].get(name)
    if part.state == "missing":
        message = f"Horovod was compiled without {title}, which training with {title} needs."
        yield Finding("missing", about, message, BUILD_HOROVOD)
        return
    if compiled is not None and public(compiled) != public(version):
        message = f"Horovod was compiled for {title} {compiled}, and {version} is installed"
        message += "." if part.state == "ok" else f": {part.error}."
        yield Finding("broken", about, message, BUILD_HOROVOD)
        return
    if part.state == "broken":
        message = f"Horovod's part for {title} cannot be imported: {part.error}."
        yield Finding("broken", about, message, f"{BUILD_HOROVOD} --force")
        return
    if not facts["MPI"] and not facts["Gloo"]:
        message = f"Horovod was compiled for {title} with neither MPI nor Gloo: no job can start."
        yield Finding("broken", about, message, f"{BUILD_HOROVOD} --force")
    if name == "torch" and pieces["torch"].facts["GPUs"] and not facts["NCCL"]:
        message = "Horovod has no NCCL: what it reduces on GPUs goes through host memory."
        yield Finding("note", about, message, f"{BUILD_HOROVOD} --nccl")
    if name == "tensorflow" and pieces["tensorflow"].facts["Keras"].split(".")[0] == "3":
        yield Finding(
            "note",
            "tensorflow",
            "With Keras 3, give model.compile() horovod_dgc.tensorflow.DistributedOptimizer: Horovod's own for Keras "
            "would train every process by itself.",
        )


def _mpi(pieces: Mapping[str, Piece]) -> Iterator[Finding]:
    mpirun = pieces["mpirun"]
    parts = {title: pieces[f"horovod_{name}"].facts.get("MPI") for name, title in FRAMEWORKS.items()}
    linked = {title: mpi for title, mpi in parts.items() if mpi}
    if mpirun.state == "broken":
        yield Finding("broken", "mpirun", f"mpirun does not run: {mpirun.error}.", "apt-get install openmpi-bin")
    if mpirun.state == "missing" and linked:
        message = "mpirun is not on the PATH: jobs start with horovodrun --gloo only."
        yield Finding("missing", "mpirun", message, "apt-get install openmpi-bin")
    if mpirun.state != "ok":
        return
    version, path = mpirun.facts["version"], mpirun.facts["path"]
    for title, mpi in linked.items():
        if mpi != version:
            message = f"Horovod for {title} was compiled with {mpi}, and mpirun ({path}) is {version}: "
            message += "each process that it starts would be a job by itself."
            yield Finding("broken", "mpirun", message, f"{BUILD_HOROVOD} --force")
            break
    mpi4py = pieces["mpi4py"]
    if _ok(pieces, "mpi4py") and mpi4py.facts["MPI"] != version:
        message = f"mpi4py was compiled with {mpi4py.facts['MPI']}, and mpirun ({path}) is {version}."
        yield Finding("broken", "mpi4py", message, "pip install --force-reinstall --no-binary mpi4py mpi4py")
    if mpirun.facts["refuses root"] and (linked or _ok(pieces, "mpi4py")):
        command = "export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1"
        yield Finding(
            "note", "mpirun", "You are root, for whom mpirun starts nothing unless it is allowed to.", command
        )


def _extensions(pieces: Mapping[str, Piece]) -> Iterator[Finding]:
    if pieces["kernels"].state == "broken":
        message = f"The CUDA kernels do not load: {pieces['kernels'].error}."
        yield Finding("broken", "kernels", message, "horovod-dgc build cuda --force")
    if pieces["kernels"].state == "missing" and pieces["torch"].facts.get("GPUs"):
        message = "There are no CUDA kernels: gradients on a GPU are compressed by plain torch operations, slowly."
        yield Finding("missing", "kernels", message, "horovod-dgc build cuda")
    if not _ok(pieces, "tensorflow"):
        return
    version = pieces["tensorflow"].facts["version"]
    if pieces["operations"].state == "broken":
        message = f"The operations do not load into TensorFlow {version}: {pieces['operations'].error}."
        yield Finding("broken", "operations", message, "horovod-dgc build tensorflow --force")
    if pieces["operations"].state == "missing":
        message = f"There are no operations for TensorFlow {version}, which training with TensorFlow needs."
        yield Finding("missing", "operations", message, "horovod-dgc build tensorflow")


def _optional(pieces: Mapping[str, Piece]) -> Iterator[Finding]:
    trains = any(_ok(pieces, name) for name in FRAMEWORKS)
    for name, wanted, use, extra in (
        ("safetensors", trains, "checkpoints of the compression's state need", "checkpoints"),
        ("matplotlib", True, "horovod-dgc plan --plot needs", "plan"),
    ):
        if wanted and pieces[name].state == "missing":
            yield Finding(
                "missing", name, f"{name} is not installed, which {use}.", f"pip install 'horovod_dgc[{extra}]'"
            )
    for name in ("safetensors", "matplotlib", "mpi4py"):
        if pieces[name].state == "broken":
            message = f"{name} cannot be imported: {pieces[name].error}."
            yield Finding("broken", name, message, f"pip install --force-reinstall {name}")


def _tried(pieces: Mapping[str, Piece], here: Facts) -> list[Tried]:
    found = []
    for name in FRAMEWORKS:
        if not _ok(pieces, name):
            continue
        facts = pieces[name].facts
        part = pieces[f"horovod_{name}"].facts
        installed: dict[str, Any] = {
            name: public(facts["version"]),
            "Keras": facts.get("Keras"),
            "NumPy": facts.get("NumPy"),
            "Horovod": pieces["horovod"].facts.get("version"),
            "Python": re.sub(r"^(\d+\.\d+).*", r"\1", here["Python"]),
            "MPI": part.get("MPI"),
        }
        known = {each: version for each, version in installed.items() if version}
        combination, differences = nearest(name, known)
        found.append(Tried(name, known, combination, differences))
    return found
