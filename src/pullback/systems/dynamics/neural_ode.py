"""Neural ordinary differential equations: a network's layers become one differential equation, solved adaptively.

The hidden state follows dy/dt = f(y, t; theta); a solver chooses its evaluations by a tolerance and the gradient
comes from an adjoint solve. Three models of the paper are trained: an ODE-net classifier, a continuous normalising
flow, and a latent ODE of irregular time series. Chen, Rubanova, Bettencourt, Duvenaud, NeurIPS 2018.

Smaller here: the classifier sees the real 8 x 8 digits of scikit-learn (paper: MNIST) with six channels and one
downsampling convolution, the flow has 32 hidden units on two generated planar densities; the simulated spirals are
those of the paper, the sequence models take hundreds of steps on them instead of thousands.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.integrate import solve_ivp
from sklearn.datasets import make_circles, make_moons
from torch import Tensor, nn
from torch.nn import functional as F

from pullback import data
from pullback.dynamics import (
    BackwardsEncoder,
    ContinuousFlow,
    ConvolutionalField,
    GatedField,
    LatentODE,
    NeuralField,
    NeuralODE,
    ODESolution,
    PlanarFlow,
    compare_adjoints,
    convergence_order,
    odeint,
)
from pullback.gradients import saved_bytes
from pullback.lab import Lab, system


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    epochs: int = 12
    """Epochs of each classifier."""
    seeds: int = 2
    """Initialisations of each classifier."""
    channels: int = 6
    """Channels of the ODE-net and of the residual net."""
    flow_steps: int = 300
    """Training steps of each flow and density."""
    flow_units: int = 32
    """M of the continuous flow and K, the layers of the planar flow."""
    spirals: int = 1000
    """Training sequences; a tenth as many are tested."""
    spiral_steps: int = 500
    """Training steps of each sequence model with 30 points (a fifth as many with 100)."""
    latent: int = 4
    """Size of the latent state."""


@system(
    "neural-ode",
    family="dynamics",
    title="Neural Ordinary Differential Equations",
    paper="Chen, Rubanova, Bettencourt, Duvenaud, NeurIPS 2018, arXiv 1806.07366",
    config=Config,
    smoke={"epochs": 1, "seeds": 1, "flow_steps": 3, "spirals": 40, "spiral_steps": 5},
    full={"epochs": 60, "channels": 64, "flow_steps": 10_000, "flow_units": 64, "spiral_steps": 20_000},
    data=(),
    blocks=(
        "dynamics.odeint",
        "dynamics.NeuralODE",
        "dynamics.ContinuousFlow",
        "dynamics.LatentODE",
        "dynamics.compare_adjoints",
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


def lotka_volterra(t: Tensor, y: Tensor) -> Tensor:
    """Prey and predators."""
    prey, predators = y[..., 0], y[..., 1]
    return torch.stack([prey * (1.5 - predators), predators * (prey - 3.0)], -1)


def van_der_pol(t: Tensor, y: Tensor) -> Tensor:
    """The oscillator with mu = 1."""
    return torch.stack([y[..., 1], (1 - y[..., 0].square()) * y[..., 1] - y[..., 0]], -1)


def duffing(t: Tensor, y: Tensor) -> Tensor:
    """A forced particle in a double well: nonlinear, depends on time, and separable, so that leapfrog applies."""
    position, momentum = y[..., 0], y[..., 1]
    return torch.stack([momentum, position - position**3 + 0.3 * torch.cos(t[..., 0])], -1)


def dop853(field: Callable[[Tensor, Tensor], Tensor], y0: Tensor, t: Tensor) -> Tensor:
    """States of scipy's method of order 8 at rtol 1e-12."""

    def rate(time: float, y: np.ndarray) -> np.ndarray:
        return field(torch.tensor(time), torch.from_numpy(y)).numpy()

    result = solve_ivp(rate, (float(t[0]), float(t[-1])), y0[0].numpy(), "DOP853", t.numpy(), rtol=1e-12, atol=1e-13)
    return torch.from_numpy(result.y.T).unsqueeze(1)


