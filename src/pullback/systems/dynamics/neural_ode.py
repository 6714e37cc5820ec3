"""Neural ordinary differential equations: a network's layers become one differential equation, solved adaptively.

The hidden state follows dy/dt = f(y, t; theta); a solver chooses its evaluations by a tolerance and the gradient
comes from an adjoint solve. Three models of the paper are trained: an ODE-net classifier, a continuous normalising
flow, and a latent ODE of irregular time series. Chen, Rubanova, Bettencourt, Duvenaud, NeurIPS 2018.

Smaller here: the classifier sees the real 8 x 8 digits of scikit-learn (paper: MNIST) with six channels, the flow
has 32 hidden units on two generated planar densities, the spirals (generated as in the paper, clockwise and
anti-clockwise, noisy, at irregular times) are fewer and trained for less than a minute.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy.integrate import solve_ivp
from sklearn.datasets import make_circles, make_moons
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

from pullback import data
from pullback.dynamics import (
    BackwardsEncoder,
    ContinuousFlow,
    GatedField,
    LatentODE,
    NeuralField,
    NeuralODE,
    convergence_order,
    odeint,
)
from pullback.gradients import saved_bytes
from pullback.lab import Lab, system


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    epochs: int = 6
    """Epochs of each classifier."""
    seeds: int = 2
    """Initialisations of each classifier."""
    channels: int = 6
    """Channels of the ODE-net and of the residual net."""
    flow_steps: int = 400
    """Training steps of each flow and density."""
    flow_units: int = 32
    """M of the continuous flow and K, the layers of the planar flow."""
    spirals: int = 300
    """Training sequences; a third as many are tested."""
    spiral_steps: int = 300
    """Training steps of each sequence model with 30 points (a third as many with 100)."""
    latent: int = 4
    """Size of the latent state."""


@system(
    "neural-ode",
    family="dynamics",
    title="Neural Ordinary Differential Equations",
    paper="Chen, Rubanova, Bettencourt, Duvenaud, NeurIPS 2018, arXiv 1806.07366",
    config=Config,
    smoke={"epochs": 1, "seeds": 1, "flow_steps": 3, "spirals": 20, "spiral_steps": 3},
    full={
        "epochs": 60,
        "channels": 64,
        "flow_steps": 10_000,
        "flow_units": 64,
        "spirals": 1000,
        "spiral_steps": 20_000,
    },
    data=(),
    blocks=(
        "dynamics.odeint",
        "dynamics.NeuralODE",
        "dynamics.ContinuousFlow",
        "dynamics.LatentODE",
        "dynamics.convergence_order",
        "gradients.saved_bytes",
    ),
)
def run(lab: Lab, config: Config) -> None:
    """Check the solver and its adjoints, then train the three models against their baselines."""
    lab.data("handwritten digits, 1 797 of 8 x 8 pixels", origin="real")
    lab.data("two moons, two circles and noisy spirals", origin="simulated")
    solvers(lab)
    adjoints(lab)
    classifiers(lab, config)
    densities(lab, config)
    sequences(lab, config)


# The solver: error against tolerance, order, a step for every sample


def lotka_volterra(t: Tensor, y: Tensor) -> Tensor:
    """Prey and predators."""
    prey, predators = y[..., 0], y[..., 1]
    return torch.stack([prey * (1.5 - predators), predators * (prey - 3.0)], -1)


def van_der_pol(t: Tensor, y: Tensor) -> Tensor:
    """The oscillator with mu = 1."""
    return torch.stack([y[..., 1], (1 - y[..., 0].square()) * y[..., 1] - y[..., 0]], -1)


FIXED = ("euler", "heun", "midpoint", "rk4", "leapfrog", "implicit_midpoint", "bosh3", "kvaerno3", "dopri5", "tsit5")
NOMINAL = dict(zip(FIXED, (1, 2, 2, 4, 2, 2, 3, 3, 5, 5), strict=True))


def solvers(lab: Lab) -> None:
    """Errors against DOP853, fitted orders, and what a sample's steps depend on."""
    t = torch.linspace(0, 8, 17, dtype=torch.float64)
    problems = {
        "Lotka-Volterra": (lotka_volterra, torch.tensor([[1.0, 1.0]], dtype=torch.float64)),
        "van der Pol": (van_der_pol, torch.tensor([[2.0, 0.0]], dtype=torch.float64)),
    }
    tolerances = [10.0**-k for k in range(3, 9)]
    figure, axes = lab.subplots(1, 2, figsize=(10, 3.8))
    worst, evaluations = 0.0, []
    for name, (field, y0) in problems.items():
        truth = _dop853(field, y0, t)
        for method in ("dopri5", "tsit5"):
            errors = []
            for rtol in tolerances:
                solution = odeint(field, y0, t, method=method, rtol=rtol, atol=1e-2 * rtol)
                errors.append(float((solution.y - truth).abs().max() / truth.abs().max()))
                worst = max(worst, errors[-1] / rtol)
                if method == "dopri5" and name == "van der Pol":
                    evaluations.append(solution.evaluations)
            axes[0].loglog(tolerances, errors, "o-", label=f"{name}, {method}")
    axes[0].loglog(tolerances, tolerances, "k:", label="error = tolerance")
    axes[0].set(xlabel="rtol", ylabel="largest error, relative to the largest state")
    axes[0].legend(fontsize=7)
    lab.metric("error / rtol, worst", worst, of="odeint", better="lower")
    lab.claim(
        "the error against DOP853 at rtol 1e-12 is at most 20 rtol for rtol 1e-3 to 1e-8 on Lotka-Volterra "
        "and van der Pol",
        worst <= 20,
        scale="smoke",
        worst_ratio=worst,
    )
    y0 = torch.tensor([[1.2, 0.3]], dtype=torch.float64)
    orders: dict[str, float] = {}
    rows = []
    exact = odeint(duffing, y0, [0.0, 4.0], rtol=1e-13, atol=1e-14).y[-1]
    for method in FIXED:
        # the asymptotic range: small steps, but for order 5 large enough to stay clear of rounding
        steps = [0.1, 0.08, 0.05, 0.04, 0.025] if NOMINAL[method] == 5 else [0.02, 0.0125, 0.01, 0.008, 0.005]
        fit = convergence_order(
            lambda h, method=method: odeint(duffing, y0, [0.0, 4.0], method=method, step=h).y[-1], exact, steps
        )
        orders[method] = fit.order
        rows.append(
            [method, NOMINAL[method], f"{fit.order:.3f}", f"[{fit.low:.2f}, {fit.high:.2f}]", f"{fit.errors[-1]:.1e}"]
        )
        axes[1].loglog(steps, fit.errors, "o-", label=f"{method} ({fit.order:.2f})")
    axes[1].set(xlabel="step", ylabel="error, Duffing oscillator")
    axes[1].legend(fontsize=7)
    lab.table("orders", ["method", "nominal order", "fitted", "95 % interval", "error at the smallest step"], rows)
    lab.figure(
        "solvers", figure, caption="Error against tolerance (left) and convergence of every method at fixed steps."
    )
    gap = max(abs(orders[m] - NOMINAL[m]) for m in FIXED)
    lab.claim("the fitted order of every method is within 0.15 of the nominal one", gap <= 0.15, scale="smoke", gap=gap)

    rates = torch.logspace(0, 2.5, 64, dtype=torch.float64).unsqueeze(1)
    start = torch.rand(64, 2, generator=lab.fork("stiffness"), dtype=torch.float64)

    def relaxation(rate: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda t, y: -rate * (y - torch.cos(t))

    options = {"rtol": 1e-5, "atol": 1e-7}
    batch = odeint(relaxation(rates), start, [0.0, 2.0], **options)
    shared = odeint(relaxation(rates), start, [0.0, 2.0], shared_step=True, **options)
    solo = torch.cat([odeint(relaxation(rates[i]), start[i : i + 1], [0.0, 2.0], **options).y[-1] for i in range(64)])
    apart, together = float((batch.y[-1] - solo).abs().max()), float((shared.y[-1] - solo).abs().max())
    lab.metric("distance to the solo solution", apart, of="per-sample steps", better="lower")
    lab.metric("distance to the solo solution", together, of="shared step", better="lower", baseline=True)
    lab.metric("steps, fewest and most of 64 samples", float(batch.accepted.min()), of="fewest")
    lab.metric("steps, fewest and most of 64 samples", float(batch.accepted.max()), of="most")
    lab.claim(
        "in a batch of 64 systems of mixed stiffness each sample equals its solo solution (1e-6); "
        "with a shared step it does not",
        apart <= 1e-6 < together,
        scale="smoke",
        per_sample=apart,
        shared=together,
    )
    lab.claim(
        "evaluations grow as the tolerance falls",
        all(a < b for a, b in itertools.pairwise(evaluations)),
        scale="smoke",
        evaluations=", ".join(map(str, evaluations)),
    )


def duffing(t: Tensor, y: Tensor) -> Tensor:
    """A forced particle in a double well: nonlinear, depends on time, and separable, so that leapfrog applies."""
    position, momentum = y[..., 0], y[..., 1]
    return torch.stack([momentum, position - position**3 + 0.3 * torch.cos(t[..., 0])], -1)


def _dop853(field: Callable[[Tensor, Tensor], Tensor], y0: Tensor, t: Tensor) -> Tensor:
    def rate(time: float, y: np.ndarray) -> np.ndarray:
        return field(torch.tensor(time), torch.from_numpy(y)).numpy()

    result = solve_ivp(rate, (float(t[0]), float(t[-1])), y0[0].numpy(), "DOP853", t.numpy(), rtol=1e-12, atol=1e-13)
    return torch.from_numpy(result.y.T).unsqueeze(1)


# The adjoints: exactness, memory, time

ADJOINTS = ("checkpoint", "backsolve", "interpolated", "unrolled", "symplectic")


def adjoints(lab: Lab) -> None:
    """Gradients on a linear system (closed form) and a tanh field (unrolled is the truth of the discretisation)."""
    g = lab.fork("adjoints")
    matrix = (torch.randn(8, 8, generator=g, dtype=torch.float64) / math.sqrt(8)).requires_grad_()
    start = torch.randn(16, 8, generator=g, dtype=torch.float64).requires_grad_()
    wanted = torch.autograd.grad((start @ torch.matrix_exp(matrix.T)).sin().sum(), [start, matrix])

    def linear_error(adjoint: str, rtol: float) -> float:
        solution = odeint(lambda t, y: y @ matrix.T, start, [0.0, 1.0], rtol=rtol, atol=1e-2 * rtol, adjoint=adjoint)
        grads = torch.autograd.grad(solution.y[-1].sin().sum(), [start, matrix])
        return max(float((a - b).norm() / b.norm()) for a, b in zip(grads, wanted, strict=True))

    torch_state = torch.Generator().manual_seed(lab.seed)
    field = TanhField(16, 64, torch_state).double()
    y0 = torch.randn(128, 16, generator=g, dtype=torch.float64).requires_grad_()

    def solve(adjoint: str, rtol: float = 1e-5) -> Tensor:
        return odeint(field, y0, [0.0, 1.0], rtol=rtol, atol=1e-2 * rtol, adjoint=adjoint).y[-1]

    grads = {a: torch.autograd.grad(solve(a).sin().sum(), [y0, *field.parameters()]) for a in ADJOINTS}
    times: dict[str, list[float]] = {a: [] for a in ADJOINTS}
    for _ in range(9):
        for adjoint in ADJOINTS:
            begin = time.process_time()
            torch.autograd.grad(solve(adjoint).sin().sum(), [y0, *field.parameters()])
            times[adjoint].append(time.process_time() - begin)
    ratio = {a: statistics.median(x / y for x, y in zip(times[a], times["unrolled"], strict=True)) for a in ADJOINTS}
    kept = {a: saved_bytes(solve, a).total for a in ADJOINTS}
    steps = int(odeint(field, y0, [0.0, 1.0], rtol=1e-5, atol=1e-7).accepted.sum())
    difference = {
        a: max(float((x - y).norm() / y.norm()) for x, y in zip(grads[a], grads["unrolled"], strict=True))
        for a in ADJOINTS
    }
    tolerances = [10.0**-k for k in range(3, 9)]
    linear = {a: [linear_error(a, rtol) for rtol in tolerances] for a in ADJOINTS}
    lab.table(
        "gradients",
        ["adjoint", "difference to unrolled", "error, linear, rtol 1e-5", "time / unrolled", "bytes kept"],
        [[a, f"{difference[a]:.1e}", f"{linear[a][2]:.1e}", f"{ratio[a]:.2f}", kept[a]] for a in ADJOINTS],
        caption="128 states of 16 numbers, a field of 64 tanh units, float64, rtol 1e-5; "
        "the linear system has a closed form.",
    )
    for a in ADJOINTS:
        lab.metric("forward and backward time / unrolled", ratio[a], of=a, better="lower", baseline=a == "unrolled")
        lab.metric("bytes kept for the gradient", kept[a], of=a, better="lower", baseline=a == "unrolled")
    figure, axes = lab.subplots(1, 1, figsize=(5.5, 3.8))
    for a in ADJOINTS:
        axes.loglog(tolerances, linear[a], "o-", label=a, alpha=0.7)
    axes.set(xlabel="rtol", ylabel="relative error of the gradient, linear system")
    axes.legend()
    lab.figure("adjoints", figure, caption="Gradient error against the closed form.")
    bound = steps * (16 + 2) * 8
    lab.claim(
        "the checkpoint gradient equals the unrolled one to 1e-10 and keeps at most accepted steps x "
        "(state + 2 numbers)",
        difference["checkpoint"] <= 1e-10 and kept["checkpoint"] <= bound,
        scale="smoke",
        difference=difference["checkpoint"],
        bytes=kept["checkpoint"],
        bound=bound,
    )
    lab.claim(
        "checkpoint takes at most 1.6 x the time of unrolled", ratio["checkpoint"] <= 1.6, ratio=ratio["checkpoint"]
    )
    loose, tight = (saved_bytes(solve, "backsolve", rtol).total for rtol in (1e-3, 1e-8))
    slope = float(np.polyfit(np.log(tolerances), np.log(linear["backsolve"]), 1)[0])
    lab.claim(
        "backsolve keeps the same bytes at rtol 1e-3 and 1e-8, and its gradient error falls with rtol "
        "(log-log slope >= 0.6)",
        loose == tight and slope >= 0.6,
        scale="smoke",
        bytes_loose=loose,
        bytes_tight=tight,
        slope=slope,
    )


class TanhField(nn.Module):
    """W2 tanh(W1 y + b1) + b2 with drawn weights."""

    def __init__(self, dim: int, hidden: int, generator: torch.Generator) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        for parameter in self.parameters():
            width = parameter.shape[-1]
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) / math.sqrt(width))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """dy/dt."""
        return self.outer(torch.tanh(self.inner(y)))


