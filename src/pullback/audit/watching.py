"""``pullback.watch``: the gradients of a long training, looked at now and then."""

from __future__ import annotations

import math
import sys
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from statistics import median
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from pullback.core.checks import check_callable, check_integer

__all__ = ["GradientWarning", "Observation", "watch"]

VANISHING = 1e-6
"""Root mean square of a parameter's gradient, as a share of the largest among the parameters of the same step."""

GROWTH = 1e3
"""A gradient this many times longer than its median so far, and longer than the parameter itself, explodes."""

AGAINST_WEIGHTS = 1e6
"""So does one this many times longer than the parameter itself and than 1."""

MOST_PAST = 101
"""Norms of a parameter that are kept to tell what is usual."""

CONFIRM = 3
"""Looks in a row, at steps that follow each other, before a gradient counts as dead or vanishing: a last layer that
starts at zero, say, gives those before it their gradient from the second step on."""

_SENTENCES = {
    "nan": "is not finite",
    "dead": "is missing or zero",
    "vanishing": "vanishes: it is below a millionth of the largest",
    "exploding": "explodes",
}


class GradientWarning(UserWarning):
    """A gradient of a watched training went wrong for the first time."""


@dataclass(frozen=True)
class Observation:
    """What was wrong with the gradient of one parameter, at the step where it was first seen.

    Attributes:
        step: its number; the first is 0.
        kind: ``"nan"``, ``"dead"``, ``"vanishing"`` or ``"exploding"``.
        parameter: its name in the model.
        norm: Euclidean norm of its gradient, ``None`` where there was none.
    """

    step: int
    kind: str
    parameter: str
    norm: float | None


