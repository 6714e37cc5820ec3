"""The table from torch's functions to their soft counterparts, and what a rule gives back."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from pullback.core.transforms import transform_running
from pullback.relax.internals import below_transforms, forward_mode, unseen, version, viewed
from pullback.relax.soft_tensors import Distribution, Lazy, SoftBool, SoftIndex, SoftTensor, attach, attached

__all__ = [
    "FLOW",
    "INPLACE",
    "INPLACE_FLAG",
    "PASS",
    "QUOTIENTS",
    "RULES",
    "Discrete",
    "Dropped",
    "Integer",
    "Rule",
    "any_active",
    "applied",
    "as_they_are",
    "functions_named",
    "is_active",
    "lazy",
    "one_dtype",
    "register_inplace",
    "relaxes",
    "soft_arguments",
    "soft_value",
    "tensors_in",
]


class Dropped(Exception):
    """A rule cannot carry the soft counterpart on; the message says why."""


class _Pass:
    """The plain result is right as it is, with its own gradient."""


PASS = _Pass()


class Discrete(NamedTuple):
    """The soft counterpart of a float result that takes discrete values: its curve, and its distribution."""

    value: Tensor
    distribution: Lazy[Distribution | None]
    unit: float = 1.0
    """Size of a jump."""


class Integer(NamedTuple):
    """The soft counterpart of an integer result: see :class:`~pullback.relax.SoftIndex`."""

    distribution: Lazy[Distribution | None] | None = None
    expected: Lazy[Tensor] | None = None


@dataclass(frozen=True)
class Rule:
    """How one torch operation is relaxed.

    Attributes:
        operation: its canonical name, as in ``only``, ``ignore``, ``methods`` and the report.
        group: ``comparison``, ``logic``, ``rounding``, ``elementwise``, ``order``, ``counting``, ``index``, ``flow``
            or ``sampling``.
        soft: called with the settings, the hard result and the arguments of the torch call. Returns for a float result
            a tensor, for a bool result a ``Lazy`` probability, for an integer result an :class:`Integer`, a tuple of
            those for several results, or :data:`PASS`.
        random: the torch call draws random numbers, so that it cannot be repeated.
        only_soft: concerns only calls with a soft tensor among the arguments.
    """

    operation: str
    group: str
    soft: Callable[..., Any]
    random: bool = False
    only_soft: bool = False


RULES: dict[Any, Rule] = {}
"""torch function -> rule."""

FLOW: dict[Any, Rule] = {}
"""torch function -> how soft tensors pass through it; comes before :data:`RULES` for them."""

INPLACE: dict[Any, Any] = {}
"""In-place torch function -> the out-of-place one with the same arguments."""

INPLACE_FLAG: dict[Any, int] = {}
"""Function with an ``inplace`` argument -> its position."""

_INPLACE_OPERATORS = {
    "__iadd__": "add",
    "__isub__": "sub",
    "__imul__": "mul",
    "__itruediv__": "div",
    "__idiv__": "div",
    "__ifloordiv__": "__floordiv__",
    "__imod__": "remainder",
    "__ipow__": "pow",
    "__iand__": "__and__",
    "__ior__": "__or__",
    "__ixor__": "__xor__",
}


def relaxes(
    names: str, *, group: str, operation: str = "", random: bool = False, only_soft: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the decorated rule for every torch function of these names, with their in-place twins.

    Args:
        names: separated by blanks; each is looked up in ``torch``, ``torch.Tensor``, ``torch.nn.functional`` and
            ``torch.special``; at least one of them must have it.
        group, operation, random, only_soft: see :class:`Rule`; ``operation`` defaults to each name itself.

    Raises:
        LookupError: (when decorating) torch has no such function, or another rule covers it.
    """

    def add(soft: Callable[..., Any]) -> Callable[..., Any]:
        for name in names.split():
            rule = Rule(operation or name.strip("_"), group, soft, random, only_soft)
            found = list(functions_named(name))
            if not found:
                raise LookupError(f"torch has no function {name!r}")
            for function in found:
                if function in RULES:  # which one would hold depends on what is imported first
                    raise LookupError(f"{name} has a rule already, {RULES[function].soft.__qualname__}")
                RULES[function] = rule
            register_inplace(name, found[0])
        return soft

    return add


