"""Simulated rings and arcs in the plane: alike near every point, told apart by whether they close."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pullback.core.checks import check_integer, check_positive

__all__ = ["Rings", "rings"]


class Rings(NamedTuple):
    """Points of rings and arcs.

    Attributes:
        points: ``[groups * size, 2]``.
        closed: ``[groups * size]`` int64: 1 for points of a ring, 0 for those of an arc.
        group: ``[groups * size]`` the ring or arc of a point.
    """

    points: Tensor
    closed: Tensor
    group: Tensor


def rings(groups: int, size: int, *, noise: float = 0.04, generator: torch.Generator) -> Rings:
    """Return rings and arcs of ``size`` points, in turn, apart from one another on a square grid.

    Neighbours are .5 apart on both; an arc goes 243 degrees around and is turned at random. Arcs come first.

    Args:
        groups: rings and arcs together.
        size: points of each, >= 3.
        noise: standard deviation on both coordinates.
        generator: of turns and noise.

    Raises:
        ValueError: an argument outside its range.

    Example:
        >>> rings(4, 8, generator=torch.Generator().manual_seed(0)).points.shape
        torch.Size([32, 2])
    """
    check_integer("groups", groups, 1)
    check_integer("size", size, 3)
    check_positive("noise", noise, zero=True)
    side, parts = math.ceil(math.sqrt(groups)), []
    for i in range(groups):
        step = 2 * math.pi / size if i % 2 else 1.35 * math.pi / (size - 1)
        angle = 2 * math.pi * torch.rand((), generator=generator) + step * torch.arange(size)
        points = torch.stack([angle.cos(), angle.sin()], 1) * (0.25 / math.sin(step / 2))
        place = 0.5 * size * torch.tensor([float(i % side), float(i // side)])
        parts.append(place + points - points.mean(0) + noise * torch.randn(size, 2, generator=generator))
    group = torch.arange(groups).repeat_interleave(size)
    return Rings(torch.cat(parts), group % 2, group)
