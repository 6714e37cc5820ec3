"""Doubt and pessimism: what a search finds, weights that undo noise, lower bounds, what is refused."""

from __future__ import annotations

import pytest
import torch
from tests.contracts.law import seeded
from torch import Tensor

from pullback import dynamics
from pullback.core.errors import ConvergenceError
from pullback.dynamics import MarkovDecisionProcess, Transitions


def linear(params: Tensor, inputs: Tensor) -> Tensor:
    return inputs @ params


def bent(params: Tensor, inputs: Tensor) -> Tensor:
    return torch.tanh(inputs @ params[:2]) * params[2]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed)).double()


def test_a_search_of_linear_functions_ends_at_the_ellipse_and_never_above() -> None:
    points, data, variance = normal(5, 3), normal(20, 3, seed=1), normal(20, seed=2).exp()
    exact = dynamics.d2_divergence(points, data, variance=variance, ridge=0.5)
    for method in ("gradient", "search"):
        found = dynamics.d2_divergence(
            points, data, function=linear, params=normal(3, seed=3), variance=variance, ridge=0.5, method=method
        )
        torch.testing.assert_close(found, exact, rtol=1e-9, atol=0.0)


def test_a_search_of_bent_functions_finds_more_than_random_pairs() -> None:
    points, data, center = normal(4, 2), 0.3 * normal(6, 2, seed=1), torch.tensor([0.2, -0.4, 1.0]).double()
    found = dynamics.d2_divergence(points, data, function=bent, params=center, method="search")
    offsets = normal(4000, 3, seed=2)
    pairs = center + 0.5 * offsets / offsets.norm(dim=-1, keepdim=True)
    here, there = (torch.stack([bent(p, x) for p in pairs]) for x in (points, data))
    ratios = (here[:2000] - here[2000:]) ** 2 / ((there[:2000] - there[2000:]).square().sum(-1, keepdim=True) + 1)
    assert bool((found >= ratios.amax(0)).all())
    linearised = dynamics.d2_divergence(points, data, function=bent, params=center, method="gradient")
    assert float((found / linearised).amax()) > 1.05  # a bent function may differ by more than its tangent


def test_weights_undo_noise_of_different_size() -> None:
    x, deviation = normal(400, 3), torch.tensor([0.1, 3.0]).double().repeat(200)
    truth = torch.tensor([1.0, -2.0, 0.5]).double()
    errors = []
    for seed in range(20):
        y = x @ truth + deviation * normal(400, seed=10 + seed)
        fits = [dynamics.weighted_regression(x, y, weights=w, ridge=1e-6) for w in (deviation**-2, None)]
        errors.append(torch.stack([(fit.params - truth).square().sum() for fit in fits]))
    weighted, plain = torch.stack(errors).mean(0)
    assert float(weighted) < 0.01 * float(plain)  # 2 / 400 x 0.01 against 9 / 2 / 400 by the theory: 1 to 450


def record(episodes: int, seed: int) -> tuple[MarkovDecisionProcess, Transitions]:
    """A state with one good action, rarely seen, and noise of size 1; two steps."""
    process = MarkovDecisionProcess(torch.ones(1, 2, 1).double(), torch.tensor([[0.5, 0.9]]).double(), 1.0)
    action = (torch.rand(episodes, 2, generator=seeded(seed)) < 0.2).long()
    reward = process.reward[0, action] + normal(episodes, 2, seed=seed + 1)
    zero = torch.zeros_like(action)
    return process, Transitions(zero, action, reward, zero, zero > 0)


def test_variances_and_lower_bounds_of_a_long_record() -> None:
    process, seen = record(20_000, 5)
    found = dynamics.pessimistic_value_iteration(seen, torch.eye(2).double()[None], beta=2.0)
    torch.testing.assert_close(found.variance, torch.ones(2, 1, 2).double(), rtol=0.1, atol=0.0)
    assert found.policy.tolist() == [[1], [1]]
    truth = dynamics.suboptimality(process, found.policy, 2).values
    assert bool((found.values < truth).all())
    assert bool((found.values > truth - 0.2).all())


