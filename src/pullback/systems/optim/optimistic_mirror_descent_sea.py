"""Online learning between chance and an adversary: a hint makes the regret as small as the losses are predictable.

Every round a decision is made before its loss is known. Optimistic mirror descent takes the last gradient as a guess of
the next: its regret is of the order of the root of the variances of the gradients plus that of the drifts of their
means, a constant where nothing varies, the root of the rounds where all is noise, and it knows none of these in advance
(Chen, Zhang, Tu, Zhao, Zhang, ICML 2023, arXiv 2302.04552). Two hundred real tumours come by logistic loss in groups of
all, 64, 8 and 1, for four learners that know the same: the diameter of the domain and a bound on the gradients. Regret
is against the best fixed decision of the run, found by a convex solve.

It pays where losses change slowly or seldom: steps stay large as long as the next gradient is like the last. On steady
streams AdaGrad-norm and ``1 / sqrt t`` are as good or better, with the best scale of each in hindsight (dotted) too,
and where every gradient is the opposite of the last the hint costs a factor of two. Who knows how seldom a loss flips
can scale the steps of all four to gain alike. Hourly temperatures of a year stand in for the load of a day; linear
losses are simulated. Shorter than in the paper; the steps for curved losses are in the block, not in these streams.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import scipy.optimize
import torch
from torch import Tensor
from torch.nn.functional import one_hot, softplus

from pullback import data, optim
from pullback.lab import Arm, Lab, above, at_least, system
from pullback.optim import OnlineDescent, OnlineEnsemble, OptimisticMirrorDescent


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    rounds: Annotated[int, at_least(2)] = 500
    """The shorter of two streams of tumours; the longer one has four times as many."""
    rows: Annotated[int, at_least(20)] = 200
    """Tumours."""
    groups: Annotated[tuple[int, ...], at_least(0)] = (0, 64, 8, 1)
    """Tumours in the loss of a round; 0: all."""
    radius: Annotated[float, above(0)] = 5.0
    """Of the ball of decisions."""
    scales: Annotated[tuple[float, ...], above(0)] = tuple(2.0**k for k in range(-4, 8))
    """Of the step size; 1 is the theorem's."""
    flips: Annotated[tuple[int, ...], at_least(1)] = (1, 2, 5, 10, 20, 50, 100)
    """Rounds after which a loss changes its sign."""
    drifts: Annotated[tuple[float, ...], at_least(0)] = (0.0, 0.003, 0.03, 0.3)
    """Angle by which the mean of a linear loss turns in a round, radians."""
    noises: Annotated[tuple[float, ...], at_least(0)] = (0.0, 0.1, 0.3, 1.0)
    """Root of the variance of its gradient."""
    hours: Annotated[int, at_least(48)] = 4000
    """Temperatures to follow."""
    steps: Annotated[tuple[float, ...], above(0)] = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0, 2.0, 4.0)
    """Of the ensemble's learners."""
    replicates: Annotated[int, at_least(1)] = 3
    """Streams of tumours and of noise."""


LEARNERS = {"optimistic": "", "AdaGrad-norm": "adagrad", "1/sqrt t": "sqrt", "horizon": "horizon"}


@system(
    "optimistic-mirror-descent-sea",
    family="optim",
    title="Optimistic Online Mirror Descent for Bridging Stochastic and Adversarial Online Convex Optimization",
    paper="Chen, Zhang, Tu, Zhao, Zhang, ICML 2023, arXiv 2302.04552",
    config=Config,
    smoke={"rounds": 4, "rows": 30, "flips": (1, 2, 4, 20), "noises": (0.0, 0.1), "hours": 60, "replicates": 1},
    full={"rounds": 20_000, "rows": 569, "hours": 8700, "replicates": 20},
    data=("breast_cancer", "weather"),
    blocks=("optim.OptimisticMirrorDescent", "optim.OnlineEnsemble", "optim.online_regret"),
)
def run(lab: Lab, config: Config) -> None:
    """Check the steps against closed forms and solvers; streams of tumours, of linear losses, of temperatures."""
    lab.data("Wisconsin breast cancer, 200 tumours as a stream", origin="real")
    lab.data("hourly temperatures of a year at Sand Point", origin="real")
    lab.data("linear losses that flip, turn and scatter", origin="simulated")
    arms = {name: lab.arm(name, baseline=name != "optimistic") for name in LEARNERS}
    ours, adagrad, root, horizon = arms.values()
    _exact(lab)
    _tumours(lab, config, arms)
    lab.claim(
        "all tumours in every loss: over four times the rounds the regret grows at most 1.1 times, at least 1.9 times "
        "with the step of the horizon",
        ours["growth, all"] <= 1.1,
        horizon["growth, all"] >= 1.9,
    )
    lab.claim(
        "one tumour in a loss: it grows between 1.7 and 2.4 times, is at least five times that of all in the loss, "
        "and with the steps of the theorems at most 1.1 times that of AdaGrad-norm",
        (ours["growth, 1"] >= 1.7) & (ours["growth, 1"] <= 2.4),
        ours["regret, 1"] >= 5 * ours["regret, all"],
        ours["regret, 1"] <= 1.1 * adagrad["regret, 1"],
    )
    gains = _flips(lab, config, arms)
    slow = f"gain, {config.flips[-3]}"
    lab.claim(
        "losses that flip every 20 rounds, steps of the theorems: what it gains on the best fixed decision is at least "
        "three times what AdaGrad-norm and 1 / sqrt t gain",
        ours[slow] >= 3 * max(adagrad[slow], root[slow]),
    )
    bound = _bound(lab, config, ours)
    _figures(lab, config, arms, gains, bound, _follow(lab, config))


