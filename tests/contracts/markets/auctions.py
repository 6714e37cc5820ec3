"""Contracts of auctions and of the games that they make."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from pullback import markets
from tests.contracts.contract import Bad, Call, Contract, Exempt, HigherOrder, Module

_B = torch.tensor([0.2, 0.6, 0.5])


def _bids(generator: torch.Generator) -> list[Call]:
    shapes = ((3,), (2, 4))
    return [Call((0.1 + torch.rand(*shape, generator=generator, dtype=torch.float64),)) for shape in shapes]


def _lottery(bids: Tensor, *, temperature: float = 0.01) -> Tensor:
    """Shares as ratios of powers, of the bids over the highest."""
    odds = torch.exp((bids - bids.max(-1, keepdim=True).values) / temperature)
    return odds / odds.sum(-1, keepdim=True)


def _winner(bids: Tensor) -> Tensor:
    """One bidder after the other: equal highest bids share."""
    rows = [
        [float(b == max(row)) / row.count(max(row)) for b in row] for row in bids.reshape(-1, bids.shape[-1]).tolist()
    ]
    return torch.tensor(rows, dtype=bids.dtype).reshape(bids.shape)


def _auction(price: int, bids: Tensor, *, temperature: float = 0.3) -> tuple[Tensor, Tensor]:
    shares = _lottery(bids, temperature=temperature)
    return shares, shares * bids.sort(-1, descending=True).values[..., price : price + 1]


def _hard(price: int, bids: Tensor) -> tuple[Tensor, Tensor]:
    shares = _winner(bids)
    return shares, shares * bids.sort(-1, descending=True).values[..., price : price + 1]


def _logistic(bids: Tensor) -> tuple[Tensor, Tensor]:
    """Shares over a threshold that is found by bisection, so that they sum to two."""
    low, high = bids.amin(-1, keepdim=True) - 9, bids.amax(-1, keepdim=True) + 9
    for _ in range(80):
        middle = (low + high) / 2
        more = torch.sigmoid((bids - middle) / 0.3).sum(-1, keepdim=True) > 2
        low, high = torch.where(more, middle, low), torch.where(more, high, middle)
    shares = torch.sigmoid((bids - low) / 0.3)
    return shares, shares * bids.sort(-1, descending=True).values[..., 2:3]


def _two_sold(bids: Tensor) -> tuple[Tensor, Tensor]:
    order = bids.topk(3, -1)
    shares = torch.zeros_like(bids).scatter(-1, order.indices[..., :2], 1.0)
    return shares, shares * order.values[..., 2:]


def _refusals(least: int, *more: Any) -> list[Bad]:
    return [
        Bad((-_B, *more), {}, ValueError, "bids must be >= 0 everywhere"),
        Bad((_B / 0, *more), {}, ValueError, "bids must be >= 0 everywhere"),
        Bad((_B.long(), *more), {}, TypeError, "bids must be a floating tensor"),
        Bad((_B[: least - 1], *more), {}, ValueError, f"bidders >= {least}"),
        Bad((_B, *more), {"temperature": -1.0}, ValueError, "temperature must be >= 0"),
        Bad(
            (_B, *more), {"temperature": torch.ones(2)}, ValueError, "temperature must be a number or a tensor without"
        ),
    ]


CONTRACTS = [
    Contract(
        "markets.smooth_allocation",
        lambda bids, **options: markets.smooth_allocation(bids, **{"temperature": 0.3, **options}),
        _bids,
        reference=partial(_lottery, temperature=0.3),
        hard=_winner,
        scalars={"temperature": 0.5},
        bad=_refusals(1),
    ),
    Contract(
        "markets.first_price",
        lambda bids, **options: tuple(markets.first_price(bids, **{"temperature": 0.3, **options})),
        _bids,
        reference=partial(_auction, 0),
        hard=partial(_hard, 0),
        scalars={"temperature": 0.5},
        bad=_refusals(1),
    ),
    Contract(
        "markets.second_price",
        lambda bids, **options: tuple(markets.second_price(bids, **{"temperature": 0.3, **options})),
        _bids,
        reference=partial(_auction, 1),
        hard=partial(_hard, 1),
        scalars={"temperature": 0.5},
        bad=_refusals(2),
    ),
    Contract(
        "markets.uniform_price",
        lambda bids, units=2, **options: tuple(markets.uniform_price(bids, units, **{"temperature": 0.3, **options})),
        lambda g: _bids(g)[1:],
        reference=_logistic,
        hard=_two_sold,
        scalars={"temperature": 0.5},
        bad=[
            *_refusals(2, 1),
            Bad((_B, 3), {}, ValueError, r"units must be in 1\.\.2, got 3"),
            Bad((_B, 1.0), {}, TypeError, "units must be an integer"),
        ],
    ),
    HigherOrder(
        "markets.first_price_equilibrium",
        lambda cdf, values, bidders=3, **options: markets.first_price_equilibrium(
            cdf, values, bidders, **{"points": 1001, **options}
        ),
        lambda g: [Call((0.1 + torch.rand(3, generator=g, dtype=torch.float64),))],
        given=lambda v: v**2,
        argument="cdf",
        reference=lambda values: 0.8 * values,  # of n bidders and F = v^a: a (n - 1) / (a (n - 1) + 1) v
        tolerance=1e-6,
        large_limit=1e8,
        why="large: the function that is given squares its argument",
        bad=[
            Bad((-_B,), {}, ValueError, "values must be >= 0 everywhere"),
            Bad((_B.long(),), {}, TypeError, "values must be a floating tensor"),
            Bad((_B, 1), {}, ValueError, "bidders must be an integer >= 2"),
            Bad((_B,), {"points": 1}, ValueError, "points must be an integer >= 2"),
        ],
    ),
    Module(
        "markets.BidNetwork",
        lambda module, values: module(values),
        lambda g: [Call((torch.rand(4, generator=g, dtype=torch.float64),))],
        build=lambda generator: markets.BidNetwork((4, 3), generator=generator),
        large_limit=1e4,
        why="a network of values far out of its units",
    ),
    Exempt("markets.AuctionGame", "a problem with methods", "markets/test_auctions.py"),
    Exempt("markets.best_response_gap", "a number that is measured on draws", "markets/test_auctions.py"),
    Exempt("markets.SelfPlay", "a loop with a state, of random draws", "markets/test_auctions.py"),
]
