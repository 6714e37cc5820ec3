"""Contracts of attributions, of what they cannot tell, and of asking the model instead."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor

from pullback.gradients import (
    adversarial_pair,
    hypothesis_test_curve,
    integrated_gradients,
    local_behaviour,
    shapley_values,
)
from tests.contracts.contract import Bad, Call, HigherOrder, Measurement
from tests.contracts.law import seeded


def _polynomial(x: Tensor) -> Tensor:
    """``x0^2 x1 + x1 x2 + x2^3``, whose path integrals from 0 are known."""
    a, b, c = x.unbind(-1)
    return a.square() * b + b * c + c.pow(3)


def _path_integral(x: Tensor, baseline: Tensor, until: Tensor | float = 1.0, **_: Any) -> Tensor:
    """Of the polynomial from 0: a monomial of degree d gives each variable its exponent / d."""
    a, b, c = x.unbind(-1)
    cube, pair, last = a.square() * b * until**3, b * c * until**2, (c * until) ** 3
    return torch.stack([2 / 3 * cube, cube / 3 + pair / 2, pair / 2 + last], -1)


def _folded_integral(x: Tensor, baseline: Tensor) -> Tensor:
    """Of its absolute value: on the line it is ``t^2 (A t + B)``, with the sign of ``B`` until ``t = -B / A``."""
    a, b, c = x.unbind(-1)
    first, both = b * c, a.square() * b + c.pow(3) + b * c
    turn = (-first / (both - first)).clamp(0, 1).where(first * both < 0, 1.0)
    before = _path_integral(x, baseline, turn)
    return first.sign()[:, None] * before + both.sign()[:, None] * (_path_integral(x, baseline) - before)


def _orders(x: Tensor, background: Tensor, **_: Any) -> Tensor:
    """Shapley values as the mean over all orders of what a feature adds when it turns."""
    total = torch.zeros_like(x)
    orders = list(itertools.permutations(range(x.shape[-1])))
    for order, row in itertools.product(orders, background):
        now = row.expand_as(x).clone()
        for j in order:
            before, now = now, torch.where(torch.arange(len(row)) == j, x, now)
            total[..., j] += (_polynomial(now) - _polynomial(before)) / (len(orders) * len(background))
    return total


def _rise(x: Tensor, **_: Any) -> Tensor:
    """The mean of ``(a + u)^3 - (a - u)^3`` over the same draws."""
    u = 0.5 * (1 - torch.rand(len(x), 8, generator=seeded(), dtype=x.dtype))
    return (6 * x[:, :1].square() * u + 2 * u.pow(3)).mean(-1)


_LOOKS: dict[str, Any] = {
    **dict.fromkeys(("vmap", "compile"), False),
    "large": (),
    "why": "takes the gradient of a given function or checks its shape; its sizes are those of that function",
}
_POINTS = (torch.ones(2, 3),)


def _points(g: torch.Generator, *shape: int) -> list[Call]:
    return [Call((torch.randn(2, 3, generator=g, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)))]


CONTRACTS = [
    HigherOrder(
        "gradients.integrated_gradients",
        lambda f, x, b, **words: integrated_gradients(f, x, b, **{"steps": 6, "create_graph": True, **words}).values,
        lambda g: _points(g, 3),
        given=_polynomial,
        argument="fn",
        reference=_path_integral,
        forward_mode=False,
        batched=False,
        bad=[
            Bad((*_POINTS, torch.ones(3)), {"steps": 0}, ValueError, "steps must be an integer >= 1"),
            Bad((*_POINTS, torch.ones(3)), {"tolerance": 0.0}, ValueError, "tolerance must be > 0"),
            Bad((*_POINTS, torch.ones(3)), {"max_evaluations": 0}, ValueError, "max_evaluations must be an integer"),
            Bad((*_POINTS, torch.ones(2)), {}, ValueError, r"baseline must have shape \[3\], got \(2,\)"),
            Bad((*_POINTS, torch.ones(3)), {"target": 0}, ValueError, "fn must map"),
            Bad((torch.ones(2, 3).long(), torch.ones(3)), {}, TypeError, "x must be a floating tensor"),
            Bad((*_POINTS, torch.ones(3).double()), {}, TypeError, "x and baseline must have the same dtype"),
        ],
        **_LOOKS,
    ),
    HigherOrder(
        "gradients.integrated_gradients[tolerance]",
        lambda f, x, b: integrated_gradients(f, x, b, steps=3, tolerance=1e-10).values,
        lambda g: _points(g, 3),
        given=lambda x: _polynomial(x).abs(),
        argument="fn",
        reference=_folded_integral,
        tolerance=1e-7,
        **{**_LOOKS, **dict.fromkeys(("gradcheck", "gradgradcheck", "forward_mode", "batched", "half"), False)},
    ),
    HigherOrder(
        "gradients.shapley_values",
        lambda f, x, b, **words: shapley_values(f, x, b, **words).values,
        lambda g: [Call((torch.randn(2, 3, generator=g, dtype=torch.float64),) * 2)],
        given=_polynomial,
        argument="fn",
        reference=_orders,
        batched=False,
        bad=[
            Bad((torch.ones(2, 13), torch.ones(1, 13)), {}, ValueError, "samples must be given for more than 12"),
            Bad((*_POINTS, torch.ones(1, 3)), {"samples": 0}, ValueError, "samples must be an integer >= 1"),
            Bad((*_POINTS, torch.ones(0, 3)), {}, ValueError, "background must have at least one row"),
            Bad((*_POINTS, torch.ones(3)), {}, ValueError, r"background must have shape \[b, 3\]"),
        ],
        **_LOOKS,
    ),
    HigherOrder(
        "gradients.local_behaviour",
        lambda f, x, **words: (
            local_behaviour(f, x, **{"feature": 0, "delta": 0.5, "queries": 16, "generator": seeded(), **words}).effect
        ),
        lambda g: [Call((torch.randn(4, 2, generator=g, dtype=torch.float64),))],
        given=lambda x: x[:, 0].pow(3) + x[:, 1],
        argument="fn",
        reference=_rise,
        batched=False,
        half=False,
        bad=[
            Bad((torch.ones(2, 3),), {"delta": 0.0}, ValueError, "delta must be > 0"),
            Bad((torch.ones(2, 3),), {"queries": 3}, ValueError, "queries must be even, got 3"),
            Bad((torch.ones(2, 3),), {"queries": 0}, ValueError, "queries must be an integer >= 2"),
            Bad((torch.ones(2, 3),), {"feature": 3}, ValueError, r"feature must be in 0\.\.2, got 3"),
            Bad((torch.ones(2, 3),), {"feature": torch.tensor([0, 3])}, ValueError, r"feature must be in 0\.\.2"),
            Bad((torch.ones(2, 3),), {"feature": torch.ones(2)}, TypeError, "feature must be an integer"),
            Bad((torch.ones(2, 3),), {"feature": torch.tensor(0)}, ValueError, r"feature must have shape \(2,\)"),
        ],
        **_LOOKS,
    ),
    HigherOrder(
        "gradients.adversarial_pair",
        lambda f, x, **words: _differences(f, x, **words),
        lambda g: [Call((torch.randn(3, generator=g, dtype=torch.float64),))],
        given=_polynomial,
        argument="fn",
        # the completeness of both is that of the polynomial; one rises and the other falls
        reference=lambda x: torch.stack([_polynomial(x) - _polynomial(x - 2)] * 2 + [torch.ones_like(x[0])]),
        bad=[
            Bad((torch.ones(3),), {"delta": 0.0}, ValueError, "delta must be > 0"),
            Bad((torch.ones(3),), {"delta": 2.5}, ValueError, "delta must be below the largest distance 2 of a ref"),
            Bad((torch.ones(3),), {"feature": 3}, ValueError, r"feature must be in 0\.\.2, got 3"),
            Bad((torch.ones(3),), {"value": 1.0}, ValueError, "attribution must be given with value"),
            Bad((torch.ones(3),), {"effect": 0.0}, ValueError, "effect must be > 0"),
            Bad((torch.ones(2, 3),), {}, ValueError, r"x must be one point \[n\]"),
        ],
        **{
            **_LOOKS,
            **dict.fromkeys(("gradcheck", "gradgradcheck", "forward_mode", "batched", "half"), False),
            "why": "returns models, built from numbers",
        },
    ),
    Measurement(
        "gradients.hypothesis_test_curve",
        lambda scores, truth: torch.tensor(hypothesis_test_curve(scores, truth).area, dtype=torch.float64),
        lambda g: [
            Call((torch.randint(0, 6, (20,), generator=g).double(), torch.rand(20, generator=g) < 0.4)),
            Call((torch.randn(9, generator=g, dtype=torch.float64), torch.arange(9) % 2 == 0)),
        ],
        reference=lambda scores, truth: (
            (scores[truth][:, None] > scores[~truth]).double().mean()
            + (scores[truth][:, None] == scores[~truth]).double().mean() / 2
        ),
        bad=[
            Bad((torch.ones(2), torch.ones(2).bool()), {}, ValueError, "truth must have cases of both kinds"),
            Bad((torch.ones(2), torch.tensor([1, 0])), {}, TypeError, "truth must be boolean"),
            Bad((torch.ones(2), torch.ones(3).bool()), {}, ValueError, "truth must have the shape"),
            Bad((torch.ones(2, 2), torch.ones(2, 2).bool()), {}, ValueError, r"scores must have shape \[n\]"),
            Bad((torch.tensor([1, math.nan]), torch.tensor([True, False])), {}, ValueError, "scores must be finite"),
        ],
    ),
]


def _differences(f: Any, x: Tensor, **words: Any) -> Tensor:
    reference = (x - 2).unsqueeze(0) if x.ndim == 1 else x - 2
    pair = adversarial_pair(f, x, **{"feature": 0, "reference": reference, "delta": 0.1, **words})
    changes = torch.cat([model(x.unsqueeze(0)) - model(reference) for model in pair])
    step = torch.zeros_like(x).index_fill_(0, torch.tensor([0], device=x.device), 0.05)
    up, down = (model(torch.stack([x - step, x + step])).diff() for model in pair)
    return torch.cat([changes, ((up > 0) & (down < 0)).to(x.dtype)])
