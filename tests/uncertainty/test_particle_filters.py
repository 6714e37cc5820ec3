"""Particle filters: unbiased evidence, what resampling does to its gradient, proposals, degenerate weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pullback.uncertainty import (
    DegenerateWeights,
    LinearGaussian,
    StateSpaceModel,
    kalman_evidence,
    kalman_filter,
    particle_filter,
)

_EYE = torch.eye(2, dtype=torch.float64)
_Y = 1.5 * torch.randn(8, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64).cumsum(0)


def _model(a: Tensor) -> LinearGaussian:
    """States that keep the part a of themselves; ``a`` may have a batch."""
    return LinearGaussian(a[..., None, None] * _EYE, _EYE, _EYE, 0.5 * _EYE, torch.zeros(2, dtype=torch.float64), _EYE)


class _Walk:
    """A random walk seen through Laplace's law: what no Kalman filter takes."""

    def initial(self) -> torch.distributions.Distribution:
        return torch.distributions.Independent(torch.distributions.Normal(torch.zeros(1), 1.0), 1)

    def transition(self, x: Tensor) -> torch.distributions.Distribution:
        return torch.distributions.Independent(torch.distributions.Normal(x, 0.5), 1)

    def observation(self, x: Tensor) -> torch.distributions.Distribution:
        return torch.distributions.Independent(torch.distributions.Laplace(x, 0.3), 1)


def test_any_three_laws_are_a_model() -> None:
    """The evidence of one observation is an integral over one state."""
    model: StateSpaceModel = _Walk()
    y, grid = torch.tensor([[0.7]]), torch.linspace(-8, 8, 4001)[:, None]
    exact = torch.trapezoid((model.initial().log_prob(grid) + model.observation(grid).log_prob(y)).exp(), grid[:, 0])
    found = particle_filter(model, y, particles=50_000, generator=torch.Generator().manual_seed(0))
    assert found.log_evidence.exp().item() == pytest.approx(exact.item(), rel=0.02)


def _runs(count: int, seed: int = 0, a: float = 0.5, **options: object) -> tuple[Tensor, Tensor]:
    """Return exp(estimate - truth) and the gradient of the logarithm of each run."""
    batch = torch.full((count,), a, dtype=torch.float64, requires_grad=True)
    generator = torch.Generator().manual_seed(seed)
    found = particle_filter(_model(batch), _Y.expand(count, 8, 2), generator=generator, **options)
    (slopes,) = torch.autograd.grad(found.log_evidence.sum(), batch)
    exact = kalman_evidence(_model(torch.tensor(a, dtype=torch.float64)), _Y)
    return (found.log_evidence - exact).detach().exp(), slopes


def _exact_slope(a: float = 0.5) -> Tensor:
    at = torch.tensor(a, dtype=torch.float64, requires_grad=True)
    return torch.autograd.grad(kalman_evidence(_model(at), _Y), at)[0]


def _within(values: Tensor, truth: Tensor | float, errors: float = 4.0) -> bool:
    return bool((values.mean() - truth).abs() <= errors * values.std() / len(values) ** 0.5)


@pytest.mark.parametrize("method", ["multinomial", "systematic", "soft", "stop-gradient"])
@pytest.mark.parametrize("threshold", [0.5, 1.0])
def test_the_evidence_is_unbiased(method: str, threshold: float) -> None:
    ratios, _ = _runs(400, particles=60, resampling=method, threshold=threshold)
    assert _within(ratios, 1.0)


def test_stop_gradient_has_an_unbiased_gradient_and_plain_draws_do_not() -> None:
    for scheme in ("multinomial", "systematic"):
        ratios, slopes = _runs(600, particles=60, resampling="stop-gradient", threshold=1.0, scheme=scheme)
        assert _within(ratios * slopes, _exact_slope())
    ratios, slopes = _runs(600, particles=60, threshold=1.0)
    assert not _within(ratios * slopes, _exact_slope(), errors=8.0)


