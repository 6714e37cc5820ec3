"""Networks on noisy analog hardware of few bits learn better through smooth activations.

Analog multipliers hold few levels and misread them; a network is trained through them by passing gradients straight
through rounding and noise. Near 0 the noise flips the gate of a ReLU, an error of its derivative of 1/2 however small
the noise; the derivative of a GELU or SiLU is off by no more than its slope times the noise, a hundredth of that. So
their gradients point closer to the noise-free ones, and they reach higher accuracies (Shah, Youngblood, 2024).

Simulated as in the authors' code: inputs and weights are clamped, reduced in precision and made noisy, outputs made
noisy, clamped and reduced, in training and in use. Smaller than in the paper: a CNN of 16-32-64 channels and an MLP on
real digits of 8 x 8 pixels, a one-layer character transformer, whose projections are analog, on the King James Bible.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from pullback import data, gradients
from pullback.gradients import AnalogLayer
from pullback.lab import Arm, Lab, above, at_least, system


class _Halfway(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return gradients.interpolated_activation(x, 0.5)


ACTIVATIONS = {
    "ReLU": nn.ReLU(),
    "leaky ReLU": nn.LeakyReLU(),
    "ELU": nn.ELU(),
    "GELU": nn.GELU(),
    "SiLU": nn.SiLU(),
    "tanh": nn.Tanh(),
    "halfway": _Halfway(),
}
MAIN = ("ReLU", "GELU", "SiLU")
MLP, SLOWLY, SLOWEST = ", MLP", ", steps of 0.3", ", steps of 0.1"
RATES = {SLOWLY: 0.3, SLOWEST: 0.1}
_images = cache(data.digits)
LAYERS = ("first hidden layer", "second hidden layer", "third hidden layer", "last layer")


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    steps: Annotated[int, at_least(1)] = 250
    """Adam steps of each network on digits."""
    batch: Annotated[int, at_least(1)] = 128
    """Images a step."""
    lr: Annotated[float, above(0)] = 1e-2
    """Step size of Adam on digits: the best of 0.001, 0.003, 0.01, 0.02 for ReLU and GELU at 3 bits."""
    leakage: Annotated[float, above(0)] = 0.5
    """How often a level is misread."""
    every: Annotated[int, at_least(1)] = 50
    """Steps between two looks at the direction of gradients."""
    readings: Annotated[int, at_least(1)] = 3
    """Of every test image, each with other noise."""
    other_leakages: Annotated[tuple[float, ...], above(0)] = (0.05, 0.2, 0.35, 0.5, 0.65, 0.8)
    """In use, of networks that were trained at ``leakage``."""
    text_steps: Annotated[int, at_least(1)] = 40
    """Adam steps of each transformer."""
    length: Annotated[int, at_least(2)] = 32
    """Characters that a transformer sees."""
    width: Annotated[int, at_least(8)] = 64
    """Of the transformer, a multiple of 4."""
    replicates: Annotated[int, at_least(1)] = 3
    """Initialisations, batches and noises, each the same for all activations."""


@system(
    "differentiable-activations-analog-noise",
    family="gradients",
    title="Leveraging Continuously Differentiable Activation Functions for Learning in Quantized Noisy Environments",
    paper="Shah, Youngblood, arXiv 2402.02593",
    config=Config,
    smoke={"steps": 1, "batch": 8, "text_steps": 1, "replicates": 1, "width": 8, "length": 8}
    | {"readings": 1, "other_leakages": (0.5,)},
    full={"steps": 20_000, "text_steps": 20_000, "length": 128, "width": 256, "replicates": 5, "every": 500},
    data=("digits", "bible"),
    blocks=(
        "gradients.AnalogLayer",
        "gradients.reduce_precision",
        "gradients.leakage_to_std",
        "gradients.gradient_noise",
        "gradients.gradient_cosine",
        "gradients.interpolated_activation",
    ),
)
def run(lab: Lab, config: Config) -> None:
    """Measure derivatives and misreadings, then train with each activation on simulated hardware."""
    lab.data("UCI digits, 8 x 8; characters of the King James Bible", origin="real")
    arms = {name: lab.arm(name, baseline=name in ("ReLU", "leaky ReLU")) for name in ACTIVATIONS}
    figure, axes = lab.subplots(1, 3, figsize=(11, 3.6))
    _derivatives(lab, arms, axes[0])
    _misreadings(lab)
    letters = data.characters(" ".join(verse.text for verse in data.bible()[:4000]))
    networks: dict[str, nn.Module] = {}
    for number in lab.replicates(config.replicates):
        for name, arm in arms.items():
            if number and name not in MAIN:
                continue  # the others are seen once
            _digits(lab, config, arm, 3)
            if name in MAIN:
                networks[name] = _digits(lab, config, arm, 4, SLOWEST)
            if name in ("ReLU", "GELU") and not number:
                _digits(lab, config, arm, 3, SLOWLY)
    for name in MAIN:
        _digits(lab, config, arms[name], 4, MLP)
    for name in ("ReLU", "GELU"):
        _digits(lab, config, arms[name], 6)
        _text(lab, config, arms[name], letters)
    _claims(lab, arms)
    for name in MAIN:
        values = [float(arms[name][f"cosine, {layer}"]) for layer in LAYERS]
        axes[1].plot(range(1, 5), values, marker="o", color=arms[name].colour, label=name)
        _sweep(config, networks[name], axes[2], arms[name])
    axes[1].set(xlabel="layer", ylabel="cosine", xticks=range(1, 5), ylim=(0, None), title="gradients, 4 bits")
    axes[2].set(xlabel="leakage in use", ylabel="accuracy", title="4 bits, trained at 0.5")
    axes[1].legend(fontsize=8)
    caption = (
        "Expected error of the derivative at noise 0.05; cosine between noisy and noise-free gradients of each layer, "
        "mean over the training of the CNN; accuracy of the last CNNs of 4 bits on hardware of another leakage."
    )
    lab.figure("analog", figure, caption)
    lab.bars("accuracy, 3 bits", caption="CNN at 3 bits, a level misread half of the time.")


def _derivatives(lab: Lab, arms: dict[str, Arm], axis: Any) -> None:
    x = torch.linspace(-0.3, 0.3, 121, dtype=torch.float64)
    for name in MAIN:
        error = gradients.gradient_noise(ACTIVATIONS[name], torch.zeros(1, dtype=torch.float64), 0.01)
        arms[name].metric("error of the derivative at 0, noise 0.01", error, better="lower")
        curve = gradients.gradient_noise(ACTIVATIONS[name], x, 0.05, samples=8192)
        axis.plot(x, curve, color=arms[name].colour, label=name)
    axis.set(xlabel="input", ylabel="error", title="derivative", yscale="log", ylim=(3e-4, 1))
    axis.legend(fontsize=8)
    errors = [arms[name]["error of the derivative at 0, noise 0.01"] for name in MAIN]
    expected = (0.5, 2 / math.pi * 0.01, 0.01 / math.sqrt(2 * math.pi))
    lab.claim(
        "derivatives at 0 with noise s = 0.01 are off by 1/2 for ReLU, (2 / pi) s for GELU, s / sqrt(2 pi) for SiLU, "
        "within 3 %",
        *(abs(error / value - 1) <= 0.03 for error, value in zip(errors, expected, strict=True)),
        scale="smoke",
    )


def _misreadings(lab: Lab) -> None:
    """A value on a level, plus noise, clamped, rounded again."""
    worst, precision = 0.0, 16
    for leakage in (0.1, 0.5, 0.8):
        noise = gradients.leakage_to_std(leakage, precision) * torch.randn(100_000, generator=lab.fork("readings"))
        for level, expected in ((5 / precision, leakage), (1.0, leakage / 2)):
            read = gradients.reduce_precision((level + noise).clamp(-1, 1), precision)
            worst = max(worst, abs(float((read != level).float().mean()) - expected))
    lab.claim(
        "inner levels are misread as often as the leakage says, end levels half as often, within 0.01",
        worst <= 0.01,
        scale="smoke",
        largest_difference=worst,
    )


def _digits(lab: Lab, config: Config, arm: Arm, bits: int, kind: str = "") -> nn.Module:
    """Train one network on digits; look at the direction of gradients of the CNN at 4 bits on the way."""
    name, looked_at = f"{bits} bits{kind}", kind == SLOWEST
    train = _images("train")
    noise, batches = lab.fork("noise"), lab.fork("batches")
    analog = partial(AnalogLayer, precision=2**bits, leakage=config.leakage, generator=noise)
    layers: list[nn.Module] = []
    with arm.weights(name):
        if kind == MLP:
            layers = [nn.Flatten(), analog(nn.Linear(64, 128)), ACTIVATIONS[arm.name]]
            layers += [analog(nn.Linear(128, 128)), ACTIVATIONS[arm.name], analog(nn.Linear(128, 10))]
        else:
            for channels, more in ((1, 16), (16, 32), (32, 64)):
                layers += [analog(nn.Conv2d(channels, more, 3, padding=1)), ACTIVATIONS[arm.name]]
                layers += [nn.MaxPool2d(2)] if more < 64 else [nn.Flatten(), analog(nn.Linear(256, 10))]
        network = nn.Sequential(*layers)
    hardware = [module for module in network if isinstance(module, AnalogLayer)]
    weights = {layer: m.module.get_parameter("weight") for layer, m in zip(LAYERS, hardware, strict=False)}
    optimizer = torch.optim.Adam(network.parameters(), lr=config.lr * RATES.get(kind, 1.0))

    def loss(images: Tensor, labels: Tensor, noisy: bool = True) -> Tensor:
        for module in hardware:
            module.noisy = noisy
        return nn.functional.cross_entropy(network(images[:, None]), labels)

    for step in arm.steps(config.steps, network, optimizer, noise, batches, name=name):
        chosen = torch.randint(len(train.labels), (config.batch,), generator=batches)
        batch = train.images[chosen], train.labels[chosen]
        if looked_at and step % config.every == 0:
            found = gradients.gradient_cosine(partial(loss, *batch), partial(loss, *batch, False), weights, samples=2)
            for layer, cosine in found.items():
                arm.record(f"cosine, {layer}", cosine)
        arm.descend(loss(*batch), optimizer, name=f"loss, {name}")
    arm.metric(f"accuracy, {name}", _accuracy(network, config.readings), better="higher")
    if looked_at:
        for layer in LAYERS:
            values = torch.tensor(arm.series(f"cosine, {layer}"))
            arm.metric(f"cosine, {layer}", values.mean(), better="higher")
    return network


@torch.no_grad()
def _accuracy(network: nn.Module, readings: int) -> float:
    images, labels = _images("test")
    found = network(images[:, None].repeat(readings, 1, 1, 1)).argmax(1)
    return float((found == labels.repeat(readings)).float().mean())


def _sweep(config: Config, network: nn.Module, axis: Any, arm: Arm) -> None:
    accuracies = []
    for leakage in config.other_leakages:
        for module in network.modules():
            if isinstance(module, AnalogLayer):
                module.std, module.noisy = gradients.leakage_to_std(leakage, 16), True
        accuracies.append(_accuracy(network, config.readings))
    axis.plot(config.other_leakages, accuracies, marker="o", color=arm.colour)


class _Transformer(nn.Module):
    """One layer with analog projections; embedding, normalisations and the head are digital."""

    def __init__(self, length: int, width: int, activation: str, analog: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(27, width), nn.Linear(width, 27)
        self.place = nn.Parameter(0.1 * torch.randn(length, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.mixed, self.joined = analog(nn.Linear(width, 3 * width)), analog(nn.Linear(width, width))
        self.wide, self.narrow = analog(nn.Linear(width, 4 * width)), analog(nn.Linear(4 * width, width))
        self.activation = ACTIVATIONS[activation]

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens) + self.place
        q, k, v = self.mixed(self.norms[0](x)).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
        seen = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.joined(seen.transpose(1, 2).flatten(2))
        x = x + self.narrow(self.activation(self.wide(self.norms[1](x))))
        return self.head(self.norms[2](x))


def _text(lab: Lab, config: Config, arm: Arm, letters: Tensor) -> None:
    test, train = letters[: len(letters) // 10], letters[len(letters) // 10 :]
    noise, batches = lab.fork("noise"), lab.fork("batches")
    with arm.weights("transformer"):
        analog = partial(AnalogLayer, precision=16, leakage=config.leakage, generator=noise)
        network = _Transformer(config.length, config.width, arm.name, analog)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.3 * config.lr)

    def loss(text: Tensor, count: int, draw: torch.Generator) -> Tensor:
        start = torch.randint(len(text) - config.length - 1, (count, 1), generator=draw)
        window = text[start + torch.arange(config.length + 1)]
        return nn.functional.cross_entropy(network(window[:, :-1]).flatten(0, 1), window[:, 1:].flatten())

    for _ in arm.steps(config.text_steps, network, optimizer, noise, batches, name="text"):
        arm.descend(loss(train, 32, batches), optimizer, name="loss, text")
    nats = loss(test, 500, lab.fork("test windows")).detach()
    arm.metric("transformer, bits a character", nats / math.log(2), better="lower")


def _claims(lab: Lab, arms: dict[str, Arm]) -> None:
    relu, smooth, key = arms["ReLU"], [arms["GELU"], arms["SiLU"]], "accuracy, 3 bits"
    lab.claim(
        "CNN at 3 bits, the best step size of ReLU: GELU and SiLU are 4 points above ReLU or more in every replicate",
        *(arm[key] >= relu[key] + 0.04 for arm in smooth),
        all(a >= b + 0.04 for arm in smooth for a, b in zip(arm[key].values, relu[key].values, strict=True)),
    )
    slowly, slowest = f"accuracy, 3 bits{SLOWLY}", f"accuracy, 4 bits{SLOWEST}"
    lab.claim(
        "CNN at 3 bits, steps 0.3 times as large: GELU is at least 30 points above ReLU",
        arms["GELU"][slowly] >= relu[slowly] + 0.3,
    )
    lab.claim(
        "CNN at 4 bits, steps 0.1 times as large, as in the authors' code: the cosine of noisy to noise-free "
        "gradients, mean over training and the second and third layer, is at least 0.05 larger for GELU and SiLU than "
        "for ReLU",
        *(sum(arm[f"cosine, {n}"] - relu[f"cosine, {n}"] for n in LAYERS[1:3]) / 2 >= 0.05 for arm in smooth),
    )
    more = ", ".join(f"{a.name} {(a[slowest] - relu[slowest]) * 100:.1f}" for a in smooth)
    six, three = (
        ", ".join(f"{name} {arms[name][f'accuracy, {bits} bits']:.3f}" for name in names)
        for bits, names in ((6, ("ReLU", "GELU")), (3, ("ELU", "leaky ReLU", "tanh")))
    )
    lab.note(
        f"At 6 bits activations do not differ ({six}); at 4 bits, slowly, {more} points above ReLU are a seed's "
        f"spread. At 3 bits {sum(a < 0.2 for a in relu[key].values)} ReLU networks never began to learn; a smooth "
        f"derivative is not all that counts there, nor is a kink fatal ({three})."
    )
