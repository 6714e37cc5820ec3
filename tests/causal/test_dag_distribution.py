"""DP-DAG against a sum over all orders, and its samples against its probabilities."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from pullback import causal, discrete


def _law(nodes: int, seed: int = 0, **options: object) -> causal.DAGDistribution:
    g = torch.Generator().manual_seed(seed)
    law = causal.DAGDistribution(nodes, generator=g, **options).double()  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in law.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=g))
    return law


def _over_orders(law: causal.DAGDistribution, graph: Tensor) -> float:
    """Order by order, coin by coin."""
    coins = torch.sigmoid(law.logits.detach())
    total = 0.0
    for order in itertools.permutations(range(law.nodes)):
        share = discrete.PlackettLuce(law.scores.detach()).log_prob(torch.tensor(order)).exp().item()
        for j, i in itertools.combinations(range(law.nodes), 2):
            first, second = order[j], order[i]
            share *= (
                (coins if graph[first, second] else 1 - coins)[first, second].item()
                if law.allowed[first, second]
                else float(not graph[first, second])
            )
            share *= float(not graph[second, first])
        total += share
    return total


def test_the_probability_is_that_of_all_orders_and_sums_to_one() -> None:
    law, graphs = _law(4), causal.enumerate_dags(4)
    found = law.log_prob(graphs)
    assert found.exact
    torch.testing.assert_close(found.value.exp().sum().item(), 1.0)
    for k in range(0, 543, 60):
        assert found.value[k].exp().item() == pytest.approx(_over_orders(law, graphs[k]), rel=1e-9)
    edges = (found.value.exp()[:, None, None] * graphs).sum(0)
    torch.testing.assert_close(law.edge_probability(), edges)


def test_arcs_that_are_not_allowed_are_never_there() -> None:
    allowed = torch.ones(3, 3, dtype=torch.bool)
    allowed[0, 1] = False
    law, graphs = _law(3, allowed=allowed), causal.enumerate_dags(3)
    found = law.log_prob(graphs).value.exp()
    torch.testing.assert_close(found.sum().item(), 1.0)
    assert (found[graphs[:, 0, 1]] == 0).all()
    for graph, probability in zip(graphs, found.tolist(), strict=True):
        assert probability == pytest.approx(_over_orders(law, graph), rel=1e-9, abs=1e-15)
    assert not law.rsample((200,))[:, 0, 1].any()
    assert not law.mode()[0, 1]


def test_derivatives_of_the_probability() -> None:
    law, graph = _law(3), torch.tensor([[0, 1, 0], [0, 0, 0], [0, 0, 0]])

    def value(scores: Tensor, logits: Tensor) -> Tensor:
        parameters = {"scores": scores, "logits": logits}
        return torch.func.functional_call(_Probability(law), {f"law.{k}": v for k, v in parameters.items()}, (graph,))

    inputs = tuple(p.detach().clone().requires_grad_() for p in (law.scores, law.logits))
    assert torch.autograd.gradcheck(value, inputs)


class _Probability(torch.nn.Module):
    def __init__(self, law: causal.DAGDistribution) -> None:
        super().__init__()
        self.law = law

    def forward(self, graph: Tensor) -> Tensor:
        return self.law.log_prob(graph).value


def test_samples_follow_the_law() -> None:
    law, graphs = _law(3, seed=1), causal.enumerate_dags(3)
    drawn = law.rsample((20_000,), generator=torch.Generator().manual_seed(0)).detach()
    weights = 2.0 ** torch.arange(9, dtype=torch.float64)
    codes, known = drawn.flatten(1) @ weights, graphs.double().flatten(1) @ weights
    assert torch.isin(codes, known).all()
    seen = (codes.unsqueeze(1) == known).double().mean(0)
    assert (seen - law.log_prob(graphs).value.exp()).abs().sum() / 2 < 0.02


@pytest.mark.parametrize("order", ["topk", "sinkhorn"])
def test_samples_are_graphs_with_a_gradient_for_order_and_arcs(order: str) -> None:
    law = _law(5, order=order, batch=(2,))
    graphs = law.rsample((8,), generator=torch.Generator().manual_seed(0))
    assert graphs.shape == (8, 2, 5, 5)
    assert causal.is_acyclic(graphs).all()
    assert ((graphs == 0) | (graphs == 1)).all()
    with torch.no_grad():
        again = law.rsample((8,), generator=torch.Generator().manual_seed(0))
    assert torch.equal(again, graphs)
    (graphs * torch.randn(5, 5, generator=torch.Generator().manual_seed(1))).sum().backward()
    for parameter in law.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
        assert (parameter.grad.flatten(1).abs().sum(1) > 0).all()
    soft = law.rsample(hard=False, generator=torch.Generator().manual_seed(0))
    assert ((soft >= 0) & (soft <= 1 + 1e-9)).all()
    assert causal.is_acyclic(law.mode()).all()
    probability = law.edge_probability(2000, generator=torch.Generator().manual_seed(2)).detach()
    drawn = law.rsample((2000,), generator=torch.Generator().manual_seed(3)).detach().mean(0)
    assert (probability - drawn).abs().max() < 0.06


def test_of_many_nodes_the_probability_is_an_estimate_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    law, graphs = _law(5), causal.enumerate_dags(5)[::5000]
    exact = law.log_prob(graphs).value
    monkeypatch.setattr("pullback.causal.dag_distribution.LARGEST", 4)
    found = law.log_prob(graphs, samples=4000, generator=torch.Generator().manual_seed(0))
    assert not found.exact
    assert (found.error > 0).any()
    assert ((found.value - exact).abs() <= 4 * found.error + 1e-9).all()
    assert found.error.max() < 0.1


def test_refusals_name_what_is_wrong() -> None:
    for words, match in (
        ({"nodes": 1}, "nodes must be an integer >= 2"),
        ({"nodes": 3, "temperature": 0.0}, "temperature must be > 0"),
        ({"nodes": 3, "order": "sorted"}, "order must be one of 'topk', 'sinkhorn'"),
        ({"nodes": 3, "noise": 0.5}, "noise must be 1 with order 'topk'"),
        ({"nodes": 3, "allowed": torch.ones(2, 2, dtype=torch.bool)}, r"allowed must have shape \(3, 3\)"),
        ({"nodes": 3, "allowed": torch.eye(3, dtype=torch.bool)}, "allowed must allow at least one arc"),
    ):
        with pytest.raises(ValueError, match=match):
            causal.DAGDistribution(**words)  # type: ignore[arg-type]
    law = _law(3)
    for graph, match in (
        (torch.tensor([[0, 1, 0], [1, 0, 0], [0, 0, 0]]), "adjacency must have no cycle, got 1"),
        (torch.full((3, 3), 0.5), "adjacency must hold zeros and ones"),
        (torch.zeros(2, 2), "adjacency must be of 3 nodes"),
    ):
        with pytest.raises(ValueError, match=match):
            law.log_prob(graph)
    sinkhorn = _law(3, order="sinkhorn")
    with pytest.raises(ValueError, match="log_prob must have order 'topk'"):
        sinkhorn.log_prob(torch.zeros(3, 3))
    with pytest.raises(ValueError, match="samples must be given"):
        sinkhorn.edge_probability()
