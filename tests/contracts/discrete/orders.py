"""Contracts of laws of orders: against the product of choices, item by item."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pullback import discrete
from tests.contracts.contract import Bad, Call, Contract, Edges


def _rsample(scores: Tensor, *, temperature: float | Tensor = 1.0) -> Tensor:
    law = discrete.PlackettLuce(scores)
    return law.rsample(temperature=temperature, hard=False, generator=torch.Generator().manual_seed(0))


_ORDER = torch.tensor([[2, 0, 1, 3], [3, 2, 1, 0]])
_FIRST = torch.tensor([[2, 0, -1], [3, 2, 1]])


def _log_prob(scores: Tensor, order: Tensor) -> Tensor:
    return discrete.PlackettLuce(scores).log_prob(order)


def _item_by_item(scores: Tensor, order: Tensor) -> Tensor:
    rows = []
    for s, items in zip(scores.tolist(), order.tolist(), strict=True):
        left, total = set(range(len(s))), 0.0
        for item in (item for item in items if item >= 0):
            total += s[item] - math.log(sum(math.exp(s[k]) for k in left))
            left.remove(item)
        rows.append(total)
    return torch.tensor(rows, dtype=torch.float64)


CONTRACTS = [
    Contract(
        "discrete.PlackettLuce[log_prob]",
        _log_prob,
        lambda g: [Call((torch.randn(2, 4, generator=g, dtype=torch.float64), order)) for order in (_ORDER, _FIRST)],
        reference=_item_by_item,
        bad=[
            Bad((torch.zeros(0), _ORDER), {}, ValueError, "scores must have at least one item"),
            Bad((torch.tensor([0.0, torch.nan]), _ORDER), {}, ValueError, "scores must be finite"),
            Bad((torch.zeros(4, dtype=torch.int64), _ORDER), {}, TypeError, "scores must be a floating tensor"),
            Bad(
                (torch.zeros(4), torch.tensor([0, 1, 1, 3])),
                {},
                ValueError,
                r"order must have different items of 0\.\.3",
            ),
            Bad(
                (torch.zeros(4), torch.tensor([0, -1, 1])), {}, ValueError, "order must have different items .* -1 only"
            ),
            Bad((torch.zeros(4), torch.tensor([4, 0])), {}, ValueError, r"order must have different items of 0\.\.3"),
            Bad((torch.zeros(2), torch.tensor([0, 1, 2])), {}, ValueError, r"order must have shape .* k in 1\.\.2"),
            Bad((torch.zeros(2), torch.tensor([0.0, 1.0])), {}, TypeError, "order must hold integers"),
        ],
    ),
    Contract(
        "discrete.PlackettLuce[precedence]",
        lambda scores: discrete.PlackettLuce(scores).precedence(),
        lambda g: [Call((torch.randn(2, 3, generator=g, dtype=torch.float64),))],
        reference=lambda s: torch.stack(
            [
                torch.tensor(
                    [[float(i != j) / (1 + math.exp(b - a)) for j, b in enumerate(row)] for i, a in enumerate(row)]
                ).double()
                for row in s.tolist()
            ]
        ),
        tolerance=1e-6,
    ),
    Contract(
        "discrete.PlackettLuce[rsample]",
        _rsample,
        lambda g: [Call((torch.randn(2, 3, generator=g, dtype=torch.float64),), {"temperature": 0.7})],
        reference=lambda scores, temperature: _softsort(scores, temperature),
        scalars={"temperature": 0.7},
        edges=Edges(
            lambda scores, dim: _sorted(scores),
            along=True,
            empty="scores must have at least one item",
            refuses=(lambda scores: bool(scores.isinf().any()), "scores must be finite"),
        ),
        batched=False,
        vmap=False,
        half=False,
        why="random: other shapes and dtypes are other draws; tests/discrete/test_plackett_luce.py",
    ),
]


def _noisy(scores: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return scores + discrete.gumbel_noise(scores.shape, dtype=scores.dtype, generator=generator)


def _softsort(scores: Tensor, temperature: float) -> Tensor:
    x = _noisy(scores)
    places = x.sort(-1, descending=True).values
    return torch.softmax(-(places.unsqueeze(-1) - x.unsqueeze(-2)).abs() / temperature, -1)


def _sorted(scores: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(_noisy(scores).argsort(-1, descending=True), scores.shape[-1])
