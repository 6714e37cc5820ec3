"""TD-MPC: plan a few steps in a latent model, and let a learned value stand for all that comes after.

The model is trained for what planning needs, reward, value and its own consistency, and never to reconstruct what is
seen. A short horizon is cheap and keeps errors of the model small; temporal differences close it with a value, and the
policy that the value needs also proposes sequences to the planner (Hansen, Wang, Su, ICML 2022).

The task is the swing-up of a pendulum whose motor holds 0.6 of its weight, simulated. Smaller than in the paper: 32
hidden units, 16 latent ones, a horizon of 3, 64 samples in 3 iterations, 32 episodes of 40 decisions, Adam at 3e-3;
temperature 1/2, as a decision earns at most 1, not 4. So few updates ask for a target network that forgets a twentieth,
not a hundredth, every second update, for a rate that falls, and for exploration that begins with a deviation of 1, not
1/2. Replicates run side by side in batched products and are judged by their mean. The baseline without a model is an
actor-critic with two Q: its encoder learns from the value alone; it takes more updates and explores more widely.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import torch
from torch import Generator, Tensor

from pullback import dynamics
from pullback.dynamics import Environment, LatentWorldModel, ReplayBuffer, latent_consistency_loss, latent_policy_loss
from pullback.lab import Arm, Lab, above, at_least, below, system


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    torque: Annotated[float, above(0)] = 6.0
    """Of the motor [N m]; to hold the pendulum level takes 9.81."""
    rounds: Annotated[int, at_least(2)] = 8
    """Of episodes and updates; the first acts at random."""
    episodes: Annotated[int, at_least(1)] = 4
    """A round, side by side."""
    decisions: Annotated[int, at_least(6)] = 40
    """An episode."""
    updates: Annotated[int, at_least(1)] = 120
    """A round."""
    batch: Annotated[int, at_least(1)] = 64
    """Sequences an update."""
    hidden: Annotated[int, at_least(1)] = 32
    """Units of each hidden layer."""
    latent: Annotated[int, at_least(1)] = 16
    """Size of a latent state."""
    horizon: Annotated[int, at_least(1)] = 3
    """Steps that are planned and that the model is unrolled in training."""
    samples: Annotated[int, at_least(1)] = 64
    """Sequences of an iteration of the planner, an eighth of them elites."""
    iterations: Annotated[int, at_least(1)] = 3
    """Of the planner, each decision."""
    discount: Annotated[float, above(0), below(1)] = 0.97
    """Gamma."""
    lr: Annotated[float, above(0)] = 3e-3
    """Step size of Adam of the arms that plan; it falls in the second half of the rounds, in all arms."""
    noise: Annotated[float, above(0)] = 1.0
    """Standard deviation, cut to the bounds, that exploration of the arms that plan starts from."""
    decay: Annotated[float, above(0), below(1)] = 0.95
    """Of the average that is the target network, every second update."""
    free_lr: Annotated[float, above(0)] = 1e-3
    """Step size of Adam without a model."""
    free_updates: Annotated[int, at_least(1)] = 200
    """A round without a model."""
    free_noise: Annotated[float, above(0)] = 2.0
    """Standard deviation that exploration without a model starts from."""
    free_decay: Annotated[float, above(0), below(1)] = 0.99
    """Of the average without a model."""
    tests: Annotated[int, at_least(1)] = 8
    """Episodes of the evaluation."""
    replicates: Annotated[int, at_least(1)] = 3
    """Of all arms, side by side."""


LEAST = 0.05  # standard deviation that exploration ends at, and of the policy's actions in planning and learning
BLOCKS = "pendulum LatentWorldModel latent_consistency_loss latent_policy_loss plan_mppi ReplayBuffer update_average"
EARNED, END, FIRST = "mean return over training", "return at the end", "rounds before one above 8"


@system(
    "td-mpc",
    family="dynamics",
    title="Temporal Difference Learning for Model Predictive Control",
    paper="Hansen, Wang, Su, ICML 2022, arXiv 2203.04955",
    config=Config,
    smoke={"rounds": 2, "episodes": 2, "decisions": 6, "updates": 2, "free_updates": 2, "hidden": 8, "latent": 4}
    | {"horizon": 2, "samples": 8, "iterations": 1, "tests": 2, "replicates": 2},
    full={"hidden": 512, "latent": 50, "horizon": 5, "samples": 512, "iterations": 6, "rounds": 100, "replicates": 5},
    data=(),
    blocks=tuple(f"dynamics.{name}" for name in f"{BLOCKS} truncated_normal double_q_target lqr".split()),
)
def run(lab: Lab, config: Config) -> None:
    """Train by planning with a value, by planning without one and without a model; then check planner and targets."""
    lab.data("swing-up of a pendulum", origin="simulated")
    ours, short = lab.arm("TD-MPC"), lab.arm("no terminal value", baseline=True)
    free, alone = lab.arm("no model", baseline=True), lab.arm("its policy alone", baseline=True)
    both = Kind("both", (2.0, 0.5, 0.1), config.horizon, config.lr, config.updates, config.noise, config.decay)
    last: tuple[Any, ...] = (config.free_lr, config.free_updates, config.free_noise, config.free_decay)
    kinds = {
        ours: both,
        short: both._replace(acts="plan", weights=(2.0, 0.5, 0.0)),
        free: Kind("policy", (0.0, 0.0, 1.0), 1, *last),
    }
    task = dynamics.pendulum(torque=config.torque)
    curves, paths = dict[Arm, Tensor](), dict[str, Tensor]()
    for arm, kind in kinds.items():
        model, curve = train(lab, config, arm, kind, task)
        began = torch.cat([curve > 8, torch.ones_like(curve[:1]) > 0]).int().argmax(0)
        arm.metric(EARNED, curve.mean(0), better="higher", replicated=True)
        arm.metric(FIRST, began, better="lower", replicated=True)
        curves[arm] = curve
        shown = {arm: kind} if arm is not ours else {arm: kind, alone: kind._replace(acts="policy")}
        for each, way in shown.items():
            observed, _, rewards = act(task, model, way, config, config.tests, lab.fork("tests"))
            each.metric(END, rewards.sum(-1).mean(0), better="higher", replicated=True)
            paths[each.name] = torch.atan2(observed[..., 1], observed[..., 0]).abs().flatten(0, 1)
    lab.note(
        "Means of the replicates are judged. Shown, not claimed: the policy of TD-MPC alone, as the planner can be "
        "good long before its policy is."
    )
    lab.claim(
        "at the end the planner earns 14 of 40 or more without exploration; its first round above 8 comes at most five "
        "after the first",
        ours[END] >= 14,
        ours[FIRST] <= 5,
    )
    lab.claim(
        "over the training and at its end it earns 2 an episode more than planning without the value, all else equal; "
        "an actor-critic without a model earns at most 0.7 of it over the training, on as many episodes",
        ours[EARNED] >= short[EARNED] + 2,
        ours[END] >= short[END] + 2,
        free[EARNED] <= 0.7 * ours[EARNED],
    )
    exact(lab, config)
    draw(lab, curves, paths)


class Kind(NamedTuple):
    """How an arm acts ("both" plans with value and proposals of the policy, "plan" without) and learns."""

    acts: str
    weights: tuple[float, float, float]
    horizon: int
    lr: float
    updates: int
    noise: float
    decay: float


def train(lab: Lab, config: Config, arm: Arm, kind: Kind, task: Environment) -> tuple[LatentWorldModel, Tensor]:
    """Rounds of episodes, then updates on sequences of all so far; with what they earned, ``[rounds, replicates]``."""
    count, sizes = config.replicates, (task.observation_size, 1)
    with arm.weights():
        model = LatentWorldModel(*sizes, latent=config.latent, hidden=config.hidden, replicates=count)
    target = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.Adam(model.parameters(), lr=kind.lr, fused=True)
    room = config.rounds * config.episodes * (config.decisions + 1)
    learns = kind.weights[2] > 0  # a value, whose errors are the priorities
    memories = [ReplayBuffer(room, sequence=kind.horizon, prioritized=learns) for _ in range(count)]
    draws, curve = lab.fork("exploration and batches"), torch.zeros(config.rounds, count)
    smooth: Any = {"noise": LEAST, "generator": draws}
    for step in arm.steps(config.rounds, model, target, optimizer, memories, draws, curve):
        done = min(1.0, step / (0.6 * config.rounds))
        noise, horizon = kind.noise + (LEAST - kind.noise) * done, round(1 + (kind.horizon - 1) * done)
        now = kind._replace(acts="random" if step == 0 else kind.acts, horizon=horizon)
        episodes = act(task, model, now, config, config.episodes, draws, noise)
        for place, memory in enumerate(memories):
            memory.add(*(part[:, place] for part in episodes))
        curve[step] = episodes[2].sum(-1).mean(0)
        optimizer.param_groups[0]["lr"] = kind.lr * min(1.0, 2 - 2 * step / config.rounds)
        arm.record("return", curve[step].mean())
        for update in range(kind.updates):
            drawn = [memory.sample(config.batch, generator=draws) for memory in memories]
            *batch, _, rare = (torch.stack(parts, 1) for parts in zip(*drawn, strict=True))
            words: Any = {"weights": kind.weights, "discount": config.discount, "importance": rare, **smooth}
            loss = latent_consistency_loss(model, target, *batch, **words)
            if not bool(loss.total.isfinite()):
                raise ValueError(f"the loss of {arm.name} is not finite in round {step}")
            total = loss.total / kind.horizon
            if learns:
                for memory, own, priority in zip(memories, drawn, loss.priority.unbind(1), strict=True):
                    memory.update(own.indices, priority)
                known = loss.latents if kind.weights[0] else loss.latents[:1]  # without a model none is predicted
                total = total + latent_policy_loss(model, known, **smooth).mean(0).sum()
            optimizer.zero_grad()
            total.backward()
            clip(model, 10.0)
            optimizer.step()
            if update % 2:
                dynamics.update_average(target, model, decay=kind.decay)
        arm.record("loss", loss.total.detach() / count)
    return model, curve


def clip(model: LatentWorldModel, largest: float) -> None:
    """Bound the norm of the gradient of each replicate."""
    slopes = [p.grad.unflatten(0, (model.replicates, -1)).flatten(1) for p in model.parameters() if p.grad is not None]
    norm = torch.cat(slopes, 1).norm(dim=1, keepdim=True)
    for slope in slopes:
        slope.mul_((largest / norm).clamp_max(1))  # a view of the gradient


@torch.no_grad()
def act(
    task: Environment,
    model: LatentWorldModel,
    kind: Kind,
    config: Config,
    count: int,
    draws: Generator,
    noise: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Episodes side by side ``[count, replicates, ...]``: observed, done, earned. Plans are elites; noise explores."""
    state = task.reset(count, config.replicates, generator=draws)
    observed, done, earned, previous = [task.observe(state)], [], [], None
    elites, own = max(1, config.samples // 8), max(1, config.samples // 16)
    words: Any = {"actions": 1, "horizon": kind.horizon, "samples": config.samples, "elites": elites}
    words |= {"iterations": config.iterations, "temperature": 0.5, "discount": config.discount}
    words |= {"noise_floor": max(noise, LEAST), "generator": draws}
    if kind.acts == "both":
        words |= {"value": lambda z: model.state_value(z, LEAST, generator=draws), "policy_samples": own}
        words |= {"policy": lambda z: model.act(z, LEAST, generator=draws)}
    for _ in range(config.decisions):
        z = model.encode(observed[-1])
        if kind.acts == "random":
            action = 2 * torch.rand(*z.shape[:2], 1, generator=draws) - 1
        elif kind.acts == "policy":
            action = dynamics.truncated_normal(model.act(z), noise, None, generator=draws)
        else:
            plan = dynamics.plan_mppi(model.step, z, previous=previous, **words)
            previous, action = plan.mean, plan.actions[0]
            if noise:
                action = (action + plan.std[0] * torch.randn(action.shape, generator=draws)).clamp(-1, 1)
        state, reward = task.step(state, action)
        observed.append(task.observe(state))
        done.append(action)
        earned.append(reward)
    return torch.stack(observed, 2), torch.stack(done, 2), torch.stack(earned, 2)


def exact(lab: Lab, config: Config) -> None:
    """What holds of planner and losses whatever is learned."""
    a = torch.tensor([[1.0, 0.1], [0.0, 1.0]], dtype=torch.float64)
    b, one = torch.tensor([[0.025], [0.5]], dtype=torch.float64), torch.eye(1, dtype=torch.float64)
    cost = torch.diag(torch.tensor([1.0, 0.1], dtype=torch.float64))
    task, after = dynamics.double_integrator(force=5.0), dynamics.lqr(a, b, cost, 0.1 * one, horizon=15).values - cost
    start = torch.tensor([0.3, -0.2], dtype=torch.float64)
    words: Any = {"samples": 128, "elites": 16, "iterations": 12, "temperature": 0.02, "noise_floor": 0.0, "std": 0.5}
    words |= {"value": lambda s: -((s @ after[5]) * s).sum(-1), "generator": lab.fork("regulator")}
    plan = dynamics.plan_mppi(task.step, start, actions=1, **words)
    ratio = lab.metric("cost of the plan, part of the regulator's", -plan.value / (start @ after[0] @ start))
    words = {"actions": 1, "samples": 50, "iterations": 1}
    draws = lab.fork("one elite")
    greedy = dynamics.plan_mppi(task.step, start, elites=1, temperature=1e9, generator=draws, **words)
    drawn = 2 * torch.randn(5, 50, 1, generator=lab.fork("one elite"), dtype=torch.float64)
    best = dynamics.imagined_return(task.step, start.expand(50, 2), drawn.clamp(-1, 1)).max()
    lab.claim(
        "with the exact model and value, MPPI costs at most 1.02 times the Riccati solution; with one elite its plan "
        "is the best sample, exactly",
        ratio <= 1.02,
        bool(greedy.value == best),
        scale="smoke",
    )
    q = torch.tensor([[1.0, 3.0], [2.5, 0.5], [4.0, 4.0]], dtype=torch.float64)
    reward, ended = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64), torch.tensor([False, False, True])
    wanted = torch.tensor([0.9, 1.45, 2.0], dtype=torch.float64)
    off = (dynamics.double_q_target(reward, -q, q, ended, discount=0.9) - wanted).abs().max()
    with lab.arm("TD-MPC").weights("two networks"):
        model, target = (LatentWorldModel(3, 1, latent=4, hidden=8) for _ in range(2))
    seen, done = torch.randn(4, 4, 3, generator=lab.fork("sequence")), torch.zeros(4, 3, 1)
    latent_consistency_loss(model, target, seen, done, done[..., 0]).total.backward()
    lab.claim(
        "targets of the smaller Q on a chain of three states are those worked out, to 1e-12, and no gradient of the "
        "loss reaches the target network",
        bool(off <= 1e-12),
        all(p.grad is None for p in target.parameters()),
        scale="smoke",
    )


def draw(lab: Lab, curves: dict[Arm, Tensor], paths: dict[str, Tensor]) -> None:
    """Returns of the rounds, and how far from upright the pendulum is in the evaluation."""
    figure, (left, right) = lab.subplots(1, 2, figsize=(11, 4))
    for arm, curve in curves.items():
        rounds = range(1, len(curve) + 1)
        left.plot(rounds, curve, color=arm.colour, lw=0.7, alpha=0.5)
        left.plot(rounds, curve.mean(1), color=arm.colour, lw=2.5, label=arm.name)
    for name, angle in paths.items():
        right.plot(0.2 * torch.arange(angle.shape[1]), angle.median(0).values, color=lab.colour(name), label=name)
    left.set(xlabel="round of episodes", ylabel="return, of 40 at most", title="while training, with exploration")
    right.set(xlabel="time [s]", ylabel="angle from upright [rad]", title="at the end, without exploration")
    right.set_ylim(-0.1, 4.4)
    left.legend(loc="upper left")
    right.legend(loc="upper right", ncols=2)
    lab.figure(
        "swing-up", figure, "Returns of each replicate (thin) and their mean; median angle of all test episodes."
    )
