"""Conformal bounds cover as they promise, whatever the law, with models of scikit-learn and of torch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression

from pullback.uncertainty import (
    ConformalPredictor,
    Interval,
    conformal_quantile,
    conformalize_quantiles,
    pinball_loss,
    split_conformal,
)


@pytest.mark.parametrize("n", [19, 60])
def test_coverage_is_the_share_of_its_place(n: int) -> None:
    """Of exchangeable scores, heavy-tailed ones too, the next one is covered with probability k / (n + 1)."""
    generator = torch.Generator().manual_seed(n)
    levels = torch.tensor([0.1, 0.5, 0.85, 0.95], dtype=torch.float64)
    scores = torch.randn(40_000, n + 1, generator=generator, dtype=torch.float64).exp() ** 3
    bound = conformal_quantile(scores[:, None, :n], levels)
    covered = (scores[:, n:] <= bound).double().mean(0)
    expected = torch.ceil((n + 1) * levels - 1e-9) / (n + 1)
    assert ((covered - expected).abs() <= 4 * (expected * (1 - expected) / 40_000).sqrt()).all()


def test_weights_undo_a_known_shift() -> None:
    """Calibration at x uniform, test at density 2x, errors growing with x: unweighted bounds miss, weighted cover."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(4000, 100, generator=generator, dtype=torch.float64)
    scores = x * torch.rand(4000, 100, generator=generator, dtype=torch.float64)
    new = torch.rand(4000, generator=generator, dtype=torch.float64).sqrt()
    score = new * torch.rand(4000, generator=generator, dtype=torch.float64)
    plain = (score <= conformal_quantile(scores, 0.8)).double().mean()
    weighted = (score <= conformal_quantile(scores, 0.8, weights=x, test_weight=new)).double().mean()
    assert plain < 0.75
    assert 0.8 - 0.02 <= weighted <= 0.8 + 0.03


def test_too_few_scores_are_no_bound() -> None:
    assert math.isinf(conformal_quantile(torch.arange(18.0), 0.95))
    assert conformal_quantile(torch.arange(19.0), 0.95) == 18  # (n + 1) 0.95 is a whole number but for rounding
    assert conformal_quantile(torch.arange(29.0), 0.1) == 2
    assert conformal_quantile(torch.arange(29.0), torch.tensor(0.9)) == 26  # 0.9 of float32 is above 0.9
    assert conformal_quantile(torch.arange(29.0), torch.tensor(0.1)) == 2


@pytest.mark.parametrize("level", [0.1, 0.3, 0.6, 0.7, 0.9])
def test_equal_weights_are_no_weights(level: float) -> None:
    """(n + 1) level is a whole number: rounding of the level may not move the place by one."""
    scores = torch.randn(9, generator=torch.Generator().manual_seed(3))
    plain = conformal_quantile(scores, level)
    assert conformal_quantile(scores, level, weights=torch.full((9,), 0.25), test_weight=0.25) == plain


def test_one_calibration_set_bounds_many_points() -> None:
    scores, weights = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 1.0, 2.0])
    bounds = conformal_quantile(scores[None], 0.5, weights=weights[None], test_weight=torch.tensor([0.0, 1.0, 6.0]))
    assert bounds.tolist() == [2.0, 3.0, math.inf]


def test_pinball_loss_is_least_at_the_quantile() -> None:
    y = torch.randn(1001, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    grid = torch.linspace(-3, 3, 601, dtype=torch.float64)
    for level in (0.1, 0.5, 0.9):
        losses = torch.stack([pinball_loss(q.expand_as(y), y, level) for q in grid])
        assert abs(grid[losses.argmin()] - y.quantile(level)) <= 0.01


def test_quantiles_of_a_wrong_model_cover_after_calibration() -> None:
    generator = torch.Generator().manual_seed(2)
    levels = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])
    known, new = (torch.zeros(n, 5) + torch.tensor([-0.1, 0.0, 0.0, 0.0, 0.1]) for n in (2000, 5000))
    y, y_new = (torch.randn(n, generator=generator) + 0.5 for n in (2000, 5000))
    interval = conformalize_quantiles(known, y, new, levels).quantiles
    for low, high, level in ((0, 4, 0.9), (1, 3, 0.5)):
        assert abs(((interval[:, low] <= y_new) & (y_new <= interval[:, high])).float().mean() - level) < 0.03
    each = conformalize_quantiles(known, y, new, levels, method="level").quantiles
    assert ((y_new[:, None] <= each).float().mean(0) - levels).abs().max() < 0.035


def test_crossing_quantiles_are_sorted_and_counted() -> None:
    known, y = torch.zeros(9, 2), torch.arange(-4.0, 5.0)
    new = torch.tensor([[0.0, 1.0], [5.0, 0.0], [9.0, 0.0]])
    result = conformalize_quantiles(known, y, new, torch.tensor([0.4, 0.6]), method="level")
    assert result.shift.tolist() == [-1.0, 1.0]
    assert result.crossings == 2
    assert (result.quantiles.diff() >= 0).all()


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_intervals_around_models_of_scikit_learn(kind: object) -> None:
    draws = np.random.default_rng(0)
    x = draws.uniform(0, 1, (3000, 2))
    y = x @ np.array([1.0, -2.0]) + x[:, 0] * draws.standard_t(3, 3000)
    model = LinearRegression().fit(x[:500], y[:500])
    plain = split_conformal(model, x[500:1500], kind(y[500:1500]))  # type: ignore[operator]
    scaled = split_conformal(model, x[500:1500], kind(y[500:1500]), scale=lambda x: x[:, 0] + 0.05)  # type: ignore[operator]
    for predictor in (plain, scaled):
        assert isinstance(predictor, ConformalPredictor)
        bounds = predictor.interval(x[1500:])
        assert isinstance(bounds, Interval)
        assert isinstance(bounds.lower, np.ndarray)
        assert abs(bounds.contains(y[1500:]).mean() - 0.9) < 0.03
    near, far = x[1500:, 0] < 0.2, x[1500:, 0] > 0.8
    covered = [predictor.interval(x[1500:]).contains(y[1500:]) for predictor in (plain, scaled)]
    assert covered[0][near].mean() - covered[0][far].mean() > 0.1  # one width: too wide here, too narrow there
    assert abs(covered[1][near].mean() - covered[1][far].mean()) < 0.08


def test_unbounded_intervals_say_so_and_wrong_models_are_refused() -> None:
    predictor = split_conformal(lambda x: x, torch.zeros(5), torch.ones(5), level=0.9)
    assert not predictor.bounded
    assert predictor.interval(torch.zeros(1)).lower.item() == -math.inf
    with pytest.raises(TypeError, match="model must be callable, got float"):
        split_conformal(1.0, torch.zeros(5), torch.ones(5))
    with pytest.raises(TypeError, match="y must be a tensor or an array of numbers"):
        split_conformal(lambda x: x, torch.zeros(2), ["a", "b"])
    with pytest.raises(ValueError, match="y must have shape"):
        split_conformal(lambda x: x[:, None], torch.zeros(5), torch.ones(5))
    with pytest.raises(ValueError, match="scale must be > 0"):
        split_conformal(lambda x: x, torch.zeros(5), torch.ones(5), scale=lambda x: x)
