"""Euclidean projections on convex sets: batched over leading dimensions, differentiable almost everywhere.

Each is right for finite points of any size: numbers that could overflow or cancel are brought to ordinary size first,
by a shift or a scale that does not change the projection. An infinite entry gives the limit, NaN gives NaN.
"""

from __future__ import annotations

import torch

from pullback.core.checks import check_broadcast, check_floating, check_same_dtype
from pullback.core.numerics import solve
from pullback.core.shapes import Bool, Float, Tensor
from pullback.core.transforms import can_look
from pullback.implicit.arguments import broadcast, positive
from pullback.implicit.iteration import times

__all__ = ["projection_affine", "projection_box", "projection_l1_ball", "projection_l2_ball", "projection_simplex"]


def projection_simplex(x: Float[Tensor, "*batch n"], radius: float | Float[Tensor, "..."] = 1.0) -> Tensor:
    r"""Project on the simplex ``{p >= 0, sum p = radius}``: ``p = max(x - tau, 0)``.

    ``tau`` is found exactly with one sort, O(n log n). The Jacobian on the support ``S`` is ``I - 1 1^T / |S|``.

    Args:
        x: ``[*batch, n]`` the points.
        radius: > 0, a number or a tensor that broadcasts against ``[*batch]``.

    Returns:
        ``[*batch, n]`` the projections.

    Raises:
        TypeError: ``x`` is no floating tensor.
        ValueError: ``x`` has no entries in its last dimension, or ``radius`` is not positive.

    Example:
        >>> projection_simplex(torch.tensor([0.5, 1.5, -1.0]))
        tensor([0., 1., 0.])

    References:
        Held, Wolfe, Crowder (1974); Duchi et al. (2008), Efficient projections onto the l1-ball, figure 1.
    """
    check_points(x)
    work = widened(x)
    size = positive("radius", radius, work, x.shape[:-1])[..., None]
    # A shift of all entries changes nothing. Without it the sums below drown a small radius in large entries.
    largest = work.detach().amax(-1, keepdim=True)
    work = torch.where((work == largest) & work.isinf(), 0, work - largest)
    ordered = work.sort(dim=-1, descending=True).values
    excess = ordered.cumsum(-1) - size
    rank = torch.arange(1, x.shape[-1] + 1, dtype=work.dtype, device=work.device)
    support = (ordered * rank > excess).sum(-1, keepdim=True).clamp(min=1)
    tau = excess.gather(-1, support - 1) / support
    return torch.relu(work - tau).to(x.dtype)


def projection_box(
    x: Float[Tensor, "*batch n"], low: float | Float[Tensor, "..."] = 0.0, high: float | Float[Tensor, "..."] = 1.0
) -> Tensor:
    """Project on the box ``low <= p <= high``, entry by entry.

    Args:
        x: ``[*batch, n]`` the points.
        low: lower bounds, broadcast against ``x``; may be ``-inf``.
        high: upper bounds; may be ``inf``.

    Returns:
        ``[*batch, n]`` the projections. Derivatives reach the bounds too, where they are active.

    Raises:
        TypeError: ``x`` is no floating tensor.
        ValueError: ``low`` exceeds ``high`` somewhere.

    Example:
        >>> projection_box(torch.tensor([-2.0, 0.3, 5.0]), 0.0, 1.0)
        tensor([0.0000, 0.3000, 1.0000])
    """
    check_floating("x", x)
    below, above = broadcast("low", low, x, x.shape), broadcast("high", high, x, x.shape)
    if can_look(below) and can_look(above) and not bool((below <= above).all()):
        if below.ndim == above.ndim == 0:
            raise ValueError(f"low must not exceed high, got {below.item()} and {above.item()}")
        raise ValueError("low must not exceed high, and neither may be NaN, in any entry")
    return torch.where(x < below, below, torch.where(x > above, above, x))


def projection_l1_ball(x: Float[Tensor, "*batch n"], radius: float | Float[Tensor, "..."] = 1.0) -> Tensor:
    r"""Project on the l1 ball ``sum |p| <= radius``: soft thresholding at the level that the simplex finds for ``|x|``.

    Args:
        x: ``[*batch, n]`` the points.
        radius: > 0, a number or a tensor that broadcasts against ``[*batch]``.

    Returns:
        ``[*batch, n]`` the projections.

    Raises:
        TypeError: ``x`` is no floating tensor.
        ValueError: ``radius`` is not positive.

    Example:
        >>> projection_l1_ball(torch.tensor([3.0, -1.0]), 2.0)
        tensor([2., -0.])

    References:
        Duchi, Shalev-Shwartz, Singer, Chandra (2008), Efficient projections onto the l1-ball for learning.
    """
    check_points(x)
    work = widened(x)
    size = positive("radius", radius, work, x.shape[:-1])
    inside = work.abs().sum(-1, keepdim=True) <= size[..., None]
    return torch.where(inside, work, work.sign() * projection_simplex(work.abs(), size)).to(x.dtype)


def projection_l2_ball(x: Float[Tensor, "*batch n"], radius: float | Float[Tensor, "..."] = 1.0) -> Tensor:
    """Project on the ball ``|p|_2 <= radius``.

    Args:
        x: ``[*batch, n]`` the points.
        radius: > 0, a number or a tensor that broadcasts against ``[*batch]``.

    Returns:
        ``[*batch, n]`` the projections.

    Raises:
        TypeError: ``x`` is no floating tensor.
        ValueError: ``radius`` is not positive.

    Example:
        >>> projection_l2_ball(torch.tensor([3.0, 4.0]))
        tensor([0.6000, 0.8000])
    """
    check_points(x)
    work = widened(x)
    size = positive("radius", radius, work, x.shape[:-1])[..., None]
    unit, scale = scaled(work, size)
    inside, length = compared(unit, size / scale)
    return torch.where(inside, work, unit * (size / length)).to(x.dtype)


