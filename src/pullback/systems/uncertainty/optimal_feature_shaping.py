"""Telling unseen kinds of images from known ones by reshaping the features of a classifier, in closed form.

Multiply each feature under the last layer by a function of its own value, constant on a hundred bins. The logit of the
predicted class is linear in these hundred numbers, so those that raise it most on the training set are its mean
contributions, scaled: no data from outside, no tuning, one pass (Zhao, Xu, Gupta, Asthana, Zheng, Gould, ICLR 2024).
Where something stands in for the unknown, its contributions are subtracted. Compared with clipping (ReAct), clipping
and zeroing (VRA), keeping the largest features (ASH) or weights (DICE), with plain logits, and with distances.

Smaller than in the paper: garments of 28 x 28 pixels and four networks of at most 80 000 weights. The images are real,
but for the noise. Not as in the paper: the level of every rival is chosen on noise and shuffled garments (there it is
what each had published, for other networks), and with that ReAct is as good and VRA a little better; distances between
features are better than all that shapes them. Shaping helps where features are averaged over the image after batch
normalisation, as in the paper's residual networks, with ReLU and with GELU, not after plain convolutions; where layers
are normalised (mixer, transformer) the energy of plain features is about as good or better.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise
from typing import Annotated, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy, interpolate

from pullback import data
from pullback import uncertainty as un
from pullback.lab import Arm, Lab, above, at_least, system


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    images: Annotated[int, at_least(40)] = 8000
    """Garments to train on; a tenth as many are held out to choose levels."""
    tested: Annotated[int, at_least(4)] = 500
    """Images of each kind that scores are judged on."""
    steps: Annotated[int, at_least(1)] = 350
    """Adam steps of each network."""
    batch: Annotated[int, at_least(2)] = 64
    """Garments a step."""
    lr: Annotated[float, above(0)] = 5e-3
    """Largest step size, reached after a third of the steps; it falls to 0."""
    bins: Annotated[int, at_least(2)] = 100
    """On which the multiplier is constant."""
    replicates: Annotated[int, at_least(1)] = 3
    """Garments, initialisations and batches."""


POOLED = ("convolutions, ReLU", "convolutions, GELU")
AUROC = {backbone: f"AUROC, {backbone}" for backbone in (*POOLED, "mixer", "transformer")}
OURS, INFORMED = "optimal shaping", "optimal shaping, informed"
METHODS = {OURS: "shaping", INFORMED: "shaping", "ReAct": "react", "VRA": "vra", "ASH": "ash", "DICE": "dice"}
PLAIN = {"energy": "energy", "largest logit": "max_logit", "softmax": "msp"}
METHODS |= PLAIN | {"Mahalanobis": "mahalanobis", "nearest neighbours": "knn"}
SURROGATES = ("shuffled", "rough noise", "smooth noise")
LEVELS: dict[str, Sequence[float | tuple[float, float]]] = {
    "react": (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99),
    "vra": [(low, high) for low in (0.05, 0.2, 0.4, 0.6, 0.7) for high in (0.8, 0.9, 0.95, 0.99)],
    "ash": (0.1, 0.3, 0.5, 0.65, 0.8, 0.9, 0.95),
    "dice": (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95),
}
Tensors = dict[str, Tensor]
Shapes = dict[str, dict[str, tuple[Tensor, ...]]]
garments = cache(data.fashion_mnist)


class Features(NamedTuple):
    """What a network makes of images, and the layer above."""

    known: Tensors
    labels: Tensor
    outside: Tensors
    head: nn.Linear


@system(
    "optimal-feature-shaping",
    family="uncertainty",
    title="Towards Optimal Feature-Shaping Methods for Out-of-Distribution Detection",
    paper="Zhao, Xu, Gupta, Asthana, Zheng, Gould, ICLR 2024, arXiv 2402.00865",
    config=Config,
    smoke={"images": 300, "tested": 40, "steps": 2, "batch": 32, "replicates": 1},
    full={"images": 54_000, "tested": 5000, "steps": 8000, "replicates": 5},
    data=("fashion_mnist", "mnist", "opencv_digits", "pictures"),
    blocks=(
        *(f"uncertainty.{b}" for b in ("optimal_shaping", "Shaping", "feature_contributions", "linear_head")),
        *(f"uncertainty.{b}" for b in ("ood_score", "fit_ood_score", "detection_metrics")),
    ),
)
def run(lab: Lab, config: Config) -> None:
    """Train four networks, shape their features in every way, and look at eight kinds of unknown images."""
    lab.data("Fashion-MNIST; unknown: digits, textures, photographs", origin="real")
    lab.data("unknown: uniform noise, garments with inverted grey values", origin="simulated")
    arms = {name: lab.arm(name, baseline=name not in (OURS, INFORMED)) for name in METHODS}
    for replicate in lab.replicates(config.replicates):
        shapes, images = Shapes(), _images(lab, config)
        for backbone in AUROC:
            features = _train(lab, config, backbone, *images)
            if replicate == 0 and backbone == POOLED[0]:
                _closed_form(lab, config, features)
            shapes[backbone] = {name: _judge(config, arm, backbone, features).values for name, arm in arms.items()}
    pooled = {name: sum(arm[AUROC[b]] for b in POOLED) / 2 for name, arm in arms.items()}
    mean = {name: sum(arm[a] for a in AUROC.values()) / 4 for name, arm in arms.items()}
    lab.claim(
        "features averaged over the image: with nothing from outside its AUROC is at least 0.15 above that of "
        "energy, largest logit and DICE, and 0.05 above that of ASH; the levels of DICE and ASH were chosen",
        *(pooled[OURS] >= pooled[rival] + 0.15 for rival in ("energy", "largest logit", "DICE")),
        pooled[OURS] >= pooled["ASH"] + 0.05,
    )
    lab.claim(
        "mean over the four networks: its AUROC is at least 0.05 above that of the first three, 0.02 above that of ASH",
        *(mean[OURS] >= mean[rival] + 0.05 for rival in ("energy", "largest logit", "DICE")),
        mean[OURS] >= mean["ASH"] + 0.02,
    )
    lab.claim(
        "features averaged over the image: subtracting what stands in for the unknown raises the AUROC by at least "
        "0.03, and no way to clip, its level chosen on the same images, is then more than 0.02 ahead",
        pooled[INFORMED] >= pooled[OURS] + 0.03,
        *(pooled[INFORMED] >= pooled[rival] - 0.02 for rival in ("ReAct", "VRA")),
    )
    lab.bars(*AUROC.values(), caption="Mean over eight kinds of unknown images; convolutions: distances are far ahead.")
    _draw(lab, shapes)


def _images(lab: Lab, config: Config) -> tuple[Tensors, Tensors, Tensors]:
    """Garments to train on, held out, and to test, and what stands in for the unknown; labels; the unknown."""
    g, count = lab.fork("images"), config.tested
    seen, unseen = garments("train"), garments("test")
    order = torch.randperm(len(seen.labels), generator=g)
    train, held_out, _ = order.tensor_split((config.images, config.images + config.images // 10))
    test, other = torch.randperm(len(unseen.labels), generator=g)[: 2 * count].chunk(2)
    known = {"train": seen.images[train], "held out": seen.images[held_out], "inside": unseen.images[test]}
    labels = {"train": seen.labels[train], "inside": unseen.labels[test]}
    digits, coarse = (x.images[torch.randperm(5000, generator=g)[:count]] for x in (data.mnist(), data.opencv_digits()))
    unknown = {"MNIST": digits, "digits": interpolate(coarse[:, None], (28, 28), mode="bilinear")[:, 0]}
    cut = partial(data.patches, size=28, generator=g)
    for name in ("brick", "grass", "gravel"):
        unknown[name] = cut(data.picture(name)[..., 0], count=count)
    photographs = [cut(data.picture(x).mean(-1), count=count // 3 + 1) for x in ("coffee", "astronaut", "chelsea")]
    unknown |= {"photographs": torch.cat(photographs)[:count], "noise": torch.rand(count, 28, 28, generator=g)}
    unknown["inverted"] = 1 - unseen.images[other]
    few = known["held out"].flatten(1)
    few = few.gather(-1, torch.rand(few.shape, generator=g).argsort(-1))
    rough = 0.5 + 0.3 * torch.randn(len(few), 28, 28, generator=g)
    smooth = 0.5 + 1.5 * avg_pool2d(torch.randn(len(few), 32, 32, generator=g), 5, 1)
    names = zip(SURROGATES, (few.view(-1, 28, 28), rough.clamp(0, 1), smooth.clamp(0, 1)), strict=True)
    return known | dict(names), labels, unknown


def _train(lab: Lab, config: Config, backbone: str, images: Tensors, labels: Tensors, unknown: Tensors) -> Features:
    """Train a classifier of garments; return the input of its last layer, for all images."""
    arm = lab.arm("classifiers", baseline=True)
    with arm.weights(backbone):
        network = nn.Sequential(*BODIES[backbone]()).to(lab.device)
    optimizer, batches = torch.optim.Adam(network.parameters()), lab.fork(f"batches, {backbone}")
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, max(config.steps, 2), pct_start=1 / 3)
    for _ in arm.steps(config.steps, network, optimizer, schedule, batches, name=backbone):
        chosen = torch.randint(config.images, (config.batch,), generator=batches)
        logits = network(images["train"][chosen].to(lab.device))
        arm.descend(cross_entropy(logits, labels["train"][chosen].to(lab.device)), optimizer, name=f"loss, {backbone}")
        schedule.step()
    network.eval()
    body, head = network[:-1], un.linear_head(network).requires_grad_(False)
    with torch.no_grad():
        known, outside = (
            {name: torch.cat([body(part.to(lab.device)) for part in x.split(500)]) for name, x in group.items()}
            for group in (images, unknown)
        )
    right = (head(known["inside"]).argmax(-1).cpu() == labels["inside"]).float().mean()
    arm.metric(f"accuracy, {backbone}", 100 * right, better="higher", unit="%")
    return Features(known, labels["train"].to(lab.device), outside, head)


def _convolutions(act: type[nn.Module]) -> list[nn.Module]:
    layers: list[nn.Module] = [nn.Unflatten(1, (1, 28))]
    for channels, width in pairwise((1, 16, 32, 128)):
        layers += [nn.Conv2d(channels, width, 3, 2, 1), nn.BatchNorm2d(width), act()]
    return [*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10)]


class Mixing(nn.Module):
    """What tokens tell each other through two layers, then what each makes of it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(64), nn.LayerNorm(64)
        self.across = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.within = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64))

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens of the same shape."""
        x = x + self.across(self.first(x).mT).mT
        mixed: Tensor = x + self.within(self.second(x))
        return mixed


class Tokens(nn.Module):
    """Squares of 7 x 7 pixels as tokens of 64 numbers, through two layers; their mean, normalised."""

    def __init__(self, layer: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.embedding, self.places = nn.Conv2d(1, 64, 7, 7), nn.Parameter(0.02 * torch.randn(16, 64))
        self.layers, self.norm = nn.Sequential(layer(), layer()), nn.LayerNorm(64)

    def forward(self, x: Tensor) -> Tensor:
        """Return features ``[n, 64]`` of images ``[n, 28, 28]``."""
        tokens = self.embedding(x.unsqueeze(1)).flatten(2).mT + self.places
        features: Tensor = self.norm(self.layers(tokens).mean(1))
        return features


ATTENTION = partial(nn.TransformerEncoderLayer, 64, 4, 128, 0.0, "gelu", batch_first=True, norm_first=True)
BODIES: dict[str, Callable[[], list[nn.Module]]] = {
    POOLED[0]: partial(_convolutions, nn.ReLU),
    POOLED[1]: partial(_convolutions, nn.GELU),
    "mixer": lambda: [Tokens(Mixing), nn.Linear(64, 10)],
    "transformer": lambda: [Tokens(ATTENTION), nn.Linear(64, 10)],
}


def _judge(config: Config, arm: Arm, backbone: str, of: Features) -> un.OutlierState:
    """Fit a score, choose its level on what stands in for the unknown, and let it detect each kind of it."""
    method, weight, bias = METHODS[arm.name], of.head.weight, of.head.bias

    def detects(state: un.OutlierState, inside: str, outside: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        known = un.ood_score(of.known[inside], weight, bias, method=state)
        found = [un.detection_metrics(known, un.ood_score(x, weight, bias, method=state)) for x in outside]
        return torch.stack([f.auroc for f in found]), torch.stack([f.false_positive_rate for f in found])

    def succeeds(level: float | tuple[float, float] | None) -> float:
        return float(detects(fit(of.known["held out"], level=level), "held out", surrogates)[0].mean())

    state = un.OutlierState(method, ())
    if method not in PLAIN.values():
        surrogates = [of.known[name] for name in SURROGATES]
        fit = partial(un.fit_ood_score, weight=weight, bias=bias, method=method)
        level = max(LEVELS[method], key=succeeds) if method in LEVELS else None
        outlier = torch.cat(surrogates) if arm.name == INFORMED else None
        fit = partial(fit, labels=of.labels, bins=config.bins)
        state = fit(of.known["train"], level=level, outlier=outlier)
    auroc, false_positives = detects(state, "inside", list(of.outside.values()))
    arm.metric(AUROC[backbone], auroc.mean(), better="higher")
    arm.metric(f"false positives, {backbone}", 100 * false_positives.mean(), better="lower", unit="%")
    return state


def _closed_form(lab: Lab, config: Config, of: Features) -> None:
    """Against gradient ascent through the shaped features, sums over bins one by one, and a tenth of the data."""
    arm = lab.arm(OURS)
    z, weight, predictions = of.known["train"].double(), of.head.weight.double(), of.head(of.known["train"]).argmax(-1)
    whole = un.optimal_shaping(z, weight, predictions, bins=config.bins)
    z, predictions = (x[: len(x) // 10] for x in (z, predictions))
    part = un.optimal_shaping(z, weight, predictions, bins=config.bins)
    change = arm.metric("change with a tenth of the data", (part.theta - whole.theta).norm() / whole.theta.norm())

    def logit(shaping: un.Shaping) -> Tensor:
        return (weight[predictions] * shaping(z)).sum(-1).mean()

    radius, errors = config.bins**0.5, []
    for start in torch.randn(5, config.bins, generator=lab.fork("starts"), dtype=torch.float64):
        shaping = un.Shaping(part.edges, (radius * start / start.norm()).to(z.device))
        for _ in range(30):
            (slope,) = torch.autograd.grad(logit(shaping), [shaping.theta])
            with torch.no_grad():
                ascended = shaping.theta + 10 * radius * slope / slope.norm()
                shaping.theta.copy_(radius * ascended / ascended.norm())
        errors.append([(logit(shaping) / logit(part) - 1).abs(), (shaping.theta - part.theta).abs().max()])
    objective, multiplier = (max(error) for error in zip(*errors, strict=True))
    worst = arm.metric("objective of ascent, off by", objective, better="lower")
    off = arm.metric("multiplier of ascent, off by", multiplier, better="lower")
    share = weight[predictions] * z
    loops = [(share * ((z >= low) & (z < high))).sum(-1) for low, high in pairwise(part.edges)]
    vectorised = un.feature_contributions(z, weight, predictions, part.edges)
    error = arm.metric("error of contributions", (vectorised - torch.stack(loops, -1)).abs().max(), better="lower")
    ascent = "gradient ascent from 5 starts reaches the closed form: its objective to 1e-6, the multiplier to 1e-3"
    lab.claim(ascent, worst <= 1e-6, off <= 1e-3, scale="smoke")
    lab.claim("contributions equal sums over bins, one by one, to 1e-5", error <= 1e-5, scale="smoke")
    lab.claim("a tenth of the training set changes the multiplier by at most 10 %", change <= 0.1)


def _draw(lab: Lab, shapes: Shapes) -> None:
    figure, axes = lab.subplots(1, len(shapes), figsize=(12, 3.2))
    for axis, (backbone, states) in zip(axes, shapes.items(), strict=True):
        (edges, _), (ceiling,), (floor, top) = states[OURS], states["ReAct"], states["VRA"]
        z = torch.linspace(float(edges[0]), float(edges[-1]), 400)
        for name in (OURS, INFORMED):
            axis.plot(z, un.Shaping(*states[name])(z).detach() / z, color=lab.colour(name), label=name)
        axis.plot(z, z.clamp(max=ceiling) / z, color=lab.colour("ReAct"), label="ReAct")
        axis.plot(z, (z > floor) * z.clamp(max=top) / z, color=lab.colour("VRA"), label="VRA")
        axis.set(title=backbone, xlabel="feature")
    axes[0].set(ylabel="multiplier")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    lab.figure("multipliers", figure, "What each value of a feature is multiplied by; of the last replicate.")
