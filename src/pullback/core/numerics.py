"""Numerics that several families need."""

from __future__ import annotations

import torch

from pullback.core.shapes import Float, Tensor
from pullback.core.transforms import can_look

__all__ = ["solve"]


def solve(matrix: Float[Tensor, "*#batch n n"], right: Float[Tensor, "*#batch n k"]) -> Float[Tensor, "*batch n k"]:
    r"""Return :math:`A^{-1} B`, with right derivatives of every order in every mode.

    ``torch.linalg.solve`` gives a wrong value, without a word, for a forward derivative of a forward derivative
    (``jacfwd(jacfwd(f))``); a factorisation and a solve with it does not.

    Args:
        matrix: ``[*batch, n, n]`` regular.
        right: ``[*batch, n, k]``.

    Returns:
        ``[*batch, n, k]``; half precision is solved in single.

    Raises:
        torch.linalg.LinAlgError: the matrix is exactly singular.

    Example:
        >>> solve(torch.tensor([[2.0, 0.0], [0.0, 4.0]]), torch.tensor([[1.0], [1.0]])).flatten().tolist()
        [0.5, 0.25]
    """
    wide = torch.promote_types(matrix.dtype, torch.float32)  # torch factorises nothing narrower
    factor, pivots, singular = torch.linalg.lu_factor_ex(matrix.to(wide))
    if can_look(singular) and bool(singular.any()):
        raise torch.linalg.LinAlgError(f"a matrix of shape {tuple(matrix.shape)} is singular and cannot be solved with")
    result: Tensor = torch.linalg.lu_solve(factor, pivots, right.to(wide)).to(right.dtype)
    return result
