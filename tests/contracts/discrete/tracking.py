"""Contracts of soft assignments and tracks: brute force over matchings, the minimum with entropy, counts by hand."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor, nn

from pullback import discrete
from tests.contracts.contract import Bad, Call, Contract, Edges, Exempt, Module


def _randn(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def _rand(g: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=g, dtype=torch.float64)


def _likes_cheap(cost: Tensor) -> Tensor:
    """A model: the logit of a pair is what it costs less than the mean of what is allowed."""
    return torch.where(cost.isfinite(), 1 - cost, -4)


def _assign(cost: Tensor, **words: Any) -> Tensor:
    return discrete.assign(cost, **{"model": _likes_cheap if words.get("method") == "learned" else None, **words})


def _by_brute_force(cost: Tensor, dustbin: float | None = None, **words: Any) -> Tensor:
    if cost.ndim > 2:
        return torch.stack([_by_brute_force(c, dustbin) for c in cost])
    n, m = cost.shape
    if n > m:
        return _by_brute_force(cost.mT, dustbin).mT
    price = cost if dustbin is None else (cost - dustbin).clamp(max=0)
    best = min(itertools.permutations(range(m), n), key=lambda p: float(price[range(n), p].sum()))
    matrix = torch.zeros_like(cost)
    matrix[range(n), best] = 1
    return matrix if dustbin is None else matrix * (cost < dustbin)


def _by_scaling(cost: Tensor, temperature: float = 0.1, dustbin: float | None = None, **words: Any) -> Tensor:
    """Rows and columns divided by their sums in turn, as they stand."""
    if cost.ndim > 2:
        return torch.stack([_by_scaling(c, temperature, dustbin) for c in cost])
    n, m = cost.shape
    rows, columns, padded = torch.ones(n + 1).double(), torch.ones(m + 1).double(), torch.zeros(n + 1, m + 1).double()
    padded[:n, :m] = cost
    if dustbin is None:
        rows[n], columns[m] = max(m - n, 0), max(n - m, 0)
    else:
        rows[n], columns[m] = m, n
        padded[n], padded[:, m] = dustbin, dustbin
    kernel = torch.exp(-padded / temperature)
    a, b = torch.ones_like(rows), torch.ones_like(columns)
    for _ in range(400):
        a = rows / (kernel @ b).clamp(min=1e-300)
        b = columns / (kernel.mT @ a).clamp(min=1e-300)
    return (a[:, None] * kernel * b)[:n, :m]


def _net(g: torch.Generator) -> discrete.HungarianNet:
    return discrete.HungarianNet(3, 4, generator=g)


def _by_torch(distance: Tensor) -> Tensor:
    """The network out of torch's own recurrent layer and attention."""
    net = _net(torch.Generator().manual_seed(0)).double()
    gru = nn.GRU(3, 4, batch_first=True, bidirectional=True, dtype=torch.float64)
    for direction, suffix in zip(net.directions, ("", "_reverse"), strict=True):
        for layer, kind in ((direction.inputs, "ih"), (direction.state, "hh")):
            getattr(gru, f"weight_{kind}_l0{suffix}").data.copy_(layer.weight)
            getattr(gru, f"bias_{kind}_l0{suffix}").data.copy_(layer.bias)
    states = gru(distance.reshape(-1, 3, 3).clamp(max=4))[0]
    queries, keys, values = (states @ w.mT for w in net.attention.weight.chunk(3))
    attended = nn.functional.scaled_dot_product_attention(queries, keys, values, scale=1.0)
    return net.output(attended.tanh()).detach().reshape(distance.shape)


def _loss_by_hand(logits: Tensor, target: Tensor) -> Tensor:
    def entropy(x: Tensor, y: Tensor) -> Tensor:
        return -(y * torch.sigmoid(x).log() + (1 - y) * torch.sigmoid(-x).log()).sum()

    total = torch.zeros((), dtype=logits.dtype)
    for x, y in zip(logits.reshape(-1, *logits.shape[-2:]), target.reshape(-1, *logits.shape[-2:]), strict=True):
        total += entropy(x, y) + entropy(x.max(1).values, y.sum(1)) + entropy(x.max(0).values, y.sum(0))
    return total / math.prod(logits.shape[:-2])


_THERE = torch.tensor([[[True, True, False], [True, False, False]], [[True, True, True], [False, True, True]]])


