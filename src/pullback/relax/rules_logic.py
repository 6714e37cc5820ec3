"""Comparisons, logic on masks, and what is done with a mask: select, fill, count, any, all."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pullback import discrete
from pullback.core.gradients import replace_gradient
from pullback.relax.ranking import compare_with_places
from pullback.relax.rules import PASS, Dropped, Integer, is_active, lazy, relaxes, soft_value
from pullback.relax.rules_flow import push_forward
from pullback.relax.settings import Settings
from pullback.relax.soft_tensors import Distribution, Lazy, SoftBool, SoftIndex, SoftTensor, plain, remembered_values

__all__ = ["probability", "select"]

_COMPARISONS: dict[str, tuple[Callable[..., Any], Callable[..., Tensor], str]] = {
    # operation: torch's function, the block, torch's names
    "gt": (torch.gt, discrete.greater, "gt __gt__ greater"),
    "ge": (torch.ge, discrete.greater_equal, "ge __ge__ greater_equal"),
    "lt": (torch.lt, discrete.less, "lt __lt__ less"),
    "le": (torch.le, discrete.less_equal, "le __le__ less_equal"),
    "eq": (torch.eq, discrete.equal, "eq __eq__"),
    "ne": (torch.ne, discrete.not_equal, "ne __ne__ not_equal"),
}


def _comparison(operation: str) -> Callable[..., Any]:
    function, block, _ = _COMPARISONS[operation]

    def soft(settings: Settings, hard: Any, input: Any, other: Any) -> Any:
        if not isinstance(hard, Tensor):  # `x == None`
            return PASS
        indices = [a for a in (input, other) if isinstance(a, SoftIndex)]
        if len(indices) == 1 and indices[0].has_distribution and not _floating(input) and not _floating(other):
            late = push_forward(function, hard, (input, other), {})
            if operation == "eq":
                late.exclusive = _exclusive(indices[0], other if indices[0] is input else input)
            return late
        if operation in ("eq", "ne") and len(indices) == 2 and all(i.has_distribution for i in indices):
            return lazy(lambda: _same(indices[0], indices[1], operation == "ne"))
        if operation in ("eq", "ne") and all(isinstance(a, SoftBool) or _is_bool(a) for a in (input, other)):
            return lazy(lambda: _agree(input, other, operation == "ne"), input, other)

        remembered = [(i, remembered_values(a)) for i, a in enumerate((input, other))]
        known = [(i, values) for i, values in remembered if values is not None]
        if len(known) == 1 and not indices and not any(isinstance(a, SoftBool) for a in (input, other)):
            return lazy(lambda: _of_values(function, (input, other), *known[0]), input, other)

        by_places = compare_with_places(operation, input, other)
        if by_places is not None:
            return lazy(by_places, input, other)

        def compute() -> Tensor:
            x, y = soft_value(input), soft_value(other)
            if not isinstance(x, Tensor) or not x.is_floating_point():
                x = torch.as_tensor(x, device=hard.device).to(y.dtype)
            p = block(x, y, temperature=_comparison_width(settings, x, y, indices), **settings.method(operation))
            if operation in ("eq", "ne") or not (is_active(x) and is_active(y)):
                return p
            # An entry compared with itself is certain, `scores > scores[label]`; derivatives of distinct ones stay.
            certain = replace_gradient(plain(hard).to(p.dtype), p)
            return torch.where(x.detach() == y.detach(), certain, p)

        return lazy(compute, input, other)

    return soft


for _operation, (_, _, _names) in _COMPARISONS.items():
    relaxes(_names, group="comparison", operation=_operation)(_comparison(_operation))


def _exclusive(index: SoftIndex, other: Any) -> int | None:
    """The dimension along which at most one element of ``index`` equals ``other``."""
    places = index._current()[0]
    dim: int | None = None if places is None else places.exclusive
    if dim is None or not isinstance(other, Tensor) or other.ndim == 0:
        return dim
    return dim if other.ndim == index.ndim and other.shape[dim] == 1 else None


def _of_values(
    function: Callable[..., Any], operands: tuple[Any, Any], position: int, values: Lazy[Distribution]
) -> Tensor:
    """``sum_v P(v) [v ? other]`` where the operand at ``position`` is a float that takes discrete values."""
    probability, support = values().probability, values().values
    other = operands[1 - position]
    other = other.detach().unsqueeze(-1) if isinstance(other, Tensor) and other.ndim else other
    return (probability * (function(support, other) if position == 0 else function(other, support))).sum(-1)


def _comparison_width(settings: Settings, x: Tensor, y: Any, indices: list[SoftIndex]) -> float:
    if indices and not isinstance(y, Tensor):  # an expected count against a number: a step of one unit
        return 1.0
    if not isinstance(y, Tensor) or y.numel() == 1:  # a shift has no part in the spread
        return settings.width(x)
    return settings.width(x.detach() - y.detach())


def _floating(value: Any) -> bool:
    return isinstance(value, float) or (isinstance(value, Tensor) and value.is_floating_point())


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool) or (isinstance(value, Tensor) and value.dtype == torch.bool)


def _same(a: SoftIndex, b: SoftIndex, differ: bool) -> Tensor:
    """``P(a = b)`` of two independent indices."""
    p, q = a.distribution, b.distribution
    assert p is not None
    assert q is not None
    same = p.values.unsqueeze(-1) == q.values.unsqueeze(-2)
    equal = (p.probability.unsqueeze(-1) * q.probability.unsqueeze(-2) * same).sum((-1, -2))
    return 1 - equal if differ else equal


def _agree(a: Any, b: Any, differ: bool) -> Tensor:
    p, q = probability(a), probability(b)
    dtype = next(v.dtype for v in (p, q) if isinstance(v, Tensor) and v.is_floating_point())
    p, q = torch.as_tensor(p).to(dtype), torch.as_tensor(q).to(dtype)
    unequal = discrete.logical_xor(p, q)
    return unequal if differ else discrete.logical_not(unequal)


def probability(value: Any) -> Any:
    """Return the probability of a soft bool, a plain one as 0 and 1 of a later fitting type, an integer as ``!= 0``."""
    if isinstance(value, SoftBool):
        return value.probability
    if isinstance(value, SoftIndex):
        raise Dropped("a condition from an integer")
    return value


_LOGIC = {
    "logical_and": (discrete.logical_and, "logical_and bitwise_and __and__ __rand__"),
    "logical_or": (discrete.logical_or, "logical_or bitwise_or __or__ __ror__"),
    "logical_xor": (discrete.logical_xor, "logical_xor bitwise_xor __xor__ __rxor__"),
}


def _logic(operation: str) -> Callable[..., Any]:
    block, _ = _LOGIC[operation]

    def soft(settings: Settings, hard: Tensor, input: Any, other: Any) -> Any:
        if hard.dtype != torch.bool:
            raise Dropped("bits of an integer")

        def compute() -> Tensor:
            p, q = probability(input), probability(other)
            dtype = next(v.dtype for v in (p, q) if isinstance(v, Tensor) and v.is_floating_point())
            p, q = (torch.as_tensor(v, device=hard.device).to(dtype) for v in (p, q))
            return block(p, q, **settings.method("logical"))

        if not all(isinstance(v, SoftBool) or _is_bool(v) for v in (input, other)):
            raise Dropped("logic on numbers")
        return lazy(compute, input, other)

    return soft


for _operation, (_, _names) in _LOGIC.items():
    relaxes(_names, group="logic", operation=_operation, only_soft=True)(_logic(_operation))


@relaxes("logical_not bitwise_not __invert__", group="logic", operation="logical_not", only_soft=True)
def _not(settings: Settings, hard: Tensor, input: Tensor) -> Any:
    if isinstance(input, SoftBool):
        return lazy(lambda: discrete.logical_not(input.probability))
    if hard.dtype == torch.bool:
        raise Dropped("a condition from an integer")
    return Integer(expected=lazy(lambda: -1 - soft_value(input)))


def _reduction(block: Callable[..., Tensor]) -> Callable[..., Any]:
    def soft(settings: Settings, hard: Tensor, input: Tensor, dim: Any = None, keepdim: bool = False) -> Any:
        if not isinstance(input, SoftBool):
            raise Dropped("a condition from numbers")
        dims = tuple(dim) if isinstance(dim, list) else dim
        exclusive = input._current().exclusive
        if block is discrete.any and exclusive is not None and (exclusive == dims or input.ndim == 1):
            return lazy(lambda: input.probability.sum(exclusive, keepdim).clamp(max=1))
        return lazy(lambda: block(input.probability, dims, keepdim, **settings.method("logical")))

    return soft


relaxes("all", group="logic", only_soft=True)(_reduction(discrete.all))
relaxes("any", group="logic", only_soft=True)(_reduction(discrete.any))


@relaxes("count_nonzero", group="logic", only_soft=True)
def _count_nonzero(settings: Settings, hard: Tensor, input: Tensor, dim: Any = None) -> Any:
    if not isinstance(input, SoftBool):
        raise Dropped("counts of integers that are not zero")
    dims = tuple(dim) if isinstance(dim, list) else dim
    return Integer(expected=lazy(lambda: discrete.count(input.probability, dims)))


@relaxes("where", group="where", operation="where", only_soft=True)
def _where(settings: Settings, hard: Any, *args: Any) -> Any:
    if len(args) == 1 or not isinstance(hard, Tensor):
        raise Dropped("where(condition) alone has a shape that depends on the data")
    if isinstance(args[1], Tensor) and isinstance(args[0], Tensor) and args[0].dtype != torch.bool:
        condition, input, other = args[1], args[0], args[2]  # x.where(condition, other)
    else:
        condition, input, other = args
    return _selection(hard, condition, input, other)


@relaxes("masked_fill", group="where", operation="masked_fill", only_soft=True)
def _masked_fill(settings: Settings, hard: Tensor, input: Tensor, mask: Tensor, value: Any) -> Any:
    if isinstance(mask, SoftBool) and input.is_floating_point():
        return discrete.masked_fill(input, mask.probability, value)
    return _selection(hard, mask, value, input)


def _selection(hard: Tensor, condition: Any, input: Any, other: Any) -> Any:
    def compute() -> Tensor:
        return select(condition, soft_value(input), soft_value(other))

    if hard.is_floating_point():
        return compute()
    late = lazy(compute, condition, input, other)
    return late if hard.dtype == torch.bool else Integer(expected=late)


def select(condition: Any, input: Any, other: Any) -> Tensor:
    """Return the mean of two branches; where one of them is not finite, the branch that the hard condition takes."""
    if not isinstance(condition, SoftBool):
        floats = [a for a in (input, other) if isinstance(a, Tensor) and a.is_floating_point()]
        dtype = floats[0].dtype
        input, other = (
            a.to(dtype) if isinstance(a, Tensor) and not a.is_floating_point() else a for a in (input, other)
        )
        return torch.where(condition, input, other)
    p = condition.probability
    if not (_surely_finite(input) and _surely_finite(other)):
        finite = _finite(input, p) & _finite(other, p)
        p = torch.where(finite, p, plain(condition).to(p.dtype))
    return discrete.where(p, input, other)


def _surely_finite(branch: Any) -> bool:
    """Whether one pass over the branch finds nothing infinite or NaN; not asked under ``torch.func``."""
    if not isinstance(branch, Tensor):
        return math.isfinite(branch)
    if not branch.is_floating_point():
        return True
    if torch._C._functorch.is_functorch_wrapped_tensor(branch):
        return False
    return bool(torch.isfinite(branch.detach().sum()))


def _finite(branch: Any, p: Tensor) -> Tensor:
    return torch.isfinite(torch.as_tensor(branch, device=p.device))


@relaxes("signbit", group="comparison")
def _signbit(settings: Settings, hard: Tensor, input: Tensor) -> Any:
    if isinstance(input, SoftTensor):
        raise Dropped("the sign bit of an integer")
    return lazy(lambda: discrete.less(input, 0.0, temperature=settings.width(input), **settings.method("lt")), input)


@relaxes("isclose", group="comparison")
def _isclose(
    settings: Settings,
    hard: Tensor,
    input: Any,
    other: Any,
    rtol: float = 1e-5,
    atol: float = 1e-8,
    equal_nan: bool = False,
) -> Any:
    x, y = soft_value(input), soft_value(other)

    def compute() -> Tensor:
        width = settings.width(x.detach() - y.detach())
        return discrete.isclose(x, y, rtol, atol, equal_nan, temperature=width, **settings.method("eq"))

    return Lazy(compute, [t for t in (x, y) if isinstance(t, Tensor)])
