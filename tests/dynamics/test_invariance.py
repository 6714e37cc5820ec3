"""The filter, barrier conditions and invariant ODEs against solvers, closed forms and differences."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor, nn

from pullback import dynamics
from pullback.core.errors import ConvergenceError


def test_filter_equals_slsqp_and_its_jacobian_differences() -> None:
    g = torch.Generator().manual_seed(0)
    for _ in range(200):
        m, more = (int(v) for v in torch.randint(1, 7, (2,), generator=g))
        rows, given = (torch.randn(s, generator=g, dtype=torch.float64) for s in ((m, m + more), (2 * m + more,)))
        a, z0, c = rows.numpy(), given[:-m].numpy(), given[-m:].numpy()
        found = minimize(
            lambda z, z0=z0: (((z - z0) ** 2).sum(), 2 * (z - z0)),
            z0,
            jac=True,
            method="SLSQP",
            constraints={"type": "ineq", "fun": lambda z, a=a, c=c: a @ z + c, "jac": lambda z, a=a: a},
            options={"ftol": 1e-15, "maxiter": 500},
        )

        def filtered(v: Tensor, rows: Tensor = rows, m: int = m) -> Tensor:
            return dynamics.min_norm_filter(v[..., :-m], rows, v[..., -m:]).value

        assert torch.allclose(filtered(given), torch.from_numpy(found.x), atol=1e-6)
        h = 1e-6 * torch.eye(len(given), dtype=torch.float64)
        jacobian = torch.autograd.functional.jacobian(filtered, given)
        assert torch.allclose(jacobian.T, (filtered(given + h) - filtered(given - h)) / 2e-6, atol=1e-5)


def test_contradicting_rows_are_named_or_give_way() -> None:
    rows, offsets = torch.tensor([[1.0], [-1.0]]), torch.tensor([[0.0, 0.0], [-1.0, -1.0]])  # z >= 1 and z <= -1
    with pytest.raises(ConvergenceError, match=r"rows of sample \(1,\) contradict each other") as caught:
        dynamics.min_norm_filter(torch.zeros(2, 1), rows, offsets)
    assert caught.value.result.residual[1] == pytest.approx(1.0)
    soft = dynamics.min_norm_filter(torch.zeros(2, 1), rows, offsets, slack=torch.tensor([1.0, torch.inf]))
    assert torch.allclose(soft.value[1], torch.tensor([-1.0]))  # the hard row holds, the other gives way by 2
    assert torch.allclose(soft.slack[1], torch.tensor([2.0, 0.0]))


def test_a_row_of_zeros_constrains_nothing_but_its_offset() -> None:
    rows = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    fine = dynamics.min_norm_filter(torch.zeros(2), rows, torch.tensor([0.5, -2.0]))
    assert fine.value.tolist() == [2.0, 0.0]
    with pytest.raises(ConvergenceError):
        dynamics.min_norm_filter(torch.zeros(2), rows, torch.tensor([-0.5, -2.0]))


def test_lie_derivatives_are_those_of_the_flow(generator: torch.Generator) -> None:
    matrix = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    x, c = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    for order in range(4):
        found = dynamics.lie_derivative(lambda y: y @ c, lambda y: y @ matrix.T, x, order)
        assert torch.allclose(found, c @ torch.linalg.matrix_power(matrix, order) @ x)


@pytest.mark.parametrize("degree", [1, 3])
def test_a_wrong_degree_is_refused(degree: int) -> None:
    def oscillator(x: Tensor, u: Tensor) -> Tensor:  # the input reaches the place through two integrations
        return torch.stack([x[..., 1], u[..., 0]], -1)

    x, u = torch.randn(4, 2), torch.zeros(4, 1)
    dynamics.barrier_condition(lambda x: x[..., 0], oscillator, x, u, degree=2)
    with pytest.raises(ValueError, match="degree must be the relative degree"):
        dynamics.barrier_condition(lambda x: x[..., 0], oscillator, x, u, degree=degree)


def test_a_vanishing_gradient_is_no_wrong_degree() -> None:
    found = dynamics.barrier_condition(
        lambda x: 1 - x.square().sum(-1), lambda x, u: u, torch.zeros(2, 2), torch.zeros(2, 2), classk=2.0
    )
    assert not bool(found.rows.any())
    assert found.offsets.flatten().tolist() == [2.0, 2.0]


class Rotation(nn.Module):
    """dy/dt = W tanh(V y)."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(2, 6), nn.Linear(6, 2)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.outer(self.inner(y).tanh()) + torch.stack([y[..., 1], -y[..., 0]], -1)


def _field() -> Rotation:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Rotation().double()


def _start(count: int) -> Tensor:
    angle = torch.linspace(-0.4, 0.4, count, dtype=torch.float64)
    return torch.stack([angle.cos(), angle.sin()], -1)


def _above(y: Tensor) -> Tensor:
    """Stay above the line y = -0.5, which the rotation crosses, and within a disc."""
    return torch.stack([y[..., 1] + 0.5, 4 - y.square().sum(-1)], -1)