def test_means_tend_to_those_of_kalman() -> None:
    at = torch.tensor(0.5, dtype=torch.float64)
    found = particle_filter(_model(at), _Y, particles=20_000, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(found.means, kalman_filter(_model(at), _Y).means, rtol=0, atol=0.06)
    torch.testing.assert_close(found.log_weights.exp().sum(), torch.tensor(1.0, dtype=torch.float64))


class _Guided(LinearGaussian):
    """Draws states where the observation says that they are."""

    def proposal(self, x: Tensor | None, y: Tensor) -> torch.distributions.Distribution:
        prior = torch.zeros_like(y.squeeze(-2)) if x is None else x @ self.dynamics.mT
        gain = 2 / 3  # of unit and half variance
        seen = y.squeeze(-2) if x is None else y
        return torch.distributions.MultivariateNormal(prior + gain * (seen - prior), (1 - gain) * _EYE)


def test_a_proposal_changes_the_variance_and_not_the_mean() -> None:
    plain = _model(torch.tensor(0.5, dtype=torch.float64))
    guided = _Guided(**vars(plain))
    exact, spread = kalman_evidence(plain, _Y), []
    for model in (plain, guided):
        generator = torch.Generator().manual_seed(1)
        found = particle_filter(model, _Y.expand(300, 8, 2), particles=50, generator=generator)
        ratios = (found.log_evidence - exact).exp()
        assert _within(ratios, 1.0)
        spread.append(ratios.std())
    assert spread[1] < 0.5 * spread[0]


def test_a_generator_gives_all_draws_and_leaves_torch_s_own_alone() -> None:
    model, before = _model(torch.tensor(0.5, dtype=torch.float64)), torch.get_rng_state()
    first, again = (
        particle_filter(model, _Y, generator=torch.Generator().manual_seed(3)).log_evidence for _ in range(2)
    )
    assert torch.equal(first, again)
    assert torch.equal(before, torch.get_rng_state())


def test_going_on_from_a_result_is_one_filter() -> None:
    model = _model(torch.tensor(0.5, dtype=torch.float64))
    halves = []
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        first = particle_filter(model, _Y[:4], particles=20_000, generator=generator)
        then = particle_filter(
            model, _Y[4:], particles=20_000, start=(first.points, first.log_weights), generator=generator
        )
        halves.append(first.log_evidence + then.log_evidence)
    torch.testing.assert_close(torch.stack(halves).mean(), kalman_evidence(model, _Y), rtol=0, atol=0.05)


def test_weights_to_go_on_from_may_have_any_sum() -> None:
    model = _model(torch.tensor(0.5, dtype=torch.float64))
    first = particle_filter(model, _Y[:4], generator=torch.Generator().manual_seed(0))
    told = [
        particle_filter(
            model, _Y[4:], start=(first.points, first.log_weights + c), generator=torch.Generator().manual_seed(1)
        ).increments
        for c in (0.0, 5.0)
    ]
    torch.testing.assert_close(*told)


class _Blind(LinearGaussian):
    """Sees nothing of the second observation that could come from any state."""

    def observation(self, x: Tensor) -> object:
        inner = super().observation(x)

        class Law:
            def log_prob(self, y: Tensor) -> Tensor:
                return torch.where((y > 100).any(-1), -torch.inf, inner.log_prob(y.clamp(max=100)))

        return Law()


def test_degenerate_weights_are_named_or_reset() -> None:
    model = _Blind(**vars(_model(torch.tensor(0.5, dtype=torch.float64))))
    y = torch.stack([_Y[:3], _Y[:3]])
    y[1, 1] = 1e3
    with pytest.raises(DegenerateWeights, match="no particle has any weight at time 1"):
        particle_filter(model, y)
    found = particle_filter(model, y, degenerate="reset")
    assert found.increments.isneginf().tolist() == [[False] * 3, [False, True, False]]
    assert found.ess[1, 1] > 99.9
    assert found.means.isfinite().all()
