"""Projections on sets that linear equations and inequalities bound."""

from __future__ import annotations

import torch

from pullback.core.checks import check_broadcast, check_floating, check_same_dtype
from pullback.core.shapes import Bool, Float, Tensor
from pullback.core.transforms import can_look
from pullback.implicit.arguments import broadcast
from pullback.implicit.projections import check_points, projection_affine
from pullback.implicit.quadratic_program import Constraints, quadratic_program

__all__ = ["projection_box_section", "projection_halfspace", "projection_hyperplane", "projection_polyhedron"]

Number = float | Float[Tensor, "..."]


def projection_hyperplane(x: Float[Tensor, "*#batch n"], normal: Float[Tensor, "*#batch n"], offset: Number) -> Tensor:
    r"""Project on ``{p : normal . p = offset}``: ``x - (normal . x - offset) normal / |normal|^2``.

    Args:
        x: ``[*batch, n]`` the points.
        normal: ``[*batch, n]`` not 0, or ``[n]`` for all.
        offset: a number or a tensor that broadcasts against ``[*batch]``.

    Returns:
        ``[*batch, n]`` the projections.

    Raises:
        TypeError: ``x`` is no floating tensor, or ``normal`` has another dtype.
        ValueError: the shapes do not fit, or ``normal`` is 0.

    Example:
        >>> projection_hyperplane(torch.tensor([1.0, 1.0]), torch.tensor([1.0, 1.0]), 1.0)
        tensor([0.5000, 0.5000])
    """
    batch = _check(x, normal)
    right = broadcast("offset", offset, x, batch).expand(batch)
    if can_look(normal) and bool((normal == 0).all(-1).any()):
        raise ValueError("normal must not be 0")
    return projection_affine(x.expand(*batch, -1), normal[..., None, :], right[..., None])


def projection_halfspace(x: Float[Tensor, "*#batch n"], normal: Float[Tensor, "*#batch n"], offset: Number) -> Tensor:
    r"""Project on ``{p : normal . p <= offset}``: on its hyperplane where ``x`` lies beyond.

    Args:
        x: ``[*batch, n]`` the points.
        normal: ``[*batch, n]`` not 0, or ``[n]`` for all.
        offset: a number or a tensor that broadcasts against ``[*batch]``.

    Returns:
        ``[*batch, n]`` the projections.

    Raises:
        TypeError: ``x`` is no floating tensor, or ``normal`` has another dtype.
        ValueError: the shapes do not fit, or ``normal`` is 0.

    Example:
        >>> projection_halfspace(torch.tensor([[1.0, 1.0], [0.0, 0.0]]), torch.tensor([1.0, 1.0]), 1.0)
        tensor([[0.5000, 0.5000],
                [0.0000, 0.0000]])
    """
    on_plane = projection_hyperplane(x, normal, offset)
    # Beyond the plane the step to it points against the normal. Signs alone: sums of products might overflow.
    step, side = (on_plane - x).detach(), normal.detach()
    beyond = (step.sign() * side.sign()).sum(-1, keepdim=True) < 0
    return torch.where(beyond, on_plane, x.expand_as(on_plane))


def projection_box_section(
    x: Float[Tensor, "*#batch n"], low: Number, high: Number, normal: Float[Tensor, "*#batch n"], offset: Number
) -> Tensor:
    r"""Project on a box cut by a hyperplane: ``{p : low <= p <= high, normal . p = offset}``.

    ``p = clip(x + tau normal, low, high)``. The number tau solves an equation that is linear between the ``2 n``
    places where an entry reaches a bound; the piece with the root is found by bisection among them, then solved.

    Args:
        x: ``[*batch, n]`` the points.
        low: lower bounds, broadcast against ``x``; may be ``-inf``.
        high: upper bounds; may be ``inf``.
        normal: ``[*batch, n]``, or ``[n]`` for all.
        offset: a number or a tensor that broadcasts against ``[*batch]``.

    Returns:
        ``[*batch, n]`` the projections, with derivatives in all arguments.

    Raises:
        TypeError: ``x`` is no floating tensor, or ``normal`` has another dtype.
        ValueError: the shapes do not fit, ``low`` exceeds ``high``, or the hyperplane misses the box.

    Example:
        >>> projection_box_section(torch.tensor([0.9, 0.4, 0.1]), 0.0, 0.8, torch.ones(3), 1.0)
        tensor([0.7500, 0.2500, 0.0000])

    References:
        Brucker (1984), An O(n) algorithm for quadratic knapsack problems; Held, Wolfe, Crowder (1974).
    """
    batch = _check(x, normal)
    shape = (*batch, x.shape[-1])
    points, slope = x.expand(shape).double(), normal.expand(shape).double()
    below, above = (broadcast(k, v, points, shape).expand(shape) for k, v in (("low", low), ("high", high)))
    target = broadcast("offset", offset, points, batch).expand(batch)[..., None]
    with torch.no_grad():
        rounding = max(1e-9, 8 * torch.finfo(x.dtype).eps)
        free, at_high = _section(rounding, *(v.detach() for v in (points, below, above, slope, target)))
    bound = torch.where(at_high, above, below)
    # An entry that the hyperplane does not see is clipped by itself.
    bound = torch.where(slope == 0, torch.minimum(torch.maximum(points, below), above), bound)
    weight = torch.where(free, slope, 0)
    left = target - torch.where(free, 0, slope * bound).sum(-1, keepdim=True)
    square = (weight * weight).sum(-1, keepdim=True)
    tau = (left - (weight * points).sum(-1, keepdim=True)) / torch.where(square == 0, 1, square)
    found = torch.where(free, points + tau * weight, bound)
    unknown = points.isnan().any(-1, keepdim=True) | slope.isnan().any(-1, keepdim=True) | target.isnan()
    return torch.where(unknown, torch.nan, found).to(x.dtype)