TIMES = torch.linspace(0, 2, 101, dtype=torch.float64)


@pytest.mark.parametrize("through", ["output_layer", "inner_layer"])
def test_specifications_hold_and_the_plain_field_breaks_them(through: str) -> None:
    field = _field().requires_grad_(False)
    assert _above(dynamics.odeint(field, _start(3), TIMES, method="rk4").y).min() < -0.2
    found = dynamics.InvariantODE(field, _above, through=through, classk=10.0)(_start(3), TIMES)
    assert found.least.min() > -1e-4
    assert found.intervention[0].max() < 1e-9 < found.intervention.max()


def test_which_columns_of_the_last_layer_are_free_does_not_matter() -> None:
    """The states are those of the least change of the field itself."""
    field = _field().requires_grad_(False)

    def filtered(t: Tensor, y: Tensor) -> Tensor:
        rate = field(t, y)
        h = _above(y)
        gradients = torch.stack([torch.tensor([0.0, 1.0]).to(y).expand_as(y), -2 * y], -2)
        return dynamics.min_norm_filter(rate, gradients, 10 * h).value

    found = dynamics.InvariantODE(field, _above, classk=10.0)(_start(3), TIMES)
    assert torch.allclose(found.y, dynamics.odeint(filtered, _start(3), TIMES, method="rk4").y, atol=1e-9)


def test_an_input_of_degree_two_is_filtered() -> None:
    """A falling body is braked by a thrust so that it never passes the ground; far from it the thrust is as asked."""

    def body(t: Tensor, y: Tensor, u: Tensor) -> Tensor:
        return torch.stack([y[..., 1], u[..., 0] - 1], -1)

    safe = dynamics.InvariantODE(body, lambda y: y[..., 0], through="input", degree=2, classk=5.0)
    start = torch.tensor([[5.0, 0.0], [0.1, 0.0]], dtype=torch.float64)
    found = safe(start, torch.linspace(0, 1, 51, dtype=torch.float64), lambda t, y: torch.zeros_like(y[..., :1]))
    assert found.y[-1, 0, 0] == pytest.approx(4.5)  # free fall
    assert found.intervention[:, 0].max() == 0
    assert found.least[1] >= 0
    assert found.intervention[:, 1].max() > 0.5


def test_gradients_pass_through_the_filter() -> None:
    field = _field()
    safe = dynamics.InvariantODE(field, _above, classk=10.0)
    weights = field.inner.weight
    loss = safe(_start(2), TIMES[::4]).y[-1].square().sum()
    (gradient,) = torch.autograd.grad(loss, weights)
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            weights[0, 0] += sign * 1e-6
            values.append(safe(_start(2), TIMES[::4]).y[-1].square().sum())
            weights[0, 0] -= sign * 1e-6
    assert gradient[0, 0].item() == pytest.approx(((values[0] - values[1]) / 2e-6).item(), rel=1e-4)


def test_starts_outside_are_listed_or_recover() -> None:
    field = _field().requires_grad_(False)
    start = torch.tensor([[1.0, 0.0], [1.0, -0.8]], dtype=torch.float64)
    with pytest.raises(ValueError, match=r"samples \[1\] do not"):
        dynamics.InvariantODE(field, _above, classk=5.0)(start, TIMES)
    found = dynamics.InvariantODE(field, _above, classk=5.0, start="recover")(start, TIMES)
    assert bool((found.h[:, 1, 0] >= -0.3 * torch.exp(-5 * TIMES) - 1e-6).all())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"through": "last"}, "through must be one of"),
        ({"degree": 2}, "degree is that of an input"),
        ({"units": [0]}, "units are those of an inner layer"),
        ({"layer": "missing"}, "layer must be one of"),
        ({"through": "inner_layer", "units": [9]}, "units must be in"),
    ],
)
def test_wrong_choices_are_refused(words: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dynamics.InvariantODE(_field(), _above, **words)  # type: ignore[arg-type]


def test_the_rule_drives_through_discs() -> None:
    road = dynamics.DiscRoad(40, generator=torch.Generator().manual_seed(0))

    def driven(t: Tensor, z: Tensor) -> Tensor:
        return dynamics.vehicle(t, z, road.rule(z, road.lidar(t, z)))

    y = dynamics.odeint(driven, road.start, torch.linspace(0, 10, 101), method="rk4").y
    assert (road.clearance(y).amin((0, 2)) > 0).float().mean() > 0.8
    blind = dynamics.odeint(lambda t, z: dynamics.vehicle(t, z, 0 * z[..., :2]), road.start, [0.0, 10.0]).y
    assert blind[-1, :, 0].mean() > 13
    assert road.lidar(torch.zeros(1), road.start).shape == (40, 32)
    with pytest.raises(ValueError, match="size must be two radii in order"):
        dynamics.DiscRoad(1, size=(0.5, 0.1))
    assert math.isclose(float(road.start[:, 3].mean()), 1.5)
