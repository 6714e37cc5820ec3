"""Contracts of weighted points."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pullback import uncertainty
from tests.contracts.contract import Bad, Call, Contract

_W = torch.tensor([0.0, -1.0, -2.0])
_P = torch.tensor([[0.0, 1.0], [2.0, 0.0], [1.0, 1.0]])
_X = torch.tensor([[0.5, 0.5], [-1.0, 2.0]])


def _log_weights(generator: torch.Generator) -> list[Call]:
    return [Call((2 * torch.randn(*shape, generator=generator).double(),)) for shape in ((5,), (3, 4))]


def _clouds(generator: torch.Generator) -> list[Call]:
    calls = []
    for batch, n, m, d in (((), 4, 2, 3), ((2,), 3, 2, 1)):
        points, x = (torch.randn(*batch, count, d, generator=generator).double() for count in (n, m))
        calls.append(Call((points, torch.randn(*batch, n, generator=generator).double(), x)))
    return calls


def _by_laws(points: Tensor, log_weights: Tensor, x: Tensor, bandwidth: float = 0.7) -> Tensor:
    """Sum of weights times the density of torch's normal law, coordinate by coordinate."""
    law = torch.distributions.Normal(points[..., None, :, :], bandwidth)
    return torch.log((log_weights[..., None, :].exp() * law.log_prob(x[..., None, :]).sum(-1).exp()).sum(-1))


CONTRACTS = [
    Contract(
        "uncertainty.effective_sample_size",
        lambda log_weights, **options: uncertainty.effective_sample_size(log_weights, **options),
        _log_weights,
        reference=lambda w: w.exp().sum(-1).square() / w.exp().square().sum(-1),
        bad=[
            Bad((_W.long(),), {}, TypeError, "log_weights must be a floating tensor"),
            Bad((_W[:0],), {}, ValueError, "log_weights must have at least one particle"),
            Bad((_W,), {"dim": 1}, IndexError, "dim"),
        ],
    ),
    Contract(
        "uncertainty.kernel_density",
        lambda points, log_weights, x, bandwidth=0.7: uncertainty.kernel_density(
            points, log_weights, x, bandwidth=bandwidth
        ),
        _clouds,
        reference=_by_laws,
        scalars={"bandwidth": 0.7},
        large=(1,),
        why="far from all points the logarithm of the density is the square of the distance, which overflows",
        bad=[
            Bad((_P.long(), _W, _X), {}, TypeError, "points must be a floating tensor"),
            Bad((_P[0], _W, _X), {}, ValueError, "points must have shape"),
            Bad((_P[:0], _W[:0], _X), {}, ValueError, "points must have at least one point"),
            Bad((_P, _W[:2], _X), {}, ValueError, "log_weights must end with 3"),
            Bad((_P, _W, _X[:, :1]), {}, ValueError, "as many dimensions, got 2 and 1"),
            Bad((_P, _W, _X.double()), {}, TypeError, "dtype"),
            Bad((_P, _W.double(), _X), {}, TypeError, "dtype"),
            Bad((_P, _W, _X), {"bandwidth": torch.ones(2, 1, 2)}, ValueError, "bandwidth must broadcast"),
            Bad((_P, _W, _X), {"bandwidth": 0.0}, ValueError, "bandwidth must be > 0"),
            Bad((_P, _W, _X), {"bandwidth": math.nan}, ValueError, "bandwidth"),
        ],
    ),
]
