"""Simulated points in the plane whose density has holes and bends: two half moons, two circles."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pullback.core.checks import check_integer, check_positive

__all__ = ["circles", "moons"]


def moons(n: int, *, noise: float = 0.12, generator: torch.Generator) -> Tensor:
    """Return ``[n, 2]`` points of two half circles of radius 1.5 that reach into each other, one and the other in turn.

    The upper one is centred at (-0.75, -0.375), the lower one at (0.75, 0.375).

    Args:
        n: number of points.
        noise: standard deviation on both coordinates.
        generator: of places and noise.

    Raises:
        ValueError: an argument outside its range.

    Example:
        >>> moons(5, generator=torch.Generator().manual_seed(0)).shape
        torch.Size([5, 2])
    """
    side = _alternate(n)
    angle = math.pi * torch.rand(n, generator=generator)
    centre = torch.tensor([0.75, 0.375])
    points = side.unsqueeze(1) * (1.5 * torch.stack([angle.cos(), angle.sin()], 1) - centre)
    return _noisy(points, noise, generator)


def circles(n: int, *, noise: float = 0.1, generator: torch.Generator) -> Tensor:
    """Return ``[n, 2]`` points of two circles around the origin, of radius 2 and 1 in turn.

    Args:
        n: number of points.
        noise: standard deviation on both coordinates.
        generator: of places and noise.

    Raises:
        ValueError: an argument outside its range.

    Example:
        >>> circles(5, generator=torch.Generator().manual_seed(0)).shape
        torch.Size([5, 2])
    """
    radius = 1.5 + 0.5 * _alternate(n)
    angle = 2 * math.pi * torch.rand(n, generator=generator)
    return _noisy(radius.unsqueeze(1) * torch.stack([angle.cos(), angle.sin()], 1), noise, generator)


def _alternate(n: int) -> Tensor:
    """1 and -1 in turn."""
    return 1.0 - 2.0 * (torch.arange(check_integer("n", n, 1)) % 2)


def _noisy(points: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    check_positive("noise", noise, zero=True)
    return points + noise * torch.randn(points.shape, generator=generator)
