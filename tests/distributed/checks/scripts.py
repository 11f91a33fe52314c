"""What training scripts do besides ``backward()`` and ``step()``: as without compression, or said; never silent."""

from __future__ import annotations

import copy
import functools
import itertools
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import horovod.torch as hvd
import torch
from rank import LONG, raises
from torch import nn

from checks.common import (
    assert_ranks_identical,
    assert_same_trajectory,
    batch,
    compressed,
    distribute,
    small_model,
    state_digest,
    train,
    vector,
)
from horovod_dgc import BF16, DGC, FP16, QSGD, Method, PowerSGD, RandomK, SignSGD, TernGrad
from horovod_dgc.torch import Compression

EXACT = DGC(density=1.0, values="float32")
SPARSE = DGC(density=0.05)
MOMENTUM: dict[str, Any] = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}
Script = Callable[[nn.Module, Any, int], None]


def loss_of(model: nn.Module, step: int) -> torch.Tensor:
    images, labels = batch(step)
    return nn.functional.cross_entropy(model(images), labels)


def trajectory(
    method: Method | None,
    script: Script,
    build: Callable[[nn.Module], torch.optim.Optimizer] | None = None,
    steps: int = 8,
    **options: Any,
) -> list[torch.Tensor]:
    """The parameters after each step of the script; without compression where there is no method."""
    model = small_model()
    optimizer: Any = build(model) if build else torch.optim.SGD(model.parameters(), **MOMENTUM)
    if method is None:
        optimizer = distribute(model, optimizer, **options)
    else:
        optimizer, _ = compressed(method, model, optimizer, settings={}, **options)
    found = []
    for step in range(steps):
        script(model, optimizer, step)
        found.append(vector(model.parameters()))
    return found


def same_as_dense(script: Script, build: Any = None, method: Method = EXACT, **options: Any) -> None:
    assert_same_trajectory(*(trajectory(each, script, build, **options) for each in (method, None)))


def plain(model: nn.Module, optimizer: Any, step: int) -> None:
    optimizer.zero_grad()
    loss_of(model, step).backward()
    optimizer.step()


def clipping(model: nn.Module, optimizer: Any, step: int) -> None:
    """Horovod's documented recipe."""
    optimizer.zero_grad()
    loss_of(model, step).backward()
    optimizer.synchronize()
    nn.utils.clip_grad_norm_(model.parameters(), 0.3)
    with optimizer.skip_synchronize():
        optimizer.step()


def stepping_twice(model: nn.Module, optimizer: Any, step: int) -> None:
    plain(model, optimizer, step)
    optimizer.step()


def applying_twice(model: nn.Module, optimizer: Any, step: int) -> None:
    plain(model, optimizer, step)
    with optimizer.skip_synchronize():
        optimizer.step()


def never_zeroing(model: nn.Module, optimizer: Any, step: int) -> None:
    loss_of(model, step).backward()
    optimizer.step()


def zeroing_in_place(model: nn.Module, optimizer: Any, step: int) -> None:
    for p in model.parameters():
        if p.grad is not None:
            p.grad.zero_()
    loss_of(model, step).backward()
    optimizer.step()


def probing(model: nn.Module, optimizer: Any, step: int) -> None:
    """Sharpness-aware minimisation: the gradient at the weights that the gradient points to."""
    optimizer.zero_grad()
    loss_of(model, step).backward()
    optimizer.synchronize()
    away = [0.05 * p.grad.clone() for p in model.parameters()]
    with torch.no_grad():
        for p, by in zip(model.parameters(), away):
            p.add_(by)
    optimizer.zero_grad()
    loss_of(model, step).backward()
    optimizer.synchronize()
    with torch.no_grad():
        for p, by in zip(model.parameters(), away):
            p.sub_(by)
    with optimizer.skip_synchronize():
        optimizer.step()


def sometimes_nothing(model: nn.Module, optimizer: Any, step: int) -> None:
    """A rank without a batch steps all the same."""
    optimizer.zero_grad()
    if step % 2 == hvd.rank() % 2:
        loss_of(model, step).backward()
    optimizer.step()


def freezing(model: nn.Module, optimizer: Any, step: int) -> None:
    model[4].weight.requires_grad_(not 2 <= step < 5)
    plain(model, optimizer, step)