def projection_affine(
    x: Float[Tensor, "*#batch n"], matrix: Float[Tensor, "*#batch m n"], offset: Float[Tensor, "*#batch m"]
) -> Tensor:
    r"""Project on ``{p : matrix p = offset}``: ``p = x - A^T (A A^T)^{-1} (A x - b)``.

    Args:
        x: ``[*batch, n]`` the points.
        matrix: ``[*batch, m, n]`` of full row rank, or ``[m, n]`` for all.
        offset: ``[*batch, m]``, or ``[m]`` for all.

    Returns:
        ``[*batch, n]`` the projections.

    Raises:
        TypeError: ``x`` is no floating tensor, or the others have another dtype.
        ValueError: the shapes do not fit, or no point is found because rows of ``matrix`` depend on each other.

    Example:
        >>> projection_affine(torch.tensor([1.0, 1.0]), torch.tensor([[1.0, 1.0]]), torch.tensor([1.0]))
        tensor([0.5000, 0.5000])
    """
    check_points(x)
    if matrix.ndim < 2 or matrix.shape[-1] != x.shape[-1] or offset.shape[-1:] != matrix.shape[-2:-1]:
        raise ValueError(
            f"matrix must be [*, m, n] and offset [*, m] for x {tuple(x.shape)}, "
            f"got {tuple(matrix.shape)} and {tuple(offset.shape)}"
        )
    check_same_dtype(x=x, matrix=matrix, offset=offset)
    check_broadcast(x=tuple(x.shape[:-1]), matrix=tuple(matrix.shape[:-2]), offset=tuple(offset.shape[:-1]))
    points, rows, right = widened(x), widened(matrix), widened(offset)
    # Equations may be scaled each by itself, and the whole problem (points and offsets) by one number.
    weight = _nonzero(rows.detach().abs().amax(-1, keepdim=True))
    rows, right = rows / weight, right / weight[..., 0]
    largest = torch.maximum(points.detach().abs().amax(-1, keepdim=True), right.detach().abs().amax(-1, keepdim=True))
    scale = _nonzero(largest)
    gap = times(points / scale, rows.mT) - right / scale
    gram = rows @ rows.mT
    try:
        if gram.ndim == 2:  # one factorisation for all points, which are its columns
            multiplier = solve(gram, gap.reshape(-1, gap.shape[-1]).mT).mT.reshape(gap.shape)
        else:
            multiplier = solve(gram, gap[..., None])[..., 0]
    except torch.linalg.LinAlgError as error:
        raise ValueError(_DEPENDENT) from error
    step = times(multiplier, rows)
    left = (gap.detach() - times(step.detach(), rows.detach().mT)).abs()
    small = torch.finfo(left.dtype).eps ** 0.5
    # The first condition implies the second, and is cheaper.
    if (
        can_look(left)
        and bool((left > small).any())
        and bool((left.amax(-1) > small * (1 + gap.detach().abs().amax(-1))).any())
    ):
        raise ValueError(_DEPENDENT)
    return (points - scale * step).to(x.dtype)


_DEPENDENT = "matrix must have linearly independent rows: no point of the affine set was found"


def scaled(
    x: Float[Tensor, "*batch n"], size: Float[Tensor, "..."]
) -> tuple[Float[Tensor, "*batch n"], Float[Tensor, "*batch 1"] | float]:
    """Return ``x / scale`` and ``scale``, the largest magnitude, a constant: the quotient's norm is of ordinary size.

    With infinite entries the quotient is the limit: their signs, and 0 elsewhere. Where nothing can go wrong in a
    comparison of the norm of ``x`` with ``size``, the scale is 1.
    """
    if _is_ordinary(x) and can_look(size) and bool(size.detach().amin() * _largest_ordinary(x) > 1):
        return x, 1.0
    scale = _nonzero(x.detach().abs().amax(-1, keepdim=True))
    return torch.where(scale.isinf(), torch.where(x.isinf(), x.sign(), 0), x / scale), scale


def compared(
    x: Float[Tensor, "*#batch n"], bound: Float[Tensor, "*#batch 1"]
) -> tuple[Bool[Tensor, "*batch 1"], Float[Tensor, "*batch 1"]]:
    """Return whether ``|x|_2 <= bound``, and ``|x|_2`` where not (1 where it is: at 0 its derivative would be NaN)."""
    square = (x * x).sum(-1, keepdim=True)
    within = square <= bound * bound
    return within, torch.where(within, 1, square).sqrt()


def _is_ordinary(x: Tensor) -> bool:
    """Return whether squares of ``x`` do not overflow, as far as looking is free: it is not on an accelerator."""
    if x.device.type != "cpu" or not x.numel() or not can_look(x):
        return False
    least, most = x.detach().aminmax()
    limit = _largest_ordinary(x)
    return bool(least > -limit) and bool(most < limit)


def _largest_ordinary(x: Tensor) -> float:
    """Return a number whose square is far from overflow, and the square of its inverse far from vanishing."""
    return float(torch.finfo(x.dtype).max ** 0.4)


def _nonzero(scale: Tensor) -> Tensor:
    return torch.where(scale == 0, 1, scale)


def widened(x: Tensor) -> Tensor:
    """Return ``x`` in float32 where its own precision has too few digits for sums."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def check_points(x: Tensor) -> None:
    check_floating("x", x)
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"x must have a last dimension of at least one entry, got shape {tuple(x.shape)}")
