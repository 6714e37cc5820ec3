"""Contracts of what looks at a loss around a point: derivatives along features, slices."""

from __future__ import annotations

from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor

from pullback.gradients import (
    derivative_profile,
    loss_slice,
    permutation_importance,
    rank_correlation,
    sensitivity_ranking,
)
from tests.contracts.contract import Bad, Call, HigherOrder, Measurement
from tests.contracts.law import seeded

_MEASURED: dict[str, Any] = {
    **dict.fromkeys(("batched", "gradcheck", "gradgradcheck", "forward_mode", "vmap", "compile", "half"), False),
    "large": (),
    "why": "a measurement: it is not differentiated",
}
_TWO = torch.ones(2, 3)


def _matrix(g: torch.Generator) -> list[Call]:
    return [Call((torch.randn(4, 3, generator=g, dtype=torch.float64),))]


def _cubic(x: Tensor) -> Tensor:
    """``sum_j (j + 1) x_j^3 + x_0 x_1``: mixed derivatives do not show on the diagonal."""
    factors = torch.arange(1, x.shape[-1] + 1, dtype=x.dtype, device=x.device)
    return (factors * x**3).sum(-1) + x[..., 0] * x[..., -1]


def _diagonal(x: Tensor) -> tuple[Tensor, Tensor]:
    factors = torch.arange(1, 4, dtype=x.dtype)
    first = 3 * factors * x**2 + torch.stack([x[:, 2], 0 * x[:, 1], x[:, 0]], 1)
    parts = torch.stack([first, 6 * factors * x, (6 * factors).expand_as(x)])
    return parts.mean(1), parts.std(1, correction=0)


def _ranked(profiles: Tensor) -> tuple[Tensor, ...]:
    mean, spread = profiles.mean(0), profiles.std(0)
    return mean.abs(), spread, torch.tensor(sorted(range(mean.numel()), key=lambda j: -abs(float(mean[j])))), mean


def _tied(g: torch.Generator) -> list[Call]:
    x, y = torch.randn(9, 3, generator=g, dtype=torch.float64), torch.randn(9, generator=g, dtype=torch.float64)
    return [Call((x, y)), Call(((2 * x).round(), (2 * y).round()))]


def _peer(x: Tensor, y: Tensor) -> Tensor:
    return torch.tensor([spearmanr(column, y).statistic for column in x.T])


def _permuted(x: Tensor) -> Tensor:
    draws = seeded()
    columns = [x[torch.randperm(len(x), generator=draws), j] for j in range(2)]
    plain = (x[:, 0] * x[:, 1]).mean()
    return torch.stack([(columns[0] * x[:, 1]).mean() - plain, (x[:, 0] * columns[1]).mean() - plain, 0 * plain])


CONTRACTS = [
    HigherOrder(
        "gradients.derivative_profile",
        derivative_profile,
        _matrix,
        given=_cubic,
        argument="loss",
        outputs=lambda profile: (profile.values, profile.spread),
        reference=_diagonal,
        bad=[
            Bad((_TWO,), {"order": 0}, ValueError, r"order must be in 1\.\.3, got 0"),
            Bad((_TWO,), {"order": 4}, ValueError, r"order must be in 1\.\.3, got 4"),
            Bad((_TWO,), {"wrt": "output"}, ValueError, "wrt must be"),
            Bad((_TWO,), {"chunk": 0}, ValueError, "chunk must be an integer >= 1"),
            Bad((_TWO.long(),), {}, TypeError, "inputs must be a floating tensor"),
            Bad((torch.ones(3),), {}, ValueError, r"inputs must have shape \(rows, features\)"),
            Bad((torch.ones(0, 3),), {}, ValueError, "inputs must have .* entries"),
            Bad((_TWO / 0,), {}, ValueError, "inputs must be finite"),
        ],
        **_MEASURED,
    ),
    HigherOrder(
        "gradients.derivative_profile[in chunks]",
        lambda f, x: derivative_profile(f, x, chunk=2),
        _matrix,
        given=_cubic,
        argument="loss",
        outputs=lambda profile: (profile.values, profile.spread),
        reference=_diagonal,
        **_MEASURED,
    ),
    Measurement(
        "gradients.sensitivity_ranking",
        sensitivity_ranking,
        _matrix,
        outputs=lambda r: (r.score, r.spread, r.order, r.signed),
        reference=_ranked,
        infinite=True,
        bad=[
            Bad((_TWO,), {"method": "sum"}, ValueError, "method must be"),
            Bad((torch.ones(3),), {}, ValueError, r"profiles must have shape \(nets, features\)"),
            Bad((_TWO[:1],), {"method": "ratio"}, ValueError, "at least 2 networks"),
            Bad((_TWO,), {"slopes": torch.ones(2, 2)}, ValueError, r"slopes must have shape \(2, 3\), got \(2, 2\)"),
            Bad((_TWO.log() / 0,), {}, ValueError, "profiles must be finite"),
        ],
    ),
    Measurement(
        "gradients.rank_correlation",
        rank_correlation,
        _tied,
        reference=_peer,
        bad=[
            Bad((torch.ones(3), torch.ones(3)), {}, ValueError, r"columns must have shape \(n, d\) with n >= 2"),
            Bad((torch.ones(1, 3), torch.ones(1)), {}, ValueError, "n >= 2, got"),
            Bad((_TWO, torch.ones(3)), {}, ValueError, r"target must have the 2 rows of columns, got shape \(3,\)"),
            Bad((_TWO, 3), {}, TypeError, "target must be a torch.Tensor"),
            Bad((_TWO / 0, torch.ones(2)), {}, ValueError, "columns must be finite"),
        ],
    ),
    HigherOrder(
        "gradients.permutation_importance",
        lambda f, x, **words: permutation_importance(f, x, generator=seeded(), **words),
        _matrix,
        given=lambda x: x[..., 0] * x[..., 1],
        argument="loss",
        reference=_permuted,
        bad=[
            Bad((torch.ones(3),), {}, ValueError, r"inputs must have shape \(rows, features\)"),
            Bad((torch.ones(0, 3),), {}, ValueError, "with rows, got"),
            Bad((_TWO,), {"repeats": 0}, ValueError, "repeats must be an integer >= 1"),
        ],
        **_MEASURED,
    ),
    HigherOrder(
        "gradients.loss_slice",
        lambda f, x, **words: loss_slice(f, x, **{"directions": [torch.ones_like(x)], "steps": 3, **words}).values,
        _matrix,
        given=lambda x: x.square().sum(),
        argument="loss",
        reference=lambda x: torch.stack([(x + a).square().sum() for a in (-1.0, 0.0, 1.0)]),
        bad=[
            Bad((_TWO,), {"directions": []}, ValueError, "directions must be one or two, got 0"),
            Bad((_TWO,), {"directions": [_TWO] * 3}, ValueError, "directions must be one or two, got 3"),
            Bad((_TWO,), {"directions": [torch.ones(3)]}, ValueError, r"directions\[0\] must be shaped like the point"),
            Bad((_TWO,), {"extent": 0.0}, ValueError, "extent must be > 0"),
            Bad((_TWO,), {"steps": 1}, ValueError, "steps must be an integer >= 2"),
            Bad((_TWO.long(),), {}, TypeError, "point must be a floating tensor"),
        ],
        **_MEASURED,
    ),
]
