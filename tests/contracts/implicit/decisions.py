"""Contracts of decisions under uncertainty: the newsvendor, risk measures, dispatch, maps from data to decisions."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pullback import implicit
from tests.contracts.contract import Bad, Call, Contract, Measurement, Module

_PRICES = {"cost": 5.0, "revenue": 7.0}
_COSTS, _LAW = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0.2, 0.5, 0.3])
_TWO = torch.tensor([0.5, 0.5])


def _normal(*shapes: tuple[int, ...]) -> Any:
    def samples(generator: torch.Generator) -> list[Call]:
        return [Call(tuple(torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes))]

    return samples


def _laws(generator: torch.Generator) -> list[Call]:
    costs = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    law = torch.randn(3, generator=generator, dtype=torch.float64).softmax(-1)
    return [Call((costs, law, torch.tensor([0.1, 0.3], dtype=torch.float64)))]


def _primal(costs: Tensor, law: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    """Maximise over the probabilities with scipy's general solver, row by row."""
    import scipy.optimize

    rows = []
    laws = law.expand(torch.broadcast_shapes(costs.shape, law.shape))
    radii = radius.expand(laws.shape[:-1]).flatten().tolist()
    numbers = [x.expand(laws.shape).reshape(-1, 3).numpy() for x in (costs, law)]
    for c, p, r in zip(*numbers, radii, strict=True):
        found = scipy.optimize.minimize(
            lambda q, c=c: -q @ c,
            p,
            jac=lambda q, c=c: -c,
            method="SLSQP",
            bounds=[(1e-9, 1)] * 3,
            constraints=[
                {"type": "eq", "fun": lambda q: q.sum() - 1},
                {"type": "ineq", "fun": lambda q, p=p, r=r: r - (p * np.log(p / q)).sum()},
            ],
            options={"ftol": 1e-15, "maxiter": 500},
        )
        rows.append(found.x)
    q = torch.tensor(np.array(rows)).reshape(laws.shape)
    return (q * costs).sum(-1), q


def _tail(losses: Tensor, level: float = 0.7) -> Tensor:
    """Minimise over the threshold, which one of the losses is."""
    excess = (losses[..., None, :] - losses[..., :, None]).clamp(min=0).mean(-1)
    return (losses + excess / (1 - level)).amin(-1)


def _programme(demand: Tensor, cost: Tensor, capacity: Tensor, curvature: float = 0.0) -> tuple[Tensor, ...]:
    """Solve the linear programme with scipy, the quadratic one by bisection of the price."""
    import scipy.optimize

    powers, prices = [], []
    for wanted in demand.flatten().tolist():
        met = min(max(wanted, 0.0), capacity.sum().item())
        if curvature:
            low, high = cost.min(), (cost + curvature * capacity).max()
            for _ in range(100):
                price = (low + high) / 2
                g = ((price - cost) / curvature).clamp(min=0).minimum(capacity)
                low, high = (price, high) if g.sum() < met else (low, price)
            powers.append(g)
            prices.append(price)
        else:
            bounds = [(0, room) for room in capacity.tolist()]
            ones = np.ones((1, len(cost)))
            found = scipy.optimize.linprog(cost.numpy(), A_eq=ones, b_eq=[met], bounds=bounds, method="highs")
            powers.append(torch.tensor(found.x))
            prices.append(cost[powers[-1] > 1e-9].max() if met > 0 else cost.min())
    power = torch.stack(powers).reshape(*demand.shape, -1)
    return power, torch.stack(prices).reshape(demand.shape), (demand - capacity.sum()).clamp(min=0)


def _dispatch_samples(generator: torch.Generator) -> list[Call]:
    demand = torch.tensor([0.4, 2.3, 5.1, 9.0, -1.0], dtype=torch.float64)
    cost = torch.randn(4, generator=generator, dtype=torch.float64)
    capacity = 1 + torch.rand(4, generator=generator, dtype=torch.float64)
    return [Call((demand, cost, capacity))]