# ODE-net


class ConvField(nn.Module):
    """Two 3 x 3 convolutions that see the time as a further channel, normalised before each and at the end."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(1, channels) for _ in range(3))
        self.convolutions = nn.ModuleList(nn.Conv2d(channels + 1, channels, 3, padding=1) for _ in range(2))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """dy/dt, on ``[batch, channels, height, width]`` with times ``[batch, 1, 1, 1]``."""
        plane = t.expand(-1, 1, *y.shape[2:])
        for norm, convolution in zip(self.norms[:2], self.convolutions, strict=True):
            y = convolution(torch.cat([F.relu(norm(y)), plane], 1))
        return self.norms[2](y)


class ODENet(nn.Module):
    """Downsample, one ODE block, pool, linear."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(1, channels, 3, padding=1)
        self.block = NeuralODE(ConvField(channels), rtol=1e-3, atol=1e-3, batch_ndim=1)
        self.head = nn.Linear(4 * channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores; the solve is kept to read its counts."""
        self.solution = self.block(self.down(x))
        return self.head(F.adaptive_avg_pool2d(F.relu(self.solution.y[-1]), 2).flatten(1))


class ResidualBlock(nn.Module):
    """The field's layers, without time, as one residual step."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(1, channels) for _ in range(2))
        self.convolutions = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, y: Tensor) -> Tensor:
        """y + f(y)."""
        change = y
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            change = convolution(F.relu(norm(change)))
        return y + change


