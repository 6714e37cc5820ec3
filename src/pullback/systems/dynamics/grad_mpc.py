"""Planning by the gradient of the return that a learned model predicts, instead of by samples.

A model that is differentiable tells how every action changes the return: a few sequences ascend it, the best is acted
on and starts the next plan; a policy that was trained in the model can propose the first (Jyothir, Jalagam, LeCun,
Sobal, 2023). A step of gradient counts as three predictions of a sequence: all planners have one budget. Samples are as
good on one motor, gradients win on four arms as one, by little on one. A policy that only imagines does not find the
swing in so few updates (0.4 for the 13 of plans, in an earlier run): it imitates plans first. Smaller than in the
paper: simulated tasks; models of two hidden layers that see states, from 400 random episodes and two rounds of plans.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from pullback import dynamics
from pullback.dynamics import Environment, ReplayBuffer, plan_cem, plan_gradient, plan_mppi, plan_random_shooting
from pullback.lab import Arm, Lab, at_least, system
from pullback.uncertainty import MLPEnsemble


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    models: Annotated[int, at_least(1)] = 3
    """Of each task, with data of their own, side by side in every product."""
    updates: Annotated[int, at_least(10)] = 250
    """Of the model before its own data and at the end; half between."""
    policy_updates: Annotated[int, at_least(8)] = 90
    """Of policy and value, in imagination, after as many in which the policy imitates plans."""
    horizons: tuple[Annotated[int, at_least(1)], Annotated[int, at_least(1)]] = (12, 16)
    """Decisions that are planned, of the pendulum and of the arm."""
    sweep: tuple[Annotated[int, at_least(1)], ...] = (5, 10, 20, 40)
    """The same of the pendulum, for gradients alone, in a third of the episodes."""
    episodes: Annotated[int, at_least(4)] = 12
    """Of each planner and model, from the same starts; four of them are planned as one."""
    decisions: Annotated[int, at_least(2)] = 20
    """An episode."""


BUDGET = 96  # sequences that a decision may predict, or what costs as much
FITS = ((0.05, 0.5), (0.1, 0.5), (0.1, 1.0))  # fraction of elites and first deviation: the best of 13 tried on an arm
DISCOUNT = 0.95  # of policy and value; plans without a value are not discounted
BLOCKS = "pendulum reacher lqr imagined_return imagination_policy_loss plan_cem plan_gradient plan_mppi ReplayBuffer"
Step = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def perceptrons(models: int, *sizes: int) -> MLPEnsemble:
    """With hidden weights twice as large as usual: the policy leaves its start sooner."""
    net = MLPEnsemble(models, sizes, activation=F.silu)
    with torch.no_grad():
        torch._foreach_mul_(list(net.weight[:-1]), 2.0)
    return net


def ask(net: MLPEnsemble, *x: Tensor) -> Tensor:
    """Give each model its rows of ``[*batch, models, rows, size]``."""
    rows = torch.cat([part.transpose(0, -3) for part in x], -1)
    found: Tensor = net(rows.flatten(1, -2))
    return found.view(*rows.shape[:-1], -1).transpose(0, -3)


@system(
    "grad-mpc",
    family="dynamics",
    title="Gradient-based Planning with World Models",
    paper="Jyothir, Jalagam, LeCun, Sobal, 2023, arXiv 2312.17227",
    config=Config,
    smoke={"updates": 10, "policy_updates": 8, "horizons": (2, 2), "sweep": (2, 3), "episodes": 4, "decisions": 2},
    full={"updates": 5000, "policy_updates": 2000, "episodes": 64, "decisions": 60},
    data=(),
    blocks=tuple(f"dynamics.{name}" for name in f"{BLOCKS} plan_random_shooting update_average".split()),
)
def run(lab: Lab, config: Config) -> None:
    """Learn models, plan in them by gradient and by samples, refine a policy, sweep the horizon."""
    lab.data("swing-up of a pendulum, reach of an arm of two rods", origin="simulated")
    exact(lab)
    ours, cem = lab.arm("gradient"), lab.arm("cross-entropy", baseline=True)

    def earned(arm: Arm, scene: Scene, planner: Any, detail: str = "", **words: Any) -> Tensor:
        found = torch.zeros(scene.start.shape[:2])
        for _ in arm.steps(1, found, name=scene.name + detail):
            found.copy_(act(scene, config.decisions, planner, lab.fork("plans"), **words)[2].sum(-1))
            arm.metric(f"return, {scene.name}{detail}", found.mean(), better="higher")
        return found

    def lead(name: str, difference: Tensor) -> None:
        error = difference.std() / difference.numel() ** 0.5
        leads[name] = lab.metric(f"lead, {name}", difference.mean()), lab.metric(f"error, {name}", error)

    leads: dict[str, tuple[Any, Any]] = {}
    tasks = {"pendulum": dynamics.pendulum(torque=6.0), "arm": dynamics.reacher(width=0.2)}
    each, ascent = BUDGET // 3, dict[str, Any](candidates=BUDGET // 10, iterations=3, lr=0.3)
    for (name, task), horizon in zip(tasks.items(), config.horizons, strict=True):
        step, memories, plans = learn(lab, config, name, task)
        start = task.reset(config.models, config.episodes, generator=lab.fork("starts"))
        scene = Scene(name, step, task.step, start, task.action_size, horizon)
        begin, size = start.unflatten(1, (-1, 4)).flatten(2), 4 * task.action_size
        joined = Scene("four", four(step), four(task.step), begin, size, horizon)
        for here in (scene, joined) if name == "arm" else (scene,):
            found = earned(ours, here, plan_gradient, **ascent)
            fits = [dict[str, Any](samples=each, elites=max(2, round(f * each)), iterations=3, std=s) for f, s in FITS]
            tried = [earned(cem, here, plan_cem, f", fit {k + 1}", **fit) for k, fit in enumerate(fits)]
            best = max(range(len(fits)), key=lambda k: float(tried[k].mean()))
            cem.metric(f"return, {here.name}", tried[best].mean(), better="higher")
            lead(here.name, found - tried[best])
            if here is scene:
                earned(lab.arm("MPPI", baseline=True), here, plan_mppi, **fits[best], temperature=0.3)
                earned(lab.arm("random", baseline=True), here, plan_random_shooting, samples=BUDGET)
            else:
                more = fits[best] | {"samples": 2 * each, "elites": round(0.2 * each), "iterations": 6}
                lead("four, 4 budgets", found - earned(cem, here, plan_cem, ", 4 budgets", **more))
        policy, value = imagine(lab, config, scene, task, memories, plans)
        before = earned(lab.arm("policy", baseline=True), scene, policy)
        words = {"policy": policy, "value": value, "discount": DISCOUNT, "candidates": 3, "lr": 0.1, "std": 0.3}
        near = scene._replace(horizon=min(horizon, 12))  # no further than was imagined
        after = earned(lab.arm("policy and gradient"), near, plan_gradient, iterations=10, **words)
        lead(f"{name}, refined", after - before)
        for far in config.sweep if name == "pendulum" else ():
            place = scene._replace(horizon=far, start=start[:, : config.episodes // 3])
            ours.record("return", earned(ours, place, plan_gradient, f", horizon {far}", **ascent).mean(), far)
            drawn = 2 * torch.rand(far, 32, *start.shape[:2], 1, generator=lab.fork("norms")) - 1
            returns = dynamics.imagined_return(step, start.expand(32, *start.shape), drawn.requires_grad_())
            norms = torch.autograd.grad(returns.sum(), drawn)[0].square().sum((0, -1)).sqrt().flatten()
            ours.record("median norm of the gradient", norms.median(), far)
            if far == config.sweep[-1]:
                earned(ours, place, plan_gradient, ", clipped", clip=0.1, **ascent)
    sweep = [ours[f"return, pendulum, horizon {far}"] for far in config.sweep]
    lab.claim(
        "at one budget gradients earn more than the best cross-entropy: on an arm by 2 errors of pairs, on four as one "
        "by a quarter, and by 2 errors against 4 budgets; on the pendulum they are within 1",
        leads["arm"][0] >= 2 * leads["arm"][1],
        ours["return, four"] >= 1.25 * cem["return, four"],
        leads["four, 4 budgets"][0] >= 2 * leads["four, 4 budgets"][1],
        abs(leads["pendulum"][0]) <= 1,
    )
    lab.claim(
        "ten gradient steps on the policy's plan earn two standard errors more on the arm, 1 less at most elsewhere",
        leads["arm, refined"][0] >= 2 * leads["arm, refined"][1],
        leads["pendulum, refined"][0] >= -1,
    )
    share = [lab.arm("policy", baseline=True)[f"return, {n}"] >= 0.5 * ours[f"return, {n}"] for n in tasks]
    lab.claim("the policy alone earns half of what plans by gradient do, on the pendulum and on the arm", *share)
    lab.claim(
        "the best horizon of the pendulum earns 1.5 times the longest's return, 1.25 times that with clipping to 0.1",
        max(sweep) >= 1.5 * sweep[-1],
        max(sweep) >= 1.25 * ours["return, pendulum, clipped"],
    )
    lab.bars(*(f"return, {place}" for place in ("pendulum", "arm", "four")), caption="Means over models and episodes.")
    lab.curves("return", "median norm of the gradient", xlabel="horizon", caption="On the pendulum.")


class Scene(NamedTuple):
    """Where a planner is tried: step of the model and of the task itself, starts, size of an action, horizon."""

    name: str
    step: Step
    real: Step
    start: Tensor
    actions: int
    horizon: int


def four(step: Step) -> Step:
    """Four copies as one: states and actions in a row, the mean of the rewards."""

    def joint(x: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        after, reward = step(*(v.reshape(*v.shape[:-2], -1, v.shape[-1] // 4) for v in (x, action)))
        return after.reshape(x.shape), reward.reshape(*x.shape[:-1], 4).mean(-1)

    return joint


def act(scene: Scene, decisions: int, planner: Any, draws: Any = None, noise: float = 0.0, **words: Any) -> Any:
    """Episodes side by side, by plans that start from the last one; without words the planner is a policy."""
    states, actions, rewards, last = [scene.start], [], [], dict[str, Tensor]()
    words |= {"actions": scene.actions, "horizon": scene.horizon, "generator": draws} if words else {}
    for _ in range(decisions):
        if words:
            plan = planner(scene.step, states[-1], **last, **words)
            last = {} if planner is plan_random_shooting or "policy" in words else {"previous": plan.mean}
            actions.append((plan.actions[0] + noise * torch.randn(plan.actions[0].shape, generator=draws)).clamp(-1, 1))
        else:
            actions.append(planner(states[-1]))
        with torch.no_grad():
            after, reward = scene.real(states[-1], actions[-1])
        states.append(after)
        rewards.append(reward)
    return torch.stack(states, -2), torch.stack(actions, -2), torch.stack(rewards, -1)


def learn(lab: Lab, config: Config, name: str, task: Environment) -> tuple[Step, list[Any], list[Any]]:
    """Fit single transitions: the change of the state, and the reward, in [0, 1]; with all data, and that of plans."""
    ours, draws, size = lab.arm("gradient"), lab.fork(f"data, {name}"), task.action_size
    with ours.weights(name):
        net = perceptrons(config.models, task.observation_size + size, 64, 64, task.state_size + 1)

    def step(x: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        change, reward = ask(net, task.observe(x), action).split((x.shape[-1], 1), -1)
        return x + unit * change, reward.squeeze(-1).sigmoid()

    start = task.reset(config.models, 400, generator=draws)
    scene = Scene(name, step, task.step, start, size, min(10, *config.horizons))
    first = act(scene, config.decisions, lambda x: 2 * torch.rand(*x.shape[:2], size, generator=draws) - 1)
    unit = first[0].diff(dim=-2).flatten(0, -2).std(0).clamp_min(1e-6)
    memories, plans = ([ReplayBuffer(n * (config.decisions + 1), sequence=1) for _ in start] for n in (432, 32))
    for memory, *episodes in zip(memories, *first, strict=True):
        memory.add(*episodes)
    optimizer = torch.optim.Adam(net.parameters(), fused=True)
    lengths = (config.updates, config.updates // 2, config.updates)
    for part in ours.steps(len(lengths), net, optimizer, draws, *memories, *plans, name=f"model, {name}"):
        if part:
            planner, words = ((plan_cem, {"samples": 32, "elites": 3}), (plan_gradient, {"candidates": 9}))[part - 1]
            place = scene._replace(start=task.reset(config.models, 16, generator=draws))
            found = act(place, config.decisions, planner, draws, 0.3, iterations=3, **words)
            for memory, plan, *episodes in zip(memories, plans, *found, strict=True):
                memory.add(*episodes)
                plan.add(*episodes)
        for update in range(lengths[part]):
            if update % 10 == 0:
                chosen = [memory.sample(2560, generator=draws)[:3] for memory in memories]
                stacked = [torch.stack(kind).unflatten(1, (10, -1)) for kind in zip(*chosen, strict=True)]
            states, actions, rewards = (kind[:, update % 10] for kind in stacked)
            done = update / lengths[part]
            optimizer.param_groups[0]["lr"] = (0.005 if part else 0.01) * min(10 * done + 0.1, 1.02 - done)
            after, reward = step(states[:, :, 0], actions[:, :, 0])
            loss = ((after - states[:, :, 1]) / unit).square().mean() + (reward - rewards[..., 0]).square().mean()
            ours.descend(loss, optimizer, name=f"loss of the model, {name}")
    net.requires_grad_(False)
    return step, memories, plans


def imagine(lab: Lab, config: Config, scene: Scene, task: Environment, memories: list[Any], plans: list[Any]) -> Any:
    """Let a policy imitate plans, then train it and a bounded value in imagination, half of it where plans led."""
    arm, draws, name = lab.arm("policy", baseline=True), lab.fork(f"imagined, {scene.name}"), scene.name
    with arm.weights(name):
        sizes = config.models, task.observation_size, 64, 64
        actor, critic = perceptrons(*sizes, task.action_size), perceptrons(*sizes, 1)
    slow = copy.deepcopy(critic).requires_grad_(False)

    def policy(x: Tensor) -> Tensor:
        return ask(actor, task.observe(x)).tanh()

    def value(x: Tensor, net: MLPEnsemble = slow) -> Tensor:
        return (ask(net, task.observe(x))[..., 0] - 2).sigmoid() / (1 - DISCOUNT)

    optimizers = [torch.optim.Adam(net.parameters(), lr=0.005, fused=True) for net in (actor, critic)]
    for _ in arm.steps(config.policy_updates, actor, optimizers[0], draws, name=f"imitation, {name}"):
        shown = [memory.sample(256, generator=draws) for memory in plans]
        states, done = (torch.stack([part[k][:, 0] for part in shown]) for k in range(2))
        arm.descend((policy(states) - done).square().mean(), optimizers[0], name=f"error of imitation, {name}")
    for update in arm.steps(config.policy_updates, actor, critic, slow, *optimizers, draws, name=f"policy, {name}"):
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = 0.003 * min(1.0, 2.02 * (1 - update / config.policy_updates))
        z = torch.cat(torch.stack([m.sample(32, generator=draws)[0][:, 0] for m in (*memories, *plans)]).chunk(2), 1)
        loss = dynamics.imagination_policy_loss(scene.step, policy, value, z, horizon=12, discount=DISCOUNT, trace=0.9)
        arm.descend(loss.policy, optimizers[0], clip=1.0, name=f"loss, {name}")
        error = (value(loss.states[:-1], critic) - loss.returns.detach()).square().mean() / 2
        arm.descend(error, optimizers[1], name=f"error of the value, {name}")
        dynamics.update_average(slow, critic, decay=0.9)
    actor.requires_grad_(False)
    return policy, value


def exact(lab: Lab) -> None:
    """A linear-quadratic model, whose best plan is the regulator's, and whose gradient is known from its costates."""
    draws, shapes = lab.fork("linear"), ((3, 3), (3, 2), (3,), (12, 2))
    a, b, x, u = (torch.randn(shape, generator=draws, dtype=torch.float64) for shape in shapes)
    a, b, eye = 0.9 * torch.linalg.qr(a)[0], 0.5 * b, torch.eye(3, dtype=torch.float64)

    def step(s: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        after = s @ a.mT + action @ b.mT
        return after, -after.square().sum(-1) - action.square().sum(-1)

    earned = partial(dynamics.imagined_return, step, x)
    states, costate, slope = [x], torch.zeros_like(x), torch.zeros_like(u)
    for action in u:
        states.append(a @ states[-1] + b @ action)
    for t in reversed(range(12)):
        costate = a.mT @ costate - 2 * states[t + 1]
        slope[t] = b.mT @ costate - 2 * u[t]
    plan = plan_gradient(step, x, actions=2, candidates=1, iterations=200, lr=0.05, limit=None, generator=draws)
    off = torch.autograd.functional.jacobian(earned, u) - slope
    least = x @ (dynamics.lqr(a, b, eye, eye[:2, :2], horizon=12).values[0] - eye) @ x
    lab.claim(
        "at condition 100 or less 200 steps reach a regulator's cost to 1e-4; the gradient is the costates' to 1e-10",
        lab.metric("cost of the plan above the regulator's, relative", -plan.value / least - 1) <= 1e-4,
        lab.metric("gradient from that of the costates", off.abs().max()) <= 1e-10,
        lab.metric("condition", torch.linalg.cond(torch.autograd.functional.hessian(earned, u).view(24, 24))) <= 100,
        scale="smoke",
    )
