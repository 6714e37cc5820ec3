"""Structure learning against brute force, explicit regressions and planted graphs."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import sklearn.metrics
import torch

from pullback import ConvergenceError, causal


def _planted(seed: int, nodes: int = 6, n: int = 2000) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    graph = causal.random_dag(nodes, nodes, generator=g)
    weights = causal.random_weights(graph, generator=g).double()
    return graph, causal.LinearSCM(weights).rsample(n, generator=g)


def test_every_cycle_product_is_bounded() -> None:
    g = torch.Generator().manual_seed(0)
    priority = torch.randn(5, generator=g, dtype=torch.float64) * 0.05
    for temperature in (0.45, 0.1, 0.01):
        s = causal.orientation(priority, temperature=temperature, shift=0.01)
        bound = torch.sigmoid(torch.tensor(-0.01 / temperature, dtype=torch.float64))
        for length in (2, 3, 4):
            for nodes in itertools.permutations(range(5), length):
                product = torch.stack([s[a, b] for a, b in zip(nodes, (*nodes[1:], nodes[0]), strict=True)]).prod()
                assert product <= bound


def test_logdet_says_infinity_outside_its_domain_and_has_a_finite_gradient() -> None:
    weights = torch.stack([torch.full((2, 2), 2.0), torch.full((2, 2), 0.1)]).requires_grad_()
    value = causal.acyclicity(weights)
    assert value[0] == torch.inf
    assert value[1].isfinite()
    value[1].backward()
    assert weights.grad is not None
    assert weights.grad.isfinite().all()


@pytest.mark.parametrize("method", ["logdet", "exponential", "polynomial", "spectral"])
def test_a_dag_has_acyclicity_zero_and_a_cycle_has_not(method: str, generator: torch.Generator) -> None:
    graph = causal.random_dag(8, 12, generator=generator)
    weights = causal.random_weights(graph, generator=generator).double()
    assert causal.acyclicity(weights, method=method).abs() < 1e-6
    order = causal.topological_order(graph)
    weights[order[-1], order[0]] = weights[order[0], order[-1]] = 0.5
    assert causal.acyclicity(weights, method=method) > 1e-3


@pytest.mark.parametrize("kind", ["er", "scale-free", "bipartite"])
def test_random_graphs_are_acyclic_with_the_expected_number_of_arcs(kind: str, generator: torch.Generator) -> None:
    graphs = causal.random_dag(10, 20, kind=kind, batch=(200,), generator=generator)
    assert causal.is_acyclic(graphs).all()
    assert abs(graphs.sum((-2, -1)).float().mean() - 20) < 3.5
    # The order is random: no position is a source more often than chance allows.
    sources = (~graphs.any(-2)).float().mean(0)
    assert sources.max() < 3 * sources.mean()


def test_acyclicity_of_graphs_agrees_with_powers_of_the_adjacency(generator: torch.Generator) -> None:
    graphs = torch.rand(200, 5, 5, generator=generator) < 0.25
    expected = torch.linalg.matrix_exp(graphs.double()).diagonal(dim1=-2, dim2=-1).sum(-1) < 5 + 1e-9
    assert torch.equal(causal.is_acyclic(graphs), expected)
    for graph, acyclic in zip(graphs, expected, strict=True):
        cycle = causal.find_cycle(graph)
        assert (cycle is None) == bool(acyclic)
        if cycle is not None:
            assert cycle[0] == cycle[-1]
            assert all(graph[a, b] for a, b in itertools.pairwise(cycle))


def test_topological_order_refuses_a_cycle_by_name() -> None:
    with pytest.raises(ValueError, match="0 -> 1 -> 0"):
        causal.topological_order(torch.tensor([[0, 1], [1, 0]]))


def test_structural_distance_counts_a_reversed_arc_once() -> None:
    truth = torch.tensor([[0, 1, 1], [0, 0, 0], [0, 0, 0]])
    estimate = torch.tensor([[0.0, 0.0, 0.9], [0.9, 0.0, 0.9], [0.0, 0.0, 0.0]])
    metrics = causal.edge_metrics(truth, estimate)
    assert metrics.shd == 2
    assert metrics.tpr == 0.5
    assert metrics.fdr == pytest.approx(2 / 3)


def test_a_graph_is_compared_as_its_weights_are_and_with_each_of_a_batch() -> None:
    truth, weights = _planted(0)[0], torch.randn(4, 6, 6, generator=torch.Generator().manual_seed(0))
    of_weights = causal.edge_metrics(truth, weights, threshold=0.7)
    for graph in (weights.abs() > 0.7, (weights.abs() > 0.7).long()):
        of_graphs = causal.edge_metrics(truth, graph, threshold=0.7)
        assert all(torch.equal(of_graphs[k], of_weights[k]) for k in range(3))
        assert of_graphs.shd.shape == (4,)
    assert causal.edge_metrics(truth, weights[2], threshold=0.7).shd == of_weights.shd[2]


@pytest.mark.parametrize("learn", [causal.topological_swaps, causal.order_search, causal.dagma, causal.d_struct])
def test_a_learner_under_vmap_asks_for_the_batch(learn: Callable[..., causal.StructureResult]) -> None:
    with pytest.raises(ValueError, match="data must not be mapped over by vmap"):
        torch.func.vmap(lambda x: learn(x).weights)(torch.randn(2, 9, 3))


def test_area_under_the_curve_equals_sklearn(generator: torch.Generator) -> None:
    truth = torch.rand(6, 6, generator=generator) < 0.3
    estimate = (torch.randn(6, 6, generator=generator) * 2).round() / 2  # with ties
    off = ~torch.eye(6, dtype=torch.bool)
    expected = sklearn.metrics.roc_auc_score(truth[off].numpy(), estimate[off].abs().numpy())
    assert causal.edge_metrics(truth, estimate).auc.item() == pytest.approx(expected)


def test_order_score_equals_explicit_least_squares(generator: torch.Generator) -> None:
    _, x = _planted(1)
    x = x - x.mean(0)
    moments = causal.second_moments(x)
    orders = torch.stack([torch.randperm(6, generator=generator) for _ in range(20)])
    for order, score in zip(orders, causal.score_order(moments, orders), strict=True):
        total = 0.0
        for place, node in enumerate(order.tolist()):
            parents = x[:, order[:place]].numpy()
            target = x[:, node].numpy()
            fitted = parents @ np.linalg.lstsq(parents, target, rcond=None)[0] if place else 0 * target
            total += float(((target - fitted) ** 2).mean())
        assert score.item() == pytest.approx(total / 6, rel=1e-8)
        weights = causal.fit_order(x, order)
        assert causal.least_squares_score(weights, moments).item() == pytest.approx(total / 6, rel=1e-8)
        assert causal.is_acyclic(weights != 0)


def test_swaps_reach_the_brute_force_minimum() -> None:
    _, x = _planted(2)
    moments = causal.second_moments(x)
    orders = torch.tensor(list(itertools.permutations(range(6))))
    best = causal.score_order(moments, orders).min()
    found = causal.topological_swaps(x, restarts=5, generator=torch.Generator().manual_seed(0))
    assert found.score.item() == pytest.approx(best.item(), rel=1e-10)


@pytest.mark.parametrize("method", ["cosmo", "dagma", "notears", "swaps"])
def test_a_planted_graph_is_found(method: str) -> None:
    graph, x = _planted(3)
    g = torch.Generator().manual_seed(0)
    if method == "cosmo":
        result = causal.cosmo(x, restarts=8, iterations=1500, lr=3e-2, generator=g)
    elif method == "dagma":
        result = causal.dagma(x, lr=1e-3, iterations=4000)
    elif method == "notears":
        result = causal.notears(x)
    else:
        result = causal.topological_swaps(x, restarts=3, generator=g)
    assert causal.edge_metrics(graph, result.weights).shd <= 1
    assert causal.is_acyclic(result.graph())
    position = result.order.argsort()
    sources, targets = result.graph().nonzero(as_tuple=True)
    assert (position[sources] < position[targets]).all()


def test_covariance_and_samples_give_the_same_gradient(generator: torch.Generator) -> None:
    _, x = _planted(4)
    x = x - x.mean(0)
    weights = torch.randn(6, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    by_samples = torch.autograd.grad((x - x @ weights).square().mean(), weights)[0]
    by_moments = torch.autograd.grad(causal.least_squares_score(weights, x.T @ x / len(x)), weights)[0]
    torch.testing.assert_close(by_samples, by_moments, rtol=1e-10, atol=1e-10)


def test_batched_data_sets_are_learned_side_by_side() -> None:
    (graph_a, a), (graph_b, b) = _planted(3), _planted(5)
    result = causal.cosmo(
        torch.stack([a, b]), restarts=6, iterations=1500, lr=3e-2, generator=torch.Generator().manual_seed(0)
    )
    assert result.weights.shape == (2, 6, 6)
    assert (causal.edge_metrics(torch.stack([graph_a, graph_b]), result.weights).shd <= 1).all()


def test_refitting_along_the_order_never_raises_the_score() -> None:
    _, x = _planted(6)
    moments = causal.second_moments(x)
    for steps in (50, 300):
        plain = causal.cosmo(x, restarts=2, iterations=steps, generator=torch.Generator().manual_seed(1))
        refit = causal.cosmo(x, restarts=2, iterations=steps, refit=True, generator=torch.Generator().manual_seed(1))
        ordered = plain.weights * (plain.order.argsort()[:, None] < plain.order.argsort()[None, :])
        assert refit.score <= causal.least_squares_score(ordered, moments) + 1e-12


def test_nonlinear_and_minibatch_forms_learn(generator: torch.Generator) -> None:
    graph = torch.tensor([[0, 1, 1], [0, 0, 1], [0, 0, 0]])
    x = causal.NonlinearSCM(graph, kind="mim", generator=generator).rsample(400, generator=generator)
    first = causal.cosmo(x, hidden=8, restarts=2, iterations=5, generator=torch.Generator().manual_seed(0))
    last = causal.cosmo(x, hidden=8, restarts=2, iterations=300, lr=1e-2, generator=torch.Generator().manual_seed(0))
    assert last.score < 0.9 * first.score
    assert causal.is_acyclic(last.weights > 0.3)
    mini = causal.cosmo(x, minibatch=64, restarts=2, iterations=300, generator=torch.Generator().manual_seed(0))
    assert mini.score < causal.least_squares_score(torch.zeros(3, 3), causal.second_moments(x))


@pytest.mark.parametrize("noise", ["gauss", "exp", "gumbel"])
def test_log_density_integrates_the_noise(noise: str, generator: torch.Generator) -> None:
    scm = causal.LinearSCM(torch.tensor([[0.0, 1.5], [0.0, 0.0]], dtype=torch.float64), 0.7, noise)
    grid = torch.linspace(-12, 25, 4001, dtype=torch.float64)
    points = torch.stack([torch.full_like(grid, 0.3), grid], -1)
    conditional = scm.log_prob(points, targets=torch.tensor([True, False])).exp()
    assert torch.trapezoid(conditional, grid).item() == pytest.approx(1, abs=2e-2 if noise == "exp" else 1e-6)
    x = scm.rsample(50_000, generator=generator)
    assert abs(x.mean(0)).max() < 0.05


def test_intervening_cuts_the_arcs_into_the_node(generator: torch.Generator) -> None:
    weights = torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 3.0], [0.0, 0.0, 0.0]], requires_grad=True)
    x = causal.LinearSCM(weights).rsample(5000, interventions={1: 1.0}, generator=generator)
    assert (x[:, 1] == 1).all()
    assert x[:, 2].mean().item() == pytest.approx(3, abs=0.1)
    (gradient,) = torch.autograd.grad(x[:, 2].mean(), weights)
    assert gradient[0, 1] == 0
    assert gradient[1, 2].item() == pytest.approx(1, rel=1e-3)
    with pytest.raises(ValueError, match=r"interventions must be in 0\.\.2, got 7"):
        causal.LinearSCM(weights).rsample(2, interventions={7: 0.0})


def test_bad_data_is_refused_by_name(generator: torch.Generator) -> None:
    x = torch.randn(20, 3, generator=generator)
    with pytest.raises(ValueError, match="column 1 is constant"):
        causal.cosmo(torch.cat([x[:, :1], torch.ones(20, 1), x[:, 1:]], 1))
    x_bad = x.clone()
    x_bad[2, 1] = torch.nan
    with pytest.raises(ValueError, match=r"finite, got nan at index \(2, 1\)"):
        causal.dagma(x_bad)
    with pytest.raises(ValueError, match="covariance must be square"):
        causal.notears(x, covariance=True)
    with pytest.raises(ValueError, match="restarts must be an integer >= 1, got 0"):
        causal.cosmo(x, restarts=0)
    with pytest.raises(ValueError, match="shift must be > 0"):
        causal.cosmo(x, shift=0.0)
    with pytest.raises(ValueError, match="missing \\[2\\]"):
        causal.score_order(torch.eye(3), torch.tensor([0, 1, 1]))


def test_a_cyclic_result_raises_with_the_cycle() -> None:
    cyclic = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    zero = torch.zeros(())
    result = causal.StructureResult(cyclic, torch.arange(2), zero, cyclic[None], zero[None], {})
    with pytest.raises(ConvergenceError, match="0 -> 1 -> 0"):
        result.graph()


@pytest.mark.parametrize("hidden", [None, 3])
def test_a_smooth_acyclic_model_has_right_gradients(hidden: int | None, generator: torch.Generator) -> None:
    model = causal.SmoothAcyclicSCM(3, hidden=hidden, restarts=2, shift=0.1, generator=generator).double()
    x = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    names = [name for name, _ in model.named_parameters()]

    def function(*parameters: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(model, dict(zip(names, parameters, strict=True)), (x,))

    assert torch.autograd.gradcheck(function, tuple(model.parameters()))


def test_the_temperature_falls_along_a_cosine_and_stays_at_its_ends() -> None:
    values = [causal.cosine_temperature(p, start=1.0, end=0.1) for p in (-1.0, 0.0, 0.25, 0.5, 1.0, 2.0)]
    assert values == pytest.approx([1.0, 1.0, 0.55 + 0.45 * 2**-0.5, 0.55, 0.1, 0.1])


def test_logistic_samples_have_the_conditional_frequencies_of_their_model() -> None:
    weights = torch.tensor([[0.0, 1.5, 0.0], [0.0, 0.0, -2.0], [0.0, 0.0, 0.0]])
    x = causal.LogisticSCM(weights).sample(40_000, generator=torch.Generator().manual_seed(0))
    assert x[:, 0].mean() == pytest.approx(0.5, abs=0.01)
    for parent, node in ((0, 1), (1, 2)):
        for value in (0.0, 1.0):
            expected = torch.sigmoid(value * weights[parent, node]).item()
            assert x[x[:, parent] == value, node].mean() == pytest.approx(expected, abs=0.015)
    with pytest.raises(ValueError, match="cycle 0 -> 1 -> 0"):
        causal.LogisticSCM(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    with pytest.raises(ValueError, match="weights must be finite"):
        causal.LogisticSCM(torch.full((3, 3), torch.nan))


def test_logistic_swaps_reach_the_best_of_all_orders() -> None:
    g = torch.Generator().manual_seed(1)
    weights = causal.random_weights(causal.random_dag(4, 5, generator=g), generator=g).double()
    x = causal.LogisticSCM(weights).sample(500, generator=g)
    scores = []
    for order in itertools.permutations(range(4)):
        model = causal.LogisticSCM(causal.fit_order(x, torch.tensor(order), model="logistic"))
        scores.append(-model.log_prob(x).mean().item() / 4)
    found = causal.topological_swaps(x, model="logistic", restarts=4, generator=g)
    assert found.score.item() == pytest.approx(min(scores), rel=1e-9)


def test_separated_data_have_no_logistic_regression_without_a_penalty() -> None:
    x = torch.tensor([[0.0, 0.0], [1.0, 1.0]]).double().repeat(10, 1)
    order = torch.tensor([0, 1])
    with pytest.raises(ConvergenceError, match="node 1 has no finite answer"):
        causal.fit_order(x, order, model="logistic")
    assert causal.fit_order(x, order, model="logistic", penalty=0.1)[0, 1] > 0
    with pytest.raises(ValueError, match="must be 0 or 1"):
        causal.fit_order(2 * x, order, model="logistic")
    with pytest.raises(ValueError, match="needs samples"):
        causal.fit_order(torch.eye(2), order, model="logistic", covariance=True)


@pytest.mark.parametrize("penalty", [0.0, 0.3])
def test_a_ridge_is_in_the_weights_and_in_the_score_of_the_search(penalty: float) -> None:
    _, x = _planted(6)
    moments = causal.second_moments(x)
    result = causal.topological_swaps(x, penalty=penalty, generator=torch.Generator().manual_seed(0))
    weights = causal.fit_order(x, result.order, penalty=penalty)
    torch.testing.assert_close(result.weights, weights)
    whole = causal.least_squares_score(weights, moments) + penalty * weights.square().sum() / 6
    assert result.score.item() == pytest.approx(whole.item(), rel=1e-10)
    free = weights.detach().clone().requires_grad_()
    objective = causal.least_squares_score(free, moments) + penalty * free.square().sum() / 6
    (slope,) = torch.autograd.grad(objective, free)
    assert slope[weights != 0].abs().max() < 1e-12


def test_swaps_regress_a_node_where_nobody_set_it() -> None:
    g = torch.Generator().manual_seed(2)
    weights = causal.random_weights(causal.random_dag(5, 6, generator=g), generator=g).double()
    model = causal.LinearSCM(weights)
    parts = [model.rsample(300, generator=g)]
    parts += [
        model.rsample(100, interventions={node: 3.0 * torch.randn(100, generator=g)}, generator=g) for node in (1, 3)
    ]
    x = torch.cat(parts)
    targets = torch.zeros(x.shape, dtype=torch.bool)
    targets[300:400, 1] = targets[400:, 3] = True
    result = causal.topological_swaps(x, targets=targets, restarts=3, generator=g)
    assert torch.equal(result.weights.abs() > 0.3, weights != 0)
    total = 0.0
    place = result.order.argsort()
    for node in range(5):
        free = ~targets[:, node]
        before = result.order[: place[node]]
        fit = torch.linalg.lstsq(x[free][:, before], x[free, node]).solution
        total += (x[free, node] - x[free][:, before] @ fit).square().mean().item()
        torch.testing.assert_close(result.weights[before, node], fit, rtol=1e-8, atol=1e-10)
    assert result.score.item() == pytest.approx(total / 5, rel=1e-10)
    assert bool(result.converged)
    with pytest.raises(ValueError, match="targets need samples"):
        causal.topological_swaps(x, targets=targets, model="logistic")


def test_two_variables_are_told_apart_by_interventions_alone() -> None:
    g = torch.Generator().manual_seed(0)
    cause = torch.randn(400, 1, generator=g)
    x = torch.cat([cause, 0.6 * cause + 0.8 * torch.randn(400, 1, generator=g)], 1).double()  # equal variances
    targets = torch.zeros(x.shape, dtype=torch.bool)
    x[200:, 1], targets[200:, 1] = 2 * torch.randn(200, generator=g).double(), True
    assert causal.topological_swaps(x, targets=targets, generator=g).order.tolist() == [0, 1]