class ResidualNet(nn.Module):
    """The same with six residual blocks."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(1, channels, 3, padding=1)
        self.blocks = nn.Sequential(*(ResidualBlock(channels) for _ in range(6)))
        self.head = nn.Linear(4 * channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores."""
        return self.head(F.adaptive_avg_pool2d(F.relu(self.blocks(self.down(x))), 2).flatten(1))


RATES = {"ODE-net": 3e-2, "residual net": 1e-2, "perceptron": 3e-2}  # each the better of 1e-2 and 3e-2, on other seeds


def _size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def classifiers(lab: Lab, config: Config) -> None:
    """The ODE-net against a residual net of six blocks and a perceptron of its own size."""
    train, test = data.digits("train"), data.digits("test")
    units = round((_size(ODENet(config.channels)) - 10) / 75)  # 64 x units + units + 10 x units + 10 parameters
    makers: dict[str, Callable[[], nn.Module]] = {
        "ODE-net": lambda: ODENet(config.channels),
        "residual net": lambda: ResidualNet(config.channels),
        "perceptron": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, units), nn.ReLU(), nn.Linear(units, 10)),
    }
    accuracy: dict[str, list[float]] = {name: [] for name in makers}
    batch = 32
    for seed in range(config.seeds):
        for name, make in makers.items():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(int(torch.randint(2**31, (), generator=lab.fork(f"weights {name} {seed}"))))
                model = make()
            optimizer = torch.optim.Adam(model.parameters(), lr=RATES[name])
            schedule = torch.optim.lr_scheduler.OneCycleLR(
                optimizer, RATES[name], total_steps=config.epochs * math.ceil(len(train.labels) / batch)
            )
            order = lab.fork(f"batches {seed}")
            saved = {"model": model, "optimizer": optimizer, "schedule": schedule, "order": order}
            for _ in lab.steps(config.epochs, f"{name}, seed {seed}", save=saved):
                model.train()
                forward, backward, count = 0, 0, 0
                for chosen in torch.randperm(len(train.labels), generator=order).split(batch):
                    loss = F.cross_entropy(model(train.images[chosen].unsqueeze(1)), train.labels[chosen])
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    schedule.step()
                    count += 1
                    if isinstance(model, ODENet):
                        forward += model.solution.evaluations
                        backward += model.solution.backward_evaluations
                lab.record("training loss", loss, of=f"{name}, seed {seed}")
                lab.record("test accuracy", _accuracy(model, test), of=f"{name}, seed {seed}")
                if isinstance(model, ODENet):
                    lab.record("evaluations forward", forward / count, of=f"seed {seed}")
                    lab.record("evaluations backward", backward / count, of=f"seed {seed}")
            accuracy[name].append(lab.last("test accuracy", of=f"{name}, seed {seed}"))
    mean = {name: statistics.mean(values) for name, values in accuracy.items()}
    sizes = {name: _size(make()) for name, make in makers.items()}
    for name in makers:
        lab.metric("test accuracy", mean[name], of=name, better="higher", baseline=name != "ODE-net")
        lab.metric("parameters", sizes[name], of=name, better="lower", baseline=name != "ODE-net")
    figure, axes = lab.subplots(1, 2, figsize=(9, 3.4))
    for name in makers:
        axes[0].plot(
            lab.series("test accuracy", of=f"{name}, seed 0"), "o-", label=f"{name} ({sizes[name]} parameters)"
        )
    axes[0].set(xlabel="epoch", ylabel="test accuracy")
    axes[0].legend(fontsize=8)
    for kind in ("forward", "backward"):
        axes[1].plot(lab.series(f"evaluations {kind}", of="seed 0"), "o-", label=kind)
    axes[1].set(xlabel="epoch", ylabel="evaluations of the field a batch")
    axes[1].legend()
    lab.figure("ode-net", figure, caption="Digits: accuracy, and the evaluations that the ODE-net's solver chose.")
    lab.claim(
        "the ODE-net is within 1.0 point of the residual net or better, with at most a third of its parameters",
        mean["ODE-net"] >= mean["residual net"] - 0.010 and sizes["ODE-net"] * 3 <= sizes["residual net"],
        ode_net=mean["ODE-net"],
        residual_net=mean["residual net"],
        parameters=sizes["ODE-net"],
        residual_parameters=sizes["residual net"],
    )


