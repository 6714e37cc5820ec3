"""Normalised momentum: steps of the length that was asked for, whatever the gradient."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from pullback.optim import NormalizedMomentumSGD


def _step(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], gradients: list[torch.Tensor]) -> None:
    for p, g in zip(parameters, gradients, strict=True):
        p.grad = g
    optimizer.step()


@pytest.mark.parametrize("size", [1e-35, 1.0, 1e35])
def test_a_step_has_the_length_lr(size: float) -> None:
    parameters = [nn.Parameter(torch.zeros(2, 3)), nn.Parameter(torch.zeros(()))]
    optimizer = NormalizedMomentumSGD(parameters, 0.25)
    _step(optimizer, parameters, [size * torch.ones(2, 3), torch.tensor(3 * size)])
    moved = torch.cat([p.detach().flatten() for p in parameters])
    torch.testing.assert_close(moved, -0.25 * torch.tensor([1.0] * 6 + [3.0]) / 15**0.5)


def test_groups_are_normalised_by_themselves_and_zero_gradients_move_nothing() -> None:
    first, second, third = (nn.Parameter(torch.zeros(1)) for _ in range(3))
    optimizer = NormalizedMomentumSGD([{"params": [first]}, {"params": [second], "lr": 2.0}, {"params": [third]}], 1.0)
    _step(optimizer, [first, second, third], [torch.full((1,), v) for v in (7.0, -7.0, 0.0)])
    assert [p.item() for p in (first, second, third)] == [-1.0, 2.0, 0.0]
    second.grad = None
    optimizer.step()
    assert [p.item() for p in (first, second, third)] == [-2.0, 2.0, 0.0]


def test_a_gradient_that_is_no_number_shows() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    optimizer = NormalizedMomentumSGD([parameter], 1.0)
    _step(optimizer, [parameter], [torch.tensor([torch.nan, 0.0])])
    assert parameter.isnan().any()


def test_a_saved_state_goes_on_and_closures_are_called() -> None:
    parameter, twin = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer, other = NormalizedMomentumSGD([parameter], 0.1), NormalizedMomentumSGD([twin], 0.1)
    _step(optimizer, [parameter], [torch.tensor([1.0, 2.0, 3.0])])
    twin.data.copy_(parameter.data)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for one, p in ((optimizer, parameter), (other, twin)):

        def closure(one: torch.optim.Optimizer = one, p: nn.Parameter = p) -> torch.Tensor:
            one.zero_grad()
            loss = (p**2).sum()
            loss.backward()
            return loss

        assert one.step(closure).item() == pytest.approx(float((twin.detach() ** 2).sum()), abs=0.5)
    assert torch.equal(parameter, twin)


def test_sparse_gradients_and_wrong_options_of_a_group_are_refused() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    optimizer = NormalizedMomentumSGD([parameter], 1.0)
    with pytest.raises(RuntimeError, match="no sparse gradients, got one for parameter 0 of group 0"):
        _step(optimizer, [parameter], [torch.ones(2).to_sparse()])
    with pytest.raises(ValueError, match="lr must be > 0"):
        NormalizedMomentumSGD([{"params": [parameter], "lr": -1.0}], 1.0)


def test_it_descends_where_plain_descent_of_any_such_step_size_overflows() -> None:
    """From the steep part of an exponential, to the bottom; the step falls like one over the root of the count."""
    ends = {}
    for kind in (NormalizedMomentumSGD, torch.optim.SGD):
        w = nn.Parameter(torch.full((2,), 20.0))
        optimizer = kind([w], 1.0, momentum=0.5)
        for step in range(600):
            optimizer.param_groups[0]["lr"] = 1 / (1 + step) ** 0.5
            optimizer.zero_grad()
            torch.cosh(w - 1).sum().backward()
            optimizer.step()
        ends[kind] = (w.detach() - 1).norm().item()
    assert ends[NormalizedMomentumSGD] < 0.2
    assert not ends[torch.optim.SGD] < 1e3
