"""Regions that cover: growth by a conformal quantile, and what they cost in area."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from pullback.core.checks import check_callable, check_floating, check_integer, check_positive, check_same_dtype
from pullback.core.shapes import Float, Tensor
from pullback.core.transforms import can_look
from pullback.uncertainty.conformal import conformal_quantile
from pullback.uncertainty.levels import check_level
from pullback.uncertainty.regions import Region

__all__ = ["ConformalRegion", "conformalize_region", "region_area"]


@dataclass(frozen=True)
class ConformalRegion:
    """Regions of a model that cover, by :func:`conformalize_region`.

    Attributes:
        predict: from inputs to regions.
        growth: what was added to each score; infinite where calibration data was too scarce: regions are everything.
        level: of coverage.
        raw_coverage: share of the calibration data in the regions before.
    """

    predict: Callable[[Any], Region]
    growth: float
    level: float
    raw_coverage: float

    @property
    def bounded(self) -> bool:
        """Whether there was data enough for the level."""
        return math.isfinite(self.growth)

    def region(self, x: Any) -> Region:
        """Return the regions of inputs."""
        return self.predict(x).grown(self.growth)


def conformalize_region(
    predict: Callable[[Any], Region], x: Any, y: Float[Tensor, "n d"], *, level: float = 0.9
) -> ConformalRegion:
    r"""Return a model's regions, grown or shrunk until they cover at least a share ``level`` of what comes.

    .. math:: R'(x) = \{y : s(x, y) \le \hat q\}, \qquad \hat q = \text{conformal\_quantile}\big(s(x_i, y_i)\big)

    Args:
        predict: from inputs to a :class:`Region` of a batch ``[n]``.
        x: of the calibration data, on which nothing was trained; ``predict`` takes it.
        y: ``[n, d]`` what came.
        level: probability of coverage in (0, 1), for every law of the data.

    Returns:
        ``.region(x)``, ``.growth``, the coverage before.

    Raises:
        TypeError: ``predict`` is not callable or returns no region.
        ValueError: a NaN, a level out of range, regions of another batch.

    Example:
        >>> from pullback.uncertainty import BoxRegion
        >>> def predict(x):
        ...     return BoxRegion(x - 1, x + 1)
        >>> x, y = torch.zeros(9, 1), torch.arange(9.0)[:, None]
        >>> calibrated = conformalize_region(predict, x, y, level=0.8)
        >>> calibrated.growth, calibrated.region(torch.zeros(1, 1)).upper
        (6.0, tensor([[7.]]))

    References:
        Feldman, Bates, Romano (2023), Calibrated multiple-output quantile regression with representation learning,
        algorithm 2 and theorem 1.
    """
    check_callable("predict", predict)
    check_level("level", level, ndim=0)
    if check_floating("y", y).ndim != 2:
        raise ValueError(f"y must have shape [n, d], got {tuple(y.shape)}")
    with torch.no_grad():
        region = predict(x)
        if not isinstance(region, Region):
            raise TypeError(f"predict must return a region with score and grown, got {type(region).__name__}")
        try:
            scores = region.score(y[:, None, :]).squeeze(-1)
        except RuntimeError as error:
            raise ValueError(f"predict must return {len(y)} regions, those of x: {error}") from None
    if tuple(scores.shape) != (len(y),):
        raise ValueError(f"predict must return {len(y)} regions, those of x, got scores of shape {tuple(scores.shape)}")
    growth = float(conformal_quantile(scores, float(level)))
    return ConformalRegion(predict, growth, float(level), float((scores <= 0).float().mean()))


def region_area(
    region: Region, low: Float[Tensor, "d"], high: Float[Tensor, "d"], *, grid: int = 50
) -> Float[Tensor, "*batch"]:
    r"""Return the area (volume) of regions within a box: the share of a grid whose middles are in, times it.

    Args:
        region: of a batch.
        low: ``[d]`` of the box.
        high: ``[d]``, greater.
        grid: cells along each coordinate, ``grid ** d`` in all.

    Returns:
        ``[*batch]`` in the product of the coordinates' units.

    Raises:
        TypeError: no floating tensors, or of different dtypes; the region has no score.
        ValueError: shapes differ, the box is empty, ``grid`` is below 1.

    Example:
        >>> from pullback.uncertainty import EllipsoidRegion
        >>> disc = EllipsoidRegion(torch.zeros(2), torch.eye(2), 1.0)
        >>> round(float(region_area(disc, -torch.ones(2), torch.ones(2), grid=200)), 2)
        3.14
    """
    check_same_dtype(low=check_floating("low", low), high=check_floating("high", high))
    check_integer("grid", grid, 1)
    if low.ndim != 1 or low.shape != high.shape or not len(low):
        raise ValueError(f"low and high must have one shape [d], got {tuple(low.shape)}, {tuple(high.shape)}")
    if not isinstance(region, Region):
        raise TypeError(f"region must have score and grown, got {type(region).__name__}")
    if can_look(low):
        check_positive("high - low", (high - low).detach())
    middles = (torch.arange(grid, dtype=low.dtype, device=low.device) + 0.5) / grid
    cells = torch.cartesian_prod(*[middles] * len(low)).reshape(-1, len(low)) * (high - low) + low
    share = torch.stack([(region.score(part) <= 0).sum(-1) for part in cells.split(_CELLS)]).sum(0) / len(cells)
    return share.to(low.dtype) * (high - low).prod()


_CELLS = 256
"""Of a grid that are looked at together: what bounds the memory."""
