"""Networks that are fields: dy/dt as a perceptron of the state, or as convolutions that see the time."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pullback.core.shapes import Float

__all__ = ["ConvolutionalField", "NeuralField"]


class NeuralField(nn.Module):
    """An autonomous field of one hidden tanh layer, ``f(z) = W2 tanh(W1 z + b1) + b2``.

    Args:
        dim: of z.
        hidden: units.

    Example:
        >>> NeuralField(4)(torch.zeros(1), torch.zeros(3, 4)).shape
        torch.Size([3, 4])
    """

    def __init__(self, dim: int, *, hidden: int = 20) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        nn.init.normal_(self.outer.weight, std=0.5 / math.sqrt(hidden))

    def forward(self, t: Tensor, z: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """dz/dt."""
        return self.outer(torch.tanh(self.inner(z)))


class ConvolutionalField(nn.Module):
    """The field of an ODE-net: ``norm(conv(relu(norm(conv(relu(norm(y)), t))), t))``, the time a further channel.

    Args:
        channels: of the state.
        groups: of the three group normalisations; a divisor of ``channels``.

    Example:
        >>> ConvolutionalField(6)(torch.zeros(2, 1, 1, 1), torch.zeros(2, 6, 4, 4)).shape
        torch.Size([2, 6, 4, 4])

    References:
        Chen, Rubanova, Bettencourt, Duvenaud (2018), section 3, arXiv 1806.07366.
    """

    def __init__(self, channels: int, *, groups: int = 1) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(groups, channels) for _ in range(3))
        self.convolutions = nn.ModuleList(nn.Conv2d(channels + 1, channels, 3, padding=1) for _ in range(2))

    def forward(
        self, t: Float[Tensor, "#batch 1 1 1"], y: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """dy/dt."""
        plane = t.expand(y.shape[0], 1, *y.shape[2:])
        for norm, convolution in zip(self.norms, self.convolutions, strict=False):
            y = convolution(torch.cat([F.relu(norm(y)), plane], 1))
        return self.norms[2](y)
