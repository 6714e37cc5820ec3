r"""Projections on transport polytopes: matrices :math:`P \ge 0` with given sums of rows and columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from pullback.core.checks import check_broadcast, check_floating, check_same_dtype
from pullback.core.errors import ConvergenceError
from pullback.core.numerics import solve
from pullback.core.shapes import Float, Tensor
from pullback.core.transforms import can_look
from pullback.implicit.iteration import State, backtrack, dot, iterate, norm
from pullback.implicit.projections import projection_simplex
from pullback.implicit.saddle import stacked

__all__ = ["projection_birkhoff", "projection_transport"]


def projection_transport(
    x: Float[Tensor, "*#batch n m"], rows: Float[Tensor, "*#batch n"], columns: Float[Tensor, "*#batch m"]
) -> Tensor:
    r"""Project on the matrices :math:`P \ge 0` with :math:`P 1 = a` and :math:`P^T 1 = b`.

    :math:`P_{ij} = \max(X_{ij} + \alpha_i + \beta_j, 0)`: optimal transport with a quadratic in place of an entropic
    term, whose plans are sparse. The potentials maximise a concave function by Newton's method; given which entries
    are positive they solve a linear system, which carries the derivatives.

    Args:
        x: ``[*batch, n, m]``, for transport ``-cost / strength``.
        rows: ``[*batch, n]`` > 0, ``a``.
        columns: ``[*batch, m]`` > 0, ``b``, of the same sum; differences up to a hundredth are taken for rounding, and
            ``b`` is scaled.

    Returns:
        ``[*batch, n, m]`` the projections.

    Raises:
        TypeError: an argument is no floating tensor, or their dtypes differ.
        ValueError: shapes do not fit, a number is not finite, a sum is not positive, or their totals differ.
        ConvergenceError: Newton's method stopped far from the solution.

    Example:
        >>> projection_transport(torch.tensor([[1.0, 0.0], [0.0, 0.2]]), torch.ones(2), torch.ones(2))
        tensor([[0.8000, 0.2000],
                [0.2000, 0.8000]])

    References:
        Blondel, Seguy, Rolet (2018), Smooth and sparse optimal transport; Lorenz, Manns, Meyer (2021), Quadratically
        regularized optimal transport.
    """
    for name, value in (("x", x), ("rows", rows), ("columns", columns)):
        check_floating(name, value)
    if x.ndim < 2 or 0 in x.shape[-2:] or rows.shape[-1:] != x.shape[-2:-1] or columns.shape[-1:] != x.shape[-1:]:
        got = ", ".join(str(tuple(v.shape)) for v in (x, rows, columns))
        raise ValueError(f"x must be [*, n, m], rows [*, n] and columns [*, m], got {got}")
    check_same_dtype(x=x, rows=rows, columns=columns)
    batch = check_broadcast(x=tuple(x.shape[:-2]), rows=tuple(rows.shape[:-1]), columns=tuple(columns.shape[:-1]))
    _check_sums(x, rows, columns)
    n, m = x.shape[-2:]
    matrix, a, b = (v.double().expand(*batch, *v.shape[k:]) for v, k in ((x, -2), (rows, -1), (columns, -1)))
    b = b * (a.sum(-1, keepdim=True) / b.sum(-1, keepdim=True))
    # Shifts of rows and columns change nothing: without them the sums below drown in large entries.
    shift = matrix.detach().amax(-1, keepdim=True)
    matrix = matrix - shift
    matrix = matrix - matrix.detach().amax(-2, keepdim=True)
    support, failed = _Support.apply(matrix.detach(), a.detach(), b.detach())
    if can_look(failed) and bool(failed.any()):
        raise ConvergenceError("projection_transport: Newton's method stopped far from the solution")
    kept = torch.where(support, matrix, 0)
    links = support.to(matrix)
    corner = (torch.diag_embed(links.sum(-1)), links, links.mT, torch.diag_embed(links.sum(-2)))
    system = torch.cat([torch.cat(corner[:2], -1), torch.cat(corner[2:], -1)], -2)
    # Adding to a block of rows what is taken from its columns changes no entry: a little of the identity decides it.
    decided = system + 1e-10 * torch.eye(n + m, dtype=matrix.dtype, device=x.device)
    right = torch.cat([a - kept.sum(-1), b - kept.sum(-2)], -1)[..., None]
    potential = solve(decided, right)
    with torch.no_grad():  # what that little costs where potentials are large
        left = solve(decided.detach(), right.detach() - system.detach() @ potential.detach())
    potential = (potential + left)[..., 0]
    plan = torch.where(support, matrix + potential[..., :n, None] + potential[..., None, n:], 0)
    return plan.to(x.dtype)


def projection_birkhoff(x: Float[Tensor, "*batch n n"]) -> Tensor:
    r"""Project on the doubly stochastic matrices: :math:`P \ge 0` whose rows and columns sum to 1.

    Args:
        x: ``[*batch, n, n]``.

    Returns:
        ``[*batch, n, n]`` the projections.

    Raises:
        TypeError: ``x`` is no floating tensor.
        ValueError: ``x`` is not square, or not finite.

    Example:
        >>> projection_birkhoff(torch.tensor([[3.0, 0.0], [0.0, 0.0]]))
        tensor([[1., 0.],
                [0., 1.]])

    References:
        Blondel, Seguy, Rolet (2018), Smooth and sparse optimal transport.
    """
    check_floating("x", x)
    if x.ndim < 2 or x.shape[-1] != x.shape[-2]:
        raise ValueError(f"x must be [*, n, n], got {tuple(x.shape)}")
    one = torch.ones(x.shape[-1], dtype=x.dtype, device=x.device)
    return projection_transport(x, one, one)


class _Support(torch.autograd.Function):
    """Which entries of the projection are positive ``[*batch, n, m]``, and where that was not found ``[*batch]``."""

    @staticmethod
    def forward(matrix: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        n, m = matrix.shape[-2:]
        flat, rows, columns = matrix.reshape(-1, n, m), a.reshape(-1, n), b.reshape(-1, m)
        size = rows.sum(-1)
        found = iterate(_Newton(flat, rows, columns), torch.zeros_like(columns), 1e-12 * size, 200)
        support = found.memory > 0
        return support.reshape(matrix.shape), (found.residual > 1e-6 * size).reshape(matrix.shape[:-2])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[None, None, None]:
        return None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[None, None]:
        return None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *tensors: Tensor) -> Any:
        return _Support.apply(*stacked(info.batch_size, in_dims, tensors)), (0, 0)


@dataclass(frozen=True)
class _Newton:
    """Newton's method in the potentials of the columns; those of the rows are exact by a projection on a simplex."""

    matrix: Tensor
    rows: Tensor
    columns: Tensor

    def init(self, x: Tensor) -> State:
        return self._state(x, *self._evaluate(x))

    def step(self, state: State, active: Tensor) -> State:
        plan = state.memory
        links = (plan > 0).to(plan)
        degree = links.sum(-1)[..., None]
        # The rows follow: what a column gets more, the others of the same rows get less.
        hessian = torch.diag_embed(links.sum(-2)) - links.mT @ (links / degree)
        gap = self.columns - plan.sum(-2)
        ridge = 1e-10 + 1e-3 * (state.residual / self.rows.sum(-1)).clamp(max=1)
        eye = torch.eye(plan.shape[-1], dtype=plan.dtype, device=plan.device)
        direction = torch.linalg.solve_ex(hessian + ridge[:, None, None] * eye, gap[..., None])[0][..., 0]
        value = self._value(state.x, plan)
        rise = dot(direction, gap)

        def accept(length: Tensor, found: tuple[Tensor, ...]) -> Tensor:
            enough = found[1] >= value + 1e-4 * length * rise - 1e-14 * (1 + value.abs())
            return enough & (norm(self.columns - found[0].sum(-2)) <= 10 * state.residual)

        x, (plan, _), failed = backtrack(
            self._evaluate, accept, state.x, (plan, value), direction, active & torch.isfinite(rise), halvings=40
        )
        return self._state(x, plan, value)._replace(stalled=failed)

    def _evaluate(self, beta: Tensor) -> tuple[Tensor, Tensor]:
        plan = projection_simplex(self.matrix + beta[:, None, :], self.rows)
        return plan, self._value(beta, plan)

    def _value(self, beta: Tensor, plan: Tensor) -> Tensor:
        """The dual function: the row problems' least values, and what the columns are paid."""
        near = (plan - self.matrix).square() / 2 - plan * beta[:, None, :]
        return near.sum((-2, -1)) + dot(beta, self.columns)

    def _state(self, beta: Tensor, plan: Tensor, value: Tensor) -> State:
        return State.moving(beta, norm(self.columns - plan.sum(-2)), plan)


def _check_sums(x: Tensor, rows: Tensor, columns: Tensor) -> None:
    for name, value in (("x", x), ("rows", rows), ("columns", columns)):
        if can_look(value) and not bool(value.isfinite().all()):
            raise ValueError(f"{name} must be finite, got NaN or infinity")
    for name, value in (("rows", rows), ("columns", columns)):
        if can_look(value) and not bool((value > 0).all()):
            raise ValueError(f"{name} must be > 0 everywhere, got minimum {float(value.detach().min()):.4g}")
    total, other = rows.detach().double().sum(-1), columns.detach().double().sum(-1)
    apart = (total - other).abs() > 1e-2 * torch.maximum(total, other)
    if can_look(apart) and bool(apart.any()):
        raise ValueError(f"rows and columns must have the same sum, got {total.max():.6g} and {other.max():.6g}")
