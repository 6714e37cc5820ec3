"""The fitted order is the planted one, its interval covers it, and bad steps are refused."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from pullback.dynamics import convergence_order

STEPS = [0.2, 0.1, 0.05, 0.025, 0.0125]


@pytest.mark.parametrize("order", [1.0, 2.0, 5.0])
def test_a_planted_order_is_found(order: float) -> None:
    fit = convergence_order(lambda h: torch.tensor([1 + 3 * h**order], dtype=torch.float64), torch.ones(1), STEPS)
    assert fit.order == pytest.approx(order, abs=1e-4)
    assert fit.errors == pytest.approx([3 * h**order for h in STEPS], rel=1e-4)


def test_the_interval_covers_the_order_of_noisy_errors_and_equals_scipy() -> None:
    noise = dict(zip(STEPS, (0.1, -0.2, 0.15, 0.05, -0.1), strict=True))
    fit = convergence_order(lambda h: torch.tensor([h**2 * math.exp(noise[h])]).double(), torch.zeros(1), STEPS)
    expected = stats.linregress([math.log(h) for h in STEPS], [math.log(e) for e in fit.errors])
    half = stats.t.ppf(0.975, len(STEPS) - 2) * expected.stderr
    assert fit.low < 2 < fit.high
    assert (fit.order, fit.high - fit.order) == pytest.approx((expected.slope, half), rel=1e-3)


def test_bad_steps_and_exact_solutions_are_refused() -> None:
    with pytest.raises(ValueError, match="at least three sizes > 0"):
        convergence_order(lambda h: torch.ones(1), torch.zeros(1), [0.1, 0.05])
    with pytest.raises(ValueError, match="finite errors > 0"):
        convergence_order(lambda h: torch.ones(1), torch.ones(1), STEPS)
