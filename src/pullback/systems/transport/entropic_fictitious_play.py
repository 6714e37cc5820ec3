"""A wide network as a law of neurons that is mixed, again and again, with its own best answer.

The best answer to a law of neurons is a Gibbs law whose potential depends on the law through its outputs alone. Mixing
it in converges, with a certificate of how far the optimum is; and with particles neither the neurons drawn before nor
an interaction between them is needed (Nitanda, Oko, Wu, Takenouchi, Suzuki, ICML 2023). Exact on a grid of neurons in
two dimensions, where small rates converge and large ones swing; with particles against noisy gradient descent on
digits, on diabetes and on a picture, at equal gradients of neurons: both end at the same law, noisy descent is there
earlier. Its particles push each other, and err less together than independent samples do. Smaller than in the paper: a
few hundred neurons. The grid's data is simulated, the rest is real.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate, softplus

from pullback import data, transport
from pullback.lab import Arm, Lab, above, at_least, at_most, system


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    grid: Annotated[int, at_least(11)] = 81
    """Points of an axis of the grid of neurons, which goes from -6 to 6."""
    stable: Annotated[tuple[float, ...], above(0), at_most(0.5)] = (0.05, 0.025)
    """Rates of the exact play at temperature 0.05."""
    unstable: Annotated[tuple[float, ...], above(0), at_most(0.5)] = (0.1, 0.05, 0.025, 0.0125)
    """Rates at temperature 0.01, each half of the one before."""
    horizon: Annotated[float, above(0)] = 10.0
    """Of the exact play: steps times rate."""
    particles: Annotated[int, at_least(8)] = 400
    """Neurons of each law."""
    gradients: Annotated[int, at_least(10)] = 500
    """Of each neuron, of both arms."""
    rate: Annotated[float, above(0), at_most(1)] = 0.1
    """Of the play with particles."""
    inner: Annotated[int, at_least(1)] = 10
    """Langevin steps between two mixtures."""
    replicates: Annotated[int, at_least(1)] = 3
    """Noise, initial neurons and draws."""


@system(
    "entropic-fictitious-play",
    family="transport",
    title="Primal and Dual Analysis of Entropic Fictitious Play for Finite-sum Problems",
    paper="Nitanda, Oko, Wu, Takenouchi, Suzuki, ICML 2023, arXiv 2303.02957",
    config=Config,
    smoke={
        "grid": 21,
        "stable": (0.1,),
        "unstable": (0.2, 0.1),
        "horizon": 1.0,
        "particles": 20,
        "gradients": 20,
        "replicates": 1,
    },
    full={"particles": 10_000, "gradients": 20_000},
    data=("digits", "diabetes", "pictures"),
    blocks=tuple(
        f"transport.{b}"
        for b in ("EntropicFictitiousPlay", "MeanFieldLangevin", "duality_gap", "proximal_gibbs_potential", "langevin")
    ),
)
def run(lab: Lab, config: Config) -> None:
    """Play exactly on a grid, then with particles on four problems."""
    lab.data("a noisy sine at 50 points", origin="simulated")
    lab.data("UCI digits, threes and eights of 8 x 8 pixels", origin="real")
    lab.data("diabetes, 442 patients", origin="real")
    lab.data("a photograph of a cat, 32 x 32 pixels", origin="real")
    x = torch.linspace(-1.5, 1.5, 50).unsqueeze(-1)
    y = torch.sin(1.5 * x.squeeze(-1)) + 0.1 * torch.randn(config.replicates, 50, generator=lab.fork("noise"))
    optimum = _exact(lab, config, x, y)
    ours, base = lab.arm("fictitious play"), lab.arm("noisy descent", baseline=True)
    for replicate in lab.replicates(config.replicates):
        sine = Problem(x, y[replicate], x, y[replicate], _tanh(3.0), _square, 0.05, 0.05, (0.1, 0.1))
        problems = {"sine": sine, **_real(lab)}
        pictures = [problems["picture"].y]
        for arm in (ours, base):
            laws = {
                name: _train(lab, config, arm, name, problem, optimum[replicate]) for name, problem in problems.items()
            }
            pictures += [laws["picture"].outputs] + [laws["picture"].predict(problems["picture"].x)] * (arm is ours)
    for name in REAL:
        lab.claim(
            f"{name}: at equal gradients loss and decay of the particles end within 5 % of those of noisy descent",
            abs(ours[name + FIT] / base[name + FIT] - 1) <= 0.05,
        )
    error = "sine: error of the outputs"
    lab.claim(
        "sine: the running mean of outputs, all that is kept of past samples, is within 0.03 of the exact optimum, and "
        "at most half as far from it as the outputs of the particles that are stored",
        ours[MEAN + error] <= 0.03,
        ours[MEAN + error] <= ours[error] / 2,
    )
    lab.claim(
        "the particles, as many at the end as at the beginning, predict within 0.03 of what all samples would",
        *(abs(ours[score] - ours[MEAN + score]) <= 0.03 for score in SCORES.values()),
    )
    lab.claim("digits: at least 98 % of the unseen ones are right", ours[SCORES["digits"]] >= 0.98)
    lab.curves(*(name + FIT for name in REAL), xlabel="tens of gradients of each neuron", log=True)
    titles = ["photograph", "all samples", "particles", base.name]
    tiles = [p.view(32, 32).clamp(-2.5, 2.5) for p in pictures]
    lab.images(
        [tiles],
        titles=titles,
        name="picture",
        limits=(-2.5, 2.5),
        caption="Last replicate; all samples and particles are of fictitious play.",
    )


REAL = ("digits", "diabetes", "picture")
FIT = ": loss and decay"
"""Of stored particles: what is minimised, but for the entropy, which particles do not tell."""
MEAN = "running mean, "
SCORES = {"digits": "digits: unseen accuracy", "diabetes": "diabetes: unseen explained variance"}


class Problem(NamedTuple):
    """Inputs and targets to fit and unseen ones, what a neuron computes, the loss, weights, tuned step sizes."""

    x: Tensor
    y: Tensor
    unseen_x: Tensor
    unseen_y: Tensor
    feature: Callable[[Tensor, Tensor], Tensor]
    loss: Callable[[Tensor, Any], Tensor]
    temperature: float
    decay: float
    step: tuple[float, float]
    """Of Langevin, of the play and of noisy descent."""


def _tanh(height: float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda theta, x: height * torch.tanh(theta[:, :-1] @ x.mT + theta[:, -1:])


def _wave(theta: Tensor, x: Tensor) -> Tensor:
    """A plane wave on the picture, of a frequency and a phase that are learned."""
    return 8 * torch.cos(10 * (theta[:, :2] @ x.mT) + 3 * theta[:, 2:])


def _square(h: Tensor, y: Tensor) -> Tensor:
    return (h - y).square() / 2


def _logistic(h: Tensor, y: Tensor) -> Tensor:
    return softplus(-h * y)


def _real(lab: Lab) -> dict[str, Problem]:
    def threes(part: data.LabelledImages) -> tuple[Tensor, Tensor]:
        chosen = (part.labels == 3) | (part.labels == 8)
        return part.images[chosen].flatten(1), 2.0 * (part.labels[chosen] == 3) - 1

    (x, y), (u, v) = threes(data.digits("train")), threes(data.digits("test"))
    mean = x.mean(0)
    digits = Problem(x - mean, y, u - mean, v, _tanh(10.0), _logistic, 0.01, 0.01, (0.1, 0.2))

    table = data.diabetes()
    order = torch.randperm(len(table.target), generator=lab.fork("patients"))
    features, target = 21 * table.features[order], table.target[order]  # columns of unit variance
    target = (target - target[:342].mean()) / target[:342].std()
    halves = features[:342], target[:342], features[342:], target[342:]
    diabetes = Problem(*halves, _tanh(3.0), _square, 0.03, 0.03, (0.03, 0.03))

    grey = data.picture("chelsea")[:, 75:375].mean(-1)
    small = interpolate(grey[None, None], (32, 32), mode="area").flatten()
    small = (small - small.mean()) / small.std()
    axis = torch.linspace(-1, 1, 32)
    at = torch.cartesian_prod(axis, axis)
    picture = Problem(at, small, at, small, _wave, _square, 5e-4, 5e-4, (0.03, 0.03))
    return {"digits": digits, "diabetes": diabetes, "picture": picture}


def _exact(lab: Lab, config: Config, x: Tensor, y: Tensor) -> Tensor:
    """Play on a grid of neurons, all data sets at once; return the outputs of the optimum."""
    axis = torch.linspace(-6, 6, config.grid, dtype=torch.float64)
    theta, volume = torch.cartesian_prod(axis, axis), float(axis[1] - axis[0]) ** 2
    features, targets = _tanh(3.0)(theta, x.double()), y.double()
    normal = -theta.square().sum(-1) / 2
    start = (normal - torch.logsumexp(normal, 0) - math.log(volume)).repeat(len(y), 1)

    weights: dict[str, Any] = {"loss": _square, "decay": 0.05, "volume": volume}
    weights["conjugate"] = lambda g, y: g.square() / 2 + g * y
    runs = [(0.05, rate) for rate in config.stable] + [(0.01, rate) for rate in config.unstable]
    for temperature, rate in runs:
        arm = lab.arm(f"temperature {temperature}, rate {rate}")
        steps = round(config.horizon / rate)
        law, seen = start.clone(), {n: torch.zeros(steps, len(y)).double() for n in ("primal", "dual", "defect")}
        for step in arm.steps(steps, law, seen):
            found = transport.duality_gap(law, theta, features, targets, temperature=temperature, **weights)
            gap = found.primal - found.dual
            for name, value in zip(seen, (found.primal, found.dual, gap - temperature * found.divergence), strict=True):
                seen[name][step] = value
            arm.record("gap", gap.max())
            law.copy_(torch.logaddexp(law + math.log1p(-rate), found.log_gibbs + math.log(rate)))
        gaps, time = seen["primal"] - seen["dual"], torch.arange(steps, dtype=torch.float64)
        arm.metric("defect of the identity", seen["defect"].abs().max(), better="lower")
        arm.metric("highest dual above the lowest primal", (seen["dual"].amax(0) - seen["primal"].amin(0)).max())
        early = (gaps / gaps[0] * (1 - rate) ** -time[:, None])[1 : round(5 / rate) + 1]
        arm.metric("gap, part of the bound", early.amax(0), better="lower", replicated=True)
        arm.metric("gap at the end", gaps[-1], better="lower", replicated=True)
        arm.metric("gap of the last quarter", gaps[-(steps // 4) :].mean(0), better="lower", replicated=True)
        if temperature == 0.05:
            optimum = transport.duality_gap(law, theta, features, targets, temperature=temperature, **weights).outputs
    arms = [lab.arm(f"temperature {temperature}, rate {rate}") for temperature, rate in runs]
    still, swinging = arms[: len(config.stable)], arms[len(config.stable) :]
    lab.claim(
        "what lies between primal and dual is the divergence from the best answer, to 1e-8, and no dual value is above "
        "any primal one",
        *(arm["defect of the identity"] <= 1e-8 for arm in arms),
        *(arm["highest dual above the lowest primal"] <= 0 for arm in arms),
        scale="smoke",
    )
    lab.claim(
        "temperature 0.05, small rates: the gap is at most (1 - rate)^k of the first while k rate <= 5, and at most "
        "1e-6 at k rate = 10",
        *(arm["gap, part of the bound"] <= 1 for arm in still),
        *(arm["gap at the end"] <= 1e-6 for arm in still),
    )
    first, *halved = (arm["gap of the last quarter"] for arm in swinging)
    lab.claim(
        "temperature 0.01, the largest rate: the gap stalls at 0.05 or more; half the rate halves it or better, an "
        "eighth lowers it a thousandfold",
        first >= 0.05,
        halved[0] <= first / 2,
        halved[-1] <= first / 1000,
    )
    figure, panels = lab.subplots(1, 2, figsize=(11, 4), sharey=True)
    for panel, group, title in zip(panels, (still, swinging), ("temperature 0.05", "temperature 0.01"), strict=True):
        for arm, rate in zip(group, config.stable if group is still else config.unstable, strict=True):
            values = torch.tensor(arm.series("gap"))
            panel.plot(rate * torch.arange(len(values)), values, color=arm.colour, label=f"rate {rate}", linewidth=1)
        times = torch.linspace(0, config.horizon, 50)
        panel.plot(times, values[0] * torch.exp(-times), "k:", label="exp(-t)")
        panel.set(yscale="log", xlabel="steps times rate", title=title)
        panel.legend()
    panels[0].set_ylabel("primal less dual")
    lab.figure(
        "gap", figure, caption="Exact play on a grid, the largest gap over data sets: small rates keep the bound."
    )
    return optimum.float()


def _train(lab: Lab, config: Config, arm: Arm, name: str, problem: Problem, optimum: Tensor) -> Law:
    """Move a law of neurons; both arms begin with the same ones and take as many gradients of each."""
    size = len(problem.x[0]) + 1
    normal = torch.randn(config.particles, size, generator=lab.fork(f"neurons of {name}"))
    start = math.sqrt(problem.temperature / (2 * problem.decay)) * normal  # the best law without data
    feature, loss, heat, decay, step = problem[4:]
    common: dict[str, Any] = {"feature": feature, "loss": loss, "temperature": heat, "decay": decay}
    common |= {"step": step[arm.baseline], "generator": lab.fork(f"draws of {name}")}
    law: Law
    if arm.baseline:
        law = transport.MeanFieldLangevin(start, problem.x, problem.y, **common)
    else:
        mixing: dict[str, Any] = {"rate": config.rate, "steps": config.inner}
        law = transport.EntropicFictitiousPlay(start, problem.x, problem.y, **mixing, **common)
    mean = problem.feature(start, problem.unseen_x).mean(0)
    for _ in arm.steps(config.gradients // config.inner, law, mean, name=name):
        for _ in range(config.inner if arm.baseline else 1):
            law.step()
        samples = law.particles if isinstance(law, transport.MeanFieldLangevin) else law.chains
        mean.lerp_(problem.feature(samples, problem.unseen_x).mean(0), config.rate)
        arm.record(name + FIT, law.objective())
    path = torch.tensor(arm.series(name + FIT))
    last = path[-10:].mean()
    arm.metric(name + FIT, last, better="lower")
    late = config.inner * (1 + (path <= 1.2 * last).int().argmax())
    arm.metric(f"{name}: gradients until they are within 20 % of the end", late, better="lower")
    for of, outputs in (("", law.predict(problem.unseen_x)), (MEAN, mean)):
        if name in SCORES:
            arm.metric(of + SCORES[name], _score(outputs, problem), better="higher")
        elif name == "sine":
            off = (outputs - optimum).square().mean().sqrt()
            arm.metric(f"{of}sine: error of the outputs", off, better="lower")
    return law


Law = transport.MeanFieldLangevin | transport.EntropicFictitiousPlay


def _score(outputs: Tensor, problem: Problem) -> Tensor:
    if problem.loss is _logistic:
        return (outputs * problem.unseen_y > 0).float().mean()
    return 1 - (outputs - problem.unseen_y).square().mean() / problem.unseen_y.var(correction=0)
