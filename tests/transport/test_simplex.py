"""Transport on a simplex of distributions: exact for Gaussians, along any path, with and without noise."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from pullback import transport

CENTRES = torch.tensor([[0.0], [2.0], [-1.0]], dtype=torch.float64)
SPREAD = torch.tensor([[[1.0]], [[0.25]], [[4.0]]], dtype=torch.float64)
"""Means and variances of three Gaussians in one dimension."""
model = partial(transport.gaussian_conditional_means, CENTRES, SPREAD)


def _samples(count: int) -> Tensor:
    g = torch.Generator().manual_seed(0)
    return CENTRES + SPREAD.squeeze(-1).sqrt() * torch.randn(count, 3, 1, generator=g, dtype=torch.float64)


def test_weights_are_uniform_on_the_simplex() -> None:
    weights = transport.uniform_simplex((20_000, 4), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.allclose(weights.sum(-1), torch.ones(20_000, dtype=torch.float64))
    assert torch.allclose(weights.mean(0), torch.full((4,), 0.25, dtype=torch.float64), atol=5e-3)
    assert torch.allclose(weights.var(0), torch.full((4,), 3 / 80, dtype=torch.float64), atol=2e-3)  # (k-1)/(k^2 (k+1))
    assert float((weights[:, 0] > 0.5).double().mean()) == pytest.approx(0.5**3, abs=0.01)
    with pytest.raises(ValueError, match=r"shape must be \(\*batch, k\) with k >= 1, got \(3, 0\)"):
        transport.uniform_simplex((3, 0))


def test_the_closed_form_is_the_best_of_all_means() -> None:
    """Regression on the samples finds it, and no other does better."""
    xs = _samples(20_000)
    alpha = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64).expand(20_000, 3)
    x = transport.barycentric_interpolant(xs, alpha)
    design = torch.stack([torch.ones_like(x), x], -1).squeeze(-2)
    fitted = design @ torch.linalg.lstsq(design, xs.squeeze(-1)).solution
    known = model(alpha, x).squeeze(-1)
    assert torch.allclose(fitted.mean(0), known.mean(0), atol=0.03)
    assert float((fitted - known).square().mean()) < 1e-3
    assert torch.allclose((alpha * known).sum(-1, keepdim=True), x)  # the means of all make up the point


@pytest.mark.parametrize("diffusion", [0.0, 1.0])
@pytest.mark.parametrize("learned", [False, True])
def test_points_arrive_with_the_distribution_of_the_end(diffusion: float, learned: bool) -> None:
    path = transport.SimplexPath(1, 2, 3, modes=2 if learned else 0, initial=0.7).double()
    x = _samples(3000)[:, 1]
    with torch.no_grad():
        z0, z1 = transport.transport_along(
            model,
            path,
            x,
            steps=120 if diffusion else 40,
            diffusion=diffusion,
            generator=torch.Generator().manual_seed(1),
        )
    assert torch.equal(z0, x)
    assert float(z1.mean()) == pytest.approx(-1, abs=0.1)
    assert float(z1.std()) == pytest.approx(2, abs=0.1)
    remembered = float(torch.corrcoef(torch.cat([z0, z1], -1).mT)[0, 1])
    assert (remembered > 0.99) == (diffusion == 0 or not learned)  # noise only where the Gaussian takes part


def test_the_score_is_the_gradient_of_the_log_density() -> None:
    alpha = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64)
    x = torch.tensor([[0.7]], dtype=torch.float64)
    variance = (alpha.square() @ SPREAD.squeeze(-1)).item()
    expected = -(x - alpha @ CENTRES) / variance
    assert torch.allclose(transport.simplex_score(model, alpha, x), expected)
    with pytest.raises(ValueError, match="alpha must have a positive first weight"):
        transport.simplex_score(model, torch.tensor([[0.0, 0.5, 0.5]], dtype=torch.float64), x)


def test_a_path_learns_to_cost_less_and_its_energy_bounds_the_displacement() -> None:
    xs = _samples(1000)
    t = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    path = transport.SimplexPath(1, 2, 3).double()
    straight = transport.path_energy(model, transport.SimplexPath(1, 2, 3, modes=0).double(), xs, t=t).item()
    optimizer = torch.optim.Adam(path.parameters(), lr=0.05)
    for _ in range(50):
        optimizer.zero_grad()
        energy = transport.path_energy(model, path, xs, t=t)
        energy.backward()
        optimizer.step()
    with torch.no_grad():
        z0, z1 = transport.transport_along(model, path, xs[:, 1], steps=20)
    paid = float((z1 - z0).square().sum(-1).mean())
    least = 9 + (2 - 0.5) ** 2  # of Gaussians: squared differences of means and of standard deviations
    assert energy.item() < straight - 0.1
    assert least * 0.95 < paid < energy.item() * 1.02


def test_the_energy_of_gaussians_is_that_of_their_means_and_deviations() -> None:
    """Independent points mixed are narrower than each, which the straight path pays for and a broad third one mends."""
    path = transport.SimplexPath(0, 1, 3, modes=2, initial=0.5).double()
    t = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    with torch.no_grad():
        alpha, rate = path.with_velocity(t)
        variance = SPREAD.flatten()
        deviation = (alpha.square() @ variance).sqrt()
        known = ((rate @ CENTRES.flatten()).square() + ((alpha * rate) @ variance / deviation).square()).mean()
        energy = transport.path_energy(model, path, _samples(4000).repeat(10, 1, 1), t=t.repeat_interleave(10))
    assert energy.item() == pytest.approx(known.item(), rel=0.05)


def test_any_function_of_time_is_a_path_and_images_are_points() -> None:
    xs = torch.randn(5, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0))

    def squared(t: Tensor) -> Tensor:
        return torch.stack([1 - t**2, t**2], -1)

    def pair(alpha: Tensor, x: Tensor) -> Tensor:
        return xs

    x = xs[:, 0]
    moved = transport.simplex_velocity(pair, squared, torch.tensor(0.25), x, event_ndim=3)
    assert torch.allclose(moved, 0.5 * (xs[:, 1] - xs[:, 0]), atol=1e-6)
    energy = transport.path_energy(pair, squared, xs, t=torch.full((5,), 0.25), event_ndim=3)
    assert energy.item() == pytest.approx(moved.square().sum((1, 2, 3)).mean().item(), rel=1e-5)
    assert torch.allclose(transport.transport_along(pair, squared, x, steps=4, event_ndim=3).z1, xs[:, 1], atol=1e-4)
    weights = transport.uniform_simplex((5, 2), generator=torch.Generator().manual_seed(0))
    assert float(transport.multimarginal_loss(pair, xs, weights)) == 0


def test_what_does_not_fit_is_refused_by_name(without_shape_checks: None) -> None:
    path, x = transport.SimplexPath(0, 1, 2), torch.zeros(2, 1)
    with pytest.raises(ValueError, match=r"model must return a tensor of shape \(2, 2, 1\), got \(2, 1\)"):
        transport.simplex_velocity(lambda alpha, x: x, path, torch.tensor(0.5), x)
    with pytest.raises(ValueError, match=r"t must broadcast|must have shapes that broadcast"):
        transport.simplex_velocity(lambda alpha, x: x, path, torch.rand(3), x)
    with pytest.raises(ValueError, match="end must be another vertex than start, got 1"):
        transport.SimplexPath(1, 1, 3)
    with pytest.raises(ValueError, match=r"start must be in 0..2, got 3"):
        transport.SimplexPath(3, 1, 3)
    with pytest.raises(TypeError, match="model must be callable, got int"):
        transport.transport_along(3, path, x)  # type: ignore[arg-type]
