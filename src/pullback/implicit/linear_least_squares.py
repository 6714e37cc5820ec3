"""Linear least squares of any shape: tall, wide, without full rank; several right sides, derivatives of every order."""

from __future__ import annotations

from typing import Literal, get_args

import torch

from pullback.core.checks import check_broadcast, check_choice, check_floating, check_same_dtype
from pullback.core.shapes import Float, Tensor
from pullback.core.transforms import can_look
from pullback.implicit.arguments import check_number
from pullback.implicit.solution import Reason, Solution, raise_unless_converged

__all__ = ["linear_least_squares"]

LeastSquaresFactors = Literal["qr", "svd"]


def linear_least_squares(
    matrix: Float[Tensor, "*batch m n"],
    b: Float[Tensor, "..."],
    *,
    method: str = "qr",
    ridge: float = 0.0,
    columns: bool = False,
    check: bool = False,
) -> Solution:
    r"""Return the smallest of the ``x`` that minimise :math:`|A x - b|^2 + \text{ridge}\,|x|^2`.

    Tall, square and wide matrices alike; a wide one of full rank has many solutions with ``A x = b``, of which this is
    the shortest, :math:`A^T (A A^T)^{-1} b`. Derivatives (reverse, forward, any order) are those of the factorisation.

    Args:
        matrix: ``A``, ``[*batch, m, n]``.
        b: ``[*batch, m]``; batches broadcast.
        method: ``"qr"`` for full rank; ``"svd"`` for any rank: singular values below ``max(m, n) eps`` of the largest
            count as 0, and derivatives are those at constant rank.
        ridge: >= 0; above 0 every matrix has full rank.
        columns: whether ``b`` holds ``k`` right sides of each matrix, ``[*batch, m, k]``.
        check: raise when a problem was not solved.

    Returns:
        ``Solution``: ``value [*batch, n]`` (``[*batch, n, k]``); ``residual [*batch]`` (``[*batch, k]``), the 2-norm of
        ``A^T (A x - b) + ridge x``; ``iterations`` 1; ``converged`` false where ``"qr"`` met a matrix without full rank
        (``value`` is 0 there, without a derivative) or a number is not finite (NaN).

    Raises:
        TypeError: no floating tensors, or of different types.
        ValueError: shapes that do not fit, an unknown method, a negative ridge.
        ConvergenceError: ``check`` is set and a problem was not solved; carries the ``Solution``.

    Example:
        >>> x = torch.tensor([0.0, 1.0, 2.0, 3.0])
        >>> line = linear_least_squares(torch.stack([torch.ones(4), x], 1), 1 + 2 * x)
        >>> [round(v, 4) for v in line.value.tolist()], bool(line.converged)
        ([1.0, 2.0], True)
        >>> shortest = linear_least_squares(torch.ones(1, 2), torch.tensor([4.0])).value  # of many
        >>> [round(v, 4) for v in shortest.tolist()]
        [2.0, 2.0]

    References:
        Björck (1996), Numerical methods for least squares problems, 1.3 and 1.4; Golub, Pereyra (1973), The
        differentiation of pseudo-inverses, equation 4.12.
    """
    check_floating("matrix", matrix)
    check_floating("b", b)
    check_same_dtype(matrix=matrix, b=b)
    check_choice("method", method, get_args(LeastSquaresFactors))
    check_number("ridge", ridge, zero=True)
    if matrix.ndim < 2 or not min(matrix.shape[-2:]):
        raise ValueError(f"matrix must be [*batch, m, n] with m, n >= 1, got {tuple(matrix.shape)}")
    m, n = matrix.shape[-2:]
    if b.ndim < 1 + columns or b.shape[-1 - columns] != m:
        wanted = f"[*batch, {m}, k]" if columns else f"[*batch, {m}]"
        raise ValueError(f"b must be {wanted} for a matrix {tuple(matrix.shape)}, got {tuple(b.shape)}")
    wide = torch.promote_types(b.dtype, torch.float32)  # torch factorises nothing narrower
    a, right = matrix.to(wide), (b if columns else b.unsqueeze(-1)).to(wide)
    batch = check_broadcast(matrix=tuple(a.shape[:-2]), b=tuple(right.shape[:-2]))
    finite = torch.isfinite(a).all(-1).all(-1)
    a = torch.where(finite[..., None, None], a, 0.0)
    whole, target = a, right
    if ridge:
        root = ridge**0.5 * torch.eye(n, dtype=wide, device=a.device)
        whole = torch.cat([a, root.expand(*a.shape[:-2], n, n)], -2)
        target = torch.cat([right, right.new_zeros(*right.shape[:-2], n, right.shape[-1])], -2)
    whole, scale = _ordinary(whole)
    target, size = _ordinary(target)
    if method == "svd":
        x, sound = torch.linalg.pinv(whole, rtol=max(m, n) * torch.finfo(wide).eps) @ target, finite
    else:
        x, sound = _by_qr(whole, target)
    x = torch.where(finite[..., None, None], x / scale * size, torch.nan)
    return _judged(a, right, x, sound & finite, ridge, batch, b.dtype, columns, check)


def _ordinary(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the matrices in ordinary size, where products do not overflow, and their scale, without a derivative."""
    largest = x.detach().abs().amax((-2, -1), keepdim=True)
    scale = torch.where((largest > 0) & torch.isfinite(largest), largest, 1.0)
    return x / scale, scale


def _by_qr(a: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Return the solution, 0 without full rank, and where there is full rank."""
    tall = a.shape[-2] >= a.shape[-1]
    standing = a if tall else a.mT
    sound = _full_rank(torch.linalg.qr(standing.detach(), mode="r")[1], max(a.shape[-2:]))
    here = sound[..., None, None]
    # A matrix without full rank gives way to one whose factors have a derivative, and takes no part in the result.
    q, r = torch.linalg.qr(torch.where(here, standing, torch.eye(*standing.shape[-2:], dtype=a.dtype, device=a.device)))
    if tall:
        x = torch.linalg.solve_triangular(r, q.mT @ right, upper=True)
    else:
        x = q @ torch.linalg.solve_triangular(r.mT, right, upper=False)
    return torch.where(here, x, 0.0), sound


def _full_rank(r: Tensor, size: int) -> Tensor:
    pivots = r.diagonal(dim1=-2, dim2=-1).abs()
    return (pivots > size * torch.finfo(r.dtype).eps * pivots.amax(-1, keepdim=True)).all(-1)


def _judged(
    a: Tensor,
    right: Tensor,
    x: Tensor,
    sound: Tensor,
    ridge: float,
    batch: tuple[int, ...],
    dtype: torch.dtype,
    columns: bool,
    check: bool,
) -> Solution:
    k = right.shape[-1]
    with torch.no_grad():
        at = x.detach()
        residual = torch.linalg.vector_norm(a.mT @ (a @ at - right) + ridge * at, dim=-2)
        reason = torch.where(sound, int(Reason.CONVERGED), int(Reason.STALLED)).unsqueeze(-1).expand(*batch, k)
        reason = torch.where(torch.isfinite(at).all(-2).expand(*batch, k), reason, int(Reason.DIVERGED))
        residual = residual.expand(*batch, k).to(dtype)
    value = x.expand(*batch, *x.shape[-2:]).to(dtype)
    ones = torch.ones_like(reason)
    parts = (value, residual, ones, reason) if columns else (v.squeeze(-1) for v in (value, residual, ones, reason))
    solution = Solution(*parts)
    if check and can_look(value):
        raise_unless_converged("linear_least_squares", solution)
    return solution
