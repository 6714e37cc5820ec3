"""Neural ordinary differential equations: a network's layers become one differential equation, solved adaptively.

The hidden state follows dy/dt = f(y, t; theta); a solver chooses its evaluations by a tolerance and the gradient
comes from an adjoint solve. Three models of the paper are trained: an ODE-net classifier, a continuous normalising
flow, and a latent ODE of irregular time series. Chen, Rubanova, Bettencourt, Duvenaud, NeurIPS 2018.

Smaller here: real digits of 8 x 8 pixels (paper: MNIST) and six channels, 32 hidden units of the flow, and 800 steps
for the models of spirals, which see 0.6 pi; the authors' code observes 1.2 pi (it asks for 1 000 samples of a spiral,
makes 500, observes 100), which takes more steps than a minute has. What does not show here: a perceptron of the size of
the ODE-net reads these digits as well, on two moons both flows are level, and an autoregressive network that is asked
at gaps like those of its training foretells about as well as the latent ODE.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import torch
from scipy.integrate import solve_ivp
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector

from pullback import data, dynamics
from pullback.dynamics import odeint
from pullback.gradients import saved_bytes
from pullback.lab import Arm, Lab, above, at_least, system


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    tolerances: Annotated[tuple[float, ...], above(0)] = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)
    """Relative tolerances at which solvers and gradients are judged, three or more."""
    rounds: Annotated[int, at_least(1)] = 7
    """Timings of each adjoint, in turn."""
    replicates: Annotated[int, at_least(1)] = 3
    """Initialisations of each classifier."""
    digit_steps: Annotated[int, at_least(1)] = 368
    """Training steps of each classifier, of 64 digits: 16 epochs."""
    channels: Annotated[int, at_least(1)] = 6
    """Channels of the ODE-net and of the residual net."""
    flow_steps: Annotated[int, at_least(1)] = 1000
    """Training steps of each flow."""
    spiral_steps: Annotated[int, at_least(1)] = 800
    """Training steps of each sequence model."""


@system(
    "neural-ode",
    family="dynamics",
    title="Neural Ordinary Differential Equations",
    paper="Chen, Rubanova, Bettencourt, Duvenaud, NeurIPS 2018, arXiv 1806.07366",
    config=Config,
    smoke={"tolerances": (1e-3, 1e-4, 1e-5), "rounds": 1, "replicates": 1}
    | {"digit_steps": 2, "flow_steps": 2, "spiral_steps": 2},
    full={"digit_steps": 56_000, "channels": 64, "flow_steps": 10_000, "spiral_steps": 20_000},
    data=(),
    blocks=("dynamics.odeint", "dynamics.NeuralODE", "dynamics.ContinuousFlow", "dynamics.LatentODE"),
)
def run(lab: Lab, config: Config) -> None:
    """Check the solver and its adjoints, then train the three models against their baselines."""
    lab.data("handwritten digits, 1 797 of 8 x 8 pixels", origin="real")
    lab.data("two circles and noisy spirals", origin="simulated")
    solvers(lab, config)
    adjoints(lab, config)
    classifiers(lab, config)
    densities(lab, config)
    sequences(lab, config)


def solvers(lab: Lab, config: Config) -> None:
    """What all rests on: errors of the adaptive solver, orders of all methods, and what a sample's steps depend on."""
    figure, axes = lab.subplots(1, 2, figsize=(11, 3.8))
    t, ratios, evaluations = torch.linspace(0, 8, 17, dtype=torch.float64), [], []
    for field, start in ((dynamics.lotka_volterra, [1.0, 1.0]), (dynamics.van_der_pol, [2.0, 0.0])):
        rate = partial(lambda f, s, y: f(torch.tensor(s), torch.from_numpy(y)).numpy(), field)
        truth = torch.from_numpy(solve_ivp(rate, (0, 8), start, "DOP853", t.numpy(), rtol=1e-12, atol=1e-13).y.T)
        y0 = torch.tensor([start], dtype=torch.float64)
        solutions = [odeint(field, y0, t, rtol=rtol, atol=1e-2 * rtol) for rtol in config.tolerances]
        errors = [float((s.y[:, 0] - truth).abs().max() / truth.abs().max()) for s in solutions]
        ratios += [error / rtol for error, rtol in zip(errors, config.tolerances, strict=True)]
        evaluations.append([s.evaluations for s in solutions])
        axes[0].loglog(config.tolerances, errors, "o-", label=field.__name__.replace("_", " "))
    axes[0].loglog(config.tolerances, config.tolerances, "k:", label="error = tolerance")
    axes[0].set(xlabel="rtol", ylabel="largest error, relative to the largest state")
    worst = lab.arm("odeint").metric("error / rtol, worst", max(ratios), better="lower")
    lab.claim("the error against DOP853 is at most 20 rtol, for two oscillators", worst <= 20, scale="smoke")
    more = [a < b for row in evaluations for a, b in itertools.pairwise(row)]
    lab.claim("evaluations grow as the tolerance falls", all(more), scale="smoke", van_der_pol=str(evaluations[-1]))

    y0, gaps = torch.tensor([[1.2, 0.3]], dtype=torch.float64), []
    exact = odeint(dynamics.duffing, y0, [0.0, 2.0], rtol=1e-13, atol=1e-14).y[-1]
    for method, tableau in dynamics.METHODS.items():
        # the asymptotic range: small steps, but for high orders large enough to stay clear of rounding
        steps = {5: [0.1, 0.08, 0.05], 6: [0.2, 0.16, 0.1], 8: [0.5, 0.4, 0.25]}.get(tableau.order, [0.08, 0.05, 0.04])
        ends = {h: odeint(dynamics.duffing, y0, [0.0, 2.0], method=method, step=h).y[-1] for h in steps}
        fit = dynamics.convergence_order(ends.__getitem__, exact, steps)
        gaps.append(abs(fit.order - tableau.order))
        axes[1].loglog(steps, fit.errors, marker=".os^DvP*X"[tableau.order], label=f"{method} ({fit.order:.2f})")
    axes[1].set(xlabel="step", ylabel="error, Duffing oscillator")
    axes[0].legend(fontsize=7)
    axes[1].legend(fontsize=6, loc="center left", bbox_to_anchor=(1, 0.5))
    lab.figure("solvers", figure, "Error against tolerance (left); orders of convergence (right: marker, in brackets).")
    lab.claim("fitted orders are within 0.15 of the nominal ones", max(gaps) <= 0.15, scale="smoke", largest=max(gaps))

    rates = torch.logspace(0, 2.5, 64, dtype=torch.float64).unsqueeze(1)
    starts = torch.rand(64, 2, generator=lab.fork("stiffness"), dtype=torch.float64)

    def relaxed(which: slice, shared_step: bool = False) -> Tensor:
        decay = partial(lambda rate, t, y: rate * (torch.cos(t) - y), rates[which])
        return odeint(decay, starts[which], [0, 2], shared_step=shared_step).y[-1]

    solo = torch.cat([relaxed(slice(i, i + 1)) for i in range(0, 64, 21)])
    distances = [(relaxed(slice(None), shared)[::21] - solo).abs().max() for shared in (False, True)]
    own = lab.arm("own steps").metric("distance to the solo solution", distances[0])
    one = lab.arm("one step for all", baseline=True).metric("distance to the solo solution", distances[1])
    statement = "in a batch of 64 systems of mixed stiffness each equals its solo solution (1e-6)"
    lab.claim(f"{statement}; with one step for all it does not", own <= 1e-6, one > 1e-6, scale="smoke")


