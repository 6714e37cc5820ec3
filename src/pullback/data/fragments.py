"""Pieces of images: of a grid, in random order (jigsaws), and from anywhere."""

from __future__ import annotations

from typing import NamedTuple

import torch

from pullback.core.checks import check_floating, check_integer
from pullback.core.shapes import Float, Int, Tensor

__all__ = ["Fragments", "image_fragments", "patches"]


class Fragments(NamedTuple):
    """Pieces of images and where they belong.

    Attributes:
        pieces: ``[count, grid^2, channels, height / grid, width / grid]`` in random order.
        order: ``[count, grid^2]`` int64, the place of each piece in the image, row by row: ``order.argsort(-1)`` puts
            the pieces back.
    """

    pieces: Float[Tensor, "count n channels high wide"]
    order: Int[Tensor, "count n"]


def image_fragments(
    images: Float[Tensor, "count channels height width"],
    grid: int,
    *,
    generator: torch.Generator,
    crop: bool = False,
) -> Fragments:
    """Return images cut into ``grid`` x ``grid`` pieces, each image's in an order of its own.

    Args:
        images: ``[count, channels, height, width]``.
        grid: pieces along each side, >= 1.
        generator: draws the orders.
        crop: cut off, evenly on both sides, what ``grid`` does not divide; otherwise it is refused.

    Returns:
        :class:`Fragments` ``(pieces, order)``.

    Raises:
        TypeError: ``images`` is not floating, or ``grid`` no integer.
        ValueError: ``images`` has other dimensions, ``grid`` does not divide its sides or is larger than them.

    Example:
        >>> image = torch.arange(16.0).view(1, 1, 4, 4)
        >>> pieces, order = image_fragments(image, 2, generator=torch.Generator().manual_seed(0))
        >>> pieces[0, order[0].argsort(), 0, 0, 0].tolist()  # the upper left corners of the pieces, put back
        [0.0, 2.0, 8.0, 10.0]

    References:
        Kim, Yoon, Cho (2024), Generalized neural sorting networks with error-free differentiable swap functions,
        section 5.3 (there called image fragments).
    """
    check_floating("images", images)
    if images.ndim != 4:
        raise ValueError(f"images must have shape [count, channels, height, width], got {tuple(images.shape)}")
    check_integer("grid", grid, 1)
    for name, side in zip(("height", "width"), images.shape[-2:], strict=True):
        if side < grid or (side % grid and not crop):
            raise ValueError(f"grid must divide the {name} of images (or crop=True), got {grid} and {side}")
    top, left = ((side % grid) // 2 for side in images.shape[-2:])
    high, wide = (side // grid for side in images.shape[-2:])
    cropped = images[..., top : top + grid * high, left : left + grid * wide]
    pieces = cropped.unflatten(-1, (grid, wide)).unflatten(-3, (grid, high)).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    order = torch.rand(len(images), grid**2, generator=generator).argsort(-1).to(images.device)
    return Fragments(pieces[torch.arange(len(images), device=images.device)[:, None], order], order)


def patches(
    image: Float[Tensor, "*channels height width"], size: int, count: int, *, generator: torch.Generator
) -> Float[Tensor, "count *channels size size"]:
    """Return squares from random places of an image; they may overlap.

    Args:
        image: ``[*channels, height, width]``.
        size: of a square, pixels, in 1..min(height, width).
        count: of squares, >= 1.
        generator: draws the places, each equally likely.

    Returns:
        ``[count, *channels, size, size]``.

    Raises:
        TypeError: ``image`` is not floating, or ``size`` or ``count`` is no integer.
        ValueError: ``image`` has fewer than two dimensions, or ``size`` or ``count`` is out of range.

    Example:
        >>> patches(torch.arange(12.0).view(3, 4), 3, 2, generator=torch.Generator().manual_seed(0))[:, 0, 0]
        tensor([1., 0.])
    """
    check_floating("image", image)
    if image.ndim < 2:
        raise ValueError(f"image must have shape (..., height, width), got {tuple(image.shape)}")
    check_integer("size", size, 1, min(image.shape[-2:]))
    check_integer("count", count, 1)
    tops, lefts = (torch.randint(side - size + 1, (count,), generator=generator).tolist() for side in image.shape[-2:])
    return torch.stack([image[..., i : i + size, j : j + size] for i, j in zip(tops, lefts, strict=True)])