_DISPATCH_BAD = [
    Bad((torch.tensor(1), _COSTS, _LAW), {}, TypeError, "demand must be a floating tensor"),
    Bad((torch.tensor(1.0), _COSTS, _LAW.double()), {}, TypeError, "dtype"),
    Bad((torch.tensor(1.0), torch.tensor(1.0), _LAW), {}, ValueError, "cost must have a last dimension"),
    Bad((torch.tensor(1.0), _COSTS, _TWO), {}, ValueError, "broadcast"),
    Bad((torch.tensor(1.0), _COSTS, -_LAW), {}, ValueError, "capacity must be >= 0 everywhere"),
    Bad((torch.tensor(1.0), _COSTS, _LAW), {"curvature": -1.0}, ValueError, "curvature must be > 0"),
    Bad((torch.tensor(1.0), _COSTS, _LAW), {"curvature": torch.zeros(3)}, ValueError, "curvature must be > 0"),
]


def _map(generator: torch.Generator, **options: Any) -> implicit.DecisionMap:
    return implicit.DecisionMap(2, 3, hidden=4, generator=generator, **options).double()


def _best(law: Tensor, demand: Tensor | None = None) -> Tensor:
    """Try every demand as the action."""
    d = torch.arange(1.0, law.shape[-1] + 1, dtype=law.dtype) if demand is None else demand
    mean = (5 * d[:, None] - 7 * torch.minimum(d[:, None], d)) @ law[..., None]
    return d[mean[..., 0].argmin(-1)]


def _by_hand(x: Tensor) -> Tensor:
    module = _map(torch.Generator().manual_seed(0))
    encode, head = (dict(part.named_parameters()) for part in (module.encoder, module.head))
    items = ((x @ encode["0.weight"].T + encode["0.bias"]).relu() @ encode["2.weight"].T + encode["2.bias"]).relu()
    hidden = (items.sum(-2) / x.shape[-2] @ head["0.weight"].T + head["0.bias"]).relu()
    return implicit.projection_simplex(hidden @ head["2.weight"].T + head["2.bias"])


