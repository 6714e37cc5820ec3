"""Optimal transport on a line: by sorting, exact for every convex cost of the distance."""

from __future__ import annotations

from typing import NamedTuple

import torch

from pullback.core.checks import check_broadcast, check_floating, check_range, check_same_dtype
from pullback.core.shapes import Float, Tensor
from pullback.kernels.order import row_order
from pullback.transport.masses import masses

__all__ = ["Matching", "matching", "wasserstein_1d"]


def wasserstein_1d(
    x: Float[Tensor, "*#batch n"],
    y: Float[Tensor, "*#batch m"],
    a: Float[Tensor, "*#batch n"] | None = None,
    b: Float[Tensor, "*#batch m"] | None = None,
    *,
    p: float = 2.0,
) -> Float[Tensor, "*batch"]:
    r"""Return the p-th power of the Wasserstein distance on a line, :math:`\int_0^1|F^{-1}(u)-G^{-1}(u)|^p\,du`.

    With one mass for all points and n = m that is the mean of :math:`|x_{(i)}-y_{(i)}|^p`; else the sum over the pieces
    of the merged cumulative masses. O((n + m) log(n + m)), differentiable in points and masses.

    Args:
        x: ``[*batch, n]`` points.
        y: ``[*batch, m]`` points.
        a: ``[*batch, n]`` masses >= 0; uniform by default.
        b: ``[*batch, m]`` masses >= 0 of the same sum; scaled to it where rounding makes them differ.
        p: >= 1, of the cost ``|x - y|**p``.

    Returns:
        ``[*batch]`` the least cost ``W_p**p`` (of unit mass where no masses are given); take the root for the distance.

    Raises:
        TypeError: ``x`` or ``y`` is no floating tensor, or the dtypes differ.
        ValueError: there are no points, ``p`` < 1, masses are negative or of different sums, or shapes do not fit.

    Example:
        >>> wasserstein_1d(torch.tensor([0.0, 3.0]), torch.tensor([4.0, 1.0]), p=1)
        tensor(1.)
        >>> wasserstein_1d(torch.tensor([0.0, 4.0]), torch.tensor([0.0]), torch.tensor([0.75, 0.25]), p=2)
        tensor(4.)

    References:
        Peyre, Cuturi (2019), Computational optimal transport, section 2.6.
    """
    check_same_dtype(x=check_floating("x", x), y=check_floating("y", y))
    check_range("p", p, 1, 1e3)
    for name, points in (("x", x), ("y", y)):
        if points.ndim == 0 or points.shape[-1] == 0:
            raise ValueError(f"{name} must have at least one point, got shape {tuple(points.shape)}")
    given = {name: tuple(t.shape[:-1]) for name, t in (("a", a), ("b", b)) if isinstance(t, Tensor)}
    batch = check_broadcast(x=tuple(x.shape[:-1]), y=tuple(y.shape[:-1]), **given)
    sizes = (x.shape[-1], y.shape[-1])
    wide = torch.promote_types(x.dtype, torch.float32)
    x, y, dtype = x.to(wide).expand(*batch, sizes[0]), y.to(wide).expand(*batch, sizes[1]), x.dtype
    if a is None and b is None and sizes[0] == sizes[1]:
        matched = matching(x, y, None, None)
        return _power(x.gather(-1, matched.of_x) - y.gather(-1, matched.of_y), p).mean(-1).to(dtype)
    supply, demand = masses(a, b, sizes=sizes, batch=batch, like=x.to(dtype), what="x")
    matched = matching(x, y, supply, demand)
    return (matched.share * _power(x.gather(-1, matched.of_x) - y.gather(-1, matched.of_y), p)).sum(-1).to(dtype)


class Matching(NamedTuple):
    """The monotone plan, best for every convex cost: ``share [*batch, k]`` goes from ``of_x`` to ``of_y``."""

    share: Tensor
    of_x: Tensor
    of_y: Tensor


def matching(x: Tensor, y: Tensor, supply: Tensor | None, demand: Tensor | None) -> Matching:
    """Return which points ``[*batch, n]`` and ``[*batch, m]`` are matched: n pairs, of masses n + m - 1.

    Without masses n = m, and each point has 1 / n.

    Example:
        >>> found = matching(torch.tensor([3.0, 0.0]), torch.tensor([1.0, 4.0]), None, None)
        >>> found.of_x.tolist(), found.of_y.tolist()
        ([1, 0], [0, 1])
    """
    order_x, order_y = row_order(x), row_order(y)
    if supply is None or demand is None:
        return Matching(torch.full_like(x, 1 / x.shape[-1]), order_x, order_y)
    below, beyond = (t.gather(-1, order).cumsum(-1) for t, order in ((supply, order_x), (demand, order_y)))
    levels = torch.cat([below[..., :-1], beyond[..., :-1]], -1)
    merged = row_order(levels)
    end = below[..., -1:]
    levels = torch.cat([levels.gather(-1, merged), end], -1).clamp(max=end)
    share = torch.diff(levels, dim=-1, prepend=torch.zeros_like(end))
    # A piece begins where so many points of x and of y have ended.
    passed_x = torch.cat([torch.zeros_like(merged[..., :1]), (merged < x.shape[-1] - 1).long().cumsum(-1)], -1)
    passed_y = torch.arange(passed_x.shape[-1], device=x.device) - passed_x
    return Matching(share, order_x.gather(-1, passed_x), order_y.gather(-1, passed_y))


def _power(difference: Tensor, p: float) -> Tensor:
    if p == 1:
        return difference.abs()
    if p == 2:
        return difference.square()
    size = difference.abs()
    # |d|^p has slope 0 at 0; pow would make its second derivative there NaN.
    return torch.where(size > 0, torch.where(size > 0, size, 1.0) ** p, 0.0)