class watch:
    """Look at the gradients of a training at every ``every``-th optimizer step; warn when one first goes wrong.

    Nothing is changed and nothing is kept alive; between the looks a step costs one comparison. Gradients are read when
    an optimizer steps, after clipping and unscaling, so the loop needs no other line. A gradient that is missing, zero
    or vanishing is looked at again at the next two steps before it is reported; one that explodes or is not finite is
    reported at once. Each parameter is reported once a kind. ``pullback audit`` finds the line to blame.

    Args:
        model: whose parameters are watched, or several models by name.
        *optimizers: their parameters are watched too, where ``model`` does not own them.
        every: look at optimizer steps 0, ``every``, 2 ``every``, ...
        first_step: number of the next optimizer step, where a training is resumed.
        log: called with the name of a number, its value and the step, as
            ``SummaryWriter.add_scalar`` is: ``gradients/norm`` (over all parameters), ``gradients/smallest over
            largest`` (root mean squares) and ``gradients/dead`` (how many).
        ignore: patterns of names not to report, as ``"encoder.*"``.
        warn: whether to issue :class:`GradientWarning`; :attr:`observations` has them in any case.

    Attributes:
        observations: what was reported so far.

    Raises:
        TypeError: ``model`` is no module, ``every`` no integer, ``log`` not callable.
        ValueError: ``every`` < 1 or ``first_step`` < 0.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with watch(model, optimizer, every=2, warn=False) as watching:
        ...     for _ in range(4):
        ...         optimizer.zero_grad()
        ...         model[0](torch.ones(5, 2)).sum().backward()  # the second layer is forgotten
        ...         optimizer.step()
        >>> [(seen.step, seen.kind, seen.parameter) for seen in watching.observations]
        [(2, 'dead', '1.weight'), (2, 'dead', '1.bias')]
    """

    def __init__(
        self,
        model: nn.Module | Mapping[str, nn.Module],
        *optimizers: Optimizer,
        every: int = 100,
        first_step: int = 0,
        log: Callable[[str, float, int], Any] | None = None,
        ignore: Iterable[str] = (),
        warn: bool = True,
    ) -> None:
        self._models = dict(model) if isinstance(model, Mapping) else {"": model}
        for one in self._models.values():
            if not isinstance(one, nn.Module):
                raise TypeError(f"model must be a torch.nn.Module or a mapping of them, got {type(one).__name__}")
        self._every = check_integer("every", every, 1)
        self._first_step = check_integer("first_step", first_step, 0)
        if log is not None:
            check_callable("log", log)
        self._log = log
        self._ignore = tuple(ignore)
        self._warn = warn
        self.observations: list[Observation] = []
        self._names: dict[int, tuple[weakref.ref[Tensor], str]] = {}
        self._optimizers = optimizers
        self._counts: dict[int, int] = {}
        self._suspects: dict[int, dict[tuple[int, str], int]] = {}
        self._past: dict[int, list[float]] = {}
        self._reported: set[tuple[int, str]] = set()
        self._handles: list[Any] = []

    def start(self) -> Self:
        """Begin to watch; ``with`` does it by itself."""
        if not self._handles:
            self._name_parameters()
            self._handles = [
                register_optimizer_step_pre_hook(self._before),
                register_optimizer_step_post_hook(self._after),
            ]
        return self

    def stop(self) -> None:
        """End watching; the training goes on as before."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    __enter__ = start

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def _name_parameters(self) -> None:
        for prefix, model in self._models.items():
            for name, parameter in model.named_parameters():
                self._name(parameter, f"{prefix}.{name}" if prefix else name)
        for number, optimizer in enumerate(self._optimizers):
            which = f" {number}" if len(self._optimizers) > 1 else ""
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            for index, parameter in enumerate(parameters):
                self._name(parameter, f"parameter {index} of optimizer{which} (the model does not own it)")

    def _name(self, parameter: Tensor, name: str) -> None:
        self._names.setdefault(id(parameter), (weakref.ref(parameter), name))

    def _name_of(self, parameter: Tensor) -> str | None:
        reference, name = self._names.get(id(parameter), (None, None))
        return name if reference is not None and reference() is parameter else None

    def _before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if not _closure(args, kwargs):
            self._count(optimizer)

    def _after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if _closure(args, kwargs):  # the step itself differentiates: before it there is no gradient
            self._count(optimizer)

    def _count(self, optimizer: Optimizer) -> None:
        step = self._counts.get(id(optimizer), self._first_step)
        self._counts[id(optimizer)] = step + 1
        if step % self._every == 0 or self._suspects.get(id(optimizer)):
            self._look(optimizer, step, sampled=step % self._every == 0)

    def _look(self, optimizer: Optimizer, step: int, sampled: bool) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        parameters = [p for p in parameters if p.requires_grad and self._name_of(p) is not None]
        if not parameters:
            return
        sizes = dict(zip(map(id, parameters), _sizes(parameters), strict=True))
        found = {id(p): kind for p in parameters if (kind := self._judge(p, sizes)) is not None}
        suspects = self._suspects.setdefault(id(optimizer), {})
        for key in [(p, kind) for p, kind in suspects if found.get(p) != kind]:
            del suspects[key]  # it has recovered
        new: dict[str, list[Observation]] = {}
        for parameter in parameters:
            kind, name = found.get(id(parameter)), self._name_of(parameter)
            if kind is not None and name is not None and self._is_new(id(parameter), name, kind, suspects):
                new.setdefault(kind, []).append(Observation(step, kind, name, sizes[id(parameter)].norm))
        if sampled:
            self._remember(sizes, found)
            if self._log is not None:
                for scalar, value in _scalars(sizes.values()):
                    self._log(scalar, value, step)
        for kind, seen_now in new.items():
            self.observations += seen_now
            if self._warn:
                warnings.warn(_sentence(kind, seen_now), GradientWarning, stacklevel=_depth())

    def _judge(self, parameter: Tensor, sizes: Mapping[int, Size]) -> str | None:
        size = sizes[id(parameter)]
        if not size.norm:
            return "dead"
        if not math.isfinite(size.norm):
            return "nan"
        largest = max((s.rms for s in sizes.values() if math.isfinite(s.rms)), default=0.0)
        # A bias may have next to no gradient where a normalisation follows: that is no fault of the way back.
        if parameter.ndim > 1 and size.rms < VANISHING * largest:
            return "vanishing"
        past = self._past.get(id(parameter), [])
        usual = median(past) if len(past) >= CONFIRM else math.inf
        limit = min(max(GROWTH * usual, size.weight), AGAINST_WEIGHTS * max(size.weight, 1.0))
        return "exploding" if size.norm > limit else None

    def _is_new(self, parameter: int, name: str, kind: str, suspects: dict[tuple[int, str], int]) -> bool:
        """Whether to report it now: for the first time, and, where that takes several looks, at the last of them."""
        key = parameter, kind
        if key in self._reported or any(fnmatchcase(name, pattern) for pattern in self._ignore):
            return False
        if kind in ("dead", "vanishing"):
            suspects[key] = suspects.get(key, 0) + 1
            if suspects[key] < CONFIRM:
                return False
            del suspects[key]
        self._reported.add(key)
        return True

    def _remember(self, sizes: Mapping[int, Size], found: Mapping[int, str]) -> None:
        for parameter, size in sizes.items():
            if size.norm and found.get(parameter) not in ("nan", "exploding"):
                past = self._past.setdefault(parameter, [])
                past.append(size.norm)
                del past[:-MOST_PAST]


@dataclass(frozen=True)
class Size:
    """Norm of a parameter's gradient (``None``: there is none), its root mean square, norm of the parameter."""

    norm: float | None
    rms: float
    weight: float


