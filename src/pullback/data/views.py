"""Random views of images: what the learning of representations without labels holds to be the same."""

from __future__ import annotations

import torch

from pullback.core.checks import check_floating, check_integer
from pullback.core.random import drawing_device
from pullback.core.shapes import Float, Tensor

__all__ = ["image_views"]


def image_views(
    images: Float[Tensor, "b channels height width"],
    count: int,
    *,
    generator: torch.Generator,
    area: tuple[float, float] = (0.45, 1.0),
    gamma: tuple[float, float] = (0.7, 1.4),
    contrast: tuple[float, float] = (0.6, 1.4),
    flip: bool = True,
) -> Float[Tensor, "count b channels height width"]:
    r"""Return random views of each image: a part of it at full size, perhaps mirrored, with other tones.

    .. math:: v = \mathrm{clamp}(\bar u + c \, (u - \bar u), 0, 1), \qquad u = (\text{part of the image})^\gamma

    with the mean :math:`\bar u` of the view. Parts keep the shape of the image and are sampled bilinearly. Gradients
    flow to the images.

    Args:
        images: ``[b, channels, height, width]`` in [0, 1].
        count: views of each image, >= 1.
        generator: draws, for each view anew.
        area: range of a part's share of the area, in (0, 1].
        gamma: range of the exponent, log-uniform, > 0.
        contrast: range of the factor ``c``, >= 0.
        flip: mirror every other view, left to right.

    Returns:
        ``[count, b, channels, height, width]``.

    Raises:
        TypeError: ``images`` is not floating, or ``count`` no integer.
        ValueError: ``images`` has other dimensions or values outside of [0, 1], a range is none.

    Example:
        >>> image_views(torch.rand(3, 1, 8, 8), 2, generator=torch.Generator().manual_seed(0)).shape
        torch.Size([2, 3, 1, 8, 8])

    References:
        Chen, Kornblith, Norouzi, Hinton (2020), A simple framework for contrastive learning of visual representations,
        section 3.
    """
    check_floating("images", images)
    check_integer("count", count, 1)
    if images.ndim != 4:
        raise ValueError(f"images must have shape [b, channels, height, width], got {tuple(images.shape)}")
    if not bool(((images >= 0) & (images <= 1)).all()):
        raise ValueError("images must be in [0, 1]")
    for name, (low, high), least, most in (
        ("area", area, torch.finfo(images.dtype).tiny, 1.0),
        ("gamma", gamma, torch.finfo(images.dtype).tiny, torch.inf),
        ("contrast", contrast, 0.0, torch.inf),
    ):
        if not least <= low <= high <= most or high == torch.inf:
            raise ValueError(f"{name} must be a range (low, high) within [{least:g}, {most:g}], got {(low, high)}")
    total, device = count * len(images), drawing_device(generator, images)
    draws = torch.rand(6, total, device=device, generator=generator, dtype=torch.float64).to(images)
    side = (area[0] + (area[1] - area[0]) * draws[0]).sqrt()
    # In the sampling grid an image reaches from -1 to 1.
    shift = (2 * draws[1:3] - 1) * (1 - side)
    across = torch.where(draws[3] < 0.5, -side, side) if flip else side
    zero = torch.zeros_like(side)
    maps = torch.stack([across, zero, shift[0], zero, side, shift[1]], -1).view(total, 2, 3)
    grid = torch.nn.functional.affine_grid(maps, [total, *images.shape[1:]], align_corners=False)
    every = images.expand(count, *images.shape).flatten(0, 1)
    parts = torch.nn.functional.grid_sample(every, grid, padding_mode="border", align_corners=False)
    exponent = gamma[0] * (gamma[1] / gamma[0]) ** draws[4]
    # The slope of a small power of 0 is infinite.
    toned = parts.clamp(min=torch.finfo(parts.dtype).eps) ** exponent[:, None, None, None]
    mean = toned.mean((-3, -2, -1), keepdim=True)
    factor = (contrast[0] + (contrast[1] - contrast[0]) * draws[5])[:, None, None, None]
    return (mean + factor * (toned - mean)).clamp(0, 1).unflatten(0, (count, len(images)))
