"""Contracts of ``pullback.causal``: graphs as adjacency matrices."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from pullback import causal
from tests.contracts.contract import Bad, Call, Measurement


def _graphs(generator: torch.Generator) -> list[Call]:
    """With cycles, without, without arcs."""
    cyclic = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    return [Call((cyclic,)), Call((cyclic.triu(1),)), Call((torch.zeros(3, 3, dtype=torch.float64),))]


def _acyclic(arcs: Tensor) -> Tensor:
    """No walk of any length returns to where it began."""
    walks = torch.eye(len(arcs), dtype=torch.float64)
    returns = torch.tensor(0.0, dtype=torch.float64)
    for _ in range(len(arcs)):
        walks = (walks @ (arcs != 0).double()).clamp(max=1)
        returns = returns + walks.trace()
    return returns == 0


def _largest_dag(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Try every threshold, from zero upwards."""
    for threshold in [0.0, *weights.abs().flatten().sort().values.tolist()]:
        arcs = weights.abs() > threshold
        if _acyclic(arcs):
            return arcs, torch.tensor(threshold, dtype=weights.dtype)
    raise AssertionError("no arc is above the largest weight")


def _order_by_depth(arcs: Tensor) -> Tensor:
    """The nodes with no parent left, smallest first."""
    left, order = list(range(len(arcs))), []
    while left:
        node = next(j for j in left if not any(arcs[i, j] for i in left))
        order.append(node)
        left.remove(node)
    return torch.tensor(order)


def _cycle_exists(arcs: Tensor) -> Tensor:
    cycle = causal.find_cycle(arcs)
    if cycle is None:
        return torch.tensor(True)
    assert cycle[0] == cycle[-1]
    assert all(arcs[i, j] for i, j in itertools.pairwise(cycle))
    return torch.tensor(False)


_BAD_GRAPHS = [
    Bad((torch.zeros(2, 3),), {}, ValueError, "adjacency must have shape"),
    Bad((torch.zeros(3),), {}, ValueError, "adjacency must have shape"),
    Bad(([[0]],), {}, TypeError, "adjacency must be a torch.Tensor"),
]
_ONE_GRAPH = [*_BAD_GRAPHS, Bad((torch.zeros(2, 3, 3),), {}, ValueError, r"adjacency must have shape \(d, d\)")]


def _metrics_by_hand(truth: Tensor, estimate: Tensor) -> tuple[Tensor, ...]:
    """Count pair by pair and compare every arc with every non-arc."""
    d = len(truth)
    found = [[bool(estimate[i, j].abs() > 0.3) for j in range(d)] for i in range(d)]
    pairs = [(i, j) for i in range(d) for j in range(i)]
    wrong = sum((found[i][j], found[j][i]) != (bool(truth[i, j] != 0), bool(truth[j, i] != 0)) for i, j in pairs)
    off = [(i, j) for i in range(d) for j in range(d) if i != j]
    arcs = [p for p in off if truth[p] != 0]
    hits = sum(found[i][j] for i, j in arcs)
    claimed = sum(found[i][j] for i, j in off)
    wins = [
        float(estimate[a].abs() > estimate[b].abs()) + 0.5 * float(estimate[a].abs() == estimate[b].abs())
        for a in arcs
        for b in off
        if truth[b] == 0
    ]
    numbers = (wrong, hits / max(len(arcs), 1), 1 - hits / claimed if claimed else 0.0, sum(wins) / max(len(wins), 1))
    return tuple(torch.tensor(float(n)) for n in numbers)


CONTRACTS = [
    Measurement("causal.is_acyclic", causal.is_acyclic, _graphs, reference=_acyclic, bad=_BAD_GRAPHS),
    Measurement(
        "causal.find_cycle",
        _cycle_exists,
        _graphs,
        reference=_acyclic,
        bad=_ONE_GRAPH,
    ),
    Measurement(
        "causal.topological_order",
        causal.topological_order,
        lambda g: _graphs(g)[1:],
        reference=_order_by_depth,
        bad=[*_ONE_GRAPH, Bad((torch.ones(2, 2),), {}, ValueError, "has the cycle 0 -> 0")],
    ),
    Measurement(
        "causal.threshold_to_dag",
        causal.threshold_to_dag,
        _graphs,
        reference=_largest_dag,
        bad=[
            Bad((torch.zeros(2, 3),), {}, ValueError, "weights must have shape"),
            Bad((torch.full((2, 2), torch.nan),), {}, ValueError, "weights must be finite"),
            Bad((torch.ones(2, 2, dtype=torch.bool),), {}, TypeError, "weights must be a floating tensor"),
        ],
    ),
    Measurement(
        "causal.edge_metrics",
        lambda truth, estimate, **kwargs: tuple(m.double() for m in causal.edge_metrics(truth, estimate, **kwargs)),
        lambda g: [
            Call((torch.randn(5, 5, generator=g).triu(1).round(), torch.randn(5, 5, generator=g).round(decimals=1))),
            Call((torch.ones(3, 3).triu(1), torch.zeros(3, 3))),
        ],
        reference=_metrics_by_hand,
        tolerance=1e-6,
        bad=[
            Bad((torch.zeros(3, 3), torch.zeros(2, 2)), {}, ValueError, "square matrices of one shape"),
            Bad((torch.zeros(3), torch.zeros(3)), {}, ValueError, "square matrices of one shape"),
            Bad((torch.zeros(2, 2), torch.full((2, 2), torch.nan)), {}, ValueError, "estimate must be finite"),
            Bad((torch.zeros(2, 2), torch.zeros(2, 2)), {"threshold": -1.0}, ValueError, "threshold must be >= 0"),
        ],
    ),
]