def adjoints(lab: Lab, config: Config) -> None:
    """Section 2: gradients of a linear system (closed form) and of a tanh field, with their time and memory."""
    g = lab.fork("adjoints")
    matrix = (torch.randn(8, 8, generator=g, dtype=torch.float64) / math.sqrt(8)).requires_grad_()
    start = torch.randn(16, 8, generator=g, dtype=torch.float64).requires_grad_()
    closed_form = torch.autograd.grad((start @ torch.matrix_exp(matrix.T)).sin().sum(), [start, matrix])
    arms = [lab.arm(name, baseline=name == "unrolled") for name in dynamics.ADJOINTS]
    with arms[0].weights():
        field = dynamics.NeuralField(16, hidden=(64,), activation=nn.Tanh).double()
    y0 = torch.randn(128, 16, generator=g, dtype=torch.float64).requires_grad_()

    def solve(rate: Any, start: Tensor, adjoint: str, rtol: float = 1e-5) -> Tensor:
        return odeint(rate, start, [0.0, 1.0], adjoint=adjoint, rtol=rtol, atol=1e-2 * rtol).y[-1]

    def gradients(rate: Any, inputs: list[Tensor], adjoint: str, rtol: float = 1e-5) -> tuple[Tensor, ...]:
        return torch.autograd.grad(solve(rate, inputs[0], adjoint, rtol).sin().sum(), inputs)

    def distance(gradients: tuple[Tensor, ...], truth: tuple[Tensor, ...]) -> float:
        return max(float((a - b).norm() / b.norm()) for a, b in zip(gradients, truth, strict=True))

    kept = partial(saved_bytes, solve, field, y0)
    linear = partial(gradients, lambda t, y: y @ matrix.T, [start, matrix])
    learned = partial(gradients, field, [y0, *field.parameters()])
    race, exact = lab.race({a.name: partial(learned, a.name) for a in arms}, rounds=config.rounds), learned("unrolled")
    for arm in arms:
        arm.metric("difference to the unrolled gradient", distance(learned(arm.name), exact), better="lower")
        arm.metric("time / unrolled", race.ratio(arm.name, "unrolled"), better="lower", unit="x")
        arm.metric("bytes kept for the gradient", kept(arm.name).total, better="lower", unit="bytes")
    errors = {a.name: [distance(linear(a.name, rtol), closed_form) for rtol in config.tolerances] for a in arms}
    caption = "Relative error of the gradient of a linear system; checkpoint, unrolled and symplectic coincide."
    fits = lab.scaling(config.tolerances, errors, name="adjoints", xlabel="rtol", ylabel="error", caption=caption)
    checkpoint, steps = lab.arm("checkpoint"), int(odeint(field, y0, [0.0, 1.0]).accepted.sum())
    lab.claim(
        "the checkpoint gradient equals the unrolled one to 1e-10 and keeps at most steps x (state + 2 numbers)",
        checkpoint["difference to the unrolled gradient"] <= 1e-10,
        checkpoint["bytes kept for the gradient"] <= steps * (16 + 2) * 8,
        scale="smoke",
    )
    lab.claim("checkpoint takes at most 1.6 x the time of unrolled (one thread)", checkpoint["time / unrolled"] <= 1.6)
    loose, tight = (kept("backsolve", rtol).total for rtol in (1e-3, 1e-8))
    statement = "backsolve keeps the same bytes at rtol 1e-3 and 1e-8, and its gradient error falls with rtol"
    lab.claim(f"{statement} (log-log slope >= 0.6)", loose == tight, fits["backsolve"].exponent >= 0.6)


