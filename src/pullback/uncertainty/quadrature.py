"""Points and weights that turn integrals into sums."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch

from pullback.core.checks import check_choice, check_integer
from pullback.core.shapes import Float, Tensor

__all__ = ["Quadrature", "quadrature"]

_RULES = ("trapezoid", "midpoint", "simpson", "gauss-legendre", "gauss-hermite")


class Quadrature(NamedTuple):
    """A rule of integration.

    Attributes:
        points: ``[n]`` in rising order.
        weights: ``[n]`` > 0, or their logarithms.
    """

    points: Float[Tensor, "n"]
    weights: Float[Tensor, "n"]


def quadrature(
    rule: str,
    count: int,
    *,
    low: float = -1.0,
    high: float = 1.0,
    log: bool = False,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Quadrature:
    r"""Return points :math:`z_i` and weights :math:`w_i` with :math:`\int_a^b f(z)\,dz\approx\sum_i w_i f(z_i)`.

    For a function that vanishes at both ends with its derivatives, such as a density on a range that holds all of it,
    the error of ``"trapezoid"`` and ``"midpoint"`` falls faster than every power of n: nothing does better. Elsewhere
    it falls with :math:`n^{-2}`, that of ``"simpson"`` with :math:`n^{-4}`; ``"gauss-legendre"`` is exact for
    polynomials of degree 2n - 1. ``"gauss-hermite"`` integrates over the whole line against a weight,
    :math:`\int f(z)e^{-z^2}dz`, and has no ends.

    Args:
        rule: one of these.
        count: n >= 2; odd for ``"simpson"``.
        low: a, finite.
        high: b > a, finite.
        log: return the logarithms of the weights.
        dtype: torch's default.
        device: of the points.

    Returns:
        :class:`Quadrature`, computed in double precision.

    Raises:
        TypeError: ``count`` is no integer, a limit is no number.
        ValueError: the rule is unknown, ``count`` < 2 or even for ``"simpson"``, the limits are no interval or are
            given for ``"gauss-hermite"``.

    Example:
        >>> points, weights = quadrature("simpson", 3, low=0.0, high=2.0)
        >>> points, (weights * points**3).sum()  # cubics are integrated exactly
        (tensor([0., 1., 2.]), tensor(4.))

    References:
        Davis, Rabinowitz (1984), Methods of numerical integration, chapter 2. Trefethen, Weideman (2014), The
        exponentially convergent trapezoidal rule.
    """
    check_choice("rule", rule, _RULES)
    check_integer("count", count, 2)
    for name, value in (("low", low), ("high", high)):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not (math.isfinite(low) and math.isfinite(high) and low < high and math.isfinite(high - low)):
        raise ValueError(f"low and high must be finite with low < high, got {low} and {high}")
    if rule == "gauss-hermite":
        if (low, high) != (-1.0, 1.0):
            raise ValueError(f"low and high must be left out for gauss-hermite, a rule of the line, got {low}, {high}")
        points, weights = np.polynomial.hermite.hermgauss(count)
    else:
        points, weights = _unit(rule, count)
        points, weights = low + (high - low) * (points + 1) / 2, (high - low) / 2 * weights
    weights = np.log(weights) if log else weights
    found = (torch.from_numpy(values).to(dtype or torch.get_default_dtype()) for values in (points, weights))
    return Quadrature(*(values.to(device) for values in found))


def _unit(rule: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The rule on [-1, 1]."""
    if rule == "gauss-legendre":
        return np.polynomial.legendre.leggauss(count)
    if rule == "midpoint":
        return (2 * np.arange(count) + 1) / count - 1, np.full(count, 2 / count)
    weights = np.full(count, 2 / (count - 1))
    if rule == "trapezoid":
        weights[[0, -1]] /= 2
    else:
        if count % 2 == 0:
            raise ValueError(f"count must be odd for simpson, got {count}")
        weights[1::2] *= 4 / 3
        weights[0::2] *= 2 / 3
        weights[[0, -1]] /= 2
    return np.linspace(-1, 1, count), weights
