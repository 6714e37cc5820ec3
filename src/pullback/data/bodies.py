"""Simulated clips of bodies of rods and joints, behind clutter of their own colours and others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from pullback.core.checks import check_floating, check_integer, check_positive
from pullback.core.shapes import Bool, Float, Tensor

__all__ = ["BODY_COLOURS", "BodyClips", "body_clips"]

BODY_COLOURS = ((0.9, 0.8, 0.1), (0.2, 0.3, 0.9))
"""Of joints and of rods."""


class BodyClips(NamedTuple):
    """Clips.

    Attributes:
        frames: ``[count, frames, 3, size, size]`` in 0..1 on black; the first row is at the top, at y = 1.
        hidden: ``[count, frames, nodes]`` true where a shape covers a node.
    """

    frames: Float[Tensor, "count frames 3 size size"]
    hidden: Bool[Tensor, "count frames nodes"]


def body_clips(
    points: Float[Tensor, "count frames nodes 2"],
    rods: Sequence[tuple[int, int]],
    joints: Sequence[int],
    *,
    size: int = 32,
    clutter: int | Tensor = 0,
    largest: float = 0.3,
    generator: torch.Generator,
) -> BodyClips:
    """Draw bodies in the square -1..1, and in front of them discs and squares of random colours.

    Each shape is a disc or a square, rests or moves evenly, as a coin says; its size and colour are uniform.

    Args:
        points: ``[count, frames, nodes, 2]`` x to the right and y upwards.
        rods: pairs of nodes that are joined by a line, three pixels wide.
        joints: nodes drawn as discs, five pixels wide.
        size: of a frame in pixels, >= 8.
        clutter: shapes in a clip, >= 0: a number or ``[count]`` integers.
        largest: radius of a disc or half side of a square at most, > 0; a third of it at least.
        generator: of the shapes.

    Returns:
        :class:`BodyClips` ``(frames, hidden)``.

    Raises:
        TypeError: ``points`` is not floating or a number no integer.
        ValueError: a shape or number is out of range, or a rod or joint names an unknown node.

    Example:
        >>> standing = torch.tensor([[[[0.0, 0.0], [0.0, 0.8]]]])
        >>> clips = body_clips(standing, [(0, 1)], [0], size=8, generator=torch.Generator().manual_seed(0))
        >>> clips.frames.shape, (clips.frames[0, 0, 2, 0] > 0.5).tolist()  # the blue rod reaches the top row
        (torch.Size([1, 1, 3, 8, 8]), [False, False, False, True, True, False, False, False])
    """
    if check_floating("points", points).ndim != 4 or points.shape[-1] != 2:
        raise ValueError(f"points must have shape [count, frames, nodes, 2], got {tuple(points.shape)}")
    count, frames, nodes, _ = points.shape
    for name, used in (("rods", [n for rod in rods for n in rod]), ("joints", joints)):
        if any(not 0 <= n < nodes for n in used):
            raise ValueError(f"{name} must name nodes in 0..{nodes - 1}, got {list(used)}")
    check_integer("size", size, 8)
    check_positive("largest", largest)
    if isinstance(clutter, int):
        clutter = torch.full((count,), check_integer("clutter", clutter, 0))
    if clutter.is_floating_point() or clutter.shape != (count,) or bool((clutter < 0).any()):
        raise ValueError(f"clutter must be [count] integers >= 0, got {clutter.dtype} {tuple(clutter.shape)}")
    p = points.cpu().float()
    across = (torch.arange(size) + 0.5) * 2 / size - 1
    grid = torch.stack([across.expand(size, size), -across[:, None].expand(size, size)], -1)
    pictures = torch.zeros(count, frames, 3, size, size)
    for a, b in rods:
        distance = _to_segment(grid, p[:, :, a], p[:, :, b])
        _paint(pictures, distance - 3 / size, torch.tensor(BODY_COLOURS[1]))
    for node in joints:
        distance = (grid - p[:, :, node, None, None]).norm(dim=-1)
        _paint(pictures, distance - 5 / size, torch.tensor(BODY_COLOURS[0]))
    hidden, most = torch.zeros(count, frames, nodes, dtype=torch.bool), int(clutter.max()) if count else 0
    for number in range(most):
        coins = torch.rand(count, 2, generator=generator) < 0.5
        radius = largest * (1 + 2 * torch.rand(count, generator=generator)) / 3
        radius = torch.where(number < clutter.cpu(), radius, -1.0)[:, None]
        start, end = 2 * torch.rand(2, count, 2, generator=generator) - 1
        time = torch.linspace(0, 1, frames)[:, None] if frames > 1 else torch.zeros(1, 1)
        middle = start[:, None] + torch.where(coins[:, :1], end - start, 0.0)[:, None] * time
        colour = torch.rand(count, 3, generator=generator)[:, None, :, None, None]
        drawn = (radius[:, 0] > 0).nonzero()[:, 0]  # clips with so many shapes
        apart, painted = grid - middle[drawn][:, :, None, None], pictures[drawn]
        _paint(
            painted, _beyond(apart, coins[drawn, 1, None, None, None]) - radius[drawn][..., None, None], colour[drawn]
        )
        pictures[drawn] = painted
        hidden |= _beyond(p - middle[:, :, None], coins[:, 1, None, None]) < radius[..., None]
    return BodyClips(pictures.to(points), hidden.to(points.device))


def _to_segment(grid: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return distances ``[count, frames, size, size]`` to the segments from a to b ``[count, frames, 2]``."""
    a, way = a[:, :, None, None], (b - a)[:, :, None, None]
    along = ((grid - a) * way).sum(-1) / way.square().sum(-1).clamp(min=1e-12)
    return (grid - a - along.clamp(0, 1).unsqueeze(-1) * way).norm(dim=-1)


def _beyond(apart: Tensor, square: Tensor) -> Tensor:
    """Return the distance from the middle, of a disc or a square."""
    return torch.where(square, apart.abs().amax(-1), apart.norm(dim=-1))


def _paint(pictures: Tensor, outside: Tensor, colour: Tensor) -> None:
    """Paint in place where the distance to a shape is negative, with edges as wide as a pixel."""
    cover = (0.5 - outside * pictures.shape[-1] / 2).clamp(0, 1).unsqueeze(2)
    if colour.ndim == 1:
        colour = colour[:, None, None]
    pictures.lerp_(colour.expand_as(pictures), cover.expand_as(pictures))