def _accuracy(model: nn.Module, test: data.LabelledImages) -> float:
    model.eval()
    with torch.no_grad():
        return float((model(test.images.unsqueeze(1)).argmax(1) == test.labels).float().mean())


# Continuous normalising flow


class PlanarFlow(nn.Module):
    """K planar layers z + u tanh(w^T z + b), invertible for u . w >= -1, from the data to the base."""

    def __init__(self, dim: int, layers: int, generator: torch.Generator) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(layers, dim, generator=generator))
        self.u = nn.Parameter(0.1 * torch.randn(layers, dim, generator=generator))
        self.b = nn.Parameter(torch.randn(layers, generator=generator))

    def log_prob(self, x: Tensor) -> Tensor:
        """log N(z) + sum log |det|."""
        inner = (self.w * self.u).sum(1)
        u = self.u + ((F.softplus(inner) - 1 - inner) / self.w.square().sum(1)).unsqueeze(1) * self.w
        change = torch.zeros_like(x[:, 0])
        for w, v, b in zip(self.w, u, self.b, strict=True):
            h = torch.tanh(x @ w + b)
            change = change + torch.log1p((1 - h.square()) * (v @ w))
            x = x + h.unsqueeze(1) * v
        return Normal(0.0, 1.0).log_prob(x).sum(1) + change


