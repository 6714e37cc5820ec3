"""The order at which a method converges, measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

__all__ = ["ConvergenceOrder", "convergence_order"]

# two-sided 95 % quantiles of Student's t with 1, 2, ... degrees of freedom
_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


class ConvergenceOrder(NamedTuple):
    """What :func:`convergence_order` returns.

    Attributes:
        order: slope of log(error) against log(step).
        low: lower end of its 95 % confidence interval.
        high: upper end.
        errors: one a step.
    """

    order: float
    low: float
    high: float
    errors: list[float]


def convergence_order(integrate: Callable[[float], Tensor], exact: Tensor, steps: Sequence[float]) -> ConvergenceOrder:
    """Fit p in ``|integrate(h) - exact| = c h^p`` by least squares in the logarithms.

    Args:
        integrate: returns the solution for a step size.
        exact: what it should return.
        steps: three or more step sizes > 0, small enough to be in the asymptotic range.

    Returns:
        A :class:`ConvergenceOrder`.

    Raises:
        ValueError: fewer than three steps, a step <= 0, or an error that is zero or not finite.

    Example:
        >>> import torch
        >>> from pullback.dynamics import odeint
        >>> y0 = torch.ones(1, dtype=torch.float64)
        >>> fit = convergence_order(lambda h: odeint(lambda t, y: -y, y0, [0.0, 1.0], method="rk4", step=h).y[-1],
        ...                         torch.exp(-y0), [0.1, 0.05, 0.025])
        >>> round(fit.order, 1)
        4.0
    """
    if len(steps) < 3 or min(steps) <= 0:
        raise ValueError(f"steps must be at least three sizes > 0, got {list(steps)}")
    errors = [float((integrate(h) - exact).norm()) for h in steps]
    if not all(math.isfinite(e) and e > 0 for e in errors):
        raise ValueError(f"integrate must have finite errors > 0 to fit an order, got {errors}")
    x, y = np.log(np.asarray(steps)), np.log(np.asarray(errors))
    centred = x - x.mean()
    order = float(centred @ y / (centred @ centred))
    residual = y - y.mean() - order * centred
    freedom = len(steps) - 2
    quantile = _STUDENT[freedom - 1] if freedom <= len(_STUDENT) else 1.96 + 2.5 / freedom
    half = quantile * math.sqrt(float(residual @ residual) / freedom / float(centred @ centred))
    return ConvergenceOrder(order, order - half, order + half, errors)
