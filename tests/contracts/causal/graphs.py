"""Contracts of ``pullback.causal``: graphs as adjacency matrices."""

from __future__ import annotations

import itertools

import torch
from sklearn.metrics import average_precision_score
from torch import Tensor

from pullback import causal
from tests.contracts.contract import Bad, Call, Exempt, Measurement


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


def _reached(arcs: Tensor) -> Tensor:
    """Some walk of 1 to d arcs leads there."""
    step = (arcs != 0).double()
    return sum(torch.linalg.matrix_power(step, k) for k in range(1, len(arcs) + 1)) > 0  # type: ignore[operator]


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


def _adjustment_by_regression(truth: Tensor, estimate: Tensor) -> Tensor:
    """In a linear model with generic weights, adjust by regressions and compare with the total effects."""
    d = len(truth)
    g = torch.Generator().manual_seed(1)
    weights = (truth != 0) * (0.5 + torch.rand(d, d, generator=g, dtype=torch.float64))
    weights = weights * (2 * torch.randint(2, (d, d), generator=g) - 1)
    effects = torch.linalg.inv(torch.eye(d, dtype=torch.float64) - weights)
    covariance = effects.T @ torch.diag(0.5 + torch.rand(d, generator=g, dtype=torch.float64)) @ effects
    wrong = 0
    for i, j in itertools.permutations(range(d), 2):
        held = [k for k in range(d) if estimate[k, i] != 0]
        if j in held:
            wrong += bool(effects[i, j].abs() > 1e-9)
            continue
        used = [i, *held]
        slope = torch.linalg.solve(covariance[used][:, used], covariance[used, j])[0]
        wrong += bool((slope - effects[i, j]).abs() > 1e-8)
    return torch.tensor(wrong)


def _two_dags(generator: torch.Generator) -> list[Call]:
    sizes = [(3, 2), (4, 3), (5, 6), (6, 7), (6, 11)]
    return [Call(tuple(causal.random_dag(d, e, generator=generator) for _ in range(2))) for d, e in sizes]


def _paths_counted(covariance: Tensor, graph: Tensor) -> Tensor:
    """Every pair once for every length of a path that joins it."""
    variance, right, total = covariance.diagonal(), 0.0, 0
    for length in range(1, len(graph)):
        for i, j in torch.linalg.matrix_power((graph != 0).double(), length).nonzero().tolist():
            total += 1
            right += 0.5 if variance[i] == variance[j] else float(variance[i] < variance[j])
    return torch.tensor(right / total, dtype=covariance.dtype)


def _average_precision(truth: Tensor, scores: Tensor) -> Tensor:
    off = ~torch.eye(len(truth), dtype=torch.bool)
    value = average_precision_score((truth != 0)[off].numpy(), scores[off].double().numpy())
    return torch.tensor(value, dtype=scores.dtype)


CONTRACTS = [
    Measurement("causal.is_acyclic", causal.is_acyclic, _graphs, reference=_acyclic, bad=_BAD_GRAPHS),
    Measurement("causal.descendants", causal.descendants, _graphs, reference=_reached, bad=_ONE_GRAPH),
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
    Measurement(
        "causal.structural_intervention_distance",
        causal.structural_intervention_distance,
        _two_dags,
        reference=_adjustment_by_regression,
        bad=[
            Bad((torch.zeros(2, 3), torch.zeros(2, 2)), {}, ValueError, "truth must have shape"),
            Bad((torch.zeros(2, 2), torch.zeros(3, 3)), {}, ValueError, "one number of nodes"),
            Bad((torch.zeros(3, 2, 2), torch.zeros(2, 2, 2)), {}, ValueError, "truth"),
            Bad((torch.zeros(2, 2), torch.ones(2, 2)), {}, ValueError, "estimate has the cycle 0 -> 0"),
        ],
    ),
    Measurement(
        "causal.edge_auprc",
        causal.edge_auprc,
        lambda g: [
            Call((causal.random_dag(5, 6, generator=g), torch.randn(5, 5, generator=g).round(decimals=1).double())),
            Call((causal.random_dag(4, 2, generator=g), torch.zeros(4, 4, dtype=torch.float64))),
        ],
        reference=_average_precision,
        bad=[
            Bad((torch.zeros(3, 3), torch.zeros(2, 2)), {}, ValueError, "one shape"),
            Bad((torch.zeros(2, 2), torch.full((2, 2), torch.nan)), {}, ValueError, "scores must be finite"),
        ],
    ),
    Measurement(
        "causal.varsortability",
        causal.varsortability,
        lambda g: [
            Call((torch.diag(torch.rand(5, generator=g, dtype=torch.float64)), causal.random_dag(5, 6, generator=g))),
            Call((torch.eye(4, dtype=torch.float64), causal.random_dag(4, 3, generator=g))),
        ],
        reference=_paths_counted,
        bad=[
            Bad((torch.eye(3), torch.zeros(2, 2)), {}, ValueError, "one shape"),
            Bad((torch.zeros(2, 3), torch.zeros(2, 3)), {}, ValueError, "covariance must have shape"),
        ],
    ),
    Exempt("causal.BayesianNetwork", "a record that checks itself; its law", "causal/test_bayesian_network.py"),
    Exempt("causal.random_bayesian_network", "draws a network", "causal/test_bayesian_network.py"),
    Exempt(
        "causal.enumerate_dags", "takes a number; counted and compared with brute force", "causal/test_posterior.py"
    ),
    Exempt(
        "causal.exact_graph_posterior",
        "samples in, graphs out: held to multivariate normal densities",
        "causal/test_posterior.py",
    ),
    Exempt("causal.expected_shd", "takes a posterior", "causal/test_posterior.py"),
    Exempt("causal.expected_sid", "takes a posterior", "causal/test_posterior.py"),
    Exempt("causal.GraphPosterior", "a record that checks itself, with two sums", "causal/test_posterior.py"),
]
