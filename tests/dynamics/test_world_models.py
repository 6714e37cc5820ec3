"""Learned models of a task against sums written out, a memory against the episodes that went in."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from pullback import dynamics
from pullback.core.errors import ConvergenceError
from pullback.dynamics import LatentWorldModel, RecurrentStateSpaceModel, ReplayBuffer


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shaken(seed: int = 0) -> LatentWorldModel:
    """A model whose last layers are not zero, in double precision."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LatentWorldModel(3, 2, latent=4, hidden=5).double()
        for p in model.parameters():
            nn.init.uniform_(p, -0.8, 0.8)
    return model


def sequences(count: int = 6, steps: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    g = drawn(7)
    s = torch.randn(count, steps + 1, 3, generator=g, dtype=torch.float64)
    return s, torch.rand(count, steps, 2, generator=g).double() * 2 - 1, torch.randn(count, steps, generator=g).double()


def by_hand(model: LatentWorldModel, target: LatentWorldModel, s: Tensor, a: Tensor, r: Tensor) -> Tensor:
    """One sequence, step by step, each Q by its own layers."""

    def q(net: LatentWorldModel, z: Tensor, action: Tensor, j: int) -> Tensor:
        assert net.twins is not None
        x = torch.cat([z, action])
        for place in range(3):
            x = x if place == 0 else torch.where(x > 0, x, x.exp() - 1)
            x = x @ net.twins.weights[place][j] + net.twins.biases[place][j, 0]
        return x[0]

    z, total = model.encoder(s[0]), torch.zeros((), dtype=torch.float64)
    for t in range(len(r)):
        seen = model.encoder(s[t + 1]).detach()
        action = model.policy(seen).tanh().detach()  # type: ignore[misc]
        goal = r[t] + 0.9 * min(q(target, seen, action, 0).detach(), q(target, seen, action, 1).detach())
        both = torch.cat([z, a[t]])
        after = model.transition(both)
        wanted = target.encoder(s[t + 1]).detach()
        error = 2 * (after - wanted).square().mean() + 0.5 * (model.reward(both)[0] - r[t]) ** 2  # type: ignore[misc]
        error = error + 0.1 * sum((q(model, z, a[t], j) - goal) ** 2 for j in range(2))
        total, z = total + 0.5**t * error, after
    return total


def test_the_consistency_loss_is_its_sum_and_leaves_the_target_alone() -> None:
    model, target = shaken(), shaken(1)
    s, a, r = sequences()
    weight = torch.linspace(0.1, 1, 6, dtype=torch.float64)
    found = dynamics.latent_consistency_loss(model, target, s, a, r, discount=0.9, importance=weight)
    expected = torch.stack([by_hand(model, target, *one) for one in zip(s, a, r, strict=True)])
    torch.testing.assert_close(found.each, expected)
    torch.testing.assert_close(found.total, (weight * expected).mean())
    slopes = torch.autograd.grad(found.total, list(model.transition.parameters()), retain_graph=True)
    others = torch.autograd.grad((weight * expected).mean(), list(model.transition.parameters()))
    for ours, other in zip(slopes, others, strict=True):
        torch.testing.assert_close(ours, other)
    found.total.backward()
    assert all(p.grad is None for p in target.parameters())
    assert all(p.grad is None for p in model.policy.parameters())  # type: ignore[union-attr]
    assert found.priority.shape == (6,)
    assert bool((found.priority > 0).all())
    assert not found.priority.requires_grad
    assert found.latents.shape == (4, 6, 4)


def test_noise_goes_to_the_actions_of_the_policy_in_targets_and_in_its_own_loss() -> None:
    model, target = shaken(), shaken(1)
    s, a, r = sequences(5, 1)
    words = {"weights": (0.0, 0.0, 1.0), "discount": 0.9, "noise": 0.2}
    found = dynamics.latent_consistency_loss(model, target, s, a, r, **words, generator=drawn(4))  # type: ignore[arg-type]
    with torch.no_grad():
        seen = model.encode(s[:, 1:])
        moved = dynamics.truncated_normal(model.act(seen), 0.2, generator=drawn(4))
        goal = r + 0.9 * target.values(seen, moved).amin(-1)
        assert not torch.equal(moved, model.act(seen))
    expected = (model.values(model.encode(s[:, 0]), a[:, 0]) - goal).square().sum(-1)
    torch.testing.assert_close(found.each, expected)
    z = seen[:, 0]
    moved = dynamics.truncated_normal(model.act(z), 0.2, generator=drawn(4))
    torch.testing.assert_close(
        dynamics.latent_policy_loss(model, z[None], noise=0.2, generator=drawn(4)), -model.values(z, moved).amin(-1)
    )
    torch.testing.assert_close(model.state_value(z, 0.2, generator=drawn(4)), model.values(z, moved).amin(-1))
    with pytest.raises(ValueError, match="noise must be >= 0"):
        dynamics.latent_policy_loss(model, z[None], noise=-1.0)
    with pytest.raises(ValueError, match="noise must be >= 0"):
        dynamics.latent_consistency_loss(model, target, s, a, r, noise=-0.1)


def test_weights_start_orthogonal_and_values_at_zero() -> None:
    model = LatentWorldModel(3, 1, latent=4, hidden=6)
    assert model.twins is not None
    for weight in (*(p for p in model.policy.parameters() if p.ndim == 2), *model.twins.weights[1]):  # type: ignore[union-attr]
        short = weight.T if weight.shape[0] > weight.shape[1] else weight
        torch.testing.assert_close(short @ short.T, torch.eye(len(short)), atol=1e-5, rtol=0)
    assert not torch.equal(*model.twins.weights[1])
    assert model.state_value(model.encode(torch.randn(5, 3, generator=drawn()))).tolist() == [0.0] * 5


def test_targets_of_a_chain_of_three_states_are_those_worked_out() -> None:
    chain_q = torch.tensor([[1.0, 3.0], [2.5, 0.5], [4.0, 4.0]], dtype=torch.float64)
    reward = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    target = dynamics.double_q_target(reward, -chain_q, chain_q, torch.tensor([False, False, True]), discount=0.9)
    assert target.tolist() == pytest.approx([0.9, 1.45, 2.0], abs=1e-12)


def test_the_policy_loss_moves_the_policy_alone_and_uphill() -> None:
    model = shaken()
    z = torch.randn(4, 9, 4, generator=drawn(), dtype=torch.float64)
    loss = dynamics.latent_policy_loss(model, z)
    value = torch.stack([model.state_value(step) for step in z])
    torch.testing.assert_close(loss, -(value * 0.5 ** torch.arange(4.0).double()[:, None]).sum(0))
    loss.mean().backward()
    assert {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None} == {"policy"}
    with torch.no_grad():
        for p in model.policy.parameters():  # type: ignore[union-attr]
            p -= 1e-3 * p.grad
    assert float(dynamics.latent_policy_loss(model, z).mean().detach()) < float(loss.mean().detach())


def test_replicates_side_by_side_are_models_of_their_own() -> None:
    stacked, aside = (LatentWorldModel(3, 2, latent=4, hidden=5, replicates=3).double() for _ in range(2))
    alone, others = ([shaken(k + start) for k in range(3)] for start in (0, 10))
    for several, single in ((stacked, alone), (aside, others)):
        for name in ("encoder", "transition", "reward", "policy"):
            for place in range(2 if name == "encoder" else 3):
                layers = [getattr(model, name)[2 * place] for model in single]
                getattr(several, name).weights[place].data = torch.stack([layer.weight.detach().T for layer in layers])
                getattr(several, name).biases[place].data = torch.stack([layer.bias.detach()[None] for layer in layers])
        for place in range(3):
            for kind in ("weights", "biases"):
                rows = [getattr(model.twins, kind)[place].detach() for model in single]
                getattr(several.twins, kind)[place].data = torch.cat(rows)
    g = drawn(3)
    s = torch.randn(2, 6, 3, 4, 3, generator=g, dtype=torch.float64)  # two batch dimensions before the replicates
    a, r = torch.rand(2, 6, 3, 3, 2, generator=g).double() * 2 - 1, torch.randn(2, 6, 3, 3, generator=g).double()
    weight = torch.rand(2, 6, 3, generator=g).double()
    z = stacked.encode(s[..., 0, :])
    words = {"discount": 0.9}
    found = dynamics.latent_consistency_loss(stacked, aside, s, a, r, importance=weight, **words)  # type: ignore[arg-type]
    policy = dynamics.latent_policy_loss(stacked, found.latents)
    (found.total + policy.mean((0, 1)).sum()).backward()
    total = torch.zeros((), dtype=torch.float64)
    for k, (model, target) in enumerate(zip(alone, others, strict=True)):
        own = model.encode(s[:, :, k, 0])
        torch.testing.assert_close(z[:, :, k], own)
        for ours, other in zip(stacked.step(z, a[..., 0, :]), model.step(own, a[:, :, k, 0]), strict=True):
            torch.testing.assert_close(ours[:, :, k], other)
        torch.testing.assert_close(stacked.state_value(z)[:, :, k], model.state_value(own))
        torch.testing.assert_close(
            stacked.values(z, a[..., 0, :], frozen=True)[:, :, k], model.values(own, a[:, :, k, 0])
        )
        one = dynamics.latent_consistency_loss(
            model,
            target,
            s[:, :, k],
            a[:, :, k],
            r[:, :, k],
            importance=weight[:, :, k],
            **words,  # type: ignore[arg-type]
        )
        torch.testing.assert_close(found.each[:, :, k], one.each)
        torch.testing.assert_close(found.priority[:, :, k], one.priority)
        (one.total + dynamics.latent_policy_loss(model, one.latents).mean()).backward()
        total = total + one.total
        for name in ("encoder", "transition", "reward", "policy"):
            slope = getattr(stacked, name).weights[1].grad[k].T
            torch.testing.assert_close(slope, getattr(model, name)[2].weight.grad)
        assert model.twins is not None
        assert stacked.twins is not None
        torch.testing.assert_close(stacked.twins.weights[0].grad[2 * k : 2 * k + 2], model.twins.weights[0].grad)
    torch.testing.assert_close(found.total, total)
    plan = dynamics.plan_mppi(stacked.step, z[0], actions=2, horizon=2, samples=8, elites=2, generator=drawn())
    assert plan.actions.shape == (2, 6, 3, 2)
    with pytest.raises(ValueError, match=r"observation must have shape \(\.\.\., 3, 3\)"):
        stacked.encode(s[0, 0, :2, 0])
    with pytest.raises(ValueError, match="replicates must be an integer >= 1, got 0"):
        LatentWorldModel(3, 1, replicates=0)


def test_heads_that_are_missing_are_named() -> None:
    model = LatentWorldModel(3, 1, latent=2, hidden=4, heads=("reward",))
    z = model.encode(torch.zeros(3))
    assert model.step(z, torch.zeros(1))[1].shape == ()
    with pytest.raises(ValueError, match="no value: heads must hold 'value'"):
        model.values(z, torch.zeros(1))
    with pytest.raises(ValueError, match="no policy"):
        model.act(z)
    s, a, r = torch.zeros(2, 4, 3), torch.zeros(2, 3, 1), torch.ones(2, 3)
    found = dynamics.latent_consistency_loss(model, model, s, a, r, weights=(1.0, 0.5, 0.0))
    assert found.total.item() == pytest.approx(0.5 * 1.75)  # all is where it was, and rewards are predicted as 0
    assert found.priority.tolist() == [0.0, 0.0]
    with pytest.raises(ValueError, match="no policy"):
        dynamics.latent_consistency_loss(model, model, s, a, r)
    with pytest.raises(ValueError, match="heads must be one of"):
        LatentWorldModel(3, 1, heads=("rewards",))


def test_the_noise_of_actions_is_cut_and_its_cut_has_no_gradient() -> None:
    mean = torch.tensor([[-1.0, 0.0, 0.95]] * 2000, requires_grad=True)
    action = dynamics.truncated_normal(mean, 0.2, 0.3, generator=drawn())
    assert float(action.detach().abs().max()) <= 1.0
    assert float(action[:, 1].detach().abs().max()) == pytest.approx(0.3)
    assert float(action[:, 1].detach().std()) == pytest.approx(0.18, abs=0.01)
    (3 * action).sum().backward()
    assert mean.grad is not None
    assert bool((mean.grad == 3).all())
    free = dynamics.truncated_normal(torch.zeros(1000), 0.5, None, limit=9.0, generator=drawn())
    assert float(free.std()) == pytest.approx(0.5, abs=0.03)


def test_a_copy_follows_a_module() -> None:
    fast = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).double()
    slow = copy.deepcopy(fast)
    for p in fast.parameters():
        nn.init.normal_(p)
    start = [p.detach().clone() for p in slow.parameters()]
    fast[1].running_mean.fill_(3.0)  # type: ignore[operator, union-attr]
    for _ in range(5):
        dynamics.update_average(slow, fast, decay=0.9)
    for before, p, goal in zip(start, slow.parameters(), fast.parameters(), strict=True):
        torch.testing.assert_close(p.detach(), goal.detach() + 0.9**5 * (before - goal.detach()))
    assert slow[1].running_mean.tolist() == [3.0] * 3  # type: ignore[operator, union-attr]
    slow[0].weight.data.fill_(math.inf)  # type: ignore[operator, union-attr]
    dynamics.update_average(slow, fast, decay=0.0)
    assert all(torch.equal(p, goal) for p, goal in zip(slow.parameters(), fast.parameters(), strict=True))
    with pytest.raises(ValueError, match="same names and shapes"):
        dynamics.update_average(slow, nn.Linear(2, 3), decay=0.5)


