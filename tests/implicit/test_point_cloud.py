"""Gradients on graphs of point clouds against closed forms, and functions of least Lipschitz constant."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pullback.implicit import SmoothManifoldLearning, gradient_energy, graph_lipschitz, point_cloud_laplacian

F64 = {"dtype": torch.float64}


def test_energy_of_a_wave_on_a_circle() -> None:
    """The derivative of sin 2 a is 2 cos 2 a, whatever space the circle lies in."""
    angle = 2 * math.pi * torch.arange(500, **F64) / 500
    z = torch.stack([angle.cos(), angle.sin(), 0 * angle], 1)
    energy = gradient_energy(torch.sin(2 * angle), point_cloud_laplacian(z, scale=3e-4))
    torch.testing.assert_close(energy, 4 * torch.cos(2 * angle) ** 2, rtol=0, atol=2e-2)


def test_energy_of_a_plane_in_the_middle_of_a_square() -> None:
    """On a grid in the plane the energy of a linear function is its squared slope, of all channels together."""
    side = torch.linspace(-1, 1, 61, **F64)
    z = torch.cartesian_prod(side, side)
    values = z @ torch.tensor([[1.0, 3.0], [2.0, -1.0]], **F64)
    energy = gradient_energy(values, point_cloud_laplacian(z, scale=1e-3))
    inside = (z.abs() < 0.6).all(1)
    torch.testing.assert_close(energy[inside], torch.full_like(energy[inside], 15.0), rtol=1e-3, atol=0)


def test_blocks_of_rows_give_the_same_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    z = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    for neighbours in (6, None):
        whole = point_cloud_laplacian(z, scale=0.5, neighbours=neighbours)
        with monkeypatch.context() as patch:
            patch.setattr("pullback.implicit.point_cloud._BLOCK", 100)
            parts = point_cloud_laplacian(z, scale=0.5, neighbours=neighbours)
        assert all(torch.equal(a, b) for a, b in zip(whole[:3], parts[:3], strict=True))


def test_a_long_chain_is_one_component() -> None:
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    chain = torch.arange(300.0)[order, None]
    assert point_cloud_laplacian(chain, scale=1.0, neighbours=2).edges.shape[1] >= 2 * 299
    chain[order > 150] += 1000
    with pytest.raises(ValueError, match="got 2 components"):
        point_cloud_laplacian(chain, scale=1.0, neighbours=2)


def test_points_in_one_place_with_two_values_are_infinitely_steep() -> None:
    z = torch.tensor([[0.0], [0.0], [1.0]])
    graph = point_cloud_laplacian(z, scale=1.0)
    assert graph_lipschitz(torch.tensor([0.0, 1.0, 1.0]), z, graph).item() == math.inf
    values = torch.tensor([1.0, 1.0, 4.0], requires_grad=True)
    constant = graph_lipschitz(values, z, graph)
    assert constant.item() == 3
    constant.backward()
    assert values.grad is not None
    assert bool(values.grad.isfinite().all())


def _three_legs() -> tuple[Tensor, Tensor]:
    """A star of legs of length 1, 1 and 3 and the points at their ends."""
    step = torch.arange(1, 5, **F64)[:, None] / 4
    legs = [step * torch.tensor([[math.cos(a), math.sin(a)]], **F64) for a in (2.0, 4.0)]
    legs.append(torch.arange(1, 13, **F64)[:, None] / 4 * torch.tensor([[1.0, 0.0]], **F64))
    return torch.cat([torch.zeros(1, 2, **F64), *legs]), torch.tensor([4, 8, 20])


def _learn(dual_lr: float) -> tuple[SmoothManifoldLearning, Tensor, Tensor]:
    z, ends = _three_legs()
    targets, values = torch.tensor([0.0, 0.0, 1.0], **F64), torch.zeros(21, **F64)
    learner = SmoothManifoldLearning(
        lambda f: (((f[ends] - targets) ** 2).sum(), f),
        values,
        point_cloud_laplacian(z, scale=1 / 16, neighbours=2),
        loss_bound=1e-3,
        optimizer=torch.optim.Adam([values], lr=1e-2),
        dual_lr=dual_lr,
        loss_lr=2.0,
        warm_up=100,
    )
    return learner, values, z


def test_the_least_lipschitz_constant_spreads_the_slope_along_the_path() -> None:
    """From 0, 0 at the ends of the short legs to 1 at that of the long one.

    Plain regularisation lets the currents of a network decide: the joint has 1 / 7, the long leg the slope 2 / 7. The
    least Lipschitz constant is 1 / 4, that of the straight way over the joint, which then has 1 / 4.
    """
    found = {}
    for rate in (0.0, 1e-3):
        learner, values, z = _learn(rate)
        for _ in range(600):
            state = learner.step()
        assert float(learner.multipliers.sum()) == pytest.approx(1)
        assert float(state.loss) < 2e-3
        steep = graph_lipschitz(values, z, point_cloud_laplacian(z, scale=1 / 16, neighbours=2))
        found[rate] = (float(values[0]), float(state.energy.max().sqrt()), float(steep))
    assert found[0.0][0] == pytest.approx(1 / 7, abs=0.03)
    assert found[1e-3][0] == pytest.approx(1 / 4, abs=0.04)
    assert found[1e-3][1] < 0.87 * found[0.0][1]
    assert found[1e-3][2] < 0.9 * found[0.0][2]
    assert float(state.lipschitz) == pytest.approx(found[1e-3][1], rel=0.05)


def test_a_step_size_of_zero_keeps_equal_weights() -> None:
    learner, _, _ = _learn(0.0)
    for _ in range(3):
        state = learner.step()
    assert torch.equal(learner.multipliers, torch.full_like(learner.multipliers, 1 / 21))
    assert state.step == 2


def test_a_module_and_a_loaded_state() -> None:
    z, ends = _three_legs()

    def new() -> tuple[SmoothManifoldLearning, nn.Module]:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1)).double()
        return SmoothManifoldLearning(
            lambda net: (net(z)[ends].square().mean(), net(z)),
            net,
            point_cloud_laplacian(z, scale=1 / 16, neighbours=2),
            loss_bound=0.1,
            optimizer=torch.optim.Adam(net.parameters(), lr=0.01),
            dual_lr=0.01,
            loss_lr=1.0,
        ), net

    (whole, net), (first, _), (second, resumed) = (new() for _ in range(3))
    for _ in range(6):
        whole.step()
    for _ in range(3):
        first.step()
    second.load_state_dict(first.state_dict())
    for _ in range(3):
        second.step()
    assert torch.equal(whole.multipliers, second.multipliers)
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), resumed.parameters(), strict=True))
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"loss_bound": -1.0}, ValueError, "loss_bound must be >= 0"),
        ({"dual_lr": -1.0}, ValueError, "dual_lr must be >= 0"),
        ({"loss_lr": torch.ones(())}, TypeError, "loss_lr must be a number"),
        ({"warm_up": -1}, ValueError, "warm_up must be an integer >= 0"),
        ({"initial": -1.0}, ValueError, "initial must be >= 0"),
        ({"graph": None}, TypeError, "graph must be a PointCloudGraph"),
        ({"fit": 3}, TypeError, "fit must be a function"),
        ({"fit": lambda f: f}, ValueError, "fit must return a pair of tensors"),
        ({"fit": lambda f: (f, f)}, ValueError, "a loss of one element"),
        ({"fit": lambda f: (f.sum(), f[:2])}, ValueError, "values must have 21 rows"),
        ({"fit": lambda f: (f[:0].square().mean(), f)}, ValueError, "a number, got NaN: no labelled points"),
        ({"optimizer": torch.optim.SGD([torch.zeros(1)], lr=0.1)}, ValueError, "optimizer must hold every tensor of x"),
    ],
)
def test_smooth_manifold_learning_refuses(change: dict[str, Any], error: type[Exception], match: str) -> None:
    z, _ = _three_legs()
    values = torch.zeros(21, **F64)
    options: dict[str, Any] = {
        "fit": lambda f: (f.square().sum(), f),
        "x": values,
        "graph": point_cloud_laplacian(z, scale=1 / 16, neighbours=2),
        "loss_bound": 0.1,
        "optimizer": torch.optim.SGD([values], lr=0.1),
        "dual_lr": 0.1,
        "loss_lr": 0.1,
    }
    with pytest.raises(error, match=match):
        SmoothManifoldLearning(**options | change).step()