def _clips(g: torch.Generator) -> list[Call]:
    return [
        Call((_rand(g, 2, 2, 2, 3), _rand(g, 2, 2, 2, 3), _THERE)),
        Call((_rand(g, 2, 2, 2, 3), _rand(g, 2, 2, 2, 3), _THERE), {"motp": 2.0, "mota": 3.0, "switches": 0.5}),
    ]


def _track_by_hand(
    distance: Tensor, assignment: Tensor, there: Tensor, motp: float = 50.0, mota: float = 1.0, switches: float = 1.0
) -> tuple[Tensor, ...]:
    products = matched = used = positives = negatives = changes = torch.zeros((), dtype=distance.dtype)
    for clip in range(2):
        for t in range(2):
            a = assignment[clip, t]
            in_use = sum(max(row) for row in a)
            matched, used = matched + a.sum(), used + in_use
            products = products + (a * distance[clip, t]).sum() * a.sum()
            more = in_use - int(there[clip, t].sum())
            positives, negatives = positives + max(more, 0 * more), negatives + max(-more, 0 * more)
            if t:
                changes = changes + sum(
                    a[i, j] * (1 - assignment[clip, t - 1, i, j]) for i in range(2) for j in range(3)
                )
    first, second = motp * products / matched, mota * (positives + negatives + switches * changes) / used
    return first + second, first, second, positives, negatives, changes


def _alone(x: Tensor) -> tuple[Tensor, ...]:
    distance = x.reshape(*x.shape, 1, 1)
    return distance, torch.ones_like(distance), torch.ones(*x.shape, 1, dtype=torch.bool, device=x.device)


_COST, _PAIR = torch.zeros(2, 2), (torch.zeros(1, 2, 2), torch.zeros(1, 2, 2))
_COST_ERRORS = [
    Bad((_COST,), {"method": "learned", "model": None}, ValueError, "model must be given with method 'learned'"),
    Bad((_COST,), {"model": _likes_cheap}, ValueError, "model must be given with method 'learned' and with no other"),
    Bad((_COST,), {"method": "learned", "dustbin": 1.0}, ValueError, "dustbin must not be given with method 'learned'"),
    Bad((_COST,), {"method": "learned", "model": lambda c: c[0]}, ValueError, "model must return the shape of cost"),
    Bad((_COST,), {"method": "learned", "model": 3}, TypeError, "model must be callable"),
    Bad((_COST,), {"dustbin": torch.ones(2)}, ValueError, "dustbin must be a number or a tensor without dimensions"),
    Bad((_COST,), {"dustbin": math.inf}, ValueError, "dustbin must be finite"),
    Bad((_COST,), {"dustbin": "1"}, TypeError, "dustbin must be a number"),
    Bad((_COST,), {"iterations": 0}, ValueError, "iterations must be an integer >= 1, got 0"),
    Bad((_COST,), {"temperature": -1.0}, ValueError, "temperature must be >= 0"),
    Bad((_COST * torch.nan,), {}, ValueError, "cost must not be NaN"),
    Bad((_COST[0],), {}, ValueError, r"cost must have shape \(..., n, m\)"),
    Bad((_COST.long(),), {}, TypeError, "cost must be a floating tensor"),
]

