"""The CUDA kernels on a GPU, against the C++ core: the same payloads, states and sums, bit for bit."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from horovod_dgc import DGC, _core
from horovod_dgc.methods.base import Plan
from horovod_dgc.torch.backends import Addition, CoreBackend, Inputs, Reduction
from horovod_dgc.torch.kernels import CudaBackend, on_device

CORE = CoreBackend()
VALUES = ("float32", "float16", "bfloat16", "int8", "int4")
INDICES = ("elias-fano", "int32")
FIELDS = ("grad", "residual", "velocity", "weights")


@pytest.fixture(scope="module")
def device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture(scope="module")
def backend(device: torch.device) -> CudaBackend:
    return CudaBackend(device)


class Tensors:
    """The arrays of one step on the host, and a copy of them on the device."""

    def __init__(
        self,
        plan: Plan,
        update: _core.Update,
        device: torch.device,
        seed: int,
        *,
        dtype: torch.dtype = torch.float32,
        momentum: bool = True,
        grad: torch.Tensor | None = None,
        zero_grad: bool = True,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        made = [torch.randn(plan.numel, generator=generator) for _ in FIELDS]
        self.host = dict(zip(FIELDS, made))
        if grad is not None:
            self.host["grad"] = grad.clone()
        for name in ("grad", "weights"):
            self.host[name] = self.host[name].to(dtype)
        self.device = {name: tensor.to(device) for name, tensor in self.host.items()}
        used = [*FIELDS[:2], *(["velocity"] if momentum else []), *(["weights"] if update.weight_decay else [])]
        inputs = Inputs(plan, update, _core.Randomness(0, 0, 0, 0), grad=None, zero_grad=zero_grad)
        self.on_host = replace(inputs, **{name: CORE.view(self.host[name]) for name in used})
        self.on_device = replace(inputs, **{name: self.device[name] for name in used})

    def assert_same(self, what: str) -> None:
        for name in FIELDS:
            assert same(self.device[name], self.host[name]), f"{what}: {name} differs"


def same(device: torch.Tensor, host: torch.Tensor) -> bool:
    flat = [tensor.cpu().contiguous().view(-1).view(torch.uint8) for tensor in (device, host)]
    return torch.equal(*flat)


def check_steps(backend: CudaBackend, every: list[Tensors]) -> None:
    """Propose and commit on both, all tensors in one batch."""
    proposals = backend.propose([t.on_device for t in every])
    expected = CORE.propose([t.on_host for t in every])
    for t, ours, theirs in zip(every, proposals.each, expected.each):
        payload = ours.payload.cpu().numpy()
        what = f"{t.on_host.plan.codec!r} {t.on_host.update.momentum} {t.host['grad'].dtype}"
        t.on_host.plan.codec.validate(payload)
        assert np.array_equal(payload, theirs.payload), f"{what}: another payload"
        if not t.on_host.plan.every_coordinate and theirs.finite:
            assert ours.nonzero() == theirs.nonzero
        t.assert_same(f"{what}: proposing must not write")
    assert proposals.nonfinite.item() == expected.nonfinite
    if expected.nonfinite:
        return
    for t, ours, theirs in zip(every, proposals.each, expected.each):
        masked = torch.empty(t.on_host.plan.numel)
        CORE.masked(theirs, masked)
        dense = torch.full_like(masked, torch.nan, device=backend.device)
        backend.masked(ours, dense)
        # Adding to 0 makes 0 of -0.
        assert torch.equal(dense.cpu(), masked)
    backend.commit([t.on_device for t in every], proposals.each)
    CORE.commit([t.on_host for t in every], expected.each)
    for t in every:
        t.assert_same(f"{t.on_host.plan.codec!r} committed")


def plan_of(numel: int, density: float, **settings: Any) -> Plan:
    return DGC(density=density, **settings).plan((1, numel))


@pytest.mark.parametrize(("values", "indices"), itertools.product(VALUES, INDICES))
def test_a_batch_of_every_update_equals_the_core(
    backend: CudaBackend, device: torch.device, values: str, indices: str
) -> None:
    updates = [
        _core.Update(momentum=0.9),
        _core.Update(unscale=0.5, momentum=0.9, nesterov=True, dampening=0.25, weight_decay=0.01),
        _core.Update(unscale=1 / 3, weight_decay=0.1),
    ]
    dtypes = (torch.float32, torch.float16, torch.bfloat16)
    sizes = (
        (1, 1.0),
        (3, 0.5),
        (257, 1.0),
        (1000, 0.001),
        (8192, 0.25),
        (50_001, 0.01),
        (300_000, 0.001),
        (20_000, 1.0),
    )
    every = []
    for seed, (update, dtype, (numel, density)) in enumerate(itertools.product(updates, dtypes, sizes)):
        plan = plan_of(numel, density, values=values, indices=indices, factor_masking=seed % 3 != 0)
        momentum = update.momentum > 0
        every.append(Tensors(plan, update, device, seed, dtype=dtype, momentum=momentum, zero_grad=seed % 2 == 0))
    check_steps(backend, every)


def hard_gradients(numel: int) -> dict[str, torch.Tensor]:
    noise = torch.randn(numel, generator=torch.Generator().manual_seed(1))
    at = torch.arange(numel)
    return {
        "zeros": torch.zeros(numel),
        "equal": torch.full((numel,), 0.5),
        "signs alternating": torch.where(at % 2 == 0, 0.5, -0.5),
        "few distinct": noise.round(),
        "one large": torch.where(at == numel // 2, 3.0, 0.0),
        "mostly zero": torch.where(at % 97 == 5, noise, torch.zeros(())),
        "clustered": torch.where(at < numel // 100, 100 + noise, 1e-3 * noise),
        "subnormal": noise * 1e-41,
        "huge": noise * 1e37,
        "ascending": noise.abs().sort().values,
        "descending": noise.abs().sort(descending=True).values,
        "one line in a hundred": torch.where(at // 32 % 100 == 7, noise, 1e-6 * noise),
    }


@pytest.mark.parametrize("numel", [1000, 100_000, 3_000_001])
def test_hard_gradients_equal_the_core(backend: CudaBackend, device: torch.device, numel: int) -> None:
    every = []
    for grad, density in itertools.product(hard_gradients(numel).values(), (0.001, 0.03, 0.4)):
        t = Tensors(plan_of(numel, density), _core.Update(), device, 0, momentum=False, grad=grad)
        for tensor in (t.host["residual"], t.device["residual"]):
            tensor.zero_()
        every.append(t)
    check_steps(backend, every)


def test_a_large_tensor_equals_the_core_for_several_steps(backend: CudaBackend, device: torch.device) -> None:
    t = Tensors(plan_of(25_600_000, 0.001), _core.Update(momentum=0.9), device, 1)
    for step in range(3):
        grad = torch.randn(25_600_000, generator=torch.Generator().manual_seed(step))
        t.host["grad"].copy_(grad)
        t.device["grad"].copy_(grad)
        check_steps(backend, [t])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_poisons_its_own_payload(backend: CudaBackend, device: torch.device, bad: float) -> None:
    every = []
    for seed, (values, (numel, density)) in enumerate(
        itertools.product(VALUES, ((9000, 0.1), (100_000, 0.001), (5001, 1.0), (20_000, 1.0)))
    ):
        t = Tensors(plan_of(numel, density, values=values), _core.Update(momentum=0.9), device, seed)
        if seed % 2:
            for tensor in (t.host["grad"], t.device["grad"]):
                tensor[numel - 1 - seed] = bad
        every.append(t)
    check_steps(backend, every)


def test_sums_of_payloads_equal_the_core(backend: CudaBackend, device: torch.device) -> None:
    additions, expected = [], []
    generator = torch.Generator().manual_seed(3)
    for (values, indices), (numel, density), workers in itertools.product(
        itertools.product(VALUES, INDICES), ((1000, 0.01), (200_000, 0.02), (3000, 1.0)), (1, 3, 40)
    ):
        plan = plan_of(numel, density, values=values, indices=indices)
        every = [Tensors(plan, _core.Update(), device, 100 * w + numel, momentum=False).on_host for w in range(workers)]
        rows = torch.stack([torch.from_numpy(p.payload.copy()) for p in CORE.propose(every).each])
        out = torch.randn(numel, generator=generator)
        on_gpu = len(additions) % 2 == 0
        additions.append(Addition(every[0], rows.to(device) if on_gpu else rows, out.to(device), 0.3))
        CORE.decode_add([Addition(every[0], rows, out.numpy(), 0.3)])
        expected.append(out)
    backend.decode_add(additions)
    backend.require_valid()
    for addition, out in zip(additions, expected):
        assert same(addition.out, out), addition.inputs.plan.codec


def test_a_malformed_payload_is_an_error_and_stays_in_bounds(backend: CudaBackend, device: torch.device) -> None:
    plan = plan_of(100_000, 0.001)
    inputs = Tensors(plan, _core.Update(), device, 1).on_host
    for seed in range(20):
        rows = torch.randint(
            0, 256, (2, plan.payload_nbytes), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
        )
        guarded = torch.zeros(100_000 + 128, device=device)
        backend.decode_add([Addition(inputs, rows, guarded[64:-64], 1.0)])
        with pytest.raises(RuntimeError, match="malformed"):
            backend.require_valid()
        assert not guarded[:64].any() and not guarded[-64:].any()
        backend.require_valid()


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_of_reduced_gradients_equals_the_core(
    backend: CudaBackend, device: torch.device, nesterov: bool
) -> None:
    update = _core.Update(momentum=0.9, dampening=0.1, nesterov=nesterov)
    generator = torch.Generator().manual_seed(4)
    ours, theirs, velocities = [], [], []
    for numel, dtype, with_momentum, away in itertools.product(
        (1, 1000, 100_000), (torch.float32, torch.float16), (True, False), (True, False)
    ):
        values = torch.randn(numel, generator=generator).to(dtype)
        velocity = torch.randn(numel, generator=generator) if with_momentum else None
        moved = None if velocity is None else velocity.to(device)
        ours.append(Reduction(values.clone() if away else values.to(device), moved, update, 0.5, 3.0))
        theirs.append(Reduction(values, None if velocity is None else velocity.numpy(), update, 0.5, 3.0))
        velocities.append((moved, velocity))
    for result, expected in zip(backend.finish(ours), CORE.finish(theirs)):
        assert same(result, expected)
    assert all(moved is None or same(moved, velocity) for moved, velocity in velocities)


def test_norms(backend: CudaBackend, device: torch.device) -> None:
    arrays = [torch.randn(n).to(dtype) for n in (1, 1000, 1_000_001) for dtype in (torch.float32, torch.float16)]
    expected = [float(a.double().square().sum()) for a in arrays]
    assert backend.sum_squares([a.to(device) for a in arrays]) == pytest.approx(expected, rel=1e-12)


def test_payloads_come_to_the_host_whole(backend: CudaBackend, device: torch.device) -> None:
    every = [Tensors(plan_of(n, 0.01), _core.Update(momentum=0.9), device, n) for n in (1000, 77_777)]
    proposals = backend.propose([t.on_device for t in every])
    proposals.to_host()
    for ours, theirs in zip(proposals.each, CORE.propose([t.on_host for t in every]).each):
        assert not ours.payload.is_cuda
        assert np.array_equal(ours.payload.numpy(), theirs.payload)
    backend.commit([t.on_device for t in every], proposals.each)
    CORE.commit([t.on_host for t in every], CORE.propose([t.on_host for t in every]).each)
    for t in every:
        t.assert_same("committed after coming to the host")


def test_work_on_several_streams_stays_in_order(backend: CudaBackend, device: torch.device) -> None:
    """Gradients are made late on one stream, proposed on a second, and committed on a third, with memory reused."""
    streams = [torch.cuda.Stream(device) for _ in range(3)]
    t = Tensors(plan_of(2_000_000, 0.001), _core.Update(momentum=0.9), device, 1)
    for step in range(20):
        grad = torch.randn(2_000_000, generator=torch.Generator().manual_seed(step))
        t.host["grad"].copy_(grad)
        pinned = grad.pin_memory()
        torch.cuda.synchronize()
        with torch.cuda.stream(streams[0]):
            torch.cuda._sleep(2_000_000)
            t.device["grad"].copy_(pinned, non_blocking=True)
            place = backend.here()
        with torch.cuda.stream(streams[1]):
            backend.follow([place])
            proposals = backend.propose([t.on_device])
            torch.cuda._sleep(2_000_000)
        with torch.cuda.stream(streams[2]):
            backend.commit([t.on_device], proposals.each)
            payload = on_device([proposals.each[0].payload], device)[0].clone()
        del proposals
        with torch.cuda.stream(streams[1]):
            # Takes the memory that has just been given back, if nothing keeps it.
            for _ in range(8):
                torch.full((1_000_000,), -1, dtype=torch.int32, device=device)
        torch.cuda.synchronize()
        expected = CORE.propose([t.on_host])
        assert np.array_equal(payload.cpu().numpy(), expected.each[0].payload), f"step {step}"
        CORE.commit([t.on_host], expected.each)
        t.assert_same(f"step {step}")


def test_nothing_waits_for_the_device(backend: CudaBackend, device: torch.device) -> None:
    """Proposing, committing and adding up return while the device is still asleep."""
    every = [Tensors(plan_of(n, 0.01), _core.Update(momentum=0.9), device, n) for n in (1000, 400_000)]
    rows = [torch.from_numpy(p.payload.copy()).to(device)[None] for p in CORE.propose([t.on_host for t in every]).each]

    def step() -> None:
        proposals = backend.propose([t.on_device for t in every])
        backend.commit([t.on_device for t in every], proposals.each)
        backend.decode_add([Addition(t.on_device, r, t.device["grad"], 1.0) for t, r in zip(every, rows)])

    step()
    torch.cuda.synchronize()
    torch.cuda._sleep(2_000_000_000)
    asleep = torch.cuda.Event()
    asleep.record()
    step()
    assert not asleep.query(), "a step has waited for the device"
    torch.cuda.synchronize()