def register_inplace(name: str, function: Any) -> None:
    """Register the in-place twins of the function called ``name``."""
    for inplace in functions_named(f"{name}_"):
        INPLACE.setdefault(inplace, function)
    for operator, twin in _INPLACE_OPERATORS.items():
        if twin == name and hasattr(Tensor, operator):
            INPLACE.setdefault(getattr(Tensor, operator), function)


def functions_named(name: str) -> Iterator[Any]:
    """Yield the functions called ``name`` of torch, ``Tensor``, ``nn.functional`` and ``special``.

    Example:
        >>> torch.argmax in list(functions_named("argmax"))
        True
    """
    for place in (Tensor, torch, functional, torch.special):
        function = getattr(place, name, None)
        if function is None:
            continue
        if callable(function):
            yield function
        elif hasattr(function, "__get__"):
            yield function.__get__  # of `x.T` a mode sees the getter


def tensors_in(arguments: Any) -> list[Tensor]:
    """Return the tensors of nested tuples, lists and dictionaries.

    Example:
        >>> len(tensors_in(((torch.zeros(1), [torch.zeros(1)]), {"x": torch.zeros(1)})))
        3
    """
    if isinstance(arguments, Tensor):
        return [arguments]
    found: list[Tensor] = []
    if isinstance(arguments, _NESTED):
        _collect(arguments, found)
    return found


_NESTED = (tuple, list, dict)
_SINGLE = frozenset({int, float, bool, str, type(None), slice, torch.Size, torch.dtype, torch.device})


def _collect(arguments: Any, found: list[Tensor]) -> None:
    for item in arguments.values() if type(arguments) is dict or isinstance(arguments, dict) else arguments:
        kind = type(item)
        if kind in _SINGLE:
            continue
        if kind is Tensor or isinstance(item, Tensor):
            found.append(item)
        elif isinstance(item, _NESTED) and item:
            _collect(item, found)


def is_active(value: Any) -> bool:
    """Return whether a derivative can pass here: a soft tensor, one that requires grad, or one with a tangent.

    Example:
        >>> is_active(torch.zeros(1)), is_active(torch.zeros(1, requires_grad=True))
        (False, True)
    """
    if not isinstance(value, Tensor):
        return False
    if isinstance(value, SoftTensor) or value.requires_grad:
        return True
    if not value.is_floating_point():
        return False
    if forward_mode() and torch.autograd.forward_ad.unpack_dual(value).tangent is not None:
        return True
    return any(inner.requires_grad for inner in below_transforms(value))


def any_active(arguments: Iterable[Any]) -> bool:
    """Return whether a derivative can pass through any tensor of the nested arguments."""
    return any(map(is_active, tensors_in(arguments)))


def soft_value(value: Any) -> Any:
    """Return the soft floating value of a soft tensor (probability or expected value); anything else as it is.

    Example:
        >>> soft_value(2)
        2
    """
    if isinstance(value, SoftBool):
        return value.probability
    if isinstance(value, SoftIndex):
        return value.expected
    return value


def soft_arguments(arguments: Any, *, numbers: bool = False) -> Any:
    """Return nested arguments with every soft tensor replaced by its :func:`soft_value`.

    With ``numbers`` other integer and bool tensors become floating too: matrix products take one dtype.
    """
    if isinstance(arguments, tuple | list):
        return type(arguments)(soft_arguments(item, numbers=numbers) for item in arguments)
    if isinstance(arguments, dict):
        return {key: soft_arguments(item, numbers=numbers) for key, item in arguments.items()}
    if numbers and isinstance(arguments, Tensor) and not isinstance(arguments, SoftTensor):
        return arguments if arguments.is_floating_point() or arguments.is_complex() else arguments.double()
    return soft_value(arguments)


