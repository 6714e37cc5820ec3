"""A vehicle in the plane and the laser scanner on it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pullback.core.checks import (
    check_broadcast,
    check_floating,
    check_integer,
    check_positive,
    check_range,
    check_same_dtype,
    check_shape,
)
from pullback.core.shapes import Float
from pullback.core.transforms import can_look

__all__ = ["DiscRoad", "disc_ranges", "vehicle"]


def vehicle(t: Tensor, z: Float[Tensor, "*#batch 6"], change: Float[Tensor, "*#batch 2"]) -> Float[Tensor, "*batch 6"]:
    r"""Return the rate of a vehicle whose turning rate and acceleration are states: a network can be their field.

    .. math:: \dot x = v \cos\theta, \; \dot y = v \sin\theta, \; \dot\theta = u_1, \; \dot v = u_2, \; \dot u = c .

    A function of the position has relative degree 3 in the change c, wherever v is not 0.

    Args:
        t: time, unused.
        z: ``[*batch, 6]`` x, y [m], heading [rad], speed [m/s], turning rate [rad/s], acceleration [m/s^2].
        change: ``[*batch, 2]`` c, the rates of the last two.

    Raises:
        TypeError: a tensor is not floating, or the dtypes differ.
        ValueError: the shapes do not fit.

    Example:
        >>> vehicle(torch.zeros(1), torch.tensor([0.0, 0.0, 0.0, 2.0, 0.5, 1.0]), torch.zeros(2)).tolist()
        [2.0, 0.0, 0.5, 1.0, 0.0, 0.0]

    References:
        Xiao et al. (2023), On the forward invariance of neural ODEs, section 5.3, arXiv 2210.04763.
    """
    check_floating("z", z)
    check_shape("z", z, (6,))
    check_floating("change", change)
    check_shape("change", change, (2,))
    check_same_dtype(z=z, change=change)
    check_broadcast(z=tuple(z.shape[:-1]), change=tuple(change.shape[:-1]))
    heading, speed, turning, acceleration = torch.broadcast_tensors(*z[..., 2:].unbind(-1), change[..., 0])[:4]
    motion = torch.stack([speed * heading.cos(), speed * heading.sin(), turning, acceleration], -1)
    return torch.cat([motion, change.expand(*motion.shape[:-1], 2)], -1)


def disc_ranges(
    position: Float[Tensor, "*#batch 2"],
    heading: Float[Tensor, "*#batch"],
    centers: Float[Tensor, "*#batch m 2"],
    radius: float | Float[Tensor, "*#batch m"],
    *,
    rays: int = 32,
    view: float = 2 * math.pi,
    reach: float = 10.0,
) -> Float[Tensor, "*batch rays"]:
    r"""Return how far rays from a point fly until they hit a disc: a laser scanner in a plane.

    Ray i leaves at the angle ``heading + view (i / (rays - 1) - 1/2)`` in the direction e; with
    ``d = centre - position`` it meets a disc ahead at

    .. math:: d \cdot e - \sqrt{r^2 - (d \times e)^2} .

    Args:
        position: ``[*batch, 2]``. Inside of a disc its rays have length 0.
        heading: ``[*batch]`` [rad].
        centers: ``[*batch, m, 2]`` of the discs, m >= 1.
        radius: > 0, a number or ``[*batch, m]``.
        rays: >= 2.
        view: angle between the first and the last ray, in (0, 2 pi]; a full turn has its first ray twice.
        reach: > 0, the length of a ray that hits nothing.

    Returns:
        ``[*batch, rays]`` distances in [0, reach], with derivatives in everything where a ray does not graze a disc.

    Raises:
        TypeError: a tensor is not floating, or the dtypes differ.
        ValueError: shapes do not fit, or a number is out of range.

    Example:
        >>> centre = torch.tensor([[3.0, 0.0]])
        >>> disc_ranges(torch.zeros(2), torch.zeros(()), centre, 1.0, rays=3, view=3.14)
        tensor([10.,  2., 10.])
    """
    check_floating("position", position)
    check_shape("position", position, (2,))
    check_floating("heading", heading)
    check_floating("centers", centers)
    check_shape("centers", centers, (None, 2))
    if centers.shape[-2] == 0:
        raise ValueError(f"centers must hold at least one disc, got shape {tuple(centers.shape)}")
    tensors = {"position": position, "heading": heading, "centers": centers}
    shapes = {"position": position.shape[:-1], "heading": heading.shape, "centers": centers.shape[:-2]}
    if isinstance(radius, Tensor):
        tensors["radius"] = check_floating("radius", radius)
        check_shape("radius", radius, (centers.shape[-2],))
        shapes["radius"] = radius.shape[:-1]
    if not isinstance(radius, Tensor) or can_look(radius):
        check_positive("radius", radius)
    check_same_dtype(**tensors)
    check_broadcast(**{name: tuple(shape) for name, shape in shapes.items()})
    check_integer("rays", rays, 2)
    check_positive("view", view)
    check_range("view", view, 0, 2 * math.pi)
    check_positive("reach", reach)
    angles = heading[..., None] + view * torch.linspace(-0.5, 0.5, rays, dtype=heading.dtype, device=heading.device)
    c, s = angles.cos(), angles.sin()
    away = centers - position[..., None, :]
    dx, dy = away[..., 0, None], away[..., 1, None]  # [*batch, m, 1] against the rays
    c, s = c[..., None, :], s[..., None, :]
    along, aside = dx * c + dy * s, dx * s - dy * c
    r = radius[..., None] if isinstance(radius, Tensor) else torch.as_tensor(radius, dtype=dx.dtype, device=dx.device)
    half = (r - aside) * (r + aside)
    hits = (half > 0) & (along > 0)
    inside = dx.square() + dy.square() < r.square()
    length = along - torch.where(hits, half, 1).sqrt()
    length = torch.where(hits, length.clamp(min=0), reach)
    return torch.where(inside, 0, length).amin(-2).clamp(max=reach)


class DiscRoad:
    """Straight roads of width 2 m with discs on them, a vehicle's lidar there, and a rule that drives through.

    Args:
        count: of roads.
        discs: on each, one about every ``spacing`` from 3.5 m on.
        size: the radii [m] are uniform between these two, which include the vehicle's own.
        spacing: [m].
        generator: of the draws.
        rays: of the lidar, over the half plane ahead.
        reach: of the lidar [m].
        speed: that is aimed at [m/s].

    Attributes:
        centers: ``[count, discs, 2]``.
        radius: ``[count, discs]``.
        start: ``[count, 6]`` states of :func:`vehicle` at x = 0, at the speed, up to 0.8 m and 0.3 rad off.

    Raises:
        ValueError: a number is out of range.

    Example:
        >>> road = DiscRoad(5, 3, generator=torch.Generator().manual_seed(0))
        >>> road.lidar(torch.zeros(1), road.start).shape, bool((road.clearance(road.start) > 0).all())
        (torch.Size([5, 32]), True)
    """

    def __init__(
        self,
        count: int,
        discs: int = 7,
        *,
        size: tuple[float, float] = (0.3, 0.6),
        spacing: float = 2.0,
        rays: int = 32,
        reach: float = 4.0,
        speed: float = 1.5,
        generator: torch.Generator | None = None,
    ) -> None:
        check_integer("count", count, 1)
        check_integer("discs", discs, 1)
        check_positive("spacing", spacing)
        check_positive("speed", speed)
        check_positive("size", size[0])
        if not size[0] <= size[1] < 2:
            raise ValueError(f"size must be two radii in order, below 2 m, got {size}")
        u, v, w = torch.rand(3, count, discs, generator=generator)
        along = 3.5 + spacing * torch.arange(discs) + 0.6 * (u - 0.5)
        self.centers = torch.stack([along, 2 * v - 1], -1)
        self.radius = size[0] + (size[1] - size[0]) * w
        aside, turned = torch.rand(2, count, generator=generator) - 0.5
        rest = torch.zeros(count)
        self.start = torch.stack([rest, 1.6 * aside, 0.6 * turned, rest + speed, rest, rest], -1)
        self.rays, self.reach, self.speed = check_integer("rays", rays, 2), float(reach), float(speed)

    def lidar(self, t: Tensor, z: Float[Tensor, "*batch count 6"]) -> Float[Tensor, "*batch count rays"]:
        """Return the lidar image: 1 where a ray starts on a disc, 0 where it meets nothing within reach."""
        words: dict[str, Any] = {"rays": self.rays, "view": math.pi, "reach": self.reach}
        return 1 - disc_ranges(z[..., :2], z[..., 2], self.centers, self.radius, **words) / self.reach

    def clearance(self, z: Float[Tensor, "*batch count 6"]) -> Float[Tensor, "*batch count discs"]:
        """Return the distance to the edge of every disc, negative inside."""
        return torch.linalg.vector_norm(z[..., None, :2] - self.centers, dim=-1) - self.radius

    def rule(self, z: Float[Tensor, "*batch 6"], image: Float[Tensor, "*batch rays"]) -> Float[Tensor, "*batch 2"]:
        """Return what a careful driver does: keep the middle, turn away from what is near, brake for what is ahead."""
        angle = math.pi * torch.linspace(-0.5, 0.5, self.rays)
        middle = 1.5 * (-0.25 * z[..., 1] - z[..., 2]).clamp(-0.6, 0.6)
        turn = middle - 23 / self.rays * (image**3 * angle.sign() * angle.cos()).sum(-1)
        ahead = (image * angle.cos().clamp(min=0) ** 8).amax(-1)
        return 4 * (torch.stack([turn, self.speed * (1 - 0.6 * ahead) - z[..., 3]], -1) - z[..., 4:])
