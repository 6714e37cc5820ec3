"""Tridiagonal linear systems, as implicit steps of diffusion on a line pose them."""

from __future__ import annotations

import torch
from torch.nn.functional import pad

from pullback.core.checks import check_broadcast, check_floating, check_same_dtype
from pullback.core.shapes import Float, Tensor
from pullback.core.transforms import can_look

__all__ = ["tridiagonal_solve"]


def tridiagonal_solve(
    lower: Float[Tensor, "*#batch m"],
    diagonal: Float[Tensor, "*#batch n"],
    upper: Float[Tensor, "*#batch m"],
    b: Float[Tensor, "*#batch n"],
) -> Float[Tensor, "*batch n"]:
    r"""Solve tridiagonal systems, all at once.

    .. math:: a_i x_{i-1} + d_i x_i + c_i x_{i+1} = b_i, \qquad i = 1..n

    By parallel cyclic reduction: each of the ``log2 n`` sweeps eliminates the neighbours of every row at twice the
    distance of the sweep before, which is one vectorised step for all rows of all systems. There is no pivoting, so
    that the rows must be diagonally dominant, :math:`|d_i| \ge |a_i| + |c_i|`, as those of implicit steps of diffusion
    are.

    Args:
        lower: ``[*batch, n - 1]``, :math:`a_2..a_n`.
        diagonal: ``[*batch, n]``, :math:`d`, with ``n >= 1``.
        upper: ``[*batch, n - 1]``, :math:`c_1..c_{n-1}`.
        b: ``[*batch, n]``, of any size.

    Returns:
        ``[*batch, n]``, differentiable in all arguments.

    Raises:
        TypeError: an argument is no floating tensor, or the dtypes differ.
        ValueError: the shapes do not fit, a row is not diagonally dominant, or the matrix is singular.

    Example:
        >>> diagonal, beside = torch.full((4,), 2.0), torch.full((3,), -1.0)
        >>> x = tridiagonal_solve(beside, diagonal, beside, torch.tensor([0.0, 0.0, 0.0, 5.0]))
        >>> [round(v, 4) for v in x.tolist()]
        [1.0, 2.0, 3.0, 4.0]

    References:
        Hockney, Jesshope (1981), Parallel computers, section 5.4.
    """
    parts = {"lower": lower, "diagonal": diagonal, "upper": upper, "b": b}
    for name, part in parts.items():
        check_floating(name, part)
        if part.ndim == 0:
            raise ValueError(f"{name} must have at least one dimension, got a scalar tensor")
    check_same_dtype(**parts)
    n = diagonal.shape[-1]
    if n == 0:
        raise ValueError("diagonal must have at least one entry, got shape " + str(tuple(diagonal.shape)))
    for name, part in parts.items():
        wanted = n - 1 if name in ("lower", "upper") else n
        if part.shape[-1] != wanted:
            raise ValueError(f"{name} must have {wanted} entries beside a diagonal of {n}, got {part.shape[-1]}")
    check_broadcast(**{name: tuple(part.shape[:-1]) for name, part in parts.items()})
    below, above, size = pad(lower, (1, 0)), pad(upper, (0, 1)), diagonal
    slack = 1 + 10 * torch.finfo(size.dtype).eps
    weak = ~(size.abs() * slack >= below.abs() + above.abs()) | (size == 0)
    if can_look(weak) and bool(weak.any()):
        raise ValueError(
            f"row {int(weak.nonzero()[0, -1])} must be diagonally dominant, |diagonal| >= |lower| + |upper| and > 0"
        )
    # scaled to a diagonal of ones, products of the entries beside it cannot overflow
    below, above, right = below / size, above / size, b / size
    distance = 1
    while distance < n:
        pivot = 1 - below * _before(above, distance) - above * _after(below, distance)
        if can_look(pivot) and bool((pivot == 0).any()):
            raise ValueError("the matrix is singular")
        right = (right - below * _before(right, distance) - above * _after(right, distance)) / pivot
        below, above = -below * _before(below, distance) / pivot, -above * _after(above, distance) / pivot
        distance *= 2
    return right


def _before(x: Tensor, distance: int) -> Tensor:
    """Return for every row what the row ``distance`` before it has, 0 where there is none."""
    return pad(x[..., :-distance], (distance, 0))


def _after(x: Tensor, distance: int) -> Tensor:
    return pad(x[..., distance:], (0, distance))
