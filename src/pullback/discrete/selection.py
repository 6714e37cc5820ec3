"""Single places and subsets of an order with a gradient: max, median, quantile, masks, distributions over positions.

Methods, ``temperature`` and ``scale`` are those of :mod:`pullback.discrete.sorting`. Values are places of the
soft-sorted values; ``argmax``, ``argmin``, ``argmedian`` and ``argquantile`` return a distribution over positions, as
an index carries no gradient.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from pullback.core.checks import check_choice, check_floating, check_integer, check_positive
from pullback.core.gradients import replace_gradient
from pullback.core.shapes import Float, Scalar, Tensor
from pullback.discrete.request import Request

__all__ = [
    "Partition",
    "argmax",
    "argmedian",
    "argmin",
    "argquantile",
    "kthvalue",
    "max",
    "median",
    "min",
    "partition",
    "quantile",
    "soft_topk",
]

_INTERPOLATIONS = ("linear", "lower", "higher", "nearest", "midpoint")


def max(
    x: Float[Tensor, "*shape"],
    dim: int | None = -1,
    keepdim: bool = False,
    *,
    method: str = "softsort",
    temperature: Scalar = 0.1,
    scale: str | None = "std",
    hard: bool = False,
) -> Float[Tensor, "..."]:
    """Return the largest value along ``dim``: the last place of the soft-sorted values, never above the true maximum.

    Args:
        x: ``[*shape]`` floating, ``dim`` not empty.
        dim: the dimension to reduce; ``None`` takes all entries together.
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
    request = Request.over(x, dim, method=method, temperature=temperature, scale=scale, empty=False)
    return _place(request, request.size - 1, keepdim, hard)


