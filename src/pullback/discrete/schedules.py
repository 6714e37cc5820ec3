"""Temperatures that fall while a network is trained."""

from __future__ import annotations

import math
from collections.abc import Callable

from pullback.core.checks import check_integer, check_positive

__all__ = ["temperature_schedule"]


def temperature_schedule(start: float, end: float, rate: float, every: int = 1) -> Callable[[int], float]:
    r"""Return the temperature as a function of the step: an exponential fall in stairs, down to a floor.

    .. math:: \tau(t) = \max\big(\mathrm{end},\ \mathrm{start}\cdot e^{-r\,N \lfloor t / N\rfloor}\big)

    Args:
        start: the temperature of step 0, > 0.
        end: the lowest temperature, in ``(0, start]``.
        rate: ``r`` per step, >= 0; 0 keeps ``start``.
        every: ``N`` >= 1, steps between changes.

    Returns:
        A function of the step, an integer >= 0.

    Raises:
        TypeError: an argument is no number, ``every`` or a step no integer.
        ValueError: an argument is out of range.

    Example:
        >>> temperature = temperature_schedule(1.0, 0.5, 1e-4, every=500)
        >>> [round(temperature(step), 4) for step in (0, 499, 500, 1000, 100_000)]
        [1.0, 1.0, 0.9512, 0.9048, 0.5]

    References:
        Jang, Gu, Poole (2017), Categorical reparameterization with Gumbel-softmax, section 4.
    """
    for name, value in (("start", start), ("end", end)):
        check_positive(name, value)
    if end > start:
        raise ValueError(f"end must be at most start, {start}, got {end}")
    check_positive("rate", rate, zero=True)
    check_integer("every", every, 1)

    def temperature(step: int) -> float:
        check_integer("step", step, 0)
        return max(float(end), start * math.exp(-rate * every * (step // every)))

    return temperature
