"""Changing the primitives while they are fitted: unused ones go, busy ones are split in their place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from pullback.core.checks import (
    check_finite,
    check_floating,
    check_integer,
    check_same_dtype,
    check_tensor,
)
from pullback.core.random import drawing_device
from pullback.core.shapes import Float, Int, Tensor
from pullback.render.tiles import check_unbatched

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

    def carry(self, optimizer: torch.optim.Optimizer) -> None:
        """Give each new sphere what an optimizer remembers of the one that it comes from, such as Adam's moments.

        Args:
            optimizer: of parameters with one row a sphere. Its state changes in place; the parameters are the caller's.

        Example:
            >>> place = torch.tensor([[1.0], [2.0]], requires_grad=True)
            >>> optimizer = torch.optim.Adam([place])
            >>> (place[1] ** 2).backward()
            >>> optimizer.step()
            >>> scene = Spheres(torch.zeros(2, 3), torch.ones(2), torch.ones(2, 1), torch.ones(2))
            >>> Densified(scene, torch.tensor([1, 1])).carry(optimizer)
            >>> optimizer.state[place]["exp_avg"].flatten().tolist() # doctest: +ELLIPSIS
            [0.4..., 0.4...]
        """
        for state in optimizer.state.values():
            for name, value in state.items():
                if isinstance(value, Tensor) and value.ndim:
                    state[name] = value[self.source]


@dataclass(eq=False)
class SphereStatistics:
    """What is known of each sphere from some rendered views.

    Args:
        used: ``[n]`` int64: pixels at which the sphere was the strongest.
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
    def zeros(cls, n: int, *, dtype: torch.dtype | None = None, device: torch.device | None = None) -> SphereStatistics:
        """Return the statistics of ``n`` spheres before the first view; ``dtype`` is that of the gradients.

        Raises:
            TypeError: ``n`` is not an integer.
            ValueError: ``n`` < 0.
        """
        check_integer("n", n, 0)
        return cls(torch.zeros(n, dtype=torch.int64, device=device), torch.zeros(n, dtype=dtype, device=device))

    def add(self, strongest: Int[Tensor, "..."], gradient: Float[Tensor, "n 3"]) -> None:
        """Add a view.

        Args:
            strongest: of any shape, ``extras["strongest"]`` of the rendering; -1 where no sphere is.
            gradient: ``[n, 3]`` the gradient to the centres.

        Raises:
            TypeError: ``strongest`` is not of integers, or ``gradient`` not floating.
            ValueError: ``gradient`` is of another number of spheres or not finite, or ``strongest`` names one that is
                not there.
        """
        n = len(self.used)
        check_unbatched("gradient", check_floating("gradient", gradient), (n, 3))
        check_finite("gradient", gradient)
        if check_tensor("strongest", strongest).is_floating_point() or strongest.dtype == torch.bool:
            raise TypeError(f"strongest must be of integers, got {strongest.dtype}")
        if strongest.numel() and not -1 <= int(strongest.min()) <= int(strongest.max()) < n:
            low, high = strongest.min().item(), strongest.max().item()
            raise ValueError(f"strongest must be in -1..{n - 1}, got {low} to {high}")
        self.used = self.used + torch.bincount(strongest[strongest >= 0].to(self.used), minlength=n)
        self.gradient = self.gradient + gradient.detach().to(self.gradient).norm(dim=-1)
        self.views += 1


