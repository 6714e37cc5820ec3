"""Learning several functions from data that never says which of them an example is of.

Episodes of a few samples each come from hidden domains in which the same input has another target. No single function
fits them: its loss stays at the variance over domains. Several models and a subjective choice do: an episode, labels
included, goes to the model that explains it best, and only that model learns from it (Zhang et al., Subjective learning
for open-ended data, 2021). How many functions there are shows in how many models are used.

Smaller than in the paper: three functions on one interval (exact truth), digits of MNIST in ten colours (real digits,
made colours) that are asked for digit, colour or parity, and garments of Fashion-MNIST that are asked for their class,
where they are worn or how long their sleeves are (real labels, regrouped); convolutions of 8 and 16 maps on images of
14 x 14. Against dead models the allocation is soft for a third of the steps and models of images that would get no
episode are given one that is explained badly, for the first half. At test time eight labelled samples of a domain, of
images that are not scored, choose the model or the mixture's component; MAML takes a step on them: close on garments.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, func, nn
from torch.nn import functional as F

from pullback import data, discrete
from pullback.lab import Arm, Lab, above, at_least, system

Loss = Callable[[float], Tensor]
_squares, _entropies = nn.MSELoss(reduction="none"), nn.CrossEntropyLoss(reduction="none")


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    steps: Annotated[int, at_least(1)] = 300
    """Adam steps on the three functions, of 24 episodes."""
    replicates: Annotated[int, at_least(1)] = 4
    """Initialisations and streams of episodes of the three functions."""
    image_steps: Annotated[int, at_least(1)] = 400
    """Adam steps on images, of 9 episodes."""
    image_replicates: Annotated[int, at_least(1)] = 2
    """Initialisations and streams of episodes of images."""
    lr: Annotated[float, above(0)] = 1e-2
    """Step size of Adam, which falls to 0 linearly."""


FUNCTIONS = (lambda x: torch.sin(math.pi * x), lambda x: -torch.sin(math.pi * x), lambda x: 1.5 * x**2 - 0.75)
WORN = torch.tensor([0, 1, 0, 0, 0, 2, 0, 2, 3, 2])  # upper body, legs, feet, in the hand
SLEEVES = torch.tensor([0, 1, 2, 0, 2, 1, 2, 1, 1, 1])  # short, none, long
MODELS, SIZES, CONTEXT = (1, 2, 3, 6), (1, 2, 4, 8, 16), 8


@system(
    "open-ended-supervised-learning",
    family="discrete",
    title="Subjective Learning for Open-Ended Data",
    paper="Tianren Zhang et al. (Tsinghua), 2021, arXiv 2108.12113",
    config=Config,
    smoke={"steps": 3, "replicates": 1, "image_steps": 2, "image_replicates": 1},
    full={"steps": 5_000, "image_steps": 10_000, "image_replicates": 5},
    data=("mnist", "fashion_mnist"),
    blocks=tuple(f"discrete.{b}" for b in ("episode_loss", "mapping_rank", "match_clusters", "Router", "dispatch")),
)
def run(lab: Lab, config: Config) -> None:
    """Three functions on an interval, then three questions about digits and about garments."""
    lab.data("three functions on one interval", origin="simulated")
    lab.data("MNIST digits in made colours, Fashion-MNIST garments", origin="real")
    _functions(lab, config)
    for name in ("digits",) if lab.scale == "smoke" else ("digits", "garments"):
        _images(lab, config, name)


def _fit(arm: Arm, learner: nn.Module, lr: float, steps: int, name: str, stream: torch.Generator, loss: Loss) -> None:
    optimizer = torch.optim.Adam(learner.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1e-2, steps)
    for step in arm.steps(steps, learner, optimizer, schedule, stream, name=name):
        arm.descend(loss(step / steps), optimizer, name=f"loss, {name}")
        schedule.step()


class _Models(nn.Module):
    """``count`` networks with two hidden layers, computed at once: ``[n, 1]`` to ``[count, n, 1]``."""

    def __init__(self, count: int) -> None:
        super().__init__()
        sizes = ((1, 32), (32, 32), (32, 1))
        self.weights = nn.ParameterList(torch.randn(count, a, b) * a**-0.5 for a, b in sizes)
        self.biases = nn.ParameterList(torch.randn(count, 1, b) * 0.5 for _, b in sizes)

    def forward(self, x: Tensor) -> Tensor:
        x = x.expand(len(self.weights[0]), *x.shape)
        for weight, bias in zip(self.weights[:2], self.biases[:2], strict=True):
            x = torch.tanh(torch.baddbmm(bias, x, weight))
        return torch.baddbmm(self.biases[2], x, self.weights[2])


def _draw_functions(count: int, size: int, stream: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Episodes ``[count, size, 1]``, their targets and the function of each."""
    domain = torch.randint(3, (count,), generator=stream)
    x = 2 * torch.rand(count, size, 1, generator=stream) - 1
    return x, torch.stack([f(x) for f in FUNCTIONS])[domain, torch.arange(count)], domain