def classifiers(lab: Lab, config: Config) -> None:
    """Section 3: the ODE-net against a residual net of six blocks and a perceptron of its own size."""
    train, test = data.digits("train"), data.digits("test")
    images, held_out, channels = train.images.unsqueeze(1), test.images.unsqueeze(1), config.channels

    def classifier(*middle: nn.Module) -> nn.Sequential:
        head = (nn.GroupNorm(1, channels), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        return nn.Sequential(nn.Conv2d(1, channels, 4, 2, padding=1), *middle, *head, nn.Linear(4 * channels, 10))

    def ode_net() -> nn.Sequential:
        # low order and a loose tolerance: the gradient is exact for the steps that were taken
        solver: Any = {"method": "bosh3", "rtol": 1e-2, "atol": 1e-2, "adjoint": "unrolled"}
        field = dynamics.ConvolutionalField(channels)
        return classifier(dynamics.NeuralODE(field, final=True, batch_ndim=1, **solver))

    def perceptron() -> nn.Sequential:
        units = round((parameters_to_vector(ode_net().parameters()).numel() - 10) / 75)  # 75 a unit, and 10
        return nn.Sequential(nn.Flatten(), nn.Linear(64, units), nn.ReLU(), nn.Linear(units, 10))

    ours, residual, plain = (lab.arm(n, baseline=n != "ODE-net") for n in ("ODE-net", "residual net", "perceptron"))
    makers: dict[Arm, Callable[[], nn.Sequential]] = {ours: ode_net, plain: perceptron}
    makers[residual] = lambda: classifier(*(dynamics.ResidualBlock(channels) for _ in range(6)))
    for _ in lab.replicates(config.replicates):
        for arm, make in makers.items():
            with arm.weights():
                model: Any = make()
            optimizer, draws = torch.optim.Adam(model.parameters()), lab.fork("digits")
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-2, total_steps=config.digit_steps)
            for _ in arm.steps(config.digit_steps, model, optimizer, schedule, draws):
                chosen = torch.randint(len(images), (64,), generator=draws)
                arm.descend(F.cross_entropy(model(images[chosen]), train.labels[chosen]), optimizer)
                schedule.step()
            with torch.no_grad():
                correct = model(held_out).argmax(1) == test.labels
                if arm is ours:
                    model[1].final = False
                    ours.metric("evaluations of the field", model[1](model[0](held_out)).evaluations)
            arm.metric("test accuracy", correct.float().mean(), better="higher")
            arm.metric("parameters", parameters_to_vector(model.parameters()).numel(), better="lower")
    lab.curves("loss", arms=list(makers), caption="Digits: cross entropy of a batch, every initialisation.")
    lab.claim(
        "the ODE-net is within 1.0 point of the residual net or better, with at most a third of its parameters",
        ours["test accuracy"] >= residual["test accuracy"] - 0.010,
        3 * ours["parameters"] <= residual["parameters"],
    )
    lab.note(f"A perceptron of the ODE-net's size reads these digits as well: accuracy {plain['test accuracy']:.3f}.")


