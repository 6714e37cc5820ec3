"""How far an operation's input is from its nearest point without derivative."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pullback.core.checks import check_choice, check_dim, check_floating

__all__ = ["KINKS", "kink_distance"]


def _from_points(*points: float) -> Callable[..., Tensor]:
    def distance(x: Tensor, *_: Any, **__: Any) -> Tensor:
        return torch.stack([(x - p).abs() for p in points]).amin(0)

    return distance


def _from_bounds(x: Tensor, low: Any = None, high: Any = None, **words: Any) -> Tensor:
    low, high = words.get("min", low), words.get("max", high)
    bounds = [b for b in (low, high) if b is not None]
    return torch.stack([(x - b).abs().expand_as(x) for b in bounds]).amin(0)


def _from_each_other(x: Tensor, y: Tensor) -> Tensor:
    return (x - y).abs()


def _from_second(x: Tensor, dim: int = -1, **_: Any) -> Tensor:
    if _count(x, dim) == 1:
        return torch.full_like(x.sum(dim), torch.inf)
    top = x.topk(2, dim=dim).values
    return top.select(dim, 0) - top.select(dim, 1)


def _from_second_smallest(x: Tensor, dim: int = -1, **_: Any) -> Tensor:
    return _from_second(-x, dim)


def _from_neighbours(x: Tensor, dim: int = -1, **_: Any) -> Tensor:
    if _count(x, dim) == 1:
        return torch.full_like(x.sum(dim), torch.inf)
    return x.sort(dim=dim).values.diff(dim=dim).amin(dim)


def _norm_itself(x: Tensor, dim: int = -1, **_: Any) -> Tensor:
    return torch.linalg.vector_norm(x, dim=dim)


def _count(x: Tensor, dim: int) -> int:
    """How many elements are compared: one where there is no dimension."""
    dim = check_dim(x, dim)
    count = x.shape[dim] if x.ndim else 1
    if not count:
        raise ValueError(f"x must not be empty along dim {dim}, got shape {tuple(x.shape)}")
    return count


KINKS: dict[str, Callable[..., Tensor]] = {
    "relu": _from_points(0.0),
    "leaky_relu": _from_points(0.0),
    "abs": _from_points(0.0),
    "sign": _from_points(0.0),
    "sqrt": _from_points(0.0),
    "relu6": _from_points(0.0, 6.0),
    "hardtanh": _from_points(-1.0, 1.0),
    "clamp": _from_bounds,
    "maximum": _from_each_other,
    "minimum": _from_each_other,
    "max": _from_second,
    "min": _from_second_smallest,
    "sort": _from_neighbours,
    "norm": _norm_itself,
}
"""Operation to the distance of its input from the nearest point where its derivative does not exist."""


def kink_distance(operation: str, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Return how far an input is from the nearest non-differentiable point of an operation, ties included.

    Args:
        operation: a key of :data:`KINKS`.
        x: ``[*shape]`` its first argument.
        *args: its further arguments, as of the torch function.
        **kwargs: its keyword arguments (``dim`` for reductions and sorts, default -1).

    Returns:
        Distances in units of ``x``: per element, or per slice for reductions and sorts; 0 exactly on a kink, infinite
        for a slice of one element, which has none.

    Raises:
        TypeError: ``x`` is not a floating tensor.
        ValueError: the operation has no entry, or a slice has no element.

    Example:
        >>> kink_distance("relu", torch.tensor([-2.0, 0.0, 0.5])).tolist()
        [2.0, 0.0, 0.5]
        >>> kink_distance("max", torch.tensor([1.0, 3.0, 3.0])).item()
        0.0

    References:
        Lee, Park, Aiken (2023), On the correctness of automatic differentiation for neural networks with
        machine-representable parameters, definition of the non-differentiable set.
    """
    check_choice("operation", operation, KINKS)
    check_floating("x", x)
    return KINKS[operation](x, *args, **kwargs)
