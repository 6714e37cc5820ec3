"""The linear-quadratic regulator: the exact answer beside planners and learned policies."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pullback.core.checks import check_broadcast, check_floating, check_integer, check_same_dtype
from pullback.core.shapes import Float
from pullback.core.transforms import can_look

__all__ = ["Regulator", "lqr"]


class Regulator(NamedTuple):
    """What :func:`lqr` found.

    Attributes:
        gains: ``[horizon, *batch, m, n]``: the best input is ``u_t = -gains[t] x_t``.
        values: ``[horizon + 1, *batch, n, n]``: the least cost from t on is ``x_t^T values[t] x_t``.
    """

    gains: Tensor
    values: Tensor


def lqr(
    A: Float[Tensor, "*#batch n n"],
    B: Float[Tensor, "*#batch n m"],
    Q: Float[Tensor, "*#batch n n"],
    R: Float[Tensor, "*#batch m m"],
    *,
    horizon: int,
    final: Float[Tensor, "*#batch n n"] | None = None,
) -> Regulator:
    r"""Return gains and values of the finite-horizon linear-quadratic regulator by Riccati's recursion.

    For :math:`x_{t+1} = A x_t + B u_t` and the cost :math:`\sum_{t<T} x_t^T Q x_t + u_t^T R u_t + x_T^T F x_T`:

    .. math:: K_t = (R + B^T P_{t+1} B)^{-1} B^T P_{t+1} A, \quad
              P_t = Q + K_t^T R K_t + (A - B K_t)^T P_{t+1} (A - B K_t), \quad P_T = F .

    The second form (Joseph's) keeps P positive semi-definite in rounding. Symmetric parts of Q, R and F count, and all
    is computed in double precision.

    Args:
        A: ``[*batch, n, n]``.
        B: ``[*batch, n, m]``.
        Q: ``[*batch, n, n]``, positive semi-definite.
        R: ``[*batch, m, m]``, such that every R + B^T P B is positive definite.
        horizon: T >= 1 steps.
        final: F, ``[*batch, n, n]``; Q without it.

    Returns:
        A :class:`Regulator`, with derivatives in all matrices.

    Raises:
        TypeError: a tensor is not floating, or the dtypes differ.
        ValueError: shapes do not fit, horizon < 1, or R + B^T P B is not positive definite (the step is named).

    Example:
        >>> one = torch.eye(1)
        >>> found = lqr(one, one, one, one, horizon=20)
        >>> round(found.values[0].item(), 4)  # the golden ratio
        1.618

    References:
        Bertsekas (2017), Dynamic programming and optimal control I, section 3.1.
    """
    tensors = {"A": A, "B": B, "Q": Q, "R": R} | ({} if final is None else {"final": final})
    for name, value in tensors.items():
        if check_floating(name, value).ndim < 2:
            raise ValueError(f"{name} must be a matrix, got shape {tuple(value.shape)}")
    n, m = B.shape[-2:]
    for name, value, size in (("A", A, n), ("Q", Q, n), ("R", R, m), ("final", Q if final is None else final, n)):
        if value.shape[-2:] != (size, size) or not size:
            raise ValueError(f"{name} must have shape [*batch, {size}, {size}], got {tuple(value.shape)}")
    check_same_dtype(**tensors)
    batch = check_broadcast(**{name: tuple(value.shape[:-2]) for name, value in tensors.items()})
    check_integer("horizon", horizon, 1)
    dtype = A.dtype
    A, B = A.double(), B.double()  # squares of squares, and torch has no Cholesky factors of half precision
    state, effort = _symmetric(Q.double()), _symmetric(R.double())
    value = state if final is None else _symmetric(final.double())
    gains: list[Tensor] = []
    values = [value]
    for t in range(horizon - 1, -1, -1):
        weighted = B.mT @ value
        factor, failed = torch.linalg.cholesky_ex(effort + weighted @ B)
        if can_look(failed) and bool(failed.any()):
            raise ValueError(f"R + B^T P B must be positive definite, it is not at step {t}")
        gain = torch.cholesky_solve(weighted @ A, factor)
        closed = A - B @ gain
        value = _symmetric(state + gain.mT @ effort @ gain + closed.mT @ value @ closed)
        gains.append(gain)
        values.append(value)
    # The last ones have not met every matrix yet, nor its batch.
    every = [torch.stack([part.expand(*batch, *part.shape[-2:]) for part in parts[::-1]]) for parts in (gains, values)]
    return Regulator(every[0].to(dtype), every[1].to(dtype))


def _symmetric(x: Tensor) -> Tensor:
    return 0.5 * (x + x.mT)
