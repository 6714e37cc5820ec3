"""Numbers of several digits, made of real digit images side by side."""

from __future__ import annotations

from typing import NamedTuple

import torch

from pullback.core.checks import check_floating, check_tensor
from pullback.core.shapes import Float, Int, Tensor

__all__ = ["Numbers", "digit_numbers"]


class Numbers(NamedTuple):
    """Images of numbers and what they show.

    Attributes:
        images: ``[count, height, places * width]``, the leading digit on the left.
        values: ``[count]`` int64 from 0 to ``10 ** places - 1``.
    """

    images: Float[Tensor, "count height wide"]
    values: Int[Tensor, "count"]


def digit_numbers(
    images: Float[Tensor, "n height width"],
    labels: Int[Tensor, "n"],
    count: int,
    places: int,
    *,
    generator: torch.Generator,
) -> Numbers:
    """Return numbers whose digits are drawn uniformly, with replacement, from labelled digit images.

    Numbers of training and test are drawn from disjoint digit images: call it once with each split.

    Args:
        images: ``[n, height, width]`` one digit each.
        labels: ``[n]`` integers 0 to 9.
        count: how many numbers, >= 1.
        places: digits of a number, 1 to 18.
        generator: draws the digits.

    Returns:
        :class:`Numbers` ``(images, values)``.

    Raises:
        TypeError: ``images`` is not floating or ``labels`` not integer.
        ValueError: ``images`` and ``labels`` do not belong together, a label is no digit, ``count`` or ``places`` is
            out of range.

    Example:
        >>> images = torch.arange(3.0).reshape(3, 1, 1)
        >>> drawn = digit_numbers(images, torch.tensor([0, 1, 2]), 4, 2, generator=torch.Generator().manual_seed(0))
        >>> drawn.images.shape, bool((drawn.images[:, 0] @ torch.tensor([10.0, 1.0]) == drawn.values).all())
        (torch.Size([4, 1, 2]), True)
    """
    check_floating("images", images)
    if check_tensor("labels", labels).is_floating_point():
        raise TypeError(f"labels must be an integer tensor, got {labels.dtype}")
    if images.ndim != 3 or labels.shape != images.shape[:1] or labels.numel() == 0:
        raise ValueError(
            f"images [n, height, width] and labels [n] must belong together and not be empty, "
            f"got {tuple(images.shape)} and {tuple(labels.shape)}"
        )
    if int(labels.min()) < 0 or int(labels.max()) > 9:
        raise ValueError(f"labels must be digits 0 to 9, got {int(labels.min())} to {int(labels.max())}")
    if count < 1:
        raise ValueError(f"count must be >= 1, got {count}")
    if not 1 <= places <= 18:
        raise ValueError(f"places must be in 1..18, got {places}")
    chosen = torch.randint(labels.numel(), (count, places), generator=generator).to(labels.device)
    powers = 10 ** torch.arange(places - 1, -1, -1, device=labels.device)
    return Numbers(
        images=images[chosen].transpose(1, 2).flatten(2),
        values=(labels[chosen].long() * powers).sum(-1),
    )
