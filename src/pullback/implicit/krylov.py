"""Krylov methods on batches of linear systems: the plain iterations, without derivatives.

All work on ``b [*batch, n]`` with ``matvec`` of the same shape, one system a row; scalars are per system, a system that
has converged is frozen while the others go on. :func:`pullback.implicit.linear_solve` adds the derivatives.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from pullback.core.shapes import Bool, Float, Int, Tensor

__all__ = ["Iterate", "bicgstab", "cg", "gmres", "normal_cg"]

Map = Callable[[Tensor], Tensor]
Iterate = tuple[Float[Tensor, "*batch n"], Int[Tensor, "*batch"]]
"""Solution and the number of products with the matrix that each system took."""


def cg(
    matvec: Map, b: Float[Tensor, "*batch n"], threshold: Float[Tensor, "*batch"], limit: int, precondition: Map
) -> Iterate:
    """Conjugate gradients for symmetric positive (semi)definite systems, preconditioned.

    References:
        Hestenes, Stiefel (1952); Saad (2003), Iterative methods for sparse linear systems, algorithm 9.1.
    """
    x, residual = torch.zeros_like(b), b.clone()
    z = precondition(residual)
    direction, rho = z, _dot(residual, z)
    count = _zeros(b)
    active = _norm(residual) > threshold
    for _ in range(limit):
        if not active.any():
            break
        product = matvec(direction)
        alpha = _ratio(rho, _dot(direction, product), active)
        x = x + alpha[..., None] * direction
        residual = residual - alpha[..., None] * product
        count = count + active
        z = precondition(residual)
        previous, rho = rho, _dot(residual, z)
        active = active & (_norm(residual) > threshold) & (alpha != 0)
        direction = z + _ratio(rho, previous, active)[..., None] * direction
    return x, count


def normal_cg(
    matvec: Map,
    adjoint: Map,
    b: Float[Tensor, "*batch n"],
    threshold: Float[Tensor, "*batch"],
    limit: int,
    precondition: Map,
    ridge: float,
) -> Iterate:
    """Conjugate gradients on ``(A^T A + ridge I) x = A^T b``, stopped by the residual of ``A x = b`` (CGLS).

    With ``ridge > 0`` it stops by the residual of the normal equations instead, as ``A x = b`` is not what it solves.
    ``precondition`` approximates the inverse of ``A^T A + ridge I``.

    References:
        Björck (1996), Numerical methods for least squares problems, algorithm 7.4.1.
    """
    x, residual = torch.zeros_like(b), b.clone()
    normal = adjoint(residual)
    relative = _norm(normal) * _ratio(threshold, _norm(b), _norm(b) > 0)
    z = precondition(normal)
    direction, rho = z, _dot(normal, z)
    count = _zeros(b)
    active = _norm(residual) > threshold
    for _ in range(limit):
        if not active.any():
            break
        product = matvec(direction)
        curvature = _dot(product, product) + ridge * _dot(direction, direction)
        alpha = _ratio(rho, curvature, active)
        x = x + alpha[..., None] * direction
        residual = residual - alpha[..., None] * product
        count = count + 2 * active
        normal = adjoint(residual) - ridge * x
        z = precondition(normal)
        previous, rho = rho, _dot(normal, z)
        unfinished = _norm(normal) > relative if ridge else _norm(residual) > threshold
        active = active & unfinished & (alpha != 0)
        direction = z + _ratio(rho, previous, active)[..., None] * direction
    return x, count


def bicgstab(
    matvec: Map, b: Float[Tensor, "*batch n"], threshold: Float[Tensor, "*batch"], limit: int, precondition: Map
) -> Iterate:
    """Stabilised biconjugate gradients for general square systems, right preconditioned.

    References:
        van der Vorst (1992), Bi-CGSTAB, SIAM Journal on Scientific and Statistical Computing 13.
    """
    x, residual = torch.zeros_like(b), b.clone()
    shadow = b
    direction = residual
    rho = _dot(shadow, residual)
    count = _zeros(b)
    active = _norm(residual) > threshold
    for _ in range(limit):
        if not active.any():
            break
        ready = precondition(direction)
        product = matvec(ready)
        alpha = _ratio(rho, _dot(shadow, product), active)
        half = residual - alpha[..., None] * product
        ready_half = precondition(half)
        second = matvec(ready_half)
        omega = _ratio(_dot(second, half), _dot(second, second), active)
        x = x + alpha[..., None] * ready + omega[..., None] * ready_half
        residual = torch.where(active[..., None], half - omega[..., None] * second, residual)
        count = count + 2 * active
        previous, rho = rho, _dot(shadow, residual)
        active = active & (_norm(residual) > threshold) & (alpha != 0)
        beta = _ratio(rho, previous, active) * _ratio(alpha, omega, active)
        direction = residual + beta[..., None] * (direction - omega[..., None] * product)
    return x, count


def gmres(
    matvec: Map,
    b: Float[Tensor, "*batch n"],
    threshold: Float[Tensor, "*batch"],
    limit: int,
    precondition: Map,
    restart: int = 30,
) -> Iterate:
    """Restarted GMRES for general square systems, right preconditioned, Gram-Schmidt done twice.

    References:
        Saad, Schultz (1986), GMRES, SIAM Journal on Scientific and Statistical Computing 7.
    """
    x, count = torch.zeros_like(b), _zeros(b)
    residual = b
    active = _norm(residual) > threshold
    while bool(active.any()) and int(count.max()) < limit:
        steps = min(restart, b.shape[-1], limit - int(count.max()))
        update = _arnoldi_least_squares(matvec, residual, steps, precondition)
        candidate = x + torch.where(active[..., None], update, 0)
        count = count + steps * active
        new = b - matvec(candidate)
        better = _norm(new) < _norm(residual)  # NaN and stagnation both end a system
        x = torch.where((active & better)[..., None], candidate, x)
        residual = torch.where((active & better)[..., None], new, residual)
        active = active & better & (_norm(residual) > threshold)
    return x, count


def _arnoldi_least_squares(matvec: Map, residual: Tensor, steps: int, precondition: Map) -> Tensor:
    size = _norm(residual)
    basis = [residual * _ratio(torch.ones_like(size), size, size > 0)[..., None]]
    hessenberg = residual.new_zeros(*residual.shape[:-1], steps + 1, steps)
    for k in range(steps):
        vector = matvec(precondition(basis[k]))
        scale = _norm(vector)
        stacked = torch.stack(basis, -2)
        for _ in range(2):
            overlap = (stacked @ vector[..., None])[..., 0]
            vector = vector - (overlap[..., None, :] @ stacked)[..., 0, :]
            hessenberg[..., : k + 1, k] += overlap
        length = _norm(vector)
        # The Krylov space is exhausted when nothing but rounding is left: the basis ends with a zero vector.
        alive = length > 10 * torch.finfo(vector.dtype).eps * scale
        hessenberg[..., k + 1, k] = torch.where(alive, length, 0)
        basis.append(vector * _ratio(torch.ones_like(length), length, alive)[..., None])
    target = residual.new_zeros(*residual.shape[:-1], steps + 1, 1)
    target[..., 0, 0] = size
    # Minimum norm, because columns after an exhausted Krylov space are zero.
    weights = torch.linalg.pinv(hessenberg) @ target
    return precondition((weights.mT @ torch.stack(basis[:-1], -2))[..., 0, :])


def _dot(a: Float[Tensor, "*batch n"], b: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
    return (a * b).sum(-1)


def _norm(a: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
    return torch.linalg.vector_norm(a, dim=-1)


def _zeros(b: Tensor) -> Tensor:
    return torch.zeros(b.shape[:-1], dtype=torch.int64, device=b.device)


def _ratio(
    top: Float[Tensor, "*batch"], bottom: Float[Tensor, "*batch"], where: Bool[Tensor, "*batch"]
) -> Float[Tensor, "*batch"]:
    """Return ``top / bottom``, and 0 outside ``where`` and where ``bottom`` is 0."""
    good = where & (bottom != 0)
    return torch.where(good, top / torch.where(good, bottom, 1), 0)
