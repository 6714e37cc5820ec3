"""Mixtures, scores and recalibration against scipy, scikit-learn, sampling and known laws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.isotonic import IsotonicRegression

from pullback.uncertainty import (
    MixtureOfGaussians,
    RecalibratedDistribution,
    Recalibrator,
    calibration_error,
    conformal_quantile,
    crps,
    crps_from_quantiles,
    crps_from_samples,
    pce_sort_loss,
    quantile_calibration_error,
    spacing_entropy,
)


def _seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _law() -> MixtureOfGaussians:
    logits = torch.tensor([0.0, 1.0, -1.0]).double()
    return MixtureOfGaussians(logits, torch.tensor([-2.0, 0.0, 6.0]).double(), torch.tensor([1.0, 0.3, 0.1]).double())


def test_quantiles_where_a_mixture_has_gaps_and_far_tails() -> None:
    law = _law()
    levels = torch.tensor([1e-12, 0.01, 0.2, 0.2447, 0.5, 0.9099, 0.91, 0.95, 1 - 1e-12]).double()
    torch.testing.assert_close(law.cdf(law.icdf(levels)), levels, rtol=1e-11, atol=1e-14)
    assert law.icdf(torch.tensor([0.0, 1.0]).double()).tolist() == [-torch.inf, torch.inf]
    level = torch.tensor([0.1, 0.6]).double().requires_grad_()
    y = law.icdf(level)
    (slope,) = torch.autograd.grad(y.sum(), level)
    torch.testing.assert_close(slope * law.log_prob(y).exp(), torch.ones(2).double())


def test_draws_have_the_law_and_the_gradient_of_its_moments() -> None:
    shift, width = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.0, 1.0))
    base = _law()
    law = MixtureOfGaussians(base.logits, base.component_mean + shift, base.component_scale * width)
    drawn = law.rsample((20_000,), generator=_seeded())
    ranks = law.cdf(drawn).detach().sort().values
    assert (ranks - torch.linspace(0, 1, 20_000)).abs().max() < 1.63 / 20_000**0.5  # Kolmogorov, 1 %
    gradients = torch.autograd.grad(drawn.square().mean(), (shift, width), retain_graph=True)
    expected = torch.autograd.grad(law.variance + law.mean.square(), (shift, width))
    for got, wanted in zip(gradients, expected, strict=True):
        assert abs(got - wanted) < 0.12
    assert not law.sample((2,)).requires_grad


def test_scores_of_one_law_agree() -> None:
    law = _law()
    y = torch.tensor([-3.0, 0.1, 2.5, 7.0]).double()
    levels = ((torch.arange(20_000) + 0.5) / 20_000).double()
    quantiles = law.icdf(levels).expand(4, -1)
    exact = crps(law, y)
    torch.testing.assert_close(crps_from_quantiles(quantiles, y, levels), exact, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(crps_from_samples(quantiles, y, fair=False), exact, rtol=1e-4, atol=1e-4)
    drawn = law.sample((50, 4), generator=_seeded(1)).movedim(0, -1)
    assert (crps_from_samples(drawn, y) - exact).abs().max() < 0.6
    normal, mixture = torch.distributions.Normal, torch.distributions.MixtureSameFamily
    same = mixture(torch.distributions.Categorical(logits=law.logits), normal(law.component_mean, law.component_scale))
    torch.testing.assert_close(crps(same, y), exact)
    laplace = torch.distributions.Laplace(torch.tensor(0.5).double(), torch.tensor(2.0).double())
    quantiles = laplace.icdf(levels).expand(4, -1)
    torch.testing.assert_close(crps(laplace, y), crps_from_quantiles(quantiles, y, levels), rtol=1e-3, atol=1e-3)
    with pytest.raises(TypeError, match=r"distribution must be a MixtureOfGaussians, Normal, .*, got Gamma"):
        crps(torch.distributions.Gamma(1.0, 1.0), y)


def test_fair_score_of_few_draws_is_unbiased() -> None:
    drawn = torch.randn(100_000, 3, generator=_seeded(), dtype=torch.float64)
    y = torch.full((100_000,), 0.7, dtype=torch.float64)
    exact = crps(torch.distributions.Normal(torch.zeros(1).double(), torch.ones(1).double()), y[:1])
    found = crps_from_samples(drawn, y)
    assert abs(found.mean() - exact) < 4 * found.std() / 100_000**0.5
    assert crps_from_samples(drawn, y, fair=False).mean() - exact > 0.1


def test_calibration_error_of_perfect_and_of_wrong_laws() -> None:
    perfect = torch.rand(2000, 400, generator=_seeded(), dtype=torch.float64)
    assert calibration_error(perfect).mean().item() == pytest.approx(0.3133 / 400**0.5, rel=0.03)
    wide = 0.25 + perfect[0] / 2  # a law twice too wide: the shares are off by a mean of 1 / 8
    assert calibration_error(wide).item() == pytest.approx(0.125, abs=0.01)
    assert pce_sort_loss(wide).item() == pytest.approx(0.125, abs=0.01)
    assert spacing_entropy(wide, m=20).item() == pytest.approx(-np.log(2), abs=0.1)
    for smooth, bound in ((1e2, 2e-2), (1e4, 1e-3)):
        assert abs(calibration_error(wide, smooth=smooth) - calibration_error(wide)) < bound


def test_smooth_error_of_quantiles_tends_to_the_counted_one() -> None:
    y = torch.randn(500, generator=_seeded(), dtype=torch.float64)
    levels = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    quantiles = (0.5 * torch.special.ndtri(levels)).expand(500, -1)
    hard = quantile_calibration_error(quantiles, y, levels)
    assert hard.item() == pytest.approx(calibration_error(torch.special.ndtr(2 * y), levels=levels).item(), abs=1e-9)
    assert abs(quantile_calibration_error(quantiles, y, levels, smooth=1e4) - hard) < 1e-3


@pytest.mark.parametrize("method", ["empirical", "linear", "kde"])
def test_recalibration_makes_new_pits_uniform(method: str) -> None:
    pit, new = (torch.rand(3, 1000, generator=_seeded(i), dtype=torch.float64) ** 2 for i in range(2))
    recalibrator = Recalibrator(method).fit(pit)
    found = recalibrator.transform(new)
    assert (calibration_error(found) < 0.03).all()
    assert (calibration_error(new) > 0.1).all()
    levels = torch.linspace(0.05, 0.95, 19, dtype=torch.float64).expand(3, -1)
    back = recalibrator.inverse_transform(levels)
    assert (recalibrator.transform(back) - levels).abs().max() < (2e-3 if method == "empirical" else 1e-8)
    ends = torch.tensor([[0.0, 1.0]] * 3, dtype=torch.float64)
    assert torch.equal(recalibrator.transform(ends), ends)


def test_empirical_map_is_conformal_prediction() -> None:
    pit = torch.rand(5, 30, generator=_seeded(), dtype=torch.float64) ** 3
    levels = torch.tensor([0.02, 0.5, 0.9, 0.96, 0.97, 0.99], dtype=torch.float64)
    asked = Recalibrator("empirical").fit(pit).inverse_transform(levels.expand(5, -1))
    for k, level in enumerate(levels.tolist()):
        assert torch.equal(asked[:, k], conformal_quantile(pit, level).clamp(max=1))
    assert (asked[:, -2:] == 1).all()  # 30 scores bound no more than 30 / 31


def test_linear_map_is_isotonic_regression_of_the_levels() -> None:
    pit = np.random.default_rng(0).beta(2, 3, 50)
    levels = np.arange(1, 51) / 51
    isotonic = IsotonicRegression(out_of_bounds="clip").fit(np.sort(pit), levels)
    inside = np.linspace(pit.min(), pit.max(), 30)
    np.testing.assert_allclose(Recalibrator("linear").fit(pit).transform(inside), isotonic.predict(inside))


@pytest.mark.parametrize("method", ["linear", "kde"])
def test_recalibrated_law_is_a_law(method: str) -> None:
    base = MixtureOfGaussians(torch.zeros(2).double(), torch.tensor([-1.0, 2.0]).double(), torch.ones(2).double())
    pit = torch.rand(40, generator=_seeded(), dtype=torch.float64) ** 2
    law = RecalibratedDistribution(base, Recalibrator(method, smooth=30.0).fit(pit))
    grid = torch.linspace(-12, 14, 40_001, dtype=torch.float64)
    assert torch.trapezoid(law.log_prob(grid).exp(), grid).item() == pytest.approx(1, abs=2e-2)
    levels = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    torch.testing.assert_close(law.cdf(law.icdf(levels)), levels)
    drawn = law.rsample((4000,), generator=_seeded(3))
    assert calibration_error(law.cdf(drawn)).item() < 0.015


def test_gradient_reaches_the_model_through_the_map() -> None:
    """Quantile recalibration training: the map is made of the batch itself."""
    scale = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    y = torch.randn(64, generator=_seeded(), dtype=torch.float64)

    def loss(scale: torch.Tensor) -> torch.Tensor:
        base = torch.distributions.Normal(torch.zeros(64).double(), scale)
        recalibrator = Recalibrator("kde", smooth=20.0).fit(base.cdf(y))
        return -RecalibratedDistribution(base, recalibrator).log_prob(y).mean()

    assert torch.autograd.gradcheck(loss, (scale,))


def test_misuse_is_named() -> None:
    with pytest.raises(ValueError, match="must be fitted before"):
        Recalibrator().transform(np.array([0.5]))
    with pytest.raises(ValueError, match="step function"):
        Recalibrator("empirical").fit(np.array([0.5])).log_derivative(np.array([0.5]))
    with pytest.raises(TypeError, match=r"base must be a law with cdf, icdf and log_prob, int lacks"):
        RecalibratedDistribution(3, Recalibrator())
    with pytest.raises(TypeError, match="recalibrator must be a Recalibrator"):
        RecalibratedDistribution(_law(), None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"level must be in \[0, 1\]"):
        _law().icdf(torch.tensor(1.5).double())
