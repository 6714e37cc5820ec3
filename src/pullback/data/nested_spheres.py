"""Simulated: small spheres inside of a large one, in many dimensions."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pullback.core.checks import check_integer

__all__ = ["NestedSpheres", "nested_spheres"]


class NestedSpheres(NamedTuple):
    """Points ``[n, dim + 1]`` and the sphere of each ``[n]``; the enclosing one has the highest number."""

    points: Tensor
    labels: Tensor


def nested_spheres(
    per_sphere: int = 50, dim: int = 100, count: int = 10, *, generator: torch.Generator
) -> NestedSpheres:
    """Return points of ``count`` spheres of radius 5 and of one of radius 25 around the origin, in random order.

    The centres of the small ones are normal with standard deviation ``10 / sqrt(dim)`` a coordinate, so at a distance
    of about 10. The large sphere has as many points as the small ones together.

    Args:
        per_sphere: points of a small sphere, >= 1.
        dim: of the spheres, >= 1; they lie in one dimension more.
        count: of small spheres, >= 1.
        generator: of centres, points and their order.

    Raises:
        ValueError: a number below 1.

    Example:
        >>> spheres = nested_spheres(3, 4, generator=torch.Generator().manual_seed(0))
        >>> spheres.points.shape, spheres.labels.bincount().tolist()
        (torch.Size([60, 5]), [3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 30])

    References:
        Moor, Horn, Rieck, Borgwardt (2020), Topological autoencoders, section 5.1.
    """
    for name, value in (("per_sphere", per_sphere), ("dim", dim), ("count", count)):
        check_integer(name, value, 1)
    centers = 10 / dim**0.5 * torch.randn(count, dim + 1, generator=generator)
    directions = torch.randn(2 * count * per_sphere, dim + 1, generator=generator)
    directions = directions / torch.linalg.vector_norm(directions, dim=-1, keepdim=True)
    inner, outer = directions.chunk(2)
    points = torch.cat([centers.repeat_interleave(per_sphere, 0) + 5 * inner, 25 * outer])
    labels = torch.cat([torch.arange(count).repeat_interleave(per_sphere), torch.full((len(outer),), count)])
    order = torch.randperm(len(points), generator=generator)
    return NestedSpheres(points[order], labels[order])
