"""Control tasks keep their energy and know their exact steps; planners reach the regulator."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pullback import dynamics


def test_a_free_pendulum_and_a_free_cartpole_keep_their_energy() -> None:
    state, idle = torch.tensor([2.0, 0.5], dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    task = dynamics.pendulum(dt=0.005, repeat=400)
    energies = [0.5 * s[1] ** 2 + 9.81 * s[0].cos() for s in (state, task.step(state, idle).state)]
    torch.testing.assert_close(energies[0], energies[1], rtol=1e-6, atol=0)

    def energy(s: Tensor) -> Tensor:
        x, angle, speed, rate = s
        kinetic = 0.5 * 1.1 * speed**2 + 0.1 * 0.5 * speed * rate * angle.cos() + 0.5 * 0.1 * 0.25 * 4 / 3 * rate**2
        return kinetic + 0.1 * 9.81 * 0.5 * angle.cos() + 0 * x

    state = torch.tensor([0.1, 2.0, 0.3, 1.0], dtype=torch.float64)
    task = dynamics.cartpole(dt=0.005, repeat=400)
    torch.testing.assert_close(energy(task.step(state, idle).state), energy(state), rtol=1e-6, atol=1e-9)


def test_two_free_rods_keep_their_energy_and_fall_as_the_lagrangian_says() -> None:
    """Energies from the places of the rods' points, by quadrature along them: nothing of the equations is used."""
    mass, length = 0.7, 0.8
    part = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000 * length

    def energy(s: Tensor, gravity: float) -> Tensor:
        first, second, slow, fast = s
        y = torch.stack([part * first.cos(), length * first.cos() + part * second.cos()])

        def places(a: Tensor, b: Tensor) -> Tensor:
            far = length * a.sin() + part * b.sin(), length * a.cos() + part * b.cos()
            return torch.stack([part * a.sin(), part * a.cos(), *far])

        moving = torch.autograd.functional.jvp(places, (first, second), (slow, fast))[1]
        return mass / 2000 * (moving.square().sum() / 2 + gravity * y.sum())

    state = torch.tensor([2.0, 1.2, 0.4, -0.8], dtype=torch.float64)
    task = dynamics.acrobot(mass=mass, length=length, dt=0.002, repeat=500)
    after = task.step(state, torch.zeros(1, dtype=torch.float64)).state
    assert float((after - state).abs().max()) > 0.5
    torch.testing.assert_close(energy(after, 9.81), energy(state, 9.81), rtol=1e-6, atol=1e-6)
    arm = dynamics.reacher(mass=mass, length=length, damping=0.0, dt=0.002, repeat=500)
    state = torch.cat([state, torch.tensor([0.1, 0.2]).double()])
    after = arm.step(state, torch.zeros(2, dtype=torch.float64)).state
    torch.testing.assert_close(energy(after[:4], 0.0), energy(state[:4], 0.0), rtol=1e-6, atol=1e-9)
    assert torch.equal(after[4:], state[4:])
    momentum, share = [], torch.tensor([11 / 6, 5 / 6], dtype=torch.float64)
    for push in ([0.0, 1.0], [1.0, 0.0]):  # the elbow's torque turns the rods against each other, the shoulder's both
        rates = arm.field(torch.zeros(6).double(), torch.tensor(push).double())[2:4]
        momentum.append(float(mass * length**2 * (rates * share).sum()))
    assert momentum == pytest.approx([0.0, 1.0], abs=1e-9)


def test_tasks_start_between_their_bounds_and_refuse_actions_outside() -> None:
    names = ("pendulum", "cartpole", "double_integrator", "point_mass", "acrobot", "reacher")
    for task in (getattr(dynamics, name)() for name in names):
        state = task.reset(50, generator=torch.Generator().manual_seed(0))
        assert bool((state >= torch.tensor(task.low)).all() and (state <= torch.tensor(task.high)).all())
        assert task.observe(state).shape == (50, task.observation_size)
        with pytest.raises(ValueError, match=r"action must be in \[-1, 1\]"):
            task.step(state, torch.full((task.action_size,), 1.1))
    with pytest.raises(ValueError, match="low and high must have 2 numbers"):
        dynamics.Environment(2, 1, 2, task.field, task.reward, task.observe, (0.0,), (1.0,))


