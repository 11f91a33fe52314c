"""From the exchanged gradients to the optimizer's arithmetic, and what becomes of them on the way.

Where everything is sent, the gradient that comes back is the mean itself, as it is without compression, and momentum
and weight decay are applied here, at the moment of the optimizer's own arithmetic. What a script does with such a
gradient between ``synchronize()`` and ``step()`` so does what it does without compression. A sparsified gradient holds
momentum and what has waited: there the same cannot be had, and it is said, once.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from horovod_dgc.torch.backends import Backend, Reduction
from horovod_dgc.torch.collectives import explained
from horovod_dgc.torch.takeover import Takeover, wrapped_kind
from horovod_dgc.torch.tensors import Tensor, flatten

CHANGED = (
    "gradients were changed between synchronize() and step(), among them that of {name!r}. What comes back of a "
    "compressed gradient holds momentum and what has waited for several steps: what is taken off it is lost. To clip, "
    "give the method a clip_norm (docs/pytorch.md, What changes in your training script)"
)
UNAPPLIED = (
    "gradients were exchanged, among them that of {name!r}, but step() has not applied them. What was sent of them is "
    "lost, and what was not will be applied by later steps. Exchange only what is applied: set requires_grad_(False) "
    "while other losses are differentiated, and compute probing gradients with torch.autograd.grad (docs/pytorch.md, "
    "What changes in your training script)"
)
REPEATED = (
    "gradients that had been exchanged already were exchanged again, among them that of {name!r}: zero_grad() was not "
    "called, or step() was called twice. What comes back of a compressed gradient holds momentum and what has waited, "
    "so all that counts twice. Call zero_grad() after each step()"
)
UNREDUCED = (
    "{name!r} required no gradient when hvd.DistributedOptimizer was made, and does now: Horovod does not reduce its "
    "gradient, so that ranks drift apart. Unfreeze first, and then make Compression and hvd.DistributedOptimizer anew"
)
UNSYNCHRONIZED = (
    "step() was to apply gradients whose exchange is not finished, among them that of {name!r}: call "
    "optimizer.synchronize() before step() under skip_synchronize(), and compute gradients before step(), not in its "
    "closure"
)

UNKNOWN_SCALER = (
    "grad_scaler must be the GradScaler that calls step(), got None: what waits would be in units of a loss scale that "
    "changes. Write Compression(..., grad_scaler=scaler)"
)
# Who stands between a script's line and a warning about it.
LIBRARIES = ("horovod_dgc", "horovod", "torch")
# Frames between GradScaler.step() and the end of an exchange, or the optimizer's arithmetic; schedulers add some.
FRAMES_SEARCHED = 16


def calling_scaler() -> Any:
    """The enabled GradScaler whose ``step()`` is running; None if there is none."""
    frame = sys._getframe(1)
    for _ in range(FRAMES_SEARCHED):
        if frame.f_code is torch.amp.GradScaler.step.__code__:
            scaler = frame.f_locals["self"]
            return scaler if scaler.is_enabled() else None
        if frame.f_back is None:
            break
        frame = frame.f_back
    return None


class Applying:
    """Stands between the ``step()`` of ``hvd.DistributedOptimizer`` and that of the optimizer that it has wrapped.

    Args:
        owner: the distributed optimizer.
        tensors: all of the Compression's.
        unfinished: the name of a parameter whose exchange has begun, and not been finished; None if there is none.
        scaled: whether Compression knows the job's loss scaler.
    """

    def __init__(
        self,
        owner: Any,
        takeover: Takeover,
        tensors: Sequence[Tensor],
        unfinished: Callable[[], str | None],
        *,
        scaled: bool,
    ) -> None:
        self._owner = owner
        self._takeover = takeover
        self._tensors = tensors
        self._unfinished = unfinished
        # Whether there is still to be looked for a scaler that Compression does not know.
        self._look_for_scaler = not scaled
        self._said: set[str] = set()
        # The first tensor whose gradient has come back, and waits to be applied; None once it has been.
        self._waiting: Tensor | None = None

    def attach(self) -> None:
        """From now on the optimizer's arithmetic goes through :meth:`apply`.

        Horovod makes a class of its own for each optimizer, whose ``step()`` ends in that of its base. Whatever wraps
        ``step()`` itself, as schedulers do, stays as it is.

        A failure of Horovod in ``synchronize()``, where it meets what a rank has done elsewhere, is explained as well.
        """
        kind: Any = wrapped_kind(self._owner)
        applying = self

        class Applied(kind):  # type: ignore[misc]
            def step(self, closure: Callable[[], Any] | None = None) -> Any:
                return applying.apply(super().step, closure)

        horovod_synchronize = type(self._owner).synchronize

        def synchronize(owner: Any) -> None:
            with explained():
                horovod_synchronize(owner)

        type(self._owner).synchronize = synchronize
        Applied.__name__, Applied.__qualname__, Applied.__module__ = kind.__name__, kind.__qualname__, kind.__module__
        type(self._owner).__bases__ = (Applied,)

    def came_back(self, entry: Tensor, *, due: bool, faithful: bool) -> None:
        """A gradient has come back; see :meth:`Tensor.came_back`."""
        entry.came_back(due=due, faithful=faithful)
        if not faithful:
            self._waiting = self._waiting or entry

    def begin(self) -> None:
        """Another exchange begins."""
        if self._waiting is not None:
            self._say(UNAPPLIED, self._waiting)
            self._waiting = None

    def forget(self) -> None:
        """The state has been replaced: what has come back belongs to the one before."""
        self._waiting = None
        for entry in self._tensors:
            entry.forget_gradient()

    def submitted(self, entry: Tensor, gradient: torch.Tensor) -> None:
        """A gradient is about to be exchanged."""
        if entry.exchanged_before(gradient, self._owner.backward_passes_per_step) and gradient.any():
            self._say(REPEATED, entry)

    def apply(self, step: Callable[..., Any], closure: Callable[[], Any] | None) -> Any:
        """The optimizer's arithmetic, ``step``, on what is to be applied; the groups then hold the user's values."""
        waiting, self._waiting = self._waiting, None
        try:
            return self._apply(step, closure, waiting is not None)
        except BaseException:
            self._waiting = waiting
            raise

    def _apply(self, step: Callable[..., Any], closure: Callable[[], Any] | None, sparsified: bool) -> Any:
        if self._look_for_scaler:
            self._look_for_scaler = False
            if calling_scaler() is not None:
                raise ValueError(UNKNOWN_SCALER)
        loss = None
        if closure is not None and self._takeover.active:
            with torch.enable_grad():
                loss, closure = closure(), None
        unfinished = self._unfinished()
        if unfinished is not None:
            raise RuntimeError(UNSYNCHRONIZED.format(name=unfinished))
        if sparsified:
            self._notice_changes()
        unreduced = self._unreduced()
        alone = dict.fromkeys(unreduced) if self._takeover.active else {}
        with _gradients({**self._steps(), **alone}), self._takeover.set_to_zero():
            result = step(closure) if closure is not None else step()
        if alone:
            # They keep the momentum and weight decay that nobody has applied.
            with _gradients(dict.fromkeys(p for g in self._owner.param_groups for p in g["params"] if p not in alone)):
                step()
        for entry in self._tensors:
            entry.applied()
        return result if loss is None else loss

    def _steps(self) -> dict[torch.Tensor, torch.Tensor | None]:
        """For each parameter whose gradient is the mean itself: what SGD makes of it, where that is something else."""
        owner, takeover = self._owner, self._takeover
        due = [entry for entry in self._tensors if entry.due]
        # Set by a GradScaler for fused optimizers, which unscale gradients themselves.
        scale, found = getattr(owner, "grad_scale", None), getattr(owner, "found_inf", None)
        if not due or (found is not None and float(found)):
            return {}
        scaled = 1.0 if scale is None else float(scale)
        groups = takeover.group_of()
        moved: dict[Backend, list[tuple[Tensor, Reduction]]] = {}
        steps: dict[torch.Tensor, torch.Tensor] = {}
        for entry in due:
            parameter, gradient, group = entry.parameter, entry.parameter.grad, groups.get(id(entry.parameter))
            if gradient is None or group is None:
                continue
            decay, moves = takeover.decay(group), takeover.moves(group)
            if not decay and not moves:
                continue
            gradient = gradient.to_dense() if gradient.is_sparse else gradient
            values = flatten(gradient).float()
            if scaled != 1.0:
                values = values / scaled
            if decay:
                values = values + flatten(parameter).float() * decay
            if not moves:
                steps[parameter] = values
                continue
            update = takeover.update(group, unscale=1.0, dense_factor=1.0, first=not entry.stepped, momentum=True)
            # The backend works in place.
            values = values.clone() if values.data_ptr() == gradient.data_ptr() else values
            reduction = Reduction(values, entry.velocity_view, update, 1.0 / entry.share, entry.share)
            moved.setdefault(entry.backend, []).append((entry, reduction))
        for backend, each in moved.items():
            for (entry, _), result in zip(each, backend.finish([reduction for _, reduction in each])):
                entry.stepped = True
                steps[entry.parameter] = result
        return {p: (step * scaled if scaled != 1.0 else step).view(p.shape).to(p.dtype) for p, step in steps.items()}

    def _notice_changes(self) -> None:
        changed = next((entry for entry in self._tensors if entry.gradient_changed), None)
        if changed is not None:
            self._say(CHANGED, changed)

    def _unreduced(self) -> list[torch.Tensor]:
        """Parameters with a gradient that Horovod does not exchange."""
        exchanged = self._owner._requires_update
        parameters = (p for group in self._owner.param_groups for p in group["params"])
        unreduced = [p for p in parameters if p not in exchanged and p.requires_grad and p.grad is not None]
        if unreduced:
            known = {id(entry.parameter): entry.name for entry in self._tensors}
            self._say(UNREDUCED, known.get(id(unreduced[0]), f"a parameter of shape {tuple(unreduced[0].shape)}"))
        return unreduced

    def _say(self, what: str, which: Tensor | str) -> None:
        if what not in self._said:
            self._said.add(what)
            warnings.warn(what.format(name=which if isinstance(which, str) else which.name), stacklevel=_script())


def _script() -> int:
    """The level in the caller's stack of the first frame that is the user's own; where there is none, the caller's."""
    frame, level = sys._getframe(1).f_back, 2
    while frame is not None:
        if frame.f_globals.get("__name__", "").partition(".")[0] not in LIBRARIES:
            return level
        frame, level = frame.f_back, level + 1
    return 2


@contextlib.contextmanager
def _gradients(instead: dict[torch.Tensor, torch.Tensor | None]) -> Iterator[None]:
    """Meanwhile these parameters have other gradients."""
    own = {parameter: parameter.grad for parameter in instead}
    try:
        for parameter, gradient in instead.items():
            parameter.grad = gradient
        yield
    finally:
        for parameter, gradient in own.items():
            parameter.grad = gradient
