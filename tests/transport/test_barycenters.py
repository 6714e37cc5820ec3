"""Barycentres of Gaussians and partial plans, in closed form."""

from __future__ import annotations

import pytest
import torch

from pullback import transport
from pullback.core.errors import ConvergenceError


def _bell(place: torch.Tensor, mean: float, deviation: float) -> torch.Tensor:
    density = torch.exp(-((place - mean) ** 2) / (2 * deviation**2))
    return density / density.sum()


def _moments(place: torch.Tensor, masses: torch.Tensor) -> tuple[float, float]:
    mean = (masses * place).sum()
    return float(mean), float((masses * (place - mean) ** 2).sum().sqrt())


def test_of_gaussians_mean_and_deviation_are_means_and_entropy_blurs_what_is_not_debiased() -> None:
    place = torch.linspace(-6, 6, 121, dtype=torch.float64)
    cost, epsilon = (place[:, None] - place).square(), 0.2
    bells = torch.stack([_bell(place, -2, 0.6), _bell(place, 2, 1.0)])
    shares = torch.tensor([0.25, 0.75], dtype=torch.float64)
    sharp = transport.barycenter(bells, cost, shares, epsilon=epsilon, check=True)
    mean, deviation = _moments(place, sharp.masses)
    assert abs(mean - 1.0) < 1e-3
    assert abs(deviation - 0.9) < 0.02
    blurred = transport.barycenter(bells, cost, shares, epsilon=epsilon, debiased=False, check=True)
    # Janati, Cuturi, Gramfort (2020), theorem 3: the variance grows by epsilon / 2 where all inputs have one.
    assert _moments(place, blurred.masses)[1] > deviation + 0.03
    alone = transport.barycenter(bells[:1], cost, epsilon=epsilon, check=True)
    torch.testing.assert_close(alone.masses, bells[0], atol=1e-5, rtol=0)
    same = transport.barycenter(bells[:1], cost, epsilon=epsilon, debiased=False, check=True)
    variance = _moments(place, bells[0])[1] ** 2 + epsilon / 2
    assert abs(_moments(place, same.masses)[1] - variance**0.5) < 1e-3


def test_costs_far_beyond_epsilon_are_summed_in_logarithms() -> None:
    place = torch.linspace(0, 60, 61, dtype=torch.float64)
    cost = (place[:, None] - place).square()  # up to 3600 epsilons
    bells = torch.stack([_bell(place, 20, 2), _bell(place, 40, 2)])
    found = transport.barycenter(bells, cost, epsilon=1.0, check=True)
    mean, deviation = _moments(place, found.masses)
    assert abs(mean - 30) < 1e-2
    assert abs(deviation - 2) < 0.05


def test_a_barycentre_that_is_not_reached_is_said_so() -> None:
    place = torch.linspace(0, 10, 11)
    bells = torch.eye(11)[[1, 9]] + 1e-6
    options = {"epsilon": 0.5, "max_iterations": 1}
    assert not bool(transport.barycenter(bells, (place[:, None] - place).square(), **options).converged)
    with pytest.raises(ConvergenceError, match="barycenter: 1 of 1 problems have a residual above"):
        transport.barycenter(bells, (place[:, None] - place).square(), check=True, **options)


def test_free_points_of_masses_find_the_quantiles_of_a_mean() -> None:
    """On a line the barycentre's quantile function is the mean of the inputs'."""
    y = torch.tensor([[0.0, 1.0, 2.0, 3.0], [10.0, 12.0, 14.0, 16.0]], dtype=torch.float64).unsqueeze(-1)
    masses = torch.tensor([[0.25, 0.25, 0.25, 0.25], [0.5, 0.25, 0.25, 0.0]], dtype=torch.float64)
    start = torch.tensor([[1.0], [0.0], [5.0], [3.0]], dtype=torch.float64)
    found = transport.free_support_barycenter(y, masses, start=start)
    expected = (y[0] + y[1][[0, 0, 1, 2]]) / 2
    torch.testing.assert_close(found.points.sort(0).values, expected)
    assert 0 < int(found.iterations) < 10


def test_what_is_too_far_stays_and_the_price_of_mass_is_the_last_cost() -> None:
    x = torch.tensor([0.0, 1.0, 50.0], dtype=torch.float64)
    y = torch.tensor([0.5, 1.5, -80.0], dtype=torch.float64)
    cost = (x[:, None] - y).abs()
    mass = torch.tensor(2 / 3, dtype=torch.float64, requires_grad=True)
    found = transport.partial_transport(cost, mass=mass)
    torch.testing.assert_close(found.value, torch.tensor(1 / 3, dtype=torch.float64))
    torch.testing.assert_close(found.plan.sum(), mass.detach())
    assert float(found.plan[2].sum()) == 0.0
    less = transport.partial_transport(cost, mass=0.5)
    more = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    transport.partial_transport(cost, mass=more).value.backward()
    assert more.grad is not None
    torch.testing.assert_close((found.value - less.value).detach() / (2 / 3 - 0.5), more.grad)


def test_all_of_the_mass_is_a_plan_of_all() -> None:
    g = torch.Generator().manual_seed(0)
    cost = torch.rand(3, 4, 5, generator=g, dtype=torch.float64)
    torch.testing.assert_close(
        transport.partial_transport(cost, mass=1.0).plan, transport.exact_transport(cost).plan, atol=1e-9, rtol=0
    )


@pytest.mark.parametrize("debiased", [False, True])
def test_compiled_steps_are_those_that_are_differentiated(debiased: bool) -> None:
    g = torch.Generator().manual_seed(0)
    a, place = torch.rand(2, 3, 8, generator=g).double() + 0.1, torch.linspace(0, 1, 8, dtype=torch.float64)
    a[0, 0, 2] = 0
    a = a / a.sum(-1, keepdim=True)
    cost, weights = (place[:, None] - place).square(), torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    options = {"epsilon": 0.05, "debiased": debiased, "max_iterations": 20, "tolerance": 1e-14}
    plain, tracked = (transport.barycenter(one, cost, weights, **options) for one in (a, a.clone().requires_grad_()))
    torch.testing.assert_close(plain.masses, tracked.masses.detach())
    torch.testing.assert_close(plain.residual, tracked.residual, rtol=1e-6, atol=1e-13)
    assert torch.equal(plain.iterations, tracked.iterations)


def test_costs_of_two_grids_are_refused() -> None:
    """Of an asymmetric cost the two halves of a step would solve different problems."""
    cost = torch.tensor([[0.0, 1.0], [4.0, 0.0]])
    with pytest.raises(ValueError, match="cost must be symmetric"):
        transport.barycenter(torch.full((2, 2), 0.5), cost, epsilon=0.1)
