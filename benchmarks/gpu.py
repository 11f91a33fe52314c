"""Compress and decompress on a GPU: the kernels against copies of the bytes they move, casts, top-k and torch code.

Times are the device's, between two events; all operations take turns in random order, each from the same state, and
ratios are medians of the rounds' ratios. Where a device needs less than the processor to start the work, what is
measured is the processor: the table of the model's tensors shows both.

    python benchmarks/gpu.py
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from support import options, report
from support.reference_dgc import ReferenceDGC

from horovod_dgc import DGC, _core, shapes
from horovod_dgc.methods.base import Plan
from horovod_dgc.torch.backends import Addition, Inputs, Reduction, TorchBackend
from horovod_dgc.torch.kernels import CudaBackend
from horovod_dgc.torch.step import COMPANY_NUMEL

MOMENTUM = 0.9
DENSITY = 0.001
METHOD = DGC(density=DENSITY)
UPDATE = _core.Update(momentum=MOMENTUM)
STEPS_BEFORE = 20  # that the state has the proportions of a run under way

# Bytes an element that an operation must move, and so the copy that it is compared with.
MOVED = {"propose": 12, "commit": 24, "propose + commit": 36}
RATIOS = (
    ("propose", "copy of 12 B", "<= 1.5"),
    ("commit", "copy of 24 B", ""),
    ("propose + commit", "copy of 36 B", "<= 1.5"),
    ("propose", "fp16", "<= 1"),
    ("propose + commit + decode, N = 2", "fp16", ""),
    ("plain torch: propose", "propose", ">= 5"),
    ("plain torch: propose + commit", "propose + commit", ">= 5"),
    ("reference DGC compress", "propose + commit", ""),
    ("topk", "propose", ""),
)


class Bench:
    """One tensor on the device, with what is timed."""

    def __init__(self, numel: int, device: torch.device) -> None:
        self.numel, self.device = numel, device
        self.kernels, self.plain = CudaBackend(device), TorchBackend(device)
        self.plan = METHOD.plan((1, numel))
        self.grad, self.residual, self.velocity = (torch.zeros(numel, device=device) for _ in range(3))
        self.inputs = inputs_of(self.plan, self.grad, self.residual, self.velocity, zero_grad=True)
        for _ in range(STEPS_BEFORE):
            self.grad.normal_()
            self.kernels.commit([self.inputs], self.kernels.propose([self.inputs]).each)
        self.grad.normal_()
        self.start = [tensor.clone() for tensor in (self.grad, self.residual, self.velocity)]
        self.proposal = self.kernels.propose([self.inputs]).each
        self.half = torch.empty(numel, dtype=torch.float16, device=device)
        self.payloads = {workers: self.gathered(workers) for workers in (2, 16)}
        self.reference = ReferenceDGC(self.velocity, self.residual, DENSITY, MOMENTUM)
        self.room = torch.empty(2, 18 * numel, dtype=torch.uint8, device=device)

    def gathered(self, workers: int) -> torch.Tensor:
        rows = []
        for _ in range(workers):
            other = torch.randn(self.numel, device=self.device)
            rows.append(self.kernels.propose([inputs_of(self.plan, other, self.residual, None)]).each[0].payload)
        return torch.stack(rows)

    def restore(self) -> None:
        for tensor, start in zip((self.grad, self.residual, self.velocity), self.start):
            tensor.copy_(start)

    def copy(self, moved: int) -> None:
        """As many bytes are read as written."""
        count = moved // 2 * self.numel
        self.room[1, :count].copy_(self.room[0, :count])

    def commit(self) -> None:
        self.kernels.commit([self.inputs], self.proposal)

    def step(self, backend: Any) -> None:
        backend.commit([self.inputs], backend.propose([self.inputs]).each)

    def decode(self, workers: int) -> None:
        self.kernels.decode_add([Addition(self.inputs, self.payloads[workers], self.grad, 1 / workers)])

    def both_ways(self) -> None:
        self.step(self.kernels)
        self.decode(2)

    def fp16(self) -> torch.Tensor:
        return self.grad.to(torch.float16).to(torch.float32)

    def fp16_kept(self) -> None:
        self.half.copy_(self.grad)
        self.grad.copy_(self.half)

    def operations(self) -> dict[str, Callable[[], Any]]:
        copies = {f"copy of {moved} B": lambda moved=moved: self.copy(moved) for moved in sorted(set(MOVED.values()))}
        return {
            **copies,
            "propose": lambda: self.kernels.propose([self.inputs]),
            "commit": self.commit,
            "propose + commit": lambda: self.step(self.kernels),
            "decode, N = 2": lambda: self.decode(2),
            "decode, N = 16": lambda: self.decode(16),
            "propose + commit + decode, N = 2": self.both_ways,
            "fp16": self.fp16,
            "fp16, kept": self.fp16_kept,
            "topk": lambda: torch.topk(self.grad, self.plan.sent),
            "plain torch: propose": lambda: self.plain.propose([self.inputs]),
            "plain torch: propose + commit": lambda: self.step(self.plain),
            "reference DGC compress": lambda: self.reference.compress(self.grad),
        }


def inputs_of(
    plan: Plan,
    grad: torch.Tensor,
    residual: torch.Tensor | None,
    velocity: torch.Tensor | None,
    *,
    zero_grad: bool = False,
) -> Inputs:
    return Inputs(plan, UPDATE, _core.Randomness(0, 0, 0, 0), grad, residual, velocity, zero_grad=zero_grad)


def device_seconds(operation: Callable[[], Any]) -> float:
    """Seconds of the device for what the operation starts."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    # Work that is there already when the first event is reached, so that the processor is ahead of the device.
    torch.cuda._sleep(400_000)
    begin.record()
    result = operation()
    end.record()
    torch.cuda.synchronize()
    del result
    return begin.elapsed_time(end) / 1e3