def densities(lab: Lab, config: Config) -> None:
    """Section 4: maximum likelihood of the continuous flow and of a planar flow, each at its best rate."""
    train, test = (data.circles(n, generator=lab.fork(f"{n} circles")) for n in (2000, 1000))
    ours, planar = lab.arm("continuous flow"), lab.arm("planar flow", baseline=True)
    figure, axes = lab.subplots(1, 3, figsize=(9, 3))
    axes[0].scatter(*test.T.numpy(), s=2)
    axes[0].set(title="test points", xlim=(-3, 3), ylim=(-3, 3), aspect="equal")
    # rates tried: 1e-2, 2e-2, 4e-2; the continuous flow at 4e-2 learns to profit from errors of its solver
    for axis, arm, rate in ((axes[1], ours, 2e-2), (axes[2], planar, 4e-2)):
        with arm.weights():
            field = dynamics.GatedField(2, 32)
            flow = dynamics.ContinuousFlow(field, 2, method="rk4", step=0.2, adjoint="unrolled")
            model = flow if arm is ours else dynamics.PlanarFlow(2, 32)
        optimizer, draws = torch.optim.Adam(model.parameters(), lr=rate), lab.fork("circles")
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.flow_steps)
        for _ in arm.steps(config.flow_steps, model, optimizer, schedule, draws):
            chosen = torch.randint(len(train), (256,), generator=draws)
            arm.descend(-model.log_prob(train[chosen]).mean(), optimizer, name="negative log likelihood")
            schedule.step()
        flow.options |= {"method": "dopri5", "step": None}  # judged by a solver that it did not train with
        with torch.no_grad():
            nats = arm.metric("test NLL", -model.log_prob(test).mean(), better="lower", unit="nat")
            grid = torch.cartesian_prod(*[torch.linspace(-3, 3, 80)] * 2)
            axis.imshow(model.log_prob(grid).exp().reshape(80, 80).T.numpy(), origin="lower", extent=(-3, 3, -3, 3))
        axis.set(title=f"{arm.name}, {nats:.2f} nats")
    lab.figure("flows", figure, caption="Densities learned by maximum likelihood.")
    statement = "after equal steps the continuous flow has the higher test likelihood than the planar flow, by 0.05 nat"
    lab.claim(statement, ours["test NLL"] <= planar["test NLL"] - 0.05)


