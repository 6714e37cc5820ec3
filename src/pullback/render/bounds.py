"""Where spheres are in the image: boxes around their silhouettes, and the lists of their tiles."""

from __future__ import annotations

import math

import torch

from pullback.core.shapes import Float, Tensor
from pullback.render.tiles import TileLists, tile_primitives

__all__ = ["sphere_boxes", "sphere_lists"]


def sphere_lists(
    centers: Float[Tensor, "n 3"], radii: Float[Tensor, "n"], rays: Float[Tensor, "height width 3"], far: float
) -> TileLists:
    """Return for each tile the spheres that its rays may meet before ``far``, nearest first."""
    with torch.no_grad():
        depths = centers[:, 2].double() - radii
        boxes = sphere_boxes(centers, radii, rays)
        boxes = torch.where((depths > far)[:, None], torch.nan, boxes)
        return tile_primitives(boxes, depths, (rays.shape[0], rays.shape[1]))


def sphere_boxes(
    centers: Float[Tensor, "n 3"], radii: Float[Tensor, "n"], rays: Float[Tensor, "height width 3"]
) -> Float[Tensor, "n 4"]:
    """Return pixel boxes ``[n, 4]`` around spheres in the camera's axes; the whole image where one is not in front.

    In the plane of x and z the lines through the origin that touch the circle have the slopes
    ``(x z ± r sqrt(x^2 + z^2 - r^2)) / (z^2 - r^2)``; a pixel's slope is linear in its place.
    """
    height, width, _ = rays.shape
    centers, radii = centers.double(), radii.double()
    # Slopes of a pixel: three corners of the image give the linear map, with a skew in x along the rows.
    origin, right, down = (rays[corner].double() for corner in ((0, 0), (0, -1), (-1, 0)))
    step_x, step_y = (right[0] - origin[0]) / max(width - 1, 1), (down[1] - origin[1]) / max(height - 1, 1)
    slant = down[0] - origin[0]
    z = centers[:, 2]
    front = z > radii
    lows, highs = [], []
    for axis in (0, 1):
        x = centers[:, axis]
        reach = radii * (x.square() + z.square() - radii.square()).clamp(min=0).sqrt()
        scale = torch.where(front, (z - radii) * (z + radii), 1.0)
        lows.append((x * z - reach) / scale)
        highs.append((x * z + reach) / scale)
    first, last = _places(lows[0] - slant.clamp(min=0), highs[0] - slant.clamp(max=0), origin[0], step_x, width)
    top, bottom = _places(lows[1], highs[1], origin[1], step_y, height)
    infinite = torch.full_like(z, math.inf)
    whole = torch.stack([-infinite, -infinite, infinite, infinite], -1)
    return torch.where(front[:, None], torch.stack([first, top, last, bottom], -1), whole)


def _places(low: Tensor, high: Tensor, start: Tensor, step: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return first and last place in the image of slopes from ``low`` to ``high``."""
    if count == 1:  # the slope of one pixel says nothing of its width
        return torch.full_like(low, -math.inf), torch.full_like(high, math.inf)
    a, b = (low - start) / step, (high - start) / step
    # A hundredth of a pixel more: the rays are rounded.
    return torch.minimum(a, b) + 0.49, torch.maximum(a, b) + 0.51