def check_what_a_script_does_with_gradients_is_as_dense() -> None:
    for script in (clipping, stepping_twice, applying_twice, never_zeroing, zeroing_in_place, probing):
        same_as_dense(script)
    same_as_dense(clipping, lambda model: torch.optim.SGD(model.parameters(), nesterov=True, **MOMENTUM))
    same_as_dense(clipping, lambda model: torch.optim.Adam(model.parameters(), lr=0.01))
    same_as_dense(clipping, lambda model: torch.optim.SGD(model.parameters(), **{**MOMENTUM, "lr": 0.02}), op=hvd.Sum)
    same_as_dense(sometimes_nothing)
    same_as_dense(freezing)


@contextmanager
def said(*words: str, times: int = 1) -> Iterator[None]:
    """This rank is told once in this context, with all of these words; or never, without any."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    # Horovod has a word of its own on scripts that synchronize twice.
    messages = [str(w.message) for w in caught if not str(w.message).startswith("optimizer.step() called")]
    # At a line of the script's own.
    assert all(Path(w.filename).parent == Path(__file__).parent for w in caught if str(w.message) in messages)
    assert len(messages) == (times if words else 0), messages
    assert all(word in message for word in words for message in messages), messages


def check_what_cannot_be_as_dense_is_said_once() -> None:
    """Sparsified gradients hold momentum, and what has waited."""
    for script, words in (
        (plain, ()),
        (zeroing_in_place, ()),
        (sometimes_nothing, ()),
        (clipping, ("weight", "changed between synchronize() and step()", "clip_norm")),
        (stepping_twice, ("weight", "exchanged again", "zero_grad()")),
        (never_zeroing, ("weight", "exchanged again", "zero_grad()")),
        (probing, ("weight", "step() has not applied them", "requires_grad_(False)")),
    ):
        with said(*words):
            trajectory(SPARSE, script)
    # What is sent whole is the mean itself, under Adam as well; a gradient that is skipped is none.
    for method, build in ((SPARSE, torch.optim.SGD), (SPARSE, torch.optim.Adam), (EXACT, torch.optim.Adam)):
        with said():
            trajectory(method, plain, lambda model, build=build: build(model.parameters(), lr=0.01))


def check_changes_under_way_are_refused() -> None:
    for method in (EXACT, SPARSE):
        model = small_model()
        optimizer, _ = compressed(method, model, torch.optim.SGD(model.parameters(), **MOMENTUM), settings={})
        loss_of(model, 0).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        with raises(RuntimeError, "changed after backward() and before synchronize()", "optimizer.synchronize()"):
            optimizer.step()


def check_what_is_not_exchanged_is_not_applied() -> None:
    for closure in (False, True):
        model = small_model()
        optimizer, _ = compressed(SPARSE, model, torch.optim.SGD(model.parameters(), **MOMENTUM), settings={})
        plain(model, optimizer, 0)
        optimizer.zero_grad()
        with raises(RuntimeError, "exchange is not finished", "optimizer.synchronize()"):
            if closure:
                optimizer.step(functools.partial(lambda model: loss_of(model, 1).backward(), model))
            else:
                loss_of(model, 1).backward()
                with optimizer.skip_synchronize():
                    optimizer.step()
        optimizer.synchronize()


def check_an_exception_in_step_leaves_the_users_values() -> None:
    """The groups and the state show them; what a schedule writes then counts; nothing has been applied."""

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    def script(where: str) -> Script:
        def run(model: nn.Module, optimizer: Any, step: int) -> None:
            optimizer.zero_grad()
            loss_of(model, step).backward()
            if step != 3:
                optimizer.step()
                return
            hook = optimizer.register_step_pre_hook(fail) if where == "hook" else None
            with raises(KeyboardInterrupt):
                optimizer.step(fail if where == "closure" else None)
            if hook:
                hook.remove()
                optimizer.synchronize()
            for group in (*optimizer.param_groups, *optimizer.state_dict()["param_groups"]):
                assert (group["momentum"], group["weight_decay"]) == (0.9, 0.01)
            for group in optimizer.param_groups:
                group["momentum"] = 0.5

        return run

    for where in ("hook", "closure"):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*skip_synchronize.*")
            same_as_dense(script(where))


def check_a_closure_sees_the_users_values() -> None:
    seen = []
    model = small_model()
    optimizer, _ = compressed(EXACT, model, torch.optim.SGD(model.parameters(), **MOMENTUM), settings={})
    for step in range(2):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        assert optimizer.step(lambda: seen.append(optimizer.param_groups[0]["momentum"]) or 7) == 7
    assert seen == [0.9, 0.9]


class OwnStep(torch.optim.SGD):
    """Decoupled weight decay, and steps of a length that follows from gradient and weights, as in LARS."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                p.mul_(1 - group["lr"] * group["weight_decay"])
                trust = 0.1 * (1 + p.norm()) / (1 + p.grad.norm())
                buffer = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
                p.sub_(buffer.mul_(group["momentum"]).add_(p.grad * trust), alpha=group["lr"])