def min(
    x: Float[Tensor, "*shape"],
    dim: int | None = -1,
    keepdim: bool = False,
    *,
    method: str = "softsort",
    temperature: Scalar = 0.1,
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
    request = Request.over(x, dim, method=method, temperature=temperature, scale=scale, empty=False)
    return _place(request, 0, keepdim, hard)


def kthvalue(
    x: Float[Tensor, "*shape"],
    k: int,
    dim: int = -1,
    keepdim: bool = False,
    *,
    method: str = "softsort",
    temperature: Scalar = 0.1,
    scale: str | None = "std",
    hard: bool = False,
) -> Float[Tensor, "..."]:
    """Return the ``k``-th smallest value along ``dim``, counted from 1 as torch does.

    Args:
        x, keepdim, method, temperature, scale, hard: as in :func:`max`.
        dim: the dimension to reduce.
        k: 1 <= k <= n.

    Returns:
        The values.

    Raises:
        TypeError, IndexError, ValueError: as in :func:`max`, or ``k`` is out of range.

    Example:
        >>> float(kthvalue(torch.tensor([1.0, 4.0, 2.0]), 2, hard=True))
        2.0
    """
    request = Request.of(x, dim, method=method, temperature=temperature, scale=scale, empty=False)
    check_integer("k", k, 1, request.size)
    return _place(request, k - 1, keepdim, hard)


def median(
    x: Float[Tensor, "*shape"],
    dim: int | None = -1,
    keepdim: bool = False,
    *,
    method: str = "softsort",
    temperature: Scalar = 0.1,
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
    request = Request.over(x, dim, method=method, temperature=temperature, scale=scale, empty=False)
    return _place(request, (request.size - 1) // 2, keepdim, hard)


def quantile(
    x: Float[Tensor, "*shape"],
    q: float | Tensor,
    dim: int | None = None,
    keepdim: bool = False,
    *,
    interpolation: str = "linear",
    method: str = "softsort",
    temperature: Scalar = 0.1,
    scale: str | None = "std",
    hard: bool = False,
) -> Float[Tensor, "..."]:
    """Return the ``q``-quantile along ``dim``: place ``q (n - 1)`` of the soft-sorted values, between places
    interpolated.

    Args:
        x: ``[*shape]`` floating.
        q: in [0, 1]: a number, or a tensor ``[]`` or ``[m]`` (the result then has m first), which gets no gradient.
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
    if isinstance(q, bool) or not isinstance(q, Tensor | int | float):
        raise TypeError(f"q must be a number or a tensor, got {type(q).__name__}")
    levels = q.detach() if isinstance(q, Tensor) else torch.tensor(float(q), dtype=torch.float64)
    if levels.ndim > 1:
        raise ValueError(f"q must be a number or a tensor of one dimension, got shape {tuple(levels.shape)}")
    numbers = [float(level) for level in levels.reshape(-1)]
    if not numbers or not all(0 <= level <= 1 for level in numbers):
        raise ValueError(f"q must be one or more numbers in [0, 1], got {numbers}")
    request = Request.over(x, dim, method=method, temperature=temperature, scale=scale, empty=False)
    ordered = request.values(hard=hard)
    parts = [
        request.reduced(_interpolate(ordered, level * (request.size - 1), interpolation), keepdim) for level in numbers
    ]
    return torch.stack(parts) if levels.ndim == 1 else parts[0]


def argmax(
    x: Float[Tensor, "*shape"],
    dim: int | None = -1,
    *,
    method: str = "softsort",
    temperature: Scalar = 0.1,
    scale: str | None = "std",
    hard: bool = False,
) -> Float[Tensor, "*shape"]:
    """Return a distribution over the positions along ``dim`` in place of ``argmax``: the last row of the permutation.

    ``"softsort"``: ``softmax(x / t)``. ``"neuralsort"``: ``softmax(((n - 1) x_j - sum_k |x_j - x_k|) / t)``.
    ``"sinkhorn"``, ``"network"``: the row of the doubly stochastic matrix. ``"isotonic"``: ``sparsemax(x / t)``, the
    projection onto the simplex; ``"isotonic_kl"``: its Kullback-Leibler form, ``softmax(x / t)``. ``"softsort_c0"``,
    ``"softsort_c1"``, ``"softsort_c2"``: ``entmax(x / t)``, alpha 2, 3/2, 4/3. All but the networks take O(n) memory.

    Args:
        x: ``[*shape]`` floating, ``dim`` not empty. ``+inf`` wins, ties share.
        dim: the dimension of positions; ``None`` takes all entries together.
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
    request = Request.over(x, dim, method=method, temperature=temperature, scale=scale, needed="largest", empty=False)
    return _position(request, hard)


def argmin(
    x: Float[Tensor, "*shape"],
    dim: int | None = -1,
    *,
    method: str = "softsort",
    temperature: Scalar = 0.1,
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
    request = Request.over(x, dim, method=method, temperature=temperature, scale=scale, needed="largest", empty=False)
    return _position(request.negated(), hard)


def argmedian(
    x: Float[Tensor, "*shape"],
    dim: int | None = -1,
    *,
    method: str = "softsort",
    temperature: Scalar = 0.1,
    scale: str | None = "std",
    hard: bool = False,
) -> Float[Tensor, "*shape"]:
    """Return a distribution over the positions along ``dim`` in place of the index of the median: the middle row of the
    permutation, of an even number of rows the lower one, as in ``torch.median``.

    Args:
        x, dim, temperature, scale: as in :func:`argmax`.
        method: all but the isotonic ones, which have no matrix.
        hard: return the one-hot vector of the median's position (of ties the one that comes in the middle when they
            stay in their order) with the gradient of the relaxation.

    Returns:
        ``[*shape]``: non-negative, sums to 1 along ``dim``.

    Raises:
        TypeError, IndexError, ValueError: as in :func:`max`.

    Example:
        >>> argmedian(torch.tensor([1.0, 4.0, 2.0]), hard=True).tolist()
        [0.0, 0.0, 1.0]
    """
    request = Request.over(x, dim, method=method, temperature=temperature, scale=scale, needed="matrix", empty=False)
    middle = (request.size - 1) // 2
    return request.back(request.rows(middle, middle + 1, hard=hard).squeeze(-2))


def argquantile(
    x: Float[Tensor, "*shape"],
    q: float,
    dim: int | None = -1,
    *,
    interpolation: str = "linear",
    method: str = "softsort",
    temperature: Scalar = 0.1,
    scale: str | None = "std",
    hard: bool = False,
) -> Float[Tensor, "*shape"]:
    """Return a distribution over the positions along ``dim`` in place of the index of a quantile: row ``q (n - 1)`` of
    the permutation, between rows interpolated.

    For the methods that average rows of ``x`` its product with ``x`` is :func:`quantile`.

    Args:
        x, dim, temperature, scale: as in :func:`argmax`.
        q: a number in [0, 1].
        interpolation: as in :func:`quantile`.
        method: all but the isotonic ones, which have no matrix.
        hard: return the one-hot vectors of the hard order, so interpolated, with the gradient of the relaxation.

    Returns:
        ``[*shape]``: non-negative, sums to 1 along ``dim``.

    Raises:
        TypeError, IndexError, ValueError: as in :func:`max`, ``q`` is outside [0, 1], or ``interpolation`` is unknown.

    Example:
        >>> argquantile(torch.tensor([1.0, 4.0, 2.0]), 0.75, hard=True).tolist()
        [0.0, 0.5, 0.5]
    """
    check_choice("interpolation", interpolation, _INTERPOLATIONS)
    check_positive("q", q, zero=True)
    if q > 1:
        raise ValueError(f"q must be in [0, 1], got {q}")
    request = Request.over(x, dim, method=method, temperature=temperature, scale=scale, needed="matrix", empty=False)
    position = q * (request.size - 1)
    first = math.floor(position)
    rows = request.rows(first, math.ceil(position) + 1, hard=hard)
    return request.back(_interpolate(rows.movedim(-2, -1), position, interpolation, first))


def soft_topk(
    x: Float[Tensor, "*shape"],
    k: int,
    dim: int = -1,
    largest: bool = True,
    *,
    method: str = "sinkhorn",
    temperature: Scalar = 0.1,
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
        method: ``"sinkhorn"``, ``"isotonic"`` or a network; the rows of the other methods may sum to more than 1 for an
            entry.
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
    request = Request.of(x, dim, method=method, temperature=temperature, scale=scale, needed="mask")
    check_integer("k", k, 0, request.size)
    return _mask(request if largest else request.negated(), k, hard)


class Partition(NamedTuple):
    """Two soft masks that sum to 1 at every entry.

    Attributes:
        lower: ``[*shape]`` membership in the k smallest, sums to k.
        upper: ``[*shape]`` membership in the others, sums to n - k.
    """

    lower: Tensor
    upper: Tensor


def partition(
    x: Float[Tensor, "*shape"],
    k: int,
    dim: int = -1,
    *,
    method: str = "sinkhorn",
    temperature: Scalar = 0.1,
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


def _place(request: Request, place: int, keepdim: bool, hard: bool) -> Tensor:
    return request.reduced(request.values(hard=hard).select(-1, place), keepdim)


def _interpolate(ordered: Tensor, position: float, interpolation: str, first: int = 0) -> Tensor:
    """Return what is at a fractional place of ``ordered [..., places]``, whose places are counted from ``first``."""
    low, high = math.floor(position) - first, math.ceil(position) - first
    if interpolation == "lower" or low == high:
        return ordered[..., low]
    if interpolation == "higher":
        return ordered[..., high]
    if interpolation == "nearest":
        return ordered[..., round(position) - first]
    return torch.lerp(
        ordered[..., low], ordered[..., high], 0.5 if interpolation == "midpoint" else position - low - first
    )


def _position(request: Request, hard: bool) -> Tensor:
    """Return the distribution over positions of the largest entry."""
    last = request.last.detach()
    if request.is_hard or hard:
        exact = torch.zeros_like(last).scatter(-1, last.argmax(-1, keepdim=True), 1.0)
        if request.is_hard:
            return request.back(replace_gradient(exact, torch.sign(request.last)))
    soft = request.method.largest(request.sorted).to(last.dtype)
    return request.back(replace_gradient(exact, soft) if hard else soft)


def _mask(request: Request, k: int, hard: bool) -> Tensor:
    """Return the membership in the k largest entries."""
    last = request.last.detach()
    if request.is_hard or hard:
        exact = torch.zeros_like(last).scatter(-1, request.indices(descending=True)[..., :k], 1.0)
        if request.is_hard:
            return request.back(replace_gradient(exact, torch.sign(request.last)))
    if k in (0, request.size):
        o = request.sorted  # refuses NaN
        soft = torch.full_like(last, 1.0 if k else 0.0) + 0.0 * o.to_items(o.finite).to(last.dtype)
    else:
        assert request.method.mask is not None
        soft = request.method.mask(request.sorted, k).to(last.dtype)
    return request.back(replace_gradient(exact, soft) if hard else soft)
