"""How far an operation's input is from its nearest point without derivative."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from pullback.core.checks import check_choice, check_dim, check_floating

__all__ = ["KINKS", "Kink", "kink_distance"]


class Kink(NamedTuple):
    """How far inputs are from where an operation has no derivative.

    Attributes:
        distance: in units of the input: per element, or per slice for what compares along a dimension.
        size: the larger of the two numbers that are compared, the input and the point, as an absolute value: what a
            unit in the last place belongs to.
    """

    distance: Tensor
    size: Tensor


def _from_points(*points: float) -> Callable[..., Kink]:
    def kink(x: Tensor, *_: Any, **__: Any) -> Kink:
        return _nearest(x, points)

    return kink


def _nearest(x: Tensor, points: Any) -> Kink:
    distances = torch.stack([(x - p).abs().expand_as(x) for p in points])
    sizes = torch.stack(
        [torch.maximum(x.abs(), torch.as_tensor(p, dtype=x.dtype, device=x.device).abs()) for p in points]
    )
    distance, place = distances.min(0)
    return Kink(distance, sizes.expand_as(distances).gather(0, place[None])[0])


def _from_bounds(x: Tensor, low: Any = None, high: Any = None, **words: Any) -> Kink:
    low, high = words.get("min", low), words.get("max", high)
    return _nearest(x, [b for b in (low, high) if b is not None])


def _from_low(x: Tensor, low: Any = None, **words: Any) -> Kink:
    return _nearest(x, [words.get("min", low)])


def _from_high(x: Tensor, high: Any = None, **words: Any) -> Kink:
    return _nearest(x, [words.get("max", high)])


def _from_range(x: Tensor, low: float = -1.0, high: float = 1.0, *_: Any, **words: Any) -> Kink:
    return _nearest(x, [words.get("min_val", low), words.get("max_val", high)])


def _from_threshold(x: Tensor, threshold: float = 0.0, *_: Any, **__: Any) -> Kink:
    return _nearest(x, [threshold])


def _from_lambda(x: Tensor, lambd: float = 0.5, *_: Any, **__: Any) -> Kink:
    return _nearest(x, [-lambd, lambd])


def _from_integers(x: Tensor, *_: Any, shift: float = 0.0, **__: Any) -> Kink:
    return _nearest(x, [(x - shift).floor() + shift, (x - shift).ceil() + shift])


def _from_halves(x: Tensor, *_: Any, **__: Any) -> Kink:
    return _from_integers(x, shift=0.5)


def _from_each_other(x: Tensor, y: Any, *_: Any, **__: Any) -> Kink:
    y = torch.as_tensor(y, device=x.device)
    if not y.is_floating_point():
        y = y.to(x.dtype)
    return Kink((x - y).abs(), torch.maximum(x.abs(), y.abs().to(x.dtype)))


def _from_second(x: Tensor, *args: Any, **words: Any) -> Kink:
    if args and isinstance(args[0], Tensor):
        return _from_each_other(x, args[0])
    dim = args[0] if args else words.get("dim")
    if dim is None:
        x, dim = x.reshape(-1), -1
    if _count(x, dim) == 1:
        return _alone(x.sum(dim))
    top = x.topk(2, dim=dim).values
    first, second = top.select(dim, 0), top.select(dim, 1)
    return Kink(first - second, torch.maximum(first.abs(), second.abs()))


def _from_second_smallest(x: Tensor, *args: Any, **words: Any) -> Kink:
    if args and isinstance(args[0], Tensor):
        return _from_each_other(x, args[0])
    return _from_second(-x, *args, **words)


def _from_neighbours(x: Tensor, *args: Any, **words: Any) -> Kink:
    """Of what orders its entries: ties between any of them."""
    dim = words.get("dim", args[-1] if args and isinstance(args[-1], int) and not isinstance(args[-1], bool) else -1)
    return _ties(x, dim)


def _from_chosen(x: Tensor, k: int, dim: int = -1, *_: Any, **__: Any) -> Kink:
    """Of what chooses among its entries by their order: any tie, which may change the choice."""
    return _ties(x, dim)


def _from_middle(x: Tensor, dim: int | None = None, *_: Any, **__: Any) -> Kink:
    return _ties(x.reshape(-1) if dim is None else x, -1 if dim is None else dim)


def _ties(x: Tensor, dim: int) -> Kink:
    if _count(x, dim) == 1:
        return _alone(x.sum(dim))
    ordered = x.sort(dim=dim).values
    length = ordered.shape[dim] - 1
    below, above = ordered.narrow(dim, 0, length), ordered.narrow(dim, 1, length)
    distance, place = (above - below).min(dim)
    sizes = torch.maximum(above.abs(), below.abs())
    return Kink(distance, sizes.gather(dim, place.unsqueeze(dim)).squeeze(dim))


def _alone(like: Tensor) -> Kink:
    return Kink(torch.full_like(like, torch.inf), torch.ones_like(like))


def _norm_itself(x: Tensor, *args: Any, **words: Any) -> Kink:
    dim = words.get("dim", args[1] if len(args) > 1 else -1)
    norm = torch.linalg.vector_norm(x, dim=dim)
    return Kink(norm, norm)


def _pooled(count: int) -> Callable[..., Kink]:
    """Ties inside of the windows of a maximum over ``count`` dimensions."""

    def kink(x: Tensor, kernel: Any, stride: Any = None, padding: Any = 0, *_: Any, **words: Any) -> Kink:
        stride, padding = words.get("stride", stride) or kernel, words.get("padding", padding)
        sizes, strides, pads = ((v,) * count if isinstance(v, int) else tuple(v) for v in (kernel, stride, padding))
        around = [pad for size in reversed(pads) for pad in (size, size)]
        x = functional.pad(x, around, value=-torch.inf)
        for d in range(count):  # each unfolded dimension goes to the end
            x = x.unfold(-count, sizes[d], strides[d])
        windows = x.flatten(-count)
        top = windows.topk(2, dim=-1).values if windows.shape[-1] > 1 else None
        if top is None:
            return _alone(windows[..., 0])
        first, second = top.unbind(-1)
        return Kink(first - second, torch.maximum(first.abs(), second.abs().nan_to_num(posinf=0.0)))

    return kink


def _count(x: Tensor, dim: int) -> int:
    """How many elements are compared: one where there is no dimension."""
    dim = check_dim(x, dim)
    count = x.shape[dim] if x.ndim else 1
    if not count:
        raise ValueError(f"x must not be empty along dim {dim}, got shape {tuple(x.shape)}")
    return count


_AT_ZERO = _from_points(0.0)

KINKS: dict[str, Callable[..., Kink]] = {
    **dict.fromkeys(
        ("relu", "leaky_relu", "prelu", "rrelu", "abs", "absolute", "sign", "sgn", "sqrt", "selu"), _AT_ZERO
    ),
    "relu6": _from_points(0.0, 6.0),
    "hardsigmoid": _from_points(-3.0, 3.0),
    "hardswish": _from_points(-3.0, 3.0),
    "hardtanh": _from_range,
    "threshold": _from_threshold,
    "hardshrink": _from_lambda,
    "softshrink": _from_lambda,
    **dict.fromkeys(("floor", "ceil", "trunc", "fix", "frac"), _from_integers),
    "round": _from_halves,
    "clamp": _from_bounds,
    "clip": _from_bounds,
    "clamp_min": _from_low,
    "clamp_max": _from_high,
    **dict.fromkeys(("maximum", "minimum", "fmax", "fmin", "heaviside"), _from_each_other),
    **dict.fromkeys(("gt", "ge", "lt", "le", "eq", "ne", "greater", "less", "l1_loss"), _from_each_other),
    "max": _from_second,
    "amax": _from_second,
    "min": _from_second_smallest,
    "amin": _from_second_smallest,
    "sort": _from_neighbours,
    "median": _from_middle,
    "topk": _from_chosen,
    "kthvalue": _from_chosen,
    "max_pool1d": _pooled(1),
    "max_pool2d": _pooled(2),
    "norm": _norm_itself,
}
"""Operation to the distance of its input from the nearest point where its derivative does not exist.

