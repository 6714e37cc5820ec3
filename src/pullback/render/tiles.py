"""Which primitives touch which tile of the image, nearest first: the binning that all rasterisers share."""

from __future__ import annotations

from typing import NamedTuple

import torch

from pullback.core.checks import check_floating, check_integer, check_shape
from pullback.core.shapes import Float, Int, Tensor

__all__ = ["TileLists", "check_unbatched", "tile_primitives"]


class TileLists(NamedTuple):
    """A list of primitives for each tile, row by row, in compressed form (CSR).

    Attributes:
        offsets: ``[tiles + 1]`` int64: tile ``t`` has ``indices[offsets[t] : offsets[t + 1]]``.
        indices: ``[pairs]`` int64 primitives, by growing depth within a tile; ties by index.
        pixels: ``[n, 4]`` int64 first column, first row, last column, last row of the pixels whose centres are in the
            primitive's box; last < first where there is none.
        shape: rows and columns of tiles.
        tile: edge of a tile, pixels.
    """

    offsets: Int[Tensor, "tiles_and_one"]
    indices: Int[Tensor, "pairs"]
    pixels: Int[Tensor, "n 4"]
    shape: tuple[int, int]
    tile: int


def tile_primitives(
    boxes: Float[Tensor, "n 4"], depths: Float[Tensor, "n"], size: tuple[int, int], tile: int = 16
) -> TileLists:
    """Return for each tile of the image the primitives whose box contains the centre of a pixel of it.

    Args:
        boxes: ``[n, 4]`` left, top, right, bottom in pixels (the image is ``[0, width] x [0, height]``, pixel centres
            at +0.5); may be infinite; a box with right < left, or with a NaN, is in no list.
        depths: ``[n]`` the order within a list, nearest first.
        size: ``(height, width)`` of the image.
        tile: edge of a tile, pixels, >= 1.

    Returns:
        A :class:`TileLists`.

    Raises:
        TypeError: boxes or depths are not floating.
        ValueError: other shapes, an image without pixels, or ``tile`` < 1.

    Example:
        >>> boxes = torch.tensor([[0.0, 0.0, 20.0, 5.0], [0.0, 0.0, 4.0, 4.0]])
        >>> lists = tile_primitives(boxes, torch.tensor([2.0, 1.0]), (16, 32))
        >>> lists.offsets.tolist(), lists.indices.tolist()
        ([0, 2, 3], [1, 0, 0])

    References:
        Kerbl, Kopanas, Leimkuehler, Drettakis (2023), 3D Gaussian splatting for real-time radiance field rendering,
        section 6: one sort by (tile, depth).
    """
    check_unbatched("boxes", check_floating("boxes", boxes), (None, 4))
    check_unbatched("depths", check_floating("depths", depths), (len(boxes),))
    check_integer("tile", tile, 1)
    height, width = (check_integer(f"{name} of size", s, 1) for name, s in zip(("height", "width"), size, strict=True))
    # In half precision a pixel's centre would be rounded to its edge.
    boxes, depths = boxes.detach().double(), depths.detach()
    # A NaN fails every comparison: its primitive gets the empty range [0, -1].
    known = ~torch.isnan(boxes).any(-1) & ~torch.isnan(depths)
    limit = torch.tensor([width, height], dtype=torch.float64, device=boxes.device)
    first = torch.minimum(torch.ceil(boxes[:, :2] - 0.5).clamp(min=0), limit)
    last = torch.minimum(torch.floor(boxes[:, 2:] - 0.5), limit - 1).clamp(min=-1)
    first = torch.where(known[:, None], first, 0.0).long()
    last = torch.where(known[:, None], last, -1.0).long()
    rows, columns = -(-height // tile), -(-width // tile)

    order = torch.argsort(depths, stable=True)
    low, high = first[order] // tile, last[order] // tile
    seen = (last[order] >= first[order]).all(-1)
    extent = torch.where(seen[:, None], high - low + 1, 0)
    count = extent[:, 0] * extent[:, 1]
    # Primitive by primitive in order of depth; its k-th tile is k // width down and k % width to the right.
    owner = torch.repeat_interleave(torch.arange(len(order), device=boxes.device), count)
    place = torch.arange(len(owner), device=boxes.device) - (count.cumsum(0) - count)[owner]
    across = extent[owner, 0]
    number = (low[owner, 1] + place // across) * columns + low[owner, 0] + place % across
    by_tile = torch.argsort(number, stable=True)
    ends = torch.bincount(number, minlength=rows * columns).cumsum(0)
    offsets = torch.cat([ends.new_zeros(1), ends])
    return TileLists(offsets, order[owner[by_tile]], torch.cat([first, last], -1), (rows, columns), tile)


def check_unbatched(name: str, value: Tensor, expected: tuple[int | None, ...]) -> None:
    """Raise ``ValueError`` unless the shape of ``value`` is ``expected`` without a batch (``None`` allows any size).

    Example:
        >>> check_unbatched("boxes", torch.zeros(1, 5, 4), (None, 4))
        Traceback (most recent call last):
        ValueError: boxes must have 2 dimensions, got shape (1, 5, 4)
    """
    check_shape(name, value, expected)
    if value.ndim != len(expected):
        raise ValueError(f"{name} must have {len(expected)} dimensions, got shape {tuple(value.shape)}")
