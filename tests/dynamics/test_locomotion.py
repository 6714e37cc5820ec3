"""Masses and springs against closed forms, the compiled steps against the plain ones, and what locomotion needs."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pullback import dynamics
from pullback.kernels.mass_spring import mass_spring


def _robot(**words: float | None) -> tuple[dynamics.MassSpring, Tensor]:
    robot = dynamics.voxel_robot(torch.tensor([[True, True, True], [True, False, True]]))
    return dynamics.MassSpring(*robot[1:], **{"dashpot": 20.0, **words}).double(), robot.positions.double()


@pytest.mark.parametrize("friction", [0.4, None])
def test_compiled_and_plain_steps_and_pullbacks_agree(friction: float | None) -> None:
    assert mass_spring() is not None  # numba is an extra of the tests
    g = torch.Generator().manual_seed(0)
    body, x = _robot(friction=friction, drag=0.3)
    body.rest.requires_grad_()
    body.stiffness.requires_grad_()
    x = x + torch.tensor([0.0, 0.01])
    v = 0.3 * torch.randn(3, *x.shape, generator=g, dtype=torch.float64)
    u = 2 * torch.rand(100, 3, len(body.rest), generator=g, dtype=torch.float64) - 1
    found = []
    for method in ("compiled", "reference"):
        given = [t.clone().requires_grad_() for t in (x, v, u)]
        motion = body.simulate(*given, method=method)
        assert bool((motion.positions[..., 1] == 0.0).any())
        loss = motion.positions[-1, :, :, 0].mean() + motion.velocities[20].square().sum()
        found.append([motion.positions, *torch.autograd.grad(loss, [*given, body.rest, body.stiffness])])
    for fast, plain in zip(*found, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-9, atol=1e-9)


def test_two_masses_swing_with_the_period_of_a_spring() -> None:
    """Period 2 pi sqrt(m / 2k) to 0.1 %, energy to 1 % over fifty periods."""
    spring = dynamics.MassSpring(torch.tensor([[0, 1]]), torch.ones(1), 40.0, gravity=0.0, ground=None).double()
    x = torch.tensor([[0.0, 0.0], [1.1, 0.0]], dtype=torch.float64)
    period = 2 * math.pi * math.sqrt(1 / 80)
    dt = 0.002
    steps = round(50 * period / dt)
    motion = spring.simulate(x, torch.zeros_like(x), torch.zeros(steps, 1).double(), dt=dt)
    stretch = motion.positions[:, 1, 0] - motion.positions[:, 0, 0] - 1
    up = ((stretch[:-1] < 0) & (stretch[1:] >= 0)).nonzero().flatten()
    at = up + stretch[up] / (stretch[up] - stretch[up + 1])
    assert (at[-1] - at[0]).item() * dt / (len(at) - 1) == pytest.approx(period, rel=1e-3)
    energy = spring.energy(motion.positions, motion.velocities)
    assert (energy / energy[0] - 1).abs().max() < 0.01


def test_a_gradient_through_an_impact_is_that_of_the_throw() -> None:
    """A mass thrown flat lands after t = sqrt(2 h / 1.8) and slides v - mu g t; both are known."""
    one = dynamics.MassSpring(torch.zeros(0, 2).long(), torch.zeros(0), 1.0, ground=0.0, friction=0.4).double()
    x = torch.tensor([[0.0, 0.9]], dtype=torch.float64)
    v = torch.tensor([[2.0, 0.0]], dtype=torch.float64, requires_grad=True)
    motion = one.simulate(x, v, torch.zeros(1200, 0).double(), dt=0.001)
    fall = math.sqrt(2 * 0.9 / 1.8)
    slid = 2.0 - 0.4 * 1.8 * fall
    assert motion.velocities[1010, 0, 0].item() == pytest.approx(slid, abs=0.03)
    far = motion.positions[1010, 0, 0]
    (slope,) = torch.autograd.grad(far, v)
    assert far.item() == pytest.approx(2 * fall + slid * 0.01, rel=2e-3)
    assert slope[0, 0].item() == pytest.approx(1.01, rel=1e-6)


def test_stable_step_bounds_steps_that_stay_bounded() -> None:
    body, x = _robot(gravity=0.0, ground=None)
    dt = body.stable_step(x)
    start = x + 1e-6 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    still = torch.zeros_like(x)
    controls = torch.zeros(400, len(body.rest)).double()
    calm = body.simulate(start, still, controls, dt=0.98 * dt)
    wild = body.simulate(start, still, controls[:60], dt=1.1 * dt)
    assert calm.velocities[200:].abs().max() < 1e-3
    assert wild.velocities[-1].abs().max() > 10 * calm.velocities.abs().max()
    with pytest.raises(ValueError, match=r"not finite from step \d+ on, first at mass \d+: dt = 1.0 is too long"):
        body.simulate(start, still, controls, dt=1.0)


def test_a_function_controls_as_its_commands_do() -> None:
    body, x = _robot()
    still = torch.zeros_like(x)
    closed = body.simulate(
        x, still, lambda t, x, v: torch.sin(x.new_full((len(body.rest),), 0.1 * t) + x[0, 0]), steps=30
    )
    opened = body.simulate(x, still, closed.controls)
    torch.testing.assert_close(closed.positions, opened.positions, rtol=0, atol=1e-13)
    x_next, v_next = body.step(closed.positions[3], closed.velocities[3], closed.controls[3])
    torch.testing.assert_close(torch.stack([x_next, v_next]), torch.stack([closed.positions[4], closed.velocities[4]]))


def test_a_command_that_is_held_stands_for_its_steps() -> None:
    body, x = _robot()
    asked = []

    def command(t: int, x: Tensor, v: Tensor) -> Tensor:
        asked.append(t)
        return x.new_full((len(body.rest),), math.sin(t))

    held = body.simulate(x, torch.zeros_like(x), command, steps=10, hold=4)
    assert asked == [0, 4, 8]
    torch.testing.assert_close(held.controls[:, 0], torch.tensor([0, 4, 8]).sin().repeat_interleave(4)[:10].double())
    opened = body.simulate(x, torch.zeros_like(x), held.controls)
    torch.testing.assert_close(held.positions, opened.positions, rtol=0, atol=1e-14)
    torch.testing.assert_close(held.velocities, opened.velocities, rtol=0, atol=1e-14)


@pytest.mark.parametrize("activation", ["sin", "tanh"])
def test_steering_compiled_and_plain_agree_with_all_gradients(activation: str) -> None:
    """Through contacts and clipped commands, and with the controller called step by step."""
    g = torch.Generator().manual_seed(0)
    body, x = _robot(drag=0.2)
    body.rest.requires_grad_()
    body.stiffness.requires_grad_()
    sizes = (2 * len(x), 2, len(body.rest))
    controller = dynamics.PeriodicController(*sizes, hidden=16, activation=activation, generator=g).double()
    x = (x + torch.tensor([0.0, 0.005])).expand(3, -1, -1)
    v = 0.1 * torch.randn(x.shape, generator=g, dtype=torch.float64)
    goals = torch.randn(83, 3, 2, generator=g, dtype=torch.float64)
    noise = 0.4 * torch.randn(21, 3, sizes[-1], generator=g, dtype=torch.float64)
    found = []
    for method in ("compiled", "reference"):
        given = [t.clone().requires_grad_() for t in (x, v, goals, noise)]
        motion = dynamics.steer(body, controller, *given[:3], noise=given[3], hold=4, method=method)
        assert bool((motion.positions[..., 1] == 0.0).any())
        assert bool((motion.controls.abs() == 1).any())
        loss = motion.positions[-1, ..., 0].sum() + motion.velocities[40].square().sum() + motion.controls.abs().mean()
        wanted = [*given, *controller.parameters(), body.rest, body.stiffness]
        found.append([motion.positions, motion.controls, *torch.autograd.grad(loss, wanted)])
    for fast, plain in zip(*found, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-9, atol=1e-11)

    def command(t: int, x: Tensor, v: Tensor) -> Tensor:
        return controller(float(t), ((x - x.mean(-2, keepdim=True)) / 0.2).flatten(-2), goals[t])

    called = body.simulate(x, v, command, steps=83, hold=4)
    torch.testing.assert_close(dynamics.steer(body, controller, x, v, goals, hold=4).positions, called.positions)


def test_momentum_and_energy_are_those_of_the_forces() -> None:
    """In the air springs and dashpots add no momentum and no spin; dashpots alone lose energy."""
    g = torch.Generator().manual_seed(3)
    start = 0.2 * torch.randn(12, 2, generator=g, dtype=torch.float64)
    for dashpot in (0.0, 30.0):
        body, x = _robot(gravity=0.0, ground=None, dashpot=dashpot)
        x = x + 0.005 * torch.randn(x.shape, generator=g, dtype=torch.float64)
        motion = body.simulate(x, start, torch.zeros(4000, len(body.rest)).double(), dt=0.0005)
        momentum = motion.velocities.sum(1)
        torch.testing.assert_close(momentum, momentum[:1].expand_as(momentum), rtol=0, atol=1e-11)
        x, v = motion.positions, motion.velocities
        spin = (x[..., 0] * v[..., 1] - x[..., 1] * v[..., 0]).sum(1)
        torch.testing.assert_close(spin, spin[:1].expand_as(spin), rtol=0, atol=1e-11)
        energy = body.energy(x, v)
        if dashpot:
            assert (energy[1:] <= energy[:-1] + 1e-4 * energy[0]).all()
            assert energy[-1] < 0.95 * energy[0]
        else:
            assert (energy / energy[0] - 1).abs().max() < 0.02


def test_gradients_of_a_gait_are_those_of_finite_differences() -> None:
    """In the air to rounding; on the ground, where steps have kinks, in direction."""
    for height, least in ((5.0, 0.999999), (0.0, 0.9)):
        g = torch.Generator().manual_seed(1)
        body, x = _robot(dashpot=50.0)
        x = x + torch.tensor([0.0, height])
        controller = dynamics.PeriodicController(2 * len(x), 1, len(body.rest), generator=g).double()
        goals, offset = torch.ones(200, 1, dtype=torch.float64), controller.second.bias

        def place(x: Tensor = x, body: dynamics.MassSpring = body, height: float = height) -> Tensor:
            """Of the centre; in the air, where nothing moves it, of a mass."""
            end = dynamics.steer(body, controller, x, torch.zeros_like(x), goals, hold=5).positions[-1]  # noqa: B023
            return end[0].sum() if height else end[:, 0].mean()

        (slope,) = torch.autograd.grad(place(), offset)
        with torch.no_grad():
            numeric = torch.zeros_like(slope)
            for i in range(len(offset)):
                ends = []
                for side in (1e-6, -1e-6):
                    offset[i] += side
                    ends.append(place())
                    offset[i] -= side
                numeric[i] = (ends[0] - ends[1]) / 2e-6
        assert torch.cosine_similarity(slope, numeric, dim=0) >= least


def test_steering_refuses_what_does_not_fit(without_shape_checks: None) -> None:
    body, x = _robot()
    still, goals = torch.zeros_like(x), torch.zeros(4, 1, dtype=torch.float64)
    controller = dynamics.PeriodicController(2 * len(x), 1, 3).double()
    with pytest.raises(ValueError, match=f"controller must have {len(body.rest)} outputs, got 3"):
        dynamics.steer(body, controller, x, still, goals)
    with pytest.raises(TypeError, match="controller must be a PeriodicController, got Linear"):
        dynamics.steer(body, torch.nn.Linear(2, 2), x, still, goals)
    right = dynamics.PeriodicController(2 * len(x), 1, len(body.rest)).double()
    with pytest.raises(ValueError, match=r"above the ground at 0, these do not: \[0, "):
        dynamics.steer(body, right, x - 1.0, still, goals)
    with pytest.raises(RuntimeError, match="compiled steps need numba"):
        torch.func.jvp(lambda x: dynamics.steer(body, right, x, still, goals, method="compiled").positions, (x,), (x,))
    with pytest.raises(ValueError, match="one entry for each of 3 times"):
        right.drive([0, 1, 2], goals)


def test_a_body_without_springs_takes_any_step() -> None:
    one = dynamics.MassSpring(torch.zeros(0, 2).long(), torch.zeros(0), 1.0)
    assert one.stable_step(torch.zeros(1, 2)) == math.inf


def test_a_body_refuses_wrong_parts(without_shape_checks: None) -> None:
    pair, one = torch.tensor([[0, 1]]), torch.ones(1)
    with pytest.raises(TypeError, match="anchors must be int64"):
        dynamics.MassSpring(pair.float(), one, 1.0)
    with pytest.raises(ValueError, match="two different masses"):
        dynamics.MassSpring(pair * 0, one, 1.0)
    with pytest.raises(ValueError, match=r"stiffness must have shape \(1,\), got \(2,\)"):
        dynamics.MassSpring(pair, one, torch.ones(2))
    with pytest.raises(ValueError, match="rest must be > 0"):
        dynamics.MassSpring(pair, 0 * one, 1.0)
    with pytest.raises(ValueError, match=r"actuation must be in \[0, 1\)"):
        dynamics.MassSpring(pair, one, 1.0, 1.0)
    with pytest.raises(ValueError, match="those of 3 steps, got steps = 4"):
        dynamics.MassSpring(pair, one, 1.0).simulate(torch.ones(2, 2), torch.ones(2, 2), torch.zeros(3, 1), 4)
    sunk = torch.tensor([[0.0, 0.5], [1.0, -0.5]])
    with pytest.raises(ValueError, match=r"above the ground at 0, these do not: \[1\]"):
        dynamics.MassSpring(pair, one, 1.0).simulate(sunk, torch.zeros(2, 2), torch.zeros(3, 1))


def test_goals_change_with_the_period_and_fill_their_ranges(without_shape_checks: None) -> None:
    ranges = [(-0.08, 0.08), (0.1, 0.2)]
    goals = dynamics.goal_schedule(400, 25, ranges=ranges, period=10, generator=torch.Generator().manual_seed(0))
    assert goals.shape == (25, 400, 2)
    changes = (goals[1:] != goals[:-1]).all(-1).all(-1).nonzero().flatten()
    assert changes.tolist() == [9, 19]
    for goal, (low, high) in zip(goals[[0, 10, 20]].unbind(-1), ranges, strict=True):
        assert bool((goal >= low).all() and (goal <= high).all())
        assert goal.mean().item() == pytest.approx((low + high) / 2, abs=0.05 * (high - low))
        assert goal.std().item() == pytest.approx((high - low) / math.sqrt(12), rel=0.05)
    with pytest.raises(ValueError, match="ranges must be pairs"):
        dynamics.goal_schedule(1, 1, ranges=[(1.0, 0.0)])


def test_a_periodic_controller_is_periodic_and_hears_its_goal() -> None:
    controller = dynamics.PeriodicController(40, 1, 6, period=50.0, generator=torch.Generator().manual_seed(0)).double()
    state = torch.randn(20, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    goal = torch.zeros(20, 1, dtype=torch.float64)
    torch.testing.assert_close(controller(7.0, state, goal), controller(7.0 + 50e4, state, goal))
    assert (controller(7.0, state, goal) - controller(32.0, state, goal)).abs().max() > 0.1
    deaf = dynamics.PeriodicController(40, 1, 6, repeat=1, generator=torch.Generator().manual_seed(0)).double()
    heard, drowned = ((c(0.0, state, goal + 1) - c(0.0, state, goal)).square().mean() for c in (controller, deaf))
    assert heard > 2 * drowned
