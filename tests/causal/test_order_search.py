"""The search over orders by moves of one node: what it scores, where it ends, and what it is told."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pullback import causal
from pullback.causal import OrderSearch, insertion_scores, order_search


def _planted(nodes: int, arcs: int, samples: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    graph = causal.random_dag(nodes, arcs, generator=generator)
    model = causal.LinearSCM(causal.random_weights(graph, generator=generator).double())
    return model.rsample(samples, generator=generator), graph


def _moved(order: list[int], source: int, target: int) -> list[int]:
    moved = list(order)
    moved.insert(target, moved.pop(source))
    return moved


def _every_move(order: list[int]) -> list[list[int]]:
    return [_moved(order, a, b) for a in range(len(order)) for b in range(len(order)) if a != b]


def _explained(x: Tensor, order: list[int], free: Tensor | None = None, allowed: Tensor | None = None) -> float:
    """Mean squared error of the regressions of every node on those before it that may be its causes."""
    left = 0.0
    for k, node in enumerate(order):
        causes = [c for c in order[:k] if allowed is None or allowed[c, node]]
        rows = x if free is None else x[free[:, node]]
        target = rows[:, [node]]
        if causes:
            target = target - rows[:, causes] @ torch.linalg.lstsq(rows[:, causes], target).solution
        left += target.square().mean().item()
    return left / len(order)


def test_all_moves_are_scored_as_factorisations_of_each_order_would() -> None:
    g = torch.Generator().manual_seed(0)
    square = torch.randn(2, 6, 8, generator=g, dtype=torch.float64)
    covariance = square @ square.mT
    order = torch.stack([torch.randperm(6, generator=g) for _ in range(2)])
    scores = insertion_scores(covariance, order)
    for row in range(2):
        for a in range(6):
            for b in range(6):
                moved = torch.tensor(_moved(order[row].tolist(), a, b))
                torch.testing.assert_close(scores[row, a, b], causal.score_order(covariance[row], moved))


def test_at_the_end_no_move_of_one_node_lowers_the_score() -> None:
    x = _planted(6, 9, 300, seed=3)[0]
    x = x - x.mean(0)
    found = order_search(x, generator=torch.Generator().manual_seed(1))
    assert found.converged
    assert found.score.item() == pytest.approx(_explained(x, found.order.tolist()), rel=1e-9)
    for order in _every_move(found.order.tolist()):
        assert _explained(x, order) >= found.score.item() * (1 - 1e-9)


def test_where_nodes_were_set_or_may_not_be_causes_every_node_has_its_own_regression() -> None:
    g = torch.Generator().manual_seed(4)
    x = _planted(5, 7, 200, seed=4)[0]
    targets = torch.rand(x.shape, generator=g) < 0.2
    allowed = torch.rand(5, 5, generator=g) < 0.7
    found = order_search(x, targets=targets, allowed=allowed, generator=g)
    assert not found.weights[~allowed].any()
    assert found.score.item() == pytest.approx(_explained(x, found.order.tolist(), ~targets, allowed), rel=1e-9)
    for order in _every_move(found.order.tolist()):
        assert _explained(x, order, ~targets, allowed) >= found.score.item() * (1 - 1e-9)


def test_required_arcs_stay_forward_in_every_order() -> None:
    x, graph = _planted(6, 8, 300, seed=5)
    against = torch.zeros_like(graph)
    cause, effect = graph.nonzero()[0].tolist()
    against[effect, cause] = True  # what the data would not say
    search = OrderSearch(x, required=against, restarts=8, generator=torch.Generator().manual_seed(0))
    while not search.finished:
        search.step()
        places = search.state_dict()["table"]["order"].argsort(-1)
        assert bool((places[:, effect] < places[:, cause]).all())
    assert search.result().graph()[effect, cause]


@pytest.mark.parametrize("nodes", [20, 60])
def test_it_finds_the_graph_of_equal_noise_from_any_order(nodes: int) -> None:
    x, graph = _planted(nodes, nodes, 2000, seed=nodes)
    found = order_search(x, restarts=3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(found.graph(), graph)
    assert found.restart_scores.max() <= found.score * (1 + 1e-3)


def test_a_batch_is_its_data_sets_one_by_one() -> None:
    x = torch.stack([_planted(7, 9, 200, seed=seed)[0] for seed in range(3)])
    start = torch.arange(7)
    together = order_search(x, order=start)
    for data, order, score, weights in zip(x, together.order, together.score, together.weights, strict=True):
        alone = order_search(data, order=start)
        assert torch.equal(alone.order, order)
        torch.testing.assert_close(alone.score, score)
        torch.testing.assert_close(alone.weights, weights)


def test_a_search_goes_on_from_its_saved_state_to_the_bit() -> None:
    x = _planted(8, 12, 200, seed=6)[0]
    whole = OrderSearch(x, restarts=2, generator=torch.Generator().manual_seed(2))
    first = OrderSearch(x, restarts=2, generator=torch.Generator().manual_seed(2))
    for _ in range(3):
        first.step()
    second = OrderSearch(x, restarts=2, generator=torch.Generator().manual_seed(99))
    second.load_state_dict(first.state_dict())
    a, b = whole.run(), second.run()
    assert torch.equal(a.order, b.order)
    assert torch.equal(a.weights, b.weights)
    assert torch.equal(a.history["score"], b.history["score"])
    with pytest.raises(ValueError, match="state: order must be"):
        second.load_state_dict({**first.state_dict(), "table": {}})


def test_a_ridge_lets_it_search_with_fewer_samples_than_nodes() -> None:
    x = _planted(12, 12, 8, seed=7)[0]
    with pytest.raises(ValueError, match="more samples than nodes or a penalty"):
        order_search(x)
    found = order_search(x, penalty=0.1)
    ridge = causal.topological_swaps(x, penalty=0.1, order=found.order, small=1, large_searches=0)
    assert found.score <= causal.topological_swaps(x, penalty=0.1, order=torch.arange(12)).score * 1.05
    torch.testing.assert_close(ridge.history["score"][0], found.score)
