r"""Systems of a quadratic objective on the constraints that hold with equality: one factorisation for all orders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from pullback.core.gradients import nested_forward_mode, primals
from pullback.core.shapes import Bool, Float, Tensor
from pullback.implicit.iteration import times

__all__ = ["factor_saddle", "solve_saddle", "stacked"]

_REFINEMENTS = 3
_FREE = 16.0  # curvature, in what is added to the diagonal, below which a direction is decided by nothing
_STIFF = 1e9  # the curvature it gets


def factor_saddle(
    quadratic: Float[Tensor, "*batch n n"], rows: Float[Tensor, "*batch m n"], active: Bool[Tensor, "*batch m"]
) -> Float[Tensor, "*batch n n"]:
    """Return the Cholesky factor that :func:`solve_saddle` works with, without a graph.

    Args:
        quadratic: ``[*batch, n, n]`` symmetric, positive semidefinite, entries of size 1 at most.
        rows: ``[*batch, m, n]`` of length 1 (or 0).
        active: ``[*batch, m]`` which of them hold.
    """
    with torch.no_grad():
        chosen = torch.where(active[..., None], rows, 0)
        weight = _price(rows)
        matrix = quadratic + weight * (chosen.mT @ chosen)
        # What neither the objective nor a constraint decides stays where it is, with derivative 0.
        least = torch.finfo(matrix.dtype).eps * weight
        eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
        factor, failed = torch.linalg.cholesky_ex(matrix + least * eye)
        ridge: Tensor = 4 * least * (1 + matrix.diagonal(dim1=-2, dim2=-1).amax(-1))[..., None, None]
        while bool((failed > 0).any()) and bool((ridge < 1e8).any()):  # slightly indefinite by rounding
            again = torch.linalg.cholesky_ex(matrix + ridge * eye)
            factor = torch.where((failed > 0)[..., None, None], again.L, factor)
            failed, ridge = torch.where(failed > 0, again.info, failed), ridge * 10
        return _held_where_free(matrix, factor, least)


def _held_where_free(matrix: Tensor, factor: Tensor, least: float) -> Tensor:
    """Return the factor where directions without curvature are stiff, so that nothing moves along them.

    Otherwise what is added to the diagonal alone would decide, and derivatives along them be about ``1 / least``.
    """
    n = matrix.shape[-1]
    shape, matrix, factor = factor.shape, matrix.reshape(-1, n, n), factor.reshape(-1, n, n)
    suspected = (factor.diagonal(dim1=-2, dim2=-1).square().amin(-1) < 1e4 * n * least).nonzero()[:, 0]
    if not len(suspected):
        return factor.reshape(shape)
    chosen = matrix[suspected]
    values, directions = torch.linalg.eigh(chosen)
    free = values < _FREE * least
    stiff = (directions * torch.where(free, _STIFF, 0)[..., None, :]) @ directions.mT
    eye = torch.eye(n, dtype=matrix.dtype, device=matrix.device)
    again = torch.linalg.cholesky_ex(chosen + stiff + least * eye)
    better = (free.any(-1) & (again.info == 0))[..., None, None]
    return factor.index_copy(0, suspected, torch.where(better, again.L, factor[suspected])).reshape(shape)


def solve_saddle(
    quadratic: Float[Tensor, "*batch n n"],
    rows: Float[Tensor, "*batch m n"],
    active: Bool[Tensor, "*batch m"],
    linear: Float[Tensor, "*batch n"],
    target: Float[Tensor, "*batch m"],
    factor: Float[Tensor, "*batch n n"],
) -> tuple[Float[Tensor, "*batch n"], Float[Tensor, "*batch m"]]:
    r"""Solve :math:`Q x + C_a^T y = r, C_a x = d_a` for the active rows :math:`C_a`; ``y`` is 0 for the others.

    By the method of multipliers, whose matrix :math:`Q + C_a^T C_a / \delta` is definite although rows depend on each
    other; the multipliers are then the least ones. Derivatives in all but ``factor`` are such solutions again, of any
    order, in reverse and forward mode and under ``vmap``.

    Args:
        quadratic: ``Q``, see :func:`factor_saddle`.
        rows: ``C``.
        active: which rows hold.
        linear: ``r``.
        target: ``d``; entries of other rows are not used.
        factor: of :func:`factor_saddle`.
    """
    x, y = _Saddle.apply(quadratic, rows, active, linear, target, factor)
    return x, y


class _Saddle(torch.autograd.Function):
    @staticmethod
    def forward(
        quadratic: Tensor, rows: Tensor, active: Tensor, linear: Tensor, target: Tensor, factor: Tensor
    ) -> tuple[Tensor, Tensor]:
        chosen = torch.where(active[..., None], rows, 0)
        left_x, left_y = linear, torch.where(active, target, 0)
        x, y = torch.zeros_like(left_x), torch.zeros_like(left_y)
        weight = _price(rows)
        for _ in range(_REFINEMENTS):
            step = _apply_inverse(factor, left_x + weight * times(left_y, chosen))
            rise = weight * (times(step, chosen.mT) - left_y)
            x, y = x + step, y + rise
            left_x = linear - times(x, quadratic) - times(y, chosen)
            left_y = torch.where(active, target, 0) - times(x, chosen.mT)
        return x, y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
        quadratic, rows, active, _, _, factor = inputs
        ctx.save_for_backward(quadratic, rows, active, factor, *output)
        ctx.save_for_forward(quadratic, rows, active, factor, *output)

    @staticmethod
    def backward(ctx: Any, of_x: Tensor, of_y: Tensor) -> tuple[Tensor | None, ...]:
        quadratic, rows, active, factor, x, y = ctx.saved_tensors
        u, v = solve_saddle(quadratic, rows, active, of_x, of_y, factor)
        for_quadratic = -_outer(u, x) if ctx.needs_input_grad[0] else None
        for_rows = -_outer(y, u) - _outer(v, x) if ctx.needs_input_grad[1] else None
        return for_quadratic, for_rows, None, u, v, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor, Tensor]:
        with nested_forward_mode():
            quadratic, rows, active, factor, x, y = primals(ctx.saved_tensors)
            of_quadratic, of_rows, _, of_linear, of_target, _ = tangents
            r = torch.zeros_like(x) if of_linear is None else of_linear
            d = torch.zeros_like(y) if of_target is None else of_target
            if of_quadratic is not None:
                r = r - (of_quadratic @ x[..., None])[..., 0]
            if of_rows is not None:
                r = r - times(y, of_rows)
                d = d - times(x, of_rows.mT)
            return solve_saddle(quadratic, rows, active, r, d, factor)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *tensors: Tensor) -> Any:
        return _Saddle.apply(*stacked(info.batch_size, in_dims, tensors)), (0, 0)


def stacked(count: int, dims: Sequence[int | None], tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the tensors of a ``vmap`` over ``count`` with its dimension in front of each."""
    return [
        t.expand(count, *t.shape) if dim is None else t.movedim(dim, 0) for t, dim in zip(tensors, dims, strict=True)
    ]


def _price(rows: Tensor) -> float:
    """Return ``1 / delta`` of the method of multipliers: each refinement multiplies the error by about ``delta``."""
    return float(torch.finfo(rows.dtype).eps ** -0.375)


def _apply_inverse(factor: Tensor, right: Tensor) -> Tensor:
    return torch.cholesky_solve(right[..., None], factor)[..., 0]


def _outer(a: Tensor, b: Tensor) -> Tensor:
    return a[..., :, None] * b[..., None, :]
