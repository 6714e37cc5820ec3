"""Spearman's rank correlation."""

from __future__ import annotations

import torch
from torch import Tensor

from pullback.core.checks import check_finite, check_tensor
from pullback.core.shapes import Num

__all__ = ["rank_correlation"]


def rank_correlation(columns: Num[Tensor, "n d"], target: Num[Tensor, " n"]) -> Tensor:
    r"""Return Spearman's correlation of each column with a target.

    The correlation of ranks, ``corr(rank(x_j), rank(y))``; equal numbers share the mean of their ranks. It is a
    measurement: its derivative is zero where it exists (:func:`pullback.discrete.rank` has one that is useful).

    Args:
        columns: ``[n, d]`` finite numbers, ``n >= 2``.
        target: ``[n]`` finite numbers.

    Returns:
        ``[d]`` in [-1, 1], double precision; 0 for a column, or a target, that is constant.

    Raises:
        TypeError: an argument is no tensor.
        ValueError: the shapes do not fit, there are fewer than two rows, or a number is not finite.

    Example:
        >>> x = torch.tensor([[1.0, 5.0], [2.0, 5.0], [10.0, 1.0]])
        >>> [round(r, 3) for r in rank_correlation(x, torch.tensor([0.1, 0.2, 0.3])).tolist()]
        [1.0, -0.866]

    References:
        Spearman (1904), The proof and measurement of association between two things.
    """
    check_tensor("columns", columns)
    check_tensor("target", target)
    if columns.ndim != 2 or len(columns) < 2:
        raise ValueError(f"columns must have shape (n, d) with n >= 2, got {tuple(columns.shape)}")
    if target.shape != columns.shape[:1]:
        raise ValueError(f"target must have the {len(columns)} rows of columns, got shape {tuple(target.shape)}")
    check_finite("columns", columns)
    check_finite("target", target)
    if not columns.shape[1]:
        return torch.zeros(0, dtype=torch.float64, device=columns.device)
    a, b = torch.stack([_ranks(column) for column in columns.detach().unbind(1)]), _ranks(target.detach())
    a, b = (r - r.mean(-1, keepdim=True) for r in (a, b))
    size = torch.linalg.vector_norm(a, dim=-1) * torch.linalg.vector_norm(b)
    return torch.where(size > 0, a @ b / torch.where(size > 0, size, 1.0), 0.0).clamp(-1, 1)


def _ranks(values: Tensor) -> Tensor:
    _, place, count = torch.unique(values, return_inverse=True, return_counts=True)
    return (count.cumsum(0) - (count - 1).double() / 2)[place]
