"""Gradients: exact ones against autograd, continuous ones against closed forms; memory; what is captured; events."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from pullback.core.errors import ConvergenceError
from pullback.dynamics import Event, odeint
from pullback.dynamics.methods import METHODS
from pullback.gradients import saved_bytes

EXACT = ("checkpoint", "symplectic")
ALL = (*EXACT, "backsolve", "interpolated", "unrolled")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 4)).double()


def start(n: int = 5) -> Tensor:
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("adjoint", EXACT)
@pytest.mark.parametrize("method", METHODS)
def test_exact_adjoints_equal_autograd_through_the_solver(method: str, adjoint: str) -> None:
    net, y0 = network(), start()
    t = torch.linspace(0, 1.2, 5, dtype=torch.float64, requires_grad=True)

    def field(s: Tensor, y: Tensor) -> Tensor:
        if method == "leapfrog":  # dq/dt = p, dp/dt a function of q and t
            force = net(torch.cat([y[:, :2], torch.cos(s), torch.sin(s)], 1))
            return torch.cat([y[:, 2:], force[:, :2]], 1)
        return net(y) * torch.cos(s)

    options = {"method": method, "rtol": 1e-5, "atol": 1e-6, "step": None if METHODS[method].error else 0.1}
    grads = []
    for kind in ("unrolled", adjoint):
        y = odeint(field, y0, t, adjoint=kind, **options).y
        weights = torch.linspace(1, 2, y.numel(), dtype=torch.float64).view_as(y)
        grads.append(torch.autograd.grad((weights * y).sin().sum(), [y0, t, *net.parameters()]))
    for a, b in zip(*grads, strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("adjoint", ALL)
def test_gradient_of_a_linear_system(adjoint: str) -> None:
    matrix = (0.5 * torch.randn(4, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)).requires_grad_()
    y0 = start()
    y = odeint(lambda t, y: y @ matrix.T, y0, [0.0, 0.7, 1.5], adjoint=adjoint, rtol=1e-9, atol=1e-11).y
    exact = torch.stack([y0, y0 @ torch.matrix_exp(0.7 * matrix.T), y0 @ torch.matrix_exp(1.5 * matrix.T)])
    for a, b in zip(
        torch.autograd.grad(y.sin().sum(), [y0, matrix]),
        torch.autograd.grad(exact.sin().sum(), [y0, matrix]),
        strict=True,
    ):
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-7)


def test_memory() -> None:
    net = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 4)).double()
    y0 = start(32)

    def solve(adjoint: str, rtol: float) -> Tensor:
        return odeint(lambda t, y: net(y), y0, [0.0, 2.0], adjoint=adjoint, rtol=rtol, atol=1e-2 * rtol).y

    weights = tuple(net.parameters())
    kept = {(a, r): saved_bytes(solve, a, r, exclude=weights).total for a in ALL for r in (1e-3, 1e-8)}
    assert kept["backsolve", 1e-3] == kept["backsolve", 1e-8]
    for rtol in (1e-3, 1e-8):
        steps = int(odeint(lambda t, y: net(y), y0, [0.0, 2.0], rtol=rtol, atol=1e-2 * rtol).accepted.sum())
        for adjoint in EXACT:
            assert kept[adjoint, rtol] <= steps * (4 + 2) * 8
        assert kept["unrolled", rtol] > 10 * kept["checkpoint", rtol]


@pytest.mark.parametrize("adjoint", ALL)
def test_parameters_outside_the_module_get_their_gradient(adjoint: str) -> None:
    scale = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    code = torch.tensor([0.3, -0.2], dtype=torch.float64, requires_grad=True)
    matrix = torch.outer(code, code) + torch.eye(2, dtype=torch.float64)  # not a leaf: made by a network before
    y0 = torch.ones(3, 2, dtype=torch.float64)
    end = odeint(lambda t, y: -scale * (y @ matrix), y0, [0.0, 1.0], adjoint=adjoint, rtol=1e-9, atol=1e-11).y[-1]
    exact = y0 @ torch.matrix_exp(-scale * matrix)
    for a, b in zip(
        torch.autograd.grad(end.sum(), [scale, code], retain_graph=True),
        torch.autograd.grad(exact.sum(), [scale, code]),
        strict=True,
    ):
        assert torch.allclose(a, b, rtol=1e-6)


def test_a_parameter_met_later_is_correct_or_an_error() -> None:
    early, late = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (1.0, 2.0))
    y0 = torch.ones(1, 1, dtype=torch.float64)
    # both in the closure: found although the first evaluation meets only one
    end = odeint(lambda t, y: -(early if float(t[0]) < 0.5 else late) * y, y0, [0.0, 1.0], method="rk4", step=0.1).y[-1]
    assert torch.autograd.grad(end, late)[0].item() == pytest.approx(-0.5 * float(end), rel=0.2)

    class Hidden:
        __slots__ = ("box",)

        def __init__(self, box: object) -> None:
            self.box = box

        def pick(self, t: Tensor) -> Tensor:
            return self.box[0 if float(t[0]) < 0.5 else 1]

    hidden = Hidden([early, late])

    def field(t: Tensor, y: Tensor) -> Tensor:
        return -hidden.pick(t) * y

    end = odeint(field, y0, [0.0, 1.0], method="rk4", step=0.1).y[-1]
    with pytest.raises(RuntimeError, match="pass it in params"):
        end.sum().backward()
    end = odeint(field, y0, [0.0, 1.0], method="rk4", step=0.1, params=[late]).y[-1]
    assert torch.autograd.grad(end, late)[0].item() < 0


def test_a_cut_field_is_an_error() -> None:
    y0 = torch.ones(2, 2, requires_grad=True)
    with pytest.raises(RuntimeError, match="cut inside the field"):
        odeint(lambda t, y: -y.detach(), y0, [0.0, 1.0])
    constant = odeint(lambda t, y: torch.ones_like(y), y0, [0.0, 1.0]).y[-1]  # no graph, but nothing is cut
    assert torch.allclose(torch.autograd.grad(constant.sum(), y0)[0], torch.ones(2, 2))


@pytest.mark.parametrize("adjoint", ALL)
def test_energy_based_field(adjoint: str) -> None:
    stiffness = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)

    def hamiltonian(t: Tensor, y: Tensor) -> Tensor:
        energy = 0.5 * y[:, 1:].square().sum() + 0.5 * stiffness * y[:, :1].square().sum()
        (slope,) = torch.autograd.grad(energy, y, create_graph=True)
        return torch.cat([slope[:, 1:], -slope[:, :1]], 1)

    for requires in (True, False):
        y0 = torch.tensor([[1.0, 0.0], [0.5, -1.0]], dtype=torch.float64, requires_grad=requires)
        end = odeint(hamiltonian, y0, [0.0, 1.0], adjoint=adjoint, rtol=1e-9, atol=1e-10).y[-1]
        w = stiffness.sqrt()
        exact = y0[:, 0] * torch.cos(w) + y0[:, 1] * torch.sin(w) / w
        assert torch.allclose(end[:, 0], exact, atol=1e-7)
        (a,), (b,) = (torch.autograd.grad(x.sum(), stiffness) for x in (end[:, 0], exact))
        assert torch.allclose(a, b, atol=1e-6)


def test_double_backward_is_refused_where_it_would_be_wrong() -> None:
    y0 = start()
    net = network()
    for adjoint in ("backsolve", "interpolated"):
        end = odeint(lambda t, y: net(y), y0, [0.0, 1.0], adjoint=adjoint).y[-1]
        with pytest.raises(RuntimeError, match=f"adjoint='{adjoint}' is not differentiable twice"):
            torch.autograd.grad(end.square().sum(), y0, create_graph=True)


GRAVITY = 9.81


def bounce(restitution: Tensor) -> Event:
    def reset(t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([0 * y[..., 0], -restitution * y[..., 1]], -1)

    return Event(lambda t, y: y[..., 0], terminal=False, direction=-1, reset=reset)


def falling(t: Tensor, y: Tensor) -> Tensor:
    return torch.stack([y[..., 1], torch.full_like(y[..., 1], -GRAVITY)], -1)


def bounced(height: Tensor, restitution: Tensor, t: float) -> Tensor:
    """Height and velocity of the ball in closed form."""
    time = (2 * height / GRAVITY).sqrt()
    velocity = restitution * GRAVITY * time
    if t <= time:
        return torch.stack([height - 0.5 * GRAVITY * t * t, -GRAVITY * t + 0 * height])
    while True:
        flight = 2 * velocity / GRAVITY
        if t < time + flight:
            s = t - time
            return torch.stack([velocity * s - 0.5 * GRAVITY * s * s, velocity - GRAVITY * s])
        time, velocity = time + flight, restitution * velocity


@pytest.mark.parametrize("adjoint", ALL)
def test_bouncing_ball(adjoint: str) -> None:
    height = torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64, requires_grad=True)
    restitution = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    y0 = torch.stack([height, 0 * height], -1)
    times = [0.0, 0.5, 1.0, 1.4]
    solution = odeint(falling, y0, times, events=bounce(restitution), adjoint=adjoint, rtol=1e-9, atol=1e-9)
    exact = torch.stack([torch.stack([bounced(h, restitution, t) for h in height]) for t in times])
    assert torch.allclose(solution.y, exact, atol=1e-9)
    weights = torch.linspace(1, 2, exact.numel(), dtype=torch.float64).view_as(exact)
    for a, b in zip(
        torch.autograd.grad((weights * solution.y).sum(), [height, restitution]),
        torch.autograd.grad((weights * exact).sum(), [height, restitution]),
        strict=True,
    ):
        assert torch.allclose(a, b, rtol=1e-8)


def test_event_at_a_save_point() -> None:
    height = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)
    restitution = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    impact = math.sqrt(2 * 2.0 / GRAVITY)
    y0 = torch.stack([height, 0 * height], -1)
    solution = odeint(falling, y0, [0.0, impact, 1.0], events=bounce(restitution), rtol=1e-9, atol=1e-9)
    assert solution.y[1, 0, 1].item() == pytest.approx(-GRAVITY * impact)  # the state before the bounce
    assert torch.autograd.grad(solution.y[1, 0, 0], height, retain_graph=True)[0].item() == pytest.approx(1.0)
    exact = bounced(height[0], restitution, 1.0)
    for a, b in zip(
        torch.autograd.grad(solution.y[2].sum(), [height, restitution]),
        torch.autograd.grad(exact.sum(), [height, restitution]),
        strict=True,
    ):
        assert torch.allclose(a, b, rtol=1e-8)


def test_terminal_event_time_is_differentiable_in_the_condition() -> None:
    level = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    y0 = torch.tensor([[2.0], [4.0], [0.1]], dtype=torch.float64)
    event = Event(lambda t, y: y[..., 0] - level)
    solution = odeint(lambda t, y: -y, y0, [0.0, 1.0, 5.0], events=event, rtol=1e-9, atol=1e-11)
    assert torch.allclose(solution.event_times[0, :2], torch.log(y0[:2, 0] / level), atol=1e-8)
    assert math.isinf(solution.event_times[0, 2])
    assert solution.event_index.tolist() == [[0, 0, -1]]
    assert torch.allclose(solution.y[-1, :2, 0], level.expand(2))  # held at the state of the event
    (grad,) = torch.autograd.grad(solution.event_times[0, 0], level)
    assert grad.item() == pytest.approx(-1 / 0.5, rel=1e-6)


def test_zeno_is_named() -> None:
    with pytest.raises(ConvergenceError, match=r"events accumulate.* t=1\.40142"):  # the ball comes to rest
        odeint(
            falling,
            torch.tensor([[0.3, 0.0]], dtype=torch.float64),
            [0.0, 1.5],
            events=bounce(torch.tensor(0.7, dtype=torch.float64)),
        )


def test_a_reverse_solve_ends_after_as_many_steps_as_one_forwards() -> None:
    # at rest forwards, while its adjoint turns ten thousand times a unit of time
    y0 = torch.zeros(1, 2, requires_grad=True)
    turn = 1e4 * torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    end = odeint(lambda t, y: y @ turn, y0, [0.0, 1.0], adjoint="backsolve", max_steps=100).y[-1]
    with pytest.raises(ConvergenceError, match="the reverse solve failed: max_steps=100 steps did not reach the end"):
        end.sum().backward()
