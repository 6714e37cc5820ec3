"""How fast an optimiser's values fall, and how far its iterates bounce."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from pullback.core.checks import check_floating, check_integer, check_range
from pullback.core.shapes import Float, Tensor

__all__ = ["ConvergenceRate", "convergence_rate", "oscillation_amplitude"]


class ConvergenceRate(NamedTuple):
    """A power law fitted to the values of a run.

    Attributes:
        exponent: ``[*batch]`` ``r`` of ``f_k - f* ~ factor k^r``; negative where the values fall.
        low: ``[*batch]`` lower end of its confidence interval.
        high: ``[*batch]`` upper end.
        factor: ``[*batch]`` the gap at step 1.
    """

    exponent: Float[Tensor, "*batch"]
    low: Float[Tensor, "*batch"]
    high: Float[Tensor, "*batch"]
    factor: Float[Tensor, "*batch"]


def convergence_rate(
    values: Float[Tensor, "*batch steps"],
    optimum: float | Float[Tensor, "*batch"] = 0.0,
    *,
    window: int = 1,
    skip: int = 0,
    confidence: float = 0.95,
) -> ConvergenceRate:
    r"""Fit ``f_k - f* ~ factor k^r`` to the values ``f_1, f_2, ...`` of a run.

    Values and steps are averaged over windows (a subgradient method jumps across the optimum: single values mean
    little), and ``log(mean gap)`` is regressed on ``log(mean step)``. Residuals of neighbouring windows are alike: the
    interval is Student's with the effective number of windows, ``n (1 - rho) / (1 + rho)``, ``rho`` their
    correlation, in place of ``n``.

    Args:
        values: ``[*batch, steps]`` values after each step; each run along the last dimension.
        optimum: ``f*``, a number or one a run.
        window: values averaged to a point, >= 1; values that do not fill a last window are left out.
        skip: values left out at the beginning, >= 0.
        confidence: of the interval, in (0, 1).

    Returns:
        A :class:`ConvergenceRate`.

    Raises:
        TypeError: ``values`` is not floating.
        ValueError: fewer than 3 windows, a window whose mean gap is not finite and > 0 (the optimum is reached, or
            is none), or an option out of range.

    Example:
        >>> k = torch.arange(1.0, 1001)
        >>> found = convergence_rate(3 / k**2 + 5, optimum=5.0, window=10, skip=100)
        >>> f"{found.exponent:.2f}, factor {found.factor:.1f}"
        '-2.00, factor 3.0'

    References:
        Kumar (2024), GD doesn't make the cut, arXiv 2401.08426, section 3; Nesterov (2018), Lectures on convex
        optimization, theorems 2.1.14 and 3.2.2, for the rates to compare with.
    """
    check_floating("values", values)
    check_integer("window", window, 1)
    check_integer("skip", skip, 0)
    check_range("confidence", confidence, 0, 1)
    if confidence in (0, 1):
        raise ValueError(f"confidence must be in (0, 1), got {confidence}")
    count = (values.shape[-1] - skip) // window if values.ndim else 0
    if count < 3:
        raise ValueError(f"values must fill at least 3 windows of {window} after {skip}, got {tuple(values.shape)}")
    wide = values.detach().double()[..., skip : skip + count * window]
    best = torch.as_tensor(optimum, dtype=torch.float64, device=values.device)
    gaps = (wide - best[..., None]).unflatten(-1, (count, window)).mean(-1)
    if not bool(((gaps > 0) & gaps.isfinite()).all()):
        raise ValueError(f"values must stay above the optimum, got a mean gap of {gaps.min().item()} in a window")
    steps = torch.arange(count, dtype=torch.float64, device=values.device) * window + skip + (window + 1) / 2
    u, v = steps.log() - steps.log().mean(), gaps.log()
    exponent = (u * v).sum(-1) / u.square().sum()
    residual = v - v.mean(-1, keepdim=True) - exponent[..., None] * u
    squares = residual.square().sum(-1)
    alike = (residual[..., 1:] * residual[..., :-1]).sum(-1) / squares.clamp_min(torch.finfo(torch.float64).tiny)
    alike = alike.clamp(0, 1)
    effective = (count * (1 - alike) / (1 + alike)).clamp_min(3)
    error = (squares / count / (effective - 2) / u.square().mean()).sqrt()
    half = error * _student(effective - 2, (1 + confidence) / 2)
    factor = (v.mean(-1) - exponent * steps.log().mean()).exp()
    return ConvergenceRate(*(x.to(values.dtype) for x in (exponent, exponent - half, exponent + half, factor)))


def oscillation_amplitude(
    iterates: Float[Tensor, "steps *shape"], *, window: int | None = None
) -> Float[Tensor, "*shape"]:
    r"""Return by how much iterates bounce from step to step: ``mean_t |x_{t-1} - 2 x_t + x_{t+1}| / 4``.

    Iterates that alternate between ``c - A`` and ``c + A`` have amplitude ``A``; iterates that go straight on have 0,
    whatever their speed.

    Args:
        iterates: ``[steps, *shape]`` the iterates, at least 3.
        window: only the last so many count, >= 3 (default: all).

    Returns:
        ``[*shape]`` the amplitude of each entry, in its units.

    Raises:
        TypeError: ``iterates`` is not floating.
        ValueError: there are fewer than 3 iterates, or ``window`` is out of range.

    Example:
        >>> oscillation_amplitude(torch.tensor([[0.0, 1.0], [0.2, 2.0], [0.0, 3.0], [0.2, 4.0]]))
        tensor([0.1000, 0.0000])
    """
    check_floating("iterates", iterates)
    if iterates.ndim == 0 or len(iterates) < 3:
        raise ValueError(f"iterates must be at least 3, got shape {tuple(iterates.shape)}")
    last = iterates[-check_integer("window", len(iterates) if window is None else window, 3, len(iterates)) :]
    small = last / 4  # first, as sums of the largest numbers overflow
    bends = (small[:-2] - small[1:-1]) - (small[1:-1] - small[2:])
    return (bends.abs() / len(bends)).sum(0)


def _student(freedom: Float[Tensor, "*batch"], probability: float) -> Float[Tensor, "*batch"]:
    """Return the quantile of Student's distribution, from its integral ``int cos(theta)^(freedom - 1)``, t = tan."""
    freedom = freedom.clamp(max=1000)  # beyond, it is normal to 0.1 %
    theta = torch.linspace(0, math.pi / 2, 10_001, dtype=torch.float64, device=freedom.device)
    below = torch.cumulative_trapezoid(theta.cos() ** (freedom[..., None] - 1), theta, dim=-1)
    below = torch.cat([torch.zeros_like(below[..., :1]), below / below[..., -1:]], -1)
    wanted = torch.full_like(freedom, 2 * probability - 1)[..., None]
    right = torch.searchsorted(below, wanted)
    low, high = below.gather(-1, right - 1), below.gather(-1, right)
    angle = theta[right - 1] + (wanted - low) / (high - low) * theta[1]
    return freedom.sqrt() * angle.squeeze(-1).tan()
