"""Regret: what decisions lost against the best one in hindsight."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from pullback.core.checks import check_callable, check_floating, check_positive, check_same_dtype
from pullback.core.shapes import Float, Tensor
from pullback.implicit import minimize, projection_l2_ball

__all__ = ["Regret", "online_regret"]


class Regret(NamedTuple):
    """Regret, and against whom.

    Attributes:
        regret: ``[*batch]``.
        comparator: ``[*batch, n]``, the best fixed decision.
        residual: ``[*batch]``, how far it is from a fixed point of projected descent with the step ``step``.
    """

    regret: Float[Tensor, "*batch"]
    comparator: Float[Tensor, "*batch n"]
    residual: Float[Tensor, "*batch"]


def online_regret(
    total: Callable[[Tensor], Tensor],
    incurred: Float[Tensor, "*batch"],
    start: Float[Tensor, "*batch n"],
    *,
    radius: float,
    step: float = 1.0,
    tolerance: float | None = None,
    max_iterations: int = 5000,
) -> Regret:
    r"""Return the static regret, with a convex solve for the comparator.

    .. math:: R_T = \sum_{t=1}^T f_t(x_t) - \min_{|u|_2 \le r} \sum_{t=1}^T f_t(u)

    Args:
        total: ``u [*batch, n] -> [*batch]``, the sum of the losses at a fixed decision, convex and smooth.
        incurred: ``[*batch]``, the sum of the losses at the decisions that were played.
        start: ``[*batch, n]``, where the search for the best one starts.
        radius: > 0, of the ball of decisions around the origin.
        step: > 0, of projected descent, which halves it where it is too long.
        tolerance: of its fixed point; default that of :func:`~pullback.implicit.minimize`.
        max_iterations: of it.

    Returns:
        ``Regret``.

    Raises:
        TypeError: ``total`` cannot be called, or a tensor is not floating.
        ValueError: ``radius`` or ``step`` is not positive.
        ConvergenceError: the comparator is not found within ``max_iterations``.

    Example:
        >>> import torch
        >>> targets = torch.tensor([[0.0], [1.0], [2.0]]).double()
        >>> total = lambda u: (u - targets).square().sum()
        >>> played = torch.tensor(0.0 + 1.0 + 1.0).double()  # 0, 0 and 1 were played
        >>> found = online_regret(total, played, torch.zeros(1).double(), radius=5.0, step=0.1)
        >>> round(float(found.regret), 6), round(float(found.comparator), 6)
        (0.0, 1.0)

    References:
        Zinkevich (2003), Online convex programming and generalized infinitesimal gradient ascent.
    """
    check_callable("total", total)
    check_floating("incurred", incurred)
    check_floating("start", start)
    check_same_dtype(incurred=incurred, start=start)
    check_positive("radius", radius)
    check_positive("step", step)
    found = minimize(
        total,
        start,
        prox=lambda u, _: projection_l2_ball(u, radius),
        step=step,
        tolerance=tolerance,
        max_iterations=max_iterations,
        batch_ndim=start.ndim - 1,
        check=True,
    )
    return Regret(incurred - total(found.value), found.value, found.residual)
