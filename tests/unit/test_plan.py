"""`python -m horovod_dgc plan`: models by name and from files, its output, and what it refuses."""

from __future__ import annotations

import json
import math
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

import horovod_dgc
from horovod_dgc import DGC, shapes, traffic
from horovod_dgc.commands import commands
from horovod_dgc.cost import Cluster, Rates, predict
from horovod_dgc.plan import contenders, models, units, view
from horovod_dgc.rates import assumed

JOB = ("--model", "alexnet-two-columns", "--workers", "64", "--bandwidth", "1gbit", "--step-time", "350ms")


def plan(*arguments: object) -> Result:
    return CliRunner().invoke(commands, ["plan", *map(str, arguments)], terminal_width=200)


def said(result: Result) -> str:
    return " ".join(result.output.replace("│", " ").split())


SIZES = {
    # Counts of torchvision for the first, third and fourth; sizes printed by Lin et al., ICLR 2018, elsewhere.
    "resnet50": (25_557_032, 97.49),
    "alexnet-two-columns": (60_965_224, 232.56),
    "alexnet": (61_100_840, 233.08),
    "vgg16": (138_357_544, 527.79),
    "lstm-ptb": (51_034_000, 194.68),
    # Zaremba et al. 2014 speak of 66 M.
    "lstm-ptb-untied": (66_034_000, 251.90),
    # The paper's 488.08 is met in millions of bytes.
    "deepspeech": (122_069_104, 465.66),
}


@pytest.mark.parametrize("name", shapes.NAMED)
def test_named_models_have_their_published_sizes(name: str) -> None:
    elements, mebibytes = SIZES[name]
    found = models.load(name)
    assert sum(math.prod(shape) for shape in found.shapes.values()) == elements
    assert 4 * elements / 2**20 == pytest.approx(mebibytes, abs=0.005)


