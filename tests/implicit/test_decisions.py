"""Decisions under uncertainty: degenerate laws, duality, dispatch at its bends, networks that learn Bayes actions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pullback.implicit import DecisionMap, cvar, economic_dispatch, kl_worst_case, newsvendor_action, newsvendor_cost


def _dual(costs: Tensor, law: Tensor, radius: float) -> float:
    """Minimise the dual on a fine grid of ``log(alpha - max c)``; from above, it is an upper bound."""
    spread = float(costs.max() - costs.min())
    alpha = costs.max() + spread * torch.logspace(-12, 6, 200_001, dtype=torch.float64)
    logs = torch.where(law > 0, law * (alpha[:, None] - costs).log(), 0).sum(-1)
    return float((alpha - (logs - radius).exp()).min())


@pytest.mark.parametrize("radius", [1e-8, 1e-3, 0.1, 2.0, 12.0])
@pytest.mark.parametrize("law", [[0.2, 0.3, 0.5], [0.5, 0.5, 0.0], [0.0, 1.0, 0.0], [0.999999, 1e-6, 0.0]])
def test_the_worst_law_attains_the_dual_value_inside_the_ball(radius: float, law: list[float]) -> None:
    p, costs = torch.tensor(law, dtype=torch.float64), torch.tensor([-1.0, 2.0, 3.0], dtype=torch.float64)
    worst = kl_worst_case(costs, p, radius=radius)
    assert worst.value.item() == pytest.approx(_dual(costs, p, radius), abs=1e-6)
    assert float(worst.law @ costs) == pytest.approx(worst.value.item(), abs=1e-6)
    assert float(worst.law.sum()) == pytest.approx(1)
    some = p > 0
    assert float((p * torch.where(some, p / worst.law, 1.0).log())[some].sum()) <= radius * (1 + 1e-6) + 1e-12


def test_no_radius_is_the_mean_and_equal_costs_stay() -> None:
    law = torch.tensor([0.25, 0.75])
    assert kl_worst_case(torch.tensor([1.0, 5.0]), law, radius=0.0).value == 4
    same = kl_worst_case(torch.full((2,), 3.0), law, radius=1.0)
    assert same.value == 3
    assert same.law.tolist() == law.tolist()


@pytest.mark.parametrize("costs", [[3.0, 3.0, 3.0], [1.0, 3.0, 3.0], [3.0, 1.0, 2.0], [3.0, 3.0 - 1e-7, 2.0]])
@pytest.mark.parametrize("law", [[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [1 - 1e-5, 0.0, 1e-5]])
def test_gradients_are_finite_where_nothing_can_get_worse(costs: list[float], law: list[float]) -> None:
    c, p = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (costs, law))
    worst = kl_worst_case(c, p, radius=0.02)
    slopes = torch.autograd.grad(worst.value, (c, p), create_graph=True)
    assert all(bool(slope.isfinite().all()) for slope in slopes)
    assert slopes[0].sum().item() == pytest.approx(1)
    assert bool((slopes[0] >= -1e-9).all())
    assert bool(torch.autograd.grad(slopes[0].square().sum(), c)[0].isfinite().all())


def test_the_gradient_of_the_worst_case_is_the_worst_law() -> None:
    costs = torch.tensor([0.0, 4.0, 1.0, 9.0], requires_grad=True)
    worst = kl_worst_case(costs, torch.tensor([0.4, 0.4, 0.2, 0.0]), radius=torch.tensor(0.3))
    torch.testing.assert_close(torch.autograd.grad(worst.value, costs)[0], worst.law)


def test_cvar_with_weights_counts_a_loss_as_often_as_it_is_repeated() -> None:
    losses, times = torch.tensor([3.0, -1.0, 2.0, 7.0]), torch.tensor([2, 5, 1, 2])
    for level in (0.0, 0.13, 0.5, 0.85, 0.99):
        weighted = cvar(losses, level, weights=times / times.sum())
        torch.testing.assert_close(weighted, cvar(losses.repeat_interleave(times), level))
    assert cvar(losses, 0.75) == 7


def test_the_newsvendor_buys_the_quantile_that_costs_least_on_average() -> None:
    law = torch.tensor([0.1, 0.4, 0.1, 0.4])
    demand = torch.tensor([0.0, 2.0, 5.0, 6.0])
    grid = torch.linspace(0, 6, 601)
    for cost in (0.5, 2.0, 4.4, 6.5):
        action = newsvendor_action(law, demand, cost=cost, revenue=7.0)
        means = newsvendor_cost(grid[:, None], demand, cost=cost, revenue=7.0) @ law
        assert float(newsvendor_cost(action, demand, cost=cost, revenue=7.0) @ law) <= float(means.min()) + 1e-5


def test_a_curvature_that_vanishes_leads_to_the_merit_order() -> None:
    cost, capacity = torch.tensor([3.0, 1.0, 2.0]).double(), torch.tensor([1.0, 2.0, 0.0]).double()
    demand = torch.linspace(-0.5, 3.5, 33).double()
    sharp, soft = (economic_dispatch(demand, cost, capacity, curvature=c) for c in (0.0, 1e-7))
    torch.testing.assert_close(soft.power, sharp.power)
    torch.testing.assert_close(sharp.power.sum(-1) + sharp.shortage, demand.clamp(min=0))
    assert not sharp.power[:, 2].any()  # without capacity
    assert sharp.price[demand == 2.5].item() == 3


@pytest.mark.parametrize("curvature", [0.0, 1.0])
def test_where_generators_are_just_full_the_last_one_takes_up_a_change(curvature: float) -> None:
    cost, capacity = torch.tensor([1.0, 5.0, 9.0]).double(), torch.tensor([1.0, 2.0, 1.0]).double()
    demand = torch.tensor([1.0, 3.0, 4.0]).double().requires_grad_()  # right at the ends of the pieces
    power = economic_dispatch(demand, cost, capacity, curvature=curvature).power
    rises = torch.stack([torch.autograd.grad(p.sum(), demand, retain_graph=True)[0] for p in power.unbind(-1)], -1)
    torch.testing.assert_close(rises, torch.eye(3).double())


def test_the_price_is_the_derivative_of_the_least_cost() -> None:
    cost, capacity = torch.tensor([3.0, 1.0, 2.0]).double(), torch.tensor([1.0, 2.0, 1.5]).double()
    for curvature in (0.0, 0.7):
        demand = torch.tensor([0.3, 2.2, 4.1], dtype=torch.float64, requires_grad=True)
        found = economic_dispatch(demand, cost, capacity, curvature=curvature)
        total = (cost * found.power + curvature / 2 * found.power**2).sum()
        torch.testing.assert_close(torch.autograd.grad(total, demand)[0], found.price.detach())


def test_a_map_trained_on_the_cost_alone_finds_the_bayes_action() -> None:
    """Demand 1 or 2; the prior of the chance of 2 is uniform: the posterior mean after n heads of 3 is (n + 1) / 5."""
    g = torch.Generator().manual_seed(0)
    decide = DecisionMap(1, 1, hidden=16, feasible=lambda z: 1 + z.squeeze(-1).sigmoid(), generator=g)
    optimizer = torch.optim.Adam(decide.parameters(), lr=1e-2)
    for _ in range(150):
        chance = torch.rand(256, 1, generator=g)
        seen = (torch.rand(256, 3, generator=g) < chance).float()
        action = decide(seen[..., None])[:, None]
        costs = newsvendor_cost(action, torch.tensor([1.0, 2.0]), cost=5.0, revenue=10.0)
        loss = (costs * torch.cat([1 - chance, chance], -1)).sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    heads = torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1]])
    posterior = (heads.sum(-1) + 1) / 5
    exact = newsvendor_action(torch.stack([1 - posterior, posterior], -1), cost=5.0, revenue=10.0)
    assert exact.tolist() == [1, 1, 2, 2]
    torch.testing.assert_close(decide(heads[..., None]).detach(), exact, atol=0.2, rtol=0)


@pytest.mark.parametrize(
    ("words", "error", "match"),
    [
        ({"pool": "max"}, ValueError, "pool must be one of 'mean', 'none', got 'max'"),
        ({"pool": "none"}, ValueError, "count, the number of observations, must be given"),
        ({"count": 3}, ValueError, "count must be None for a mean"),
        ({"feasible": 3}, TypeError, "feasible must be a function, got int"),
        ({"hidden": 0}, ValueError, "hidden must be an integer >= 1"),
    ],
)
def test_a_map_refuses_by_name(words: dict[str, object], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        DecisionMap(1, 1, **words)  # type: ignore[arg-type]


def test_a_radius_beyond_all_numbers_is_the_largest_cost() -> None:
    worst = kl_worst_case(torch.tensor([1.0, 2.0]), torch.tensor([0.5, 0.5]), radius=200.0)
    assert math.isclose(worst.value.item(), 2, abs_tol=1e-6)
