"""Every benchmark runs as a command at its smallest size, and its tables have the right rows and columns."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import made_up_data
import pytest
from click.testing import CliRunner
from launch import execute

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from cluster import scaling
from convergence import plan, processes
from support import options, turns
from support.contenders import all_of_them

from horovod_dgc import shapes

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
SECONDS = 240.0
KERNEL_COLUMNS = ("ms", "quartiles", "GB/s")


@dataclass(frozen=True)
class Table:
    """A table as it was printed: the names of its columns, and its rows' cells by these names."""

    columns: list[str]
    rows: list[list[str]]

    def column(self, name: str) -> list[str]:
        return [row[self.columns.index(name)] for row in self.rows]


def run(*command: object) -> str:
    """What a benchmark prints."""
    finished = execute([sys.executable, *map(str, command)], timeout=SECONDS)
    assert finished.returncode == 0, finished.output
    return finished.output


def tables(output: str) -> list[Table]:
    """Tables in what was printed, none of whose cells may be cut off."""
    found: list[Table] = []
    for line in output.splitlines():
        if line.startswith("┃"):
            found.append(Table([cell.strip() for cell in line.strip("┃").split("┃")], []))
        elif line.startswith("│"):
            assert "…" not in line, line
            found[-1].rows.append([cell.strip() for cell in line.strip("│").split("│")])
            assert len(found[-1].rows[-1]) == len(found[-1].columns), line
    return found


def numbers(table: Table, *columns: str) -> list[float]:
    return [float(cell.replace(",", "")) for column in columns for cell in table.column(column)]


def test_every_benchmark_is_here() -> None:
    """One that is added must be run here, too."""
    names = [path.stem for path in BENCHMARKS.glob("*.py")]
    names += [path.parent.name for path in BENCHMARKS.glob("*/__main__.py")]
    assert sorted(names) == sorted(
        ["kernels", "gpu", "traffic", "overhead", "negotiation", "family", "convergence", "cluster"]
    )