def _planar_set(name: str, n: int, seed: int) -> Tensor:
    if name == "moons":
        x = make_moons(n, noise=0.08, random_state=seed)[0] * 1.5 - [0.75, 0.375]
    else:
        x = make_circles(n, noise=0.05, factor=0.5, random_state=seed)[0] * 2.0
    return torch.from_numpy(x).float()


def densities(lab: Lab, config: Config) -> None:
    """Maximum likelihood of the continuous flow and of a planar flow, the same steps and batches."""
    figure, axes = lab.subplots(2, 3, figsize=(9, 6))
    likelihood: dict[str, dict[str, float]] = {}
    for row, name in enumerate(("moons", "circles")):
        seed = int(torch.randint(2**31, (), generator=lab.fork(name)))
        train, test = _planar_set(name, 2000, seed), _planar_set(name, 1000, seed + 1)
        g = lab.fork(f"flow {name}")
        models: dict[str, nn.Module] = {
            "continuous flow": ContinuousFlow(
                GatedField(2, config.flow_units, generator=g), 2, method="rk4", step=0.125
            ),
            "planar flow": PlanarFlow(2, config.flow_units, g),
        }
        likelihood[name] = {}
        axes[row, 0].scatter(*test.T, s=2)
        axes[row, 0].set(title=f"{name}, test points", xlim=(-3, 3), ylim=(-3, 3), aspect="equal")
        for column, (arm, model) in enumerate(models.items(), start=1):
            optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.flow_steps)
            batches = lab.fork(f"batches {name}")
            saved = {"model": model, "optimizer": optimizer, "schedule": schedule, "batches": batches}
            for _ in lab.steps(config.flow_steps, f"{arm}, {name}", save=saved):
                x = train[torch.randint(len(train), (256,), generator=batches)]
                loss = -model.log_prob(x).mean()  # type: ignore[operator]
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                lab.record("negative log likelihood", loss, of=f"{arm}, {name}")
            with torch.no_grad():
                value = float(-model.log_prob(test).mean())  # type: ignore[operator]
                axis = torch.linspace(-3, 3, 80)
                grid = torch.cartesian_prod(axis, axis)
                density = model.log_prob(grid).exp().reshape(80, 80)  # type: ignore[operator]
            likelihood[name][arm] = value
            lab.metric(
                f"test negative log likelihood, {name}", value, of=arm, better="lower", baseline=arm == "planar flow"
            )
            axes[row, column].imshow(density.T, origin="lower", extent=(-3, 3, -3, 3))
            axes[row, column].set(title=f"{arm}, {value:.2f} nats")
    lab.figure("flows", figure, caption="Densities learned by maximum likelihood.")
    lab.claim(
        "after equal steps the continuous flow has the higher test likelihood than the planar flow on both densities",
        all(v["continuous flow"] <= v["planar flow"] for v in likelihood.values()),
        moons=likelihood["moons"]["continuous flow"],
        moons_planar=likelihood["moons"]["planar flow"],
        circles=likelihood["circles"]["continuous flow"],
        circles_planar=likelihood["circles"]["planar flow"],
    )


