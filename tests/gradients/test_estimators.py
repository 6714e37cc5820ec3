"""Estimators of gradients and their measured errors against closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from pullback.gradients import estimator_error


def test_error_of_estimates_is_the_moments_of_their_distribution(generator: torch.Generator) -> None:
    exact = {"w": torch.tensor([[3.0], [0.0]], dtype=torch.float64), "b": torch.tensor(-4.0, dtype=torch.float64)}
    noise = torch.randn(40_000, 3, generator=generator, dtype=torch.float64) * torch.tensor([1.0, 2.0, 0.5])
    estimates = {"w": exact["w"] + noise[:, :2, None], "b": exact["b"] + 0.1 + noise[:, 2]}
    error = estimator_error(estimates, exact)
    assert isinstance(error.bias, dict)
    assert isinstance(error.z, dict)
    assert error.bias["w"].shape == (2, 1)
    assert float(error.bias["b"]) == pytest.approx(0.1, abs=4 * 0.5 / 200)
    assert abs(float(error.z["b"]) - 0.1 / (0.5 / 200)) < 5  # 40 standard errors, and one more or less of chance
    assert error.z["w"].abs().max() < 4
    assert error.variance == pytest.approx(1 + 4 + 0.25, rel=0.03)
    assert error.relative_variance == pytest.approx(5.25 / 25, rel=0.03)
    assert error.relative_bias == pytest.approx(0.01 / 25, rel=0.5)
    assert error.mean_cosine > 0.999
    assert error.draws == 40_000


def test_equal_estimates_have_no_error_or_an_infinite_one() -> None:
    exact = torch.tensor([0.1, -0.2])
    right = estimator_error(exact.expand(5, 2) * (1 + 1e-7), exact)
    assert (right.largest_z, right.mean_squared_z, right.cosine) == (0.0, 0.0, pytest.approx(1.0))
    wrong = estimator_error((exact + 0.01).expand(5, 2), exact)
    assert wrong.largest_z == math.inf
    zero = estimator_error(torch.zeros(2, 3), torch.zeros(3))
    assert (zero.largest_z, zero.relative_variance, zero.cosine) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("size", [1e-160, 1e160])
def test_error_is_right_where_squares_leave_the_range(size: float, generator: torch.Generator) -> None:
    g = torch.randn(50, 3, generator=generator, dtype=torch.float64)
    d = torch.randn(3, generator=generator, dtype=torch.float64)
    plain, scaled = estimator_error(g, d), estimator_error(size * g, size * d)
    for name in ("largest_z", "relative_variance", "relative_bias", "cosine", "mean_cosine"):
        assert getattr(scaled, name) == pytest.approx(getattr(plain, name), rel=1e-9)
