"""Order statistics that remember whose they are: ``x >= x.topk(k).values[-1]`` asks who is among the k.

The k-th value of ``x`` moves with ``x``. Compared with the entries of the same ``x`` it is no threshold independent of
them: the entry at place k equals it whatever the noise. What counts is the place of each entry.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pullback.relax.internals import version
from pullback.relax.rules import functions_named
from pullback.relax.soft_tensors import Lazy, attach, attached

__all__ = [
    "MOVES",
    "Places",
    "Statistic",
    "compare_with_places",
    "follow_places",
    "places_of_rows",
    "remember_places",
]


class Places(NamedTuple):
    """Where the entries of ``source`` are relative to one of its order statistics, ``[*statistic.shape, n]`` each."""

    at: Tensor
    """The probability that the entry is the statistic."""
    above: Tensor
    """The probability that it is larger."""


class Statistic(NamedTuple):
    """The soft counterpart of order statistics of ``source`` along ``dim`` (``None``: of all its entries)."""

    value: Any
    source: Tensor
    dim: int | None
    places: Lazy[Places]


MOVES = frozenset(
    f
    for name in "__getitem__ unsqueeze squeeze view reshape narrow select expand expand_as detach".split()
    for f in functions_named(name)
)


def remember_places(result: Tensor, statistic: Statistic) -> None:
    """Note that ``result`` holds order statistics."""
    attach(result, "_places", (statistic._replace(value=None), version(statistic.source)))


def _statistic(value: Any) -> Statistic | None:
    noted = attached(value, "_places")
    if noted is None:
        return None
    statistic: Statistic = noted[0]
    return statistic if noted[1] == version(statistic.source) else None


def follow_places(function: Callable[..., Any], result: Any, args: Any, kwargs: Any) -> None:
    """Let ``result = function(*args, **kwargs)``, one of :data:`MOVES`, remember what its argument does."""
    statistic = _statistic(args[0]) if args else None
    if statistic is None or not isinstance(result, Tensor) or result is args[0]:
        return

    def moved() -> Places:
        def one(x: Tensor) -> Tensor:
            y: Tensor = function(x, *args[1:], **kwargs)
            return y

        return Places(*(torch.func.vmap(one, in_dims=-1, out_dims=-1)(p) for p in statistic.places()))

    remember_places(result, statistic._replace(places=Lazy(moved, [statistic.places])))


def places_of_rows(matrix: Tensor, rows: Any, dim: int, keepdim: bool) -> Places:
    """Return the places relative to ``rows`` of an ascending order.

    Args:
        matrix: ``[*batch, n places, n items]``.
        rows: a slice, an integer, or a pair of neighbours between which the statistic lies.
        dim: dimension of the places in the result, not negative.
        keepdim: keep it, with size 1, for a single one.
    """
    above = 1 - matrix.cumsum(-2)
    if isinstance(rows, tuple):
        above = above[..., rows[0], :]
        at = torch.zeros_like(above)
    else:
        at, above = matrix[..., rows, :], above[..., rows, :]
    if isinstance(rows, slice):
        return Places(at.movedim(-2, dim), above.movedim(-2, dim))
    return Places(at.unsqueeze(dim), above.unsqueeze(dim)) if keepdim else Places(at, above)


_MIRRORED = {"gt": "lt", "lt": "gt", "ge": "le", "le": "ge", "eq": "eq", "ne": "ne"}


def compare_with_places(operation: str, input: Any, other: Any) -> Lazy[Tensor] | None:
    """Return ``P(input op other)`` where one is an order statistic of the other, else ``None``."""
    statistic = _statistic(other)
    if statistic is None or statistic.source is not input:
        statistic, input, other, operation = _statistic(input), other, input, _MIRRORED[operation]
        if statistic is None or statistic.source is not input:
            return None
    source, dim = statistic.source, statistic.dim
    one_for_all = other.numel() == 1 and (dim is None or source.ndim == 1) and other.ndim <= source.ndim
    aligned = dim is not None and other.ndim == source.ndim and other.shape[dim] == 1
    rest = aligned and all(a == b for d, (a, b) in enumerate(zip(other.shape, source.shape, strict=True)) if d != dim)
    if not (one_for_all or rest):
        return None

    def probability() -> Tensor:
        at, above = statistic.places()
        value = {
            "gt": lambda: above,
            "ge": lambda: above + at,
            "eq": lambda: at,
            "lt": lambda: 1 - above - at,
            "le": lambda: 1 - above,
            "ne": lambda: 1 - at,
        }[operation]()
        if one_for_all:
            return value.reshape(source.shape)
        assert dim is not None
        return value.squeeze(dim).movedim(-1, dim)

    return Lazy(probability, [statistic.places])