def test_the_figures_are_those_of_the_cost_model(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    result = plan(
        *JOB, "--workers-per-node", 4, "--latency", "20us", "--overlap", 0.5, "--method", "dgc", "--json", path
    )
    assert result.exit_code == 0, result.output
    written = json.loads(path.read_text())
    cluster = Cluster(64, 1e9 / 8, latency=20e-6, workers_per_node=4)
    dgc = DGC()
    for name, method, way in (
        ("dense", None, "auto"),
        ("dgc", dgc, "auto"),
        ("dgc, hierarchical", dgc, "hierarchical"),
    ):
        told = predict(shapes.alexnet(), method, cluster, 0.35, rates=assumed(method), overlap=0.5, transport=way)
        assert written["predictions"][name]["step"] == pytest.approx(told.step)
        assert f"{told.sent_nbytes + told.control_nbytes:,}" in said(result)
        assert f"{told.efficiency:.1%}" in said(result)
    assert written["predictions"]["dgc"]["payload_nbytes"] == traffic(shapes.alexnet(), DGC()).total
    assert written["recommended"] == "dgc, hierarchical"
    assert "64 workers on 16 nodes, 1 Gb/s and 20 us between nodes" in said(result)
    assert "350 ms of computation, 50% of which hides the exchange" in said(result)
    assert "rates of encoding and decoding: assumed" in said(result)


def test_rates_are_read_back(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    first = plan(*JOB, "--network-only", "--method", "dgc", "--json", path)
    assert "counted as nothing" in said(first)
    again = plan(*JOB, "--rates", path, "--method", "dgc")
    assert first.output.splitlines()[3:] == again.output.splitlines()[3:]
    missing = plan(*JOB, "--rates", path, "--method", "topk")
    assert "rates must hold every method that is compared, got none of 'topk'" in said(missing)
    path.write_text('{"dgc": {"encode": "fast"}}')
    assert "rates must be a JSON file with encode" in said(plan(*JOB, "--rates", path))


def test_rates_are_measured_here(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def measured(method: horovod_dgc.Method | None) -> Rates:
        asked.append(method)
        return Rates()

    monkeypatch.setattr("horovod_dgc.rates.measured", measured)
    result = plan(*JOB, "--calibrate", "--method", "dgc", "--transport", "gather", "--transport", "allreduce")
    assert asked == [None, DGC()]
    assert "measured here" in said(result)
    assert "dgc, gather" in said(result) and "dgc, allreduce" in said(result)


def test_the_recommendation_is_the_mildest_of_the_fast_ones() -> None:
    def take(**steps: float) -> str:
        found = {
            name: predict([(1,)], None, Cluster(1, 1.0), seconds, rates=Rates()) for name, seconds in steps.items()
        }
        return contenders.recommended(found)

    assert take(dense=1.0, fp16=0.9, dgc=0.5, smaller=0.49) == "dgc"
    assert take(dense=1.0, fp16=0.97, dgc=0.96) == "dense"
    assert take(dense=1.0, fp16=2.0) == "dense"


def test_no_figure_is_cut_off() -> None:
    result = plan(*JOB, "--method", "dgc:values=float32,indices=runlength16,exempt_values=float32,factor_masking=false")
    assert result.exit_code == 0
    assert "…" not in result.output
    assert "243,860,896" in result.output


def test_one_machine_is_told_to_stay_dense() -> None:
    result = plan(*JOB[:2], "--workers", 4, "--workers-per-node", 4, "--bandwidth", "1gbit", "--step-time", "350ms")
    assert "4 workers on 1 node, 100 Gb/s and 10 us within the node" in said(result)
    assert "recommended: dense" in said(result) and "nothing to gain" in said(result)


def test_plot(tmp_path: Path) -> None:
    path = tmp_path / "plan.svg"
    assert plan(*JOB, "--plot", path, "--max-nodes", 5000).exit_code == 0
    drawing = path.read_text()
    assert len(drawing) < 60_000
    for text in ("dense", "dgc:values=int4", "powersgd:rank=2", "scaling efficiency", "speedup over one worker"):
        assert text in drawing
    assert view.node_counts(5000)[-1] == 4096 and view.node_counts(1) == [1]
    assert "--plot must name a file of a known format" in said(plan(*JOB, "--plot", tmp_path / "plan.docx"))


def test_shapes_in_json(tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    path.write_text('{"w": [30, 20], "b": [30], "scalar": []}')
    assert models.from_json(path).shapes == {"w": (30, 20), "b": (30,), "scalar": ()}
    assert models.load(str(path)) == models.from_json(path)
    path.write_text("[[30, 20], [30]]")
    assert models.from_json(path).shapes == {"0": (30, 20), "1": (30,)}
    assert "2 tensors, 630 elements" in said(plan("--shapes", path, *JOB[2:]))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "shapes must be a readable JSON file"),
        ("[]", "shapes must be a JSON object"),
        ("7", "shapes must be a JSON object"),
        ('{"w": 3}', r"shapes\['w'\] must be a list of extents such as \[64, 3, 7, 7\], got 3"),
        ('{"w": [3, -1]}', r"shapes\['w'\] must be a whole number >= 0, got -1"),
        ('{"w": [3, 1.5]}', r"shapes\['w'\] must be a whole number >= 0, got 1.5"),
        ('{"w": [true]}', r"shapes\['w'\] must be a whole number >= 0, got True"),
    ],
)
def test_wrong_shapes_are_refused(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "model.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=words):
        models.from_json(path)


def test_safetensors(tmp_path: Path) -> None:
    numpy = pytest.importorskip("safetensors.numpy")
    path = tmp_path / "net.safetensors"
    arrays = {
        "conv.weight": np.zeros((4, 3, 2, 2), np.float16),
        "bn.weight": np.zeros(4, np.float32),
        "bn.running_mean": np.zeros(4, np.float32),
        "bn.num_batches_tracked": np.zeros((), np.int64),
    }
    numpy.save_file(arrays, path)
    found = models.load(str(path))
    assert found.shapes == {"conv.weight": (4, 3, 2, 2), "bn.weight": (4,)}
    assert set(found.left_out) == {"bn.running_mean", "bn.num_batches_tracked"}
    path.write_bytes(b"\xff" * 20)
    with pytest.raises(ValueError, match="model must be a readable safetensors file"):
        models.load(str(path))


def test_pytorch_state_dicts(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = torch.nn.Embedding(20, 8)
            self.norm = torch.nn.BatchNorm1d(8)
            self.head = torch.nn.Linear(8, 20, bias=False)
            self.head.weight = self.embedding.weight

    net = Net()
    path = tmp_path / "net.pt"
    expected = {name: tuple(p.shape) for name, p in net.named_parameters()}
    for content in (net.state_dict(), {"epoch": 3, "state_dict": net.state_dict()}):
        torch.save(content, path)
        found = models.load(str(path))
        assert found.shapes == expected
        assert len(found.left_out) == 3
        assert found.outputs == "first"
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match=r"torch.save\(model.state_dict\(\), ...\), got list"):
        models.load(str(path))
    torch.save({"epoch": 3}, path)
    with pytest.raises(ValueError, match="model must hold at least one parameter"):
        models.load(str(path))


class Harmful:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_nothing_in_a_pytorch_file_is_run(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    path, trace = tmp_path / "net.pt", tmp_path / "trace"
    for save in (torch.save, lambda thing, where: where.write_bytes(pickle.dumps(thing, protocol=2))):
        save({"w": Harmful(trace)}, path)
        with pytest.raises(ValueError, match="nothing else is read without running what it holds"):
            models.load(str(path))
    assert not trace.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--model", "resnet-50"), "model must be one of 'resnet50'"),
        (("--model", "resnet-50"), "got 'resnet-50'; did you mean 'resnet50'?"),
        (("--model", "missing.pt"), "model must be a file that exists, or one of 'resnet50'"),
        (("--model", "model.h5"), "model must be a name or a file that ends in .safetensors, .json, .keras"),
        (("--workers", 0), "workers must be a whole number >= 1, got 0"),
        (("--workers-per-node", 3), "workers must be a multiple of workers_per_node = 3, got 64"),
        (("--bandwidth", "fast"), "bandwidth must be a rate above 0 such as 10gbit, 100Mb/s or 1.25GB/s, got 'fast'"),
        (("--bandwidth", "0gbit"), "bandwidth must be a rate above 0"),
        (("--local-bandwidth", "1GB"), "local-bandwidth must be a rate above 0"),
        (("--latency", "50"), "latency must be a time such as 50us, 1.5ms or 0.2s, got '50'"),
        (("--local-latency", "-1us"), "local-latency must be a time"),
        (("--step-time", "1h"), "step-time must be a time such as 50us, 1.5ms or 0.2s, got '1h'"),
        (("--step-time", "0s"), "compute must be in (0, inf), got 0.0"),
        (("--overlap", 2), "overlap must be in [0, 1], got 2.0"),
        (("--fusion-mib", 0), "fusion_nbytes must be a whole number >= 1, got 0"),
        (("--method", "dcg"), "did you mean 'dgc'?"),
        (("--method", "dgc:density=2"), "density must be in (0, 1], got 2"),
        (("--transport", "carrier"), "'carrier' is not one of 'auto', 'gather', 'allreduce'"),
        (("--algorithm", "tree"), "'tree' is not one of 'ring', 'doubling'"),
        (("--calibrate", "--network-only"), "at most one of --calibrate, --rates and --network-only may be given"),
        (("--shapes", __file__), "one of --model and --shapes must be given"),
        (("--rates", "nowhere.json"), "'nowhere.json' does not exist"),
        (("--max-nodes", 0), "0 is not in the range"),
    ],
)
def test_wrong_arguments_are_named(arguments: tuple[object, ...], words: str) -> None:
    result = plan(*JOB, *arguments)
    assert result.exit_code == 2
    assert words in said(result)


@pytest.mark.parametrize("missing", ["workers", "bandwidth", "step-time"])
def test_what_cannot_be_guessed_is_asked_for(missing: str) -> None:
    at = JOB.index(f"--{missing}")
    assert f"Missing option '--{missing}'" in said(plan(*JOB[:at], *JOB[at + 2 :]))
    assert "one of --model and --shapes must be given, got None and None" in said(plan(*JOB[2:]))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1gbit", 125e6),
        ("10 Gb/s", 1.25e9),
        ("100mbit/s", 12.5e6),
        ("1.25GB/s", 1.25e9),
        ("8bps", 1),
        (".5Gbps", 62.5e6),
    ],
)
def test_bandwidths(text: str, value: float) -> None:
    assert units.bandwidth("bandwidth", text) == pytest.approx(value)


