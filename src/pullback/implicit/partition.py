"""Domains of a grid cut into blocks of equal size, one for each expert."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from pullback.core.checks import check_integer, check_tensor
from pullback.core.shapes import Bool, Int, Shaped, Tensor

__all__ = ["DomainPartition", "partition_domain"]


class DomainPartition(NamedTuple):
    """Which points of a grid belong to which block, see :func:`partition_domain`.

    Attributes:
        shape: of the grid.
        index: ``[blocks, *block]`` int64, the points of each block and of its halo as places in the flat grid; beyond
            the edges of the grid the nearest point stands in.
        own: ``[blocks, *block]``, which of them belong to the block: the others are its halo.
    """

    shape: tuple[int, ...]
    index: Int[Tensor, "blocks *block"]  # type: ignore[assignment]  # not the method of tuples
    own: Bool[Tensor, "blocks *block"]

    @property
    def places(self) -> Int[Tensor, "blocks points"]:
        """``[blocks, points]``, the points that belong to each block, without its halo."""
        return self.index[self.own].view(len(self.index), -1)

    def split(self, values: Shaped[Tensor, "*lead_and_grid"]) -> Shaped[Tensor, "*lead blocks points"]:
        """Return ``values [*lead, *grid]`` block by block.

        Raises:
            ValueError: the last dimensions of ``values`` are not those of the grid.
        """
        check_tensor("values", values)
        lead = values.shape[: values.ndim - len(self.shape)]
        if tuple(values.shape[len(lead) :]) != self.shape or values.ndim < len(self.shape):
            raise ValueError(f"values must end with the grid {self.shape}, got shape {tuple(values.shape)}")
        places = self.places.to(values.device)
        return values.flatten(len(lead))[..., places]

    def join(self, blocks: Shaped[Tensor, "*lead blocks points"]) -> Shaped[Tensor, "*lead_and_grid"]:
        """Return what :meth:`split` was given.

        Raises:
            ValueError: the last dimensions are not the number of blocks and of their points.
        """
        check_tensor("blocks", blocks)
        places = self.places.to(blocks.device)
        if tuple(blocks.shape[-2:]) != tuple(places.shape):
            raise ValueError(f"blocks must end with {tuple(places.shape)}, got shape {tuple(blocks.shape)}")
        return blocks.flatten(-2)[..., places.flatten().argsort()].unflatten(-1, self.shape)


def partition_domain(shape: Sequence[int], blocks: Sequence[int], *, halo: int | Sequence[int] = 0) -> DomainPartition:
    """Cut a grid into blocks of equal size, one for each expert, with the points around that differences need.

    Args:
        shape: points of the grid along each of its dimensions, such as ``(times, places)``.
        blocks: parts along each dimension; the product is the number of experts, the last dimension counts fastest.
        halo: >= 0, how many points on each side of a block are listed with it; one number, or one for each dimension.

    Returns:
        ``DomainPartition``, whose methods ``split`` and ``join`` go from a field to its blocks and back.

    Raises:
        TypeError: a number is no integer.
        ValueError: a number is out of range, the lengths differ, or points are left over where a dimension is divided.

    Example:
        >>> partition = partition_domain((2, 4), (1, 2), halo=1)
        >>> partition.split(torch.arange(8.0).view(2, 4)).tolist()
        [[0.0, 1.0, 4.0, 5.0], [2.0, 3.0, 6.0, 7.0]]
        >>> partition.index[1, 1].tolist(), partition.own[1, 1].tolist()  # a row of the second block
        ([1, 2, 3, 3], [False, True, True, False])

    References:
        Chalapathi, Du, Krishnapriyan (2024), Scaling physics-informed hard constraints with mixture-of-experts, sec. 3.
    """
    sizes = tuple(check_integer("shape", size, 1) for size in shape)
    parts = tuple(check_integer("blocks", part, 1) for part in blocks)
    around = (halo,) * len(sizes) if isinstance(halo, int) else tuple(halo)
    for width in around:
        check_integer("halo", width, 0)
    if len(around) != len(sizes):
        raise ValueError(f"halo must be one number, or one for each dimension of the grid {sizes}, got {halo}")
    if len(sizes) != len(parts) or not sizes:
        raise ValueError(f"blocks must have one number for each dimension of the grid {sizes}, got {parts}")
    for dim, (size, part) in enumerate(zip(sizes, parts, strict=True)):
        if size % part:
            raise ValueError(
                f"{size} points of dimension {dim} cannot be divided by {part}: {size % part} are left over"
            )
    count, places, own = len(sizes), torch.zeros((), dtype=torch.int64), torch.ones((), dtype=torch.bool)
    for dim, (size, part) in enumerate(zip(sizes, parts, strict=True)):
        width = size // part
        offset = torch.arange(-around[dim], width + around[dim])
        along = (torch.arange(part)[:, None] * width + offset).clamp(0, size - 1)
        view = [1] * (2 * count)
        view[dim], view[count + dim] = part, len(offset)
        places = places + along.view(view) * math.prod(sizes[dim + 1 :])
        own = own & ((offset >= 0) & (offset < width)).view([1] * count + view[count:])
    own = own.expand(places.shape)
    return DomainPartition(sizes, places.flatten(0, count - 1), own.flatten(0, count - 1))
