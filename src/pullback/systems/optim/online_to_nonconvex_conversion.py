"""Stationary points of losses with kinks and without convexity: let an online learner choose the moves.

At a kink no gradient becomes small, so what is asked for is a point around which gradients average to little: points
within delta of their mean, the norm of whose mean gradient is at most eps (Goldstein). A learner of linear losses,
projected gradient descent on moves of bounded length restarted after every epoch, and gradients taken at a random point
of each move find one within O(1 / (eps^3 delta)) gradients, which no method improves (Cutkosky, Mehta, Orabona 2023).

Robust phase retrieval, mean of | |a.x| - y |, whose least value 0 is known (simulated: nothing real has one), and a
ReLU network with absolute loss on diabetes (real), at most 16 000 gradients. Not claimed, as it does not hold: that SGD
finds worse points. With its best step it ends nearer to the minimum, only without a bound known in advance; nor does it
hurt here to leave out the random points. On networks SGD with momentum is a tenth better, and Adam a seventh.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor, nn

from pullback import data
from pullback.lab import Arm, Lab, above, at_least, system
from pullback.optim import HorizonPlan, IterateAverage, OnlineToNonconvex, goldstein_norm, horizon_plan


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    calls: Annotated[tuple[int, ...], at_least(8)] = (1000, 4000, 16_000)
    """Stochastic gradients, ascending."""
    radii: Annotated[tuple[float, ...], above(0)] = (0.1, 0.2, 0.4)
    """delta; the middle one at every number of calls, the others at the second."""
    repetitions: Annotated[int, at_least(2)] = 16
    """Runs at once, each from its own start."""
    rates: Annotated[tuple[float, ...], above(0)] = (1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3)
    """Steps of SGD on phase retrieval; the best is reported."""
    steps: Annotated[int, at_least(50)] = 1000
    """Of each network."""
    seeds: Annotated[int, at_least(1)] = 6
    """Networks."""


class PhaseRetrieval:
    """Mean of ``| |a.x| - y |`` over 200 rows ``a`` of mean square length 1; the points are ``[*batch, dim]``."""

    def __init__(self, dim: int, stream: torch.Generator, runs: int, distance: float, batch: int = 8) -> None:
        a = torch.randn(200, dim, generator=stream).double()
        self.a = a / a.square().sum(-1).mean().sqrt()
        solution = torch.randn(dim, generator=stream).double()
        self.y = (self.a @ solution).abs()
        self.start = solution + distance * torch.randn(runs, dim, generator=stream).double()
        self.gap = float(self.value(self.start).mean())
        # E |g|^2 <= |F'|^2 + (1 - |F'|^2) / batch, and |F'| is at most the largest singular value / sqrt(200).
        steepest = float(torch.linalg.matrix_norm(self.a, 2)) ** 2 / len(a)
        self.batch, self.lipschitz = batch, math.sqrt(steepest + (1 - steepest) / batch)
        self.name = f"d = {dim}"

    def value(self, x: Tensor) -> Tensor:
        """The loss; its least value is 0."""
        return ((x @ self.a.T).abs() - self.y).abs().mean(-1)

    def gradient(self, x: Tensor) -> Tensor:
        """Of the mean over all rows."""
        z = x @ self.a.T
        return ((z.abs() - self.y).sign() * z.sign()) @ self.a / len(self.a)

    def draw(self, x: Tensor, stream: torch.Generator) -> Tensor:
        """The mean gradient of random rows, others for each of the runs (the last dimension but one)."""
        rows = torch.randint(len(self.a), (x.shape[-2], self.batch), generator=stream)
        a, y = self.a[rows], self.y[rows]
        z = (a @ x[..., None])[..., 0]
        return (((z.abs() - y).sign() * z.sign())[..., None, :] @ a)[..., 0, :] / self.batch

    def change(self, start: Tensor, move: Tensor) -> Tensor:
        """The integral of ``<gradient, move>`` along a move: a row's slope is constant between its kinks."""
        z, dz = start @ self.a.T, move @ self.a.T
        kinks = torch.stack([-z, self.y - z, -self.y - z]) / torch.where(dz == 0, 1, dz)
        ends = torch.cat([torch.zeros_like(z)[None], kinks.clamp(0, 1), torch.ones_like(z)[None]]).sort(0).values
        middle = z + (ends[1:] + ends[:-1]) / 2 * dz
        slopes = (middle.abs() - self.y).sign() * middle.sign() * dz
        return (slopes * ends.diff(dim=0)).sum(0).mean(-1)


