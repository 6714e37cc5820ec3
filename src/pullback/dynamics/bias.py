"""Bias potentials that push simulations out of their wells."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pullback.core.checks import check_floating, check_integer, check_positive, check_shape
from pullback.core.shapes import Float

__all__ = ["GaussianGridBias"]


class GaussianGridBias(nn.Module):
    r"""Gaussians of one width on a grid, whose heights are learned: :math:`B(x)=\sum_kh_ke^{-|x-c_k|^2/2w^2}`.

    Gaussians on a grid are products along the axes, so that a point costs one product of a matrix an axis, not one
    exponential a centre.

    Args:
        low: one number an axis, the first centre.
        high: the last centre, above ``low``.
        resolution: centres along each axis, >= 2.
        width: w > 0, in the units of x.
        height: of all Gaussians at the start.

    Raises:
        TypeError: an option of another kind.
        ValueError: an option out of range, or ``low`` and ``high`` of different lengths.

    Example:
        >>> bias = GaussianGridBias((0.0, 0.0), (1.0, 1.0), resolution=2, width=0.1, height=3.0)
        >>> round(float(bias(torch.tensor([0.0, 1.0])).detach()), 4)
        3.0

    References:
        Sipka, Dietschreit, Grajciar, Gomez-Bombarelli (2023), Differentiable simulations for enhanced sampling of rare
        events, arXiv 2301.03480, section 4.1.
    """

    centres: Tensor

    def __init__(
        self, low: Sequence[float], high: Sequence[float], *, resolution: int, width: float, height: float = 0.0
    ) -> None:
        super().__init__()
        if len(low) != len(high) or not low:
            raise ValueError(f"low and high must have one number an axis, got {len(low)} and {len(high)}")
        if any(not a < b for a, b in zip(low, high, strict=True)) or not all(map(math.isfinite, (*low, *high))):
            raise ValueError(f"high must be above low and both finite, got {tuple(low)} and {tuple(high)}")
        check_integer("resolution", resolution, 2)
        check_positive("width", width)
        if not math.isfinite(height):
            raise ValueError(f"height must be finite, got {height}")
        self.width = float(width)
        rows = [torch.linspace(a, b, resolution) for a, b in zip(low, high, strict=True)]
        self.register_buffer("centres", torch.stack(rows))
        self.heights = nn.Parameter(torch.full((resolution,) * len(low), float(height)))

    def forward(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
        """Return the bias at ``x``: ``[*batch, d]`` to ``[*batch]``, in the units of the heights."""
        axes = len(self.centres)
        check_shape("x", check_floating("x", x), (axes,))
        off = ((x[..., None] - self.centres) / self.width).clamp(-40, 40)  # further away a Gaussian is 0 in any dtype
        along = torch.exp(-off.square() / 2)
        total = along[..., 0, :] @ self.heights.flatten(1) if axes > 1 else along[..., 0, :] @ self.heights
        for axis in range(1, axes):
            rest = total.unflatten(-1, (self.centres.shape[1], -1))
            total = (along[..., axis, :, None] * rest).sum(-2)
        return total if axes == 1 else total.squeeze(-1)

    def force(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """Return minus the gradient at ``x``, differentiable in ``x`` and in the heights."""
        return -torch.func.grad(lambda z: self(z).sum())(x)