# Latent ODE


class Spirals(NamedTuple):
    """Times ``[n, steps]``, clean and noisy states ``[n, steps, 2]``; the first half is observed."""

    times: Tensor
    clean: Tensor
    noisy: Tensor


def spirals(n: int, generator: torch.Generator) -> Spirals:
    """Pieces of a clockwise and an anti-clockwise Archimedean-like spiral, from random starting angles."""
    times = torch.linspace(0, 16, 200).expand(n, 200)
    inward = (torch.arange(n) % 2 == 0).unsqueeze(1)
    begin = math.pi + 4 * math.pi * torch.rand(n, 1, generator=generator)  # anywhere on a spiral of three turns
    angle = begin + 1.5 * math.pi * times / 8
    growing = 0.1 * angle
    shrinking = 5.0 / (angle + 1.0)
    radius, turn = torch.where(inward, shrinking, growing), torch.where(inward, -angle, angle)
    clean = radius.unsqueeze(-1) * torch.stack([torch.cos(turn), torch.sin(turn)], -1)
    return Spirals(times, clean, clean + 0.05 * torch.randn(clean.shape, generator=generator))


def observed(sequence: Spirals, points: int, half: int, generator: torch.Generator) -> Spirals:
    """``points`` samples of one half of each sequence, without replacement, in order."""
    chosen = (
        100 * half + torch.rand(len(sequence.times), 100, generator=generator).argsort(1)[:, :points].sort(1).values
    )
    pair = chosen.unsqueeze(-1).expand(-1, -1, 2)
    return Spirals(sequence.times.gather(1, chosen), sequence.clean.gather(1, pair), sequence.noisy.gather(1, pair))