def test_kernels(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    times, ratios = tables(run(BENCHMARKS / "kernels.py", "--smallest", "--json", path))
    assert times.columns == ["operation", *(f"ms, {n} thr" if c == "ms" else c for n in (1, 2) for c in KERNEL_COLUMNS)]
    assert ratios.columns == ["ratio", "wanted", "1 thr", "quartiles", "2 thr", "quartiles"]
    results = json.loads(path.read_text())["results"]
    assert [(result["numel"], result["threads"]) for result in results] == [(10_000, 1), (10_000, 2)]
    for result in results:
        assert times.column("operation") == list(result["milliseconds"])
        assert ratios.column("ratio") == list(result["ratios"])
        for quartiles in (*result["milliseconds"].values(), *result["ratios"].values()):
            assert 0 < quartiles[0] <= quartiles[1] <= quartiles[2]
    assert {"floor: update", "encode", "propose", "commit", "decode_add, N = 2", "fp16", "topk"} <= {
        *times.column("operation")
    }
    assert {"encode / floor: update", "reference DGC / encode"} <= {*ratios.column("ratio")}


def test_gpu() -> None:
    output = run(BENCHMARKS / "gpu.py", "--smallest")
    found = tables(output)
    if not found:
        assert "There is no GPU here" in output
        pytest.skip("no GPU here: benchmarks/gpu.py has nothing to measure")
    times, ratios, model = found[:3]
    assert {"propose", "commit", "decode, N = 2", "plain torch: propose"} <= {*times.column("operation")}
    assert "propose / copy of 12 B" in ratios.column("ratio")
    assert "whole step" in model.column("operation")
    assert min(numbers(times, "ms") + numbers(ratios, "median") + numbers(model, "device ms", "host ms")) > 0


def test_traffic() -> None:
    (table,) = tables(run(BENCHMARKS / "traffic.py", "--smallest"))
    settings = ["dense", "the paper prints", "the paper's coding", "default", "smallest"]
    assert table.column("setting") == settings * len(shapes.MODELS)
    assert table.column("model")[:: len(settings)] == list(shapes.MODELS)
    ratios = numbers(table, "ratio")
    for first in range(0, len(ratios), len(settings)):
        dense, _, paper, default, smallest = ratios[first : first + len(settings)]
        assert 1 == dense < paper < default < smallest


def test_overhead(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    found = tables(run(BENCHMARKS / "overhead.py", "--smallest", "--json", path))
    results = json.loads(path.read_text())["results"]
    assert [result["framework"] for result in results] == ["PyTorch", "TensorFlow"]
    assert len(found) == len(results)
    for table, result in zip(found, results):
        assert table.columns == [
            "compression",
            "exchange ms",
            "quartiles",
            "/ dense",
            "step ms",
            "/ dense",
            *turns.PHASES,
        ]
        assert table.column("compression") == list(turns.NAMES)
        assert result["tensors"] == 6
        assert min(numbers(table, "exchange ms", "step ms")) > 0
        # Only this package's own say how long their phases take.
        assert [bool(cell) for cell in table.column("wait")] == [name in turns.METHODS for name in turns.NAMES]


def test_negotiation() -> None:
    (table,) = tables(run(BENCHMARKS / "negotiation.py", "--smallest"))
    assert table.columns == ["step", "density", "bytes sent", "requests", "negotiated", "no cache", "varying length"]
    assert table.column("step") == [str(step) for step in range(6)]
    assert table.column("density")[-2:] == ["0.10%"] * 2
    (requests,) = {*table.column("requests")}
    # The first step of a density is negotiated, its second is not, and never without a cache or with other lengths.
    negotiated = numbers(table, "negotiated")
    assert negotiated[0] == int(requests) and negotiated[4] > 0 and negotiated[5] == 0
    assert {*table.column("no cache")} == {f"{requests} of {requests}"}
    assert not table.column("varying length")[5].startswith("0 ")


def test_family(tmp_path: Path) -> None:
    images = made_up_data.write_images(tmp_path, train=64, test=20)
    chosen = ("--smallest", "--data-dir", images, "--results", tmp_path / "rows.jsonl")
    (table,) = tables(run(BENCHMARKS / "family.py", *chosen))
    assert table.column("method") == list(all_of_them())
    assert min(numbers(table, "ResNet-50 B", "trained B", "mean B")) > 0
    timed = [bool(encode) and bool(decode) for encode, decode in zip(table.column("encode"), table.column("decode"))]
    assert timed == [False] + [True] * (len(timed) - 1)
    assert all(cell.endswith(" %") for cell in table.column("accuracy"))


def page(docs: Path, name: str) -> Path:
    docs.mkdir()
    return Path(shutil.copy(ROOT / "docs" / f"{name}.md", docs))


def test_convergence(tmp_path: Path) -> None:
    text = page(tmp_path / "docs", "convergence")
    digits = made_up_data.write_spoken_digits(tmp_path, 60)
    rows = tmp_path / "rows.jsonl"
    run(BENCHMARKS / "convergence", "--smallest", "--data-dir", digits, "--results", rows, "--docs", text.parent)
    assert len(rows.read_text().splitlines()) == len(plan.MAIN) * len(plan.SEEDS)
    table = text.read_text().split("<!-- convergence, digits: ")[1].splitlines()
    lines = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in table if line.startswith("| ")]
    found = {line[0]: line[1:] for line in lines[1:]}
    for name in plan.MAIN:
        seeds, accuracy, *_ = found[name]
        assert seeds == "3" and "±" in accuracy, found[name]
    assert found[plan.BEST][:2] == ["0", "missing"]
    assert (text.parent / "convergence" / "digits.svg").stat().st_size > 1000


# TensorFlow's example writes its log with the same code, and tests/jobs runs both.
@pytest.mark.parametrize(
    "framework",
    [pytest.param(name, marks=pytest.mark.long if name == "TensorFlow" else ()) for name in processes.SCRIPTS],
)
def test_convergence_in_processes(framework: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = made_up_data.write_images(tmp_path, train=64, test=20)
    small = {**processes.OPTIONS, "width": 4, "batch-size": 8, "epochs": 2, "data-dir": images}
    monkeypatch.setattr(processes, "OPTIONS", small)
    monkeypatch.setattr(processes, "TIME_LIMIT", SECONDS)
    found: dict[str, Any] = processes.run(framework, "DGC 1 %", seed=0)
    assert found["steps_per_epoch"] == 64 // (processes.WORKERS * small["batch-size"])
    assert [point[0] for point in found["curve"]] == [found["steps_per_epoch"], 2 * found["steps_per_epoch"]]
    assert 0 < found["last_nbytes"] < found["dense_nbytes"]


def test_scaling_without_a_lab(tmp_path: Path) -> None:
    """Its page from the rows that are kept; tests/cluster runs its jobs."""
    text = page(tmp_path / "docs", "scaling")
    before = text.read_text()
    run(BENCHMARKS / "cluster", "scaling", "--tables-only", "--docs", text.parent)
    assert text.read_text() == before
    assert all((text.parent / "scaling" / f"{model}.svg").stat().st_size > 1000 for model in scaling.MODELS)


@click.command()
@click.option("--count", default=5)
@options.smallest(count=1)
def command(count: int) -> None:
    click.echo(count)


@pytest.mark.parametrize(
    ("arguments", "count"), [([], "5"), (["--smallest"], "1"), (["--count", "3", "--smallest"], "3")]
)
def test_the_smallest_size_changes_defaults_alone(arguments: list[str], count: str) -> None:
    assert CliRunner().invoke(command, arguments).output.strip() == count