def one_dtype(arguments: Any) -> Any:
    """Return nested arguments with their floating tensors in one dtype, the widest."""
    floats = [t.dtype for t in tensors_in(arguments) if t.is_floating_point()]
    if not floats:
        return arguments
    widest = functools.reduce(torch.promote_types, floats)

    def convert(value: Any) -> Any:
        if isinstance(value, tuple | list):
            return type(value)(convert(item) for item in value)
        if isinstance(value, dict):
            return {key: convert(item) for key, item in value.items()}
        return value.to(widest) if isinstance(value, Tensor) and value.is_floating_point() else value

    return convert(arguments)


def lazy(compute: Callable[..., Any], *arguments: Any, mean: bool = False) -> Lazy[Any]:
    """Return ``compute(*arguments)`` as a :class:`Lazy`, of the arguments as they are now.

    They may be changed in place before it is asked for, so copies are kept. What stands behind the soft tensors among
    them (with ``mean`` their expected values alone) is computed first, in order.
    """
    kept = arguments if transform_running() else as_they_are(arguments)
    parents: list[Lazy[Any]] = []
    for t in tensors_in(kept):
        if isinstance(t, SoftBool):
            parents.append(t._carried)
        elif isinstance(t, SoftIndex):
            distribution, expected = t._carried
            parents.append(expected if mean or distribution is None else distribution)
    return Lazy(lambda: compute(*kept), parents)


def _shared_copy(source: Tensor, make: Callable[[], Tensor]) -> Tensor:
    """A copy of ``source`` as it is now: the one that others still hold, else a new one."""
    if transform_running():
        return make()
    noted = attached(source, "_snapshot")
    known: Tensor | None = None if noted is None else noted.copy()
    if (
        known is not None
        and known.requires_grad == source.requires_grad
        and version(known) == noted.version
        and getattr(known, "_carried", None) is getattr(source, "_carried", None)
    ):
        return known
    copy = make()
    attach(source, "_snapshot", _Snapshot(copy))
    return copy


class _Snapshot:
    """A copy, for as long as somebody else holds it."""

    __slots__ = ("copy", "version")

    def __init__(self, copy: Tensor) -> None:
        self.copy = weakref.ref(copy)
        self.version = version(copy)


def as_they_are(arguments: Any) -> Any:
    """Return a copy of nested arguments that later changes in place do not reach, in the graph.

    Raises:
        Stale: a soft tensor was changed before by an operation that does not know what it carries.
    """
    if isinstance(arguments, SoftTensor):
        arguments._current()
        return _shared_copy(arguments, arguments.duplicate)
    if isinstance(arguments, Tensor):
        return _shared_copy(arguments, functools.partial(_copy_of, arguments))
    if isinstance(arguments, dict):
        return {key: as_they_are(item) for key, item in arguments.items()}
    if isinstance(arguments, tuple | list):
        items = [as_they_are(item) for item in arguments]
        return type(arguments)(*items) if hasattr(arguments, "_fields") else type(arguments)(items)
    return arguments


def _copy_of(source: Tensor) -> Tensor:
    with unseen():
        copy = source.clone()
    for name in ("_law", "_empty"):
        known = attached(source, name)
        if known is not None:
            attach(copy, name, known)
    attach(copy, "_cut_from", attached(source, "_cut_from") or (viewed(source).detach(),))
    return copy


QUOTIENTS = frozenset(f for name in ("div", "divide", "true_divide") for f in functions_named(name))


def applied(function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Return ``function(*args, **kwargs)``; a quotient by 0 has no derivative, where torch's is NaN times what follows.

    Behind ``where(n != 0, k / n, 0)`` torch multiplies the 0 that comes back with the infinite slope.

    Example:
        >>> n = torch.tensor([0.0, 2.0], requires_grad=True)
        >>> applied(torch.div, (1.0, n), {})[1].backward()
        >>> n.grad.tolist()
        [0.0, -0.25]
    """
    if function not in QUOTIENTS or kwargs or len(args) != 2 or not isinstance(args[1], Tensor):
        return function(*args, **kwargs)
    by = args[1]
    zero = by.detach() == 0
    if transform_running() or not bool(zero.any()):
        return function(*args)
    with torch.no_grad():
        plain_value = function(*args)
    return torch.where(zero, plain_value, function(args[0], torch.where(zero, 1, by)))