Jumps (rounding, comparisons) and ties (sort, pooling) count as such points. An operation of your own is added by
``KINKS["name"] = lambda x, *args: Kink(distance, size)``.
"""


def kink_distance(operation: str, x: Tensor, *args: Any, ulps: bool = False, **kwargs: Any) -> Tensor:
    """Return how far an input is from the nearest non-differentiable point of an operation, ties included.

    Args:
        operation: a key of :data:`KINKS`.
        x: ``[*shape]`` its first argument.
        *args: its further arguments, as of the torch function.
        ulps: whether distances count units in the last place of the larger of the two numbers that are compared: 0
            on a kink, 1 beside it. Beside a kink at 0 that is ``1 / eps`` for every number but 0.
        **kwargs: its keyword arguments (``dim`` for reductions and sorts).

    Returns:
        Distances in units of ``x`` (or in ulps): per element, or per slice for reductions and sorts; 0 exactly on a
        kink, infinite for a slice of one element, which has none.

    Raises:
        TypeError: ``x`` is not a floating tensor.
        ValueError: the operation has no entry, or a slice has no element.

    Example:
        >>> kink_distance("relu", torch.tensor([-2.0, 0.0, 0.5])).tolist()
        [2.0, 0.0, 0.5]
        >>> kink_distance("max", torch.tensor([1.0, 3.0, 3.0])).item()
        0.0
        >>> kink_distance("maximum", torch.tensor(1.0), torch.tensor(1 - 2**-24), ulps=True).item()
        0.5

    References:
        Lee, Park, Aiken (2023), On the correctness of automatic differentiation for neural networks with
        machine-representable parameters, definition of the non-differentiable set.
    """
    check_choice("operation", operation, KINKS)
    check_floating("x", x)
    kink = KINKS[operation](x, *args, **kwargs)
    if not ulps:
        return kink.distance
    spacing = torch.nextafter(kink.size, torch.full_like(kink.size, torch.inf)) - kink.size
    return torch.where(kink.distance == 0, 0.0, kink.distance / spacing)