def _learner(name: str, batch: tuple[int, ...], dim: int, config: Config, rounds: int) -> Any:
    """Return learners ``[scales, ...]`` that know the diameter and that gradients are at most 1 long."""
    scale = torch.tensor(config.scales).double().view(-1, *[1] * (len(batch) - 1)).expand(batch)
    start, known = torch.zeros(*batch, dim).double(), dict[str, Any](diameter=2 * config.radius, scale=scale)
    if name == "optimistic":
        return OptimisticMirrorDescent(start, **known)
    return OnlineDescent(start, rule=LEARNERS[name], horizon=rounds if name == "horizon" else None, **known)


def _exact(lab: Lab) -> None:
    """Multiplicative weights in closed form; a Newton step and a comparator against scipy."""
    stream = lab.fork("exact")
    gradients = torch.rand(30, 6, generator=stream).double()
    learner, gap = OptimisticMirrorDescent(torch.ones(6).double() / 6, diameter=1.0, geometry="simplex", lr=0.4), 0.0
    for t, gradient in enumerate(gradients):
        hinted = gradients[:t].sum(0) + (gradients[t - 1] if t else 0)
        gap = max(gap, float((learner.play() - torch.softmax(-0.4 * hinted, 0)).abs().max()))
        learner.observe(gradient)
    root = torch.randn(4, 4, generator=stream).double()
    metric, point = root @ root.T + 0.1 * torch.eye(4), 3 * torch.randn(4, generator=stream).double()
    found = optim.projection_ball_in_metric(point, metric, 1.0)
    told = _scipy(lambda p: (p - point) @ metric @ (p - point))
    rows = torch.randn(40, 4, generator=stream).double()
    loss = lambda u: softplus(-u @ rows.T).sum(-1)  # noqa: E731
    best = optim.online_regret(loss, rows.new_zeros(()), point * 0, radius=1.0, step=0.1)
    also = _scipy(loss)
    lab.claim(
        "on the simplex it is multiplicative weights with a hint to 1e-10; the projection in the norm of a matrix and "
        "the comparator are scipy's to 1e-6 and 1e-5",
        gap <= 1e-10,
        (metric_gap := float((found - told).abs().max())) <= 1e-6,
        (best_gap := float((best.comparator - also).abs().max())) <= 1e-5,
        scale="smoke",
        simplex=gap,
        projection=metric_gap,
        comparator=best_gap,
    )


def _scipy(objective: Callable[[Tensor], Any]) -> Tensor:
    """Minimise in the unit ball of four dimensions."""
    inside, value = {"type": "ineq", "fun": lambda p: 1 - p @ p}, lambda p: float(objective(torch.tensor(p)))
    return torch.tensor(scipy.optimize.minimize(value, [0.1] * 4, method="SLSQP", constraints=[inside], tol=1e-15).x)