class RNNVAE(nn.Module):
    """The same encoder; the decoder is a recurrent network that reads the time gaps."""

    def __init__(self, latent: int, hidden: int, noise: float) -> None:
        super().__init__()
        self.encoder = BackwardsEncoder(2, latent, hidden=hidden)
        self.start, self.cell, self.out = nn.Linear(latent, hidden), nn.GRUCell(1, hidden), nn.Linear(hidden, 2)
        self.noise = noise

    def posterior(self, times: Tensor, values: Tensor) -> Normal:
        """q(z0 | x)."""
        mean, log_deviation = self.encoder(times, values, torch.ones_like(times)).chunk(2, -1)
        return Normal(mean, log_deviation.clamp(-10.0, 4.0).exp())

    def decode(self, z0: Tensor, times: Tensor) -> Tensor:
        """Observations at ``times``."""
        state, previous, states = torch.tanh(self.start(z0)), torch.zeros_like(times[:, :1]), []
        for column in times.split(1, 1):
            state, previous = self.cell(column - previous, state), column
            states.append(state)
        return self.out(torch.stack(states, 1))

    def bound(self, times: Tensor, values: Tensor, kl_weight: float, generator: torch.Generator) -> Tensor:
        """Evidence lower bound of each sequence."""
        q = self.posterior(times, values)
        z0 = q.mean + q.stddev * torch.randn(q.mean.shape, generator=generator)
        kl = kl_divergence(q, Normal(torch.zeros_like(z0), torch.ones_like(z0))).sum(1)
        return Normal(self.decode(z0, times), self.noise).log_prob(values).sum((1, 2)) - kl_weight * kl


