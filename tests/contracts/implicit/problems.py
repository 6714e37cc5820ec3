"""Contracts of the problems on which implicit derivatives are tried."""

from __future__ import annotations

import torch
from torch import Tensor

from pullback import implicit
from tests.contracts.contract import Bad, Call, Contract, Exempt


def _discs(generator: torch.Generator) -> list[Call]:
    places = 3 * torch.rand(6, 2, generator=generator, dtype=torch.float64)
    return [Call((places, 0.6 + 0.6 * torch.rand(6, generator=generator, dtype=torch.float64)))]


def _all_images(positions: Tensor, diameters: Tensor) -> Tensor:
    """Sum over all pairs and all images of the box of side 3."""
    shifts = 3 * torch.cartesian_prod(*[torch.arange(-2.0, 3.0, dtype=torch.float64)] * 2)
    gap = positions[:, None, None] - positions[:, None] + shifts
    reach = (diameters[:, None] + diameters)[..., None] / 2
    overlap = (1 - torch.linalg.vector_norm(gap, dim=-1) / reach).clamp(min=0) ** 2
    return overlap.sum(-1).triu(1).sum() / 2


_PLACES = torch.zeros(3, 2)
CONTRACTS = [
    Contract(
        "implicit.soft_disc_energy",
        lambda positions, diameters, side=3.0: implicit.soft_disc_energy(positions, diameters, side),
        _discs,
        reference=_all_images,
        tolerance=1e-12,
        large=(),
        half_tolerance=6e-2,
        bad=[
            Bad((_PLACES.long(), torch.ones(3), 1.0), {}, TypeError, "positions must be a floating tensor"),
            Bad((_PLACES, torch.ones(3).double(), 1.0), {}, TypeError, "diameters"),
            Bad((_PLACES, torch.ones(1), 1.0), {}, ValueError, "diameters must have shape"),
            Bad((_PLACES.expand(2, 3, 2), torch.ones(4, 3), 1.0), {}, ValueError, "positions"),
            Bad((_PLACES, torch.ones(3), 0.0), {}, ValueError, "side must be > 0"),
            Bad((_PLACES, torch.tensor([1.0, 0.0, 1.0]), 1.0), {}, ValueError, "diameters must be > 0 everywhere"),
        ],
        why="large: far from the box the place inside of it is lost to rounding",
    ),
    Exempt("implicit.MulticlassSVM", "a problem with methods", "implicit/test_problems.py"),
]
