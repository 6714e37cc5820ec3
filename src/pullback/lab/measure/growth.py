"""How something grows: the exponent of a power law, with its confidence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pullback.lab.measured import Measured

__all__ = ["Slope", "slope"]


@dataclass(frozen=True)
class Slope:
    """A power law ``y = factor * x^exponent`` fitted to points.

    Attributes:
        exponent: the slope in logarithms.
        low: lower end of its confidence interval.
        high: upper end.
        factor: y at x = 1.
    """

    exponent: Measured
    low: Measured
    high: Measured
    factor: float


def slope(x: Sequence[float] | Any, y: Sequence[float] | Any, *, confidence: float = 0.95, of: str = "") -> Slope:
    """Fit a power law by least squares in logarithms.

    The confidence interval is Student's: it takes the residuals as independent, of one variance and normal. Two points
    have no residual: their interval is infinite.

    Args:
        x: sizes, > 0, at least two different ones.
        y: what was measured at each, > 0.
        confidence: of the interval, in (0, 1).
        of: the arm, in the label of the numbers.

    Returns:
        The exponent, the ends of its interval and the factor.

    Raises:
        ValueError: other lengths, numbers that are not positive and finite, or fewer than two different sizes.

    Example:
        >>> found = slope([1, 2, 4, 8], [3.0, 12.1, 47.9, 192.0])
        >>> f"{found.exponent:.2f}, {found.low:.2f} to {found.high:.2f}"
        '2.00, 1.98 to 2.01'
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), got {confidence}")
    u, v = (_logarithms(name, values) for name, values in (("x", x), ("y", y)))
    if len(u) != len(v):
        raise ValueError(f"x and y must have the same length, got {len(u)} and {len(v)}")
    if len(u.unique()) < 2:
        raise ValueError("x must have at least two different sizes")
    centred = u - u.mean()
    squares = centred.square().sum()
    exponent = (centred * v).sum() / squares
    residual = v - v.mean() - exponent * centred
    half = math.inf
    if len(u) > 2:
        from scipy.special import stdtrit  # Student's t without scipy.stats, whose import takes a third of a second

        error = (residual.square().sum() / (len(u) - 2) / squares).sqrt()
        half = float(stdtrit(len(u) - 2, (1 + confidence) / 2) * error)
    value = exponent.item()
    return Slope(
        Measured(value, "exponent", of),
        Measured(value - half, f"exponent, {confidence:.0%} from", of),
        Measured(value + half, f"exponent, {confidence:.0%} to", of),
        math.exp(v.mean().item() - value * u.mean().item()),
    )


def _logarithms(name: str, values: Any) -> torch.Tensor:
    numbers = torch.as_tensor([float(value) for value in values], dtype=torch.float64)
    if not bool(((numbers > 0) & numbers.isfinite()).all()):
        raise ValueError(f"{name} must be finite and > 0, got {numbers.tolist()}")
    return numbers.log()