class Centralised(torch.optim.SGD):
    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None and p.dim() > 1:
                    p.grad.sub_(p.grad.mean(dim=tuple(range(1, p.dim())), keepdim=True))
        return super().step(closure)


class Renamed(torch.optim.SGD):
    """Its arithmetic is that of SGD."""


def check_subclasses_of_sgd() -> None:
    for kind in (OwnStep, Centralised):
        with said(kind.__name__, "step() of its own", "without momentum correction"):
            trajectory(EXACT, plain, lambda model, kind=kind: kind(model.parameters(), **MOMENTUM), steps=1)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*step.. of its own.*")
            same_as_dense(plain, lambda model, kind=kind: kind(model.parameters(), **MOMENTUM))
    with said():
        same_as_dense(plain, lambda model: Renamed(model.parameters(), **MOMENTUM))
    model = small_model()
    with raises(ValueError, "optimizer must be the one", "about to wrap", "first"):
        wrapped = distribute(model, torch.optim.SGD(model.parameters(), **MOMENTUM))
        Compression(SPARSE, wrapped, model)
    with raises(ValueError, "grad_scaler must be", "GradScaler"):
        base = torch.optim.SGD(model.parameters(), **MOMENTUM)
        Compression(SPARSE, base, model, grad_scaler=torch.amp.GradScaler)
    compression = Compression(SPARSE, Renamed(model.parameters(), **MOMENTUM), model.named_parameters())
    distribute(model, torch.optim.Adam(model.parameters()), compression)
    with raises(ValueError, "optimizer must be the one", "Adam", "Renamed"):
        loss_of(model, 0).backward()


def check_every_optimizer_of_torch() -> None:
    """At density 1 each is what it is without compression."""
    # Those that need sparse or two-dimensional parameters, or a closure.
    left_out = ("LBFGS", "SparseAdam", "Muon", "Optimizer")
    kinds = [k for n, k in vars(torch.optim).items() if isinstance(k, type) and n not in left_out]
    for kind in kinds:
        if issubclass(kind, torch.optim.Optimizer):
            ours, dense = (
                trajectory(each, plain, lambda model, kind=kind: kind(model.parameters(), lr=0.01), steps=4)
                for each in (EXACT, None)
            )
            error = max(((a - b).abs() / (1 + b.abs())).max().item() for a, b in zip(ours, dense))
            assert error < 2e-5, f"{kind.__name__}: {error}"


def check_loaded_momentum_counts() -> None:
    """In the middle of a run the optimizer's loaded buffers take the place of the velocity, at any density."""
    for op in (hvd.Average, hvd.Sum):
        runs = []
        for method in (EXACT, None):
            model = small_model()
            optimizer: Any = torch.optim.SGD(model.parameters(), **{**MOMENTUM, "lr": 0.02})
            if method is None:
                optimizer = distribute(model, optimizer, op=op)
            else:
                optimizer, _ = compressed(method, model, optimizer, settings={}, op=op)
            train(model, optimizer, steps=3)
            generator = torch.Generator().manual_seed(5)
            state = optimizer.state_dict()
            state["state"] = {
                i: {"momentum_buffer": torch.randn(p.shape, generator=generator).to(p.device)}
                for i, p in enumerate(model.parameters())
            }
            optimizer.load_state_dict(state)
            runs.append(train(model, optimizer))
        assert_same_trajectory(*runs)
    model = small_model()
    optimizer, compression = compressed(SPARSE, model, torch.optim.SGD(model.parameters(), **MOMENTUM), settings={})
    train(model, optimizer, steps=3)
    for p in model.parameters():
        optimizer.state[p]["momentum_buffer"] = torch.full_like(p, 1e6)
    train(model, optimizer, steps=1)
    assert not any("momentum_buffer" in state for state in optimizer.state.values())
    assert all((t.velocity != 0).any() and t.velocity.abs().max() > 8e5 for t in compression._tensors)


