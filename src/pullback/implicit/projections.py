"""Euclidean projections on convex sets: batched over leading dimensions, differentiable almost everywhere."""

from __future__ import annotations

import torch

from pullback.core.checks import check_floating, check_positive
from pullback.core.numerics import solve
from pullback.core.shapes import Float, Tensor

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
    _check_points(x)
    _check_radius(radius)
    work = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    size = torch.as_tensor(radius, dtype=work.dtype, device=work.device)[..., None]
    ordered = work.sort(dim=-1, descending=True).values
    excess = ordered.cumsum(-1) - size
    rank = torch.arange(1, x.shape[-1] + 1, dtype=work.dtype, device=work.device)
    support = (ordered * rank > excess).sum(-1, keepdim=True).clamp(min=1)
    tau = excess.gather(-1, support.expand(*excess.shape[:-1], 1) - 1) / support
    return torch.where(work > tau, work - tau, 0).to(x.dtype)


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
    below = torch.as_tensor(low, dtype=x.dtype, device=x.device)
    above = torch.as_tensor(high, dtype=x.dtype, device=x.device)
    if isinstance(low, int | float) and isinstance(high, int | float) and low > high:
        raise ValueError(f"low must not exceed high, got {low} and {high}")
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
    _check_points(x)
    _check_radius(radius)
    size = torch.as_tensor(radius, dtype=x.dtype, device=x.device)[..., None]
    inside = x.abs().sum(-1, keepdim=True) <= size
    return torch.where(inside, x, x.sign() * projection_simplex(x.abs(), radius))


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
    _check_points(x)
    _check_radius(radius)
    size = torch.as_tensor(radius, dtype=x.dtype, device=x.device)[..., None]
    inside = torch.linalg.vector_norm(x, dim=-1, keepdim=True) <= size
    # The norm is taken of a safe point inside, where its derivative at 0 would be NaN.
    length = torch.linalg.vector_norm(torch.where(inside, 1, x), dim=-1, keepdim=True)
    return torch.where(inside, x, x * (size / length))


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
        TypeError: ``x`` is no floating tensor.
        ValueError: the shapes do not fit.
        torch.linalg.LinAlgError: ``matrix`` has dependent rows.

    Example:
        >>> projection_affine(torch.tensor([1.0, 1.0]), torch.tensor([[1.0, 1.0]]), torch.tensor([1.0]))
        tensor([0.5000, 0.5000])
    """
    _check_points(x)
    if matrix.ndim < 2 or matrix.shape[-1] != x.shape[-1] or offset.shape[-1:] != matrix.shape[-2:-1]:
        raise ValueError(
            f"matrix must be [*, m, n] and offset [*, m] for x {tuple(x.shape)}, "
            f"got {tuple(matrix.shape)} and {tuple(offset.shape)}"
        )
    gap = (matrix @ x[..., None])[..., 0] - offset
    multiplier = solve(matrix @ matrix.mT, gap[..., None])
    return x - (matrix.mT @ multiplier)[..., 0]


def _check_points(x: Tensor) -> None:
    check_floating("x", x)
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"x must have a last dimension of at least one entry, got shape {tuple(x.shape)}")


def _check_radius(radius: float | Tensor) -> None:
    if isinstance(radius, int | float):
        check_positive("radius", radius)
