"""Krylov methods on batches of linear systems, as methods of the one loop; :func:`linear_solve` adds the derivatives.

All work on ``b [count, n]``, one system a row, and start at ``x = 0``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import torch

from pullback.core.shapes import Float, Tensor
from pullback.implicit.iteration import Map, Method, State, dot, norm, ratio

__all__ = ["CG", "GMRES", "BiCGStab", "KrylovMethod", "NormalCG"]


@runtime_checkable
class KrylovMethod(Method, Protocol):
    """A method for ``A x = b``; ``products`` is the number of products with ``A`` (or its transpose) in a step."""

    @property
    def products(self) -> int:
        """Products in a step."""


class _Conjugate(NamedTuple):
    """What conjugate gradients carry: ``b - A x``, the direction, and the product that weighs the next one."""

    gap: Tensor
    direction: Tensor
    rho: Tensor


@dataclass(frozen=True)
class CG:
    """Conjugate gradients for symmetric positive (semi)definite systems, preconditioned.

    References:
        Hestenes, Stiefel (1952); Saad (2003), Iterative methods for sparse linear systems, algorithm 9.1.
    """

    matvec: Map
    b: Float[Tensor, "count n"]
    precondition: Map
    products: ClassVar[int] = 1

    def init(self, x: Tensor) -> State:
        """Start along the (preconditioned) residual."""
        direction = self.precondition(self.b)
        return State.moving(x, norm(self.b), _Conjugate(self.b, direction, dot(self.b, direction)))

    def step(self, state: State, active: Tensor) -> State:
        """Take the best step along the direction, and make the next one conjugate."""
        gap, direction, rho = state.memory
        product = self.matvec(direction)
        alpha = ratio(rho, dot(direction, product))
        x = state.x + alpha[:, None] * direction
        gap = gap - alpha[:, None] * product
        z = self.precondition(gap)
        new = dot(gap, z)
        direction = z + ratio(new, rho)[:, None] * direction
        return State(x, norm(gap), alpha == 0, _Conjugate(gap, direction, new))


@dataclass(frozen=True)
class NormalCG:
    """Conjugate gradients on ``(A^T A + ridge I) x = A^T b``, stopped by the residual of ``A x = b`` (CGLS).

    With ``ridge > 0`` it stops by the residual of the normal equations instead, relative to ``|A^T b| / |b|``, as
    ``A x = b`` is not what it solves. ``precondition`` approximates the inverse of ``A^T A + ridge I``.

    References:
        Björck (1996), Numerical methods for least squares problems, algorithm 7.4.1.
    """

    matvec: Map
    adjoint: Map
    b: Float[Tensor, "count n"]
    precondition: Map
    ridge: float
    products: ClassVar[int] = 2

    def init(self, x: Tensor) -> State:
        """Start along the residual of the normal equations."""
        normal = self.adjoint(self.b)
        direction = self.precondition(normal)
        scale = ratio(norm(self.b), norm(normal))
        return State.moving(x, norm(self.b), (scale, _Conjugate(self.b, direction, dot(normal, direction))))

    def step(self, state: State, active: Tensor) -> State:
        """Take the best step along the direction, and make the next one conjugate."""
        scale, (gap, direction, rho) = state.memory
        product = self.matvec(direction)
        alpha = ratio(rho, dot(product, product) + self.ridge * dot(direction, direction))
        x = state.x + alpha[:, None] * direction
        gap = gap - alpha[:, None] * product
        normal = self.adjoint(gap) - self.ridge * x
        z = self.precondition(normal)
        new = dot(normal, z)
        direction = z + ratio(new, rho)[:, None] * direction
        residual = norm(normal) * scale if self.ridge else norm(gap)
        return State(x, residual, alpha == 0, (scale, _Conjugate(gap, direction, new)))


@dataclass(frozen=True)
class BiCGStab:
    """Stabilised biconjugate gradients for general square systems, right preconditioned.

    References:
        van der Vorst (1992), Bi-CGSTAB, SIAM Journal on Scientific and Statistical Computing 13.
    """

    matvec: Map
    b: Float[Tensor, "count n"]
    precondition: Map
    products: ClassVar[int] = 2

    def init(self, x: Tensor) -> State:
        """Start along the residual, which is the shadow residual too."""
        return State.moving(x, norm(self.b), _Conjugate(self.b, self.b, dot(self.b, self.b)))

    def step(self, state: State, active: Tensor) -> State:
        """Take a step of biconjugate gradients and one of steepest descent."""
        gap, direction, rho = state.memory
        ready = self.precondition(direction)
        product = self.matvec(ready)
        alpha = ratio(rho, dot(self.b, product))  # b is the shadow residual
        half = gap - alpha[:, None] * product
        ready_half = self.precondition(half)
        second = self.matvec(ready_half)
        omega = ratio(dot(second, half), dot(second, second))
        x = state.x + alpha[:, None] * ready + omega[:, None] * ready_half
        gap = half - omega[:, None] * second
        new = dot(self.b, gap)
        beta = ratio(new, rho) * ratio(alpha, omega)
        direction = gap + beta[:, None] * (direction - omega[:, None] * product)
        return State(x, norm(gap), alpha == 0, _Conjugate(gap, direction, new))


@dataclass(frozen=True)
class GMRES:
    """Restarted GMRES for general square systems, right preconditioned, Gram-Schmidt done twice; a step is a restart.

    References:
        Saad, Schultz (1986), GMRES, SIAM Journal on Scientific and Statistical Computing 7.
    """

    matvec: Map
    b: Float[Tensor, "count n"]
    precondition: Map
    restart: int = 30

    @property
    def products(self) -> int:
        """Products in a step."""
        return min(self.restart, self.b.shape[-1])

    def init(self, x: Tensor) -> State:
        """Start with the right side as residual."""
        return State.moving(x, norm(self.b), self.b)

    def step(self, state: State, active: Tensor) -> State:
        """Go to the smallest residual in one Krylov space; stall where that gains nothing."""
        gap = state.memory
        x = state.x + self._least_squares(gap)
        new = self.b - self.matvec(x)
        size = norm(new)
        better = size < state.residual  # NaN and stagnation both end a system
        return State(
            torch.where(better[:, None], x, state.x),
            torch.where(better, size, state.residual),
            ~better,
            torch.where(better[:, None], new, gap),
        )

    def _least_squares(self, residual: Tensor) -> Tensor:
        """Return the step in the Krylov space that leaves the smallest residual."""
        size, steps = norm(residual), self.products
        basis = [residual * ratio(1.0, size)[:, None]]
        hessenberg = residual.new_zeros(len(residual), steps + 1, steps)
        for k in range(steps):
            vector = self.matvec(self.precondition(basis[k]))
            scale = norm(vector)
            stacked = torch.stack(basis, -2)
            for _ in range(2):
                overlap = (stacked @ vector[..., None])[..., 0]
                vector = vector - (overlap[..., None, :] @ stacked)[..., 0, :]
                hessenberg[..., : k + 1, k] += overlap
            length = norm(vector)
            # The Krylov space is exhausted when nothing but rounding is left: the basis ends with a zero vector.
            alive = length > 10 * torch.finfo(vector.dtype).eps * scale
            length = torch.where(alive, length, 0)
            hessenberg[..., k + 1, k] = length
            basis.append(vector * ratio(1.0, length)[:, None])
        target = residual.new_zeros(len(residual), steps + 1, 1)
        target[:, 0, 0] = size
        # Minimum norm, because columns after an exhausted Krylov space are zero.
        finite = torch.isfinite(hessenberg).flatten(1).all(1)[:, None, None]
        weights = torch.linalg.pinv(torch.where(finite, hessenberg, 0)) @ target
        weights = torch.where(finite, weights, torch.nan)
        return self.precondition((weights.mT @ torch.stack(basis[:-1], -2))[:, 0, :])
