"""Basins of a potential: where they are, when a trajectory comes to one, and what one weighs against another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pullback.core.checks import (
    check_finite,
    check_floating,
    check_integer,
    check_positive,
    check_same_dtype,
    check_shape,
    check_tensor,
)
from pullback.core.shapes import Bool, Float, Int

__all__ = ["Approach", "Basin", "FreeEnergy", "approach", "basin", "free_energy"]


class Basin(NamedTuple):
    """A well of a potential as a normal distribution.

    Attributes:
        mean: ``[d]``.
        precision: ``[d, d]``, the inverse of the covariance.
    """

    mean: Float[Tensor, "d"]
    precision: Float[Tensor, "d d"]

    def distance(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
        """Return the distance of Mahalanobis, in standard deviations."""
        off = self._off(x)
        return ((off @ self.precision) * off).sum(-1).clamp(min=0).sqrt()

    def inside(self, x: Float[Tensor, "*batch d"], p: float = 0.05) -> Bool[Tensor, "*batch"]:
        """Return which points are among the ``1 - p`` of the distribution that are nearest to its mean.

        The square of the distance has a chi-squared distribution of d degrees: a point is inside where a larger one has
        a probability of at least ``p``.
        """
        if not 0 < p < 1:
            raise ValueError(f"p must be in (0, 1), got {p}")
        half = self.distance(x).square() / 2
        return torch.special.gammaincc(torch.full_like(half, len(self.mean) / 2), half) >= p

    def _off(self, x: Tensor) -> Tensor:
        check_same_dtype(x=check_floating("x", x), mean=self.mean)
        check_shape("x", x, (len(self.mean),))
        return x - self.mean


class Approach(NamedTuple):
    """The frame of each trajectory that is nearest to a basin.

    Attributes:
        frame: ``[*batch]`` its number.
        distance: ``[*batch]`` Euclidean, to the mean.
        loss: ``[*batch]`` square of the distance, 0 where the trajectory comes inside the basin.
        cotangent: ``[*batch, d]`` derivative of the loss in that frame.
        arrived: ``[*batch]`` whether it comes inside.
    """

    frame: Int[Tensor, "*batch"]
    distance: Float[Tensor, "*batch"]
    loss: Float[Tensor, "*batch"]
    cotangent: Float[Tensor, "*batch d"]
    arrived: Bool[Tensor, "*batch"]


class FreeEnergy(NamedTuple):
    """A free energy on boxes, from weighted samples.

    Attributes:
        values: one a box, ``-T log`` of its probability; infinite where no sample fell.
        effective: number of samples of equal weights that would be as good, by the sum of weights squared.
    """

    values: Float[Tensor, "*boxes"]
    effective: Float[Tensor, ""]


def basin(points: Float[Tensor, "n d"]) -> Basin:
    """Return mean and inverse covariance of the points of a trajectory that stays in a well.

    Args:
        points: ``[n, d]``, n > d of them that span the space.

    Returns:
        :class:`Basin`, whose ``inside(x, p)`` tells which points belong to it.

    Raises:
        TypeError: ``points`` is not floating.
        ValueError: a shape is another, a number is not finite, or the points lie in a plane.

    Example:
        >>> well = basin(torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]]))
        >>> well.distance(torch.tensor([[2.0, 0.0]])).tolist(), well.inside(torch.tensor([[9.0, 0.0]])).tolist()
        ([1.7320507764816284], [False])

    References:
        Sipka, Dietschreit, Grajciar, Gomez-Bombarelli (2023), Differentiable simulations for enhanced sampling of rare
        events, arXiv 2301.03480, section 3 (regions of p = 0.05).
    """
    if check_floating("points", points).ndim != 2 or points.shape[0] <= points.shape[1] or not points.shape[1]:
        raise ValueError(f"points must have shape (n, d) with n > d >= 1, got {tuple(points.shape)}")
    check_finite("points", points)
    wide = points.detach().double()
    mean = wide.mean(0)
    off = wide - mean
    spread = off.square().mean(0).sqrt()
    if not bool((spread > 0).all()):
        raise ValueError(f"points must differ in every coordinate, got equal ones in {int(spread.argmin())}")
    scaled = off / spread  # the condition of the correlations does not depend on units
    values, axes = torch.linalg.eigh(scaled.mT @ scaled / (len(points) - 1))
    if float(values[0]) <= 1e-10:
        raise ValueError(f"points must span the space, the least eigenvalue of their correlations is {values[0]:.1e}")
    precision = (axes / values) @ axes.mT / spread / spread[:, None]
    return Basin(mean.to(points), precision.to(points))


def approach(
    positions: Float[Tensor, "frames *batch d"],
    goals: Sequence[Basin],
    which: Int[Tensor, "*batch"],
    *,
    first: int | Int[Tensor, "*batch"] = 0,
    p: float = 0.05,
) -> Approach:
    r"""Find where trajectories come nearest to the basins that they shall reach.

    Each trajectory has a goal; from frame ``first`` on, its nearest frame N is the one of least
    :math:`|x_N-\mu|^2`, the least being 0 inside the basin (the first such frame counts). Twice
    :math:`x_N-\mu` is the cotangent that :func:`pullback.dynamics.trajectory_adjoint` takes back.

    Args:
        positions: ``[frames, *batch, d]``.
        goals: the basins, two at least, none with the mean of another inside.
        which: ``[*batch]`` the number of each trajectory's goal.
        first: the earliest frame, a number or ``[*batch]``, below the number of frames: what is followed back for k
            steps begins at k + 1 or later.
        p: of :meth:`Basin.inside`.

    Returns:
        :class:`Approach`.

    Raises:
        TypeError: ``positions`` is not floating, or ``which`` or ``first`` not of integers.
        ValueError: shapes do not fit, a number is out of range, or two basins overlap.

    Example:
        >>> left, right = (basin(m + torch.tensor([[-0.1], [0.0], [0.1]])) for m in (0.0, 2.0))
        >>> path = torch.tensor([0.0, 0.5, 1.5, 1.0])[:, None, None]
        >>> found = approach(path, (left, right), torch.tensor([1]))
        >>> found.frame.item(), found.loss.item(), found.cotangent.item()
        (2, 0.25, -1.0)

    References:
        Sipka, Dietschreit, Grajciar, Gomez-Bombarelli (2023), arXiv 2301.03480, section 3.
    """
    if check_floating("positions", positions).ndim < 3:
        raise ValueError(f"positions must have shape (frames, *batch, d), got {tuple(positions.shape)}")
    if len(goals) < 2:
        raise ValueError(f"goals must hold two basins at least, got {len(goals)}")
    for number, goal in enumerate(goals):
        for other in goals[:number]:
            apart = min(float(goal.distance(other.mean)), float(other.distance(goal.mean)))
            if bool(goal.inside(other.mean, p)) or bool(other.inside(goal.mean, p)):
                raise ValueError(f"goals must be apart, got two whose means are {apart:.2f} standard deviations away")
    frames, *batch, d = positions.shape
    for name, given in (("which", which), ("first", torch.as_tensor(first))):
        if check_tensor(name, given).is_floating_point() or given.is_complex() or given.dtype == torch.bool:
            raise TypeError(f"{name} must hold integers, got {given.dtype}")
    if which.shape != tuple(batch):
        raise ValueError(f"which must have shape {tuple(batch)}, got {tuple(which.shape)}")
    if which.numel() and not 0 <= int(which.min()) <= int(which.max()) < len(goals):
        raise ValueError(f"which must be in 0..{len(goals) - 1}, got {int(which.min())} to {int(which.max())}")
    begin = torch.as_tensor(first, device=positions.device).expand(batch)
    if begin.numel() and not 0 <= int(begin.min()) <= int(begin.max()) < frames:
        raise ValueError(f"first must be in 0..{frames - 1}, got {int(begin.min())} to {int(begin.max())}")
    positions = positions.detach()
    means = torch.stack([goal.mean for goal in goals])[which]
    square = (positions - means).square().sum(-1)
    within = torch.stack([goal.inside(positions, p) for goal in goals])
    within = within.gather(0, which.expand(1, frames, *batch))[0]
    frames_so_far = torch.arange(frames, device=positions.device).reshape(-1, *[1] * len(batch))
    early = frames_so_far < begin
    near = torch.where(within, 0.0, square).masked_fill(early, torch.inf)
    frame = near.argmin(0)
    at = positions.gather(0, frame[None, ..., None].expand(1, *batch, d))[0]
    loss, arrived = near.amin(0), (within & ~early).any(0)
    closest = square.masked_fill(early, torch.inf).amin(0).sqrt()
    cotangent = torch.where(arrived[..., None], 0.0, 2 * (at - means))
    return Approach(frame, closest, loss, cotangent, arrived)


def free_energy(
    samples: Float[Tensor, "n d"],
    bias: Float[Tensor, "n"],
    *,
    temperature: float,
    bins: Sequence[Float[Tensor, "_"]],
) -> FreeEnergy:
    r"""Return the free energy that samples of a biased simulation have without the bias.

    Samples of :math:`e^{-(U+B)/T}` weigh :math:`w_i\propto e^{B(x_i)/T}`, and with the share of a box
    :math:`F=-T\log\sum_{i\in box}w_i/\sum_iw_i`, over all samples in some box.

    Args:
        samples: ``[n, d]`` of the variables of the boxes, in equilibrium.
        bias: ``[n]`` B at each sample, any constant added.
        temperature: T > 0, in units of the energy.
        bins: the edges of the boxes along each variable, ``d`` ascending vectors of at least two.

    Returns:
        :class:`FreeEnergy`, values of shape ``[edges - 1, ...]``.

    Raises:
        TypeError: tensors that are not floating, or of two dtypes.
        ValueError: shapes that do not fit, an option out of range, or no sample in any box.

    Example:
        >>> x = torch.tensor([[0.5], [0.5], [1.5]])
        >>> found = free_energy(x, torch.zeros(3), temperature=1.0, bins=[torch.tensor([0.0, 1.0, 2.0])])
        >>> [round(f, 3) for f in found.values.tolist()]
        [0.405, 1.099]

    References:
        Torrie, Valleau (1977), Nonphysical sampling distributions in Monte Carlo free-energy estimation: umbrella
        sampling.
    """
    check_same_dtype(samples=check_floating("samples", samples), bias=check_floating("bias", bias))
    if samples.ndim != 2 or not len(samples) or bias.shape != samples.shape[:1]:
        raise ValueError(
            f"samples and bias must have shapes (n, d) and (n,), got {tuple(samples.shape)} and {tuple(bias.shape)}"
        )
    check_positive("temperature", temperature)
    if len(bins) != samples.shape[1]:
        raise ValueError(f"bins must have the edges of {samples.shape[1]} variables, got {len(bins)}")
    index, sizes = torch.zeros(len(samples), dtype=torch.int64, device=samples.device), list[int]()
    good = torch.isfinite(bias) & torch.isfinite(samples).all(-1)
    if not bool(good.all()):
        raise ValueError("samples and bias must be finite")
    for number, edges in enumerate(bins):
        if check_floating("bins", edges).ndim != 1 or len(edges) < 2 or not bool((edges.diff() > 0).all()):
            raise ValueError(f"bins must hold ascending edges, two at least, got {tuple(edges.shape)} for {number}")
        check_integer("edges", len(edges), 2)
        place = torch.searchsorted(edges.to(samples).contiguous(), samples[:, number].contiguous(), right=True) - 1
        good = good & (place >= 0) & (place < len(edges) - 1)
        index, sizes = index * (len(edges) - 1) + place.clamp(0, len(edges) - 2), [*sizes, len(edges) - 1]
    if not bool(good.any()):
        raise ValueError(f"bins must hold samples, got none of {len(samples)} in them")
    log_weights = bias[good].double() / temperature
    weights = (log_weights - log_weights.max()).exp()
    boxes = weights.new_zeros(torch.Size(sizes).numel()).index_add(0, index[good], weights)
    share = boxes / weights.sum()
    effective = weights.sum().square() / weights.square().sum()
    return FreeEnergy((-temperature * share.log()).reshape(sizes).to(samples), effective.to(samples))