def check_momentum_through_zero_and_rate_through_zero() -> None:
    off_and_on = [0.9] * 3 + [0.0] * 3 + [0.9] * 3
    for rates, momenta in (
        ([0.05] * 9, off_and_on),
        ([0.05] * 9, [0.0] * 4 + [0.9] * 5),
        ([0.0, 0.0, *[0.05] * 3, 0.0, *[0.05] * 3], [0.9] * 9),
        ([0.05] * 4 + [0.0] * 5, off_and_on),
    ):

        def script(model: nn.Module, optimizer: Any, step: int, plan: Any = (rates, momenta)) -> None:
            for group in optimizer.param_groups:
                group["lr"], group["momentum"] = plan[0][step], plan[1][step]
            plain(model, optimizer, step)

        for settings in ({"dampening": 0.3}, {"nesterov": True}):

            def build(model: nn.Module, settings: Any = settings) -> torch.optim.Optimizer:
                return torch.optim.SGD(model.parameters(), **MOMENTUM, **settings)

            same_as_dense(script, build, steps=9)
    # At 0 a sparsified tensor's velocity is left alone, too.
    model = small_model()
    optimizer, compression = compressed(SPARSE, model, torch.optim.SGD(model.parameters(), **MOMENTUM), settings={})
    train(model, optimizer, steps=3)
    optimizer.param_groups[0]["momentum"] = 0.0
    before = [t.velocity.clone() for t in compression._tensors]
    train(model, optimizer, steps=2)
    assert all(torch.equal(a, t.velocity) for a, t in zip(before, compression._tensors))


def check_from_all_to_few_and_back() -> None:
    """A schedule that leaves density 1 takes the momentum along, and keeps ranks identical when it comes back."""
    method = DGC(values="float32", factor_masking=False, warmup=lambda step: 0.3 if 3 <= step < 6 else 1.0)
    model = small_model()
    optimizer, compression = compressed(method, model, torch.optim.SGD(model.parameters(), **MOMENTUM), settings={})
    ours = train(model, optimizer, steps=3)
    assert_same_trajectory(ours, trajectory(None, plain, steps=3), tolerance=1e-5)
    train(model, optimizer, steps=6)
    assert_ranks_identical(model, "back at density 1")
    assert compression.stats().total.residual_norm == 0


def check_density_1_is_resumed_bit_for_bit() -> None:
    """Also from a state whose velocities were each worker's own, as one of lower density has left them."""

    def made() -> tuple[nn.Module, Any, Compression]:
        model = small_model()
        base = torch.optim.SGD(model.parameters(), **MOMENTUM)
        return model, *compressed(EXACT, model, base, settings={"transport": "gather"})

    for own in (False, True):
        model, optimizer, compression = made()
        train(model, optimizer, steps=4)
        state, weights = copy.deepcopy(compression.state_dict()), copy.deepcopy(model.state_dict())
        if own:
            for entry in state["tensors"].values():
                if entry["velocity"].dim() > 1:
                    entry["velocity"] *= 0 if hvd.rank() else hvd.size()
        going_on = train(model, optimizer, steps=4)
        again, optimizer, compression = made()
        again.load_state_dict(weights)
        compression.load_state_dict(state)
        resumed = train(again, optimizer, steps=4)
        assert_ranks_identical(again, "resumed")
        if not own:
            assert all(torch.equal(a, b) for a, b in zip(going_on, resumed))


def check_two_optimizers_in_flight() -> None:
    """Over one model, with one backward pass; each names its collectives after its own parameters."""
    for second in (lambda ps: torch.optim.SGD(ps, **MOMENTUM), lambda ps: torch.optim.Adam(ps, lr=0.01)):
        for transport in ("gather", "allreduce", "auto"):
            runs = []
            for method in (EXACT, None):
                model = small_model()
                named = list(model.named_parameters())
                optimizers = []
                for part, build in ((named[:3], lambda ps: torch.optim.SGD(ps, **MOMENTUM)), (named[3:], second)):
                    optimizer = build([p for _, p in part])
                    compression = hvd.Compression.none
                    if method:
                        compression = Compression(method, optimizer, part, transport=transport)
                    optimizers.append(hvd.DistributedOptimizer(optimizer, part, compression))
                found = []
                for step in range(6):
                    for optimizer in optimizers:
                        optimizer.zero_grad()
                    loss_of(model, step).backward()
                    for optimizer in optimizers if hvd.rank() else optimizers[::-1]:
                        optimizer.step()
                    found.append(vector(model.parameters()))
                runs.append(found)
            assert_same_trajectory(*runs)


