"""Changing the number of primitives while they are fitted: unused ones go, busy ones are doubled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from pullback.core.checks import check_floating, check_range, check_shape
from pullback.core.shapes import Float, Int, Tensor

__all__ = ["Densified", "SphereStatistics", "Spheres", "prune_and_split"]


class Spheres(NamedTuple):
    """A scene.

    Attributes:
        centers: ``[n, 3]`` metres.
        radii: ``[n]`` metres.
        features: ``[n, channels]``.
        opacity: ``[n]`` in [0, 1].
    """

    centers: Float[Tensor, "n 3"]
    radii: Float[Tensor, "n"]
    features: Float[Tensor, "n channels"]
    opacity: Float[Tensor, "n"]


class Densified(NamedTuple):
    """Spheres after pruning and splitting.

    Attributes:
        spheres: the new scene, without gradient history.
        source: ``[m]`` int64: the old sphere that each new one comes from (to carry the state of an optimizer along).
    """

    spheres: Spheres
    source: Int[Tensor, "m"]


@dataclass(eq=False)
class SphereStatistics:
    """What is known of each sphere from some rendered views.

    Args:
        used: ``[n]`` pixels at which the sphere was the strongest.
        gradient: ``[n]`` summed norms of the gradient to its centre.
        views: how many views were added.

    Example:
        >>> statistics = SphereStatistics.zeros(2)
        >>> statistics.add(torch.tensor([[0, 0], [-1, 0]]), torch.tensor([[3.0, 0.0, 4.0], [0.0, 0.0, 0.0]]))
        >>> statistics.used.tolist(), statistics.gradient.tolist(), statistics.views
        ([3, 0], [5.0, 0.0], 1)
    """

    used: Int[Tensor, "n"]
    gradient: Float[Tensor, "n"]
    views: int = 0

    @classmethod
    def zeros(cls, n: int) -> SphereStatistics:
        """Return the statistics of ``n`` spheres before the first view."""
        return cls(torch.zeros(n, dtype=torch.int64), torch.zeros(n))

    def add(self, strongest: Int[Tensor, "..."], gradient: Float[Tensor, "n 3"]) -> None:
        """Add a view.

        Args:
            strongest: of any shape, ``extras["strongest"]`` of the rendering; -1 where no sphere is.
            gradient: ``[n, 3]`` the gradient to the centres.
        """
        check_shape("gradient", check_floating("gradient", gradient), (len(self.used), 3))
        self.used = self.used + torch.bincount(strongest[strongest >= 0].cpu(), minlength=len(self.used))
        self.gradient = self.gradient + gradient.detach().norm(dim=-1).to(self.gradient)
        self.views += 1


def prune_and_split(
    spheres: Spheres,
    statistics: SphereStatistics,
    *,
    least_use: int = 1,
    split: float = 0.05,
    generator: torch.Generator | None = None,
) -> Densified:
    """Remove the spheres that no pixel uses and replace those with the largest gradients by two smaller ones.

    The two have together the volume of the one, ``radius 2^(-1/3)``, and lie half a radius to either side of its centre
    in a random direction; features and opacity are copied. Not differentiable: a step between optimizer steps.

    Args:
        spheres: the scene.
        statistics: of the same number of spheres.
        least_use: a sphere is kept if it was the strongest at that many pixels in all views together.
        split: share of the kept spheres, in [0, 1], that are split: those with the largest gradients, rounded down.
        generator: for the directions; required where anything is split.

    Returns:
        A :class:`Densified`: the kept spheres in their order (of a split one its first half), then the second halves.

    Raises:
        ValueError: ``statistics`` is of another number of spheres, ``split`` out of range, or no generator.

    Example:
        >>> scene = Spheres(torch.zeros(2, 3), torch.ones(2), torch.ones(2, 1), torch.ones(2))
        >>> statistics = SphereStatistics(torch.tensor([9, 0]), torch.tensor([1.0, 2.0]))
        >>> new = prune_and_split(scene, statistics, split=1.0, generator=torch.Generator().manual_seed(0))
        >>> new.source.tolist(), round(new.spheres.radii[0].item(), 3)
        ([0, 0], 0.794)

    References:
        Lassner, Zollhoefer (CVPR 2021), Pulsar, section 5 (3D reconstruction with subdivision and pruning).
    """
    n = len(spheres.radii)
    if len(statistics.used) != n or len(statistics.gradient) != n:
        raise ValueError(f"statistics must be of {n} spheres, got {len(statistics.used)}")
    check_range("split", split, 0.0, 1.0)
    kept = (statistics.used >= least_use).nonzero()[:, 0]
    count = int(split * len(kept))
    if count and generator is None:
        raise ValueError("generator must be given where spheres are split")
    busy = torch.topk(statistics.gradient[kept], count).indices.sort().values
    source = torch.cat([kept, kept[busy]]).to(spheres.radii.device)
    centers, radii, features, opacity = (t.detach()[source] for t in spheres)
    if count:
        direction = torch.randn(count, 3, generator=generator).to(centers)
        offset = 0.5 * radii[busy, None] * torch.nn.functional.normalize(direction, dim=-1)
        halves = torch.cat([busy, torch.arange(len(kept), len(source))]).to(radii.device)
        centers = centers.index_add(0, halves, torch.cat([offset, -offset]))
        radii = radii.index_copy(0, halves, radii[halves] * 2 ** (-1 / 3))
    return Densified(Spheres(centers, radii, features, opacity), source)
