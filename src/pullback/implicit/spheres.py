"""Projections on cones, cubes and spheres: closed forms, batched over leading dimensions."""

from __future__ import annotations

import torch

from pullback.core.checks import check_floating, check_integer
from pullback.core.shapes import Float, Tensor
from pullback.implicit.arguments import positive
from pullback.implicit.projections import check_points, projection_simplex, scaled, widened

__all__ = [
    "projection_l1_sphere",
    "projection_l2_sphere",
    "projection_linf_ball",
    "projection_non_negative",
    "projection_sparse_simplex",
]

Radius = float | Float[Tensor, "..."]


def projection_non_negative(x: Float[Tensor, "*batch n"]) -> Tensor:
    """Project on the non-negative orthant: ``max(x, 0)``.

    Args:
        x: ``[*batch, n]`` the points.

    Returns:
        ``[*batch, n]`` the projections.

    Raises:
        TypeError: ``x`` is no floating tensor.

    Example:
        >>> projection_non_negative(torch.tensor([-2.0, 0.3]))
        tensor([0.0000, 0.3000])
    """
    return torch.relu(check_floating("x", x))


def projection_linf_ball(x: Float[Tensor, "*batch n"], radius: Radius = 1.0) -> Tensor:
    """Project on the cube ``max |p| <= radius``: each entry is clipped.

    Args:
        x: ``[*batch, n]`` the points.
        radius: > 0, a number or a tensor that broadcasts against ``[*batch]``.

    Returns:
        ``[*batch, n]`` the projections.

    Raises:
        TypeError: ``x`` is no floating tensor.
        ValueError: ``radius`` is not positive.

    Example:
        >>> projection_linf_ball(torch.tensor([-2.0, 0.3]), 0.5)
        tensor([-0.5000,  0.3000])
    """
    check_points(x)
    size = positive("radius", radius, x, x.shape[:-1])[..., None]
    return torch.where(x.abs() > size, x.detach().sign() * size, x)


def projection_l1_sphere(x: Float[Tensor, "*batch n"], radius: Radius = 1.0) -> Tensor:
    r"""Project on the sphere ``sum |p| = radius``: the simplex for ``|x|``, with the signs of ``x``.

    Args:
        x: ``[*batch, n]`` the points.
        radius: > 0, a number or a tensor that broadcasts against ``[*batch]``.

    Returns:
        ``[*batch, n]`` a nearest point; where there are several (entries that are 0) the positive one.

    Raises:
        TypeError: ``x`` is no floating tensor.
        ValueError: ``radius`` is not positive.

    Example:
        >>> projection_l1_sphere(torch.tensor([0.25, -0.25]))
        tensor([ 0.5000, -0.5000])

    References:
        Duchi, Shalev-Shwartz, Singer, Chandra (2008), Efficient projections onto the l1-ball for learning.
    """
    check_points(x)
    sign = torch.where(x.detach() < 0, -1.0, 1.0).to(x.dtype)
    return sign * projection_simplex(sign * x, radius)


def projection_l2_sphere(x: Float[Tensor, "*batch n"], radius: Radius = 1.0) -> Tensor:
    r"""Project on the sphere ``|p|_2 = radius``: ``radius x / |x|``.

    Args:
        x: ``[*batch, n]`` the points.
        radius: > 0, a number or a tensor that broadcasts against ``[*batch]``.

    Returns:
        ``[*batch, n]`` the projections. Of the points equally near to 0 it is that on the first axis, with
        derivative 0 in ``x``.

    Raises:
        TypeError: ``x`` is no floating tensor.
        ValueError: ``radius`` is not positive.

    Example:
        >>> projection_l2_sphere(torch.tensor([[0.3, 0.4], [0.0, 0.0]]))
        tensor([[0.6000, 0.8000],
                [1.0000, 0.0000]])
    """
    check_points(x)
    work = widened(x)
    size = positive("radius", radius, work, x.shape[:-1])[..., None]
    unit, _ = scaled(work, torch.zeros_like(size))
    square = (unit * unit).sum(-1, keepdim=True)
    nowhere = square == 0
    axis = torch.zeros(x.shape[-1], dtype=work.dtype, device=x.device)
    axis[0] = 1
    direction = torch.where(nowhere, axis, unit / torch.where(nowhere, 1, square).sqrt())
    return (size * direction).to(x.dtype)


def projection_sparse_simplex(x: Float[Tensor, "*batch n"], nonzero: int, radius: Radius = 1.0) -> Tensor:
    r"""Project on the points of the simplex with few entries other than 0, a set that is not convex.

    The ``nonzero`` largest entries are projected on the simplex of their own; the others become 0.

    Args:
        x: ``[*batch, n]`` the points.
        nonzero: in 1..n, how many entries may differ from 0.
        radius: > 0, a number or a tensor that broadcasts against ``[*batch]``.

    Returns:
        ``[*batch, n]`` a nearest point.

    Raises:
        TypeError: ``x`` is no floating tensor.
        ValueError: ``nonzero`` is out of range, or ``radius`` is not positive.

    Example:
        >>> projection_sparse_simplex(torch.tensor([0.5, 0.25, 0.4]), 2)
        tensor([0.5500, 0.0000, 0.4500])

    References:
        Kyrillidis, Becker, Cevher, Koch (2013), Sparse projections onto the simplex, algorithm 1.
    """
    check_points(x)
    check_integer("nonzero", nonzero, 1, x.shape[-1])
    largest, index = x.topk(nonzero, dim=-1)
    return torch.zeros_like(x).scatter(-1, index, projection_simplex(largest, radius))