def sequences(lab: Lab, config: Config) -> None:
    """Extrapolation of noisy spirals from 30 and from 100 irregular observations."""
    train = spirals(config.spirals, lab.fork("train spirals"))
    test = spirals(max(config.spirals // 3, 4), lab.fork("test spirals"))
    error: dict[int, dict[str, float]] = {}
    figure, axes = lab.subplots(2, 4, figsize=(11, 5.5))
    noise, hidden, batch = 0.1, 25, 64
    for points, steps in ((30, config.spiral_steps), (100, config.spiral_steps // 3)):
        times, _, values = observed(train, points, 0, lab.fork(f"observed {points}"))
        past = observed(test, points, 0, lab.fork(f"test observed {points}"))
        future = observed(test, points, 1, lab.fork(f"test future {points}"))
        queries = torch.cat([past.times, future.times], 1)  # as dense as in training: a recurrent decoder counts steps
        error[points] = {}
        for arm in ("latent ODE", "RNN-VAE"):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(int(torch.randint(2**31, (), generator=lab.fork(f"weights {arm}"))))
                model: LatentODE | RNNVAE
                if arm == "latent ODE":
                    decoder = nn.Sequential(nn.Linear(config.latent, 20), nn.ReLU(), nn.Linear(20, 2))
                    model = LatentODE(
                        BackwardsEncoder(2, config.latent, hidden=hidden),
                        NeuralField(config.latent, hidden=20),
                        decoder,
                        latent=config.latent,
                        noise=noise,
                        method="rk4",
                    )
                else:
                    model = RNNVAE(config.latent, hidden, noise)
            optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
            draws = lab.fork(f"draws {points}")
            saved = {"model": model, "optimizer": optimizer, "schedule": schedule, "draws": draws}
            for step in lab.steps(steps, f"{arm}, {points} points", save=saved):
                chosen = torch.randint(len(times), (batch,), generator=draws)
                weight = min(1.0, step / (0.5 * steps))
                if isinstance(model, LatentODE):
                    bound = model.elbo(times[chosen], values[chosen], kl_weight=weight, generator=draws).bound
                else:
                    bound = model.bound(times[chosen], values[chosen], weight, draws)
                loss = -bound.mean() / points
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 10.0)
                optimizer.step()
                schedule.step()
                lab.record("negative bound a point", loss, of=f"{arm}, {points} points")
            with torch.no_grad():
                foretold = model.decode(model.posterior(past.times, past.noisy).mean, queries)
            error[points][arm] = float((foretold[:, points:] - future.clean).square().sum(-1).mean().sqrt())
            lab.metric(
                f"extrapolation RMSE, {points} points",
                error[points][arm],
                of=arm,
                better="lower",
                baseline=arm == "RNN-VAE",
            )
            if points == 30:
                for i in range(4):
                    axis = axes[0 if arm == "latent ODE" else 1, i]
                    axis.plot(*test.clean[i].T, ":", label="truth")
                    axis.plot(*foretold[i].T, label=arm)
                    axis.plot(*past.noisy[i].T, ".", ms=4, label="observed")
                    axis.set(xlim=(-3, 3), ylim=(-3, 3), aspect="equal")
                axes[0 if arm == "latent ODE" else 1, 0].legend(fontsize=7)
    lab.figure("spirals", figure, caption="Four held-out spirals from 30 noisy observations of their first half.")
    lab.claim(
        "from 30 points the latent ODE extrapolates with at most 0.8 x the RMSE of the RNN-VAE",
        error[30]["latent ODE"] <= 0.8 * error[30]["RNN-VAE"],
        latent_ode=error[30]["latent ODE"],
        rnn_vae=error[30]["RNN-VAE"],
    )
