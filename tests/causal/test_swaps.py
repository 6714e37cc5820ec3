"""The search over orders by swaps: its neighbourhoods, what it counts, and the regressions inside."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from pullback import ConvergenceError, causal


def _planted(nodes: int, arcs: int, samples: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    graph = causal.random_dag(nodes, arcs, generator=generator)
    model = causal.LinearSCM(causal.random_weights(graph, generator=generator).double())
    return model.rsample(samples, generator=generator)


def _explained(x: Tensor, order: list[int]) -> float:
    """Mean squared error of regressing every node on those before it, by numpy."""
    columns = (x - x.mean(0))[:, order].numpy()
    left = 0.0
    for k in range(len(order)):
        fit = np.linalg.lstsq(columns[:, :k], columns[:, k], rcond=None)[0]
        left += np.square(columns[:, k] - columns[:, :k] @ fit).mean()
    return left / len(order)


def _swapped(order: list[int], pair: tuple[int, int]) -> list[int]:
    swapped = list(order)
    swapped[pair[0]], swapped[pair[1]] = order[pair[1]], order[pair[0]]
    return swapped


@pytest.mark.parametrize("candidates", ["gradient", "nearest", "random"])
def test_at_the_end_no_swap_of_two_nodes_lowers_the_score(candidates: str) -> None:
    x = _planted(6, 9, 300, seed=3)
    found = causal.topological_swaps(x, candidates=candidates, generator=torch.Generator().manual_seed(1))
    order = found.order.tolist()
    assert found.score.item() == pytest.approx(_explained(x, order), rel=1e-9)
    for pair in itertools.combinations(range(6), 2):
        assert _explained(x, _swapped(order, pair)) >= found.score.item() * (1 - 1e-9)


def test_the_nearest_pairs_are_the_adjacent_ones_first() -> None:
    x = _planted(6, 9, 300, seed=4)
    start = [5, 4, 3, 2, 1, 0]
    adjacent = [(k, k + 1) for k in range(5)]
    order, steps = start, 0
    while True:  # steepest descent over adjacent pairs, from regressions
        scores = [_explained(x, _swapped(order, pair)) for pair in adjacent]
        if min(scores) >= _explained(x, order) * (1 - 1e-12):
            break
        order, steps = _swapped(order, adjacent[int(np.argmin(scores))]), steps + 1
    found = causal.topological_swaps(
        x, order=torch.tensor(start), candidates="nearest", small=5, large_searches=0, restarts=1
    )
    assert found.order.tolist() == order
    assert len(found.history["score"]) == steps + 1
    assert found.history["scored"].tolist() == [1 + 5 * (k + 1) for k in range(steps + 1)]


def test_all_pairs_are_tried_once_an_order() -> None:
    x = _planted(5, 6, 300, seed=0)
    found = causal.topological_swaps(x, generator=torch.Generator().manual_seed(2))
    # Ten pairs an order, also of the last: a wide search has nothing to add.
    assert found.history["scored"].tolist() == [1 + 10 * (k + 1) for k in range(len(found.history["score"]))]


def test_other_candidates_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="candidates must be one of 'gradient', 'nearest', 'random', got 'all'"):
        causal.topological_swaps(_planted(4, 3, 50, seed=0), candidates="all")


def test_a_wide_search_leaves_where_a_small_one_is_stuck() -> None:
    x = _planted(8, 16, 500, seed=5)
    start = torch.arange(8)
    stuck = causal.topological_swaps(x, order=start, small=1, large_searches=0)
    wide = causal.topological_swaps(x, order=start, small=1, large=28, large_searches=1)
    assert wide.score < stuck.score * (1 - 1e-6)
    assert wide.history["score"][: len(stuck.history["score"])].tolist() == stuck.history["score"].tolist()


def test_fewer_samples_than_nodes_need_a_penalty() -> None:
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with pytest.raises(ValueError, match="more samples than nodes or a penalty, got shape"):
        causal.topological_swaps(x)
    found = causal.topological_swaps(x, penalty=0.5, generator=torch.Generator().manual_seed(0))
    order = found.order.tolist()
    columns, total = (x - x.mean(0))[:, order].numpy(), 0.0
    for k in range(8):  # a ridge is a regression with sqrt(n penalty) I below the data
        ridge = np.concatenate([columns[:, :k], np.sqrt(5 * 0.5) * np.eye(8)[:k, :k]])
        target = np.concatenate([columns[:, k], np.zeros(k)])
        fit = np.linalg.lstsq(ridge, target, rcond=None)[0]
        np.testing.assert_allclose(found.weights[order[:k], order[k]].numpy(), fit, atol=1e-10)
        total += np.square(target - ridge @ fit).sum() / 5
    assert found.score.item() == pytest.approx(total / 8, rel=1e-10)


def test_large_logits_are_no_separation() -> None:
    """A few rows whose logit is beyond 25, while the others leave a finite answer."""
    generator = torch.Generator().manual_seed(0)
    parents = (torch.rand(2000, 12, generator=generator) < 0.12).double()
    odds = torch.sigmoid(2.5 * parents.sum(1))
    child = (torch.rand(2000, generator=generator) < odds).double()
    parents[:3], child[:3] = 1.0, 1.0
    x = torch.cat([parents, child[:, None]], 1)
    weights = causal.fit_order(x, torch.arange(13), model="logistic")[:12, 12]
    assert (parents @ weights).max() > 25

    a, y = parents.numpy(), child.numpy()
    loss = lambda w: (np.logaddexp(0, a @ w) - y * (a @ w)).mean()  # noqa: E731
    slope = lambda w: a.T @ (1 / (1 + np.exp(-a @ w)) - y) / len(y)  # noqa: E731
    peer = minimize(loss, np.zeros(12), jac=slope, method="BFGS", options={"gtol": 1e-9})
    np.testing.assert_allclose(weights.numpy(), peer.x, rtol=1e-4)


def test_a_swap_changes_nothing_outside_of_its_places() -> None:
    x = _planted(7, 12, 200, seed=6)
    moments = causal.second_moments(x)
    order = [3, 0, 6, 2, 5, 1, 4]
    for first, last in itertools.combinations(range(7), 2):
        whole = causal.score_order(moments, torch.tensor(_swapped(order, (first, last))))
        factor = torch.linalg.cholesky(moments[order][:, order])
        between = factor[first : last + 1, first : last + 1]  # of what lies there, given all before
        inside = torch.tensor(_swapped(list(range(len(between))), (0, len(between) - 1)))
        change = causal.score_order(between @ between.mT, inside) * len(between) - between.diagonal().square().sum()
        assert whole.item() == pytest.approx((factor.diagonal().square().sum() + change).item() / 7, rel=1e-10)


def test_regressions_on_allowed_causes_are_those_of_numpy_and_required_arcs_stay_forward() -> None:
    x = _planted(6, 9, 300, seed=5)
    generator = torch.Generator().manual_seed(0)
    allowed = torch.rand(6, 6, generator=generator) < 0.6
    found = causal.topological_swaps(x, allowed=allowed, restarts=2, generator=generator)
    centred, weights = x - x.mean(0), torch.zeros(6, 6, dtype=torch.float64)
    place = found.order.argsort()
    for node in range(6):
        causes = [i for i in range(6) if allowed[i, node] and place[i] < place[node]]
        fit = np.linalg.lstsq(centred[:, causes].numpy(), centred[:, node].numpy(), rcond=None)[0]
        weights[causes, node] = torch.from_numpy(fit)
    torch.testing.assert_close(found.weights, weights, rtol=1e-8, atol=1e-10)
    assert found.score.item() == pytest.approx((centred - centred @ weights).square().mean().item(), rel=1e-9)

    free = causal.topological_swaps(x, generator=generator)
    back = torch.zeros(6, 6, dtype=torch.bool)
    back[free.order[-1], free.order[0]] = back[free.order[3], free.order[1]] = True
    for candidates in ("gradient", "nearest", "random"):
        found = causal.topological_swaps(x, required=back, candidates=candidates, restarts=3, generator=generator)
        place = found.order.argsort()
        assert all(place[i] < place[k] for i, k in back.nonzero().tolist())
        assert (found.graph(1e6) == back).all()
        assert found.score > free.score


def test_everything_allowed_is_the_search_without_a_mask() -> None:
    x = _planted(6, 9, 300, seed=6)
    start = torch.tensor([3, 1, 5, 0, 2, 4])
    free = causal.topological_swaps(x, order=start)
    masked = causal.topological_swaps(x, order=start, allowed=torch.ones(6, 6, dtype=torch.bool))
    torch.testing.assert_close(masked.history["score"], free.history["score"], rtol=1e-10, atol=0)
    torch.testing.assert_close(masked.weights, free.weights, rtol=1e-8, atol=1e-10)


def test_a_batch_is_searched_as_its_data_sets_one_by_one() -> None:
    x = torch.stack([_planted(4, 4, 30, seed=k) for k in range(4)]).view(2, 2, 30, 4)
    both = causal.topological_swaps(x, restarts=2, generator=torch.Generator().manual_seed(1))
    one = torch.Generator().manual_seed(1)
    for index in itertools.product(range(2), repeat=2):
        alone = causal.topological_swaps(x[index], restarts=2, generator=one)
        for name in ("weights", "order", "score", "restart_weights", "restart_scores", "converged"):
            assert torch.equal(getattr(both, name)[index], getattr(alone, name)), name
        for name, path in alone.history.items():
            whole = both.history[name][(slice(None), *index)]
            assert torch.equal(whole[: len(path)], path)
            assert (whole[len(path) :] == path[-1]).all()
    start = torch.arange(4).expand(2, 2, 4)
    again = causal.topological_swaps(x, order=start, targets=torch.zeros(x.shape, dtype=torch.bool))
    assert again.graph().shape == (2, 2, 4, 4)
    assert (again.score <= causal.score_order(x.mT @ x / 30, start)).all()


def _counts(seed: int, samples: int = 3000) -> Tensor:
    """Counts of a chain 2 -> 0 -> 3 with a shortcut, and of a node 1 by itself, rate ``exp(x W)``."""
    g = torch.Generator().manual_seed(seed)
    x = torch.zeros(samples, 4, dtype=torch.float64)
    x[:, 2] = torch.poisson(torch.ones(samples).double(), generator=g)
    x[:, 1] = torch.poisson(torch.ones(samples).double(), generator=g)
    x[:, 0] = torch.poisson((0.5 * x[:, 2]).exp(), generator=g)
    x[:, 3] = torch.poisson((0.3 * x[:, 2] - 0.6 * x[:, 0]).exp(), generator=g)
    return x


def test_counts_are_searched_with_poisson_regressions() -> None:
    x = _counts(0)
    order = torch.tensor([3, 1, 0, 2])
    a, y = x[:, [3, 1, 0]].numpy(), x[:, 2].numpy()
    loss = lambda w: (np.exp(a @ w) - y * (a @ w)).mean()  # noqa: E731
    peer = minimize(loss, np.zeros(3), method="BFGS", options={"gtol": 1e-8})
    np.testing.assert_allclose(causal.fit_order(x, order, model="poisson")[order[:3], 2].numpy(), peer.x, atol=1e-5)

    found = causal.topological_swaps(x, model="poisson", order=order)
    truth = torch.zeros(4, 4, dtype=torch.bool)
    truth[2, 0] = truth[2, 3] = truth[0, 3] = True
    assert torch.equal(found.graph(0.15), truth)
    np.testing.assert_allclose(found.weights[truth].numpy(), [-0.6, 0.5, 0.3], atol=0.06)
    fitted = (x @ found.weights).numpy()
    assert found.score.item() == pytest.approx((np.exp(fitted) - x.numpy() * fitted).mean(), rel=1e-9)
    held = torch.ones(4, 4, dtype=torch.bool)
    held[2, 0] = False
    assert causal.topological_swaps(x, model="poisson", allowed=held).weights[2, 0] == 0


def test_poisson_regressions_that_have_no_answer_say_so_and_those_of_large_counts_end() -> None:
    x = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 0.0], [0.0, 2.0]])  # nothing is counted where the first is positive
    with pytest.raises(ConvergenceError, match="the Poisson regression of node 1 has no finite answer"):
        causal.fit_order(x, torch.tensor([0, 1]), model="poisson")
    assert causal.fit_order(x, torch.tensor([0, 1]), model="poisson", penalty=0.1)[0, 1] < 0
    large = 300 * _counts(1, 50)
    weights = causal.fit_order(large, torch.tensor([2, 1, 0, 3]), model="poisson", penalty=1.0)
    slope = large.mT @ ((large @ weights).exp() - large) / 50 + weights
    assert slope.triu(1)[2, 0].abs() < 1e-3
    with pytest.raises(ValueError, match="whole numbers >= 0"):
        causal.topological_swaps(x - 1, model="poisson")
