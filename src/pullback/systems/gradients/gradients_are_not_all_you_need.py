"""Gradients of chaotic systems explode: when function values of a smoothed loss are worth more than backpropagation.

An unrolled system multiplies the Jacobians of its steps. Where the largest Lyapunov exponent is positive, gradients by
backpropagation grow exponentially with the horizon although the loss is bounded, and their variance over perturbed
parameters grows faster still; the variance of an evolution-strategies estimate of the same smoothed gradient is bounded
(Metz, Freeman, Schoenholz, Kachman, arXiv 2111.05803). Measured here on the paper's kinds of system: rigid bodies
(a double pendulum, two discs that collide in a box), a recurrent network, the inner loop of a learned optimiser; and on
maps and a flow whose exponents are known.

Smaller than in the paper: its simulator of robots is replaced by these two mechanisms, its learned optimiser by the
learned step size of momentum descent. The rows that drive the recurrent network are real digits, the inner problem of
the optimiser is real (wines); the mechanisms are simulated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from pullback import data, gradients
from pullback.dynamics import colliding_discs, double_pendulum, lorenz, rk4_step
from pullback.lab import Lab, above, at_least, system


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    samples: Annotated[int, at_least(16)] = 400
    """Perturbations of the parameter at which each estimator is sampled."""
    stretch: Annotated[float, above(0)] = 1.0
    """Factor of all lengths."""
    tuning_steps: Annotated[int, at_least(1)] = 20
    """Adam steps on the learned step size."""
    replicates: Annotated[int, at_least(1)] = 2
    """Initial weights of the network that the learned step size trains."""


class Case(NamedTuple):
    """A system with one parameter, run for ``steps``, its loss read ``every`` few of them."""

    step: Callable[..., Any]
    loss: Callable[[Any], Tensor]
    state: Any
    parameter: float
    steps: int
    every: int
    inputs: Tensor | None = None
    smoothing: float = 1e-3


@system(
    "gradients-are-not-all-you-need",
    family="gradients",
    title="Gradients are Not All You Need",
    paper="Metz, Freeman, Schoenholz, Kachman, arXiv 2111.05803",
    config=Config,
    smoke={"samples": 16, "stretch": 0.02, "tuning_steps": 1, "replicates": 1},
    full={"samples": 10_000, "stretch": 3.0, "tuning_steps": 200, "replicates": 5},
    data=("digits", "wine"),
    blocks=(
        "gradients.lyapunov_spectrum",
        "gradients.jacobian_spectrum",
        "gradients.gradient_variance",
        "gradients.evolution_gradient",
        "gradients.gradient_horizon",
        "gradients.unrolled_losses",
        "dynamics.colliding_discs",
        "dynamics.double_pendulum",
        "dynamics.lorenz",
    ),
)
def run(lab: Lab, config: Config) -> None:
    """Check known exponents, measure both estimators against the horizon, then tune a chaotic optimiser with each."""
    lab.data("rows of UCI digits drive the recurrent network; the learned optimiser fits UCI wine", origin="real")
    lab.data("maps, double pendulum, two discs in a box", origin="simulated")
    _known_exponents(lab, config)
    _horizons(lab, config)
    _tuning(lab, config)


def _known_exponents(lab: Lab, config: Config) -> None:
    count, h = round(100 * config.stretch) * 10, 0.02
    x = torch.rand(256, 3, generator=lab.fork("known"), dtype=torch.float64)
    cat = torch.tensor([[2.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    convection = partial(rk4_step, lorenz, torch.zeros(1), h=h)
    butterfly = 10 * x + torch.tensor([0.0, 0.0, 20.0])
    wait = torch.randint(count // 2, count, (len(x), 1), generator=lab.fork("phases"))
    for t in range(count):  # onto the attractor; by then the trajectories still turn in step, so each waits its time
        butterfly = torch.where(t < wait, convection(butterfly), butterfly)
    spectrum = partial(gradients.lyapunov_spectrum, steps=count, every=5, burn_in=50, batch_ndim=1)
    found = {
        "cat map": spectrum(lambda s: (s @ cat) % 1, x[:4, :2]),
        "logistic map": spectrum(lambda s: 4 * s * (1 - s), x[:, :1]),
        "Lorenz": spectrum(convection, butterfly, dt=h),
    }
    first = {name: lab.metric(f"exponent, {name}", s.exponents[:, 0].mean()) for name, s in found.items()}
    divergence = lab.metric("sum of exponents, Lorenz", found["Lorenz"].exponents.sum(-1).mean())
    golden = math.log((3 + 5**0.5) / 2)
    lab.claim(
        "exponents: cat map ln((3 + sqrt 5) / 2) within 0.1 %, logistic map at r = 4 ln 2 within 2 %, Lorenz 0.906 "
        "within 5 %, sum of Lorenz's -41/3 within 1 %",
        abs(first["cat map"] - golden) <= 1e-3 * golden,
        abs(first["logistic map"] - math.log(2)) <= 0.02 * math.log(2),
        abs(first["Lorenz"] - 0.906) <= 0.05 * 0.906,
        abs(divergence + 41 / 3) <= 0.01 * 41 / 3,
    )


class _Inner:
    """A small network that classifies wines by momentum descent, whose step size is the learned optimiser."""

    def __init__(self, generator: torch.Generator, hidden: int = 6) -> None:
        table = data.wine(dtype=torch.float64)
        self.x = (table.features - table.features.mean(0)) / table.features.std(0)
        self.y = nn.functional.one_hot(table.target, 3).to(self.x)
        self.w = 0.3 * torch.randn(16, hidden, generator=generator, dtype=torch.float64)  # both layers, side by side
        self.state = (self.w, torch.zeros_like(self.w))

    def logits(self, w: Tensor) -> Tensor:
        return (self.x @ w[:13]).tanh() @ w[13:].T

    def objective(self, w: Tensor) -> Tensor:
        return 5e-3 * w.square().sum() - (self.y * self.logits(w).log_softmax(-1)).sum(-1).mean()

    def step(self, state: tuple[Tensor, Tensor], q: Tensor) -> tuple[Tensor, Tensor]:
        momentum = 0.9 * state[1] + grad(self.objective)(state[0])
        return state[0] - q.exp() * momentum, momentum

    def brier(self, state: tuple[Tensor, Tensor]) -> Tensor:
        """The meta-loss, in [0, 2]."""
        return (self.logits(state[0]).softmax(-1) - self.y).square().sum(-1).mean()

    def after(self, steps: int, limit: Tensor | None, truncate: int | None, p: Mapping[str, Tensor]) -> Tensor:
        """The meta-loss after some steps; with a ``limit``, ``q`` is the logit of the step size over it."""
        step = partial(self.step, q=p["q"] if limit is None else limit + nn.functional.logsigmoid(p["q"]))
        return gradients.unrolled_losses(step, self.brier, self.state, steps=steps, truncate=truncate)[0]


def _cases(lab: Lab, config: Config) -> tuple[dict[str, Case], dict[str, Case]]:
    """Return the chaotic and the stable systems; ``q`` is a growth rate, a torque, a mass, a gain, a log step size."""
    draw, units = lab.fork("cases"), 64
    weight, drive, readout = (torch.randn(units, n, generator=draw, dtype=torch.float64) for n in (units, 8, 1))
    rows = data.digits("train").images.double().flatten(0, 1) - 0.3
    rows = rows[int(torch.randint(len(rows) - 400, (), generator=draw)) :]
    rods = torch.tensor([2.0, 2.5, 0.0, 0.0], dtype=torch.float64)
    discs = torch.tensor([[[0.3, 0.35], [0.7, 0.6]], [[0.7, 0.2], [-0.3, 0.9]]], dtype=torch.float64)
    rods[:2] += 0.2 * torch.rand(2, generator=draw, dtype=torch.float64)
    discs[1] += 0.2 * torch.rand(2, 2, generator=draw, dtype=torch.float64)
    inner = _Inner(draw)

    def pendulum(s: Tensor, q: Tensor, friction: float = 0.0) -> Tensor:
        return rk4_step(partial(double_pendulum, torque=q, friction=friction), torch.zeros(1), s, 0.03)

    def network(h: Tensor, q: Tensor, row: Tensor) -> Tensor:
        return (q * (weight @ h) / units**0.5 + 0.2 * (drive @ row)).tanh()

    def read(h: Tensor) -> Tensor:
        return (h @ readout).square().mean() / units

    def long(steps: int, every: int) -> tuple[int, int]:
        return max(2, round(config.stretch * steps / every)) * every, every

    lines, damped = rows[: long(100, 2)[0]], partial(pendulum, friction=3.0)
    chaotic = {
        "logistic map": Case(lambda x, q: q * x * (1 - x), lambda x: x, rods.new_tensor(0.3), 3.9, *long(60, 1)),
        "double pendulum": Case(pendulum, lambda s: s[:2].sin().sum(), rods, 0.0, *long(450, 10)),
        "colliding discs": Case(colliding_discs, lambda s: (s[0, 0] - 0.5).square().sum(), discs, 1.0, *long(100, 2)),
        "recurrent network": Case(network, read, rods.new_zeros(units), 2.5, *long(100, 2), lines),
        "learned optimiser": Case(inner.step, inner.brier, inner.state, math.log(8), *long(80, 1), None, 1e-6),
    }
    stable = {
        "logistic map, r = 2.5": chaotic["logistic map"]._replace(parameter=2.5),
        "pendulum with friction": chaotic["double pendulum"]._replace(step=damped, state=0.2 * rods, parameter=1.0),
        "network of gain 0.5": chaotic["recurrent network"]._replace(parameter=0.5),
    }
    return chaotic, stable


def _problem(case: Case, initial: bool) -> tuple[Callable[..., Any], Any, dict[str, Tensor]]:
    """Return step, state and parameters: ``q``, or the initial state at that ``q``."""
    q = torch.tensor(case.parameter, dtype=torch.float64)
    if initial:
        return lambda s, p, *drive: case.step(s, q, *drive), lambda p: p["s"], {"s": case.state}
    return lambda s, p, *drive: case.step(s, p["q"], *drive), case.state, {"q": q}


def _horizons(lab: Lab, config: Config) -> None:
    """Growth, variance of both estimators and the horizon where they cross, in each system."""
    backprop, evolution = lab.arm("backpropagation", baseline=True), lab.arm("evolution strategies")
    chaotic, stable = _cases(lab, config)
    initial = {f"{name}, initial state": case for name, case in stable.items()}  # what the gradient is taken in
    for name, case in (chaotic | stable | initial).items():
        words: dict[str, Any] = {"samples": config.samples, "chunk": config.samples, "trajectories": 64}
        words |= {"smoothing": case.smoothing, "max_steps": case.steps, "every": case.every, "inputs": case.inputs}
        step, state, p = _problem(case, name in initial)
        for _ in backprop.steps(1, {}, name=name):
            found = gradients.gradient_horizon(step, case.loss, state, p, generator=lab.fork("perturbed"), **words)
            for arm, moments in ((backprop, found.backprop), (evolution, found.evolution)):
                for t, variance in zip(found.steps.tolist(), moments.variance, strict=True):
                    arm.record(f"variance, {name}", variance, t)
                arm.metric(f"log10 variance, {name}", moments.variance[-1].log10())
            bound = ((found.evolution.high - found.evolution.low) / (2 * case.smoothing)).square()
            excess = (found.evolution.variance / bound).max() / sum(t.numel() for t in p.values())
            evolution.metric(f"largest variance over its bound, {name}", excess)
            for key in ("growth", "exponent", "crossing", "predicted", "by_exponent"):
                backprop.metric(f"{key}, {name}", getattr(found, key))

    rate = {name: backprop[f"growth, {name}"] / backprop[f"exponent, {name}"] for name in chaotic | stable | initial}
    lab.claim(
        "chaotic systems: the mean of the log norm of the gradient grows at the Lyapunov exponent within 15 %",
        *(abs(rate[name] - 1) <= 0.15 for name in chaotic),
    )
    lab.claim(
        "stable systems: the gradient in the initial state fades at the exponent within 15 %; that in the parameter, "
        "which enters every step, at less than a fifth of it",
        *(abs(rate[name] - 1) <= 0.15 for name in initial),
        *(abs(rate[name]) <= 0.2 for name in stable),
    )
    key = "log10 variance"
    lab.claim(
        "at the longest horizon evolution strategies have at most 1e-6 of the variance of backpropagation in every "
        "chaotic system, and never more than (range of the loss)^2 / (4 s^2); in every stable one, at least 100 times "
        "as much as backpropagation",
        *(backprop[f"{key}, {name}"] - evolution[f"{key}, {name}"] >= 6 for name in chaotic),
        *(evolution[f"largest variance over its bound, {name}"] <= 1 for name in chaotic),
        *(evolution[f"{key}, {name}"] - backprop[f"{key}, {name}"] >= 2 for name in stable),
    )
    crossing = {name: backprop[f"crossing, {name}"] for name in chaotic}
    ratio = {name: backprop[f"predicted, {name}"] / crossing[name] for name in chaotic}
    lab.claim(
        "the growth of the variance at short horizons predicts where the variances cross within a factor 1.5 (learned "
        "optimiser, which is far from its attractor: 2); the exponent puts it too late in every chaotic system",
        *((ratio[name] <= (2 if "learned" in name else 1.5)) for name in chaotic),
        *((ratio[name] >= (1 / 2 if "learned" in name else 1 / 1.5)) for name in chaotic),
        *(backprop[f"by_exponent, {name}"] > crossing[name] for name in chaotic),
    )
    _draw(lab, config, chaotic)


def _losses(case: Case, q: Tensor) -> Tensor:
    words: dict[str, Any] = {"steps": case.steps, "every": case.every, "inputs": case.inputs}
    return gradients.unrolled_losses(lambda s, *drive: case.step(s, q, *drive), case.loss, case.state, **words)


def _draw(lab: Lab, config: Config, cases: dict[str, Case]) -> None:
    figure, axes = lab.subplots(2, len(cases), figsize=(15, 5.5))
    offsets, backprop = torch.linspace(-3, 3, 301, dtype=torch.float64), lab.arms["backpropagation"]
    for (name, case), (top, bottom) in zip(cases.items(), axes.T, strict=True):
        steps = range(case.every, case.steps + 1, case.every)
        for label, arm in lab.arms.items():
            top.plot(steps, arm.series(f"variance, {name}"), color=arm.colour, label=label)
        top.axvline(backprop[f"predicted, {name}"], color="k", linestyle=":", label="predicted crossing")
        top.set(yscale="log", title=name, xlabel="steps")
        values = vmap(partial(_losses, case))(case.parameter + case.smoothing * offsets)
        for i, width in ((len(steps) - 1, 0.6), (len(steps) // 6, 1.8)):
            bottom.plot(offsets, values[:, i], linewidth=width, label=f"{steps[i]} steps")
        bottom.set(xlabel="offset of the parameter / s", ylabel="loss")
        top.legend(fontsize=7, loc="lower right")
        bottom.legend(fontsize=7, loc="upper right", frameon=True)
    caption = "Variance of a sample of the gradient against the horizon; the loss along the parameter at two horizons."
    lab.figure("variance and landscape", figure, caption)


def _tuning(lab: Lab, config: Config) -> None:
    """Learn the step size of the inner optimiser, starting where it is chaotic, with each remedy."""
    arms = {name: lab.arm(name) for name in (*lab.arms, "clipped", "truncated", "stable parameter")}
    for _ in lab.replicates(config.replicates):
        inner = _Inner(lab.fork("inner weights"))
        # Momentum descent is stable below 2 (1 + 0.9) / sharpness, the largest singular value of the Hessian.
        hessian = gradients.jacobian_spectrum(grad(inner.objective), inner.w, count=1, generator=lab.fork("sharpness"))
        for name, arm in arms.items():
            limit = (3.8 / hessian.values[0]).log() if name == "stable parameter" else None
            loss = partial(inner.after, max(1, round(25 * config.stretch)), limit, 5 if name == "truncated" else None)
            q = torch.tensor(math.log(8.0) if limit is None else 3.0, dtype=torch.float64)
            optimizer, draws = torch.optim.Adam([q], lr=0.15), lab.fork("perturbations of q")
            words: dict[str, Any] = {"smoothing": 0.3, "generator": draws, "chunk": 12}
            for _ in arm.steps(config.tuning_steps, q, optimizer, draws, name="tune"):
                if name == "evolution strategies":  # two runs a pair; backpropagation costs three
                    q.grad = gradients.evolution_gradient(loss, {"q": q}, pairs=12, **words).gradient["q"]
                else:
                    q.grad = gradients.gradient_variance(loss, {"q": q}, samples=12, **words).mean["q"]
                if name == "clipped":
                    nn.utils.clip_grad_norm_(q, 1.0)
                optimizer.step()
                arm.record("q", q)
            words |= {"generator": lab.fork("test"), "pairs": 64}
            arm.metric("smoothed loss", gradients.evolution_gradient(loss, {"q": q}, **words).value, better="lower")
    plain, ours = (arms[n]["smoothed loss"] for n in ("backpropagation", "evolution strategies"))
    lab.claim("tuned from a chaotic step size, evolution strategies reach at most half of the loss", ours <= plain / 2)
    lab.bars("smoothed loss", caption="Loss of the inner network at the end, over perturbed step sizes.")
