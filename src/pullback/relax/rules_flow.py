"""Soft tensors through arithmetic, reductions, casts and changes of shape: the same function of the soft values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pullback.core.gradients import replace_gradient
from pullback.core.transforms import transform_running
from pullback.relax.image import ELEMENTWISE, MAX_TERMS, SHAPES, VALUES, convolved, form_of, image, moved
from pullback.relax.law import distribution_of
from pullback.relax.rules import (
    FLOW,
    Discrete,
    Integer,
    Rule,
    applied,
    as_they_are,
    functions_named,
    is_active,
    lazy,
    one_dtype,
    register_inplace,
    soft_arguments,
    tensors_in,
)
from pullback.relax.settings import Settings
from pullback.relax.soft_tensors import Distribution, Lazy, SoftBool, SoftIndex, SoftTensor, plain

__all__ = ["atoms_behind", "flow", "push_forward", "reshape_distribution"]


def flow(function: Callable[..., Any], hard: Any, args: Any, kwargs: Any, *, numbers: bool = False) -> Any:
    """Return the parts behind ``hard``: ``function`` of the soft values of its arguments.

    Bool and integer results get a lazy probability or expected value, float results a tensor.
    """

    def call(args: Any, kwargs: Any) -> Any:
        given = (args, _without_integer_dtype(kwargs))
        soft_args, soft_kwargs = one_dtype(soft_arguments(given, numbers=True)) if numbers else soft_arguments(given)
        if function in _WHOLE_DIVISIONS:
            return _divided(function, *soft_args)
        return applied(function, soft_args, soft_kwargs)

    if not isinstance(hard, Tensor):
        soft = call(args, kwargs)
        return tuple(_part(h, s) for h, s in zip(hard, soft, strict=True))

    if hard.is_floating_point() or hard.is_complex():
        return call(args, kwargs)
    late = lazy(call, args, kwargs, mean=True)
    return late if hard.dtype == torch.bool else Integer(expected=late)


def atoms_behind(function: Callable[..., Any], hard: Tensor, args: Any, kwargs: Any) -> Lazy[Distribution | None]:
    """Return the atoms of ``hard = function(...)`` from those of its arguments; ``None`` where they are too many."""
    args, kwargs = (args, kwargs) if transform_running() else as_they_are((args, kwargs))
    sources = {id(t): distribution_of(t) for t in tensors_in((args, kwargs))}
    known = {key: distribution for key, distribution in sources.items() if distribution is not None}
    result = form_of(plain(hard))

    def compute() -> Distribution | None:
        found = {key: distribution() for key, distribution in known.items()}
        return None if any(d is None for d in found.values()) else image(function, args, kwargs, found, result)

    return Lazy(compute, list(known.values()))


def push_forward(function: Callable[..., Any], hard: Tensor, args: Any, kwargs: Any, *, numbers: bool = False) -> Any:
    """Return the part behind ``hard = function(...)`` where every soft argument has a distribution.

    ``P(f(i) = w) = sum_{v: f(v) = w} P(i = v)``: the distribution keeps its probabilities and gets the values ``f(v)``;
    a condition has the probability ``sum_v P(v) [f(v)]``, a float result the expectation ``sum_v P(v) f(v)``. Where
    that would be too large it is the function of the expected values.
    """
    atoms = atoms_behind(function, hard, args, kwargs)
    if hard.is_floating_point():
        affine = function in _AFFINE and sum(is_active(a) for a in args) == 1
        exact = None if affine else atoms()
        value = flow(function, hard, args, kwargs, numbers=numbers) if exact is None else exact.mean()
        return Discrete(value, atoms)
    flowing = flow(function, hard, args, kwargs, numbers=numbers)
    otherwise: Lazy[Any] = flowing if isinstance(flowing, Lazy) else flowing.expected
    shape = hard.shape

    def expected() -> Any:
        exact = atoms()
        return otherwise if exact is None else exact.mean().expand(shape)

    late = Lazy(expected, [atoms])
    return late if hard.dtype == torch.bool else Integer(atoms, late)


_AFFINE = frozenset(
    f
    for name in "add sub subtract rsub mul multiply div divide neg negative __radd__ __rsub__ __rmul__".split()
    for f in functions_named(name)
)


def count(hard: Tensor, input: SoftBool, args: Any, kwargs: Any) -> Integer | None:
    """Return the part behind the number of true elements, which are taken to be independent; ``None`` for many.

    The number has the Poisson binomial distribution.
    """
    dim = args[0] if args else kwargs.get("dim")
    if hard.numel() == 0 or not 0 < input.numel() // hard.numel() <= MAX_TERMS:
        return None
    dims = range(input.ndim) if dim is None or dim in ((), []) else dim if isinstance(dim, tuple | list) else (dim,)
    reduced = sorted({d % input.ndim for d in dims}) if input.ndim else []
    rest = [d for d in range(input.ndim) if d not in reduced]

    shape = hard.shape

    def distribution(input: SoftBool) -> Distribution:
        p = input.probability.permute(*rest, *reduced).reshape(*shape, -1)
        return Distribution(convolved(torch.stack([1 - p, p], -1)))

    return Integer(
        lazy(distribution, input),
        lazy(lambda input: torch.sum(input.probability, *args, **_without_integer_dtype(kwargs)), input),
    )


_WHOLE_DIVISIONS = frozenset(
    f for name in ("floor_divide", "__floordiv__", "__rfloordiv__") for f in functions_named(name)
)


def _divided(function: Any, first: Any, second: Any) -> Tensor:
    """A whole number of times of means: torch gives it no derivative, here it has that of the quotient."""
    with torch.no_grad():
        value: Tensor = function(first, second)
    if function in functions_named("__rfloordiv__"):
        first, second = second, first
    quotient: Tensor = torch.true_divide(torch.as_tensor(first), second)
    return replace_gradient(value, quotient.to(value.dtype))


def _part(hard: Tensor, soft: Tensor) -> Any:
    if hard.is_floating_point() or hard.is_complex():
        return soft
    late = Lazy(lambda: soft)
    return late if hard.dtype == torch.bool else Integer(expected=late)


def _without_integer_dtype(kwargs: dict[str, Any]) -> dict[str, Any]:
    dtype = kwargs.get("dtype")
    if dtype is None or dtype.is_floating_point or dtype.is_complex:
        return kwargs
    return {k: v for k, v in kwargs.items() if k != "dtype"}


def _register_flow(names: str, kind: str) -> None:
    for name in names.split():
        for function in functions_named(name):
            FLOW[function] = Rule(name.strip("_"), "flow", _rule(function, kind), only_soft=True)
            register_inplace(name, function)


def _rule(function: Any, kind: str) -> Callable[..., Any]:
    def soft(settings: Settings, hard: Any, *args: Any, **kwargs: Any) -> Any:
        if kind == "shape" and any(_has_distribution(a) for a in _flat(args)):
            return reshape_distribution(function, hard, args, kwargs)
        if function in _SUMS and isinstance(args[0], SoftBool) and not hard.is_floating_point():
            counted = count(hard, args[0], args[1:], kwargs)
            if counted is not None:
                return counted
            if args[0]._current().alone:  # of many elements that are decided by themselves the mean is all
                return flow(function, hard, args, kwargs, numbers=kind == "value")
        if (
            kind == "shape"
            and isinstance(args[0], SoftBool)
            and isinstance(hard, Tensor)
            and hard.numel() == args[0].numel()
        ):
            late = flow(function, hard, args, kwargs)
            late.alone = args[0]._current().alone and len(tensors_in((args, kwargs))) == 1
            return late
        if kind != "shape" and isinstance(hard, Tensor) and _all_known(args, kwargs):
            return push_forward(function, hard, args, kwargs, numbers=kind == "value")
        return flow(function, hard, args, kwargs, numbers=kind == "value")

    return soft


def _all_known(args: Any, kwargs: Any) -> bool:
    soft = [t for t in tensors_in((args, kwargs)) if isinstance(t, SoftTensor)]
    return all(isinstance(t, SoftBool) or _has_distribution(t) for t in soft)


_SUMS = frozenset(functions_named("sum"))


def _has_distribution(value: Any) -> bool:
    return isinstance(value, SoftIndex) and value.has_distribution


def _flat(args: Any) -> list[Any]:
    result: list[Any] = []
    for a in args:
        result.extend(_flat(a) if isinstance(a, tuple | list) else [a])
    return result


def reshape_distribution(function: Callable[..., Any], hard: Any, args: Any, kwargs: Any) -> Any:
    """Return the parts behind ``hard = function(...)`` where the function only moves elements."""
    kept, options = (args, kwargs) if transform_running() else as_they_are((args, kwargs))
    known = {id(t): distribution_of(t) for t in tensors_in((kept, options)) if isinstance(t, SoftIndex)}
    if not all(known.values()):
        return flow(function, hard, args, kwargs)

    def build() -> Any:
        found: dict[int, Any] = {key: distribution() for key, distribution in known.items()}  # type: ignore[misc]
        return None if None in found.values() else moved(function, kept, options, found)

    late: Lazy[Any] = Lazy(build, list(known.values()))  # type: ignore[arg-type]
    flowing = flow(function, hard, args, kwargs)
    if isinstance(hard, Tensor):
        return _known_or_flowing(late, flowing, hard.shape)
    return tuple(
        _known_or_flowing(_item(late, i), part, h.shape) for i, (h, part) in enumerate(zip(hard, flowing, strict=True))
    )


def _item(late: Lazy[Any], i: int) -> Lazy[Any]:
    return Lazy(lambda: None if late() is None else late()[i], [late])


def _known_or_flowing(late: Lazy[Any], flowing: Integer, shape: torch.Size) -> Integer:
    otherwise: Any = flowing.expected
    return Integer(late, Lazy(lambda: otherwise if late() is None else late().mean().expand(shape), [late]))


def _whole(settings: Settings, hard: Tensor, input: SoftTensor, *args: Any, **kwargs: Any) -> Any:
    """A rounding of an integer is the integer."""
    return Integer(*input._current())


def register() -> None:
    """Add the rules of this file for every function that no other file has a rule for."""
    for name in "round floor ceil trunc fix".split():
        for function in functions_named(name):
            FLOW[function] = Rule(name, "flow", _whole, only_soft=True)
    _register_flow(ELEMENTWISE, "elementwise")
    _register_flow(SHAPES, "shape")
    _register_flow(VALUES, "value")
