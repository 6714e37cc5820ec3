"""Contracts of regions of several coordinates and of what makes them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pullback import uncertainty
from tests.contracts.contract import Bad, Call, Contract, Exempt, Measurement, Module

_U = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
_Q = torch.zeros(3, 4)
_Y = torch.tensor([[0.0, 1.0], [2.0, 0.0], [-1.0, 3.0]])
_TESTED = "uncertainty/test_regions.py"


def _quantiles(generator: torch.Generator) -> list[Call]:
    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).double()

    return [Call((draw(3, 4), draw(3, 2))), Call((draw(2, 3, 4), draw(2, 3, 2)))]


def _loss(quantiles: Any, y: Any, level: Any = 0.1, directions: Any = _U) -> Tensor:
    if isinstance(directions, Tensor) and isinstance(y, Tensor) and y.is_floating_point():
        directions = directions.to(y)
    return uncertainty.directional_quantile_loss(quantiles, y, directions, level=level)


def _by_hand(quantiles: Tensor, y: Tensor) -> Tensor:
    total = torch.zeros((), dtype=y.dtype)
    for j, u in enumerate(_U.double()):
        gap = (y * u).sum(-1) - quantiles[..., j]
        total = total + torch.where(gap > 0, 0.1 * gap, -0.9 * gap).mean() / len(_U)
    return total


def _inputs(generator: torch.Generator) -> list[Call]:
    return [Call((torch.randn(4, 3, generator=generator).double(),))]


def _pairs(generator: torch.Generator) -> list[Call]:
    return [Call((torch.randn(4, 2, generator=generator).double(), torch.randn(4, 3, generator=generator).double()))]


def _coded(module: Any, y: Any, x: Any) -> tuple[Tensor, ...]:
    law = module.encode(y, x)
    return law.mean, law.scale, module.decode(law.mean, x)


CONTRACTS = [
    Contract(
        "uncertainty.directional_quantile_loss",
        _loss,
        _quantiles,
        reference=_by_hand,
        tolerance=1e-6,
        batched=False,
        large=(0, 1),
        large_limit=1e4,
        why="batched: a mean over all; large: a mean over many large numbers",
        bad=[
            Bad((_Q, _Y), {"directions": 2 * _U}, ValueError, "directions must be unit vectors"),
            Bad((_Q, _Y), {"directions": _U[0]}, ValueError, r"directions must have shape \[k, d\]"),
            Bad((_Q.long(), _Y), {}, TypeError, "quantiles must be a floating tensor"),
            Bad((_Q, _Y[:, :1]), {}, ValueError, r"y must have shape \[\.\.\., 2\]"),
            Bad((_Q[:, :3], _Y), {}, ValueError, "quantiles must have shape"),
            Bad((_Q, _Y), {"level": 0.0}, ValueError, r"level must be in \(0, 1\)"),
        ],
    ),
    Module(
        "uncertainty.DirectionalQuantiles",
        lambda module, x: module(x, _U.to(x)),
        _inputs,
        build=lambda generator: uncertainty.DirectionalQuantiles(3, 2, hidden=4, generator=generator),
        large_limit=1e4,
        why="large: products of large numbers overflow",
        bad=[Bad((torch.zeros(4, 2),), {}, ValueError, r"x must have shape \[\.\.\., 3\]")],
    ),
    Module(
        "uncertainty.ConditionalVAE",
        _coded,
        _pairs,
        build=lambda generator: uncertainty.ConditionalVAE(3, 2, latent=2, hidden=4, generator=generator),
        batched=False,
        large=(0, 1),
        large_limit=1e4,
        why="batched: an outcome has its own input; large: products of large numbers overflow",
        bad=[
            Bad((torch.zeros(4, 3), torch.zeros(4, 3)), {}, ValueError, r"y must have shape \[\.\.\., 2\]"),
            Bad((torch.zeros(4, 2), torch.zeros(4, 2)), {}, ValueError, r"x must have shape \[\.\.\., 3\]"),
            Bad((torch.zeros(4, 2), torch.zeros(3, 3)), {}, ValueError, "batches that broadcast"),
        ],
    ),
    Measurement(
        "uncertainty.region_area",
        lambda low, high, **options: uncertainty.region_area(
            uncertainty.BoxRegion(torch.zeros(2).to(low.device, low.dtype), torch.ones(2).to(low.device, low.dtype)),
            low,
            high,
            **{"grid": 12, **options},
        ),
        lambda generator: [Call((-torch.ones(2).double(), 2 * torch.ones(2).double()))],
        reference=lambda low, high: torch.ones((), dtype=low.dtype),
        bad=[
            Bad((torch.zeros(2), torch.zeros(2)), {}, ValueError, "high - low must be > 0"),
            Bad((torch.zeros(2), torch.ones(1)), {}, ValueError, "low and high must have one shape"),
            Bad((torch.zeros(2), torch.ones(2)), {"grid": 0}, ValueError, "grid must be an integer >= 1"),
        ],
    ),
    Exempt("uncertainty.unit_directions", "makes vectors of two integers", _TESTED),
    Exempt("uncertainty.conformalize_region", "takes a model", _TESTED),
    Exempt("uncertainty.ConformalRegion", "a model with regions", _TESTED),
    Exempt("uncertainty.Region", "a protocol", _TESTED),
    Exempt("uncertainty.BoxRegion", "a region", _TESTED),
    Exempt("uncertainty.EllipsoidRegion", "a region", _TESTED),
    Exempt("uncertainty.HalfspaceRegion", "a region", _TESTED),
    Exempt("uncertainty.PointCloudRegion", "a region", _TESTED),
]
