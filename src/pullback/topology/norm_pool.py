"""Pooling of sets by a generalised norm whose exponents are learned: sum, mean, maximum, minimum and all between."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pullback.core.checks import check_dim, check_floating, check_integer, check_tensor
from pullback.core.shapes import Bool, Float, Int
from pullback.core.transforms import can_look
from pullback.topology.segments import segment_reduce

__all__ = ["norm_pool"]


def norm_pool(
    x: Float[Tensor, "*shape"],
    index: Int[Tensor, "m"] | None = None,
    count: int | None = None,
    *,
    p: float | Float[Tensor, "*#exponents"],
    q: float | Float[Tensor, "*#exponents"],
    dim: int = -2,
    mask: Bool[Tensor, "*#sets"] | None = None,
    eps: float = 0.0,
) -> Float[Tensor, "*pooled"]:
    r"""Pool each set by :math:`G_{p,q}(X) = n^{-q} \left( \sum_{i=1}^n |x_i|^p \right)^{1/p}`, feature by feature.

    ===================  =====================================================
    ``(p, q)``           what it is
    ===================  =====================================================
    ``(1, 0)``           sum of ``|x|``
    ``(1, 1)``           mean of ``|x|``
    ``(2, 0)``           Euclidean norm
    ``(inf, 0)``         maximum of ``|x|``; ties share the gradient
    ``(-inf, 0)``        minimum of ``|x|``
    ``(-1, -1)``         harmonic mean of ``|x|``
    ===================  =====================================================

    The sum is taken in the log domain, so that its terms neither overflow nor vanish; what leaves the range of the
    dtype itself is its largest number, without a gradient. Zeros are exact: they add nothing where ``p > 0`` and make
    the whole 0 where ``p < 0``. They have no gradient, and neither has the empty set, which is 0. Magnitudes below
    the smallest normal number of the dtype are taken as zeros.

    Args:
        x: ``[*batch, n, features]`` with the sets along ``dim``; or, with ``index``, ``[m, *features]``, a row an
            item. Meant to be >= 0: magnitudes are used, and a warning counts negative numbers.
        index: ``[m]`` the set of each row, in ``0..count-1``.
        count: number of sets.
        p: exponent of the norm, not 0, ``inf`` and ``-inf`` allowed. A number or a tensor that broadcasts against the
            result, such as ``[features]``; with gradient. Precise for 0.1 to 50 in magnitude.
        q: exponent of the size of a set, finite; as ``p``.
        dim: the dimension of the sets; not used with ``index``.
        mask: ``[*batch, n]``, the shape of ``x`` up to ``dim``: true where there is an item. Not used with ``index``.
        eps: added to every ``|x|``, >= 0. It bounds the slope at small entries where ``0 < p < 1``, and is an error of
            that size elsewhere.

    Returns:
        ``x`` without ``dim``; with ``index``, ``[count, *features]``.

    Raises:
        TypeError: a tensor has another kind of dtype, an exponent is neither a number nor a floating tensor.
        ValueError: ``p`` is 0 or NaN, ``q`` not finite, ``index`` out of range or without ``count``, shapes disagree.

    Example:
        >>> x = torch.tensor([[3.0], [4.0]])
        >>> norm_pool(x, p=2.0, q=0.0), norm_pool(x, p=1.0, q=1.0), norm_pool(x, p=-math.inf, q=0.0)
        (tensor([5.]), tensor([3.5000]), tensor([3.]))
        >>> norm_pool(x, torch.tensor([1, 1]), 2, p=2.0, q=0.0).flatten()
        tensor([0., 5.])

    References:
        Ko, Kwon, Shin, Lee (2021), Learning to pool in graph neural networks for extrapolation, equation 3.
    """
    check_floating("x", x)
    sets = _dense(x, dim, mask) if index is None else _segments(x, index, count, mask)
    p, q = (_exponent(name, value, sets.shape) for name, value in (("p", p), ("q", q)))
    if not 0 <= eps < math.inf:
        raise ValueError(f"eps must be >= 0, got {eps}")
    if can_look(x) and bool((x < 0).any()):
        negative = int((x < 0).sum())
        warnings.warn(f"{negative} of {x.numel()} entries of x are negative: magnitudes are pooled", stacklevel=2)
    precise = torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype
    magnitudes = x.to(precise).abs() + eps
    return _pool(magnitudes, p, q, sets, torch.finfo(x.dtype)).to(x.dtype)


@dataclass(frozen=True)
class _Sets:
    """How items lie in sets: ``total`` and ``extreme`` go from items to sets, ``spread`` back.

    ``present`` is true at the items that count, ``sizes`` is their number (it broadcasts against ``shape``).
    """

    shape: torch.Size
    total: Callable[[Tensor], Tensor]
    extreme: Callable[[Tensor, bool], Tensor]
    spread: Callable[[Tensor], Tensor]
    present: Tensor | None
    sizes: Tensor


def _pool(a: Tensor, p: float | Tensor, q: float | Tensor, sets: _Sets, limits: torch.finfo) -> Tensor:
    def of_items(exponent: float | Tensor) -> float | Tensor:
        return sets.spread(exponent) if isinstance(exponent, Tensor) else exponent

    log_sizes = sets.sizes.clamp(min=1).to(a.dtype).log()
    infinite = torch.isinf(p) if isinstance(p, Tensor) else math.isinf(p)
    if isinstance(infinite, bool) and infinite:
        return sets.extreme(a, bool(p > 0)) * (-q * log_sizes).exp()

    exponent = torch.where(torch.isinf(p), 1.0, p).to(a.dtype) if isinstance(p, Tensor) else p
    zero = a < torch.finfo(a.dtype).tiny
    counted = ~zero if sets.present is None else ~zero & sets.present
    scaled = of_items(exponent) * torch.where(zero, 1.0, a).log()
    shift = sets.extreme(torch.where(counted, scaled.detach(), -torch.inf), True)
    shift = torch.where(torch.isfinite(shift), shift, 0.0)
    terms = torch.where(counted, torch.where(counted, scaled - sets.spread(shift), 0.0).exp(), 0.0)
    sums = sets.total(terms)
    empty = sums <= 0
    negative = exponent < 0
    if not isinstance(negative, bool) and can_look(negative):
        negative = negative if bool(negative.any()) else False
    if not (isinstance(negative, bool) and not negative):  # one zero makes the whole 0
        absorbed = sets.total((zero if sets.present is None else zero & sets.present).to(a.dtype)) > 0
        empty = empty | (absorbed & negative)
    log_norms = (shift + torch.where(empty, 1.0, sums).log()) / exponent - q * log_sizes
    largest = math.log(limits.max) * (1 - max(limits.eps, torch.finfo(a.dtype).eps))
    norms = torch.where(empty, 0.0, torch.where(empty, 0.0, log_norms).clamp(max=largest).exp())
    if isinstance(infinite, bool) or (can_look(infinite) and not bool(infinite.any())):
        return norms
    assert isinstance(p, Tensor)
    ends = torch.where(p > 0, sets.extreme(a, True), sets.extreme(a, False)) * (-q * log_sizes).exp()
    return torch.where(infinite, ends, norms)


def _dense(x: Tensor, dim: int, mask: Tensor | None) -> _Sets:
    place = check_dim(x, dim)
    if x.ndim == 0:
        raise ValueError("x must have a dimension of sets, got a number")
    present = None
    if mask is not None:
        if check_tensor("mask", mask).dtype != torch.bool:
            raise TypeError(f"mask must be a boolean tensor, got {mask.dtype}")
        try:
            present = mask.expand(x.shape[: place + 1]).reshape(*x.shape[: place + 1], *[1] * (x.ndim - place - 1))
        except RuntimeError:
            raise ValueError(
                f"mask must have shape {tuple(x.shape[: place + 1])}, that of x up to dim, got {tuple(mask.shape)}"
            ) from None
    shape = x.shape[:place] + x.shape[place + 1 :]

    def extreme(items: Tensor, largest: bool) -> Tensor:
        if x.shape[place] == 0:
            return items.new_zeros(shape)
        held = items if present is None else torch.where(present, items, -torch.inf if largest else torch.inf)
        found = held.amax(place) if largest else held.amin(place)
        return found if present is None else torch.where(present.any(place), found, 0.0)

    sizes = x.new_tensor(x.shape[place]) if present is None else present.sum(place)
    return _Sets(
        shape, lambda items: items.sum(place), extreme, lambda t: t.expand(shape).unsqueeze(place), present, sizes
    )


def _segments(x: Tensor, index: Tensor, count: int | None, mask: Tensor | None) -> _Sets:
    if mask is not None:
        raise ValueError("mask must be left out where index says which rows are in a set")
    if count is None:
        raise ValueError("count must be the number of sets where index is given")
    check_integer("count", count, 0)
    sizes = segment_reduce(torch.ones_like(index), index, count)  # checks the index
    if x.ndim < 1 or x.shape[:1] != index.shape:
        raise ValueError(f"index must have one entry a row of x, got {tuple(index.shape)} for x {tuple(x.shape)}")
    shape = torch.Size((count, *x.shape[1:]))

    def spread(t: Tensor) -> Tensor:
        return t[index] if t.ndim == x.ndim and len(t) > 1 else t

    return _Sets(
        shape,
        lambda items: segment_reduce(items, index, count),
        lambda items, largest: segment_reduce(items, index, count, reduce="max" if largest else "min"),
        spread,
        None,
        sizes.reshape(-1, *[1] * (x.ndim - 1)),
    )


def _exponent(name: str, value: float | Tensor, shape: torch.Size) -> float | Tensor:
    if isinstance(value, Tensor):
        check_floating(name, value)
        try:
            value.expand(shape)
        except RuntimeError:
            raise ValueError(
                f"{name} must broadcast against the result {tuple(shape)}, got shape {tuple(value.shape)}"
            ) from None
        if not can_look(value):
            return value
        wrong = (value.isnan() | (value == 0)) if name == "p" else ~value.isfinite()
        if bool(wrong.any()):
            raise ValueError(f"{name} must be {_ALLOWED[name]}, got {value[wrong].flatten()[0].item()}")
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number or a floating tensor, got {type(value).__name__}")
    if math.isnan(value) or (value == 0 if name == "p" else math.isinf(value)):
        raise ValueError(f"{name} must be {_ALLOWED[name]}, got {value}")
    return float(value)


_ALLOWED = {"p": "a number other than 0", "q": "finite"}
