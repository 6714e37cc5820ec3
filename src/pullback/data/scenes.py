"""Scenes with a few real digits among fragments of strokes: objects to be found, and clutter like them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from pullback.core.checks import check_floating, check_integer, check_tensor
from pullback.core.shapes import Bool, Float, Int, Tensor

__all__ = ["OccupiedCells", "Scenes", "digit_scenes", "occupied_cells"]


class Scenes(NamedTuple):
    """Scenes and what they show.

    Attributes:
        images: ``[count, size, size]``.
        centers: ``[count, most, 2]`` row and column of the centre of each digit, in pixels from the upper left corner;
            0 where there is no digit.
        labels: ``[count, most]`` int64, the digits; -1 where there is none.
    """

    images: Float[Tensor, "count size size"]
    centers: Float[Tensor, "count most 2"]
    labels: Int[Tensor, "count most"]


def digit_scenes(
    images: Float[Tensor, "n height width"],
    labels: Int[Tensor, "n"],
    count: int,
    *,
    size: int = 60,
    most: int = 3,
    fragments: int = 12,
    fragment: int = 6,
    generator: torch.Generator,
) -> Scenes:
    """Return scenes of 1 to ``most`` digits that do not overlap, with cut-out pieces of other digits between them.

    Scenes of training and test are drawn from disjoint digit images: call it once with each split.

    Args:
        images: ``[n, height, width]`` one digit each, ink bright on black.
        labels: ``[n]`` integers.
        count: how many scenes, >= 1.
        size: of a scene in pixels, at least that of a digit.
        most: digits of a scene, >= 1.
        fragments: pieces of strokes in a scene, >= 0; where something overlaps the brighter pixel is seen.
        fragment: side of a piece in pixels, at most that of a digit; each is cut around some ink.
        generator: draws all of it.

    Returns:
        :class:`Scenes` ``(images, centers, labels)``.

    Raises:
        TypeError: ``images`` is not floating or ``labels`` not integer.
        ValueError: ``images`` and ``labels`` do not belong together, a number is out of range, or so many digits do not
            fit beside each other.

    Example:
        >>> digits, labels = torch.ones(2, 4, 4), torch.tensor([5, 7])
        >>> draw = torch.Generator().manual_seed(0)
        >>> scenes = digit_scenes(digits, labels, 3, size=20, most=2, fragments=0, fragment=2, generator=draw)
        >>> scenes.images.shape, bool((scenes.images.sum((1, 2)) == 16 * (scenes.labels >= 0).sum(1)).all())
        (torch.Size([3, 20, 20]), True)
    """
    check_floating("images", images)
    if check_tensor("labels", labels).is_floating_point():
        raise TypeError(f"labels must be an integer tensor, got {labels.dtype}")
    if images.ndim != 3 or labels.shape != images.shape[:1] or not images.numel():
        raise ValueError(
            f"images [n, height, width] and labels [n] must belong together and not be empty, "
            f"got {tuple(images.shape)} and {tuple(labels.shape)}"
        )
    for name, value, least in (("count", count, 1), ("most", most, 1), ("fragments", fragments, 0)):
        check_integer(name, value, least)
    sides = torch.tensor(images.shape[1:])
    check_integer("size", size, int(sides.max()))
    check_integer("fragment", fragment, 1, int(sides.min()))

    numbers = torch.randint(1, most + 1, (count,), generator=generator)
    shown = torch.arange(most) < numbers[:, None]
    corners = _apart(count, most, size, sides, generator)
    chosen = torch.randint(len(images), (count, most), generator=generator)
    scenes = torch.zeros(count, size * size)
    _paste(scenes, images.cpu()[chosen] * shown[:, :, None, None], corners, size)
    if fragments:
        source = torch.randint(len(images), (count * fragments,), generator=generator)
        pieces = _pieces(images.cpu()[source], fragment, generator).unflatten(0, (count, fragments))
        places = torch.randint(size - fragment + 1, (count, fragments, 2), generator=generator)
        _paste(scenes, pieces, places, size)
    return Scenes(
        scenes.view(count, size, size).to(images),
        torch.where(shown[:, :, None], corners + sides / 2, 0.0).to(images),
        torch.where(shown, labels.cpu()[chosen].long(), -1).to(labels.device),
    )


class OccupiedCells(NamedTuple):
    """The cells of a grid over an image in which there is something; rows with fewer are padded at their end.

    Attributes:
        views: ``[count, n, view^2]`` the pixels around the middle of each cell.
        cells: ``[count, n, 2]`` int64, row and column in the grid.
        positions: ``[count, n, 2]`` the middle of each cell, in pixels from the upper left corner.
        brightness: ``[count, n]`` the mean of its pixels.
        mask: ``[count, n]`` true at cells, false in the padding.
    """

    views: Float[Tensor, "count n pixels"]
    cells: Int[Tensor, "count n 2"]
    positions: Float[Tensor, "count n 2"]
    brightness: Float[Tensor, "count n"]
    mask: Bool[Tensor, "count n"]


def occupied_cells(
    images: Float[Tensor, "count height width"], cell: int, *, view: int | None = None, threshold: float = 0.4
) -> OccupiedCells:
    """Return the cells of ``cell`` x ``cell`` pixels that hold a pixel above a threshold, as sparse tokens of images.

    Args:
        images: ``[count, height, width]``, dark where there is nothing.
        cell: side of a cell, which divides those of the images.
        view: side of what is seen of each, at least ``cell`` and even or odd as it is; ``cell`` by default.
        threshold: a cell with no brighter pixel is empty.

    Returns:
        :class:`OccupiedCells`, in the order of the grid; ``n`` is the largest number of an image.

    Raises:
        TypeError: ``images`` is not floating or a size no integer.
        ValueError: ``cell`` does not divide the sides, or ``view`` does not fit ``cell``.

    Example:
        >>> image = torch.zeros(1, 4, 6)
        >>> image[0, 3, 4] = 1
        >>> found = occupied_cells(image, 2)
        >>> found.cells.tolist(), found.positions.tolist(), found.views.tolist()
        ([[[1, 2]]], [[[3.0, 5.0]]], [[[0.0, 0.0, 1.0, 0.0]]])
    """
    if check_floating("images", images).ndim != 3:
        raise ValueError(f"images must have shape [count, height, width], got {tuple(images.shape)}")
    check_integer("cell", cell, 1)
    if any(side % cell or not side for side in images.shape[1:]):
        raise ValueError(f"cell must divide the sides of images, got {cell} and {tuple(images.shape[1:])}")
    view = check_integer("view", cell if view is None else view, cell)
    if (view - cell) % 2:
        raise ValueError(f"view must be cell and an even number of pixels, got {view} and {cell}")
    wide = images.shape[2] // cell
    grid = images.unflatten(2, (wide, cell)).unflatten(1, (-1, cell)).transpose(2, 3).flatten(3).flatten(1, 2)
    there = grid.amax(-1) > threshold
    most = int(there.sum(1).max()) if len(images) else 0
    chosen = (~there).to(torch.uint8).argsort(dim=1, stable=True)[:, :most]
    padded = nn.functional.pad(images[:, None], [(view - cell) // 2] * 4)
    views = nn.functional.unfold(padded, view, stride=cell).mT.gather(1, chosen[..., None].expand(-1, -1, view**2))
    cells = torch.stack([chosen // wide, chosen % wide], -1)
    return OccupiedCells(
        views, cells, cell * (cells + 0.5).to(images), grid.mean(-1).gather(1, chosen), there.gather(1, chosen)
    )


def _apart(count: int, most: int, size: int, sides: Tensor, generator: torch.Generator) -> Tensor:
    """Upper left corners ``[count, most, 2]`` of rectangles that do not overlap, each drawn again until it does not."""
    corners = torch.zeros(count, most, 2, dtype=torch.long)
    for number in range(most):
        waiting = torch.arange(count)
        for _ in range(1000):
            drawn = (torch.rand(len(waiting), 2, generator=generator) * (size - sides + 1)).long()
            gaps = (drawn[:, None] - corners[waiting, :number]).abs()
            corners[waiting, number] = drawn
            waiting = waiting[~(gaps >= sides).any(-1).all(-1)]
            if not len(waiting):
                break
        else:
            raise ValueError(
                f"{most} digits of {tuple(sides.tolist())} do not fit beside each other in {size} x {size}"
            )
    return corners


def _pieces(images: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """A square of each image around a pixel drawn by its ink, as far inside as it can be."""
    n, height, width = images.shape
    ink = images.flatten(1).clamp(min=0) + 1e-6
    middle = torch.multinomial(ink, 1, generator=generator).squeeze(1)
    top = (middle // width - side // 2).clamp(0, height - side)
    left = (middle % width - side // 2).clamp(0, width - side)
    rows = top[:, None] + torch.arange(side)
    columns = left[:, None] + torch.arange(side)
    return images[torch.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]


def _paste(scenes: Tensor, patches: Tensor, corners: Tensor, size: int) -> None:
    """Put patches ``[count, m, height, width]`` on scenes ``[count, size^2]``, the brighter pixel above."""
    height, width = patches.shape[-2:]
    rows = corners[..., 0, None] + torch.arange(height)
    columns = corners[..., 1, None] + torch.arange(width)
    places = rows[..., :, None] * size + columns[..., None, :]
    scenes.scatter_reduce_(1, places.flatten(1), patches.flatten(1).to(scenes.dtype), "amax")
