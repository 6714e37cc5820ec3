"""The interior point method for convex quadratic programs, many at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from pullback.core.shapes import Float, Tensor
from pullback.implicit.iteration import State, dot, times

__all__ = ["Interior", "InteriorPoint"]

_FREE = 1e-11  # added to the diagonal: directions that nothing decides
_TO_BOUNDARY = 0.99


class Interior(NamedTuple):
    """A point inside of the bounds.

    Attributes:
        equality: ``[count, p]`` multipliers.
        slack: ``[count, m]`` > 0, what the inequalities leave.
        multiplier: ``[count, m]`` > 0, those of the inequalities.
    """

    equality: Float[Tensor, "count p"]
    slack: Float[Tensor, "count m"]
    multiplier: Float[Tensor, "count m"]


class _Factor(NamedTuple):
    whole: Tensor  # of Q + G^T W G + A^T A
    across: Tensor  # its inverse times A^T
    schur: Tensor  # of A (its inverse) A^T


@dataclass(frozen=True)
class InteriorPoint:
    r"""Mehrotra's predictor and corrector for ``min x^T Q x / 2 + c^T x`` with ``A x = b``, ``G x <= h``.

    One Cholesky factorisation of ``[n, n]`` a step serves both solves. The residual is the largest of the four
    optimality conditions, each relative to its terms.

    References:
        Mehrotra (1992), On the implementation of a primal-dual interior point method. Vandenberghe (2010), The CVXOPT
        linear and quadratic cone program solvers, section 5 for the start.
    """

    quadratic: Float[Tensor, "count n n"]
    linear: Float[Tensor, "count n"]
    equality: Float[Tensor, "count p n"]
    target: Float[Tensor, "count p"]
    inequality: Float[Tensor, "count m n"]
    bound: Float[Tensor, "count m"]

    def init(self, x: Tensor) -> State:
        """Start at the least squares of all constraints, moved inside."""
        factor = self._factor(torch.ones_like(self.bound))
        x, y = self._newton(factor, times(self.bound, self.inequality) - self.linear, self.target)
        beyond = times(x, self.inequality.mT) - self.bound
        return self._state(x, Interior(y, _inside(-beyond), _inside(beyond)))

    def step(self, state: State, active: Tensor) -> State:
        """Predict where complementarity would be 0, then aim for its right part and correct for what was bent."""
        x, (y, s, z) = state.x, state.memory
        w = z / s
        factor = self._factor(w)
        dual, primal, gap = self._residuals(x, state.memory)

        def towards(complementarity: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            part = w * gap - complementarity / s
            dx, dy = self._newton(factor, -dual - times(part, self.inequality), -primal)
            ds = -gap - times(dx, self.inequality.mT)
            return dx, dy, ds, -(complementarity + z * ds) / s

        mean = dot(s, z) / s.shape[-1]
        _, _, ds, dz = towards(s * z)
        reach = _longest(s, z, ds, dz)[:, None]
        left = dot(s + reach * ds, z + reach * dz) / s.shape[-1]
        centring = ((left / mean) ** 3).clamp(max=1)
        dx, dy, ds, dz = towards(s * z + ds * dz - (centring * mean)[:, None])
        length = (_TO_BOUNDARY * _longest(s, z, ds, dz)).clamp(max=1)[:, None]
        new = self._state(x + length * dx, Interior(y + length * dy, s + length * ds, z + length * dz))
        return new._replace(stalled=length[:, 0] < 1e-9)

    def _state(self, x: Tensor, point: Interior) -> State:
        dual, primal, gap = self._residuals(x, point)
        sizes = (self.linear, times(point.multiplier, self.inequality), times(point.equality, self.equality))
        value = dot(x, self.linear).abs() + dot(x, times(x, self.quadratic)).abs()
        worst = torch.stack(
            [
                _largest(dual) / (1 + torch.stack([_largest(v) for v in sizes]).amax(0)),
                _largest(primal / (1 + self.target.abs())),
                _largest(gap / (1 + self.bound.abs())),
                dot(point.slack, point.multiplier) / (1 + value),
            ]
        ).amax(0)
        return State.moving(x, worst, point)

    def _residuals(self, x: Tensor, point: Interior) -> tuple[Tensor, Tensor, Tensor]:
        dual = times(x, self.quadratic) + self.linear + times(point.multiplier, self.inequality)
        return (
            dual + times(point.equality, self.equality),
            times(x, self.equality.mT) - self.target,
            times(x, self.inequality.mT) + point.slack - self.bound,
        )

    def _factor(self, weight: Tensor) -> _Factor:
        rows, fixed = self.inequality, self.equality
        matrix = self.quadratic + (rows.mT * weight[:, None, :]) @ rows
        if fixed.shape[1]:
            matrix = matrix + fixed.mT @ fixed
        matrix.diagonal(dim1=-2, dim2=-1).add_(_FREE)
        whole = _cholesky(matrix)
        across = torch.cholesky_solve(fixed.mT, whole) if fixed.shape[1] else fixed.mT
        schur = fixed @ across
        schur.diagonal(dim1=-2, dim2=-1).add_(_FREE)
        return _Factor(whole, across, _cholesky(schur) if fixed.shape[1] else schur)

    def _newton(self, factor: _Factor, right: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Solve ``(Q + G^T W G) x + A^T y = right, A x = target``; ``A^T A`` times the second is in the first."""
        if not self.equality.shape[1]:
            return torch.cholesky_solve(right[..., None], factor.whole)[..., 0], target
        x = torch.cholesky_solve((right + times(target, self.equality))[..., None], factor.whole)[..., 0]
        y = torch.cholesky_solve((times(x, self.equality.mT) - target)[..., None], factor.schur)[..., 0]
        return x - times(y, factor.across.mT), y


def _cholesky(matrix: Tensor) -> Tensor:
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if bool((failed > 0).any()):
        ridge = 1e-12 * matrix.diagonal(dim1=-2, dim2=-1).amax(-1)[:, None, None]
        eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
        again = torch.linalg.cholesky_ex(matrix + ridge * eye)[0]
        factor = torch.where((failed > 0)[:, None, None], again, factor)
    return factor


def _inside(v: Tensor) -> Tensor:
    """Shift each row so that it is positive."""
    least = v.amin(-1, keepdim=True)
    return torch.where(least > 0, v, v - least + 1)


def _longest(s: Tensor, z: Tensor, ds: Tensor, dz: Tensor) -> Tensor:
    """Return ``[count]`` the longest step up to 1 with ``s + step ds >= 0`` and ``z + step dz >= 0``."""
    fastest = torch.maximum((-ds / s).amax(-1), (-dz / z).amax(-1))
    return 1 / fastest.clamp(min=1)


def _largest(v: Tensor) -> Tensor:
    return v.abs().amax(-1) if v.shape[-1] else v.new_zeros(len(v))
