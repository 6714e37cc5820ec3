"""Rectified flows: what they keep and what they lower, on problems whose answer is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pullback import transport


def _turned(count: int = 4000) -> tuple[Tensor, Tensor]:
    """Gaussian points and the same a quarter turn on."""
    x = torch.randn(count, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x, x.flip(-1) * x.new_tensor([-1, 1])


class _Quadratic(nn.Module):
    """``a(t) |x|^2 / 2`` with a free number for each tenth of the time."""

    def __init__(self) -> None:
        super().__init__()
        self.rates = nn.Parameter(torch.zeros(10, dtype=torch.float64))

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.rates[(10 * t.squeeze(-1)).long().clamp(0, 9)] * x.square().sum(-1) / 2


def test_a_gradient_field_undoes_a_rotation_in_one_round() -> None:
    """The best one is (2 t - 1) / (1 - 2 t + 2 t^2) x, whose flow ends where it began."""
    x0, x1 = _turned()
    potential = _Quadratic()
    optimizer = torch.optim.LBFGS(potential.parameters(), max_iter=30, line_search_fn="strong_wolfe")
    t = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = transport.conjugate_flow_loss(potential, x0, x1, t=t)
        loss.backward()
        return loss

    optimizer.step(closure)
    middle = (torch.arange(10, dtype=torch.float64) + 0.5) / 10
    wanted = (2 * middle - 1) / (1 - 2 * middle + 2 * middle**2)
    assert torch.allclose(potential.rates, wanted, atol=0.15)
    z0, z1 = transport.rectify(transport.PotentialVelocity(potential), x0[:200], steps=10)
    assert float((z1 - z0).square().sum(-1).mean().detach()) < 0.05


def test_a_flow_along_the_true_velocity_of_a_rotation_is_straight_and_keeps_its_cost() -> None:
    x0, x1 = _turned(100)

    def velocity(t: Tensor, x: Tensor) -> Tensor:
        turned = x.flip(-1) * x.new_tensor([-1, 1])
        return ((2 * t - 1) * x + turned) / (1 - 2 * t + 2 * t**2)

    assert float(transport.flow_matching_loss(velocity, x0, x1)) < 1e-20
    z0, z1 = transport.rectify(velocity, x0, steps=20)
    assert torch.allclose(z1, x1, atol=1e-4)
    assert float(transport.straightness(velocity, x0, steps=10)) < 1e-4
    back = transport.rectify(velocity, z1, steps=20, reverse=True)
    assert torch.allclose(back.z0, z0, atol=1e-6)
    assert torch.equal(back.z1, z1)


def test_an_adaptive_method_follows_a_flow_and_derivatives_pass_through_it() -> None:
    rate = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    x0 = torch.ones(3, 1, dtype=torch.float64)
    z1 = transport.rectify(lambda t, x: rate * x, x0, steps=None, method="dopri5").z1
    (slope,) = torch.autograd.grad(z1.sum(), rate)
    assert slope.item() == pytest.approx(3 * torch.tensor(0.5).exp().item(), rel=1e-4)


def test_images_are_points_of_three_dimensions() -> None:
    x0, x1 = torch.randn(2, 4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    seen = []

    def velocity(t: Tensor, x: Tensor) -> Tensor:
        seen.append(t.shape)
        return torch.zeros_like(x)

    loss = transport.flow_matching_loss(velocity, x0, x1, event_ndim=3)
    assert seen == [(4, 1, 1, 1)]
    assert loss.item() == pytest.approx((x1 - x0).square().sum((1, 2, 3)).mean().item(), rel=1e-5)
    potential = transport.PotentialVelocity(
        lambda t, x: (t * x**2).sum((-3, -2, -1)) / 2, transport.PowerCost(4), event_ndim=3
    )
    half = torch.full((1, 1, 1, 1), 0.5)
    length = (0.5 * x0).flatten(1).norm(dim=-1).reshape(4, 1, 1, 1)
    assert torch.allclose(potential(half, x0), 0.5 * x0 / length ** (2 / 3), atol=1e-5)
    assert transport.rectify(velocity, x0, steps=2, event_ndim=3).z1.shape == x0.shape
    assert float(transport.straightness(velocity, x0, steps=2, event_ndim=3)) == 0


def test_another_interpolant_serves_as_well() -> None:
    def circle(x0: Tensor, x1: Tensor, t: Tensor) -> transport.Interpolated:
        angle = t * torch.pi / 2
        return transport.Interpolated(
            angle.cos() * x0 + angle.sin() * x1, torch.pi / 2 * (angle.cos() * x1 - angle.sin() * x0)
        )

    x0, x1 = _turned(50)
    turn = torch.pi / 2 * x0.new_tensor([[0, 1], [-1, 0]])  # on a quarter circle the velocity turns the point
    assert float(transport.flow_matching_loss(lambda t, x: x @ turn, x0, x1, interpolant=circle)) < 1e-20


def test_what_does_not_fit_is_refused_by_name(without_shape_checks: None) -> None:
    x = torch.zeros(2, 2)
    with pytest.raises(ValueError, match="cost must have conjugate, conjugate_gradient, as PowerCost has"):
        transport.conjugate_flow_loss(lambda t, x: x.sum(-1), x, x, cost=type("Odd", (), {"value": 1})())
    with pytest.raises(ValueError, match=r"potential must return a tensor of shape \(2,\), got \(2, 2\)"):
        transport.conjugate_flow_loss(lambda t, x: x, x, x)
    with pytest.raises(ValueError, match=r"velocity must return a tensor of shape \(2, 2\), got \(2,\)"):
        transport.flow_matching_loss(lambda t, x: x.sum(-1), x, x)
    with pytest.raises(ValueError, match="p must be > 1, got 1"):
        transport.PowerCost(1)