def measure(
    operations: dict[str, Callable[[], Any]], restore: Callable[[], None], rounds: int
) -> dict[str, list[float]]:
    names = list(operations)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    shuffle = random.Random(0)
    for turn in range(rounds + 2):
        shuffle.shuffle(names)
        for name in names:
            restore()
            elapsed = device_seconds(operations[name])
            if turn > 1:
                seconds[name].append(elapsed)
    return seconds


def single_tensor(numel: int, device: torch.device, rounds: int) -> dict[str, Any]:
    bench = Bench(numel, device)
    seconds = measure(bench.operations(), bench.restore, rounds)
    rows = []
    for name, values in seconds.items():
        low, middle, high = report.quartiles([1e3 * s for s in values])
        moved = int(name.split()[2]) if name.startswith("copy") else MOVED.get(name)
        rate = f"{moved * numel / middle / 1e9:.2f}" if moved else ""
        rows.append([name, f"{middle:.4f}", f"{low:.4f} - {high:.4f}", rate])
    report.table(f"{numel / 1e6:g} M elements, density {DENSITY:g}", ["operation", "ms", "quartiles", "TB/s"], rows)
    ratios = {
        f"{over} / {under}": report.quartiles([a / b for a, b in zip(seconds[over], seconds[under])])
        for over, under, _ in RATIOS
    }
    rows = [
        [f"{over} / {under}", wanted, f"{m:.2f}", f"{low:.2f} - {high:.2f}"]
        for (over, under, wanted), (low, m, high) in zip(RATIOS, ratios.values())
    ]
    report.table("Ratios of times in the same round", ["ratio", "wanted", "median", "quartiles"], rows, text_columns=2)
    milliseconds = {name: report.quartiles([1e3 * s for s in values]) for name, values in seconds.items()}
    return {"numel": numel, "milliseconds": milliseconds, "ratios": ratios}


class ModelBench:
    """ResNet-50's 161 tensors: what a step of the adapter asks of a backend, without the collectives."""

    WORKERS = 2

    def __init__(self, backend: TorchBackend, device: torch.device) -> None:
        self.backend = backend
        self.sparse, self.exempt = [], []
        for shape in shapes.resnet50().values():
            plan = METHOD.plan(shape)
            grad, residual, velocity = (torch.randn(plan.numel, device=device) for _ in range(3))
            exempt = plan.every_coordinate
            inputs = inputs_of(plan, grad, residual, None if exempt else velocity, zero_grad=not exempt)
            (self.exempt if exempt else self.sparse).append((inputs, grad, velocity))
        every = backend.propose([inputs for inputs, *_ in self.sparse]).each
        self.rows = [torch.stack([as_tensor(p.payload)] * self.WORKERS) for p in every]
        self.sums = [torch.randn(grad.numel(), device=device).half() for _, grad, _ in self.exempt]

    def encode(self) -> Any:
        return self.backend.propose([inputs for inputs, *_ in (*self.sparse, *self.exempt)])

    def finish(self, proposals: Any) -> None:
        self.backend.commit([inputs for inputs, *_ in (*self.sparse, *self.exempt)], proposals.each)
        self.backend.decode_add(
            [Addition(inputs, rows, grad, 0.5) for (inputs, grad, _), rows in zip(self.sparse, self.rows)]
        )
        self.backend.finish(
            [Reduction(total, velocity, UPDATE, 0.5, 1.0) for (_, _, velocity), total in zip(self.exempt, self.sums)]
        )

    def step(self) -> None:
        self.finish(self.encode())

    def casts(self) -> None:
        for _, grad, _ in (*self.sparse, *self.exempt):
            grad.to(torch.float16).to(torch.float32)


def as_tensor(payload: Any) -> torch.Tensor:
    return payload if isinstance(payload, torch.Tensor) else torch.from_numpy(payload)