def episode(start: float, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    time = start + torch.arange(steps + 1.0)
    return time[:, None], time[:-1, None], time[1:]


def test_a_memory_draws_whole_sequences_of_the_latest_episodes() -> None:
    memory, g = ReplayBuffer(20, sequence=3), drawn()
    for number, steps in enumerate((6, 5, 6, 4, 7)):
        memory.add(*episode(100 * number, steps))
        found = memory.sample(300, generator=g)
        torch.testing.assert_close(found.observations.diff(dim=1), torch.ones(300, 3, 1))
        torch.testing.assert_close(found.rewards, found.observations[:, 1:, 0])
        torch.testing.assert_close(found.actions, found.observations[:, :-1])
        assert bool((found.weights == 1).all())
        newest = found.observations[:, 0, 0] >= 100 * number
        assert found.observations[newest, 0, 0].unique().numel() == steps - 2  # each start inside of the episode
    assert float(found.observations.min()) >= 200  # two episodes of five made room


def test_a_memory_prefers_large_errors_and_corrects_for_it() -> None:
    memory, g = ReplayBuffer(50, sequence=1, prioritized=True, alpha=1.0, beta=1.0), drawn()
    memory.add(*episode(0, 4))
    assert len(memory) == 4
    memory.update(torch.arange(4), torch.tensor([1.0, 2.0, 3.0, 4.0]))
    found = memory.sample(20_000, generator=g)
    share = torch.bincount(found.indices, minlength=4) / 20_000
    torch.testing.assert_close(share, torch.tensor([0.1, 0.2, 0.3, 0.4]), atol=0.015, rtol=0)
    torch.testing.assert_close(found.weights, 1 / (found.indices + 1.0))
    memory.add(*episode(10, 1))  # new ones have the largest priority
    share = torch.bincount(memory.sample(20_000, generator=g).indices, minlength=6) / 20_000
    torch.testing.assert_close(share[[3, 5]], torch.tensor([4 / 14, 4 / 14]), atol=0.015, rtol=0)
    again = ReplayBuffer(50, sequence=1, prioritized=True, alpha=1.0, beta=1.0)
    again.load_state_dict(memory.state_dict())
    ours, other = (m.sample(9, generator=drawn(5)) for m in (memory, again))
    assert torch.equal(ours.indices, other.indices)
    assert torch.equal(ours.observations, other.observations)


def test_a_memory_refuses_what_it_cannot_keep() -> None:
    memory = ReplayBuffer(10, sequence=4)
    with pytest.raises(ValueError, match="the replay buffer is empty"):
        memory.sample(1)
    with pytest.raises(ValueError, match="episodes must have 4 to 9 steps, got 3"):
        memory.add(*episode(0, 3))
    with pytest.raises(ValueError, match="rewards must be finite"):
        memory.add(torch.zeros(5, 1), torch.zeros(4, 1), torch.tensor([0.0, math.nan, 0.0, 0.0]))
    with pytest.raises(ValueError, match="observations and actions must have 5 and 4 steps"):
        memory.add(torch.zeros(4, 1), torch.zeros(4, 1), torch.zeros(4))
    memory.add(*episode(0, 5))
    with pytest.raises(ValueError, match="observations must have size 1"):
        memory.add(torch.zeros(5, 2), torch.zeros(4, 1), torch.zeros(4))
    with pytest.raises(ValueError, match="indices must be those"):
        memory.update(torch.tensor([4]), torch.ones(1))
    with pytest.raises(ValueError, match="capacity must be that of the saved memory"):
        ReplayBuffer(11, sequence=4).load_state_dict(memory.state_dict())


def test_imagined_returns_have_the_gradient_of_the_sum_written_out() -> None:
    gain = torch.tensor(-0.4, dtype=torch.float64, requires_grad=True)
    worth = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    z = torch.tensor([[1.0], [-2.0]], dtype=torch.float64)
    words = {"horizon": 2, "discount": 0.9, "trace": 0.6}

    def step(s: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        return s + a, -(s + a).square()[..., 0]

    found = dynamics.imagination_policy_loss(step, lambda s: gain * s, lambda s: worth * s[..., 0], z, **words)
    one, two = (1 + gain) * z[:, 0], (1 + gain) ** 2 * z[:, 0]
    last = -two.square() + 0.9 * worth * two
    first = -one.square() + 0.9 * (0.4 * worth * one + 0.6 * last)
    torch.testing.assert_close(found.returns, torch.stack([first, last]))
    ours = torch.autograd.grad(found.policy, gain, retain_graph=True)[0]
    torch.testing.assert_close(ours, torch.autograd.grad(-(first + last).mean() / 2, gain, retain_graph=True)[0])
    held = torch.stack([first, last]).detach(), torch.stack([z[:, 0], one.detach()])
    expected = torch.autograd.grad((worth * held[1] - held[0]).square().mean() / 2, worth)[0]
    torch.testing.assert_close(torch.autograd.grad(found.value, worth)[0], expected)
    with pytest.raises(ValueError, match="value must give one number a state"):
        dynamics.imagination_policy_loss(step, lambda s: s, lambda s: s, z)


def test_a_state_space_model_learns_a_hidden_velocity() -> None:
    """Only the position is seen: the memory has to find out the velocity."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = RecurrentStateSpaceModel(1, 1, deterministic=16, stochastic=2, hidden=16)
    g, optimizer = drawn(), torch.optim.Adam(model.parameters(), 1e-2)
    force = torch.randn(64, 8, 1, generator=g)
    speed = torch.randn(64, 1, 1, generator=g) + torch.cat([torch.zeros(64, 1, 1), 0.3 * force.cumsum(1)], 1)
    place = 0.3 * speed.cumsum(1)
    losses = []
    for _ in range(120):
        loss = model.losses(place, force, -place[:, 1:, 0], free_nats=1.0, generator=g)
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        losses.append(float((loss.observation + loss.reward).detach()))
    assert losses[-1] < 0.1 * losses[0]
    z = model.initial(64)
    for t in range(5):
        z = model.update(z, force[:, t - 1] if t else torch.zeros(64, 1), place[:, t])
    ahead = model.observation(model.imagine(z, force[:, 4:7].movedim(1, 0)))[-1, :, 0]
    truth = place[:, 7, 0]
    standing = place[:, 4, 0]  # a model of positions alone knows no better than to stay
    assert float((ahead - truth).square().mean()) < 0.3 * float((standing - truth).square().mean())
    states = model.imagine(z, torch.zeros(2, 64, 1))
    torch.testing.assert_close(states[0], model.step(z, torch.zeros(64, 1))[0])
    assert not torch.equal(states, model.imagine(z, torch.zeros(2, 64, 1), generator=g))
    beliefs = model.observe(place, force, generator=g)
    assert beliefs.states.shape == (64, 9, 18)
    assert float(beliefs.std.detach().min()) > 0.1


def test_candidates_without_a_finite_return_are_dropped_and_counted() -> None:
    def step(s: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """Defined for actions up to 1/2; its best, 0.4, lies near the edge."""
        return s, -(a[..., 0] - 0.4).square() + 0 * (0.5 - a[..., 0]).sqrt()

    plan = dynamics.plan_gradient(
        step, torch.zeros(3, 1), actions=1, horizon=1, candidates=8, std=1.0, iterations=40, lr=0.05, generator=drawn()
    )
    assert plan.dropped.shape == (3,)
    assert bool((plan.dropped > 0).all())
    assert bool((plan.dropped < 8).all())
    torch.testing.assert_close(plan.actions, torch.full((1, 3, 1), 0.4), atol=0.01, rtol=0)
    with pytest.raises(ConvergenceError, match="no candidate of 10") as caught:
        dynamics.plan_gradient(lambda s, a: (s, (a[..., 0] - 2).sqrt()), torch.zeros(3, 1), actions=1)
    assert caught.value.result.dropped.tolist() == [10, 10, 10]


def test_without_bounds_the_gradient_reaches_the_regulator_and_is_its_costate() -> None:
    a = torch.tensor([[1.0, 0.3], [-0.2, 0.9]], dtype=torch.float64)
    b = torch.tensor([[0.0], [0.5]], dtype=torch.float64)
    cost, effort, horizon = torch.diag(torch.tensor([1.0, 0.1]).double()), 0.2, 12

    def step(s: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        after = s @ a.T + u @ b.T
        return after, -((after @ cost) * after).sum(-1) - effort * u.square().sum(-1)

    start = torch.tensor([1.0, -0.5], dtype=torch.float64)
    found = dynamics.lqr(a, b, cost, effort * torch.eye(1).double(), horizon=horizon)
    best = float(start @ (found.values[0] - cost) @ start)
    plan = dynamics.plan_gradient(
        step, start, actions=1, horizon=horizon, candidates=1, iterations=200, lr=0.05, limit=None, generator=drawn()
    )
    assert best <= -float(plan.value) <= best * (1 + 1e-4)
    actions = torch.randn(horizon, 1, generator=drawn(), dtype=torch.float64, requires_grad=True)
    slope = torch.autograd.grad(dynamics.imagined_return(step, start, actions), actions)[0]
    states = dynamics.rollout(lambda s, u: step(s, u)[0], start, actions.detach())
    costate, expected = torch.zeros(2, dtype=torch.float64), torch.zeros_like(slope)
    for t in reversed(range(horizon)):
        costate = -2 * cost @ states[t + 1] + costate
        expected[t] = b.T @ costate - 2 * effort * actions[t].detach()
        costate = a.T @ costate
    torch.testing.assert_close(slope, expected, rtol=1e-10, atol=1e-10)
