"""Exact posteriors over graphs against multivariate normal densities, one graph and one set of targets at a time."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from pullback import causal

_NOISE, _SCALE, _SHIFTED_NOISE, _SHIFT = 0.8, 1.3, 0.9, 3.0
_OPTIONS = {"noise": _NOISE, "weight_scale": _SCALE, "intervention_noise": _SHIFTED_NOISE, "intervention_scale": _SHIFT}


def _normal(y: Tensor, noise: float, scale: float, x: Tensor) -> Tensor:
    covariance = noise**2 * torch.eye(len(y)).double() + scale**2 * x @ x.T
    return MultivariateNormal(torch.zeros(len(y)).double(), covariance).log_prob(y)


def _evidence(x: Tensor, environments: Tensor, graph: Tensor, targets: Tensor) -> Tensor:
    """The density of the data given graph and targets, node by node."""
    total = torch.zeros(()).double()
    for node in range(x.shape[1]):
        hit = [e for e in range(1, len(targets) + 1) if targets[e - 1, node]]
        free = torch.tensor([e not in hit for e in environments.tolist()])
        total = total + _normal(x[free, node], _NOISE, _SCALE, x[free][:, graph[:, node]])
        for e in hit:
            y = x[environments == e, node]
            total = total + _normal(y, _SHIFTED_NOISE, _SHIFT, torch.ones(len(y), 1).double())
    return total


@pytest.fixture
def data() -> tuple[Tensor, Tensor]:
    x = torch.randn(9, 3, generator=torch.Generator().manual_seed(0)).double()
    x[3:6, 1] += 4
    return x, torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2])


def _log_prior(graphs: Tensor, probability: float) -> Tensor:
    arcs = graphs.sum((-2, -1)).double()
    prior = arcs * math.log(probability) + (6 - arcs) * math.log(1 - probability)
    return prior - prior.logsumexp(0)


def test_posterior_with_unknown_targets_is_the_sum_over_all_of_them(data: tuple[Tensor, Tensor]) -> None:
    x, environments = data
    found = causal.exact_graph_posterior(x, environments, edge_probability=0.3, target_probability=0.2, **_OPTIONS)
    every = torch.tensor(list(itertools.product((False, True), repeat=6))).reshape(-1, 2, 3)
    joint = torch.stack(
        [
            torch.stack(
                [
                    _evidence(x, environments, graph, targets)
                    + targets.sum().double() * math.log(0.2)
                    + (~targets).sum().double() * math.log(0.8)
                    for targets in every
                ]
            )
            for graph in found.graphs
        ]
    ) + _log_prior(found.graphs, 0.3).unsqueeze(1)
    total = joint.logsumexp((0, 1))
    torch.testing.assert_close(found.log_evidence, total, rtol=1e-10, atol=1e-9)
    torch.testing.assert_close(found.log_weights, joint.logsumexp(1) - total, rtol=1e-9, atol=1e-9)
    targeted = ((joint - total).exp()[..., None, None] * every.double()).sum((0, 1))
    torch.testing.assert_close(found.target_probabilities(), targeted, rtol=1e-8, atol=1e-10)
    assert found.target_probabilities()[0, 1] > 0.9
    edges = ((joint.logsumexp(1) - total).exp()[:, None, None] * found.graphs).sum(0)
    torch.testing.assert_close(found.edge_probabilities(), edges)


def test_posterior_with_known_targets_leaves_them_out_of_the_regressions(data: tuple[Tensor, Tensor]) -> None:
    x, environments = data
    targets = torch.tensor([[False, True, False], [False, False, False]])
    found = causal.exact_graph_posterior(x, environments, targets=targets, edge_probability=0.3, **_OPTIONS)
    joint = torch.stack([_evidence(x, environments, graph, targets) for graph in found.graphs])
    joint = joint + _log_prior(found.graphs, 0.3)
    torch.testing.assert_close(found.log_weights, joint - joint.logsumexp(0), rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match="they were known"):
        found.target_probabilities()


def test_all_graphs_of_a_few_nodes_are_those_without_cycles() -> None:
    assert [len(causal.enumerate_dags(nodes)) for nodes in range(1, 6)] == [1, 3, 25, 543, 29281]
    patterns = torch.tensor(list(itertools.product((False, True), repeat=9))).reshape(-1, 3, 3)
    expected = {tuple(p.flatten().tolist()) for p in patterns if causal.is_acyclic(p)}
    assert {tuple(graph.flatten().tolist()) for graph in causal.enumerate_dags(3)} == expected
    with pytest.raises(ValueError, match=r"nodes must be in 1\.\.5"):
        causal.enumerate_dags(6)


def test_expected_distance_is_the_mean_over_the_graphs() -> None:
    graphs = causal.enumerate_dags(3)
    weights = torch.randn(25, generator=torch.Generator().manual_seed(0)).log_softmax(0)
    posterior = causal.GraphPosterior(graphs, weights)
    by_hand = sum(
        weights[k].exp() * causal.edge_metrics(graphs[7], graph.float(), threshold=0.5).shd
        for k, graph in enumerate(graphs)
    )
    torch.testing.assert_close(causal.expected_shd(posterior, graphs[7]), by_hand)


def test_expected_interventional_distance_is_the_mean_over_the_graphs_of_each_problem() -> None:
    graphs = causal.enumerate_dags(3)
    graphs = torch.cat([graphs, graphs[3:9]])  # particles often agree
    stack = torch.stack([graphs, graphs.flip(0)])
    weights = torch.randn(2, len(graphs), generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    truth = graphs[[7, 20]]
    found = causal.expected_sid(causal.GraphPosterior(stack, weights), truth)
    for k in range(2):
        distances = [causal.structural_intervention_distance(truth[k], graph) for graph in stack[k]]
        torch.testing.assert_close(found[k], (weights[k].exp() * torch.stack(distances)).sum())
    alone = causal.expected_sid(causal.GraphPosterior(stack[0], weights[0]), truth[0])
    torch.testing.assert_close(alone, found[0])
    with pytest.raises(ValueError, match="truth must be a graph for each"):
        causal.expected_sid(causal.GraphPosterior(stack, weights), truth[0])


def test_bad_posteriors_and_environments_are_refused() -> None:
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="0 to e without gaps"):
        causal.exact_graph_posterior(x, torch.tensor([0, 0, 0, 2, 2, 2]))
    with pytest.raises(ValueError, match="environment 1 must have at least two rows"):
        causal.exact_graph_posterior(x, torch.tensor([0, 0, 0, 0, 0, 1]))
    with pytest.raises(TypeError, match="whole numbers"):
        causal.exact_graph_posterior(x, torch.zeros(6))
    with pytest.raises(ValueError, match="targets must have shape"):
        causal.exact_graph_posterior(x, targets=torch.zeros(1, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"edge_probability must be in \(0, 1\)"):
        causal.exact_graph_posterior(x, edge_probability=1.0)
    with pytest.raises(ValueError, match="number of nodes"):
        causal.exact_graph_posterior(torch.randn(9, 6))
    graph = torch.zeros(1, 2, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match="weights that sum to 2"):
        causal.GraphPosterior(graph, torch.tensor([2.0]).log())
    with pytest.raises(ValueError, match="must have no cycles, got 1 with one"):
        causal.GraphPosterior(~graph, torch.zeros(1))