RATES = torch.logspace(-4, -0.5, 8)
"""Of the steps of networks, in units of each method."""
STEPS = {"O2NC": 3.0, "SGD": 10.0, "SGD with momentum": 1.0, "Adam": 1.0}
"""The unit; that of O2NC is the length of a move."""


@system(
    "online-to-nonconvex-conversion",
    family="optim",
    title="Optimal Stochastic Non-smooth Non-convex Optimization through Online-to-Non-convex Conversion",
    paper="Cutkosky, Mehta, Orabona, ICML 2023, arXiv 2302.03775",
    config=Config,
    smoke={"calls": (50, 100, 200), "repetitions": 4, "rates": (0.01, 0.1), "steps": 50, "seeds": 1},
    full={"calls": (1000, 4000, 16_000, 64_000, 256_000), "repetitions": 100, "steps": 20_000, "seeds": 10},
    data=("diabetes",),
    blocks=("optim.OnlineToNonconvex", "optim.horizon_plan", "optim.goldstein_norm"),
)
def run(lab: Lab, config: Config) -> None:
    """Check the identity and the bound, find stationary points at a kink, train networks."""
    lab.data("200 equations |a.x| = y with a solution, Gaussian a", origin="simulated")
    ours, fixed = lab.arm("O2NC"), lab.arm("O2NC, s = 1", baseline=True)
    problem = PhaseRetrieval(10, lab.fork("problem"), config.repetitions, 0.3)
    radius, (least, middle, *_) = config.radii[len(config.radii) // 2], config.calls
    runs = [_descend(lab, config, ours, problem, calls, radius) for calls in config.calls]
    runs += [_descend(lab, config, ours, problem, middle, r) for r in config.radii if r != radius]
    runs += [_descend(lab, config, ours, PhaseRetrieval(50, lab.fork("wide"), config.repetitions, 1.0), middle, radius)]
    biased = _descend(lab, config, fixed, problem, least, radius)
    lab.claim(
        "slopes integrated along every move, kink by kink, add up to the change of the loss within 1e-9",
        runs[0].found["exact"] <= 1e-9,
        scale="smoke",
    )
    lab.claim(
        "gradients at random points of moves predict it within 4 standard errors on average, at their ends miss by 10",
        runs[0].found["bias"] <= 4,
        biased.found["bias"] >= 10,
    )
    lab.claim(
        "the mean norm of an epoch's mean gradient is at most the theorem's bound, at every number of calls and radius",
        *(each.found["mean"] <= each.plan.bound for each in runs),
        scale="smoke",
    )
    longest = runs[len(config.calls) - 1]
    for name, momentum in (("SGD", 0.0), ("SGD with momentum", 0.9)):
        _sgd(lab, lab.arm(name, baseline=True), config, problem, radius, momentum)
    key = "gradient norm of the returned point"
    pointwise = min(lab.arm("SGD")[key], lab.arm("SGD with momentum")[key])
    lab.claim(
        f"at the kinks of the minimum, {config.calls[-1]} gradients: the last epoch's mean gradient is at most a fifth "
        "as long as its gradients, and a fifth as long as the gradient where SGD with its best step ends",
        longest.found["last"] <= 0.2 * longest.found["single"],
        longest.found["last"] <= 0.2 * pointwise,
    )
    found = lab.slope(config.calls, [float(each.found["mean"]) for each in runs[: len(config.calls)]], of="O2NC")
    lab.claim(
        "the mean epoch norm falls as calls^-0.30 to calls^-0.36, by the theorem as calls^-1/3",
        abs(found.exponent + 0.33) <= 0.03,
    )
    _networks(lab, config)
    _draw(lab, config, runs, pointwise)


class Descent(NamedTuple):
    """A run of the method: norms by epoch, means over repetitions; ``found`` are its metrics."""

    plan: HorizonPlan
    norms: list[float]
    points: list[float]
    found: dict[str, Any]


def _descend(lab: Lab, config: Config, arm: Arm, problem: PhaseRetrieval, calls: int, radius: float) -> Descent:
    """Run the method with the theorem's horizon, and measure every epoch with exact gradients."""
    plan, stream = horizon_plan(calls, radius, problem.lipschitz, problem.gap), lab.fork("rows")
    w = nn.Parameter(problem.start.clone())
    settings: Any = {"radius": radius, "horizon": plan.horizon, "lipschitz": problem.lipschitz, "generator": stream}
    optimizer = OnlineToNonconvex([w], **settings, batch_ndim=1, random_scaling=arm.name == "O2NC")
    total, guess, exact = torch.zeros_like(w), torch.zeros(len(w)).double(), torch.zeros(len(w)).double()
    norms, points = torch.zeros(2, plan.epochs, len(w)).double()
    key, short = f"{problem.name}, {calls} gradients, radius {radius:g}", calls == config.calls[0]
    state = (w, optimizer, stream, total, norms, points, guess, exact)
    for n in arm.steps(plan.epochs * plan.horizon, *state, name=key):
        epoch, t = divmod(n, plan.horizon)
        gradient = problem.gradient(w.detach())
        total.mul_(t > 0).add_(gradient)
        points[epoch] += gradient.norm(dim=-1) / plan.horizon
        if t == plan.horizon - 1:
            norms[epoch] = (total / plan.horizon).norm(dim=-1)
        if t and short:
            move = optimizer.state[w]["move"]
            guess += (gradient * move).sum(-1)
            exact += problem.change(optimizer.state[w]["origin"], move)
        w.grad = problem.draw(w.detach(), stream)
        optimizer.step()
    change = problem.value(optimizer.state[w]["origin"]) - problem.value(problem.start)
    guess, output = guess - change, optimizer.output("last")[0]
    found = {
        "mean": (f"mean epoch norm, {key}", norms.mean()),
        "last": (f"last epoch norm, {key}", norms[-1].mean()),
        "single": (f"gradient norm, last epoch, {key}", points[-1].mean()),
        "loss": (f"loss, {key}", problem.value(output).mean()),
    }
    if short:
        deviation = guess.mean().abs() / (guess.std() / math.sqrt(len(guess)))
        found["bias"] = ("standard errors of the predicted change", deviation)
        found["exact"] = ("error of the integrated change", (exact - change).abs().max())
    handles = {key: arm.metric(name, value, better="lower") for key, (name, value) in found.items()}
    if calls == config.calls[-1]:
        _stationarity(lab, arm, problem, output, radius)
    return Descent(plan, norms.mean(-1).tolist(), points.mean(-1).tolist(), handles)


def _stationarity(lab: Lab, arm: Arm, problem: PhaseRetrieval, x: Tensor, radius: float) -> None:
    """How stationary points ``x [*settings, runs, dim]`` are: of the best setting, for each measure."""
    around = goldstein_norm(problem.gradient, x, radius, generator=lab.fork("ball"))
    alone = problem.gradient(x).norm(dim=-1)
    for name, found in (("gradient norm", alone), ("Goldstein norm", around), ("loss", problem.value(x))):
        arm.metric(f"{name} of the returned point", found.mean(-1).min(), better="lower")


def _sgd(lab: Lab, arm: Arm, config: Config, problem: PhaseRetrieval, radius: float, momentum: float) -> None:
    """Every constant step at once; its last iterate, and the mean of as many as an epoch has."""
    stream, rates = lab.fork("rows"), torch.tensor(config.rates).double()[:, None, None]
    x = problem.start.expand(len(rates), *problem.start.shape).clone()
    buffer = torch.zeros_like(x)
    horizon = horizon_plan(config.calls[-1], radius, problem.lipschitz, problem.gap).horizon
    average = IterateAverage([x], kind="suffix", start=config.calls[-1] - horizon)
    for _ in arm.steps(config.calls[-1], x, buffer, average, stream):
        buffer.mul_(momentum).add_(problem.draw(x, stream))
        x -= rates * (1 - momentum) * buffer
        average.update()
    _stationarity(lab, arm, problem, torch.cat([x, *average.average]), radius)


def _loss(weights: list[Any], x: Tensor, y: Tensor) -> Tensor:
    """Mean absolute errors ``[settings, seeds]`` of networks with one hidden layer."""
    first, shift, second, offset = weights
    hidden = (x @ first + shift[..., None, :]).relu()
    return ((hidden @ second[..., None])[..., 0] + offset[..., None] - y).abs().mean(-1)


def _networks(lab: Lab, config: Config) -> None:
    """ReLU networks with absolute loss: every method with each of eight steps, all networks of a method at once."""
    lab.data("diabetes (scikit-learn)", origin="real")
    x, y = ((v - v.mean(0)) / v.std(0) for v in data.diabetes()[:2])
    draws, horizon, hidden = lab.fork("weights"), 50, 32
    start = [torch.randn(config.seeds, 10, hidden, generator=draws) / 10**0.5, torch.zeros(config.seeds, hidden)]
    start += [torch.randn(config.seeds, hidden, generator=draws) / hidden**0.5, torch.zeros(config.seeds)]
    radii = horizon * STEPS["O2NC"] * RATES[:, None]
    methods: dict[str, Callable[[list[Any]], Any]] = {
        "O2NC": lambda w: OnlineToNonconvex(
            w, radius=radii, horizon=horizon, batch_ndim=2, generator=lab.fork("points")
        ),
        "SGD": lambda w: torch.optim.SGD(w, 1.0),
        "SGD with momentum": lambda w: torch.optim.SGD(w, 1.0, momentum=0.9),
        "Adam": lambda w: torch.optim.Adam(w, 1.0),
    }
    for name, build in methods.items():
        arm, stream = lab.arm(name, baseline=name != "O2NC"), lab.fork("batches")
        weights = [nn.Parameter(w.expand(len(RATES), *w.shape).clone()) for w in start]
        optimizer, average = build(weights), IterateAverage(weights, kind="suffix", start=config.steps - horizon)
        extra = [optimizer.generator] if name == "O2NC" else []
        for _ in arm.steps(config.steps, *weights, optimizer, average, stream, *extra, name="network"):
            rows = torch.randint(len(y), (config.seeds, 32), generator=stream)
            optimizer.zero_grad()
            _loss(weights, x[rows], y[rows]).sum().backward()
            before = [w.detach().clone() for w in weights]
            optimizer.step()
            if name != "O2NC":  # these move by their step size times something that does not depend on it
                for w, old in zip(weights, before, strict=True):
                    w.data.copy_(torch.lerp(old, w.data, STEPS[name] * RATES.view(-1, *(1,) * (w.ndim - 1))))
            average.update()
        with torch.no_grad():
            found = torch.stack([_loss(w, x, y) for w in (weights, average.average)]).nan_to_num(nan=math.inf)
        found = found.flatten(0, 1)  # [outputs x settings, seeds]
        arm.metric("training loss, diabetes", found[found.mean(-1).argmin()], replicated=True, better="lower")
        for setting, value in enumerate(found.mean(-1).view(2, -1).amin(0)):
            arm.record("training loss by setting", value, step=setting)
    ours, base = (lab.arm(name)["training loss, diabetes"] for name in ("O2NC", "SGD with momentum"))
    lab.claim("ReLU networks: the final training loss is at most 1.15 times SGD with momentum's", ours <= 1.15 * base)


def _draw(lab: Lab, config: Config, runs: list[Descent], pointwise: Any) -> None:
    figure, axes = lab.subplots(1, 3, figsize=(13, 3.8))
    colour, longest, runs = lab.arm("O2NC").colour, runs[len(config.calls) - 1], runs[: len(config.calls)]
    gradients = [longest.plan.horizon * (k + 1) for k in range(longest.plan.epochs)]
    axes[0].plot(gradients, longest.points, "--", color=colour, label="O2NC, mean gradient norm of an epoch")
    axes[0].plot(gradients, longest.norms, color=colour, label="O2NC, norm of its mean gradient")
    axes[0].axhline(pointwise, color=lab.arm("SGD").colour, linewidth=1, label="gradient norm where SGD ends")
    axes[0].set(xlabel="stochastic gradients", title=f"phase retrieval, {config.calls[-1]} gradients", ylim=(0, None))
    axes[0].locator_params(axis="x", nbins=5)
    axes[1].loglog(config.calls, [each.plan.bound for each in runs], color="0.4", label="bound on the mean")
    for name, style in (("mean", "o-"), ("last", "s--")):
        values = [each.found[name] for each in runs]
        axes[1].loglog(config.calls, values, style, color=colour, label=f"O2NC, {name} of the epochs")
    axes[1].set(xlabel="stochastic gradients", title="norm of an epoch's mean gradient")
    for name in ("O2NC", "SGD", "SGD with momentum", "Adam"):
        arm = lab.arm(name)
        axes[2].plot(RATES * STEPS[name], arm.series("training loss by setting"), "o-", color=arm.colour, label=name)
    axes[2].set(
        xscale="log", xlabel="step size (O2NC: length of a move)", title="training loss on diabetes", ylim=(0.25, 1)
    )
    for ax, place in zip(axes, ("center right", "best", "best"), strict=True):
        ax.legend(fontsize=8, loc=place)
    lab.figure(
        "convergence",
        figure,
        "Left: at a minimum with kinks gradients stay as large as ever, and their mean over an epoch becomes small. "
        "Middle: it falls as the theorem says, and is below its bound. Right: networks after training with each step.",
    )
