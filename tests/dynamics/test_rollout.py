"""Unrolling, the linear-quadratic regulator and controllers against closed forms."""

from __future__ import annotations

import pytest
import torch
from scipy.linalg import solve_discrete_are
from torch import Tensor

from pullback.dynamics import BoundedPolicy, PIDController, lqr, rollout


def _pair(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"x": state["x"] + state["v"], "v": 0.9 * state["v"]}


def test_states_may_be_nested_and_segments_keep_fewer_tensors_with_the_same_gradient() -> None:
    kept = []
    found = {}
    for segment in (None, 4, "sqrt"):
        start = {"x": torch.zeros(3, requires_grad=True), "v": torch.ones(3, requires_grad=True)}
        count = 0

        def pack(t: Tensor) -> Tensor:
            nonlocal count
            count += 1
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            states = rollout(
                lambda s: {"x": s["x"] + s["v"].sin(), "v": 0.9 * s["v"].cos()}, start, steps=64, segment=segment
            )
        assert states["x"].shape == (65, 3)
        found[segment] = torch.autograd.grad(states["x"][-1].sum(), list(start.values()))
        kept.append(count)
    assert kept[1] < kept[0] / 2
    for segment in (4, "sqrt"):
        assert all(torch.equal(a, b) for a, b in zip(found[None], found[segment], strict=True))


def test_truncation_lets_no_gradient_reach_further_back_than_its_steps() -> None:
    inputs = torch.zeros(10, requires_grad=True)
    states = rollout(lambda x, u: 2 * x + u, torch.tensor(1.0), inputs, truncate=4)
    assert torch.equal(states, 2.0 ** torch.arange(11))
    (gradient,) = torch.autograd.grad(states[-1], inputs)
    assert gradient.tolist() == [0.0] * 8 + [2.0, 1.0]  # cut before the steps 4 and 8


def test_a_detached_part_carries_no_gradient_from_step_to_step() -> None:
    speed = torch.tensor(1.0, requires_grad=True)
    start = {"x": torch.tensor(0.0), "v": speed}
    whole = rollout(_pair, start, steps=3)["x"][-1]
    part = rollout(_pair, start, steps=3, detach=lambda s: {"x": s["x"].detach(), "v": s["v"]})["x"][-1]
    assert torch.equal(whole, part)
    assert torch.autograd.grad(whole, speed)[0].item() == pytest.approx(1 + 0.9 + 0.81)
    assert torch.autograd.grad(part, speed)[0].item() == pytest.approx(0.81)


def test_a_step_that_changes_the_state_is_named() -> None:
    with pytest.raises(ValueError, match="step 0 returned another structure"):
        rollout(lambda x: (x, x), torch.zeros(2), steps=2)
    with pytest.raises(ValueError, match=r"step 1 returned a tensor of shape \(3,\) for one of \(2,\)"):
        rollout(lambda x, u: x + u if u.sum() == 0 else torch.zeros(3), torch.zeros(2), torch.arange(2.0)[:, None])
    with pytest.raises(TypeError, match="the state must be made of tensors, got float"):
        rollout(lambda x: x, 1.0, steps=2)
    with pytest.raises(ValueError, match="one entry a step"):
        rollout(lambda x, u: x, torch.zeros(2), (torch.zeros(3), torch.zeros(4)))


def test_the_regulator_of_a_long_horizon_solves_the_algebraic_equation() -> None:
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randn(4, n, generator=g, dtype=torch.float64) for n in (4, 2))
    q, r = torch.eye(4, dtype=torch.float64), 0.1 * torch.eye(2, dtype=torch.float64)
    found = lqr(a, b, q, r, horizon=200)
    assert torch.allclose(found.values[0], torch.from_numpy(solve_discrete_are(*(m.numpy() for m in (a, b, q, r)))))
    x = torch.randn(4, generator=g, dtype=torch.float64)
    cost, state = torch.zeros((), dtype=torch.float64), x
    for gain in found.gains:
        u = -gain @ state
        cost = cost + state @ q @ state + u @ r @ u
        state = a @ state + b @ u
    assert torch.allclose(cost + state @ q @ state, x @ found.values[0] @ x)
    with pytest.raises(ValueError, match="not at step 0"):
        lqr(a, b, 0 * q, 0 * r, horizon=1)