def pair(methods: tuple[Method, Method], **settings: Any) -> list[tuple[nn.Module, Any, Compression]]:
    """Two models that differ in their parameters' names alone, as an actor and a critic may."""
    made = []
    for name, method in zip(("actor", "critic"), methods):
        model = nn.ModuleDict({name: nn.Linear(20, 10)})
        with torch.no_grad():
            for p in model.parameters():
                p.fill_(0.1)
        base = torch.optim.SGD(model.parameters(), **MOMENTUM)
        optimizer, compression = compressed(method, model, base, settings=settings)
        made.append((model[name], optimizer, compression))
    return made


def check_ranks_may_come_to_their_optimizers_in_any_order() -> None:
    """Backward passes and steps of two models in another order on every other rank."""
    for methods, transport in (
        ((EXACT, EXACT), "gather"),
        ((SPARSE, FP16()), "auto"),
        ((DGC(density=0.1, clip_norm=1.0), SPARSE), "allreduce"),
        ((SPARSE, SPARSE), "sparse-allreduce"),
        ((TernGrad(), PowerSGD()), "auto"),
    ):
        made = pair(methods, transport=transport)
        for step in range(4):
            order = made if (hvd.rank() + step) % 2 else made[::-1]
            for model, optimizer, _ in order:
                optimizer.zero_grad()
                torch.manual_seed(10 * step + hvd.rank())
                model(torch.randn(4, 20)).square().mean().backward()
            for _, optimizer, _ in order[::-1] if step % 3 else order:
                optimizer.step()
        for model, _, compression in made:
            assert compression.stats().total.steps == 4
            assert_ranks_identical(model, f"{methods}")


def check_one_optimizers_overflow_is_not_anothers() -> None:
    made = pair((SPARSE, SPARSE))
    for step in range(3):
        for number, (model, optimizer, _) in enumerate(made):
            optimizer.zero_grad()
            loss = model(torch.ones(4, 20)).square().mean()
            (loss * (math.inf if step == 1 and number == 0 and hvd.rank() == 1 else 1.0)).backward()
        before = [state_digest(compression) for _, _, compression in made]
        for number, (_, optimizer, compression) in enumerate(made):
            optimizer.synchronize()
            assert (before[number] == state_digest(compression)) == (step == 1 and number == 0)
            if step == 1 and number == 0:
                optimizer._synchronized = False
            else:
                with optimizer.skip_synchronize():
                    optimizer.step()
    assert [compression.stats().total.skipped for _, _, compression in made] == [1, 0]


def check_different_configurations_in_different_orders() -> None:
    """Found out when the last rank has come to both."""
    made = pair((DGC(density=0.05 + 0.01 * min(hvd.rank(), 1)), SPARSE))
    first, second = made if hvd.rank() else made[::-1]
    first[0](torch.ones(4, 20)).sum().backward()
    with raises(ValueError, "configured differently", "density=0.05", "density=0.06"):
        second[0](torch.ones(4, 20)).sum().backward()


