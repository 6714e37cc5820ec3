"""Small systems on which solvers are tried: fields ``field(t, y)`` of a state of two numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from pullback.core.checks import check_shape

__all__ = ["duffing", "lotka_volterra", "van_der_pol"]


def lotka_volterra(t: Tensor, y: Tensor) -> Tensor:
    """Prey and predators: ``dx/dt = x (1.5 - y), dy/dt = y (x - 3)``; periodic, ``x - 3 log x + y - 1.5 log y`` stays.

    Args:
        t: time, unused.
        y: ``[*batch, 2]`` prey and predators, both > 0.

    Example:
        >>> lotka_volterra(torch.zeros(1), torch.tensor([3.0, 1.5])).tolist()  # at rest
        [0.0, 0.0]
    """
    check_shape("y", y, (2,))
    return torch.stack([y[..., 0] * (1.5 - y[..., 1]), y[..., 1] * (y[..., 0] - 3.0)], -1)


def van_der_pol(t: Tensor, y: Tensor) -> Tensor:
    """The oscillator ``x'' = (1 - x^2) x' - x``: a limit cycle with fast and slow parts.

    Args:
        t: time, unused.
        y: ``[*batch, 2]`` x and x'.

    Example:
        >>> van_der_pol(torch.zeros(1), torch.tensor([2.0, 0.0])).tolist()
        [0.0, -2.0]
    """
    check_shape("y", y, (2,))
    return torch.stack([y[..., 1], (1 - y[..., 0].square()) * y[..., 1] - y[..., 0]], -1)


def duffing(t: Tensor, y: Tensor) -> Tensor:
    """A forced particle in a double well, ``x'' = x - x^3 + 0.3 cos t``: nonlinear, depends on time, and separable.

    Args:
        t: ``[*batch, 1]`` time.
        y: ``[*batch, 2]`` x and x'.

    Example:
        >>> [round(v, 2) for v in duffing(torch.zeros(1), torch.tensor([2.0, 1.0])).tolist()]
        [1.0, -5.7]
    """
    check_shape("y", y, (2,))
    check_shape("t", t, (1,))
    return torch.stack([y[..., 1], y[..., 0] - y[..., 0] ** 3 + 0.3 * torch.cos(t[..., 0])], -1)
