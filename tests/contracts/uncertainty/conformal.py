"""Contracts of conformal bounds and of scores of quantiles."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from pullback import uncertainty
from tests.contracts.contract import Bad, Call, Contract, Exempt

_S = torch.tensor([3.0, 1.0, 2.0, 5.0])
_NAN = torch.tensor([3.0, math.nan])
_LEVELS = torch.tensor([0.2, 0.5, 0.7])
_Q = torch.tensor([[0.0, 1.0, 2.0], [1.0, 2.0, 3.0]])
_Y = torch.tensor([1.0, 2.0])


def _scores(generator: torch.Generator) -> list[Call]:
    return [Call((torch.randn(*shape, generator=generator).double(),)) for shape in ((9,), (3, 5))]


def _weighted(generator: torch.Generator) -> list[Call]:
    calls = []
    for shape in ((9,), (3, 5)):
        scores = torch.randn(*shape, generator=generator).double()
        calls.append(Call((scores, torch.rand(*shape, generator=generator).double())))
    return calls


def _least_bound(
    scores: Tensor, weights: Tensor | None = None, level: str = "7/10", other: Fraction = Fraction(1)
) -> Tensor:
    """The least score below which enough of the weight is, in exact fractions."""
    weights = torch.ones_like(scores) if weights is None else weights
    n = scores.shape[-1]
    found = []
    for row, masses in zip(scores.reshape(-1, n).tolist(), weights.reshape(-1, n).tolist(), strict=True):
        mass = [Fraction(m) for m in masses]
        needed = Fraction(level) * (sum(mass) + other)
        covering = [s for s in row if sum(m for m, t in zip(mass, row, strict=True) if t <= s) >= needed]
        found.append(min(covering, default=math.inf))
    return torch.tensor(found, dtype=scores.dtype).reshape(scores.shape[:-1])


def _pinball(quantile: Tensor, y: Tensor, level: Tensor | None = None) -> Tensor:
    y = y if level is None else y[..., None]
    tau = torch.tensor(0.3, dtype=y.dtype) if level is None else level
    return torch.where(y >= quantile, tau * (y - quantile), (1 - tau) * (quantile - y))


def _predictions(generator: torch.Generator) -> list[Call]:
    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).double()

    return [Call((draw(5), draw(5))), Call((draw(2, 4, 3), draw(2, 4)), {"level": _LEVELS.double()})]


def _calibration(generator: torch.Generator) -> list[Call]:
    calls = []
    for batch, n, m in (((), 9, 2), ((2,), 7, 3)):
        quantiles, new = (
            torch.randn(*batch, count, 3, generator=generator).double().sort(-1).values for count in (n, m)
        )
        calls.append(Call((quantiles, torch.randn(*batch, n, generator=generator).double(), new)))
    return calls


def _widened(quantiles: Tensor, y: Tensor, new: Tensor) -> Tensor:
    """Each pair of outer quantiles by the bound of how far outcomes were outside of it."""
    outside = torch.maximum(quantiles[..., 0] - y, y - quantiles[..., 2])
    wider = _least_bound(outside, level="1/2")[..., None]
    moved = torch.stack([new[..., 0] - wider, new[..., 1], new[..., 2] + wider], -1)
    return moved.sort(-1).values


def _shifted(quantiles: Tensor, y: Tensor, new: Tensor) -> Tensor:
    levels = ("2/10", "5/10", "7/10")
    shifts = [_least_bound(y - quantiles[..., j], level=level) for j, level in enumerate(levels)]
    return (new + torch.stack(shifts, -1)[..., None, :]).sort(-1).values


def _conformalize(kind: str, *args: Any, levels: Any = _LEVELS, **options: Any) -> Tensor:
    levels = levels.to(args[0].device) if isinstance(levels, Tensor) else levels
    return uncertainty.conformalize_quantiles(*args, levels, **{"method": kind, **options}).quantiles


def _refusals() -> list[Bad]:
    return [
        Bad((_Q, _Y, _Q), {"levels": _LEVELS.flip(0)}, ValueError, "levels must increase"),
        Bad((_Q, _Y, _Q), {"levels": _LEVELS * 2}, ValueError, r"levels must be in \(0, 1\)"),
        Bad((_Q, _Y, _Q), {"levels": [0.1, 0.9]}, TypeError, "levels must be a torch.Tensor"),
        Bad((_Q, _Y, _Q), {"levels": _LEVELS[:2]}, ValueError, "quantiles must have shape"),
        Bad((_Q, _Y[:1], _Q), {}, ValueError, "quantiles must have shape"),
        Bad((_Q, _Y, _Q[:, :2]), {}, ValueError, "new must have shape"),
        Bad((_Q, _Y / 0 * 0, _Q), {}, ValueError, "y must not be NaN"),
        Bad((_Q, _Y.double(), _Q), {}, TypeError, "dtype"),
        Bad((_Q, _Y, _Q), {"method": "cqr"}, ValueError, "method must be one of"),
    ]


CONTRACTS = [
    Contract(
        "uncertainty.conformal_quantile",
        lambda scores, level=0.7, **options: uncertainty.conformal_quantile(scores, level, **options),
        _scores,
        reference=_least_bound,
        infinite=True,
        bad=[
            Bad((_S.long(),), {}, TypeError, "scores must be a floating tensor"),
            Bad((_S[0],), {}, ValueError, "scores must have a last dimension"),
            Bad((_NAN,), {}, ValueError, r"scores must not be NaN, got it at index \(1,\)"),
            Bad((_S, 1.0), {}, ValueError, r"level must be in \(0, 1\), got 1.0"),
            Bad((_S, "0.9"), {}, TypeError, "level must be a number"),
            Bad((_S, torch.tensor([0.5, 0.0])), {}, ValueError, r"level must be in \(0, 1\)"),
        ],
    ),
    Contract(
        "uncertainty.conformal_quantile[weights]",
        lambda scores, weights=_S, **options: uncertainty.conformal_quantile(
            scores, 0.6, **{"weights": weights, "test_weight": 0.25, **options}
        ),
        _weighted,
        reference=lambda scores, weights: _least_bound(scores, weights, "6/10", Fraction(1, 4)),
        infinite=True,
        bad=[
            Bad((_S, -_S), {}, ValueError, "weights must be >= 0"),
            Bad((_S, _S[:2]), {}, ValueError, "weights must have shape"),
            Bad((_S, _S.double()), {}, TypeError, "dtype"),
            Bad((_S,), {"test_weight": -1.0}, ValueError, "test_weight must be >= 0"),
            Bad((_S.expand(3, 4),), {"test_weight": torch.ones(2)}, ValueError, "shapes that broadcast"),
        ],
    ),
    Contract(
        "uncertainty.pinball_loss",
        lambda quantile, y, level=0.3, reduction="none": uncertainty.pinball_loss(
            quantile, y, level.to(y.device) if isinstance(level, Tensor) else level, reduction=reduction
        ),
        _predictions,
        reference=_pinball,
        scalars={"level": 0.4},
        large=(0, 1),
        batched=False,
        why="batched: shapes are not broadcast, so that n predictions of shape [n, 1] meet no y of shape [n]",
        bad=[
            Bad((_Y.long(), _Y), {}, TypeError, "quantile must be a floating tensor"),
            Bad((_Y, _Y.double()), {}, TypeError, "dtype"),
            Bad((_Y[:, None], _Y), {}, ValueError, r"quantile must have shape \(2,\), .*got \(2, 1\)"),
            Bad((_Y, _Y), {"level": _LEVELS}, ValueError, r"quantile must have shape \(2, 3\)"),
            Bad((_Y, _Y), {"level": 1.0}, ValueError, r"level must be in \(0, 1\)"),
            Bad((_Y, _Y), {"reduction": "max"}, ValueError, "reduction must be one of"),
        ],
    ),
    Contract(
        "uncertainty.conformalize_quantiles[interval]",
        lambda *args, **options: _conformalize("interval", *args, **options),
        _calibration,
        reference=_widened,
        infinite=True,
        bad=_refusals(),
    ),
    Contract(
        "uncertainty.conformalize_quantiles[level]",
        lambda *args, **options: _conformalize("level", *args, **options),
        _calibration,
        reference=_shifted,
        infinite=True,
        bad=_refusals(),
    ),
    Exempt(
        "uncertainty.split_conformal",
        "takes a model and data as it takes them, arrays too",
        "uncertainty/test_conformal.py",
    ),
    Exempt("uncertainty.ConformalPredictor", "a model with intervals", "uncertainty/test_conformal.py"),
    Exempt("uncertainty.Interval", "a pair of bounds", "uncertainty/test_conformal.py"),
]