CONTRACTS = [
    Contract(
        "implicit.newsvendor_cost",
        lambda action, demand, **prices: implicit.newsvendor_cost(action, demand, **{**_PRICES, **prices}),
        _normal((3, 4), (4,)),
        reference=lambda action, demand: 5 * action - 7 * torch.minimum(action, demand),
        large=(0, 1),
        large_limit=1e37,
        bad=[
            Bad((_COSTS, _TWO), {}, ValueError, "broadcast"),
            Bad((_COSTS, _LAW), {"cost": 0.0}, ValueError, "cost must be > 0"),
            Bad((_COSTS, _LAW), {"cost": 7.0}, ValueError, "revenue must exceed cost, got 7.0 and 7.0"),
            Bad((_COSTS.long(), _LAW), {}, TypeError, "action must be a floating tensor"),
            Bad((_COSTS, _LAW.double()), {}, TypeError, "dtype"),
        ],
        why="the cost of the largest numbers is above them",
    ),
    Measurement(
        "implicit.newsvendor_action",
        lambda law, *demand, **prices: implicit.newsvendor_action(law, *demand, **{**_PRICES, **prices}),
        lambda generator: [
            Call((torch.rand(6, 5, generator=generator, dtype=torch.float64).softmax(-1),)),
            Call((torch.rand(5, generator=generator).softmax(-1).double(), torch.arange(5.0).double() ** 2)),
        ],
        reference=lambda law, demand=None: _best(law, demand),
        bad=[
            Bad((_LAW,), {"revenue": 2.0}, ValueError, "revenue must exceed cost"),
            Bad((2 * _LAW,), {}, ValueError, "law must sum to 1 along the last dimension, got 2"),
            Bad((_LAW - _COSTS,), {}, ValueError, "law must be >= 0 everywhere"),
            Bad((_LAW, _TWO), {}, ValueError, r"demand must have shape \(3,\)"),
            Bad((_LAW, -_COSTS), {}, ValueError, "demand must increase"),
            Bad((torch.tensor(1.0),), {}, ValueError, "law must have a last dimension"),
            Bad((_LAW, _COSTS.double()), {}, TypeError, "dtype"),
        ],
    ),
    Contract(
        "implicit.kl_worst_case",
        lambda costs, law, radius=0.1: implicit.kl_worst_case(costs, law, radius=radius),
        _laws,
        reference=_primal,
        tolerance=1e-6,
        outputs=lambda worst: tuple(worst),
        bad=[
            Bad((_COSTS, _LAW), {"radius": -0.1}, ValueError, "radius must be >= 0"),
            Bad((_COSTS, _TWO), {}, ValueError, "costs and law must have as many outcomes, got 3 and 2"),
            Bad((_COSTS, 2 * _LAW), {}, ValueError, "law must sum to 1"),
            Bad((_COSTS, _LAW - _COSTS), {}, ValueError, "law must be >= 0 everywhere"),
            Bad((_COSTS / 0, _LAW), {}, ValueError, "costs must be finite"),
            Bad((torch.tensor(1.0), _LAW), {}, ValueError, "costs must have a last dimension"),
            Bad((_COSTS.long(), _LAW), {}, TypeError, "costs must be a floating tensor"),
            Bad((_COSTS, _LAW.double()), {}, TypeError, "dtype"),
        ],
    ),
    Contract(
        "implicit.cvar",
        lambda losses, level=0.7, **options: implicit.cvar(losses, level, **options),
        _normal((3, 7)),
        reference=_tail,
        scalars={"level": 0.7},
        bad=[
            Bad((_COSTS,), {"level": 1.0}, ValueError, r"level must be in \[0, 1\), got 1.0"),
            Bad((_COSTS,), {"weights": 2 * _LAW}, ValueError, "weights must sum to 1"),
            Bad((_COSTS,), {"weights": _TWO}, ValueError, "weights must be a number or a tensor that broadcasts"),
            Bad((_COSTS,), {"weights": _LAW.double()}, TypeError, "dtype"),
            Bad((_COSTS.long(),), {}, TypeError, "losses must be a floating tensor"),
            Bad((torch.zeros(0),), {}, ValueError, "losses must have at least one entry"),
            Bad((_COSTS,), {"dim": 1}, IndexError, "dim"),
        ],
    ),
    Contract(
        "implicit.economic_dispatch",
        lambda demand, cost, capacity, **options: implicit.economic_dispatch(demand, cost, capacity, **options),
        _dispatch_samples,
        reference=_programme,
        outputs=lambda found: tuple(found),
        bad=_DISPATCH_BAD,
    ),
    Contract(
        "implicit.economic_dispatch[curved]",
        lambda demand, cost, capacity, curvature=0.8: implicit.economic_dispatch(
            demand, cost, capacity, curvature=curvature
        ),
        _dispatch_samples,
        reference=lambda *args: _programme(*args, curvature=0.8),
        outputs=lambda found: tuple(found),
        scalars={"curvature": 0.8},
    ),
    Module(
        "implicit.DecisionMap",
        lambda module, x: module(x),
        _normal((2, 3, 2)),
        build=lambda generator: _map(generator, feasible=implicit.projection_simplex),
        reference=lambda x: _by_hand(x),
        bad=[Bad((torch.zeros(3, 5),), {}, ValueError, r"x must have shape \[\*, n, 2\], got \(3, 5\)")],
    ),
    Module(
        "implicit.DecisionMap[none]",
        lambda module, x: module(x),
        _normal((2, 3, 2)),
        build=lambda generator: _map(generator, pool="none", count=3),
        bad=[Bad((torch.zeros(4, 2),), {}, ValueError, r"x must have shape \[\*, 3, 2\], got \(4, 2\)")],
    ),
]