def prune_and_split(
    spheres: Spheres,
    statistics: SphereStatistics,
    *,
    least_use: int = 1,
    count: int | None = None,
    generator: torch.Generator | None = None,
) -> Densified:
    """Remove the spheres that no pixel uses, and split those with the largest gradients until there are ``count``.

    A sphere is split into two with together its volume, ``radius 2^(-1/3)``, half a radius to either side of its centre
    in a random direction; features and opacity are copied. Where twice the kept ones are still fewer than ``count``,
    the halves are split in turn. Not differentiable: a step between optimizer steps.

    Args:
        spheres: the scene.
        statistics: of the same number of spheres.
        least_use: a sphere is kept if it was the strongest at that many pixels in all views together, >= 0.
        count: how many spheres there are to be; by default as many as there were. Where more are kept, none is split.
        generator: for the directions; required where anything is split.

    Returns:
        A :class:`Densified`: the kept spheres in their order (of a split one its first half), then the second halves.

    Raises:
        TypeError: a tensor is not floating, the dtypes differ, or a number is no integer.
        ValueError: a shape is not as said, ``statistics`` is of another number of spheres, a number is negative, no
            sphere is kept from which ``count`` could come, or there is no generator.

    Example:
        >>> scene = Spheres(torch.zeros(2, 3), torch.ones(2), torch.ones(2, 1), torch.ones(2))
        >>> statistics = SphereStatistics(torch.tensor([9, 0]), torch.tensor([1.0, 2.0]))
        >>> new = prune_and_split(scene, statistics, generator=torch.Generator().manual_seed(0))
        >>> new.source.tolist(), round(new.spheres.radii[0].item(), 3)
        ([0, 0], 0.794)

    References:
        Lassner, Zollhoefer (CVPR 2021), Pulsar, section 5 (3D reconstruction), whose published example removes spheres
        that are tiny or show the background; that no pixel uses them is said of all of these. Splitting by the gradient
        of the place: Kerbl, Kopanas, Leimkuehler, Drettakis (2023), 3D Gaussian splatting, section 5.2.
    """
    n = _checked(spheres, statistics)
    check_integer("least_use", least_use, 0)
    count = n if count is None else check_integer("count", count, 0)
    device = spheres.centers.device
    used, gradient = statistics.used.to(device), statistics.gradient.to(device)
    source = (used >= least_use).nonzero()[:, 0]
    if count > len(source):
        if not len(source):
            raise ValueError(f"count must be 0 where no sphere is used {least_use} times, got {count}")
        if generator is None:
            raise ValueError("generator must be given where spheres are split")
    scene = Spheres(*(t.detach()[source] for t in spheres))
    while len(source) < count:
        busy = torch.topk(gradient[source], min(count - len(source), len(source))).indices.sort().values
        scene = _split(scene, busy, generator)
        source = torch.cat([source, source[busy]])
    return Densified(scene, source)


def _split(scene: Spheres, busy: Tensor, generator: torch.Generator | None) -> Spheres:
    """Return the scene with the first halves of the spheres ``busy`` in their places and the second ones at the end."""
    radii = scene.radii[busy]
    device = drawing_device(generator, scene.centers)
    direction = torch.randn(len(busy), 3, generator=generator, device=device).to(scene.centers)
    offset = 0.5 * radii[:, None] * torch.nn.functional.normalize(direction, dim=-1)
    centers, radii = scene.centers[busy], radii * 2 ** (-1 / 3)
    return Spheres(
        torch.cat([scene.centers.index_copy(0, busy, centers + offset), centers - offset]),
        torch.cat([scene.radii.index_copy(0, busy, radii), radii]),
        torch.cat([scene.features, scene.features[busy]]),
        torch.cat([scene.opacity, scene.opacity[busy]]),
    )


def _checked(spheres: Spheres, statistics: SphereStatistics) -> int:
    """Return the number of spheres, if all parts are of it."""
    centers, radii, features, opacity = spheres
    check_unbatched("centers", check_floating("centers", centers), (None, 3))
    n = len(centers)
    check_unbatched("radii", check_floating("radii", radii), (n,))
    check_unbatched("features", check_floating("features", features), (n, None))
    check_unbatched("opacity", check_floating("opacity", opacity), (n,))
    check_same_dtype(centers=centers, radii=radii, features=features, opacity=opacity)
    check_unbatched("used", statistics.used, (n,))
    check_unbatched("gradient", statistics.gradient, (n,))
    return n
