"""Langevin dynamics of masses against known laws and energies, its adjoint against autograd and differences."""

from __future__ import annotations

import pytest
import torch
from tests.contracts.law import seeded
from torch import Tensor

from pullback import dynamics


class Bias(torch.nn.Module):
    """The force of a small bias beside that of a well."""

    def __init__(self) -> None:
        super().__init__()
        g = seeded()
        self.inner = torch.nn.Parameter(torch.randn(2, 5, generator=g, dtype=torch.float64))
        self.outer = torch.nn.Parameter(torch.randn(5, 2, generator=g, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.inner) @ self.outer - x - x**3


OPTIONS = {"mass": torch.tensor([1.0, 2.5], dtype=torch.float64), "friction": 0.3, "step": 0.05}


def moved(bias: Bias, **words: bool) -> Tensor:
    g = seeded()
    x, v = (torch.randn(3, 2, generator=g, dtype=torch.float64) for _ in "xv")
    path = dynamics.underdamped_langevin(bias, x, v, temperature=0.7, steps=40, generator=g, **OPTIONS, **words)
    return path.positions


@pytest.mark.parametrize("partial", [True, False])
def test_the_adjoint_is_the_gradient_of_the_path(partial: bool) -> None:
    bias, ends = Bias(), torch.tensor([40, 31, 25])
    path = moved(bias, detach_position=partial)
    last = path[ends, torch.arange(3)]
    words = {"partial": partial, **OPTIONS}
    found = dynamics.trajectory_adjoint(bias, path, 2 * last.detach(), start=ends, steps=24, **words)
    assert not found.adjoints.requires_grad
    torch.testing.assert_close(found.positions[0], path[ends - 1, torch.arange(3)].detach())
    short = (bias(found.positions[:, 2]) * found.adjoints[:, 2]).sum()  # this path is followed to its beginning
    for got, wanted in zip(
        torch.autograd.grad(short, list(bias.parameters())),
        torch.autograd.grad(last[2].square().sum(), list(bias.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("coordinates", [2, 8, 9])
@pytest.mark.parametrize("partial", [True, False])
def test_jacobians_taken_at_once_or_one_by_one_give_the_gradient(coordinates: int, partial: bool) -> None:
    g = seeded()
    weight = torch.randn(coordinates, coordinates, generator=g, dtype=torch.float64, requires_grad=True)
    x, v = (torch.randn(2, coordinates, generator=g, dtype=torch.float64) for _ in "xv")

    def force(z: Tensor) -> Tensor:
        return torch.tanh(z @ weight) - z

    words = {"friction": 0.3, "step": 0.05}
    way = {"temperature": 0.5, "steps": 140, "detach_position": partial, "generator": g, **words}
    path = dynamics.underdamped_langevin(force, x, v, **way).positions
    found = dynamics.trajectory_adjoint(
        force, path, 2 * path[-1].detach(), start=140, steps=139, partial=partial, **words
    )
    got = torch.autograd.grad((force(found.positions) * found.adjoints).sum(), weight)[0]
    wanted = torch.autograd.grad(path[-1].square().sum(), weight)[0]
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)


def test_the_exact_adjoint_agrees_with_differences_of_the_same_noise() -> None:
    bias = Bias()
    end = moved(bias)
    found = dynamics.trajectory_adjoint(bias, end, 2 * end[-1].detach(), start=40, steps=39, partial=False, **OPTIONS)
    slope = torch.autograd.grad((bias(found.positions) * found.adjoints).sum(), bias.inner)[0][0, 0]
    values = []
    for shift in (1e-5, -1e-5):
        other = Bias()
        other.inner.data[0, 0] += shift
        values.append(float(moved(other)[-1].detach().square().sum()))
    assert abs(float(slope) - (values[0] - values[1]) / 2e-5) <= 1e-5 * (1 + abs(float(slope)))


def test_without_friction_the_energy_stays_and_with_it_the_law_is_kept() -> None:
    x = torch.tensor([[1.0, -0.5]], dtype=torch.float64)
    still = dynamics.underdamped_langevin(
        lambda x: -x, x, torch.zeros_like(x), friction=0.0, temperature=0.0, step=1e-3, steps=5000, save_every=1000
    )
    assert still.positions.shape == (6, 1, 2)
    energy = (still.positions.square() + still.velocities.square()).sum(-1) / 2
    torch.testing.assert_close(energy, energy[:1].expand_as(energy), rtol=2e-3, atol=0)
    g = seeded()
    x, v = torch.zeros(2, 5000, 1, dtype=torch.float64)
    stiff = {"mass": 4.0, "friction": 2.0, "temperature": 0.5, "step": 0.02, "steps": 600, "save_every": 600}
    law = dynamics.underdamped_langevin(lambda x: -3 * x, x, v, generator=g, **stiff)
    assert abs(float(law.positions[-1].var()) - 0.5 / 3) <= 0.015
    assert abs(float(law.velocities[-1].var()) - 0.5 / 4) <= 0.012


def test_wells_and_passes_of_the_potential_are_those_of_the_literature() -> None:
    known = ((-0.558, 1.442, -146.700), (0.623, 0.028, -108.167), (-0.050, 0.467, -80.768))
    passes = ((-0.822, 0.624, -40.665), (0.212, 0.293, -72.249))
    for x, y, value in (*known, *passes):
        point = torch.tensor([x, y], dtype=torch.float64)
        assert abs(float(dynamics.muller_brown(point)) - value) <= 1e-2
        assert float(torch.func.grad(dynamics.muller_brown)(point).norm()) <= 1.0
        curved = torch.linalg.eigvalsh(torch.func.hessian(dynamics.muller_brown)(point))
        assert bool(curved[0] > 0) == ((x, y, value) in known)


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ({"step": 0.0}, ValueError, "step must be"),
        ({"mass": -1.0}, ValueError, "mass must be > 0"),
        ({"mass": torch.ones(3)}, ValueError, r"mass must be a number or have shape \(2,\)"),
        ({"save_every": 3}, ValueError, "save_every must divide steps 4, got 3"),
        ({"force": lambda x: x.sum()}, ValueError, r"force must return a tensor of shape \(1, 2\), got \(\)"),
        ({"force": lambda x: 1e30 * x}, ValueError, "step must be smaller: the path became NaN or infinite"),
        ({"force": lambda x: torch.inf * x, "steps": 1}, ValueError, "step must be smaller: the path became NaN"),
        ({"velocity": torch.zeros(1, 3)}, ValueError, "velocity must have the shape of position"),
    ],
)
def test_paths_that_cannot_be_are_refused(
    words: dict, error: type[Exception], message: str, without_shape_checks: None
) -> None:
    given = {"force": torch.neg, "position": torch.ones(1, 2), "velocity": torch.ones(1, 2), "step": 0.1, "steps": 4}
    with pytest.raises(error, match=message):
        dynamics.underdamped_langevin(**{**given, **words})


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ({"start": 3, "steps": 3}, ValueError, r"start must be in steps \+ 1..4 for steps 3, got 3 to 3"),
        ({"start": 5}, ValueError, "start must be in steps"),
        ({"start": torch.ones(1)}, TypeError, "start must hold integers"),
        ({"cotangent": torch.ones(2, 2)}, ValueError, r"cotangent must have shape \(1, 2\)"),
        ({"positions": torch.full((5, 1, 2), torch.nan)}, ValueError, "positions must be finite"),
    ],
)
def test_adjoints_that_cannot_be_are_refused(
    words: dict, error: type[Exception], message: str, without_shape_checks: None
) -> None:
    given = {"force": torch.neg, "positions": torch.ones(5, 1, 2), "cotangent": torch.ones(1, 2), "start": 4}
    with pytest.raises(error, match=message):
        dynamics.trajectory_adjoint(**{**given, "steps": 2, "step": 0.1, **words})


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_a_grid_of_gaussians_is_the_sum_of_its_gaussians(axes: int) -> None:
    bias = dynamics.GaussianGridBias((0.0,) * axes, (2.0,) * axes, resolution=3, width=0.7).double()
    g = seeded()
    bias.heights.data = torch.randn(bias.heights.shape, generator=g, dtype=torch.float64)
    x = 2 * torch.rand(5, axes, generator=g, dtype=torch.float64)
    total, pushed = torch.zeros(5, dtype=torch.float64), torch.zeros(5, axes, dtype=torch.float64)
    for index in torch.cartesian_prod(*[torch.arange(3)] * axes).reshape(-1, axes):
        off = x - index
        one = bias.heights.detach()[tuple(index)] * torch.exp(-off.square().sum(-1) / (2 * 0.49))
        total, pushed = total + one, pushed + one[:, None] * off / 0.49
    torch.testing.assert_close(bias(x), total)
    torch.testing.assert_close(bias.force(x), pushed)
    for high in (0.0, torch.inf, torch.nan):
        with pytest.raises(ValueError, match="high must be above low and both finite"):
            dynamics.GaussianGridBias((0.0,), (high,), resolution=3, width=1.0)
    with pytest.raises(ValueError, match="height must be finite, got nan"):
        dynamics.GaussianGridBias((0.0,), (1.0,), resolution=3, width=1.0, height=torch.nan)
