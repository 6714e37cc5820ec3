"""Single places and subsets of an order with a gradient: max, median, quantile, soft masks, distributions over
positions.

Methods, ``temperature`` and ``scale`` are those of :mod:`pullback.discrete.sorting`. Values are places of the
soft-sorted values. Index-valued operations (``argmax``, ``argmin``) return a distribution over positions: an index
carries no gradient.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from pullback.core.checks import check_choice, check_floating, check_integer
from pullback.core.gradients import replace_gradient
from pullback.core.shapes import Float, Tensor
from pullback.discrete.isotonic import increasing_regression
from pullback.discrete.optimal_transport import Transport, soft_threshold
from pullback.discrete.sorted_input import ALL, SortedInput, hard_requested, has_infinities, place_last
from pullback.discrete.sorting import sort
from pullback.kernels.neuralsort import distance_sums

__all__ = ["Partition", "argmax", "argmin", "kthvalue", "max", "median", "min", "partition", "quantile", "soft_topk"]

_MASKS = ("sinkhorn", "network", "isotonic")
_INTERPOLATIONS = ("linear", "lower", "higher", "nearest", "midpoint")


def max(
    x: Float[Tensor, "*shape"],
    dim: int = -1,
    keepdim: bool = False,
    *,
    method: str = "softsort",
    temperature: float = 0.1,
    scale: str | None = "std",
    hard: bool = False,
) -> Float[Tensor, "..."]:
    """Return the largest value along ``dim``: the last place of the soft-sorted values, never above the true maximum.

    Args:
        x: ``[*shape]`` floating, ``dim`` not empty.
        dim: the dimension to reduce.
        keepdim: keep it with size 1.
        method, temperature, scale, hard: as in :func:`~pullback.discrete.sort`.

    Returns:
        The values (torch's first result; :func:`argmax` is the second).

    Raises:
        TypeError, IndexError, ValueError: as in ``sort``, or ``dim`` is empty.

    Example:
        >>> float(max(torch.tensor([1.0, 4.0, 2.0]), hard=True))
        4.0
    """
    n = _size(x, dim, temperature)
    return _place(x, n - 1, dim, keepdim, method, temperature, scale, hard)


def min(
    x: Float[Tensor, "*shape"],
    dim: int = -1,
    keepdim: bool = False,
    *,
    method: str = "softsort",
    temperature: float = 0.1,
    scale: str | None = "std",
    hard: bool = False,
) -> Float[Tensor, "..."]:
    """Return the smallest value along ``dim``: the first place of the soft-sorted values.

    Args:
        x, dim, keepdim, method, temperature, scale, hard: as in :func:`max`.

    Returns:
        The values.

    Raises:
        TypeError, IndexError, ValueError: as in :func:`max`.

    Example:
        >>> float(min(torch.tensor([1.0, 4.0, 2.0]), hard=True))
        1.0
    """
    _size(x, dim, temperature)
    return _place(x, 0, dim, keepdim, method, temperature, scale, hard)


def kthvalue(
    x: Float[Tensor, "*shape"],
    k: int,
    dim: int = -1,
    keepdim: bool = False,
    *,
    method: str = "softsort",
    temperature: float = 0.1,
    scale: str | None = "std",
    hard: bool = False,
) -> Float[Tensor, "..."]:
    """Return the ``k``-th smallest value along ``dim``, counted from 1 as torch does.

    Args:
        x, dim, keepdim, method, temperature, scale, hard: as in :func:`max`.
        k: 1 <= k <= n.

    Returns:
        The values.

    Raises:
        TypeError, IndexError, ValueError: as in :func:`max`, or ``k`` is out of range.

    Example:
        >>> float(kthvalue(torch.tensor([1.0, 4.0, 2.0]), 2, hard=True))
        2.0
    """
    n = _size(x, dim, temperature)
    check_integer("k", k, 1, n)
    return _place(x, k - 1, dim, keepdim, method, temperature, scale, hard)


def median(
    x: Float[Tensor, "*shape"],
    dim: int = -1,
    keepdim: bool = False,
    *,
    method: str = "softsort",
    temperature: float = 0.1,
    scale: str | None = "std",
    hard: bool = False,
) -> Float[Tensor, "..."]:
    """Return the median along ``dim``: as torch's, the lower of the two middle values for an even count.

    Args:
        x, dim, keepdim, method, temperature, scale, hard: as in :func:`max`.

    Returns:
        The values.

    Raises:
        TypeError, IndexError, ValueError: as in :func:`max`.

    Example:
        >>> float(median(torch.tensor([1.0, 4.0, 2.0, 3.0]), hard=True))
        2.0
    """
    n = _size(x, dim, temperature)
    return _place(x, (n - 1) // 2, dim, keepdim, method, temperature, scale, hard)


def quantile(
    x: Float[Tensor, "*shape"],
    q: float | Tensor,
    dim: int | None = None,
    keepdim: bool = False,
    *,
    interpolation: str = "linear",
    method: str = "softsort",
    temperature: float = 0.1,
    scale: str | None = "std",
    hard: bool = False,
) -> Float[Tensor, "..."]:
    """Return the ``q``-quantile along ``dim``: place ``q (n - 1)`` of the soft-sorted values, between places
    interpolated.

    Args:
        x: ``[*shape]`` floating.
        q: in [0, 1]: a number, or a tensor ``[]`` or ``[m]``; with ``[m]`` the result has m as its first dimension.
        dim: the dimension to reduce; ``None`` flattens ``x``.
        keepdim: keep it (or all, for ``None``) with size 1.
        interpolation: ``"linear"``, ``"lower"``, ``"higher"``, ``"nearest"`` or ``"midpoint"``.
        method, temperature, scale, hard: as in :func:`max`.

    Returns:
        The quantiles, laid out as ``torch.quantile``'s.

    Raises:
        TypeError, IndexError, ValueError: as in :func:`max`, ``q`` is outside [0, 1] or has more than one dimension, or
            ``interpolation`` is unknown.

    Example:
        >>> float(quantile(torch.tensor([1.0, 4.0, 2.0]), 0.75, hard=True))
        3.0
    """
    check_floating("x", x)
    check_choice("interpolation", interpolation, _INTERPOLATIONS)
    levels = q if isinstance(q, Tensor) else torch.tensor(float(q), dtype=torch.float64)
    if levels.ndim > 1:
        raise ValueError(f"q must be a number or a tensor of one dimension, got shape {tuple(levels.shape)}")
    numbers = [float(level) for level in levels.detach().reshape(-1)]
    if not all(0 <= level <= 1 for level in numbers):
        raise ValueError(f"q must be in [0, 1], got {numbers}")
    flat, at = (x.reshape(-1), 0) if dim is None else (x, dim)
    n = _size(flat, at, temperature)
    ordered = sort(flat, at, method=method, temperature=temperature, scale=scale, hard=hard).values
    ordered = ordered.unsqueeze(0) if x.ndim == 0 and dim is not None else ordered
    parts = [_interpolate(ordered, level * (n - 1), at, interpolation) for level in numbers]
    if keepdim:
        shape = [1] * x.ndim if dim is None else None
        parts = [p.reshape(shape) if shape is not None else p.unsqueeze(at) for p in parts]
        if x.ndim == 0:
            parts = [p.reshape(()) for p in parts]
    return torch.stack(parts) if levels.ndim == 1 else parts[0]


def argmax(
    x: Float[Tensor, "*shape"],
    dim: int = -1,
    *,
    method: str = "softsort",
    temperature: float = 0.1,
    scale: str | None = "std",
    hard: bool = False,
) -> Float[Tensor, "*shape"]:
    """Return a distribution over the positions along ``dim`` in place of ``argmax``: the last row of the permutation.

    ``"softsort"``: ``softmax(x / t)``. ``"neuralsort"``: ``softmax(((n - 1) x_j - sum_k |x_j - x_k|) / t)``.
    ``"sinkhorn"``, ``"network"``: the row of the doubly stochastic matrix. ``"isotonic"``: ``sparsemax(x / t)``, the
    projection onto the simplex. All but ``"network"`` take O(n) memory.

    Args:
        x: ``[*shape]`` floating, ``dim`` not empty. ``+inf`` wins, ties share.
        dim: the dimension of positions.
        method, temperature, scale: as in :func:`max`.
        hard: return the one-hot vector of ``torch.argmax`` with the gradient of the relaxation.

    Returns:
        ``[*shape]``: non-negative, sums to 1 along ``dim``.

    Raises:
        TypeError, IndexError, ValueError: as in :func:`max`.

    Example:
        >>> argmax(torch.tensor([1.0, 4.0, 2.0]), hard=True).tolist()
        [0.0, 1.0, 0.0]
        >>> argmax(torch.tensor([0.0, 0.0]), method="isotonic").tolist()
        [0.5, 0.5]

    References:
        Martins, Astudillo (2016), From softmax to sparsemax, for ``"isotonic"``.
    """
    check_choice("method", method, ALL)
    _size(x, dim, temperature)
    last = place_last(x, dim, temperature)
    if hard_requested(temperature, x.dtype):
        has_infinities(last)
        return replace_gradient(_as(_first_largest(last.detach()), x, dim), torch.sign(x))
    o = SortedInput.of(x, dim, method=method, allowed=ALL, temperature=temperature, scale=scale)
    soft = _as(_largest(o, method), x, dim)
    return replace_gradient(_as(_first_largest(last.detach()), x, dim), soft) if hard else soft


def argmin(
    x: Float[Tensor, "*shape"],
    dim: int = -1,
    *,
    method: str = "softsort",
    temperature: float = 0.1,
    scale: str | None = "std",
    hard: bool = False,
) -> Float[Tensor, "*shape"]:
    """Return a distribution over the positions along ``dim`` in place of ``argmin``: :func:`argmax` of ``-x``.

    Args:
        x, dim, method, temperature, scale, hard: as in :func:`argmax`.

    Returns:
        ``[*shape]``: non-negative, sums to 1 along ``dim``.

    Raises:
        TypeError, IndexError, ValueError: as in :func:`max`.

    Example:
        >>> argmin(torch.tensor([1.0, 4.0, 2.0]), hard=True).tolist()
        [1.0, 0.0, 0.0]
    """
    place_last(x, dim, temperature)
    return argmax(-x, dim, method=method, temperature=temperature, scale=scale, hard=hard)


def soft_topk(
    x: Float[Tensor, "*shape"],
    k: int,
    dim: int = -1,
    largest: bool = True,
    *,
    method: str = "sinkhorn",
    temperature: float = 0.1,
    scale: str | None = "std",
    hard: bool = False,
) -> Float[Tensor, "*shape"]:
    """Return a mask in [0, 1] of the ``k`` largest (or smallest) entries along ``dim`` that sums to ``k``.

    ``"sinkhorn"``: entropic transport onto two targets, ``sigmoid((x - theta) / t)`` with ``theta`` such that the sum
    is k. ``"isotonic"``: the closest point to ``x / t`` of ``{m in [0, 1]^n, sum m = k}``. ``"network"``: the sum of k
    rows of the network's matrix. The first two take O(n) memory.

    Args:
        x: ``[*shape]`` floating; ``+inf`` is always in, ``-inf`` only if k exceeds the number of the others.
        k: 0 <= k <= n; 0 and n are exact.
        dim: the dimension of the entries.
        largest: mark the largest entries, else the smallest.
        method: ``"sinkhorn"``, ``"isotonic"`` or ``"network"``; the rows of the other methods may sum to more than 1
            for an entry.
        temperature, scale: as in :func:`max`; at temperature 0 the gradient is 0.
        hard: return the 0/1 mask of ``torch.topk`` with the gradient of the relaxation.

    Returns:
        ``[*shape]`` of the dtype of ``x``.

    Raises:
        TypeError, IndexError, ValueError: as in :func:`max`, or ``k`` is out of range.

    Example:
        >>> soft_topk(torch.tensor([1.0, 4.0, 2.0, 3.0]), 2, hard=True).tolist()
        [0.0, 1.0, 0.0, 1.0]
        >>> round(float(soft_topk(torch.tensor([1.0, 4.0, 2.0, 3.0]), 2, temperature=1.0).sum()), 5)
        2.0

    References:
        Xie et al. (2020), Differentiable top-k with optimal transport. Blondel, Teboul, Berthet, Djolonga (2020).
    """
    check_choice("method", method, _MASKS)
    last = place_last(x, dim, temperature)
    n = last.shape[-1]
    check_integer("k", k, 0, n)
    if not hard_requested(temperature, x.dtype):
        signed = x if largest else -x
        o = SortedInput.of(signed, dim, method=method, allowed=_MASKS, temperature=temperature, scale=scale)
        soft = _as(_mask(o, k, method), x, dim)
        return replace_gradient(_as(_first_k(last.detach(), k, largest), x, dim), soft) if hard else soft
    has_infinities(last)
    return replace_gradient(_as(_first_k(last.detach(), k, largest), x, dim), torch.sign(x))


class Partition(NamedTuple):
    """Two soft masks that sum to 1 at every entry."""

    lower: Tensor
    """``[*shape]`` membership in the k smallest, sums to k."""
    upper: Tensor
    """``[*shape]`` membership in the others, sums to n - k."""


def partition(
    x: Float[Tensor, "*shape"],
    k: int,
    dim: int = -1,
    *,
    method: str = "sinkhorn",
    temperature: float = 0.1,
    scale: str | None = "std",
    hard: bool = False,
) -> Partition:
    """Split the entries along ``dim`` into the ``k`` smallest and the others, softly.

    ``(lower * x).sum(dim) / k`` is then the soft mean of the k smallest (a trimmed mean, a conditional value at risk).

    Args:
        x, dim, method, temperature, scale, hard: as in :func:`soft_topk`.
        k: 0 <= k <= n, the size of the lower part.

    Returns:
        :class:`Partition`: ``lower``, ``upper``.

    Raises:
        TypeError, IndexError, ValueError: as in :func:`soft_topk`.

    Example:
        >>> lower, upper = partition(torch.tensor([1.0, 4.0, 2.0]), 2, hard=True)
        >>> lower.tolist(), upper.tolist()
        ([1.0, 0.0, 1.0], [0.0, 1.0, 0.0])
    """
    lower = soft_topk(x, k, dim, False, method=method, temperature=temperature, scale=scale, hard=hard)
    return Partition(lower, 1 - lower)


def _size(x: Tensor, dim: int, temperature: float) -> int:
    n = place_last(x, dim, temperature).shape[-1]
    if n == 0:
        raise ValueError(f"x must not be empty along dim {dim}, got shape {tuple(x.shape)}")
    return n


def _place(
    x: Tensor, place: int, dim: int, keepdim: bool, method: str, temperature: float, scale: str | None, hard: bool
) -> Tensor:
    ordered = sort(x, dim, method=method, temperature=temperature, scale=scale, hard=hard).values
    if x.ndim == 0:
        return ordered
    value = ordered.select(dim, place)
    return value.unsqueeze(dim) if keepdim else value


def _interpolate(ordered: Tensor, position: float, dim: int, interpolation: str) -> Tensor:
    low, high = math.floor(position), math.ceil(position)
    weight = position - low
    if interpolation == "lower" or low == high:
        return ordered.select(dim, low)
    if interpolation == "higher":
        return ordered.select(dim, high)
    if interpolation == "nearest":
        return ordered.select(dim, round(position))
    return torch.lerp(
        ordered.select(dim, low), ordered.select(dim, high), 0.5 if interpolation == "midpoint" else weight
    )


def _as(last: Tensor, x: Tensor, dim: int) -> Tensor:
    last = last.to(x.dtype)
    return last.squeeze(0) if x.ndim == 0 else last.movedim(-1, dim)


def _first_largest(last: Tensor) -> Tensor:
    return torch.zeros_like(last).scatter(-1, last.argmax(-1, keepdim=True), 1.0)


def _first_k(last: Tensor, k: int, largest: bool) -> Tensor:
    chosen = torch.sort(last, dim=-1, descending=largest, stable=True).indices[..., :k]
    return torch.zeros_like(last).scatter(-1, chosen, 1.0)


def _largest(o: SortedInput, method: str) -> Tensor:
    if method == "network":
        return o.matrix("network")[..., -1, :]
    y = o.points()
    if method == "softsort":
        by_place = torch.softmax(y, dim=-1)
    elif method == "neuralsort":
        n = y.shape[-1]
        by_place = torch.softmax((n - 1) * y - distance_sums(y), dim=-1)
    elif method == "sinkhorn":
        by_place = Transport.row(y, -1)
    else:
        by_place = _capped(y, 1)
    return o.to_items(by_place)


def _mask(o: SortedInput, k: int, method: str) -> Tensor:
    n = o.x.shape[-1]
    if k in (0, n):
        return torch.full_like(o.finite, 1.0 if k else 0.0) + 0.0 * o.finite
    if method == "network":
        return o.matrix("network")[..., n - k :, :].sum(-2)
    y = o.points()
    return o.to_items(torch.sigmoid(y - soft_threshold(y, k)) if method == "sinkhorn" else _capped(y, k))


def _capped(y: Tensor, k: int) -> Tensor:
    """Return the projection of ascending ``y`` onto ``{m in [0, 1]^n, sum m = k}``."""
    n = y.shape[-1]
    w = (torch.arange(n, device=y.device) >= n - k).to(y.dtype).expand_as(y)
    return y - increasing_regression(y, w)
