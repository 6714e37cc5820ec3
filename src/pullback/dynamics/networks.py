"""Networks that are fields, perceptrons or convolutions that see the time, and the residual block they replace."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pullback.core.checks import check_integer, check_shape
from pullback.core.shapes import Float

__all__ = ["ConvolutionalField", "NeuralField", "ResidualBlock"]


class NeuralField(nn.Module):
    """An autonomous field, ``dz/dt = W_k a(... a(W_1 z + b_1) ...) + b_k``, with torch's initial weights.

    The default is the latent field of the authors' spirals: dim - 20 - 20 - dim with ELU.

    Args:
        dim: of z.
        hidden: sizes of the hidden layers, at least one.
        activation: makes the function a between them.

    Raises:
        ValueError: a size below 1, or no hidden layer.

    Example:
        >>> NeuralField(4)(torch.zeros(1), torch.zeros(3, 4)).shape
        torch.Size([3, 4])

    References:
        Chen, Rubanova, Bettencourt, Duvenaud (2018), section 5.1, arXiv 1806.07366; sizes of the authors' code.
    """

    def __init__(
        self, dim: int, *, hidden: Sequence[int] = (20, 20), activation: Callable[[], nn.Module] = nn.ELU
    ) -> None:
        super().__init__()
        sizes = [check_integer("dim", dim, 1), *(check_integer("hidden", size, 1) for size in hidden), dim]
        if len(sizes) == 2:
            raise ValueError("hidden must hold the size of at least one layer, got none")
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(sizes):
            layers += [nn.Linear(before, after), activation()]
        self.dim = dim
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, t: Tensor, z: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """dz/dt."""
        check_shape("z", z, (self.dim,))
        return self.layers(z)


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


class ResidualBlock(nn.Module):
    """The block that an ODE-net replaces: ``y + conv(relu(norm(conv(relu(norm(y))))))``, Euler's step of such a field.

    Args:
        channels: of the state.
        groups: of the group normalisations; a divisor of ``channels``.

    Example:
        >>> ResidualBlock(6)(torch.zeros(2, 6, 4, 4)).shape
        torch.Size([2, 6, 4, 4])

    References:
        He, Zhang, Ren, Sun (2016), Identity mappings in deep residual networks, arXiv 1603.05027.
    """

    def __init__(self, channels: int, *, groups: int = 1) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(groups, channels) for _ in range(2))
        self.convolutions = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, y: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
        """The next state."""
        change = y
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            change = convolution(F.relu(norm(change)))
        return y + change