NOMINAL = {"euler": 1, "heun": 2, "midpoint": 2, "leapfrog": 2, "implicit_midpoint": 2}
NOMINAL |= {"bosh3": 3, "kvaerno3": 3, "rk4": 4, "dopri5": 5, "tsit5": 5}
TOLERANCES = [10.0**-k for k in range(3, 9)]


def solvers(lab: Lab) -> None:
    """Errors against DOP853, fitted orders, and what a sample's steps depend on."""
    t = torch.linspace(0, 8, 17, dtype=torch.float64)
    problems = {
        "Lotka-Volterra": (lotka_volterra, torch.tensor([[1.0, 1.0]], dtype=torch.float64)),
        "van der Pol": (van_der_pol, torch.tensor([[2.0, 0.0]], dtype=torch.float64)),
    }
    figure, axes = lab.subplots(1, 2, figsize=(10, 3.8))
    worst, evaluations = 0.0, []
    for name, (field, y0) in problems.items():
        truth = dop853(field, y0, t)
        for method in ("dopri5", "tsit5"):
            errors = []
            for rtol in TOLERANCES:
                solution = odeint(field, y0, t, method=method, rtol=rtol, atol=1e-2 * rtol)
                errors.append(float((solution.y - truth).abs().max() / truth.abs().max()))
                worst = max(worst, errors[-1] / rtol)
                if method == "dopri5" and name == "van der Pol":
                    evaluations.append(solution.evaluations)
            axes[0].loglog(TOLERANCES, errors, "o-", label=f"{name}, {method}")
    axes[0].loglog(TOLERANCES, TOLERANCES, "k:", label="error = tolerance")
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
    exact = odeint(duffing, y0, [0.0, 2.0], rtol=1e-13, atol=1e-14).y[-1]
    rows, gap = [], 0.0
    for method, nominal in NOMINAL.items():
        # the asymptotic range: small steps, but for order 5 large enough to stay clear of rounding
        steps = [0.1, 0.08, 0.05, 0.04, 0.025] if nominal == 5 else [0.02, 0.0125, 0.01, 0.008, 0.005]

        def end(h: float, method: str = method) -> Tensor:
            return odeint(duffing, y0, [0.0, 2.0], method=method, step=h).y[-1]

        fit = convergence_order(end, exact, steps)
        gap = max(gap, abs(fit.order - nominal))
        rows.append([method, nominal, f"{fit.order:.3f}", f"[{fit.low:.2f}, {fit.high:.2f}]", f"{fit.errors[-1]:.1e}"])
        axes[1].loglog(steps, fit.errors, "o-", label=f"{method} ({fit.order:.2f})")
    axes[1].set(xlabel="step", ylabel="error, Duffing oscillator")
    axes[1].legend(fontsize=7)
    lab.table("orders", ["method", "nominal order", "fitted", "95 % interval", "error at the smallest step"], rows)
    lab.figure(
        "solvers", figure, caption="Error against tolerance (left) and convergence of every method at fixed steps."
    )
    lab.claim("the fitted order of every method is within 0.15 of the nominal one", gap <= 0.15, scale="smoke", gap=gap)

    rates = torch.logspace(0, 2.5, 64, dtype=torch.float64).unsqueeze(1)
    start = torch.rand(64, 2, generator=lab.fork("stiffness"), dtype=torch.float64)

    def relaxation(rate: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda t, y: -rate * (y - torch.cos(t))

    batch = odeint(relaxation(rates), start, [0.0, 2.0])
    shared = odeint(relaxation(rates), start, [0.0, 2.0], shared_step=True)
    solo = torch.cat([odeint(relaxation(rates[i]), start[i : i + 1], [0.0, 2.0]).y[-1] for i in range(64)])
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

    field = NeuralField(16, hidden=64).double()
    for parameter in field.parameters():
        parameter.data = torch.randn(parameter.shape, generator=g, dtype=torch.float64) / math.sqrt(parameter.shape[-1])
    y0 = torch.randn(128, 16, generator=g, dtype=torch.float64).requires_grad_()

    cost = compare_adjoints(field, y0, [0.0, 1.0], list(field.parameters()), adjoints=ADJOINTS)
    steps = int(odeint(field, y0, [0.0, 1.0]).accepted.sum())
    linear = {a: [linear_error(a, rtol) for rtol in TOLERANCES] for a in ADJOINTS}
    rows = [
        [a, f"{c.difference:.1e}", f"{linear[a][2]:.1e}", f"{c.time_ratio:.2f}", c.saved_bytes] for a, c in cost.items()
    ]
    lab.table(
        "gradients",
        ["adjoint", "difference to unrolled", "error, linear, rtol 1e-5", "time / unrolled", "bytes kept"],
        rows,
        caption="128 states of 16 numbers, a field of 64 tanh units, float64, rtol 1e-5; "
        "the linear system has a closed form.",
    )
    for a, c in cost.items():
        plain = a == "unrolled"
        lab.metric("forward and backward time / unrolled", c.time_ratio, unit="x", of=a, better="lower", baseline=plain)
        lab.metric("bytes kept for the gradient", c.saved_bytes, of=a, better="lower", baseline=plain)
    figure, axes = lab.subplots(1, 1, figsize=(5.5, 3.8))
    for a, marker, width in zip(ADJOINTS, "o^vsx", (7, 2, 2, 4, 1), strict=True):  # the three exact ones coincide
        axes.loglog(TOLERANCES, linear[a], marker=marker, linewidth=width, label=a)
    axes.set(xlabel="rtol", ylabel="relative error of the gradient, linear system")
    axes.legend()
    lab.figure("adjoints", figure, caption="Gradient error against the closed form.")
    checkpoint, bound = cost["checkpoint"], steps * (16 + 2) * 8
    lab.claim(
        "the checkpoint gradient equals the unrolled one to 1e-10 and keeps at most accepted steps x "
        "(state + 2 numbers)",
        checkpoint.difference <= 1e-10 and checkpoint.saved_bytes <= bound,
        scale="smoke",
        difference=checkpoint.difference,
        bytes=checkpoint.saved_bytes,
        bound=bound,
    )
    lab.claim(
        "checkpoint takes at most 1.6 x the time of unrolled",
        checkpoint.time_ratio <= 1.6,
        ratio=checkpoint.time_ratio,
    )

    def backsolve(rtol: float) -> Tensor:
        return odeint(field, y0, [0.0, 1.0], rtol=rtol, atol=1e-2 * rtol, adjoint="backsolve").y[-1]

    loose, tight = (saved_bytes(backsolve, rtol).total for rtol in (1e-3, 1e-8))
    slope = float(np.polyfit(np.log(TOLERANCES), np.log(linear["backsolve"]), 1)[0])
    lab.claim(
        "backsolve keeps the same bytes at rtol 1e-3 and 1e-8, and its gradient error falls with rtol "
        "(log-log slope >= 0.6)",
        loose == tight and slope >= 0.6,
        scale="smoke",
        bytes_loose=loose,
        bytes_tight=tight,
        slope=slope,
    )


class Residual(nn.Module):
    """y + f(y) with the layers of the field, without time."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        layers = [(nn.GroupNorm(1, channels), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1)) for _ in range(2)]
        self.change = nn.Sequential(*itertools.chain(*layers))

    def forward(self, y: Tensor) -> Tensor:
        """One residual step."""
        return y + self.change(y)


class Classifier(nn.Module):
    """Downsample, ``middle``, normalise, pool, linear: an ODE-net or a residual net."""

    def __init__(self, channels: int, middle: nn.Module) -> None:
        super().__init__()
        self.down, self.middle = nn.Conv2d(1, channels, 4, stride=2, padding=1), middle
        self.norm, self.head = nn.GroupNorm(1, channels), nn.Linear(4 * channels, 10)
        self.solution: ODESolution | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Class scores; the solve of an ODE-net is kept to read its counts."""
        y = self.middle(self.down(x))
        if isinstance(y, ODESolution):
            self.solution, y = y, y.y[-1]
        return self.head(F.adaptive_avg_pool2d(F.relu(self.norm(y)), 2).flatten(1))


def classifiers(lab: Lab, config: Config) -> None:
    """The ODE-net against a residual net of six blocks and a perceptron of its own size."""
    train, test = data.digits("train"), data.digits("test")
    channels = config.channels

    def ode_net() -> nn.Module:
        block = NeuralODE(ConvolutionalField(channels), rtol=1e-3, atol=1e-3, batch_ndim=1)
        return Classifier(channels, block)

    def residual_net() -> nn.Module:
        return Classifier(channels, nn.Sequential(*(Residual(channels) for _ in range(6))))

    def size(model: nn.Module) -> int:
        return sum(p.numel() for p in model.parameters())

    def perceptron() -> nn.Module:
        units = round((size(ode_net()) - 10) / 75)  # 64 x units + units + 10 x units + 10 parameters
        return nn.Sequential(nn.Flatten(), nn.Linear(64, units), nn.ReLU(), nn.Linear(units, 10))

    makers = {"ODE-net": ode_net, "residual net": residual_net, "perceptron": perceptron}
    accuracy: dict[str, list[float]] = {name: [] for name in makers}
    # tried on seeds 100 and 101, 300 training digits held out: the ODE-net is better at 3e-2 than at 1e-2, the residual
    # net as good; the perceptron, untried, takes the same
    batch, rate = 32, 3e-2
    for seed in range(config.seeds):
        for name, make in makers.items():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(int(torch.randint(2**31, (), generator=lab.fork(f"weights {name} {seed}"))))
                model = make()
            optimizer = torch.optim.Adam(model.parameters(), lr=rate)
            schedule = torch.optim.lr_scheduler.OneCycleLR(
                optimizer, rate, total_steps=config.epochs * math.ceil(len(train.labels) / batch)
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
                    if isinstance(model, Classifier) and model.solution is not None:
                        forward += model.solution.evaluations
                        backward += model.solution.backward_evaluations
                lab.record("training loss", loss, of=f"{name}, seed {seed}")
                model.eval()
                with torch.no_grad():
                    correct = model(test.images.unsqueeze(1)).argmax(1) == test.labels
                lab.record("test accuracy", correct.float().mean(), of=f"{name}, seed {seed}")
                if name == "ODE-net":
                    lab.record("evaluations forward", forward / count, of=f"seed {seed}")
                    lab.record("evaluations backward", backward / count, of=f"seed {seed}")
            accuracy[name].append(lab.last("test accuracy", of=f"{name}, seed {seed}"))
    mean = {name: statistics.mean(values) for name, values in accuracy.items()}
    sizes = {name: size(make()) for name, make in makers.items()}
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
            "planar flow": PlanarFlow(2, config.flow_units, generator=g),
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


class RecurrentDecoder(LatentODE):
    """The baseline, RNN-VAE: a recurrent network that reads the time gaps in place of the differential equation."""

    def __init__(self, latent: int, noise: float) -> None:
        recurrent = nn.GRU(1, 25, batch_first=True)
        super().__init__(BackwardsEncoder(2, latent), recurrent, nn.Linear(25, 2), latent=latent, noise=noise)
        self.first = nn.Linear(latent, 25)

    def trajectory(self, z0: Tensor, times: Tensor) -> Tensor:
        """Recurrent states ``[steps, batch, hidden]``."""
        gaps = times.diff(dim=1, prepend=torch.zeros_like(times[:, :1])).unsqueeze(-1)
        return self.field(gaps, torch.tanh(self.first(z0))[None])[0].transpose(0, 1)


def sequences(lab: Lab, config: Config) -> None:
    """Extrapolation of noisy spirals from 30 and from 100 irregular observations."""
    noise, batch = 0.3, 64
    # Tried on other seeds, few runs each: the latent ODE was better at 2e-2 than at 1e-2, and at 4e-2 once better and
    # once worse; the RNN-VAE was as good at 1e-2 as at 2e-2, and at 4e-2 (tried once) not better.
    rates = {"latent ODE": 2e-2, "RNN-VAE": 1e-2}
    train = data.spirals(config.spirals, noise=noise, generator=lab.fork("train spirals"))
    test = data.spirals(max(config.spirals // 10, 4), noise=noise, generator=lab.fork("test spirals"))
    error: dict[tuple[str, str], float] = {}
    figure, axes = lab.subplots(2, 4, figsize=(11, 5.5))
    for points, steps in ((30, config.spiral_steps), (100, config.spiral_steps // 5)):
        times, _, values = train.observed(points, 0, 100, generator=lab.fork(f"observed {points}"))
        past = test.observed(points, 0, 100, generator=lab.fork(f"test observed {points}"))
        future = test.observed(points, 100, 200, generator=lab.fork(f"test future {points}"))
        # the paper asks for all 100 steps that follow; a recurrent decoder, which counts steps, is at home only where
        # they are as sparse as those it was trained on
        asked = {"all": (test.times[:, 100:], test.clean[:, 100:]), "as sparse": (future.times, future.clean)}
        for arm in ("latent ODE", "RNN-VAE"):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(int(torch.randint(2**31, (), generator=lab.fork(f"weights {arm}"))))
                model: LatentODE = RecurrentDecoder(config.latent, noise)
                if arm == "latent ODE":
                    model = LatentODE(
                        BackwardsEncoder(2, config.latent),
                        NeuralField(config.latent, hidden=20),
                        nn.Sequential(nn.Linear(config.latent, 20), nn.ReLU(), nn.Linear(20, 2)),
                        latent=config.latent,
                        noise=noise,
                        rtol=1e-3,
                        atol=1e-3,
                        adjoint="unrolled",
                    )
            optimizer = torch.optim.Adam(model.parameters(), lr=rates[arm])
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates[arm], total_steps=max(steps, 1))
            draws = lab.fork(f"draws {points}")
            saved = {"model": model, "optimizer": optimizer, "schedule": schedule, "draws": draws}
            for step in lab.steps(steps, f"{arm}, {points} points", save=saved):
                chosen = torch.randint(len(times), (batch,), generator=draws)
                weight = min(1.0, step / (0.5 * steps))
                loss = -model.elbo(times[chosen], values[chosen], kl_weight=weight, generator=draws).bound.mean()
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 10.0 * points)
                optimizer.step()
                schedule.step()
                lab.record("negative bound a point", loss / points, of=f"{arm}, {points} points")
            foretold = {}
            with torch.no_grad():
                z0 = model.posterior(past.times, past.noisy).mean
                for kind, (queries, truth) in asked.items():
                    foretold[kind] = model.decode(z0, torch.cat([past.times, queries], 1))
                    rmse = float((foretold[kind][:, points:] - truth).square().sum(-1).mean().sqrt())
                    name = f"extrapolation RMSE, {points} points, {kind} of the next 100 steps"
                    lab.metric(name, rmse, of=arm, better="lower", baseline=arm == "RNN-VAE")
                    error[f"{points} {kind}", arm] = rmse
            for i in range(4 if points == 30 else 0):
                axis = axes[0 if arm == "latent ODE" else 1, i]
                axis.plot(*test.clean[i].T, ":", label="truth")
                axis.plot(*foretold["as sparse"][i].T, label=arm)
                axis.plot(*past.noisy[i].T, ".", ms=4, label="observed")
                axis.set(aspect="equal")
                if i == 0:
                    axis.legend(fontsize=7)
    lab.figure("spirals", figure, caption="Four held-out spirals from 30 noisy observations of their first half.")
    for kind, wording in (("all", "all of the next 100 steps"), ("as sparse", "30 of the next 100 steps")):
        ours, baseline = error[f"30 {kind}", "latent ODE"], error[f"30 {kind}", "RNN-VAE"]
        lab.claim(
            f"from 30 points the latent ODE extrapolates to {wording} with at most 0.8 x the RMSE of the RNN-VAE",
            ours <= 0.8 * baseline,
            latent_ode=ours,
            rnn_vae=baseline,
        )
