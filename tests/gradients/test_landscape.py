"""Derivative profiles against whole derivative tensors, slices against the loss itself."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pullback.gradients import derivative_profile, loss_slice, sensitivity_ranking


def _network(activation: nn.Module) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 5), activation, nn.Linear(5, 1)).double()


@pytest.fixture
def table(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    x = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    return x, torch.randn(6, generator=generator, dtype=torch.float64)


def test_profile_is_the_diagonal_of_the_derivative_tensors(table: tuple[Tensor, Tensor]) -> None:
    network, (x, y) = _network(nn.Tanh()), table

    def of_row(row: Tensor, target: Tensor) -> Tensor:
        return (network(row).squeeze(-1) - target).square()

    first = torch.func.jacrev(of_row)
    second = torch.func.jacfwd(first)
    third = torch.func.jacfwd(second)
    expected = [
        torch.stack([first(row, t) for row, t in zip(x, y, strict=True)]),
        torch.stack([second(row, t).diagonal() for row, t in zip(x, y, strict=True)]),
        torch.stack([torch.einsum("iii->i", third(row, t)) for row, t in zip(x, y, strict=True)]),
    ]
    profile = derivative_profile(lambda x: (network(x).squeeze(-1) - y).square(), x)
    torch.testing.assert_close(profile.values, torch.stack([e.mean(0) for e in expected]).detach())
    torch.testing.assert_close(profile.spread, torch.stack([e.std(0, correction=0) for e in expected]).detach())


def test_profile_of_weights_sums_over_the_units(table: tuple[Tensor, Tensor]) -> None:
    network, (x, y) = _network(nn.Tanh()), table
    weight = network[0].weight.detach()

    def losses(weight: Tensor) -> Tensor:
        return (network[2](torch.tanh(F.linear(x, weight, network[0].bias))).squeeze(-1) - y).square()

    def mean(flat: Tensor) -> Tensor:
        return losses(flat.view_as(weight)).mean()

    hessian = torch.func.hessian(mean)(weight.flatten()).diagonal().view_as(weight)
    profile = derivative_profile(losses, weight, order=2, wrt="weight")
    torch.testing.assert_close(profile.values[0], torch.func.grad(mean)(weight.flatten()).view_as(weight).sum(0))
    torch.testing.assert_close(profile.values[1], hessian.sum(0).detach())


def test_networks_are_profiled_together(table: tuple[Tensor, Tensor]) -> None:
    x, y = table
    nets = torch.randn(3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    together = derivative_profile(lambda x: (torch.tanh(nets @ x.T) - y).square(), x, order=2)
    assert together.values.shape == (3, 2, 4)
    for net, values in zip(nets, together.values, strict=True):
        alone = derivative_profile(lambda x, w=net: (torch.tanh(x @ w) - y).square(), x, order=2)  # type: ignore[misc]
        torch.testing.assert_close(values, alone.values)


def test_at_a_perfect_fit_the_second_order_is_the_squared_slope(table: tuple[Tensor, Tensor]) -> None:
    network, (x, _) = _network(nn.Tanh()), table
    target = network(x).squeeze(-1).detach()
    slopes = torch.func.vmap(torch.func.grad(lambda row: network(row).squeeze()))(x)
    profile = derivative_profile(lambda x: (network(x).squeeze(-1) - target).square(), x)
    assert profile.values[0].abs().max() < 1e-12
    torch.testing.assert_close(profile.values[1], 2 * slopes.square().mean(0).detach())


def test_piecewise_linear_activations_are_named(table: tuple[Tensor, Tensor]) -> None:
    x, y = table
    network = _network(nn.ReLU())
    with pytest.raises(ValueError, match=r"order must be 1 .* got 2: layer '1' \(ReLU\) has no curvature"):
        derivative_profile(lambda x: (network(x).squeeze(-1) - y).square(), x, order=2)
    with pytest.raises(ValueError, match=r"torch\.Tensor\.relu has no curvature"):
        derivative_profile(lambda x: x.relu().sum(-1), x)
    assert derivative_profile(lambda x: (network(x).squeeze(-1) - y).square(), x, order=1).values.shape == (1, 4)
    with pytest.raises(ValueError, match=r"a loss for each of 6 rows, got shape \(4,\)"):
        derivative_profile(lambda x: x.sum(0), x)
    with pytest.raises(ValueError, match=r"one real number a row, \[\*nets, rows\], got \(\)"):
        derivative_profile(lambda x: x.sum(), x)


def test_rankings_differ_by_their_method_and_take_their_sign_from_slopes() -> None:
    profiles = torch.tensor([[1.0, 9.0, 2.0], [1.1, 0.0, 2.0], [0.9, 0.0, 2.0]])
    assert sensitivity_ranking(profiles).order.tolist() == [1, 2, 0]
    assert sensitivity_ranking(profiles, method="median").order.tolist() == [2, 0, 1]
    ratio = sensitivity_ranking(profiles, method="ratio", slopes=torch.tensor([[-1.0, 1.0, 0.5]]).expand(3, 3))
    assert ratio.order.tolist() == [2, 0, 1]
    assert ratio.signed.tolist() == [pytest.approx(-10), pytest.approx(3 / 27**0.5), float("inf")]


def test_a_plane_holds_the_loss_at_each_of_its_points() -> None:
    point = {"w": torch.tensor([1.0, -1.0]), "b": torch.tensor(2.0)}
    first = {"w": torch.tensor([1.0, 0.0]), "b": torch.tensor(0.0)}
    second = {"w": torch.tensor([0.0, 0.0]), "b": torch.tensor(-1.0)}
    found = loss_slice(lambda p: p["w"][0] * p["b"], point, [first, second], extent=2.0, steps=5)
    a = found.offsets
    torch.testing.assert_close(found.values, (1 + a)[:, None] * (2 - a)[None])
    assert point["w"].tolist() == [1.0, -1.0]
    broken = loss_slice(lambda x: x.log(), torch.tensor(0.5), [torch.tensor(1.0)], steps=3)
    assert broken.values.isnan().tolist() == [True, False, False]
    with pytest.raises(ValueError, match=r"loss must return a scalar, got \(2,\)"):
        loss_slice(lambda x: x, torch.ones(2), [torch.ones(2)])
    with pytest.raises(TypeError, match="point must be a tensor or tensors by name, got none"):
        loss_slice(lambda x: x, {}, [{}])
