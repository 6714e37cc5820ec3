"""Divergences of samples, bottlenecks and attacks: limits that a user would notice."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal, kl_divergence

from pullback import uncertainty as un


def test_samples_tend_to_the_closed_form_of_their_smoothed_laws(generator: torch.Generator) -> None:
    x = torch.randn(3000, 1, generator=generator).double()
    y = 2 * torch.randn(3000, 1, generator=generator).double() + 1
    width = 0.6
    smoothing = width**2 / 2 * torch.eye(1).double()
    exact = un.gaussian_cauchy_schwarz(torch.zeros(1).double(), 1 + smoothing, torch.ones(1).double(), 4 + smoothing)
    assert abs(un.cauchy_schwarz_divergence(x, y, bandwidth=width) - exact) < 0.03


def test_equal_covariances_have_the_divergence_of_kullback_and_leibler(generator: torch.Generator) -> None:
    means, root = torch.randn(2, 3, generator=generator), torch.randn(3, 5, generator=generator)
    covariance = root @ root.mT
    p, q = (MultivariateNormal(m, covariance) for m in means)
    found = un.gaussian_cauchy_schwarz(means[0], covariance, means[1], covariance)
    torch.testing.assert_close(found, kl_divergence(p, q), rtol=1e-3, atol=1e-4)


def test_where_inputs_are_far_apart_only_errors_count(generator: torch.Generator) -> None:
    x = 100 * torch.arange(20.0).double().unsqueeze(-1)
    y, other = torch.randn(2, 20, 1, generator=generator).double()
    expected = -2 * torch.exp(-(y - other).square() / 2).mean().log()
    torch.testing.assert_close(un.conditional_cauchy_schwarz(x, y, other), expected)
    torch.testing.assert_close(un.conditional_cauchy_schwarz(x, y, y), torch.zeros(()).double())


def test_dependence_is_seen_where_correlation_is_none(generator: torch.Generator) -> None:
    x = torch.randn(500, 1, generator=generator)
    square, other = x.square(), torch.randn(500, 1, generator=generator)
    for measure in (un.quadratic_mutual_information, un.hsic):
        assert measure(x, square) > 10 * measure(x, other)
    assert un.hsic(x, other, unbiased=True).abs() < un.hsic(x, other)


def test_far_samples_have_a_finite_divergence_with_a_gradient() -> None:
    x = torch.zeros(3, 2)
    y = torch.full((3, 2), 1e4, requires_grad=True)
    found = un.cauchy_schwarz_divergence(x, y, bandwidth=1.0)
    torch.testing.assert_close(found.detach(), torch.tensor(2e8))
    (slope,) = torch.autograd.grad(found, y)
    torch.testing.assert_close(slope.sum(0), torch.full((2,), 2e4))


def test_attacks_stay_within_their_bound_and_raise_the_loss(generator: torch.Generator) -> None:
    layers = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    for p in layers.parameters():
        nn.init.normal_(p, generator=generator)
    x, y = torch.randn(30, 4, generator=generator), torch.randn(30, 1, generator=generator)

    def error(x: torch.Tensor) -> torch.Tensor:
        return (layers(x) - y).square().sum().detach()

    once, many = un.fgsm(layers, x, y, epsilon=0.2), un.pgd(layers, x, y, epsilon=0.2, steps=20)
    assert (many - x).abs().max() <= 0.2 + 1e-6
    assert error(x) < error(once) < error(many)
    round_ = un.pgd(layers, x, y, epsilon=0.2, steps=20, norm="2")
    length = (round_ - x).norm(dim=-1)
    assert length.max() <= 0.2 + 1e-6
    assert length.mean() > 0.19
    assert error(x) < error(round_) < error(many)
    assert (un.pgd(layers, x, y, epsilon=0.0) == x).all()


@pytest.mark.parametrize("compression", ["vib", "nib"])
def test_codes_that_are_not_drawn_have_no_such_information(compression: str) -> None:
    with pytest.raises(ValueError, match=f"compression '{compression}' needs a code that is drawn"):
        un.InformationBottleneck(nn.Linear(3, 2), nn.Linear(2, 1), compression=compression)


def test_a_heavier_weight_compresses_more(generator: torch.Generator) -> None:
    x = torch.randn(64, 3, generator=generator)
    y = x[:, :1]
    known = []
    for beta in (0.0, 100.0):
        torch.manual_seed(0)
        model = un.InformationBottleneck(
            nn.Linear(3, 2), nn.Linear(2, 1), prediction="mse", compression="hsic", beta=beta
        )
        optimizer = torch.optim.Adam(model.parameters(), 0.05)
        for _ in range(60):
            optimizer.zero_grad()
            model.loss(x, y).total.backward()
            optimizer.step()
        known.append(model.loss(x, y).compression.detach())
    assert known[1] < 0.5 * known[0]


def test_a_constant_code_has_no_normalised_information() -> None:
    model = un.InformationBottleneck(nn.Linear(3, 2), nn.Linear(2, 1))
    nn.init.zeros_(model.encoder.weight)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="t must vary"):
        model.loss(torch.randn(8, 3), torch.randn(8, 1))