def model(device: torch.device, rounds: int) -> dict[str, Any]:
    ours, plain = (ModelBench(make(device), device) for make in (CudaBackend, TorchBackend))
    proposals = ours.encode()
    operations: dict[str, Callable[[], Any]] = {
        "encode": ours.encode,
        "commit, decode and momentum": lambda: ours.finish(proposals),
        "whole step": ours.step,
        "plain torch: whole step": plain.step,
        "fp16": ours.casts,
    }
    found = {}
    rows = []
    for name, operation in operations.items():
        device_times, host_times = [], []
        for turn in range(rounds + 2):
            # Long enough for the processor to start all of it meanwhile.
            torch.cuda.synchronize()
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            torch.cuda._sleep(20_000_000)
            began = time.perf_counter()
            begin.record()
            result = operation()
            end.record()
            host = time.perf_counter() - began
            torch.cuda.synchronize()
            del result
            if turn > 1:
                device_times.append(begin.elapsed_time(end))
                host_times.append(1e3 * host)
        found[name] = {"device": statistics.median(device_times), "host": statistics.median(host_times)}
        rows.append([name, f"{found[name]['device']:.3f}", f"{found[name]['host']:.3f}"])
    report.table("ResNet-50, 161 tensors, two workers' payloads", ["operation", "device ms", "host ms"], rows)
    return found


def overlap(device: torch.device, rounds: int) -> dict[str, dict[str, float]] | None:
    """Backward of ResNet-50 alone, with encoding as gradients arrive, and with encoding at the end."""
    try:
        from torchvision.models import resnet50
    except ImportError:
        report.CONSOLE.print("no torchvision here: no backward pass of ResNet-50")
        return None
    network = resnet50().to(device)
    backend = CudaBackend(device)
    images = torch.randn(64, 3, 224, 224, device=device)
    labels = torch.randint(0, 1000, (64,), device=device)
    state = {}
    for parameter in network.parameters():
        plan = METHOD.plan(tuple(parameter.shape))
        state[parameter] = plan, *(torch.zeros(plan.numel, device=device) for _ in range(2))
    waiting: list[torch.Tensor] = []
    waiting_numel, host = 0, 0.0
    encoded: list[Any] = []

    def encode() -> None:
        nonlocal waiting_numel, host
        began = time.perf_counter()
        waiting_numel = 0
        every = []
        for parameter in waiting:
            plan, residual, velocity = state[parameter]
            velocity = None if plan.every_coordinate else velocity
            every.append(inputs_of(plan, parameter.grad.contiguous().view(-1), residual, velocity))
        encoded.append(backend.propose(every))
        waiting.clear()
        host += time.perf_counter() - began

    def arrived(parameter: torch.Tensor) -> None:
        nonlocal waiting_numel
        waiting.append(parameter)
        waiting_numel += parameter.numel()
        if mode == "as they arrive" and waiting_numel >= COMPANY_NUMEL:
            encode()

    for parameter in network.parameters():
        parameter.register_post_accumulate_grad_hook(arrived)
    modes = ("backward alone", "as they arrive", "at the end")
    times: dict[str, list[float]] = {mode: [] for mode in modes}
    hosts: dict[str, list[float]] = {mode: [] for mode in modes}
    for turn in range(rounds + 3):
        for mode in modes:
            waiting.clear()
            encoded.clear()
            waiting_numel, host = 0, 0.0
            network.zero_grad()
            with torch.autocast("cuda", torch.bfloat16):
                loss = torch.nn.functional.cross_entropy(network(images), labels)
            torch.cuda.synchronize()
            began = time.perf_counter()
            loss.backward()
            if mode != "backward alone" and waiting:
                encode()
            torch.cuda.synchronize()
            if turn > 2:
                times[mode].append(1e3 * (time.perf_counter() - began))
                hosts[mode].append(1e3 * host)
    found = {mode: {"whole": statistics.median(times[mode]), "host": statistics.median(hosts[mode])} for mode in modes}
    rows = [[mode, f"{each['whole']:.2f}", f"{each['host']:.2f}"] for mode, each in found.items()]
    columns = ["encoding", "ms", "of which the processor spends on it"]
    report.table("Backward of ResNet-50, 64 images, bfloat16", columns, rows)
    return found


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--millions", multiple=True, type=click.FloatRange(0.01), default=(1, 25.6, 100), show_default=True,
              help="Elements of the tensor, in millions; may be given several times.")  # fmt: skip
@click.option("--rounds", type=click.IntRange(1), default=31, show_default=True, help="Rounds that count.")
@options.smallest(millions=(0.01,), rounds=1)
@report.json_option
def main(millions: tuple[float, ...], rounds: int, json_path: Path | None) -> None:
    if not torch.cuda.is_available():
        report.CONSOLE.print("There is no GPU here: nothing to measure.")
        return
    device = torch.device("cuda", torch.cuda.current_device())
    name = torch.cuda.get_device_name(device)
    report.CONSOLE.print(f"{name}, torch {torch.__version__}, CUDA {torch.version.cuda}", highlight=False)
    found = {
        "device": name,
        "torch": torch.__version__,
        "single": [single_tensor(round(1e6 * m), device, rounds) for m in millions],
        "resnet50": model(device, rounds),
        "backward": overlap(device, rounds),
    }
    report.write_json(json_path, found)


if __name__ == "__main__":
    main()
