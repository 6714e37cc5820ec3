"""Grey images in colours: the same picture can be asked for what it shows and for how it is tinted."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from pullback.core.checks import check_floating, check_integer
from pullback.core.shapes import Float, Int, Tensor

__all__ = ["Tinted", "tinted"]


class Tinted(NamedTuple):
    """Images in colour, and which.

    Attributes:
        images: ``[n, 3, height, width]``, red, green, blue; black stays black.
        colours: ``[n]`` int64, which colour.
    """

    images: Float[Tensor, "n 3 height width"]
    colours: Int[Tensor, "n"]


def tinted(images: Float[Tensor, "n height width"], colours: int = 10, *, generator: torch.Generator) -> Tinted:
    r"""Give each grey image one of ``colours`` hues, drawn evenly, at equal distances on the circle of hues.

    Hue :math:`h` has the intensities :math:`\tfrac12 + \tfrac12 \cos(h - 2 \pi c / 3)` in channels c = 0, 1, 2.

    Args:
        images: ``[n, height, width]`` in [0, 1].
        colours: how many hues, >= 2.
        generator: draws the hues.

    Returns:
        :class:`Tinted` ``(images, colours)``.

    Raises:
        TypeError: ``images`` is not floating.
        ValueError: it has another number of dimensions, or ``colours`` < 2.

    Example:
        >>> found = tinted(torch.ones(4, 1, 1), 3, generator=torch.Generator().manual_seed(0))
        >>> found.images.shape, bool((found.images.flatten(1).argmax(1) == found.colours).all())
        (torch.Size([4, 3, 1, 1]), True)
    """
    if check_floating("images", images).ndim != 3:
        raise ValueError(f"images must have shape (n, height, width), got {tuple(images.shape)}")
    check_integer("colours", colours, 2)
    drawn = torch.randint(colours, (len(images),), generator=generator).to(images.device)
    hues = 2 * math.pi * drawn / colours
    channels = 2 * math.pi * torch.arange(3, device=images.device) / 3
    tint = (0.5 + 0.5 * torch.cos(hues[:, None] - channels)).to(images.dtype)
    return Tinted(images[:, None] * tint[:, :, None, None], drawn)