def _functions(lab: Lab, config: Config) -> None:
    cases = [(count, CONTEXT) for count in MODELS] + [(3, m) for m in SIZES if m != CONTEXT]
    arms = {case: lab.arm("K = {}, m = {}".format(*case), baseline=case != (3, CONTEXT)) for case in cases}
    drawn: dict[tuple[int, int], _Models] = {}
    grid = torch.linspace(-1, 1, 201)
    every = torch.stack([f(grid) for f in FUNCTIONS])
    variance = torch.trapezoid(every.var(0, correction=0), grid).item() / 2
    lab.claim(
        "on a grid the mapping rank of the three functions together is 3, exactly, of each alone 1",
        discrete.mapping_rank(grid.repeat(3), every.flatten())[:2] == (3, True),
        all(discrete.mapping_rank(grid, y).rank == 1 for y in every),
        scale="smoke",
    )
    for _ in lab.replicates(config.replicates):
        x, y, truth = _draw_functions(300, 16 + 64, lab.fork("unseen episodes"))
        for (count, m), arm in arms.items():
            with arm.weights():
                models = drawn[count, m] = _Models(count)
            stream = lab.fork("episodes")

            def loss(progress: float, models: _Models = models, m: int = m, stream: Any = stream) -> Tensor:
                inputs, targets, _ = _draw_functions(24, m, stream)
                temperature = max(0.0, 0.1 - 0.3 * progress)
                return discrete.episode_loss(models, inputs, targets, _squares, temperature=temperature).loss

            _fit(arm, models, config.lr, config.steps, "functions", stream, loss)
            with torch.no_grad():
                choice = discrete.episode_loss(models, x[:, :m], y[:, :m], _squares).choice
                error = discrete.episode_loss(models, x[:, 16:], y[:, 16:], _squares).losses
            matched = discrete.match_clusters(choice, truth)
            arm.metric("wrongly allocated", 100 * matched.error, better="lower", unit="%")
            arm.metric("purity", 100 * matched.purity, better="higher", unit="%")
            arm.metric("squared error", error.gather(1, choice[:, None]).mean(), better="lower")
            arm.metric("models used", (matched.confusion.sum(1) >= 0.03 * len(choice)).sum())
    _draw(lab, arms, drawn, grid, every)
    ours, single, many, alone = (arms[case] for case in ((3, CONTEXT), (1, CONTEXT), (6, CONTEXT), (3, 1)))
    lab.claim(
        "three models, episodes of 8: in every replicate none of 300 unseen episodes is wrongly allocated and the "
        "squared error is at most 0.003, of six models within twice of that; a single model stays at the variance over "
        "the functions, by quadrature, within 5 %",
        *(max(ours["wrongly allocated"].values) == 0, max(ours["squared error"].values) <= 3e-3),
        *(many["squared error"] <= 2 * ours["squared error"], abs(single["squared error"] / variance - 1) <= 0.05),
        variance=variance,
    )
    lab.claim(
        "episodes of one sample leave the functions mixed (purity at most 90 %), those of 8 and more tell them apart",
        *(alone["purity"] <= 90, *(arms[3, m]["purity"] >= 100 for m in SIZES if m >= CONTEXT)),
    )


