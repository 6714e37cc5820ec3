"""Optimal transport on a line: by sorting, exact for every convex cost of the distance."""

from __future__ import annotations

import torch

from pullback.core.checks import check_broadcast, check_floating, check_range, check_same_dtype
from pullback.core.shapes import Float, Tensor
from pullback.transport.masses import masses

__all__ = ["wasserstein_1d"]


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
    left, right = x.sort(dim=-1), y.sort(dim=-1)
    if a is None and b is None and sizes[0] == sizes[1]:
        return _power(left.values - right.values, p).mean(-1).to(dtype)
    supply, demand = masses(a, b, sizes=sizes, batch=batch, like=x.to(dtype), what="x")
    below, beyond = (t.gather(-1, s.indices).cumsum(-1) for t, s in ((supply, left), (demand, right)))
    levels = torch.cat([below[..., :-1], beyond[..., :-1]], -1).sort(-1).values
    end = below[..., -1:]
    levels = torch.cat([levels, end], -1).clamp(max=end)
    share = torch.diff(levels, dim=-1, prepend=torch.zeros_like(end))
    # The point at the middle of a piece: its ends belong to two points.
    middle = (levels - share / 2).detach()
    at_x, at_y = (
        s.values.gather(-1, torch.searchsorted(c.detach().contiguous(), middle).clamp(max=c.shape[-1] - 1))
        for s, c in ((left, below), (right, beyond))
    )
    return (share * _power(at_x - at_y, p)).sum(-1).to(dtype)


def _power(difference: Tensor, p: float) -> Tensor:
    if p == 1:
        return difference.abs()
    if p == 2:
        return difference.square()
    size = difference.abs()
    # |d|^p has slope 0 at 0; pow would make its second derivative there NaN.
    return torch.where(size > 0, torch.where(size > 0, size, 1.0) ** p, 0.0)
