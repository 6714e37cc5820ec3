"""Soft discs in a periodic box: an energy whose minima are packings, and whose rest positions depend on diameters."""

from __future__ import annotations

import torch

from pullback.core.checks import check_broadcast, check_floating, check_positive, check_same_dtype, check_shape
from pullback.core.shapes import Float, Tensor
from pullback.core.transforms import can_look

__all__ = ["soft_disc_energy"]


def soft_disc_energy(
    positions: Float[Tensor, "*#batch n 2"], diameters: Float[Tensor, "*#batch n"], side: float
) -> Float[Tensor, "*batch"]:
    r"""Return the harmonic repulsion of overlapping discs, ``sum_{i<j} max(0, 1 - r_ij / s_ij)^2 / 2``.

    ``s_ij`` is the mean of two diameters and ``r_ij`` the distance of two centres in the periodic box, for diameters of
    at most half its side. Centres that coincide have the full energy and no derivative.

    Args:
        positions: ``[..., n, 2]`` centres, inside the box or periodic images.
        diameters: ``[..., n]`` > 0, of the same dtype; the leading dimensions broadcast.
        side: > 0, of the square box.

    Returns:
        ``[...]`` energies, in units of the discs' stiffness.

    Raises:
        TypeError: no floating tensors, or of different dtypes.
        ValueError: shapes that do not fit, diameters or a side that are not > 0.

    Example:
        >>> soft_disc_energy(torch.tensor([[0.1, 0.0], [3.6, 0.0]]), torch.ones(2), 4.0)  # 1/2 apart across the border
        tensor(0.1250)

    References:
        O'Hern, Silbert, Liu, Nagel (2003), Jamming at zero temperature and zero applied stress.
    """
    check_floating("positions", positions)
    check_shape("positions", positions, (None, 2))
    check_same_dtype(positions=positions, diameters=diameters)
    count = positions.shape[-2]
    check_shape("diameters", diameters, (count,))
    check_broadcast(positions=tuple(positions.shape[:-1]), diameters=tuple(diameters.shape))
    if can_look(diameters):
        check_positive("diameters", diameters)
    check_positive("side", side)
    first, second = torch.triu_indices(count, count, 1, device=positions.device)
    reach = (diameters[..., first] + diameters[..., second]) / 2
    gap = positions[..., first, :] - positions[..., second, :]
    squared = ((gap - side * (gap / side).round()) ** 2).sum(-1)
    apart = (squared > 0) & (squared < reach**2)  # the root has no derivative at 0
    distance = torch.where(apart, torch.where(apart, squared, 1.0).sqrt(), 0.0)
    return (torch.where(squared < reach**2, 1 - distance / reach, 0.0) ** 2).sum(-1) / 2