@pytest.mark.parametrize(
    "text", ["", "10", "gbit", "1gb", "1e9bit", "-1gbit", "inf bit", "1 B", "1.2.3gbit", "9" * 400 + "bit"]
)
def test_what_is_no_bandwidth(text: str) -> None:
    with pytest.raises(
        ValueError,
        match=re.escape(f"bandwidth must be a rate above 0 such as 10gbit, 100Mb/s or 1.25GB/s, got {text!r}"),
    ):
        units.bandwidth("bandwidth", text)


def test_times_and_rates_are_written_as_people_do() -> None:
    assert [units.seconds("t", text) for text in ("2s", "1.5 ms", "50us", "7ns")] == pytest.approx(
        [2, 1.5e-3, 5e-5, 7e-9]
    )
    assert [units.time_text(t) for t in (12345, 1.234, 0.35, 5e-5)] == ["12,345 s", "1.23 s", "350 ms", "50 us"]
    assert [units.rate_text(r) for r in (1.25e9, 12.5e6, 1e-3)] == ["10 Gb/s", "100 Mb/s", "0.008 b/s"]


def run_without(*modules: str, arguments: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """`python -m horovod_dgc` where these modules are not installed."""
    hide = f"import sys; sys.modules.update(dict.fromkeys({modules!r})); sys.argv[1:] = {list(arguments)!r}; "
    return subprocess.run(
        [sys.executable, "-c", hide + "import runpy; runpy.run_module('horovod_dgc', run_name='__main__')"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(horovod_dgc.__file__).parents[1],
    )


def test_without_matplotlib_only_the_plot_is_missing(tmp_path: Path) -> None:
    run = run_without("matplotlib", "torch", "tensorflow", "keras", arguments=("plan", *JOB))
    assert run.returncode == 0 and "recommended: dgc" in run.stdout, run.stderr
    run = run_without("matplotlib", arguments=("plan", *JOB, "--plot", str(tmp_path / "plan.svg")))
    assert run.returncode == 1
    assert "--plot needs matplotlib: pip install 'horovod_dgc[plan]'" in run.stderr


def test_the_core_of_the_package_needs_none_of_it() -> None:
    code = (
        "import sys, horovod_dgc, horovod_dgc.cost, horovod_dgc.rates; "
        "print(sorted({m.partition('.')[0] for m in sys.modules} & "
        "{'click', 'rich', 'matplotlib', 'torch', 'tensorflow', 'horovod', 'safetensors'}))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                         cwd=Path(horovod_dgc.__file__).parents[1])  # fmt: skip
    assert run.stdout.strip() == "[]"
