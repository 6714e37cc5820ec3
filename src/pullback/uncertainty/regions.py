r"""Regions for outcomes of several coordinates, one a row of a batch, and how they grow.

A region is the set where a score is at most 0: :math:`R = \{y : s(y) \le 0\}`. Grown by ``q`` it is the set where the
score is at most ``q``, of which :func:`~pullback.uncertainty.conformalize_region`
takes the one that covers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, runtime_checkable

import torch

from pullback.core.checks import check_floating, check_integer, check_same_dtype
from pullback.core.random import drawing_device, unit_vectors
from pullback.core.shapes import Bool, Float, Tensor
from pullback.uncertainty.directions import check_directions

__all__ = ["BoxRegion", "EllipsoidRegion", "HalfspaceRegion", "InteriorPoint", "PointCloudRegion", "Region"]


@runtime_checkable
class Region(Protocol):
    """What a region can do: say how far outside of it a point is, and grow."""

    def score(self, y: Float[Tensor, "... n d"]) -> Float[Tensor, "... n"]:
        """Return a number that is at most 0 in the region and greater outside."""

    def grown(self, q: float) -> Region:
        """Return the region where the score is at most ``q``; negative: shrunk."""


class _Scored:
    """What every region has beside its score."""

    def score(self, y: Tensor) -> Tensor:
        raise NotImplementedError

    def contains(self, y: Float[Tensor, "... n d"]) -> Bool[Tensor, "... n"]:
        """Return which points are in the region: ``y`` is ``[*batch, n, d]``."""
        return self.score(y) <= 0

    def _points(self, y: Tensor, dim: int, like: Tensor) -> Tensor:
        check_same_dtype(y=check_floating("y", y), region=like)
        if y.ndim < 2 or y.shape[-1] != dim:
            raise ValueError(f"y must have shape [..., n, {dim}], got {tuple(y.shape)}")
        return y


@dataclass(frozen=True)
class BoxRegion(_Scored):
    r"""Bounds of each coordinate; the score :math:`\max_j \max(l_j - y_j,\ y_j - u_j)` moves all sides alike.

    Attributes:
        lower: ``[*batch, d]``.
        upper: ``[*batch, d]``.

    Raises:
        TypeError: no floating tensors, or of different dtypes.
        ValueError: shapes differ.

    Example:
        >>> box = BoxRegion(torch.zeros(2), torch.ones(2))
        >>> box.score(torch.tensor([[0.5, 0.75], [2.0, 0.5]])), box.grown(1.0).contains(torch.tensor([[2.0, 0.5]]))
        (tensor([-0.2500,  1.0000]), tensor([True]))
    """

    lower: Float[Tensor, "*batch d"]
    upper: Float[Tensor, "*batch d"]

    def __post_init__(self) -> None:
        check_same_dtype(lower=check_floating("lower", self.lower), upper=check_floating("upper", self.upper))
        if not self.lower.ndim or self.lower.shape != self.upper.shape or not self.lower.shape[-1]:
            came = f"{tuple(self.lower.shape)}, {tuple(self.upper.shape)}"
            raise ValueError(f"lower and upper must have one shape [..., d], got {came}")

    def score(self, y: Float[Tensor, "... n d"]) -> Float[Tensor, "... n"]:
        """Return how far outside points are, along the worst coordinate."""
        y = self._points(y, self.lower.shape[-1], self.lower)
        return torch.maximum(self.lower[..., None, :] - y, y - self.upper[..., None, :]).amax(-1)

    def grown(self, q: float) -> BoxRegion:
        """Return the box with every side moved out by ``q``."""
        return BoxRegion(self.lower - q, self.upper + q)


@dataclass(frozen=True)
class EllipsoidRegion(_Scored):
    r"""``{y : |L^{-1} (y - c)| <= radius}``, with the score :math:`|L^{-1} (y - c)| - \text{radius}`.

    Attributes:
        centre: ``[*batch, d]``.
        factor: ``[*#batch, d, d]`` lower triangular, of the covariance :math:`L L^T`.
        radius: >= 0, in standard deviations.

    Raises:
        TypeError: no floating tensors, or of different dtypes.
        ValueError: shapes do not fit.

    Example:
        >>> ellipse = EllipsoidRegion(torch.zeros(2), torch.diag(torch.tensor([2.0, 1.0])), 1.0)
        >>> ellipse.contains(torch.tensor([[1.5, 0.0], [0.0, 1.5]]))
        tensor([ True, False])
    """

    centre: Float[Tensor, "*#batch d"]
    factor: Float[Tensor, "*#batch d d"]
    radius: float = 0.0

    def __post_init__(self) -> None:
        check_same_dtype(centre=check_floating("centre", self.centre), factor=check_floating("factor", self.factor))
        d = self.centre.shape[-1] if self.centre.ndim else 0
        if not d or tuple(self.factor.shape[-2:]) != (d, d):
            raise ValueError(f"factor must have shape [..., {d}, {d}], got {tuple(self.factor.shape)}")

    def score(self, y: Float[Tensor, "... n d"]) -> Float[Tensor, "... n"]:
        """Return the Mahalanobis distance from the centre, beyond the radius."""
        y = self._points(y, self.centre.shape[-1], self.centre)
        away = (y - self.centre[..., None, :]).mT
        return torch.linalg.solve_triangular(self.factor, away, upper=False).norm(dim=-2) - self.radius

    def grown(self, q: float) -> EllipsoidRegion:
        """Return the ellipsoid with a radius that is larger by ``q``."""
        return replace(self, radius=self.radius + q)


class InteriorPoint(NamedTuple):
    """The deepest point of an intersection of half-spaces.

    Attributes:
        point: ``[*batch, d]``.
        depth: ``[*batch]`` its distance from the nearest side; negative where the intersection is empty: by how much
            every side must move out for one point to be left.
    """

    point: Float[Tensor, "*batch d"]
    depth: Float[Tensor, "*batch"]


@dataclass(frozen=True)
class HalfspaceRegion(_Scored):
    r"""An intersection of half-spaces: :math:`\{z : u_k \cdot z \ge o_k \text{ for all } k\}`.

    The score :math:`\max_k (o_k - u_k \cdot z)` is minus the distance to the complement inside, and moves every side
    out by ``q`` when the region grows.

    Attributes:
        directions: ``[k, d]`` unit vectors, shared by the batch.
        offsets: ``[*batch, k]`` such as directional quantiles of a low level.

    Raises:
        TypeError: no floating tensors, or of different dtypes.
        ValueError: shapes do not fit, directions are not of length 1.

    Example:
        >>> square = HalfspaceRegion(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]), -torch.ones(4))
        >>> square.contains(torch.tensor([[0.9, -0.9], [1.1, 0.0]])), square.extent(torch.tensor([[0.6, 0.8]]))
        (tensor([ True, False]), tensor([1.2500]))

    References:
        Kong, Mizera (2012), Quantile tomography: using quantiles with multivariate data, section 2; Feldman, Bates,
        Romano (2023), Calibrated multiple-output quantile regression with representation learning, section 2.2.
    """

    directions: Float[Tensor, "k d"]
    offsets: Float[Tensor, "*batch k"]

    def __post_init__(self) -> None:
        check_directions(self.directions)
        check_same_dtype(directions=self.directions, offsets=check_floating("offsets", self.offsets))
        if not self.offsets.ndim or self.offsets.shape[-1] != len(self.directions):
            raise ValueError(f"offsets must have shape [..., {len(self.directions)}], got {tuple(self.offsets.shape)}")

    def score(self, y: Float[Tensor, "... n d"]) -> Float[Tensor, "... n"]:
        """Return how far points are beyond the worst side."""
        y = self._points(y, self.directions.shape[-1], self.directions)
        return (self.offsets[..., None, :] - y @ self.directions.T).amax(-1)

    def grown(self, q: float) -> HalfspaceRegion:
        """Return the region with every side moved out by ``q``."""
        return replace(self, offsets=self.offsets - q)

    def interior(self, *, steps: int = 200) -> InteriorPoint:
        """Return the deepest point (the Chebyshev centre), or where there is none the one that misses least.

        Args:
            steps: of a subgradient ascent of the depth, whose error falls as one over their square root.
        """
        with torch.no_grad():
            offsets = self.offsets
            # Of a ball of centre c and radius r the offsets are u.c - r, and the mean of u u' is 1 / d.
            point = self.directions.shape[-1] * (offsets @ self.directions) / len(self.directions)
            best, depth = point, self._depth(point)
            size = (offsets.abs().amax(-1, keepdim=True) + 1e-6) / 2
            for step in range(check_integer("steps", steps, 0)):
                worst = (point @ self.directions.T - offsets).argmin(-1)
                point = point + size / math.sqrt(step + 1) / 4 * self.directions[worst]
                found = self._depth(point)
                best = torch.where((found > depth)[..., None], point, best)
                depth = torch.maximum(found, depth)
                point = best if step % 10 == 9 else point
        return InteriorPoint(best, depth)

    def _depth(self, point: Tensor) -> Tensor:
        return (point @ self.directions.T - self.offsets).amin(-1)

    def extent(
        self, rays: Float[Tensor, "m d"], *, start: Float[Tensor, "*batch d"] | None = None
    ) -> Float[Tensor, "*batch m"]:
        """Return how far the region reaches from a point in it along unit vectors; infinite where it is open.

        Args:
            rays: ``[m, d]`` unit vectors.
            start: ``[*batch, d]`` in the region; the origin by default.
        """
        check_directions(rays, "rays")
        slack = -self.offsets if start is None else start @ self.directions.T - self.offsets
        towards = -(rays @ self.directions.T)
        reach = slack.clamp(min=0)[..., None, :] / towards.clamp(min=torch.finfo(slack.dtype).tiny)
        return torch.where(towards > 0, reach, math.inf).amin(-1)

    def sample(
        self, n: int, *, steps: int = 8, generator: torch.Generator | None = None
    ) -> Float[Tensor, "*batch n d"]:
        """Return points of the region by hit-and-run from the deepest one: uniform after many steps.

        Args:
            n: points of each region.
            steps: each a uniform point of the chord through the last one, in a random direction.
            generator: of the draws.

        Returns:
            ``[*batch, n, d]``; where a region is empty, the point that misses least.

        Raises:
            ValueError: a region is not bounded.
        """
        check_integer("n", n, 1)
        check_integer("steps", steps, 1)
        with torch.no_grad():
            offsets = self.offsets.reshape(-1, self.offsets.shape[-1])
            parts = [replace(self, offsets=part)._run(n, steps, generator) for part in offsets.split(_TOGETHER)]
        return torch.cat(parts).reshape(*self.offsets.shape[:-1], n, self.directions.shape[-1])

    def _run(self, n: int, steps: int, generator: torch.Generator | None) -> Tensor:
        count, d = len(self.offsets), self.directions.shape[-1]
        points = self.interior().point[:, None, :].expand(count, n, d)
        device, tiny = drawing_device(generator, points), torch.finfo(points.dtype).tiny
        for _ in range(steps):
            ray = unit_vectors(n, d, generator=generator, like=points).to(points.dtype)
            along = ray @ self.directions.T
            slack = (points @ self.directions.T - self.offsets[:, None, :]).clamp(min=0)
            ahead = torch.where(along < 0, slack / (-along).clamp(min=tiny), math.inf).amin(-1)
            behind = torch.where(along > 0, slack / along.clamp(min=tiny), math.inf).amin(-1)
            if bool(torch.isinf(ahead + behind).any()):
                raise ValueError("the region is not bounded: its directions must surround the origin")
            at = torch.rand(count, n, generator=generator, device=device, dtype=torch.float64).to(points)
            points = points + ((ahead + behind) * at - behind)[..., None] * ray
        return points


@dataclass(frozen=True)
class PointCloudRegion(_Scored):
    r"""What is near a cloud of points, :math:`\{y : \min_i |y - p_i| \le r\}`; the score is that distance less ``r``.

    Any shape, of several pieces too: a region of a latent space, sampled and decoded. When it shrinks, the balls do.

    Attributes:
        points: ``[*batch, m, d]``.
        radius: a number or ``[*batch]``; negative: empty.

    Raises:
        TypeError: ``points`` are no floating tensor.
        ValueError: there are no points.

    Example:
        >>> cloud = PointCloudRegion(torch.tensor([[0.0, 0.0], [3.0, 0.0]]), 1.0)
        >>> cloud.contains(torch.tensor([[0.5, 0.5], [1.5, 0.0]])), cloud.spacing(1.0)
        (tensor([ True, False]), tensor(3.))

    References:
        Feldman, Bates, Romano (2023), Calibrated multiple-output quantile regression with representation learning,
        algorithm 1.
    """

    points: Float[Tensor, "*batch m d"]
    radius: float | Float[Tensor, "*batch"] = 0.0

    def __post_init__(self) -> None:
        if check_floating("points", self.points).ndim < 2 or 0 in self.points.shape[-2:]:
            raise ValueError(f"points must have shape [..., m, d] with at least one, got {tuple(self.points.shape)}")

    def score(self, y: Float[Tensor, "... n d"]) -> Float[Tensor, "... n"]:
        """Return the distance to the nearest point, beyond the radius."""
        y = self._points(y, self.points.shape[-1], self.points)
        radius = self.radius[..., None] if isinstance(self.radius, Tensor) else self.radius
        return torch.cdist(y, self.points).amin(-1) - radius

    def grown(self, q: float) -> PointCloudRegion:
        """Return the cloud with a radius that is larger by ``q``."""
        return replace(self, radius=self.radius + q)

    def spacing(self, level: float) -> Float[Tensor, "*batch"]:
        """Return a quantile, of ``level`` in (0, 1], of the distances from points to their nearest neighbours."""
        nearest = []
        for points in self.points.reshape(-1, *self.points.shape[-2:]).split(_TOGETHER):
            apart = torch.cdist(points, points)
            nearest.append((apart + torch.diag_embed(torch.full_like(apart[..., 0], math.inf))).amin(-1))
        return torch.cat(nearest).quantile(level, dim=-1).reshape(self.points.shape[:-2])


_TOGETHER = 32
"""Regions that are sampled, and clouds whose distances are computed, together: what bounds the memory."""
