"""Stages added up as they come, and samples that leave the arrays of a solve: the same numbers as without."""

import pytest
import torch
from torch import Tensor

from pullback.dynamics import loop, odeint, steps

_RATES = torch.linspace(0.1, 6.0, 12, dtype=torch.float64).reshape(-1, 1)


def _solve(y0: Tensor, rate: Tensor, times: Tensor, method: str = "dopri5", **options: float) -> Tensor:
    def field(t: Tensor, y: Tensor) -> Tensor:
        return torch.sin(rate * y) - _RATES * y.flip(-1) + torch.cos(t)

    return odeint(field, y0, times, method=method, rtol=1e-4, atol=1e-6, adjoint="unrolled", **options).y


def _given() -> tuple[Tensor, Tensor, Tensor]:
    y0 = torch.randn(12, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    return y0, torch.tensor(1.5, dtype=torch.float64, requires_grad=True), torch.tensor([0.0, 0.3, 0.35, 1.0]).double()


@pytest.mark.parametrize("method", ["dopri5", "tsit5", "bosh3", "rk4", "euler"])
@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), (0.0, 0.0, 1.0, 0.0), (0.0, 1.0, 0.0, 0.0)])
def test_sums_over_later_stages_give_the_gradient_of_combinations(
    monkeypatch: pytest.MonkeyPatch, method: str, weights: tuple[float, ...]
) -> None:
    """Also of outputs inside, after which steps of the solve have no part in it."""
    y0, rate, times = _given()
    weight = torch.tensor(weights, dtype=torch.float64).reshape(-1, 1, 1)
    spread = torch.autograd.grad((weight * _solve(y0, rate, times, method, step=0.05)).square().sum(), [y0, rate])
    never = property(lambda stepper: False, lambda stepper, value: None)
    monkeypatch.setattr(steps.Stepper, "spreads", never, raising=False)
    plain = torch.autograd.grad((weight * _solve(y0, rate, times, method, step=0.05)).square().sum(), [y0, rate])
    torch.testing.assert_close(spread, plain, rtol=1e-10, atol=1e-12)


def test_a_graph_of_stages_is_gone_through_twice_in_parts_and_in_batches() -> None:
    y0, rate, times = _given()
    y = _solve(y0, rate, times)
    loss = y[-1].square().sum()
    once = torch.autograd.grad(loss, [y0, rate], retain_graph=True)
    torch.autograd.grad(y[1].sum(), rate, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(loss, rate, retain_graph=True)[0], once[1])
    torch.testing.assert_close(torch.autograd.grad(loss, [y0, rate], retain_graph=True), once)
    basis = torch.eye(24, dtype=torch.float64).reshape(24, 12, 2)
    rows = torch.autograd.grad(y[-1], y0, basis, is_grads_batched=True, retain_graph=True)[0]
    apart = torch.stack([torch.autograd.grad(y[-1], y0, b, retain_graph=True)[0] for b in basis[:3]])
    torch.testing.assert_close(rows[:3], apart)


def test_second_derivatives_go_through_the_sums() -> None:
    y0, rate, _ = _given()
    times = torch.tensor([0.0, 0.2, 0.5], dtype=torch.float64)
    assert torch.autograd.gradgradcheck(lambda y, r: _solve(y, r, times, "rk4")[1:].sum(-1), (y0, rate))


def test_a_field_of_time_alone_keeps_the_gradient_of_its_parameters() -> None:
    rate = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    y0 = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    odeint(lambda t, y: rate * t + 0 * t, y0, [0.0, 1.0], adjoint="unrolled").y[-1].sum().backward()
    torch.testing.assert_close(rate.grad, torch.tensor(0.5, dtype=torch.float64))
    torch.testing.assert_close(y0.grad, torch.ones(1, dtype=torch.float64))


@pytest.mark.parametrize("adjoint", ["checkpoint", "interpolated"])
def test_samples_that_are_done_leave_and_nothing_changes(monkeypatch: pytest.MonkeyPatch, adjoint: str) -> None:
    """Outputs at times of each sample, counts of steps and the gradient."""
    found = []
    for crowd in (10**9, 4):
        monkeypatch.setattr(loop, "_CROWD", crowd)
        y0, rate, times = _given()
        own = times * torch.linspace(0.2, 3.0, 12, dtype=torch.float64)[:, None]

        def field(t: Tensor, y: Tensor, rate: Tensor = rate) -> Tensor:
            return torch.sin(rate * y) - _RATES * y.flip(-1)

        solution = odeint(field, y0, own, rtol=1e-4, atol=1e-6, adjoint=adjoint, params=[rate])
        solution.y.square().sum().backward()
        found.append((solution.y.detach(), solution.accepted, solution.rejected, y0.grad, rate.grad))
    torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=1e-13)


def test_samples_that_cannot_go_on_are_told_of_after_others_have_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_CROWD", 4)
    start = torch.full((8, 1), 0.01)
    start[5] = 2.0  # y' = y^2 ends at t = 1/2 there
    solution = odeint(lambda t, y: y * y, start, [0.0, 1.0], check=False)
    assert solution.converged.tolist() == [True] * 5 + [False] + [True] * 2
    assert "sample 5 stopped at t=0.4999" in solution.message
    torch.testing.assert_close(solution.y[-1, :5], torch.full((5, 1), 0.01 / 0.99))
