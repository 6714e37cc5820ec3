"""Contracts of angles: against the arc cosine in double precision, away from where it has no digits."""

from __future__ import annotations

import torch
from torch import Tensor

from pullback import geometry
from tests.contracts.contract import Bad, Call, Contract


def _pairs(g: torch.Generator) -> list[Call]:
    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    return [Call((randn(2, 4, 3), randn(4, 3))), Call((randn(5), 3 * randn(5)))]


def _by_cosine(u: Tensor, v: Tensor) -> Tensor:
    return torch.arccos((u * v).sum(-1) / (u.square().sum(-1) * v.square().sum(-1)).sqrt())


CONTRACTS = [
    Contract(
        "geometry.angular_distance",
        geometry.angular_distance,
        _pairs,
        reference=_by_cosine,
        large=(0, 1),
        bad=[
            Bad((torch.ones(3), torch.ones(2)), {}, ValueError, "u and v must have"),
            Bad((torch.ones(2, 3), torch.zeros(3)), {}, ValueError, "v must not be of length 0"),
            Bad((torch.tensor([torch.nan, 1.0]), torch.ones(2)), {}, ValueError, "u must be finite"),
            Bad((torch.ones(3), torch.ones(3).double()), {}, TypeError, "u and v must have the same dtype"),
            Bad((torch.ones(3).long(), torch.ones(3)), {}, TypeError, "u must be a floating tensor"),
            Bad((torch.ones(()), torch.ones(3)), {}, ValueError, r"u must have shape \(..., d\)"),
        ],
    ),
]