def sequences(lab: Lab, config: Config) -> None:
    """Section 5: extrapolation of noisy spirals from 30 irregular observations, no warm-up of the divergence."""
    points, noise = 30, 0.3
    train = data.spirals(1000, noise=noise, generator=lab.fork("train spirals"))
    test = data.spirals(200, noise=noise, latest=700, generator=lab.fork("test spirals"))  # no future beyond training
    times, _, values = train.observed(points, 0, 100, generator=lab.fork("observed"))
    past = test.observed(points, 0, 100, generator=lab.fork("test observed"))
    asked = {n: test.observed(n, 100, 200, generator=lab.fork("test future")) for n in (100, points)}
    names = "latent ODE", "RNN-VAE", "autoregressive RNN"
    ours, vae, recurrent = (lab.arm(name, baseline=name != names[0]) for name in names)

    def latent_ode() -> nn.Module:
        encoder, field = dynamics.BackwardsEncoder(2, 4), dynamics.NeuralField(4)
        decoder = nn.Sequential(nn.Linear(4, 20), nn.ReLU(), nn.Linear(20, 2))
        solver: Any = {"method": "rk4", "step": 0.38, "adjoint": "unrolled"}
        return dynamics.LatentODE(encoder, field, decoder, latent=4, noise=noise, **solver)

    makers: dict[Arm, Callable[[], nn.Module]] = {ours: latent_ode, vae: partial(dynamics.LatentRNN, 2, 4, noise=noise)}
    makers[recurrent] = partial(dynamics.AutoregressiveRNN, 2, noise=noise)
    figure, axes = lab.subplots(1, 3, figsize=(11, 4), subplot_kw={"aspect": "equal"})
    for axis, truth, dots in zip(axes, test.clean, past.noisy, strict=False):
        axis.plot(*truth.T.numpy(), ":", color="gray", label="truth")
        axis.plot(*dots.T.numpy(), ".", ms=4, color="black", label="observed")
    for arm, make in makers.items():
        with arm.weights():
            model: Any = make()
        optimizer, draws = torch.optim.Adam(model.parameters()), lab.fork("draws")
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-2, total_steps=config.spiral_steps)
        for _ in arm.steps(config.spiral_steps, model, optimizer, schedule, draws):
            chosen = torch.randint(len(times), (96,), generator=draws)
            seen = times[chosen], values[chosen]
            bound = model.log_likelihood(*seen) if arm is recurrent else model.elbo(*seen, generator=draws).bound
            arm.descend(-bound.mean() / points, optimizer, name="negative bound a point", clip=10.0)
            schedule.step()
        with torch.no_grad():
            for number, later in asked.items():
                foretold = model.extrapolate(past.times, past.noisy, later.times)
                error = (foretold - later.clean).square().sum(-1).mean().sqrt()
                arm.metric(f"RMSE, {number} of the next 100 steps", error, better="lower")
        for axis, line in zip(axes, foretold, strict=False):
            axis.plot(*line.T.numpy(), color=arm.colour, label=arm.name)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=5)
    lab.figure("spirals", figure, "Three held-out spirals: 30 noisy observations, 30 of the next 100 steps foretold.")
    every, few = (f"RMSE, {number} of the next 100 steps" for number in asked)
    statement = "from 30 points the latent ODE extrapolates with at most 0.6 x the RMSE of the RNN-VAE"
    lab.claim(statement, ours[every] <= 0.6 * vae[every], ours[few] <= 0.6 * vae[few])
    statement = "asked at all of the next 100 steps (in training: 30 of 100) the latent ODE has at most 0.8 x the RMSE"
    lab.claim(f"{statement} of the autoregressive RNN", ours[every] <= 0.8 * recurrent[every])
    both = f"the autoregressive RNN has RMSE {recurrent[few]:.2f}, the latent ODE {ours[few]:.2f}"
    lab.note(f"Asked at 30 of the next 100 steps, gaps as in training, {both}: nothing is claimed about those.")
