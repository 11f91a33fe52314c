"""The comparison of all methods: a short training, its table and plot, and a page for every method."""

from __future__ import annotations

import importlib.util
import json
import re
import runpy
import sys
from pathlib import Path

import made_up_data
import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from support import family_report, simulated, tasks
from support.contenders import DENSE, all_of_them

from horovod_dgc import DGC, METHODS, registry

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
# Under a name of its own: the tests' helpers have a module "family", too.
SPEC = importlib.util.spec_from_file_location("family_benchmark", BENCHMARKS / "family.py")
assert SPEC is not None and SPEC.loader is not None
family = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(family)

PAGES = BENCHMARKS.parent / "docs" / "methods"
TINY = tasks.ImageTraining(images=16, epochs=1, workers=2, batch=4, width=4)


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return made_up_data.write_images(tmp_path, train=16, test=8)


def test_a_row_for_each_method_and_none_run_twice(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contenders = {name: c for name, c in all_of_them().items() if name in (DENSE, "dgc", "signum", "powersgd")}
    path = tmp_path / "results.jsonl"
    found = family.measure(contenders, TINY, family.results_in(path), matrix=(40, 50), rounds=2, data_dir=data_dir)
    assert TINY.task(data_dir).steps == 2
    assert len(path.read_text().splitlines()) == 7
    page = tmp_path / "README.md"
    page.write_text(f"before\n{family_report.BEGIN}\nold\n{family_report.END}\nafter\n")
    family_report.write(tmp_path, found, TINY, steps=2)
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert [line.split(" |")[0] for line in text.splitlines() if line.startswith("| ")][1:] == [
        "| dense",
        "| [dgc](dgc.md)",
        "| [signum](signum.md)",
        "| [powersgd](powersgd.md)",
    ]
    assert (tmp_path / family_report.PLOT).stat().st_size > 1000

    monkeypatch.setattr(family, "train", None)
    monkeypatch.setattr(family, "encode_and_decode", None)
    again = family.measure(contenders, TINY, family.results_in(path), matrix=(40, 50), rounds=2, data_dir=data_dir)
    assert json.dumps([p["training"] for p in again.values()]) == json.dumps([p["training"] for p in found.values()])


def test_sending_everything_is_sgd(data_dir: Path) -> None:
    """Momentum with the worker and momentum on the reduced gradient are the same where nothing is held back."""
    results = []
    for method in (all_of_them()[DENSE].method, DGC(density=1.0, values="float32")):
        task = TINY.task(data_dir)
        job = simulated.Job(method, None, task)
        for batches in task.batches():
            job.run(batches)
        results.append([p.detach().numpy() for p in task.model.parameters()])
    for one, other in zip(*results):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_a_page_for_every_method_in_the_overview() -> None:
    overview = (PAGES / "README.md").read_text()
    for name, kind in METHODS.items():
        page = (PAGES / f"{name}.md").read_text()
        assert f"{kind.__name__}(" in page, name
        assert f"({name}.md)" in overview
    assert {page.stem for page in PAGES.glob("*.md")} == {*METHODS, "README"}


def test_the_example_of_a_new_method_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Python of the overview's section on new methods."""
    monkeypatch.setattr(registry, "METHODS", dict(METHODS))
    section = (PAGES / "README.md").read_text().split("## A method of your own")[1]
    example = tmp_path / "example.py"
    example.write_text("\n".join(re.findall(r"```python\n(.*?)```", section, re.DOTALL)))
    names = runpy.run_path(str(example))
    assert names["method"] == registry.parse("sparse-signs:density=0.02") == names["SparseSigns"](0.02)
    assert isinstance(names["result"], np.ndarray) and np.count_nonzero(names["result"])
