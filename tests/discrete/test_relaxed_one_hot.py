"""The Gumbel-softmax law: its density against quadrature, torch and samples."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from pullback import discrete

LOGITS = torch.tensor([0.5, -1.0, 0.3], dtype=torch.float64)


@pytest.mark.parametrize("temperature", [0.3, 0.7, 1.0, 2.0])
def test_density_integrates_to_one(temperature: float) -> None:
    """In log-ratios a = log(y_1 / y_3), b = log(y_2 / y_3) the area of the simplex is y_1 y_2 y_3 da db."""
    a = torch.linspace(-60, 60, 1201, dtype=torch.float64)
    grid = torch.cartesian_prod(a, a)
    log_y = torch.log_softmax(torch.cat([grid, torch.zeros(len(grid), 1, dtype=torch.float64)], 1), 1)
    density = (discrete.RelaxedOneHot(LOGITS, temperature).log_prob(log_y, log=True) + log_y.sum(1)).exp()
    assert (density.sum() * 0.1**2).item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0, 5.0])
def test_density_is_that_of_torch(temperature: float) -> None:
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours = discrete.RelaxedOneHot(logits, temperature)
    theirs = torch.distributions.RelaxedOneHotCategorical(torch.tensor(temperature).double(), logits=logits)
    y = torch.rand(7, 4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.01
    y = y / y.sum(-1, keepdim=True)
    torch.testing.assert_close(ours.log_prob(y), theirs.log_prob(y))
    torch.testing.assert_close(ours.log_prob(y.log(), log=True), theirs.log_prob(y))


def test_log_samples_stay_finite_where_samples_are_corners() -> None:
    law = discrete.RelaxedOneHot(LOGITS.float(), 1e-3)
    log_y = law.rsample_log((1000,), generator=torch.Generator().manual_seed(0))
    assert log_y.isfinite().all()
    assert law.log_prob(log_y, log=True).isfinite().all()
    y = law.rsample((1000,), generator=torch.Generator().manual_seed(0))
    assert (y == 0).any()
    assert torch.equal(y, log_y.exp())


def test_samples_follow_the_law_and_its_gradient() -> None:
    logits, temperature = LOGITS.clone().requires_grad_(), torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    law = discrete.RelaxedOneHot(logits, temperature)
    y = law.rsample((40_000,), generator=torch.Generator().manual_seed(2))
    frequencies = torch.bincount(y.argmax(-1), minlength=3)
    expected = law.probs.detach() * 40_000
    assert stats.chisquare(frequencies.numpy(), expected.numpy()).pvalue > 1e-3
    # With k = 2 the log-ratio of a sample is logistic with scale 1 / temperature.
    pair = discrete.RelaxedOneHot(LOGITS[:2], 0.8).rsample_log((20_000,), generator=torch.Generator().manual_seed(3))
    logistic = stats.logistic(loc=1.5 / 0.8, scale=1 / 0.8)
    assert stats.kstest((pair[:, 0] - pair[:, 1]).numpy(), logistic.cdf).pvalue > 1e-3
    # E d/dtheta log p = 0.
    score = torch.autograd.grad(law.log_prob(y.detach()).mean(), (logits, temperature))
    assert all(s.abs().max() < 0.05 for s in score)
    assert all(g.abs().max() > 0.01 for g in torch.autograd.grad(y[:, 0].mean(), (logits, temperature)))


def test_it_is_a_distribution_of_torch() -> None:
    law = discrete.RelaxedOneHot(torch.zeros(2, 1, 3), 0.5, validate_args=True).expand((2, 4))
    assert (law.batch_shape, law.event_shape, law.has_rsample) == ((2, 4), (3,), True)
    assert law.sample((5,)).shape == (5, 2, 4, 3)
    assert not discrete.RelaxedOneHot(LOGITS.clone().requires_grad_(), 0.5).sample().requires_grad
    both = torch.distributions.Independent(law, 1)
    assert both.log_prob(law.sample()).shape == (2,)
    with pytest.raises(ValueError, match="value must be in the simplex"):
        law.log_prob(torch.full((3,), 0.5))
    lax = discrete.RelaxedOneHot(torch.zeros(3), 0.5, validate_args=False)
    assert math.isfinite(lax.log_prob(torch.full((3,), 0.5)).item())
    with pytest.raises(ValueError, match="logits must be finite: a class of probability 0"):
        discrete.RelaxedOneHot(torch.tensor([0.0, -torch.inf]), 0.5)
