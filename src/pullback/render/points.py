"""Dense clouds of points as images: what photographs are made of, or compared with."""

from __future__ import annotations

import torch

from pullback.core.checks import check_floating, check_integer, check_same_dtype
from pullback.core.shapes import Float, Tensor
from pullback.geometry import Camera
from pullback.render.result import Rendered
from pullback.render.tiles import check_unbatched
from pullback.render.zbuffer import ZBuffer

__all__ = ["splat_points"]


def splat_points(
    points: Float[Tensor, "n 3"],
    features: Float[Tensor, "n channels"],
    camera: Camera,
    *,
    subpixels: int = 2,
) -> Rendered:
    """Return what a dense cloud of points looks like, anti-aliased: of each part of a pixel, the nearest point in it.

    A pixel is the mean of those of its ``subpixels x subpixels`` parts in which there is a point.

    Args:
        points: ``[n, 3]`` metres, in the world.
        features: ``[n, channels]`` what they show. The image is differentiable in them, and in nothing else.
        camera: with any batch shape.
        subpixels: parts of a pixel in each direction, >= 1.

    Returns:
        A :class:`Rendered` of the camera's batch shape: ``image`` is 0 where no part has a point; ``alpha`` the share
        of parts that have one; ``depth`` the mean depth of their points, 0 where there is none; ``extras["nearest"]``
        ``[*batch, subpixels height, subpixels width]`` the point in each part, -1 where there is none.

    Raises:
        TypeError: a tensor is not floating, the dtypes differ, or ``subpixels`` is no integer.
        ValueError: a shape or device is not as said, or ``subpixels`` < 1.

    Example:
        >>> points = torch.tensor([[0.0, 0.0, 2.0], [0.0, 0.0, 1.0], [0.1, 0.0, 1.0]])
        >>> features = torch.tensor([[1.0], [2.0], [4.0]])
        >>> seen = splat_points(points, features, Camera.pinhole(10.0, (2, 4)), subpixels=1)
        >>> seen.image.tolist(), seen.alpha.sum().item()
        ([[[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 2.0, 4.0]]], 2.0)
    """
    check_unbatched("points", check_floating("points", points), (None, 3))
    check_unbatched("features", check_floating("features", features), (len(points), None))
    check_integer("subpixels", subpixels, 1)
    check_same_dtype(points=points, features=features, camera=camera.intrinsics)
    seen = _nearest(points.detach(), camera, subpixels)
    known = seen.nearest >= 0
    # Shares first: a sum of the largest features would overflow.
    alpha = _over_pixels(known[..., None].to(features.dtype) / subpixels**2, subpixels)
    share = 1 / (subpixels**2 * alpha).clamp(min=1)
    # The index -1 is the last row.
    shown = torch.cat([features, features.new_zeros(1, features.shape[1])])[seen.nearest]
    image = _over_pixels(shown * _over_parts(share, subpixels), subpixels)
    depth = _over_pixels(torch.where(known, seen.depth, 0.0)[..., None] * _over_parts(share, subpixels), subpixels)
    return Rendered(
        image.movedim(-1, -3),
        alpha.movedim(-1, -3),
        depth.to(points.dtype).movedim(-1, -3),
        {"nearest": seen.nearest},
    )


def _nearest(points: Tensor, camera: Camera, subpixels: int) -> ZBuffer:
    """Return the nearest point in each part of a pixel."""
    height, width = (subpixels * size for size in camera.size)
    if points.dtype in (torch.float16, torch.bfloat16):
        points, camera = points.float(), camera.to(torch.float32)
    # A batch of one dimension, for scatter.
    n, batch = len(points), camera.batch_shape
    seen = camera.resized((height, width)).project(points)
    pixels, depth, valid = (t.reshape(batch.numel(), n, *t.shape[len(batch) + 1 :]) for t in seen)
    inside = valid & (pixels >= 0).all(-1) & (pixels[..., 0] < width) & (pixels[..., 1] < height)
    column, row = torch.where(inside[..., None], pixels, 0.0).floor().long().unbind(-1)
    # Points outside fall into one more cell, behind the last.
    cell = torch.where(inside, row * width + column, height * width)
    order = torch.argsort(depth, stable=True)
    place = torch.arange(n, device=points.device).expand(order.shape)
    first = place.new_full((len(order), height * width + 1), n)
    first = first.scatter_reduce(-1, cell.gather(-1, order), place, "amin")[:, :-1]
    # The place n, where there is no point, is the last column.
    nearest = torch.nn.functional.pad(order, (0, 1), value=-1).gather(-1, first)
    depth = torch.nn.functional.pad(depth, (0, 1)).gather(-1, nearest % (n + 1))
    shape = (*batch, height, width)
    return ZBuffer(nearest.reshape(shape), depth.reshape(shape))


def _over_pixels(parts: Tensor, subpixels: int) -> Tensor:
    """Return the sums over the parts of each pixel of ``[*batch, height, width, c]``."""
    grid = parts.unflatten(-3, (-1, subpixels)).unflatten(-2, (-1, subpixels))
    return grid.sum((-4, -2))


def _over_parts(pixels: Tensor, subpixels: int) -> Tensor:
    """Return the value of its pixel for each part, ``[*batch, height, width, c]``."""
    return pixels.repeat_interleave(subpixels, -3).repeat_interleave(subpixels, -2)
