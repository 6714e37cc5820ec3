"""Known potentials: their draws have the law of their density."""

from __future__ import annotations

import math

import pytest
import torch

from pullback.uncertainty import (
    Beliefs,
    DistancePotential,
    EdgePotential,
    NormalPotential,
    gaussian_belief_propagation,
    nonparametric_belief_propagation,
)


def _g(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_normal_differences_make_the_model_that_gaussian_messages_solve() -> None:
    potential: EdgePotential = NormalPotential(torch.tensor([0.4]), 0.5)
    precision = torch.tensor([[1.0 + 4.0, -4.0], [-4.0, 1.0 + 4.0]])
    exact = gaussian_belief_propagation(precision, torch.tensor([1.0 + 1.6, -1.6]), [(0, 1)])
    start = Beliefs(8 * torch.rand(2, 3000, 1, generator=_g()) - 4, torch.full((2, 3000), -math.log(3000)))
    found = nonparametric_belief_propagation(
        lambda s, x: -(x[..., 0] - (1.0 if s == 0 else 0.0)).square() / 2,
        potential,
        [(0, 1)],
        start,
        iterations=2,
        generator=_g(),
    )
    torch.testing.assert_close(found.means[:, 0], exact.means, rtol=0.0, atol=0.06)
    torch.testing.assert_close(found.variances[:, 0], exact.variances, rtol=0.12, atol=0.0)


def test_normal_draws_have_mean_and_deviation() -> None:
    drawn = NormalPotential(torch.tensor([3.0, -1.0], dtype=torch.float64), 0.5).sample((20000,), generator=_g())
    assert drawn.dtype == torch.float64
    torch.testing.assert_close(drawn.mean(0), torch.tensor([3.0, -1.0]).double(), rtol=0.0, atol=0.02)
    torch.testing.assert_close(drawn.std(0), torch.full((2,), 0.5).double(), rtol=0.03, atol=0.0)


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_draws_at_a_distance_have_its_length_in_any_direction(dim: int) -> None:
    potential: EdgePotential = DistancePotential(2.0, 0.1, dim)
    drawn = potential.sample((20000,), generator=_g())
    length = drawn.norm(dim=-1)
    assert float(length.mean()) == pytest.approx(2.0, abs=0.005)
    assert float(length.std()) == pytest.approx(0.1, rel=0.03)
    torch.testing.assert_close(drawn.T @ drawn / len(drawn), torch.eye(dim) * 4.01 / dim, rtol=0.03, atol=0.06)
    assert float(drawn.mean(0).norm()) < 0.06
    torch.testing.assert_close(potential.log_prob(drawn), -(((length - 2) / 0.1) ** 2) / 2)
    assert float(potential.log_prob(torch.zeros(1, dim))) == pytest.approx(-200.0)


@pytest.mark.usefixtures("without_shape_checks")
def test_wrong_arguments_are_refused_by_name() -> None:
    with pytest.raises(TypeError, match="mean must be a floating tensor"):
        NormalPotential(torch.zeros(1).long(), 1.0)
    with pytest.raises(ValueError, match=r"mean must have shape \[d\], got \(\)"):
        NormalPotential(torch.zeros(()), 1.0)
    with pytest.raises(ValueError, match="mean must be finite"):
        NormalPotential(torch.full((1,), math.nan), 1.0)
    with pytest.raises(ValueError, match="scale must be > 0"):
        NormalPotential(torch.zeros(1), 0.0)
    with pytest.raises(ValueError, match="length must be > 0"):
        DistancePotential(-1.0, 1.0)
    with pytest.raises(ValueError, match="dim must be an integer >= 1"):
        DistancePotential(1.0, 1.0, 0)
    with pytest.raises(ValueError, match=r"difference must have shape \[\*batch, 2\], got \(3,\)"):
        DistancePotential(1.0, 1.0).log_prob(torch.zeros(3))