def _tumours(lab: Lab, config: Config, arms: dict[str, Arm]) -> None:
    """Report regrets with the step sizes of the theorems, and with the best scale for each group in hindsight."""
    table = data.breast_cancer(dtype=torch.float64)
    chosen = torch.randperm(len(table.target), generator=lab.fork("rows"))[: config.rows]
    rows = (table.features[chosen] - table.features.mean(0)) / table.features.std(0)
    rows = torch.cat([rows, torch.ones(len(rows), 1).double()], 1)
    rows = rows / rows.norm(dim=1, keepdim=True) * (2 * table.target[chosen, None].double() - 1)
    batch = (len(config.scales), len(config.groups), config.replicates)
    for name, arm in arms.items():
        found = []
        for rounds in (config.rounds, 4 * config.rounds):
            learner = _learner(name, batch, rows.shape[1], config, rounds)
            total, incurred = torch.zeros(*batch[1:], len(rows)).double(), torch.zeros(batch).double()
            stream = lab.fork("tumours")
            for _ in arm.steps(rounds, learner, total, incurred, stream, name=f"tumours, {rounds}"):
                share, margins = _drawn(config, len(rows), stream), learner.play() @ rows.T
                incurred += (share * softplus(-margins)).sum(-1)
                total += share
                learner.observe(-(share * torch.sigmoid(-margins)) @ rows)
            told = optim.online_regret(
                lambda u, w=total / rounds: (w * softplus(-u @ rows.T)).sum(-1),  # type: ignore[misc]
                torch.zeros(batch[1:]).double(),
                torch.zeros(*batch[1:], rows.shape[1]).double(),
                radius=config.radius,
                tolerance=1e-7,
            )
            found.append(incurred + rounds * told.regret)
        regrets = torch.stack(found)  # [lengths, scales, groups, replicates]
        own, best = regrets[:, config.scales.index(1.0)], regrets[1].mean(-1).min(0)
        for place, size in enumerate(config.groups):
            arm.metric(f"regret, {size or 'all'}, best scale", best.values[place], better="lower")
            arm.metric(f"best scale, {size or 'all'}", config.scales[int(best.indices[place])])
            arm.metric(f"regret, {size or 'all'}", own[1, place], better="lower", replicated=True)
            arm.metric(f"growth, {size or 'all'}", own[1, place].mean() / own[0, place].mean(), better="lower")


def _drawn(config: Config, count: int, stream: torch.Generator) -> Tensor:
    """Return the share of each row in a round's loss ``[groups, replicates, count]``."""
    share = torch.full((len(config.groups), config.replicates, count), 1 / count).double()
    for place, size in enumerate(config.groups):
        if size:
            drawn = torch.randint(count, (config.replicates, size), generator=stream)
            share[place] = one_hot(drawn, count).double().mean(1)
    return share


