"""Projection on a ball in the norm of a matrix, as steps of Newton's type need."""

from __future__ import annotations

import torch

from pullback.core.checks import check_broadcast, check_finite, check_floating, check_same_dtype, check_scalar
from pullback.core.shapes import Float, Scalar, Tensor
from pullback.core.transforms import can_look

__all__ = ["projection_ball_in_metric"]

_BISECTIONS = 100


def projection_ball_in_metric(
    x: Float[Tensor, "*#batch n"], metric: Float[Tensor, "*#batch n n"], radius: Scalar = 1.0
) -> Float[Tensor, "*batch n"]:
    r"""Return the point of a ball that is nearest in the norm of a matrix.

    .. math:: \arg\min_{|p|_2 \le r} (p - x)^\top H (p - x) = (H + \mu I)^{-1} H x, \qquad
        \mu \ge 0: \; |p(\mu)|_2 = r \text{ unless } |x|_2 \le r

    In the basis of the eigenvectors of ``H`` the norm falls with ``mu``, which is found by bisection.

    Args:
        x: ``[*batch, n]`` the points.
        metric: ``[*batch, n, n]``, ``H``, symmetric and positive definite; its lower triangle is read.
        radius: ``r`` > 0.

    Returns:
        ``[*batch, n]``, differentiable in all arguments.

    Raises:
        TypeError: ``x`` or ``metric`` is no floating tensor, or their dtypes differ.
        ValueError: ``metric`` is not square, of another size or not positive definite; an entry is not finite;
            ``radius`` is not positive.

    Example:
        >>> metric = torch.diag(torch.tensor([4.0, 1.0]))
        >>> p = projection_ball_in_metric(torch.tensor([1.0, 1.0]), metric)
        >>> [round(v, 2) for v in p.tolist()]  # Euclid's has 0.71 twice
        [0.83, 0.55]

    References:
        Hazan, Agarwal, Kale (2007), Logarithmic regret algorithms for online convex optimization, section 3.3.
    """
    check_floating("x", x)
    check_floating("metric", metric)
    check_same_dtype(x=x, metric=metric)
    check_scalar("radius", radius)
    if x.ndim == 0 or x.shape[-1] == 0 or tuple(metric.shape[-2:]) != (x.shape[-1], x.shape[-1]):
        raise ValueError(f"metric must be square of the size of x, got {tuple(metric.shape)} for x {tuple(x.shape)}")
    check_broadcast(x=tuple(x.shape[:-1]), metric=tuple(metric.shape[:-2]))
    for name, part in (("x", x), ("metric", metric)):
        if can_look(part):
            check_finite(name, part)
    dtype, wide = x.dtype, torch.promote_types(x.dtype, torch.float32)  # torch factorises nothing narrower
    x, symmetric = x.to(wide), (metric.tril() + metric.tril(-1).mT).to(wide)
    with torch.no_grad():
        values, vectors = torch.linalg.eigh(symmetric.detach())
    if can_look(values) and not bool((values > 0).all()):
        raise ValueError("metric must be positive definite")
    coordinates = (vectors.mT @ x.detach()[..., None])[..., 0]
    bound = radius.detach().to(wide) if isinstance(radius, Tensor) else radius
    outside = x.detach().norm(dim=-1) > bound
    # |p(mu)| <= (largest eigenvalue) |x| / mu
    low, high = torch.zeros_like(outside, dtype=wide), values[..., -1] * coordinates.norm(dim=-1) / bound
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        long = (values / (values + middle[..., None]) * coordinates).norm(dim=-1) > bound
        low, high = torch.where(long, middle, low), torch.where(long, high, middle)
    mu = torch.where(outside, (low + high) / 2, 0)
    eye = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    right = (symmetric @ x[..., None])[..., 0]

    def solve(b: Tensor, mu: Tensor) -> Tensor:
        factor = torch.linalg.cholesky_ex(symmetric + mu[..., None, None] * eye)[0]
        half = torch.linalg.solve_triangular(factor, b[..., None], upper=False)
        return torch.linalg.solve_triangular(factor.mT, half, upper=True)[..., 0]

    for _ in range(2):  # from the solution, two steps of Newton have its first and second derivatives
        p = solve(right, mu)
        fall = 2 * (p * solve(p, mu)).sum(-1)
        square = p.square().sum(-1) - radius * radius
        mu = torch.where(outside, (mu + square / torch.where(outside, fall, 1)).clamp(min=0), 0)
    p = solve(right, mu)
    if can_look(p) and not bool(torch.isfinite(p).all()):
        raise ValueError("metric, x and radius differ by more than the dtype can hold")
    return p.to(dtype)
