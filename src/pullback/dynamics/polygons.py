"""A plane with convex regions in a row that have to be passed in order: a task of which only success is seen."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pullback.core.checks import check_floating, check_integer, check_shape
from pullback.core.shapes import Bool, Float, Int

__all__ = ["PolygonWorld", "polygon_world"]


class PolygonWorld(NamedTuple):
    """Convex quadrilaterals, each sharing an edge with the next. The mode of a point is 0 outside, k in the k-th.

    Attributes:
        vertices: ``[count, 4, 2]`` corners of each, counterclockwise; made by :func:`polygon_world`.
    """

    vertices: Float[Tensor, "count 4 2"]

    def mode(self, x: Float[Tensor, "*batch 2"]) -> Int[Tensor, "*batch"]:
        """Return the mode of points: the number of the polygon they are in, counted from 1, or 0."""
        check_floating("x", x)
        check_shape("x", x, (2,))
        edge = self.vertices.roll(-1, 1) - self.vertices
        away = x[..., None, None, :] - self.vertices
        inside = (edge[..., 0] * away[..., 1] - edge[..., 1] * away[..., 0] >= 0).all(-1)
        number = torch.arange(1, len(self.vertices) + 1, device=x.device)
        return torch.where(inside, number, 0).amax(-1)

    def valid(self, trajectory: Float[Tensor, "*batch time 2"]) -> Bool[Tensor, "*batch"]:
        """Return whether trajectories never skip a mode forwards and end in the last; going back is allowed."""
        mode = self.mode(trajectory)
        return (mode.diff(dim=-1) <= 1).all(-1) & (mode[..., -1] == len(self.vertices))

    def demonstrations(
        self, count: int, steps: int, *, noise: float = 0.1, generator: torch.Generator | None = None
    ) -> Float[Tensor, "count steps 2"]:
        """Return trajectories of a planner: from the left through the middle of every polygon, at equal speed.

        Args:
            count: how many.
            steps: points of each.
            noise: standard deviation of the way points.
            generator: of the draws.
        """
        check_integer("count", count, 1)
        check_integer("steps", steps, 2)
        left = self.vertices[0, [0, 3]].mean(0)  # the middle of the first edge
        points = torch.cat([left[None] - torch.tensor([1.5, 0.0]), left[None], self.vertices.mean(1)])
        points = points + noise * torch.randn(count, *points.shape, generator=generator)
        length = points.diff(dim=1).norm(dim=-1).cumsum(-1)
        length = torch.cat([torch.zeros(count, 1), length], 1)
        asked = length[:, -1:] * torch.linspace(0, 1, steps)
        after = torch.searchsorted(length, asked.contiguous()).clamp(1, points.shape[1] - 1)
        low, high = length.gather(1, after - 1), length.gather(1, after)
        part = ((asked - low) / (high - low))[..., None]
        before, behind = (points.gather(1, i[..., None].expand(-1, -1, 2)) for i in (after - 1, after))
        return before + part * (behind - before)


def polygon_world(count: int, *, generator: torch.Generator | None = None) -> PolygonWorld:
    """Return a random world of polygons in a row, about 6 wide and 3 high, in the square from -4 to 4.

    Args:
        count: of polygons, >= 1.
        generator: of the draws.

    Returns:
        :class:`PolygonWorld`.

    Raises:
        ValueError: ``count`` is below 1.

    Example:
        >>> world = polygon_world(3, generator=torch.Generator().manual_seed(0))
        >>> path = world.demonstrations(1, 50, noise=0.0)
        >>> world.mode(path[0, [0, -1]]).tolist(), world.valid(path).tolist()
        ([0, 3], [True])

    References:
        Wang, Wang, Mao, Hagenow, Shah (2024), Grounding language plans in demonstrations through counterfactual
        perturbations, section 4.1, arXiv 2403.17124.
    """
    check_integer("count", count, 1)
    draws = torch.rand(4, count + 1, generator=generator) - 0.5
    width = 6.5 / count
    x = torch.linspace(-2.75, 3.75, count + 1) + 0.3 * width * draws[0]
    tilt = 0.5 * width * draws[1]
    low, high = -1.5 + 1.6 * draws[2], 1.5 + 1.6 * draws[3]
    bottom, top = torch.stack([x - tilt, low], -1), torch.stack([x + tilt, high], -1)
    return PolygonWorld(torch.stack([bottom[:-1], bottom[1:], top[1:], top[:-1]], 1))