class Given(nn.Module):
    """Two tensors whose gradients are what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.zeros(30, 20)), nn.Parameter(torch.zeros(500))

    def backward(self, gradients: list[torch.Tensor]) -> None:
        for p, g in zip(self.parameters(), gradients):
            p.grad = None
            (p * g).sum().backward()


def check_real_valued_gradients_are_not_lost() -> None:
    """applied + waiting = fed, relative to what was fed, for gradients of every size that float32 can add up."""
    exempt = ("float32", "float16", "bfloat16", "int8", "int4")
    methods: list[Method] = [DGC(density=0.1, exempt_values=values) for values in exempt]
    methods += [FP16(error_feedback=True), BF16(error_feedback=True), RandomK(density=0.3, values="float16")]
    for method, transport in itertools.product(methods, ("auto", "allreduce")):
        for size in (1e-6, 1.0, 3e4, 1e30) if LONG else (1e-6, 3e4):
            model = Given()
            optimizer, compression = compressed(
                method, model, torch.optim.SGD(model.parameters(), lr=1.0), settings={"transport": transport}
            )
            steps = 6
            fed = [torch.zeros(p.shape, dtype=torch.float64) for p in model.parameters()]
            applied = [torch.zeros_like(f) for f in fed]
            for step in range(steps):
                generator = torch.Generator().manual_seed(100 * step + hvd.rank())
                gradients = [size * torch.randn(p.shape, generator=generator) for p in model.parameters()]
                model.backward(gradients)
                optimizer.synchronize()
                for f, g, a, p in zip(fed, gradients, applied, model.parameters()):
                    f += g
                    a += p.grad
                with optimizer.skip_synchronize():
                    optimizer.step()
            waiting = {t.name: t.residual.double() for t in compression._tensors}
            for f, a, (name, _) in zip(fed, applied, model.named_parameters()):
                want = hvd.allreduce(f, name=f"fed.{name}").reshape(-1)
                held = hvd.allreduce(waiting[name].clone(), name=f"waiting.{name}")
                lost = ((a.reshape(-1) + held - want).abs().max() / want.abs().max()).item()
                assert lost < 2e-6, f"{method} by {transport}, {size:g}, {name}: {lost} lost"
            assert compression.stats().total.skipped == 0


def check_no_sum_of_finite_gradients_is_infinite() -> None:
    """What every rank has, at the edge of float16, is what the mean is."""
    for method, transport in itertools.product(
        (
            DGC(density=1.0),
            FP16(),
            FP16(error_feedback=True),
            BF16(),
            RandomK(density=1.0, values="float16", error_feedback=False),
        ),
        ("auto", "gather", "allreduce"),
    ):
        for size in (6e4, 65504.0):
            model = Given()
            optimizer, _ = compressed(
                method, model, torch.optim.SGD(model.parameters(), lr=1.0), settings={"transport": transport}
            )
            model.backward([torch.full_like(p, size) for p in model.parameters()])
            optimizer.step()
            for p in model.parameters():
                assert torch.allclose(p, torch.full_like(p, -size), rtol=4e-3), f"{method} {transport}: {p}"


def check_what_a_half_gradient_cannot_hold_waits() -> None:
    """What has waited may be more than any gradient of a model in float16."""
    method = DGC(density=0.5, values="float32", momentum_correction=False)
    for op in (hvd.Average, hvd.Sum):
        model = Given().half()
        optimizer, compression = compressed(
            method, model, torch.optim.SGD(model.parameters(), lr=2.0**-20), settings={}, op=op
        )
        share = 1.0 if op == hvd.Average else 1.0 / hvd.size()
        fed, applied = 0.0, torch.zeros(600, dtype=torch.float64)
        for size in (0.0, 4e4, 4e4, 6e4, 0.0, 0.0, 0.0):
            # The half that is not sent waits, and has grown to more than a half can hold.
            model.backward([torch.full_like(p, size * share) for p in model.parameters()])
            optimizer.synchronize()
            assert all(torch.isfinite(p.grad).all() for p in model.parameters()), f"{op}: {size}"
            fed += float(torch.tensor(size * share).half()) * (1.0 if op == hvd.Average else hvd.size())
            applied += model.weight.grad.double().reshape(-1)
            with optimizer.skip_synchronize():
                optimizer.step()
        residual = next(t.residual for t in compression._tensors if t.name == "weight").double()
        waiting = hvd.allreduce(residual, name="half", op=op)
        assert ((applied + waiting - fed).abs() <= 1e-3 * fed).all(), f"{op}: {applied + waiting - fed}"


def check_default_dtypes() -> None:
    methods: tuple[Method, ...] = (EXACT, DGC(density=0.1, clip_norm=1.0), PowerSGD(), SignSGD())
    methods += (SPARSE, QSGD(), TernGrad(), FP16()) if LONG else ()
    own = torch.get_default_dtype()
    dtypes, transports = (torch.float64, torch.float16, torch.bfloat16), ("auto", "allreduce", "sparse-allreduce")
    for dtype, transport in itertools.product(dtypes, transports):
        for method in methods:
            model = small_model().float()
            try:
                torch.set_default_dtype(dtype)
                base = torch.optim.SGD(model.parameters(), **MOMENTUM)
                optimizer, compression = compressed(method, model, base, settings={"transport": transport})
                for step in range(2):
                    optimizer.zero_grad()
                    images, labels = batch(step)
                    nn.functional.cross_entropy(model(images.float()), labels).backward()
                    optimizer.step()
                compression.stats()
                compression.load_state_dict(compression.state_dict())
            finally:
                torch.set_default_dtype(own)
            assert_ranks_identical(model, f"{dtype} {method} {transport}")


def check_a_scaler_in_the_wrong_order_is_refused() -> None:
    for mode in ("recipe", "plain", "late", "unknown"):
        model = small_model()
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        base = torch.optim.SGD(model.parameters(), **MOMENTUM)
        settings = {} if mode == "unknown" else {"grad_scaler": scaler}
        optimizer, _ = compressed(SPARSE, model, base, settings=settings)
        scaler.scale(loss_of(model, 0)).backward()
        if mode == "plain":
            with raises(RuntimeError, "before the gradients had been exchanged", "optimizer.synchronize()"):
                scaler.step(optimizer)
            continue
        if mode == "late":
            scaler.unscale_(optimizer)
            with raises(RuntimeError, "before the gradients had been exchanged", "optimizer.synchronize()"):
                optimizer.synchronize()
            continue
        optimizer.synchronize()
        scaler.unscale_(optimizer)
        with optimizer.skip_synchronize():
            if mode == "unknown":
                with raises(ValueError, "grad_scaler", "None", "grad_scaler=scaler"):
                    scaler.step(optimizer)
            else:
                scaler.step(optimizer)
        scaler.update()


def check_a_scaled_loss_with_clipping_is_as_dense() -> None:
    for fused in (False, True):
        runs = []
        for method in (EXACT, None):
            model = small_model()
            scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
            base = torch.optim.SGD(model.parameters(), fused=fused, **MOMENTUM)
            if method:
                optimizer, _ = compressed(method, model, base, settings={"grad_scaler": scaler})
            else:
                optimizer = distribute(model, base)
            found = []
            for step in range(6):
                optimizer.zero_grad()
                scaler.scale(loss_of(model, step)).backward()
                optimizer.synchronize()
                if not fused:
                    scaler.unscale_(optimizer)
                    nn.utils.clip_grad_norm_(model.parameters(), 0.3)
                with optimizer.skip_synchronize():
                    scaler.step(optimizer)
                scaler.update()
                found.append(vector(model.parameters()))
            runs.append(found)
        assert_same_trajectory(*runs)


def check_layers_unfrozen_after_wrapping() -> None:
    """Horovod does not reduce them: they go on alone, with momentum and weight decay, and it is said."""

    def script(model: nn.Module, optimizer: Any, step: int) -> None:
        model[4].weight.requires_grad_(step >= 2)
        plain(model, optimizer, step)

    def frozen(model: nn.Module) -> torch.optim.Optimizer:
        model[4].weight.requires_grad_(False)
        return torch.optim.SGD(model.parameters(), **MOMENTUM)

    with said("4.weight", "which required none", "does not reduce"):
        ours = trajectory(EXACT, script, frozen)
    assert_same_trajectory(ours, trajectory(None, script, frozen))
    with said("4.weight", "does not reduce"):
        trajectory(SPARSE, script, frozen)


def check_a_model_in_the_place_of_its_names() -> None:
    for method in (EXACT, SPARSE):
        runs = []
        for whole in (False, True):
            model = small_model()
            base = torch.optim.SGD(model.parameters(), **MOMENTUM)
            compression = Compression(method, base, model if whole else model.named_parameters())
            optimizer = distribute(model, base, compression)
            runs.append(train(model, optimizer, steps=4))
        # Of three summands, the rounding of an allreduce depends on what Horovod happens to fuse.
        for by_name, by_model in zip(*runs):
            torch.testing.assert_close(by_model, by_name, rtol=1e-5, atol=1e-6)


def check_lazy_modules() -> None:
    """Compression may be made before the model has its shapes; Horovod is given it afterwards."""

    def lazy() -> nn.Module:
        torch.manual_seed(4)
        return nn.Sequential(nn.Flatten(), nn.LazyLinear(16), nn.ReLU(), nn.LazyLinear(5))

    model = lazy()
    base = torch.optim.SGD(model.parameters(), **MOMENTUM)
    compression = Compression(SPARSE, base, model)
    with raises(ValueError, "'1.weight'", "no shape yet", "batch"):
        compression.state_dict()
    model(batch(0)[0])
    optimizer = distribute(model, base, compression)
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    train(model, optimizer, steps=4)
    assert_ranks_identical(model, "lazy")
    assert {name for name, _ in model.named_parameters()} == set(compression.stats().tensors)
    assert compression.stats().total.steps == 4
