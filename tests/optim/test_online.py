"""Online learners against closed forms, scipy and the rules of their papers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor

from pullback.core.errors import ConvergenceError
from pullback.optim import (
    OnlineDescent,
    OnlineEnsemble,
    OptimisticMirrorDescent,
    online_regret,
    projection_ball_in_metric,
)


def _slopes(rounds: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randn(rounds, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _clip(x: np.ndarray, radius: float) -> np.ndarray:
    return x / max(1.0, float(np.linalg.norm(x)) / radius)


@pytest.mark.parametrize("curvature", ["convex", "strong"])
def test_the_two_steps_of_a_round_are_those_of_the_paper(curvature: str) -> None:
    slopes = _slopes(12, 3)
    strength = None if curvature == "convex" else 0.5
    learner = OptimisticMirrorDescent(
        torch.zeros(3).double(), diameter=2.0, lipschitz=4.0, curvature=curvature, strength=strength, delta=0.3
    )
    center, hint, varied = np.zeros(3), np.zeros(3), 0.0
    for t, slope in enumerate(slopes.numpy(), 1):
        eta = 2.0 / math.sqrt(0.3 + 4 * 16 + varied) if curvature == "convex" else 2 / (0.5 * t)
        np.testing.assert_allclose(learner.play().numpy(), _clip(center - eta * hint, 1.0), atol=1e-12)
        learner.observe(torch.tensor(slope))
        center = _clip(center - eta * slope, 1.0)
        varied += float(((slope - hint) ** 2).sum())
        hint = slope


def test_the_step_of_strong_convexity_pays_the_logarithm_of_the_rounds() -> None:
    """Of squared distances from points that scatter around one; that of convex losses pays the root."""
    points = 0.5 + _slopes(800, 3, 10) / math.sqrt(10)
    grown = {}
    for curvature, strength in (("convex", None), ("strong", 1.0)):
        learner = OptimisticMirrorDescent(
            torch.zeros(3, 10).double(), diameter=10.0, lipschitz=10.0, curvature=curvature, strength=strength
        )
        excess, total, regret = torch.zeros(3).double(), torch.zeros(3, 10).double(), []
        for t, point in enumerate(points, 1):
            x = learner.play()
            excess += ((x - point).square().sum(-1) - point.square().sum(-1)) / 2
            total += point
            learner.observe(x - point)
            if t in (200, 800):  # the best decision is the mean
                regret.append((excess + total.square().sum(-1) / (2 * t)).mean())
        grown[curvature] = float(regret[1] / regret[0])
    assert grown["strong"] < 1.2
    assert grown["convex"] > 1.7


def test_newton_steps_are_those_of_scipy() -> None:
    slopes, beta = _slopes(5, 2), 0.5 * min(1 / (4 * 3.0 * 2.0), 0.7)
    learner = OptimisticMirrorDescent(
        torch.zeros(2).double(), diameter=2.0, lipschitz=3.0, geometry="newton", curvature="exp-concave", strength=0.7
    )
    center, hint, metric = np.zeros(2), np.zeros(2), (1 + beta * 9 / 2) * np.eye(2)

    def step(slope: np.ndarray) -> np.ndarray:
        value = lambda x: slope @ x + (x - center) @ metric @ (x - center) / 2  # noqa: E731
        inside = {"type": "ineq", "fun": lambda x: 1 - x @ x}
        return scipy.optimize.minimize(value, np.zeros(2), method="SLSQP", constraints=[inside], tol=1e-14).x

    for slope in slopes.numpy():
        np.testing.assert_allclose(learner.play().numpy(), step(hint), atol=1e-6)
        learner.observe(torch.tensor(slope))
        center = step(slope)
        metric = metric + beta / 2 * np.outer(slope, slope)
        hint = slope


def test_on_the_simplex_it_is_multiplicative_weights_with_a_hint() -> None:
    slopes = _slopes(20, 4)
    learner = OptimisticMirrorDescent(torch.full((4,), 0.25).double(), diameter=1.0, geometry="simplex", lr=0.3)
    for t, slope in enumerate(slopes):
        closed = torch.softmax(-0.3 * (slopes[:t].sum(0) + (slopes[t - 1] if t else 0)), 0)
        torch.testing.assert_close(learner.play(), closed, rtol=0, atol=1e-12)
        learner.observe(slope)


def test_long_gradients_are_counted() -> None:
    learner = OptimisticMirrorDescent(torch.zeros(2, 1), diameter=1.0, lipschitz=1.0)
    for slope in (0.5, 2.0, 3.0):
        learner.play()
        learner.observe(torch.tensor([[slope], [0.1]]))
    assert learner.exceeded.tolist() == [2, 0]


@pytest.mark.parametrize("rule", ["adagrad", "sqrt", "horizon"])
def test_descent_takes_the_step_of_its_rule(rule: str) -> None:
    slopes, x, square = _slopes(10, 2), np.zeros(2), 0.0
    learner = OnlineDescent(
        torch.zeros(2).double(), diameter=3.0, lipschitz=2.0, rule=rule, horizon=10 if rule == "horizon" else None
    )
    for t, slope in enumerate(slopes.numpy(), 1):
        np.testing.assert_allclose(learner.play().numpy(), x, atol=1e-12)
        square += float(slope @ slope)
        eta = {"adagrad": 3 / math.sqrt(2 * square), "sqrt": 1.5 / math.sqrt(t), "horizon": 1.5 / math.sqrt(10)}[rule]
        learner.observe(torch.tensor(slope))
        x = _clip(x - eta * slope, 1.5)


STEPS = [0.1, 0.2, 0.4]


def _ensemble() -> OnlineEnsemble:
    steps = torch.tensor(STEPS).double()
    return OnlineEnsemble(OptimisticMirrorDescent(torch.zeros(3, 2).double(), diameter=2.0, lr=steps), correction=0.3)


def test_the_mix_is_that_of_optimistic_hedge() -> None:
    slopes, ensemble = _slopes(8, 2), _ensemble()
    twins = [OptimisticMirrorDescent(torch.zeros(2).double(), diameter=2.0, lr=lr) for lr in STEPS]
    losses, surprise, hint, before = np.zeros(3), 0.0, np.zeros(2), np.zeros((3, 2))
    for slope in slopes.numpy():
        points = np.stack([twin.play().numpy() for twin in twins])
        moved = 0.3 * ((points - before) ** 2).sum(1)
        expected = points @ hint + moved
        score = -math.sqrt(math.log(3) / (1 + surprise)) * (losses + expected)
        weights = np.exp(score - score.max()) / np.exp(score - score.max()).sum()
        np.testing.assert_allclose(ensemble.play().numpy(), weights @ points, atol=1e-12)
        ensemble.observe(torch.tensor(slope))
        loss = points @ slope + moved
        losses, surprise = losses + loss, surprise + np.abs(loss - expected).max() ** 2
        hint, before = slope, points
        for twin in twins:
            twin.observe(torch.tensor(slope))


def _makers() -> list[Callable[[], Any]]:
    zeros = torch.zeros(2).double()
    return [
        lambda: OptimisticMirrorDescent(zeros, diameter=2.0, scale=torch.tensor(2.0).double()),
        lambda: OptimisticMirrorDescent(zeros, diameter=2.0, geometry="newton", curvature="exp-concave", strength=1.0),
        lambda: OnlineDescent(zeros, diameter=2.0, rule="sqrt"),
        _ensemble,
    ]


@pytest.mark.parametrize("make", _makers())
def test_a_saved_state_goes_on_to_the_bit(make: Callable[[], Any]) -> None:
    slopes, learner, twin = _slopes(9, 2), make(), make()
    for t, slope in enumerate(slopes):
        if t == 4:
            twin.load_state_dict(learner.state_dict())
        for one in (learner, twin)[: 1 + (t >= 4)]:
            one.play()
            one.observe(slope)
    assert torch.equal(learner.play(), twin.play())


def test_a_batch_is_its_learners() -> None:
    slopes, scales = _slopes(10, 3, 2), torch.tensor([0.5, 1.0, 2.0]).double()
    batch = OptimisticMirrorDescent(torch.zeros(3, 2).double(), diameter=2.0, scale=scales)
    alone = [OptimisticMirrorDescent(torch.zeros(2).double(), diameter=2.0, scale=float(s)) for s in scales]
    for slope in slopes:
        torch.testing.assert_close(batch.play(), torch.stack([one.play() for one in alone]), rtol=0, atol=1e-14)
        batch.observe(slope)
        for one, own in zip(alone, slope, strict=True):
            one.observe(own)


def test_a_comparator_is_that_of_scipy(generator: torch.Generator) -> None:
    rows = torch.randn(2, 30, 3, generator=generator, dtype=torch.float64)

    def total(u: Tensor) -> Tensor:
        return torch.nn.functional.softplus(-(rows @ u[..., None])[..., 0]).sum(-1)

    played = torch.tensor([40.0, 50.0]).double()
    found = online_regret(total, played, torch.zeros(2, 3).double(), radius=0.2, step=0.1)
    for b in range(2):
        value = lambda u, b=b: float(torch.nn.functional.softplus(-rows[b] @ torch.tensor(u)).sum())  # noqa: E731
        inside = {"type": "ineq", "fun": lambda u: 0.04 - u @ u}
        told = scipy.optimize.minimize(value, np.full(3, 0.01), method="SLSQP", constraints=[inside], tol=1e-14)
        np.testing.assert_allclose(found.comparator[b].numpy(), told.x, atol=1e-5)
        assert float(found.regret[b]) == pytest.approx(float(played[b]) - told.fun, abs=1e-6)
    with pytest.raises(ConvergenceError):
        online_regret(total, played, torch.zeros(2, 3).double(), radius=0.2, step=1e-3, max_iterations=2)


def test_a_projection_in_the_euclidean_metric_is_the_plain_one() -> None:
    x = torch.tensor([3.0, 4.0]).double()
    torch.testing.assert_close(projection_ball_in_metric(x, 7 * torch.eye(2).double(), 2.0), 0.4 * x)
    torch.testing.assert_close(projection_ball_in_metric(x, torch.eye(2).double(), 6.0), x)


def test_wrong_use_is_refused_by_name() -> None:
    zeros = torch.zeros(2)
    make = OptimisticMirrorDescent
    with pytest.raises(ValueError, match="diameter must be > 0"):
        make(zeros, diameter=0.0)
    with pytest.raises(ValueError, match="x must lie in the ball of diameter"):
        make(zeros + 1, diameter=1.0)
    with pytest.raises(ValueError, match="x must be positive with sum 1"):
        make(zeros, diameter=1.0, geometry="simplex")
    with pytest.raises(ValueError, match="belong together"):
        make(zeros, diameter=1.0, geometry="newton")
    with pytest.raises(ValueError, match="strength is of curved losses"):
        make(zeros, diameter=1.0, curvature="strong")
    with pytest.raises(ValueError, match="lr is not for geometry 'newton'"):
        make(zeros, diameter=1.0, geometry="newton", curvature="exp-concave", strength=1.0, lr=0.1)
    with pytest.raises(RuntimeError, match=r"observe\(\) comes after play\(\)"):
        make(zeros, diameter=1.0).observe(zeros)
    learner = make(zeros, diameter=1.0)
    learner.play()
    with pytest.raises(ValueError, match="gradient must be finite"):
        learner.observe(zeros + math.nan)
    with pytest.raises(ValueError, match="gradient must have shape"):
        learner.observe(torch.zeros(3))
    with pytest.raises(ValueError, match="horizon is of the rule 'horizon'"):
        OnlineDescent(zeros, diameter=1.0, rule="horizon")
    with pytest.raises(TypeError, match="learners must be an OptimisticMirrorDescent"):
        OnlineEnsemble(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="learners must be at least two"):
        OnlineEnsemble(learner)
    with pytest.raises(RuntimeError, match=r"observe\(\) comes after play\(\)"):
        _ensemble().observe(zeros.double())
    with pytest.raises(TypeError, match="total"):
        online_regret(3, zeros[0], zeros, radius=1.0)  # type: ignore[arg-type]