@torch.no_grad()
def _draw(lab: Lab, arms: dict[tuple[int, int], Arm], drawn: dict[Any, _Models], x: Tensor, every: Tensor) -> None:
    figure, (curves, purity, used) = lab.subplots(1, 3, figsize=(11, 3.4))
    curves.plot(x, every.T, "k--", linewidth=0.8)
    for case in ((3, CONTEXT), (1, CONTEXT)):
        curves.plot(x, drawn[case](x[:, None])[..., 0].T, color=arms[case].colour)[0].set_label(arms[case].name)
    curves.set(ylim=(-1.1, 1.6), xlabel="x", ylabel="y")
    curves.legend(fontsize="small", ncols=2, loc="upper center")
    line = {"marker": "o", "color": arms[3, CONTEXT].colour}
    purity.plot(SIZES, [arms[3, m]["purity"] for m in SIZES], **line)
    used.plot(MODELS, [arms[count, CONTEXT]["models used"] for count in MODELS], **line)
    purity.set(xscale="log", xlabel="samples an episode", ylabel="purity in %")
    used.set(xlabel="models", ylabel="models used")
    lab.figure("three functions", figure, "Functions (dashed) and K models; models with 3 % of episodes.")


def _apply(network: nn.Module, x: Tensor) -> Tensor:
    return network(x.flatten(0, 1)).unflatten(0, x.shape[:2])


def _network(channels: int, out: int) -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(channels, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(144, out)),
    )


class _Subjective(nn.Module):
    """Three networks, and the choice by what they lose on the context; the oracle's are ``told`` the question."""

    def __init__(self, build: Callable[[int], nn.Module], told: bool = False) -> None:
        super().__init__()
        self.models, self.told = nn.ModuleList(build(10) for _ in range(3)), told
        self.router = discrete.Router(None, 3, method="subjective")

    def loss(self, x: Tensor, y: Tensor, domain: Tensor, softness: Any) -> Tensor:
        if self.told:
            return _entropies(self(x, y, x, domain).flatten(0, 1), y.flatten()).mean()
        return discrete.episode_loss(self.models, x, y, _entropies, **softness).loss

    def forward(self, context: Tensor, labels: Tensor, x: Tensor, domain: Tensor) -> Tensor:
        if not self.told:
            domain = self.router(discrete.episode_loss(self.models, context, labels, _entropies).losses).index[:, 0]
        return discrete.dispatch(x, domain, [partial(_apply, model) for model in self.models])


class _Mixture(nn.Module):
    """A network whose answer is a mixture of some answers, of which the context chooses one; with one, a classifier."""

    def __init__(self, build: Callable[[int], nn.Module], components: int) -> None:
        super().__init__()
        self.network, self.components = build(11 * components), components

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        answers, weights = _apply(self.network, x).unflatten(-1, (self.components, 11)).split((10, 1), -1)
        return answers.log_softmax(-1), weights[..., 0].log_softmax(-1)

    def loss(self, x: Tensor, y: Tensor, domain: Tensor, softness: Any) -> Tensor:
        answers, weights = self._parts(x)
        return -(weights + torch.take_along_dim(answers, y[..., None, None], -1)[..., 0]).logsumexp(-1).mean()

    def forward(self, context: Tensor, labels: Tensor, x: Tensor, domain: Tensor) -> Tensor:
        given = torch.take_along_dim(self._parts(context)[0], labels[..., None, None], -1)[..., 0]
        return self._parts(x)[0][torch.arange(len(x)), :, given.sum(1).argmax(-1)]


