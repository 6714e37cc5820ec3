"""The law of a float: what else a value that jumps could have been, and how functions carry that on.

Behind a hard value ``h`` that jumps (a mask as a number, a rounding, a looked-up row) stands a finite distribution, its
*atoms* ``s_1 .. s_n`` with differentiable probabilities ``p``. A function of it has

.. math::
    \\mathbb E\\, g(h) = \\sum_k p_k\\, g(s_k),

so an elementwise function maps the atoms (:func:`image`) and the derivative of its result is that of the sum: exact,
however curved ``g`` is, and also for what is mixed in (``(codes - x) ** 2``). Two arguments with one choice behind them
(``row[0] * row[1]``) move together; independent ones form the product of their laws. The entries of a looked-up row
share one choice: functions of them together (``row @ matrix``, ``row.norm()``) map whole rows.

A sum of independent values has too many atoms. There the law *collapses* to the mean ``m`` and a difference quotient: a
nonlinear function is differentiated half way between the value and where it would jump, at ``h + (m - h) / (2 p)`` with
``p`` the largest probability of a jump, exact for quadratic functions of a single near jump. Where something smooth is
mixed in, which needs its own derivative at the right place, and in products it is taken at the mean.

A law is an attribute of the tensor it belongs to, lives as long, and is void once that is changed in place.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pullback.core.gradients import replace_gradient
from pullback.core.transforms import can_look
from pullback.relax.image import (
    KEPT,
    LINEAR,
    LOSSES,
    MOVES,
    MULTILINEAR,
    SMOOTH,
    elementwise,
    form_of,
    image,
    is_joint,
    moved,
)
from pullback.relax.internals import version, wrapped
from pullback.relax.ordering import is_too_large
from pullback.relax.rules import applied, functions_named, is_active, tensors_in
from pullback.relax.soft_tensors import (
    Distribution,
    Lazy,
    SoftBool,
    SoftIndex,
    SoftTensor,
    Stale,
    attach,
    attached,
    coin,
    plain,
)

__all__ = [
    "FOLLOWS",
    "MEAN",
    "NEAREST_HALF_WAY",
    "Law",
    "after_atoms",
    "any_law",
    "distribution_of",
    "follow",
    "give_law",
    "jump_law",
    "law_of",
    "lift",
    "only_jumps",
    "over_atoms",
    "pure",
]

FOLLOWS = LINEAR | MULTILINEAR | SMOOTH
"""Functions without draws and side effects through which a law is carried."""

_REFLECTED = frozenset(functions_named("__rdiv__")) | frozenset(functions_named("__rtruediv__"))
_QUOTIENTS = frozenset(f for name in "div divide true_divide".split() for f in functions_named(name)) | _REFLECTED

MEAN, NEAREST_HALF_WAY, EACH_HALF_WAY = range(3)
"""Where a derivative is taken: at the mean; with the nearest jump half way; with every jump half way."""


class Law:
    """What stands behind one float tensor; its parts are computed when a function asks for them.

    Attributes:
        distribution: the atoms; gives ``None`` where the law has collapsed.
        pure: nothing but jumps moves the tensor.
        whole: whether it can only have whole values.
    """

    __slots__ = ("_compute", "_parents", "_points", "_variance", "distribution", "pure", "whole")

    def __init__(
        self,
        compute: Callable[[int], Tensor],
        distribution: Lazy[Distribution | None],
        *,
        pure: bool,
        whole: Lazy[bool] | None = None,
        parents: Callable[[int], Sequence[Lazy[Any]]] = lambda point: (),
    ) -> None:
        self._compute = compute
        self._parents = parents
        self._points: dict[int, Lazy[Tensor]] = {}
        self.distribution = distribution
        self.pure = pure
        self.whole = whole
        self._variance: Callable[[], Tensor | None] = lambda: None

    def made_by(self, function: Any, arguments: Any, shape: torch.Size) -> None:
        """Note the call that made the result, of whose variance a linear function tells that of its own."""
        if function in _VARIES:
            args, kwargs = arguments
            self._variance = functools.partial(_variance, function, args, kwargs, shape)

    def variance(self, shape: torch.Size) -> Tensor | None:
        """The variance of each element, of a tensor of this shape; ``None`` where it is not known.

        It is that of the atoms, or, where they are too many to be formed, what linear functions make of the variances
        of independent numbers. Elements that share a choice, or the places of one ordering, have none here.
        """
        d = self.distribution()
        if d is None:
            with torch.no_grad():
                found = self._variance()
            return None if found is None else found.expand(shape)
        if d.tied or d.probability.shape[:-1] != shape or not only_jumps(d) or wrapped(d.probability):
            return None
        with torch.no_grad():
            p, values = d.probability.double(), d.values.double()
            found = (p * values.square()).sum(-1) - (p * values).sum(-1).square()
            return found.clamp(min=0) if bool(values.isfinite().all()) else None

    def point(self, point: int) -> Lazy[Tensor]:
        """The values at which a derivative is taken: :data:`MEAN`, or half way to a jump."""
        if point not in self._points:
            self._points[point] = Lazy(lambda: self._at(point), lambda: self._parents(point))
        return self._points[point]

    def _at(self, point: int) -> Tensor:
        with torch.no_grad():
            return self._compute(point)


def law_of(value: Any) -> Law | None:
    """Return the law of a float tensor, where it has one that is still valid."""
    law: Law | None = attached(value, "_law")
    return law


def give_law(value: Tensor, law: Law) -> None:
    """Attach ``law`` to ``value``."""
    attach(value, "_law", law)


def any_law(arguments: Any) -> bool:
    """Return whether any tensor of the nested arguments has a law."""
    return any(getattr(t, "_law", None) is not None for t in tensors_in(arguments))


def distribution_of(value: Any) -> Lazy[Any] | None:
    """Return the atoms behind a soft or float tensor; the lazy value may be ``None`` where they are too many."""
    if isinstance(value, SoftBool):
        return coin(value._current())
    if isinstance(value, SoftIndex):
        lazy: Lazy[Any] | None = value._current()[0]
        return lazy
    law = law_of(value) if isinstance(value, Tensor) else None
    return None if law is None else law.distribution


def jump_law(
    hard: Tensor,
    mean: Tensor,
    arguments: Any,
    distribution: Lazy[Any] | None,
    *,
    unit: float,
    is_pure: bool,
    is_whole: bool = False,
    is_written: bool = False,
) -> Law:
    """Return the law of a result with the values ``hard`` and the mean ``mean``, before anything has been done with it.

    Args:
        arguments: of the call that made it; the soft tensors among them say how probable a jump is.
        distribution: its atoms, if known.
        unit: size of the jump where there are no soft tensors; 0 where there is none, the mean is certain.
        is_pure: nothing but jumps moves it.
        is_whole: it can only have whole values.
        is_written: it was written at soft places, so that its elements are not those of the soft tensors.
    """
    mean = mean.detach()
    soft = [t for t in tensors_in(arguments) if isinstance(t, SoftTensor)]

    def compute(point: int) -> Tensor:
        if point == MEAN or mean.numel() == 0 or unit == 0:
            return mean
        deviation = mean - hard
        if point == NEAREST_HALF_WAY and can_look(deviation):
            return _half_way(hard, mean, deviation, [_jump_probability(t) for t in soft], unit)
        if point == EACH_HALF_WAY:
            each = deviation.abs() / unit if not soft else None if is_written else _own_probability(soft, hard.shape)
            if each is not None:
                near = torch.isfinite(deviation) & (each > torch.finfo(mean.dtype).eps)
                return torch.where(near, hard + deviation * (0.5 / torch.where(near, each, 1.0).to(mean.dtype)), hard)
        p = (
            torch.stack([_jump_probability(t).to(mean.dtype) for t in soft]).amax()
            if soft
            else deviation.abs().amax() / unit
        )
        usable = torch.isfinite(p) & (p < 0.5) & (p > torch.finfo(mean.dtype).eps ** 0.5)
        factor = torch.where(usable, 0.5 / torch.where(usable, p, 1.0), 1.0)
        return torch.where(torch.isfinite(deviation), hard + factor * deviation, mean)

    whole = Lazy(lambda: True) if is_whole else None
    return Law(compute, distribution or Lazy(lambda: None), pure=is_pure, whole=whole)


def _half_way(hard: Tensor, mean: Tensor, deviation: Tensor, jumps: list[Tensor], unit: float) -> Tensor:
    """``hard`` and half of the way to where the nearest element would jump; its mean where that is not far."""
    likely = [float(jump) for jump in jumps] or [float(deviation.abs().amax()) / unit]
    p = max(likely) if all(map(math.isfinite, likely)) else math.nan
    near = torch.finfo(mean.dtype).eps ** 0.5 < p < 0.5
    moved = torch.add(hard, deviation, alpha=0.5 / p) if near else mean
    if math.isfinite(deviation.sum()):
        return moved
    return torch.where(torch.isfinite(deviation), moved if near else hard + deviation, mean)


def _own_probability(soft: list[SoftTensor], shape: torch.Size) -> Tensor | None:
    """The probability of a jump of each element, or, of those that jump together, as dimensions of size 1."""
    if len(soft) != 1:
        return None
    (one,) = soft
    hard = plain(one)
    if isinstance(one, SoftBool):
        p = one.probability.detach()
        return (p - hard.to(p.dtype)).abs() if one.shape == shape else None
    assert isinstance(one, SoftIndex)
    leaves = _leaves(one)
    if leaves is None or shape[: one.ndim] != one.shape:
        return None
    return leaves.reshape((*one.shape, *[1] * (len(shape) - one.ndim)))


def _leaves(index: SoftIndex) -> Tensor | None:
    """The probability of each element that it is another."""
    distribution = index.distribution
    if distribution is None or is_too_large(distribution):
        return None
    stays = distribution.probability.detach() * (distribution.values == plain(index).unsqueeze(-1))
    return (1 - stays.sum(-1)).expand(index.shape)


def _jump_probability(soft: SoftTensor) -> Tensor:
    """The largest probability of an element that it is not what it is."""
    hard = plain(soft)
    if isinstance(soft, SoftBool):
        return (soft.probability.detach() - hard.to(soft.probability.dtype)).abs().amax()
    assert isinstance(soft, SoftIndex)
    leaves = _leaves(soft)
    return (soft.expected.detach() - hard).abs().amax() if leaves is None else leaves.amax()


def over_atoms(x: Tensor, dim: int | None, keeps: bool, function: Callable[[Tensor], Tensor]) -> Tensor | None:
    """Return ``sum_k p_k function(s_k)``, where the entries of ``x`` along ``dim`` share the choice of their atoms.

    Args:
        x: ``[*shape]`` floating.
        dim: what ``function`` takes together; ``None`` for all.
        keeps: whether its result ``[..., n]`` has ``dim`` as well.
    """
    known = distribution_of(x)
    d = None if known is None else known()
    if d is None or x.ndim == 0 or d.probability.shape[-1] > KEPT:
        return None
    p = d.probability.reshape(*[1] * (x.ndim + 1 - d.probability.ndim), *d.probability.shape)
    if p.shape[-1] == 1 or any(p.shape[i] != 1 for i in (range(x.ndim) if dim is None else (dim,))):
        return None
    values = d.values.to(x.dtype).expand(*x.shape, d.values.shape[-1])
    if dim is None:
        p = p.reshape(-1)
    elif not keeps:
        p = p.squeeze(dim)
    parts = [p[..., k, None].to(x.dtype) * function(values[..., k]) for k in range(p.shape[-1])]
    return torch.stack(parts).sum(0)


def after_atoms(x: Tensor, late: Lazy[Any]) -> Lazy[Any]:
    """Return ``late``, asked for when the atoms of ``x`` are known."""
    known = distribution_of(x)
    if known is None:
        return late
    after: Lazy[Any] = Lazy(lambda: late, [known])
    after.exclusive = late.exclusive
    return after


def only_jumps(distribution: Distribution) -> bool:
    """Return whether the atoms themselves stand still."""
    return distribution.support is None or not is_active(distribution.support)


def pure(arguments: Any) -> bool:
    """Return whether the nested arguments move by jumps alone."""
    for t in tensors_in(arguments):
        if is_active(t) and not isinstance(t, SoftTensor):
            law = law_of(t)
            if law is None or not law.pure:
                return False
    return True


def lift(arguments: Any, point: int) -> Any:
    """Return nested arguments with the values of what stands behind them; the gradient goes where it went."""
    if isinstance(arguments, Tensor):
        law = law_of(arguments)
        if law is None:
            return arguments
        try:
            value = law.point(point)()
        except Stale:
            return arguments
        lifted = replace_gradient(value, arguments)
        give_law(lifted, law)
        whole = attached(arguments, "_cut_from")
        if whole is not None:
            attach(lifted, "_cut_from", whole)
        return lifted
    if isinstance(arguments, dict):
        return {key: lift(item, point) for key, item in arguments.items()}
    if isinstance(arguments, tuple | list):
        items = [lift(item, point) for item in arguments]
        return type(arguments)(*items) if hasattr(arguments, "_fields") else type(arguments)(items)
    return arguments


def _values_at(arguments: Any, point: int) -> Any:
    """The same without a gradient, as a law computes its points from those of others."""
    if isinstance(arguments, Tensor):
        law = law_of(arguments)
        if law is None:
            return arguments
        try:
            return law.point(point)()
        except Stale:
            return arguments
    if isinstance(arguments, dict):
        return {key: _values_at(item, point) for key, item in arguments.items()}
    if isinstance(arguments, tuple | list):
        items = [_values_at(item, point) for item in arguments]
        return type(arguments)(*items) if hasattr(arguments, "_fields") else type(arguments)(items)
    return arguments


def follow(function: Any, hard: Any, args: Any, kwargs: Any, collapsed: Callable[[], None] = lambda: None) -> Any:
    """Return ``hard = function(*args, **kwargs)``, one of :data:`FOLLOWS`, with its derivative at the right place.

    ``collapsed`` is called where that is no expectation over atoms, there being too many.
    """
    given = (args, kwargs)
    sources = tensors_in(given)
    laws = [law for law in map(law_of, sources) if law is not None]
    if not laws:
        return hard
    versions = [(t, version(t)) for t in sources]
    is_pure = pure(given)
    joins = is_joint(function)
    form = form_of(hard)

    def check() -> None:
        if any(version(t) != before for t, before in versions):
            raise Stale("an argument was changed in place since")

    def atoms() -> Any:
        check()
        found = {id(t): distribution_of(t)() for t in sources if law_of(t) is not None}  # type: ignore[misc]
        if any(d is None for d in found.values()):
            return None
        return (moved if function in MOVES else image)(function, args, kwargs, found, form)

    def quiet() -> Any:
        try:
            return atoms()
        except Stale:
            return None

    distribution: Lazy[Any] = Lazy(quiet, [law.distribution for law in laws])
    if not _is_linear(function, args, kwargs):
        hard = _nonlinear(function, hard, args, kwargs, distribution, is_pure, joins, collapsed)

    def compute(point: int) -> Any:
        check()
        if point == EACH_HALF_WAY and joins:
            point = NEAREST_HALF_WAY
        return function(*_values_at(args, point), **_values_at(kwargs, point))

    def parents(point: int) -> list[Lazy[Any]]:
        return [law.point(NEAREST_HALF_WAY if point == EACH_HALF_WAY and joins else point) for law in laws]

    if isinstance(hard, Tensor):
        if hard.is_floating_point() and all(hard is not t for t in sources):
            whole = _whole(function, args, kwargs, sources)
            law = Law(compute, distribution, pure=is_pure, whole=whole, parents=parents)
            law.made_by(function, given, hard.shape)
            give_law(hard, law)
    else:
        for i, item in enumerate(hard):
            if isinstance(item, Tensor) and item.is_floating_point():
                give_law(item, Law(_item(compute, i), _item_of(distribution, i), pure=is_pure, parents=parents))
    return hard


def _variance(function: Any, args: Any, kwargs: Any, shape: torch.Size) -> Tensor | None:
    """The variance of a linear function of independent numbers; ``None`` for other functions."""
    if function not in _VARIES or (function in _ADDS and kwargs):
        return None
    found: dict[int, Tensor] = {}
    for t in tensors_in((args, kwargs)):
        law = law_of(t)
        variance = None if law is None else law.variance(t.shape)
        if variance is not None:
            found[id(t)] = variance
        elif law is not None or is_active(t):
            return None

    def of(value: Any) -> Any:
        if isinstance(value, tuple | list):
            return type(value)(map(of, value))
        if not isinstance(value, Tensor):
            return 0.0
        return found.get(id(value), value.new_zeros((), dtype=torch.float64).expand(value.shape))

    if function in _ADDS:
        return torch.add(*map(of, args[:2])) if len(args) == 2 else None
    if function in _SCALES:
        by = next((a for a in args[:2] if id(a) not in found), None)
        if by is None or len(found) != 1 or len(args) != 2:
            return None
        return function(*(found[id(a)] if id(a) in found else a**2 for a in args))
    first = of(args[0])
    if function in MOVES:
        moved_variance = function(first, *args[1:], **kwargs)
        return moved_variance if isinstance(moved_variance, Tensor) else None
    if function not in _REDUCES:
        return first  # minus, and a cast
    total: Tensor = function(first, *args[1:], **{k: v for k, v in kwargs.items() if k != "dtype"})
    return total if function in _SUMS else total * (shape.numel() / max(first.numel(), 1))


_ADDS = frozenset(f for n in "add sub subtract rsub __radd__ __rsub__".split() for f in functions_named(n))
_SCALES = frozenset(f for n in "mul multiply __rmul__ div divide true_divide".split() for f in functions_named(n))
_SUMS = frozenset(functions_named("sum"))
_REDUCES = _SUMS | frozenset(functions_named("mean"))
_SAME = frozenset(f for n in "neg negative abs absolute to float double".split() for f in functions_named(n))
_VARIES = _ADDS | _SCALES | _REDUCES | _SAME | MOVES


def _whole(function: Any, args: Any, kwargs: Any, sources: list[Tensor]) -> Lazy[bool] | None:
    """Whether a function of whole values has whole values, where that may be."""
    known = {id(t): law.whole for t in sources if (law := law_of(t)) is not None}
    if function not in _KEEPS_WHOLE or any(whole is None for whole in known.values()):
        return None
    numbers = [a for a in (*args, *kwargs.values()) if isinstance(a, float)]
    others = [t.detach() for t in sources if id(t) not in known]

    def compute() -> bool:
        certain = all(n.is_integer() for n in numbers) and not any(is_active(t) for t in others)
        return certain and all(whole() for whole in known.values()) and all(map(_is_whole, others))  # type: ignore[misc]

    return Lazy(compute, list(known.values()))  # type: ignore[arg-type]


def _is_whole(x: Tensor) -> bool:
    return not x.is_floating_point() or (can_look(x) and bool((x == x.round()).all()))


_KEEPS_WHOLE = MOVES | frozenset(
    f
    for name in "add sub subtract rsub mul multiply neg negative __radd__ __rsub__ __rmul__ sum cumsum prod abs dot "
    "matmul __matmul__ mv mm clamp clamp_min clamp_max square maximum minimum to float double".split()
    for f in functions_named(name)
)


def _nonlinear(
    function: Any,
    hard: Any,
    args: Any,
    kwargs: Any,
    distribution: Lazy[Any],
    is_pure: bool,
    joins: bool,
    collapsed: Callable[[], None],
) -> Any:
    if isinstance(hard, Tensor):
        exact = distribution()
        soft = _mean_loss(function, args, kwargs) if exact is None else exact.mean()
        if soft is not None:
            return _replaced(hard, soft.to(hard.dtype).expand(hard.shape))
    collapsed()
    point = MEAN
    if is_pure and function not in MULTILINEAR:
        point = NEAREST_HALF_WAY if joins else EACH_HALF_WAY
    return _replaced(hard, applied(function, lift(args, point), lift(kwargs, point)))


def _mean_loss(function: Any, args: Any, kwargs: Any) -> Tensor | None:
    """The expectation of a loss that is a mean or a sum over elements."""
    reduction = kwargs.get("reduction", "mean")
    if function not in LOSSES or len(args) != 2 or not set(kwargs) <= {"reduction", "beta", "delta"}:
        return None
    found = {id(t): distribution_of(t)() for t in args if law_of(t) is not None}  # type: ignore[misc]
    if reduction not in ("mean", "sum") or any(d is None for d in found.values()):
        return None
    each = elementwise(functools.partial(function, **{**kwargs, "reduction": "none"}), args, {}, found, None)
    if each is None:
        return None
    losses = each.mean().expand(torch.broadcast_shapes(*(t.shape for t in args)))
    return losses.mean() if reduction == "mean" else losses.sum()


def _item(compute: Callable[[int], Any], i: int) -> Callable[[int], Any]:
    return lambda point: compute(point)[i]


def _item_of(distribution: Lazy[Any], i: int) -> Lazy[Any]:
    return Lazy(lambda: None if distribution() is None else distribution()[i], [distribution])


def _is_linear(function: Any, args: Any, kwargs: Any) -> bool:
    if function in LINEAR:
        return True
    if function in MULTILINEAR:
        return sum(law_of(t) is not None for t in tensors_in((args, kwargs))) == 1
    if function in _QUOTIENTS and len(args) == 2 and not kwargs:
        return not is_active(args[0] if function in _REFLECTED else args[1])
    return False


def _replaced(hard: Any, soft: Any) -> Any:
    if not isinstance(hard, Tensor):
        return type(hard)([_replaced(h, s) for h, s in zip(hard, soft, strict=True)])
    if not hard.is_floating_point() or not is_active(soft):
        return hard
    return replace_gradient(hard, soft)