def _flips(lab: Lab, config: Config, arms: dict[str, Arm]) -> dict[str, Tensor]:
    """Linear losses in one dimension whose sign changes; return gains ``[scales, flips]``, minus the regret."""
    rounds, gains = 4 * config.rounds, {}
    for name, arm in arms.items():
        learner = _learner(name, (len(config.scales), len(config.flips)), 1, config, rounds)
        incurred = torch.zeros(len(config.scales), len(config.flips)).double()
        total = torch.zeros(len(config.flips)).double()
        for t in arm.steps(rounds, learner, incurred, total, name="flips"):
            slope = torch.tensor([1.0 - 2 * (t // period % 2) for period in config.flips]).double()
            incurred += slope * learner.play()[..., 0]
            total += slope
            learner.observe(slope[:, None].expand(len(config.scales), -1, -1))
        gains[name] = -incurred - config.radius * total.abs()
        for place, period in enumerate(config.flips):
            arm.metric(f"gain, {period}", gains[name][config.scales.index(1.0), place], better="higher")
            arm.metric(f"gain, {period}, best scale", gains[name][:, place].max(), better="higher")
    return gains


def _bound(lab: Lab, config: Config, arm: Arm) -> Tensor:
    """Linear losses in ten dimensions with a turning mean and noise: return what varied, and the regret."""
    rounds, dim = 4 * config.rounds, 10
    drifts, noises = (torch.tensor(v).double() for v in (config.drifts, config.noises))
    batch = (len(drifts), len(noises), config.replicates)
    learner = OptimisticMirrorDescent(torch.zeros(*batch, dim).double(), diameter=2 * config.radius, lipschitz=2.0)
    incurred, total, stream = torch.zeros(batch).double(), torch.zeros(*batch, dim).double(), lab.fork("noise")
    for t in arm.steps(rounds, learner, incurred, total, stream, name="turning means"):
        mean = torch.zeros(len(drifts), dim).double()
        mean[:, 0], mean[:, 1] = torch.cos(drifts * t), torch.sin(drifts * t)
        draws = torch.randn(*batch[1:], dim, generator=stream).double() / math.sqrt(dim)
        slope = mean[:, None, None] + noises[:, None, None] * draws
        incurred += (slope * learner.play()).sum(-1)
        total += slope
        learner.observe(slope)
    regret = (incurred + config.radius * total.norm(dim=-1)).mean(-1)
    constant = float(regret[0, 0]) if min(config.drifts) == min(config.noises) == 0 else 0.0
    varied = (rounds * noises**2).sqrt() + (rounds * (2 * torch.sin(drifts / 2)) ** 2).sqrt()[:, None]
    used = ((regret - constant) / varied.clamp(min=1e-12))[varied > 0]
    lab.claim(
        "turning and scattered linear losses: less that of the steady stream, at most the diameter itself, the regret "
        "is at most the diameter times the sum of the roots of the summed variances and of the summed squared drifts",
        (largest := float(used.max())) <= 2 * config.radius,
        constant <= 2 * config.radius,
        constant=constant,
        largest=largest,
    )
    arm.metric("gradients above the bound", learner.exceeded.double().sum())
    return torch.stack([varied, regret.clamp(min=0)])


def _follow(lab: Lab, config: Config) -> tuple[Tensor, Tensor]:
    """Predict temperatures from the time of the day, with a mix of step sizes and with each alone."""
    degrees = data.weather("sand_point").column("temperature")[: config.hours] / 20
    hour = torch.arange(len(degrees)) * (2 * math.pi / 24)
    rows = torch.stack([torch.ones(len(hour)), hour.cos(), hour.sin()], 1).double() / math.sqrt(3)
    grid = torch.tensor(config.steps).double()
    alone = OptimisticMirrorDescent(torch.zeros(len(grid), 3).double(), diameter=2 * config.radius, lr=grid)
    mix = OnlineEnsemble(OptimisticMirrorDescent(alone.center, diameter=2 * config.radius, lr=grid))
    ensemble, single = lab.arm("mix of step sizes"), lab.arm("one step size", baseline=True)
    losses, told = torch.zeros(len(grid) + 1).double(), torch.zeros(len(degrees)).double()
    for t in ensemble.steps(len(degrees), alone, mix, losses, told, name="hours"):
        told[t] = rows[t] @ mix.play()
        errors = torch.cat([told[t : t + 1], alone.play() @ rows[t]]) - degrees[t]
        losses += errors**2 / 2
        mix.observe(errors[0] * rows[t])
        alone.observe(errors[1:, None] * rows[t])
    ensemble.metric("mean squared error", 800 * losses[0] / len(degrees), better="lower", unit="K^2")
    single.metric("mean squared error", 800 * losses[1:].min() / len(degrees), better="lower", unit="K^2")
    single.metric("step size", config.steps[int(losses[1:].argmin())])
    lab.claim(
        "temperatures: the mix loses less than the best of its step sizes, at most half of the median one",
        ensemble["mean squared error"] < single["mean squared error"],
        float(losses[0]) <= 0.5 * float(losses[1:].median()),
    )
    return 20 * told, 20 * degrees


def _figures(
    lab: Lab, config: Config, arms: dict[str, Arm], gains: dict[str, Tensor], bound: Tensor, told: tuple[Tensor, Tensor]
) -> None:
    """Draw regret by group, gain by flips, regret against what varied, and the temperatures of ten days."""
    figure, axes = lab.subplots(1, 4, figsize=(15, 3.4))
    names = [str(size or "all") for size in config.groups]
    for name, arm in arms.items():
        axes[0].plot(names, [arm[f"regret, {of}"] for of in names], "o-", color=arm.colour, label=name)
        axes[0].plot(names, [arm[f"regret, {of}, best scale"] for of in names], ":", color=arm.colour)
        axes[1].plot(config.flips, gains[name][config.scales.index(1.0)], "o-", color=arm.colour)
    axes[0].set(yscale="log", xlabel="tumours in a loss", ylabel="regret", ylim=(0.1, None))
    axes[0].legend(fontsize=7, ncols=2, loc="lower right")
    axes[1].set(xscale="log", xlabel="rounds until the loss flips", ylabel="gain on the best fixed decision")
    varied, regret = bound.flatten(1)
    axes[2].scatter(varied, regret, color=arms["optimistic"].colour)
    axes[2].plot(varied.sort().values, 2 * config.radius * varied.sort().values, color="grey", linestyle="--")
    axes[2].set(xlabel="root of variance + root of drift", ylabel="regret", ylim=(-5, 1.4 * float(regret.max()) + 1))
    for values, name in zip(told, ("mix of step sizes", "measured"), strict=True):
        axes[3].plot(values[-240:], color=lab.colour(name), label=name, linewidth=1)
    axes[3].set(xlabel="hour", ylabel="temperature (C)", ylim=(0, 18))
    axes[3].legend(fontsize=7, loc="upper left")
    caption = "Steps of the theorems; dotted: best scales. Dashed: bound less its constant (gains: 0). Right: ten days."
    lab.figure("streams", figure, caption)