def _closure(args: Any, kwargs: Any) -> bool:
    return any(callable(one) for one in (*args[1:], kwargs.get("closure")))


def _sizes(parameters: list[Tensor]) -> list[Size]:
    """Measure all gradients with one transfer from each device."""
    with torch.no_grad():
        gradients = [p.grad for p in parameters if p.grad is not None]
        rows = [_peak_and_ratio(tensor) for tensor in (*parameters, *gradients)]
        places: dict[tuple[torch.device, torch.dtype], list[int]] = {}
        for index, row in enumerate(rows):
            places.setdefault((row.device, row.dtype), []).append(index)
        norms = [0.0] * len(rows)
        for indices in places.values():
            for index, (peak, ratio) in zip(indices, torch.stack([rows[i] for i in indices]).tolist(), strict=True):
                norms[index] = peak * ratio if math.isfinite(peak) else peak
    measured = iter(norms[len(parameters) :])
    sizes = []
    for parameter, weight in zip(parameters, norms, strict=False):
        norm = next(measured) if parameter.grad is not None else None
        sizes.append(Size(norm, (norm or 0.0) / math.sqrt(max(parameter.numel(), 1)), weight))
    return sizes


def _peak_and_ratio(tensor: Tensor) -> Tensor:
    """Return the largest absolute value and the norm of the tensor over it, two numbers.

    The norm is their product, which is taken in Python: the squares of small and of large numbers leave float32.
    """
    dense = tensor.detach()
    if dense.is_sparse:
        dense = dense.coalesce().values()
    dense = getattr(dense, "to_local", lambda: dense)()  # this process's part of a distributed tensor
    wide = torch.float64 if dense.dtype in (torch.float64, torch.complex128) else torch.float32
    if not dense.numel():
        return torch.zeros(2, device=dense.device, dtype=wide)
    size = dense.abs().to(wide)
    peak = size.amax()
    return torch.stack([peak, torch.linalg.vector_norm(size / torch.where(peak > 0, peak, 1))])


def _scalars(sizes: Iterable[Size]) -> Iterator[tuple[str, float]]:
    """The numbers of one look, for a log."""
    sizes = list(sizes)
    roots = [size.rms for size in sizes if size.norm]
    yield "gradients/norm", math.hypot(*(size.norm or 0.0 for size in sizes))
    yield "gradients/smallest over largest", min(roots) / max(roots) if roots and max(roots) > 0 else 0.0
    yield "gradients/dead", float(sum(not size.norm for size in sizes))


def _sentence(kind: str, seen: list[Observation]) -> str:
    first = seen[0]
    others = f" (and of {len(seen) - 1} more)" if len(seen) > 1 else ""
    norm = "" if first.norm is None else f", norm {first.norm:.3g}"
    return (
        f"step {first.step}: the gradient of {first.parameter}{others} {_SENTENCES[kind]}{norm}; "
        "`pullback audit` finds the line"
    )


def _depth() -> int:
    """How many frames up the user's ``optimizer.step()`` stands: what lies between is torch's and this file."""
    frame, depth = sys._getframe(1), 1
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if not name.startswith(("torch.", "pullback.")) and frame.f_code.co_filename != __file__:
            return depth
        frame, depth = frame.f_back, depth + 1  # type: ignore[assignment]
    return 1
