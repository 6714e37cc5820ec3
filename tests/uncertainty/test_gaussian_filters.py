"""Gaussian filters: batches, singular noise, single precision, functions that are not linear."""

from __future__ import annotations

import torch
from torch import Tensor

from pullback.uncertainty import (
    LinearGaussian,
    NonlinearGaussian,
    extended_kalman_filter,
    kalman_evidence,
    kalman_filter,
    rts_smoother,
    unscented_kalman_filter,
)


def _draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _fields(*batch: int) -> list[Tensor]:
    def noise(n: int, seed: int) -> Tensor:
        root = _draw(*batch, n, n, seed=seed)
        return root @ root.mT + torch.eye(n, dtype=torch.float64)

    a, c, m = 0.4 * _draw(*batch, 3, 3), _draw(*batch, 2, 3, seed=1), _draw(*batch, 3, seed=2)
    return [a, c, noise(3, 3), noise(2, 4), m, noise(3, 5)]


def test_series_share_a_model_and_models_share_a_series() -> None:
    y = _draw(4, 5, 2)
    one, many = _fields(), _fields(4)
    for fields, series in ((one, y), (many, y[0]), ([many[0], *one[1:]], y), ([*one[:4], many[4], one[5]], y)):
        model = LinearGaussian(*fields)
        found = kalman_filter(model, series)
        smooth = rts_smoother(found)
        for i in range(4):
            own = LinearGaussian(*(f[i] if f.ndim > g.ndim else f for f, g in zip(fields, one, strict=True)))
            alone = kalman_filter(own, series[i] if series.ndim > 2 else series)
            for whole, part in zip(found, alone, strict=True):
                torch.testing.assert_close(whole[i], part)
            torch.testing.assert_close(smooth.means[i], rts_smoother(alone).means)
        torch.testing.assert_close(kalman_evidence(model, series), found.log_evidence)


def test_the_gradient_is_right_where_states_have_no_noise() -> None:
    """A position with a constant, unknown speed: Q = 0, and the first position is known, P is singular."""
    y, dtype = _draw(6, 1), torch.float64
    step = torch.tensor(0.3, dtype=dtype, requires_grad=True)
    still = torch.zeros(2, 2, dtype=dtype)

    def evidence(step: Tensor) -> Tensor:
        a = torch.stack([torch.ones_like(step), step, torch.zeros_like(step), torch.ones_like(step)]).view(2, 2)
        look, noise = torch.tensor([[1.0, 0.0]], dtype=dtype), torch.eye(1, dtype=dtype)
        first = torch.diag(torch.tensor([0.0, 2.0], dtype=dtype))
        return kalman_evidence(LinearGaussian(a, look, still, noise, torch.ones(2, dtype=dtype), first), y)

    times = torch.arange(6, dtype=dtype) * step
    truth = torch.distributions.MultivariateNormal(
        1 + times, torch.eye(6, dtype=dtype) + 2 * times[:, None] * times
    ).log_prob(y[:, 0])
    torch.testing.assert_close(evidence(step), truth)
    (exact,) = torch.autograd.grad(truth, step)
    (found,) = torch.autograd.grad(evidence(step), step)
    torch.testing.assert_close(found, exact)


def test_single_precision_stays_positive_where_covariances_would_not() -> None:
    """Two almost exact looks at nearly the same thing; formed as numbers, the covariance loses its rank in float32."""
    fields = _fields()
    fields[1] = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1e-2]], dtype=torch.float64)
    fields[3] = 1e-6 * torch.eye(2, dtype=torch.float64)
    y = _draw(20, 2)
    exact = kalman_filter(LinearGaussian(*fields), y)
    rough = kalman_filter(LinearGaussian(*(f.float() for f in fields)), y.float())
    assert rough.factors.diagonal(dim1=-2, dim2=-1).min() >= 0
    torch.testing.assert_close(rough.means.double(), exact.means, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(rough.log_evidence.double(), exact.log_evidence, rtol=1e-2, atol=0)


def _by_grid(y: Tensor, steps: int = 4001) -> Tensor:
    """Return the means of a pendulum-like walk on a line, by sums over a fine grid."""
    x = torch.linspace(-4, 4, steps, dtype=y.dtype)
    law = torch.distributions.Normal(torch.tensor(0.5, dtype=y.dtype), 0.3).log_prob(x).exp()
    move = torch.distributions.Normal((1.1 * x).sin()[:, None], 0.1).log_prob(x).exp()
    means = []
    for t, now in enumerate(y[:, 0]):
        law = law @ move * (x[1] - x[0]) if t else law
        law = law * torch.distributions.Normal((x + 0.2 * x**2), 0.2).log_prob(now).exp()
        law = law / (law.sum() * (x[1] - x[0]))
        means.append((law * x).sum() * (x[1] - x[0]))
    return torch.stack(means)


def test_nonlinear_filters_are_near_the_exact_means() -> None:
    eye = torch.eye(1, dtype=torch.float64)
    model = NonlinearGaussian(
        lambda x: (1.1 * x).sin(), lambda x: x + 0.2 * x**2, 0.01 * eye, 0.04 * eye, 0.5 * eye[0], 0.09 * eye
    )
    y = 0.6 + 0.2 * _draw(12, 1)
    exact = _by_grid(y)
    extended, unscented = (f(model, y).means[:, 0] for f in (extended_kalman_filter, unscented_kalman_filter))
    assert (unscented - exact).abs().max() < 0.01
    assert (extended - exact).abs().max() < 0.02
    wider = unscented_kalman_filter(model, y, kappa=2.0).means[:, 0]
    assert (wider - exact).abs().max() < 0.01


def test_the_laws_of_a_linear_model_are_those_of_its_matrices() -> None:
    fields = _fields(4)
    model, x = LinearGaussian(*fields), _draw(4, 7, 3, seed=6)
    assert model.initial().mean.shape == (4, 3)
    law = torch.distributions.MultivariateNormal(x[2, 5] @ fields[0][2].mT, fields[2][2])
    next_x = _draw(4, 7, 3, seed=7)
    torch.testing.assert_close(model.transition(x).log_prob(next_x)[2, 5], law.log_prob(next_x[2, 5]))
    seen = torch.distributions.MultivariateNormal(x[1, 0] @ fields[1][1].mT, fields[3][1])
    y = _draw(4, 1, 2, seed=8)
    torch.testing.assert_close(model.observation(x).log_prob(y)[1, 0], seen.log_prob(y[1, 0]))