def projection_polyhedron(
    x: Float[Tensor, "*#batch n"],
    equality: Constraints | None = None,
    inequality: Constraints | None = None,
    *,
    check: bool = True,
) -> Tensor:
    r"""Project on ``{p : A p = b, G p <= h}``, a quadratic program.

    Args:
        x: ``[*batch, n]`` the points.
        equality: ``A`` ``[*batch, p, n]`` and ``b`` ``[*batch, p]``.
        inequality: ``G`` ``[*batch, m, n]`` and ``h`` ``[*batch, m]``.
        check: raise where the polyhedron is empty; else a point that violates it is returned.

    Returns:
        ``[*batch, n]`` the projections, with derivatives in all tensors.

    Raises:
        TypeError: an argument is no floating tensor, or their dtypes differ.
        ValueError: shapes do not fit, or a number is NaN.
        ConvergenceError: the polyhedron is empty.

    Example:
        >>> rows = torch.tensor([[1.0, 1.0], [-1.0, 0.0]])
        >>> projection_polyhedron(torch.tensor([2.0, 2.0]), inequality=(rows, torch.tensor([2.0, 0.0])))
        tensor([1., 1.])
    """
    check_points(x)
    eye = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    return quadratic_program(eye, -x, equality, inequality, check=check).value


def _check(x: Tensor, normal: Tensor) -> torch.Size:
    check_points(x)
    check_floating("normal", normal)
    check_same_dtype(x=x, normal=normal)
    if normal.shape[-1:] != x.shape[-1:]:
        raise ValueError(f"normal must be [*, n] for x {tuple(x.shape)}, got {tuple(normal.shape)}")
    return check_broadcast(x=tuple(x.shape[:-1]), normal=tuple(normal.shape[:-1]))


def _section(
    rounding: float, x: Tensor, low: Tensor, high: Tensor, slope: Tensor, target: Tensor
) -> tuple[Bool[Tensor, "*batch n"], Bool[Tensor, "*batch n"]]:
    """Return which entries lie between their bounds at the projection, and which of the others are at the upper one."""
    crossed = ~(low <= high)
    if can_look(crossed) and bool(crossed.any()):
        raise ValueError("low must not exceed high, and neither may be NaN, in any entry")
    seen = slope != 0
    divisor = torch.where(seen, slope, 1)
    ends = ((low - x) / divisor, (high - x) / divisor)
    enter = torch.where(seen, torch.minimum(*ends), torch.inf)
    leave = torch.where(seen, torch.maximum(*ends), torch.inf)

    def total(tau: Tensor) -> Tensor:
        moved = torch.where(tau <= enter, torch.where(slope > 0, low, high), x + tau * slope)
        moved = torch.where(tau >= leave, torch.where(slope > 0, high, low), moved)
        return torch.where(seen, slope * moved, 0).sum(-1, keepdim=True)

    endless = torch.full_like(target, torch.inf)
    places = torch.cat([-endless, enter, leave, endless], -1).sort(-1).values
    least, most = total(-endless), total(endless)
    terms = torch.where(seen, slope * torch.where(slope * target < 0, low, high), 0)
    slack = rounding * (1 + target.abs() + terms.masked_fill(terms.isinf(), 0).abs().sum(-1, keepdim=True))
    missed = (target < least - slack) | (target > most + slack)
    if can_look(missed) and bool(missed.any()):
        raise ValueError("the hyperplane misses the box: normal . p = offset has no solution with low <= p <= high")
    first = torch.zeros_like(target, dtype=torch.int64)
    last = torch.full_like(first, places.shape[-1] - 1)
    for _ in range(places.shape[-1].bit_length()):
        middle = (first + last) // 2
        short = total(places.gather(-1, middle)) <= target
        first, last = torch.where(short, middle, first), torch.where(short, last, middle)
    start, end = places.gather(-1, first), places.gather(-1, last)
    free = seen & (enter <= start) & (leave >= end)
    entered = enter < end
    return free, torch.where(slope > 0, entered, ~entered)
