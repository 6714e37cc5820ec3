"""Whether a gradient belongs to Clarke's subdifferential, the convex hull of the gradients all around a point."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pullback.core.checks import check_callable, check_floating, check_integer, check_positive, check_shape
from pullback.core.random import drawing_device
from pullback.core.shapes import Float

__all__ = ["ClarkeMembership", "clarke_contains", "nonnegative_least_squares"]


@dataclass(frozen=True)
class ClarkeMembership:
    """Whether a gradient is a convex combination of the gradients of adjacent pieces.

    Attributes:
        contains: whether ``distance`` is at most the tolerance.
        distance: from the gradient to the hull of ``pieces``.
        pieces: ``[count, *shape]`` the different gradients around the point.
        weights: ``[count]`` of the combination that is nearest, >= 0 with sum 1.
    """

    contains: bool
    distance: float
    pieces: Tensor
    weights: Tensor


def clarke_contains(
    fn: Callable[[Tensor], Tensor],
    point: Float[Tensor, "*shape"],
    gradient: Float[Tensor, "*shape"],
    *,
    radius: float = 1e-6,
    samples: int = 128,
    tolerance: float = 1e-4,
    generator: torch.Generator,
    chunk: int | None = None,
) -> ClarkeMembership:
    r"""Return whether ``gradient`` lies in the Clarke subdifferential of ``fn`` at ``point``.

    ``conv { lim grad fn(x_i) : x_i -> point }``: the gradients at random points within ``radius``, each on some smooth
    piece of ``fn``, and the nearest point of their convex hull by non-negative least squares. A piece that no sample
    meets is missing, so ``True`` is certain up to the tolerance, ``False`` as certain as the samples are many.

    Args:
        fn: from a tensor to a scalar, differentiable almost everywhere.
        point: where.
        gradient: such as autograd's at a kink.
        radius: > 0, so small that the pieces around the point are those of the sampled points.
        samples: >= 1.
        tolerance: > 0, of the distance, relative to the largest of the norms of the pieces and of the gradient (at
            least 1).
        generator: of the samples.
        chunk: how many samples are computed at once, by ``torch.func.vmap``; ``None``: one at a time.

    Returns:
        A :class:`ClarkeMembership`.

    Raises:
        TypeError: ``fn`` is not callable, or a tensor is not floating.
        ValueError: shapes differ, or a number is out of range.

    Example:
        >>> zero = torch.zeros(1, dtype=torch.float64)
        >>> words = {"generator": torch.Generator().manual_seed(0)}
        >>> clarke_contains(lambda x: x.abs().sum(), zero, zero + 0.3, **words).contains  # the hull is [-1, 1]
        True
        >>> clarke_contains(lambda x: (x.relu() - (-x).relu()).sum(), zero, zero, **words).contains  # it is {1}
        False

    References:
        Clarke (1983), Optimization and nonsmooth analysis, theorem 2.5.1.
        Lawson, Hanson (1974), Solving least squares problems, chapter 23.
    """
    check_callable("fn", fn)
    check_shape("gradient", check_floating("gradient", gradient), tuple(check_floating("point", point).shape))
    check_positive("radius", radius)
    check_positive("tolerance", tolerance)
    check_integer("samples", samples, 1)
    if chunk is not None:
        check_integer("chunk", chunk, 1)
    noise = torch.randn(
        samples, *point.shape, generator=generator, dtype=point.dtype, device=drawing_device(generator, point)
    ).to(point.device)
    around = point.detach() + radius * noise
    slope = torch.func.grad(fn)
    if chunk is None:
        found = torch.stack([slope(x) for x in around])
    else:
        found = torch.func.vmap(slope, chunk_size=chunk)(around)
    flat, wanted = found.reshape(samples, -1), gradient.detach().reshape(-1)
    scale = max(float(torch.linalg.vector_norm(flat, dim=1).max()), float(torch.linalg.vector_norm(wanted)), 1.0)
    pieces = _distinct(flat, tolerance * scale / 4)
    # The weights sum to one: a row of large numbers, heavier than any other.
    weight = 1e3 * scale
    matrix = torch.cat([pieces.T, torch.full_like(pieces[:, :1].T, weight)])
    weights = nonnegative_least_squares(matrix, torch.cat([wanted, wanted.new_tensor([weight])]))
    weights = weights / weights.sum()
    distance = float(torch.linalg.vector_norm(weights @ pieces - wanted))
    return ClarkeMembership(distance <= tolerance * scale, distance, pieces.reshape(-1, *point.shape), weights)


def _distinct(rows: Tensor, apart: float) -> Tensor:
    """Return the rows that are farther than ``apart`` from all that are kept before them."""
    kept: list[Tensor] = []
    left = rows
    while len(left):
        kept.append(left[0])
        left = left[torch.linalg.vector_norm(left - left[0], dim=1) > apart]
    return torch.stack(kept)


def nonnegative_least_squares(
    matrix: Float[Tensor, "rows columns"], target: Float[Tensor, "rows"]
) -> Float[Tensor, "columns"]:
    r"""Return the ``x >= 0`` that minimises ``||A x - b||``, by the active sets of Lawson and Hanson.

    Args:
        matrix: ``A``, finite.
        target: ``b``, finite.

    Returns:
        ``x``, not differentiable.

    Raises:
        TypeError: a tensor is not floating.
        ValueError: shapes do not match, or a number is not finite.

    Example:
        >>> nonnegative_least_squares(torch.eye(2), torch.tensor([2.0, -1.0])).tolist()
        [2.0, 0.0]

    References:
        Lawson, Hanson (1974), Solving least squares problems, chapter 23.
    """
    check_floating("matrix", matrix)
    check_floating("target", target)
    if matrix.ndim != 2:
        raise ValueError(f"matrix must have shape (rows, columns), got {tuple(matrix.shape)}")
    if target.shape != matrix.shape[:1]:
        raise ValueError(f"target must have shape {tuple(matrix.shape[:1])}, got {tuple(target.shape)}")
    if not bool(torch.isfinite(matrix).all() & torch.isfinite(target).all()):
        raise ValueError("matrix and target must be finite")
    a, b = matrix.detach().double(), target.detach().double()
    x = a.new_zeros(a.shape[1])
    free = torch.zeros_like(x, dtype=torch.bool)
    eps = 10 * torch.finfo(a.dtype).eps * max(float(a.abs().sum(0).max()) if a.numel() else 0.0, 1e-300)
    for _ in range(3 * a.shape[1]):
        slope = a.T @ (b - a @ x)
        slope[free] = -torch.inf
        if bool(free.all()) or float(slope.max()) <= eps * max(float(b.abs().max()), 1e-300):
            break
        free[slope.argmax()] = True
        while True:
            trial = torch.zeros_like(x)
            trial[free] = torch.linalg.lstsq(a[:, free], b[:, None], driver="gelsd").solution[:, 0]
            low = free & (trial <= 0)
            if not bool(low.any()):
                break
            step = (x[low] / (x[low] - trial[low])).min()
            x = x + step * (trial - x)
            free &= x > eps
            x = torch.where(free, x, 0.0)
            if not bool(free.any()):
                trial = torch.zeros_like(x)
                break
        x = trial
    return x.to(matrix.dtype)