CONTRACTS = [
    Contract(
        "discrete.assign",
        _assign,
        lambda g: [
            Call((_randn(g, 2, 3),), {"temperature": 0.7}),
            Call((_randn(g, 3, 2),), {"temperature": 0.7}),
        ],
        reference=_by_scaling,
        tolerance=1e-6,
        hard=_by_brute_force,
        soft={"temperature": 1e-3},
        scalars={"temperature": 0.5},
        large=(),
        why="at costs that are large against the temperature thousands of sweeps do not converge",
        edges=Edges(
            lambda x: nn.functional.one_hot(x.argmin(-1, keepdim=True), x.shape[-1]).to(x),
            args=lambda x: (x.unsqueeze(-2),),
            empty="cost must have shape",
            refuses=(lambda x: bool((x == -torch.inf).any()), "cost must not be NaN or -inf"),
        ),
        bad=_COST_ERRORS,
    ),
    Contract(
        "discrete.assign[dustbin]",
        _assign,
        lambda g: [
            Call((_randn(g, 2, 2),), {"temperature": 1.0, "dustbin": 0.1}),
        ],
        reference=_by_scaling,
        tolerance=1e-6,
        hard=lambda cost: _by_brute_force(cost, 0.1),
        soft={"temperature": 4e-3, "iterations": 5000},
        hard_tolerance=1e-3,
        scalars={"temperature": 0.5, "dustbin": 0.4},
        large=(),
        why="at costs that are large against the temperature thousands of sweeps do not converge",
    ),
    Contract(
        "discrete.assign[hungarian]",
        lambda cost, **words: _assign(cost, method="hungarian", **words),
        lambda g: [
            Call((_randn(g, 2, 4, 4),)),
            Call((_randn(g, 2, 3, 5),), {"dustbin": -0.5}),
            Call((_randn(g, 5, 3),), {"dustbin": 0.3}),
        ],
        reference=_by_brute_force,
    ),
    Module(
        "discrete.assign[learned]",
        lambda module, cost: discrete.assign(cost, method="learned", model=module),
        lambda g: [Call((2 * _rand(g, 4, 3, 3),))],
        reference=lambda distance: torch.where((p := torch.sigmoid(_by_torch(distance))) > 0.5, p, 0),
        build=_net,
        large=(),
        why="distances beyond its range are all the same to it",
    ),
    Module(
        "discrete.HungarianNet",
        lambda module, distance: module(distance),
        lambda g: [Call((5 * _rand(g, 2, 2, 3, 3),)), Call((_rand(g, 3, 3),))],
        reference=_by_torch,
        build=_net,
        bad=[
            Bad((torch.zeros(2, 2),), {}, ValueError, r"distance must have shape \(..., 3, 3\), got \(2, 2\)"),
        ],
    ),
    Contract(
        "discrete.hungarian_net_loss",
        discrete.hungarian_net_loss,
        lambda g: [
            Call((_randn(g, 2, 3, 3), torch.eye(3).double().expand(2, 3, 3).contiguous())),
            Call((_randn(g, 2, 3), torch.eye(3).double()[:2])),
        ],
        reference=_loss_by_hand,
        batched=False,
        layouts=False,
        large_limit=1e8,
        edges=Edges(
            lambda x: 2 * nn.functional.softplus(x).sum() + nn.functional.softplus(x.amax(-1)).sum(),
            args=lambda x: (x.unsqueeze(-2), torch.zeros_like(x.unsqueeze(-2))),
            empty="logits and target must have one shape",
            nan=lambda x, options: bool(x.isinf().any()),
        ),
        bad=[
            Bad((torch.zeros(2, 2), torch.zeros(2, 3)), {}, ValueError, "logits and target must have one shape"),
            Bad((torch.zeros(2), torch.zeros(2)), {}, ValueError, "logits and target must have one shape"),
            Bad((torch.zeros(2, 2), torch.zeros(2, 2).long()), {}, TypeError, "target must be a floating tensor"),
        ],
        why="a mean over problems; a sum of the largest numbers overflows by nature",
    ),
    Contract(
        "discrete.soft_tracking_loss",
        discrete.soft_tracking_loss,
        _clips,
        reference=_track_by_hand,
        outputs=tuple,
        batched=False,
        large_limit=1e3,
        edges=Edges(
            lambda x: 50 * x.mean() if x.numel() else x.sum(),
            args=_alone,
            domain=torch.abs,
            outputs=lambda found: found.loss,
            refuses=(lambda x: bool(x.isinf().any()), "distance must be finite"),
        ),
        why="a mean over all clips; fifty times the largest number overflows by nature",
        bad=[
            Bad((*_PAIR, torch.ones(1, 2).bool()), {"motp": -1.0}, ValueError, "motp must be >= 0"),
            Bad(
                (*_PAIR, torch.ones(1, 3).bool()), {}, ValueError, r"references must have shape \(1, 2\), got \(1, 3\)"
            ),
            Bad((*_PAIR, torch.ones(1, 2)), {}, TypeError, "references must be a boolean tensor"),
            Bad((_PAIR[0], torch.zeros(1, 2, 3), torch.ones(1, 2).bool()), {}, ValueError, "assignment must have the"),
            Bad((_PAIR[0], _PAIR[1].double(), torch.ones(1, 2).bool()), {}, TypeError, "must have the same dtype"),
            Bad((_PAIR[0] + torch.nan, _PAIR[1], torch.ones(1, 2).bool()), {}, ValueError, "distance must be finite"),
        ],
    ),
    Exempt("discrete.clear_mot", "counts: integers and their ratios", "discrete/test_tracking.py"),
    Exempt("discrete.assignment_problems", "draws problems at random", "discrete/test_tracking.py"),
    Exempt("discrete.fit_hungarian_net", "trains a network", "discrete/test_tracking.py"),
]
