"""Unary factors of the nodes of a graph that are seen in images: potentials on a grid, read between its cells."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from pullback.core.checks import check_floating, check_integer
from pullback.core.shapes import Float, Tensor
from pullback.uncertainty.factors import UnaryFactor, floored

__all__ = ["ImageFactors", "UnaryMaps"]


class UnaryMaps:
    """Log potentials of nodes at the cells of a grid over the square -1..1; bilinear between, constant outside.

    Args:
        maps: ``[batch, nodes, height, width]``; the first row is at the top, y points upwards.

    Raises:
        TypeError: ``maps`` is not floating.
        ValueError: it has another shape.

    Example:
        >>> maps = UnaryMaps(torch.tensor([[[[0.0, -1.0], [-2.0, -3.0]]]]))
        >>> maps(0, torch.tensor([[[-0.5, 0.5], [0.0, 0.5], [0.5, -0.5], [0.0, -9.0]]]))
        tensor([[ 0.0000, -0.5000, -3.0000, -2.5000]])
    """

    def __init__(self, maps: Float[Tensor, "batch nodes height width"]) -> None:
        if check_floating("maps", maps).ndim != 4 or not maps.numel():
            raise ValueError(f"maps must have shape [batch, nodes, height, width], got {tuple(maps.shape)}")
        self.maps = maps

    def __call__(self, node: int, x: Float[Tensor, "batch m 2"]) -> Float[Tensor, "batch m"]:
        """Return log potentials of points of a node: a unary factor of :func:`pull_messages`.

        Raises:
            ValueError: there is no such node, or points are not ``[batch, m, 2]``.
        """
        check_integer("node", node, 0, self.maps.shape[1] - 1)
        if check_floating("x", x).ndim != 3 or x.shape[0] != len(self.maps) or x.shape[2] != 2:
            raise ValueError(f"x must have shape [{len(self.maps)}, m, 2], got {tuple(x.shape)}")
        grid = (x * x.new_tensor([1.0, -1.0])).unsqueeze(1)
        found = nn.functional.grid_sample(self.maps[:, node, None], grid, padding_mode="border", align_corners=False)
        return found[:, 0, 0]

    def detach(self) -> UnaryMaps:
        """Return the same potentials, constant but for the points: what :func:`pull_messages` takes as ``sender``."""
        return UnaryMaps(self.maps.detach())


class ImageFactors(nn.Module):
    r"""Learn the unary factors of nodes from images: :math:`\phi_s(x,f(x))` with the features f of an encoder at x.

    A :class:`UnaryFactor` of each node judges every cell of the encoder's grid by its place and features once, and
    points are read from that: many points of a node cost no more than a few.

    Args:
        encoder: images ``[batch, ...]`` to features ``[batch, channels, height, width]``.
        nodes: >= 1.
        channels: of the features, >= 1.
        hidden: width of the factors, >= 1.
        scale: h > 0 of the factors, how large places are; the smaller, the sooner they tell near places apart.
        floor: of the factors, in (0, 1).
        generator: of their initial weights.

    Raises:
        TypeError: a number is no integer.
        ValueError: an option is out of range.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> factors = ImageFactors(nn.AvgPool2d(4), 2, 3, generator=g)
        >>> factors(torch.rand(5, 3, 32, 32, generator=g))(1, torch.zeros(5, 10, 2)).shape
        torch.Size([5, 10])

    References:
        Opipari, Pavlasek, Chen, Wang, Desingh, Jenkins (2023), DNBP, section 4; features of the whole image there.
    """

    def __init__(
        self,
        encoder: nn.Module,
        nodes: int,
        channels: int,
        *,
        hidden: int = 32,
        scale: float = 1.0,
        floor: float = 0.005,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_integer("nodes", nodes, 1)
        check_integer("channels", channels, 1)
        self.encoder, self.scale, self.floor = encoder, scale, floor
        self.unary = nn.ModuleList(
            UnaryFactor(2, channels, hidden=hidden, scale=scale, floor=floor, generator=generator) for _ in range(nodes)
        )

    def forward(self, images: Float[Tensor, "batch ..."]) -> UnaryMaps:
        """Return the factors of these images.

        Raises:
            ValueError: the encoder returns no ``[batch, channels, height, width]``.
        """
        seen = self.encoder(images)
        if not isinstance(seen, Tensor) or seen.ndim != 4:
            got = tuple(seen.shape) if isinstance(seen, Tensor) else type(seen).__name__
            raise ValueError(f"encoder must return [batch, channels, height, width], got {got}")
        height, width = seen.shape[2:]
        x, y = ((torch.arange(n, device=seen.device, dtype=seen.dtype) + 0.5) * 2 / n - 1 for n in (width, height))
        cells = torch.stack([x.expand(height, width), -y[:, None].expand(height, width)], -1).flatten(0, 1) / self.scale
        given = torch.cat([cells.expand(len(seen), -1, -1), seen.flatten(2).mT], -1).flatten(0, 1)
        hidden = given.expand(len(self.unary), -1, -1)  # [nodes, batch and cells, ...]: all nodes at once
        for k in (0, 2, 4):
            layers = [cast("nn.Linear", cast("UnaryFactor", unary).density[k]) for unary in self.unary]
            weights, biases = torch.stack([x.weight.mT for x in layers]), torch.stack([x.bias for x in layers])
            hidden = torch.baddbmm(biases.unsqueeze(1), hidden.relu_() if k else hidden, weights)
        maps = floored(self.floor, hidden[..., 0]).unflatten(1, (len(seen), height, width))
        return UnaryMaps(maps.transpose(0, 1))