def test_a_class_of_functions_as_good_as_its_table() -> None:
    _, seen = record(60, 7)
    features = torch.eye(2).double()[None]
    options = {"variance": 1.0, "beta": 0.5}
    table = dynamics.pessimistic_value_iteration(seen, features, **options)
    same = dynamics.pessimistic_value_iteration(
        seen, features, **options, function=linear, params=torch.zeros(2).double()
    )
    torch.testing.assert_close(same.action_values, table.action_values, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(same.bonus, table.bonus)


def test_records_of_several_at_once_are_those_of_each() -> None:
    parts = [record(30, seed)[1] for seed in (0, 1)]
    both = Transitions(*(torch.stack(column) for column in zip(*parts, strict=True)))
    features = torch.eye(2).double()[None]
    together = dynamics.pessimistic_value_iteration(both, features)
    for i, part in enumerate(parts):
        for whole, alone in zip(together, dynamics.pessimistic_value_iteration(part, features), strict=True):
            torch.testing.assert_close(whole[i], alone)


def test_a_class_of_functions_over_several_records_is_that_of_each() -> None:
    def curve(params: Tensor, inputs: Tensor) -> Tensor:
        return params[0] + params[1] * torch.sigmoid(inputs @ params[2:])

    parts = [record(40, seed)[1] for seed in (0, 1, 2)]
    both = Transitions(*(torch.stack(column) for column in zip(*parts, strict=True)))
    features, start = torch.eye(2).double()[None], torch.tensor([0.0, 1.0, 0.1, 0.2]).double()
    together = dynamics.pessimistic_value_iteration(both, features, function=curve, params=start)
    assert bool(together.converged.all())
    for i, part in enumerate(parts):
        alone = dynamics.pessimistic_value_iteration(part, features, function=curve, params=start)
        torch.testing.assert_close(together.values[i], alone.values, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(together.bonus[i], alone.bonus, rtol=1e-4, atol=1e-5)


def test_means_of_equal_inputs_weigh_as_often_as_they_were_seen() -> None:
    x, y = normal(3, 2).repeat_interleave(torch.tensor([5, 1, 4]), 0), normal(10, seed=1)
    once, mean, count = [], [], []
    for part, targets in zip(x.split([5, 1, 4]), y.split([5, 1, 4]), strict=True):
        once.append(part[0])
        mean.append(targets.mean())
        count.append(len(targets))
    weights = torch.tensor([*count, 0]).double()  # and one that was never seen
    few = dynamics.weighted_regression(
        torch.stack([*once, once[0]]), torch.stack([*mean, mean[0] + 9]), weights=weights
    )
    torch.testing.assert_close(few.params, dynamics.weighted_regression(x, y).params)


def test_what_is_refused() -> None:
    points = torch.ones(2, 2)
    with pytest.raises(ValueError, match="with a function, got 'linear'"):
        dynamics.d2_divergence(points, points, function=linear, params=torch.ones(2))
    with pytest.raises(ValueError, match=r"function must return shape \(1,\)"):
        dynamics.d2_divergence(points, points, function=lambda p, x: x, params=torch.ones(2), method="gradient")
    with pytest.raises(TypeError, match="floating values that have a gradient"):
        dynamics.d2_divergence(
            points, points, function=lambda p, x: (x @ p).long(), params=torch.ones(2), method="gradient"
        )
    with pytest.raises(ConvergenceError, match="the ridge is lost"):
        dynamics.d2_divergence(points, 1e10 * points)
    _, seen = record(1, 0)
    with pytest.raises(ValueError, match="at least 2 episodes to split"):
        dynamics.pessimistic_value_iteration(seen, torch.eye(2)[None])
    with pytest.raises(ValueError, match=r"seen.action must be in 0..1"):
        dynamics.pessimistic_value_iteration(seen._replace(action=seen.action + 2), torch.eye(2)[None])
    with pytest.raises(ValueError, match=r"seen.action must have shape \(..., episodes, horizon\)"):
        dynamics.pessimistic_value_iteration(Transitions(*(x[0] for x in seen)), torch.eye(2)[None])
