"""Training without backpropagation: one forward pass, one directional derivative, one step.

Forward mode gives, beside a loss, its exact derivative along a random direction; times that direction it is an
unbiased estimate of the gradient, for which nothing has to be stored on the way (Baydin, Pearlmutter, Syme, Wood, Torr,
2022). The price is variance: of n parameters the squared error is (n + 1) times the squared gradient. Perturbing what
units compute instead of their weights, each sample along its own direction, leaves far less of it (Ren, Kornblith,
Liao, Hinton, 2023).

Smaller than in the paper: 8 x 8 digits (UCI, real) instead of MNIST, networks of at most 5 000 parameters. No speed is
gained here: a step costs about what one of backpropagation does, and more steps are needed.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import SGD

from pullback import data, gradients
from pullback.gradients import ForwardGradientDescent, estimator_error, forward_gradient
from pullback.lab import Arm, Lab, Measured, above, at_least, system

Loss = Callable[[dict[str, Tensor]], Tensor]
Point = tuple[float, float]
TOYS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Point, Point, float]] = {
    "Beale": (
        lambda x, y: (1.5 - x + x * y) ** 2 + (2.25 - x + x * y**2) ** 2 + (2.625 - x + x * y**3) ** 2,
        *((1.0, -1.0), (3.0, 0.5), 1e-2),
    ),
    "Rosenbrock": (lambda x, y: (1 - x) ** 2 + 100 * (y - x**2) ** 2, (-1.0, 0.0), (1.0, 1.0), 5e-4),
}
"""A function of two variables, where descent starts, where its minimum is, the step size."""
MODELS: dict[str, Callable[[], nn.Module]] = {
    "logistic regression": lambda: nn.Linear(64, 10),
    "MLP": lambda: nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10)),
    "CNN": lambda: nn.Sequential(
        *(nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 8, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2)),
        *(nn.Conv2d(8, 16, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(64, 10)),
    ),
}
KEYS = {name: ("weights", "activities", "backprop") if name == "MLP" else ("weights", "backprop") for name in MODELS}


@dataclass(frozen=True)
class Config:
    """Options of the run; tuples are for logistic regression, MLP and CNN."""

    draws: Annotated[int, at_least(100)] = 20_000
    """Estimates whose mean and variance are measured."""
    toy_steps: Annotated[int, at_least(1)] = 3000
    """Steps on the functions of two variables."""
    steps: tuple[Annotated[int, at_least(1)], ...] = (8000, 6000, 2500)
    """Steps of training, with and without backpropagation."""
    activity_steps: Annotated[int, at_least(1)] = 1500
    """Steps along activity gradients, of the MLP."""
    lr: tuple[Annotated[float, above(0)], ...] = (0.05, 0.01, 0.02)
    """Step sizes at the start along forward gradients."""
    lr_activity: Annotated[float, above(0)] = 0.1
    """The same along activity gradients."""
    lr_backprop: tuple[Annotated[float, above(0)], ...] = (0.5, 0.5, 0.5)
    """The same along gradients."""
    decay: Annotated[float, at_least(0)] = 3e-4
    """Rate at which all step sizes fall per step."""
    depths: tuple[Annotated[int, at_least(1)], ...] = (4, 8, 16, 32)
    """Layers of the networks whose memory is measured."""
    replicates: Annotated[int, at_least(1)] = 3
    """Initialisations and batches."""


@system(
    "forward-gradients",
    family="gradients",
    title="Gradients without Backpropagation",
    paper="Baydin, Pearlmutter, Syme, Wood, Torr, arXiv 2202.08587",
    config=Config,
    smoke={"draws": 100, "toy_steps": 3, "steps": (3, 3, 2), "activity_steps": 2, "depths": (4, 32), "replicates": 1},
    full={"steps": (8000, 50_000, 50_000), "activity_steps": 20_000, "replicates": 5},
    data=("digits",),
    blocks=(
        *("gradients.forward_gradient", "gradients.ForwardGradientDescent", "gradients.activity_forward_gradient"),
        *("gradients.estimator_error", "gradients.saved_bytes"),
    ),
)
def run(lab: Lab, config: Config) -> None:
    """Measure bias and variance, follow two functions down, train three models, count bytes and seconds."""
    lab.data("UCI digits, 1 797 images of 8 x 8", origin="real")
    arms = {"weights": lab.arm("forward gradient"), "activities": lab.arm("activity forward gradient")}
    arms |= {"backprop": lab.arm("backpropagation", baseline=True), "signs": lab.arm("forward gradient, signs")}
    _moments(lab, config, arms)
    _toys(lab, config, arms)
    _digits(lab, config, arms)
    _memory(lab, config, arms)
    _cost(lab, arms)


def _loss(model: nn.Module, images: Tensor, labels: Tensor, params: dict[str, Tensor]) -> Tensor:
    return F.cross_entropy(functional_call(model, params, images), labels)


def _named(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_parameters())


def _moments(lab: Lab, config: Config, arms: dict[str, Arm]) -> None:
    """The mean of many estimates is the gradient, their variance is that of the formula."""
    train, draws = data.digits("train"), lab.fork("directions")
    images, labels = train.images[:64].flatten(1), train.labels[:64]
    with arms["weights"].weights("moments"):
        linear, network = (MODELS[name]() for name in ("logistic regression", "MLP"))

    def exact(model: nn.Module) -> dict[str, Tensor]:
        gradient = torch.autograd.grad(F.cross_entropy(model(images), labels), list(model.parameters()))
        return dict(zip(_named(model), gradient, strict=True))

    def estimates(model: nn.Module, distribution: Any, count: int) -> dict[str, Tensor]:
        loss, params = partial(_loss, model, images, labels), _named(model)
        words = {"directions": count, "distribution": distribution, "chunk": 250, "generator": draws}
        return forward_gradient(loss, params, **words).estimates

    for key, distribution, size in (("weights", "normal", 651), ("signs", "rademacher", 649)):
        error = estimator_error(estimates(linear, distribution, config.draws), exact(linear))
        largest = arms[key].metric("largest |z| of the mean", error.largest_z, better="lower")
        squares = arms[key].metric("mean z^2 of the mean", error.mean_squared_z)
        variance = arms[key].metric("variance / |gradient|^2", error.relative_variance, better="lower")
        lab.claim(
            f"{distribution} directions: of {config.draws} estimates the mean is within 4.5 standard errors of the "
            f"gradient in each of n = 650 coordinates, with mean z^2 in [0.8, 1.2]; the variance is {size} times "
            "|gradient|^2 within 5 %",
            *(largest <= 4.5, abs(squares - 1) <= 0.2, abs(variance / size - 1) <= 0.05),
        )
    some, number = config.draws // 20, "variance / |gradient|^2, MLP"
    units = [_activity(network, images, labels, draws).gradient for _ in range(some)]
    found = {"weights": estimates(network, "normal", some), "activities": torch.utils.data.default_collate(units)}
    for key, some_estimates in found.items():
        arms[key].metric(number, estimator_error(some_estimates, exact(network)).relative_variance, better="lower")
    held = arms["activities"][number] <= arms["weights"][number] / 10
    lab.claim("MLP: perturbed units leave at most a tenth of the variance of perturbed weights", held, scale="smoke")


def _activity(model: nn.Module, images: Tensor, labels: Tensor, draws: torch.Generator) -> gradients.ActivityGradient:
    losses = partial(F.cross_entropy, target=labels, reduction="none")
    return gradients.activity_forward_gradient(model, losses, images, generator=draws)


def _backpropagate(loss: Loss, params: dict[str, Tensor], optimizer: SGD) -> Tensor:
    optimizer.zero_grad()
    value = loss(params)
    value.backward()
    optimizer.step()
    return value.detach()


def _toys(lab: Lab, config: Config, arms: dict[str, Arm]) -> None:
    figure, panels = lab.subplots(1, 2, figsize=(8, 3.6))
    for (name, (function, start, minimum, lr)), axes in zip(TOYS.items(), panels, strict=True):
        left, right, low, high = {"Beale": (-0.5, 4.0, -1.6, 1.6), "Rosenbrock": (-1.5, 1.5, -0.5, 1.5)}[name]
        grid = torch.meshgrid(torch.linspace(left, right, 80), torch.linspace(low, high, 80), indexing="xy")
        axes.contour(*grid, function(*grid).log1p(), levels=12, colors="0.8", linewidths=0.6)
        for key in ("backprop", "weights"):
            arm, p, draws = arms[key], nn.Parameter(torch.tensor(start)), lab.fork(name)
            loss: Loss = partial(lambda f, params: f(*params["p"]), function)
            forward = ForwardGradientDescent([("p", p)], lr, generator=draws)
            plain = partial(_backpropagate, loss, {"p": p}, SGD([p], lr))
            descend = partial(forward.step, loss) if key == "weights" else plain
            for step in arm.steps(config.toy_steps, p, forward, draws, name=name):
                if step % 10 == 0:
                    arm.record(f"{name} x", p[0])
                    arm.record(f"{name} y", p[1])
                descend()
            arm.metric(f"{name} at the end", function(*p.detach()), better="lower")
            axes.plot(*(arm.series(f"{name} {c}") for c in "xy"), color=arm.colour, linewidth=0.8, label=arm.name)
        axes.plot(*minimum, "k+")
        axes.set(title=name, xlim=(left, right), ylim=(low, high))
    panels[1].legend(fontsize="small", loc="upper center")
    lab.figure("toys", figure, "Descent with and without backpropagation, equal step sizes; the cross is the minimum.")


def _digits(lab: Lab, config: Config, arms: dict[str, Arm]) -> None:
    sets = [data.digits(split) for split in ("train", "test")]
    (images, labels), (unseen, truth) = ((x.flatten(1).to(lab.device), y.to(lab.device)) for x, y in sets)
    for _ in lab.replicates(config.replicates):
        for number, (name, build) in enumerate(MODELS.items()):
            for key in KEYS[name]:
                arm = arms[key]
                with arm.weights(name):
                    model = build().to(lab.device)
                batches, draws = lab.fork(f"batches of {name}"), lab.fork(f"directions of {name}")
                params, plain = _named(model), SGD(model.parameters(), 1.0)
                forward = ForwardGradientDescent(params.items(), config.lr[number], config.decay, generator=draws)
                lr = config.lr_activity if key == "activities" else config.lr_backprop[number]
                steps = config.activity_steps if key == "activities" else config.steps[number]
                with arm.cpu_time(f"seconds, {name}"):
                    for step in arm.steps(steps, model, forward, batches, draws, name=name):
                        plain.param_groups[0]["lr"] = lr * math.exp(-config.decay * step)
                        chosen = torch.randint(len(labels), (64,), generator=batches)
                        loss = partial(_loss, model, images[chosen], labels[chosen])
                        if key == "weights":
                            value = forward.step(loss)
                        elif key == "backprop":
                            value = _backpropagate(loss, params, plain)
                        else:
                            found = _activity(model, images[chosen], labels[chosen], draws)
                            value = found.losses.mean()
                            for label, p in params.items():
                                p.grad = found.gradient[label]
                            plain.step()
                        if step % 20 == 0:
                            arm.record(f"loss, {name}", value)
                right = (model(unseen).argmax(-1) == truth).double().mean()
                arm.metric(f"test accuracy, {name}", right, better="higher")
                arm.metric(f"training loss, {name}", _loss(model, images, labels, params).detach(), better="lower")
    ours = arms["weights"]
    lab.claim(
        "single directions, no backward pass: logistic regression reaches 90 % on unseen digits, the MLP 91 %",
        ours["test accuracy, logistic regression"] >= 0.9,
        ours["test accuracy, MLP"] >= 0.91,
    )
    lab.claim(
        "MLP: with perturbed units a quarter of the steps reaches the final training loss of perturbed weights",
        arms["activities"]["training loss, MLP"] <= ours["training loss, MLP"],
        4 * config.activity_steps <= config.steps[1],
    )
    lab.curves(*(f"loss, {name}" for name in MODELS), log=True, caption="Loss of every 20th batch.")
    figure, panels = lab.subplots(1, len(MODELS), figsize=(9, 3))
    for axes, name in zip(panels, MODELS, strict=True):
        for arm in (arms[key] for key in KEYS[name]):
            runs = [torch.tensor(arm.series(f"loss, {name}", replicate=r)) for r in range(config.replicates)]
            mean = torch.stack(runs).mean(0)
            seconds = torch.arange(1, len(mean) + 1) * float(arm[f"seconds, {name}"]) / config.replicates / len(mean)
            axes.plot(seconds, mean, color=arm.colour, label=arm.name)
        axes.set(title=name, xlabel="CPU seconds", ylabel="loss of a batch", yscale="log")
    panels[1].legend(fontsize="x-small", loc="upper right")
    lab.figure("losses by time", figure, f"The same against CPU time, mean of {config.replicates} runs.")


def _memory(lab: Lab, config: Config, arms: dict[str, Arm]) -> None:
    """What a step keeps on its way, beside parameters and the one direction."""
    images, labels = torch.rand(512, 32), torch.zeros(512, dtype=torch.int64)
    peaks, saved = defaultdict[str, list[Measured]](list), defaultdict[str, list[int]](list)
    for depth in config.depths:
        with arms["weights"].weights(f"depth {depth}"):
            layers = (part for _ in range(depth) for part in (nn.Linear(32, 32), nn.Tanh()))
            model = nn.Sequential(*layers, nn.Linear(32, 2))
        forward = ForwardGradientDescent(model.named_parameters(), 1e-3, generator=lab.fork("memory"))
        loss, params = partial(_loss, model, images, labels), _named(model)
        steps = {"weights": partial(forward.step, loss)}
        steps["backprop"] = partial(_backpropagate, loss, params, SGD(model.parameters(), 1e-3))
        for key, step in steps.items():
            step()  # makes room for the direction
            peaks[key].append(lab.peak_memory(step, of=arms[key].name))
            saved[key].append(gradients.saved_bytes(step, exclude=(images, *params.values())).total)
    lab.claim(
        f"from depth {config.depths[0]} to {config.depths[-1]} a forward-gradient step saves no byte for a backward "
        "pass and its peak memory does not grow; what backpropagation saves grows at least 6 times",
        max(saved["weights"]) == 0,
        peaks["weights"][-1] <= peaks["weights"][0],
        saved["backprop"][-1] >= 6 * saved["backprop"][0],
        scale="smoke",
        saved_by_backpropagation=saved["backprop"][-1],
    )
    caption = "Memory of one step on 512 samples, 32 units a layer, without parameters and directions."
    contenders = {arms[key].name: values for key, values in peaks.items()}
    lab.scaling(config.depths, contenders, name="memory", xlabel="layers", ylabel="peak bytes", caption=caption)


def _cost(lab: Lab, arms: dict[str, Arm]) -> None:
    """CPU time of whole steps, with the same loss on the same batch."""
    images, labels = torch.rand(64, 64), torch.arange(64) % 10
    ratios = list[Measured]()
    for units in ((64, 10), (64, 64, 10), (64, 256, 256, 10)):
        name = "-".join(map(str, units))
        with arms["weights"].weights(name):
            model = nn.Sequential(*(part for sizes in pairwise(units) for part in (nn.Linear(*sizes), nn.Tanh())))[:-1]
        loss, named = partial(_loss, model, images, labels), _named(model)
        plain = SGD(model.parameters(), 1e-6)

        steps: dict[str, Any] = {"backpropagation": partial(_backpropagate, loss, named, plain)}
        for kind in ("normal", "rademacher"):
            forward = ForwardGradientDescent(named.items(), 1e-6, distribution=kind, generator=lab.fork(name))
            steps[kind] = partial(forward.step, loss)
        race = lab.race(steps, rounds=9, seconds=0.05 * (lab.scale != "smoke"))
        for key, kind in (("weights", "normal"), ("signs", "rademacher")):
            ratio = race.ratio(kind, "backpropagation")
            found = arms[key].metric(f"step / backpropagation, {name}", ratio, better="lower", unit="x")
            ratios += [found] * (key == "weights")
    lab.claim(
        "a step along a normal direction takes at most 1.5 times one of backpropagation, 64-10 to 64-256-256-10",
        *(ratio <= 1.5 for ratio in ratios),
    )