def test_a_regulator_takes_a_batch_of_any_of_its_matrices() -> None:
    one = torch.eye(2, dtype=torch.float64)
    costs = torch.stack([one, 2 * one, 3 * one])
    for place in range(5):
        matrices = [one] * 5
        matrices[place] = costs
        for horizon in (1, 3):
            *given, final = matrices
            found = lqr(*given, horizon=horizon, final=final)
            assert found.gains.shape == (horizon, 3, 2, 2)
            assert found.values.shape == (horizon + 1, 3, 2, 2)
            alone = [m[1] if m.ndim == 3 else m for m in matrices]
            single = lqr(*alone[:4], horizon=horizon, final=alone[4])
            torch.testing.assert_close(found.gains[:, 1], single.gains)
            torch.testing.assert_close(found.values[:, 1], single.values)


def test_a_bounded_policy_never_leaves_its_bounds_and_starts_where_told() -> None:
    policy = BoundedPolicy(2, 2, low=(0.0, -1.0), high=(1.0, 3.0), start=0.25)
    assert torch.allclose(policy(torch.zeros(2)), torch.tensor([0.25, 0.0]), atol=0.05)
    far = policy(1e6 * torch.randn(50, 2, generator=torch.Generator().manual_seed(0)))
    assert bool(((far >= policy.low) & (far <= policy.high)).all())
    for words in ({"low": 1.0, "high": 0.0}, {"start": 1.0}, {"high": float("inf")}):
        with pytest.raises(ValueError, match=r"low must be below high|start must be in \(0, 1\)"):
            BoundedPolicy(2, 1, **words)


def test_a_policy_trained_through_a_linear_plant_costs_little_more_than_the_regulator() -> None:
    a, b = torch.tensor([[1.0, 0.1], [0.0, 1.0]]), torch.tensor([[0.005], [0.1]])
    best, g = lqr(a, b, torch.eye(2), 0.1 * torch.eye(1), horizon=30), torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        policy = BoundedPolicy(2, 1, low=-8.0, high=8.0)

    def cost(x: Tensor) -> Tensor:
        states, inputs = rollout(lambda s: (s[0] @ a.T + policy(s[0]) @ b.T, policy(s[0])), (x, x[:, :1]), steps=30)
        return (states.square().sum((0, 2)) + 0.1 * inputs[1:].square().sum((0, 2))).mean()

    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 150)
    for _ in range(150):
        optimizer.zero_grad()
        cost(2 * torch.rand(64, 2, generator=g) - 1).backward()
        optimizer.step()
        schedule.step()
    x = 2 * torch.rand(500, 2, generator=g) - 1
    least = ((x @ best.values[0]) * x).sum(1).mean()
    assert least <= cost(x) <= 1.05 * least


def test_a_pid_controller_winds_up_no_further_than_its_limit_and_is_tuned_through_its_plant() -> None:
    pid = PIDController(0.0, 1.0, 0.0, low=-2.0, high=2.0)
    state = None
    for _ in range(50):
        u, state = pid(torch.tensor([1.0]), state)
    assert u.item() == 2.0
    u, state = pid(torch.tensor([-1.0]), state)
    assert u.item() == pytest.approx(1.0)  # back at once
    pid = PIDController(0.1, 0.0, 0.0, low=-5.0, high=5.0)
    optimizer = torch.optim.Adam(pid.parameters(), lr=0.05)
    costs = []
    for _ in range(60):
        y, memory, cost = torch.ones(1), None, torch.zeros(())
        for _ in range(20):
            u, memory = pid(y, memory)
            y = y + 0.5 * (0.2 * y - u)
            cost = cost + y.square().sum()
        optimizer.zero_grad()
        cost.backward()
        optimizer.step()
        costs.append(cost.item())
    assert costs[-1] < 0.1 * costs[0]
    with pytest.raises(ValueError, match="low must be below high"):
        PIDController(1.0, low=1.0, high=1.0)