class _Adapted(nn.Module):
    """MAML: the network takes one step down the gradient of the context's loss, of a length that is learned."""

    def __init__(self, build: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.network, self.rate = build(10), nn.Parameter(torch.tensor(0.1))

    def loss(self, x: Tensor, y: Tensor, domain: Tensor, softness: Any) -> Tensor:
        half = x.shape[1] // 2
        return F.cross_entropy(self(x[:, :half], y[:, :half], x[:, half:], domain).flatten(0, 1), y[:, half:].flatten())

    def forward(self, context: Tensor, labels: Tensor, x: Tensor, domain: Tensor) -> Tensor:
        weights, call = dict(self.network.named_parameters()), partial(func.functional_call, self.network)

        def adapted(context: Tensor, labels: Tensor, x: Tensor) -> Tensor:
            slope = func.grad(lambda weights: F.cross_entropy(call(weights, context), labels))(weights)
            return call({name: weight - self.rate * slope[name] for name, weight in weights.items()}, x)

        return func.vmap(adapted)(context, labels, x)


def _questions(lab: Lab, name: str, split: Literal["train", "test"]) -> tuple[Tensor, Tensor]:
    """Images ``[n, channels, 14, 14]`` and what each question is answered ``[3, n]``."""
    if name == "digits":
        images, digit = data.mnist(split)
        images, colour = data.tinted(images, generator=lab.fork(f"colours, {split}"))
        return F.avg_pool2d(images, 2), torch.stack([digit, colour, digit % 2])
    images, label = (part[:10_000] for part in data.fashion_mnist(split))
    return F.avg_pool2d(images[:, None], 2), torch.stack([label, WORN[label], SLEEVES[label]])


def _images(lab: Lab, config: Config, name: str) -> None:
    x, y = _questions(lab, name, "test")
    parts = {"train": _questions(lab, name, "train"), "context": (x[::3], y[:, ::3]), "test": (x[1::3], y[:, 1::3])}

    def draw(part: str, domain: Tensor, m: int, stream: torch.Generator) -> tuple[Tensor, Tensor]:
        images, answers = parts[part]
        chosen = torch.randint(len(images), (len(domain), m), generator=stream)
        return images[chosen], answers[domain[:, None], chosen]

    build = partial(_network, parts["train"][0].shape[1])
    builders: dict[str, Callable[[], Any]] = {
        "subjective": partial(_Subjective, build),
        "oracle": partial(_Subjective, build, told=True),
        "single": partial(_Mixture, build, 1),
        "mixture density": partial(_Mixture, build, 3),
        "MAML": partial(_Adapted, build),
    }
    for _ in lab.replicates(config.image_replicates):
        for kind, builder in builders.items():
            arm, stream = lab.arm(kind, baseline=kind != "subjective"), lab.fork(f"episodes of {name}")
            with arm.weights(name):
                learner = builder()

            def loss(progress: float, learner: Any = learner, stream: Any = stream) -> Tensor:
                domain = torch.randint(3, (9,), generator=stream)
                softness = {"temperature": max(0.0, 0.1 - 0.3 * progress), "revive": progress < 1 / 2}
                return learner.loss(*draw("train", domain, CONTEXT, stream), domain, softness)

            _fit(arm, learner, config.lr, config.image_steps, name, stream, loss)
            domain, stream = torch.arange(3).repeat(20), lab.fork(f"unseen {name}")
            (context, labels), (x, y) = (
                draw(*args, stream) for args in (("context", domain, CONTEXT), ("test", domain, 60))
            )
            with torch.no_grad():
                right = learner(context, labels, x, domain).argmax(-1) == y
            arm.metric(f"accuracy, {name}", 100 * right.float().mean(), better="higher", unit="%")
    ours, oracle, single, mixture, adapted = (lab.arms[kind][f"accuracy, {name}"] for kind in builders)
    lab.claim(
        f"{name}: eight labelled samples choose the model, and the accuracy is within 3 points of models that are told "
        "the question, above a single network and a mixture density, whose component they choose, by 25",
        *(ours >= oracle - 3, ours >= single + 25, ours >= mixture + 25),
    )
    if name == "digits":
        lab.claim("digits: MAML, which adapts to the same samples, is 10 points lower", ours >= adapted + 10)
    lab.bars(f"accuracy, {name}", caption="Accuracy on unseen images, mean over the three questions.")