def test_planners_reach_the_regulator_and_the_gradient_its_optimum() -> None:
    horizon, task = 15, dynamics.double_integrator(force=5.0)
    a, b = torch.tensor([[1.0, 0.1], [0.0, 1.0]]).double(), torch.tensor([[0.025], [0.5]]).double()
    cost = torch.diag(torch.tensor([1.0, 0.1])).double()
    found = dynamics.lqr(a, b, cost, 0.1 * torch.eye(1).double(), horizon=horizon)
    start = torch.tensor([0.3, -0.2], dtype=torch.float64)
    best = start @ (found.values[0] - cost) @ start  # rewards are of the states reached
    words = {"actions": 1, "horizon": horizon}

    def draws() -> torch.Generator:
        return torch.Generator().manual_seed(0)

    ours = dynamics.plan_gradient(task.step, start, candidates=1, iterations=400, lr=0.02, generator=draws(), **words)
    mppi = dynamics.plan_mppi(task.step, start, temperature=0.02, iterations=25, noise_floor=0.0, std=0.5,
                              generator=draws(), **words)  # fmt: skip
    cem = dynamics.plan_cem(task.step, start, iterations=15, std=0.5, generator=draws(), **words)
    assert -float(ours.value) <= float(best) * (1 + 1e-3)
    assert float(best) <= -float(mppi.value) <= 1.02 * float(best)
    assert float(best) <= -float(cem.value) <= 1.02 * float(best)


def test_one_elite_is_the_best_sample_and_the_batch_is_planned_side_by_side() -> None:
    task = dynamics.pendulum()
    state = torch.tensor([[math.pi, 0.0], [0.1, 0.0]])
    words = {"actions": 1, "horizon": 4, "samples": 30, "elites": 1, "iterations": 1}
    plan = dynamics.plan_mppi(task.step, state, generator=torch.Generator().manual_seed(3), **words)
    drawn = (2.0 * torch.randn(4, 30, 2, 1, generator=torch.Generator().manual_seed(3))).clamp(-1, 1)
    returns = dynamics.imagined_return(task.step, state.expand(30, 2, 2), drawn)
    for row in range(2):
        assert torch.equal(plan.actions[:, row], drawn[:, returns[:, row].argmax(), row])
    assert torch.equal(plan.value, returns.amax(0))


def test_a_policy_proposes_and_a_plan_goes_on() -> None:
    task, state = dynamics.double_integrator(), torch.tensor([0.5, 0.0])
    plan = dynamics.plan_mppi(task.step, state, actions=1, horizon=20, samples=4, elites=2, policy_samples=3,
                              policy=lambda s: -s[..., :1], std=1e-6, noise_floor=0.0, iterations=1)  # fmt: skip
    assert float(plan.actions[0]) == pytest.approx(-0.5, abs=1e-6)  # the policy is better than doing nothing
    longer = dynamics.plan_cem(task.step, state, actions=1, horizon=5, samples=3, elites=1, iterations=1, std=1e-9,
                               previous=torch.tensor([[0.1], [0.2], [0.3]]))  # fmt: skip
    assert longer.mean[:, 0].tolist() == pytest.approx([0.2, 0.3, 0.0, 0.0, 0.0], abs=1e-6)
    with pytest.raises(ValueError, match="not finite in iteration 0"):
        dynamics.plan_cem(lambda s, a: (s, s[..., 0] / 0), state, actions=1)
    with pytest.raises(ValueError, match="must depend on the actions by a gradient"):
        dynamics.plan_gradient(lambda s, a: (s, (s + a.detach())[..., 0]), state, actions=2)
    with pytest.raises(ValueError, match="policy_samples needs a policy"):
        dynamics.plan_mppi(task.step, state, actions=1, policy_samples=1)
    with pytest.raises(ValueError, match="give one number a state"):
        dynamics.plan_mppi(lambda s, a: (s, s), state, actions=1)
