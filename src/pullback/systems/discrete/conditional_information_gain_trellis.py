"""A convolutional network as a trellis of thin experts, routed by what the route says about the class.

Each level has several experts, of which a sample uses one, whichever it used before. A router picks it, and learns
from the mutual information of expert and class over the batch, not from the loss of classification (Bicici, Meral,
Akarun, Pattern Recognition Letters 2024): a sample costs a thin network, the trellis knows as much as a thick one.

Smaller than in the paper: garments of Fashion-MNIST (10 000 to train, 10 000 to test; real), experts of 4 maps and 6
hidden units, 800 steps of 128 with Adam (paper: LeNet and ResNet-110, up to 1 400 epochs with SGD), routers of 16 units
at a constant temperature, experts of a level that begin equal, leaky units (four maps miss one that dies). As in the
paper experts are drawn evenly first and some samples go at random to the end: 10 % (the paper's code: 39 %).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, cast

import torch
from sklearn.metrics import mutual_info_score
from torch import Tensor, nn

from pullback import data, discrete
from pullback.discrete import Router, Trellis, information_gain
from pullback.lab import Arm, Lab, above, at_least, at_most, system


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    train: Annotated[int, at_least(1)] = 10_000
    """Images to learn from."""
    test: Annotated[int, at_least(8)] = 10_000
    """Images of the test."""
    steps: Annotated[int, at_least(1)] = 800
    """Adam steps of each network."""
    warm_up: Annotated[int, at_least(0)] = 130
    """Steps at the beginning in which experts are drawn evenly, while routers learn already."""
    batch: Annotated[int, at_least(2)] = 128
    """Images a step."""
    maps: Annotated[int, at_least(1)] = 4
    """Maps of the common layer and of an expert of the first level."""
    hidden: Annotated[int, at_least(1)] = 6
    """Hidden units of an expert of the second level."""
    lr: Annotated[float, above(0)] = 2e-2
    """Step size of Adam, which falls to 0 linearly."""
    gain: Annotated[float, at_least(0)] = 0.3
    """Weight of the information gain of each router in the loss."""
    balance: Annotated[float, at_least(1)] = 1.5
    """Favours experts that are used evenly; 1 is the mutual information."""
    random: Annotated[float, at_least(0), at_most(1)] = 0.1
    """Probability of a random expert after the warm-up, of routers that learn from information."""
    replicates: Annotated[int, at_least(1)] = 2
    """Initialisations and batch streams, each the same for all arms; some arms see fewer."""


LEVELS = (2, 4)
SEEN = {"random routes": 1, "Gumbel routes": 1, "tree": 1}  # replicates: they are far away, or nothing is claimed
GARMENTS = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
TREE = [torch.ones(1, 2, dtype=torch.bool), torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1]], dtype=torch.bool)]


@system(
    "conditional-information-gain-trellis",
    family="discrete",
    title="Conditional Information Gain Trellis",
    paper="Bicici, Meral, Akarun, Pattern Recognition Letters 2024, arXiv 2402.08345",
    config=Config,
    smoke={"test": 60, "steps": 4, "warm_up": 1, "batch": 24, "replicates": 1},
    full={"train": 60_000, "test": 10_000, "steps": 28_000, "warm_up": 7_000, "random": 0.39, "maps": 16, "hidden": 32},
    data=("fashion_mnist",),
    blocks=tuple(f"discrete.{b}" for b in ("information_gain", "Router", "dispatch", "Trellis", "expected_macs")),
)
def run(lab: Lab, config: Config) -> None:
    """Check the exact parts, train the trellis and its baselines, look at what goes where, measure dispatch."""
    _exact(lab)
    parts = [(data.digits if lab.scale == "smoke" else data.fashion_mnist)(split) for split in ("train", "test")]
    counts = (config.train, config.test)
    train, test = ((x[:n, None].to(lab.device), y[:n].to(lab.device)) for (x, y), n in zip(parts, counts, strict=True))
    lab.data("UCI digits, 8 x 8" if lab.scale == "smoke" else "Fashion-MNIST", origin="real")
    side = train[0].shape[-1]
    builders: dict[str, Callable[[], nn.Module]] = {
        "CIGT": partial(_trellis, config, side, "information_gain"),
        "random routes": partial(_trellis, config, side, "information_gain"),
        "Gumbel routes": partial(_trellis, config, side, "gumbel"),
        "tree": partial(_trellis, config, side, "information_gain", links=TREE),
        "thin": partial(_network, config, side, 1.0),
        "thick": partial(_network, config, side, _scale_of_equal_size(config, side)),
    }
    arms = [lab.arm(name, baseline=name != "CIGT") for name in builders]
    for number in lab.replicates(config.replicates):
        networks = {}
        for arm in (arm for arm in arms if number < SEEN.get(arm.name, config.replicates)):
            with arm.weights():
                networks[arm.name] = builders[arm.name]().to(lab.device)
            _train(lab, config, arm, networks[arm.name], train)
            _look(lab, config, arm, networks[arm.name], test)
    _judge(lab, arms[0])
    _draw(lab, cast(Trellis, networks["CIGT"]), test)
    if lab.scale != "smoke":
        _cost(lab)


def _stem(maps: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, maps, 3, stride=2, padding=1), nn.LeakyReLU(0.1))


def _convolution(maps: int, out: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(maps, out, 3, padding=1), nn.LeakyReLU(0.1), nn.MaxPool2d(2))


def _classifier(features: int, hidden: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(features, hidden), nn.Tanh(), nn.Linear(hidden, 10))


def _network(config: Config, side: int, scale: float) -> nn.Module:
    """One expert a level, ``scale`` times as wide."""
    maps, hidden = round(scale * config.maps), round(scale * config.hidden)
    return nn.Sequential(_stem(maps), _convolution(maps, maps), _classifier((side // 4) ** 2 * maps, hidden))


def _trellis(config: Config, side: int, method: str, links: list[Tensor] | None = None) -> Trellis:
    maps, size = config.maps, side // 4
    firsts = (_convolution(maps, maps), _classifier(size**2 * maps, config.hidden))
    levels = [[copy.deepcopy(first) for _ in range(count)] for first, count in zip(firsts, LEVELS, strict=True)]
    routers = []
    for count, pool, before in zip(LEVELS, (max(1, size // 2), max(1, size // 3)), (side // 2, size), strict=True):
        pooled = [nn.AvgPool2d(pool), nn.Flatten(), nn.Linear((before // pool) ** 2 * maps, 16)]
        features = nn.Sequential(*pooled, nn.BatchNorm1d(16), nn.ReLU())
        routers.append(Router(16, count, method=method, features=features))
    return Trellis(_stem(maps), levels, routers, nn.Identity(), links=links)


def _scale_of_equal_size(config: Config, side: int) -> float:
    """The width at which a network without experts has the parameters of the trellis, its routers included."""
    wanted = _size(_trellis(config, side, "information_gain"))
    return min((s / 20 for s in range(20, 100)), key=lambda s: abs(_size(_network(config, side, s)) - wanted))


def _size(network: nn.Module) -> int:
    return nn.utils.parameters_to_vector(network.parameters()).numel()


def _train(lab: Lab, config: Config, arm: Arm, network: nn.Module, train: tuple[Tensor, Tensor]) -> None:
    optimizer = torch.optim.Adam(network.parameters(), lr=config.lr, fused=True)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1e-3, config.steps)
    batches, routes = lab.fork("batches"), lab.fork("routes")
    for step in arm.steps(config.steps, network, optimizer, schedule, batches, routes):
        chosen = torch.randint(len(train[0]), (config.batch,), generator=batches).to(lab.device)
        x, labels = train[0][chosen], train[1][chosen]
        if isinstance(network, Trellis):
            share = {"random routes": 1.0, "Gumbel routes": 0.0}.get(arm.name, config.random)
            x, routings = network(x, random=1.0 if step < config.warm_up else share, generator=routes)
        else:
            x, routings = network(x), ()
        loss = nn.functional.cross_entropy(x, labels)
        if arm.name in ("CIGT", "tree"):
            gains = [information_gain(r.probabilities, labels, 10, balance=config.balance) for r in routings]
            loss = loss - config.gain * sum(gains)
        if routings and step % 10 == 0:
            use = routings[-1].probabilities.detach().mean(0)
            arm.record("entropy of use", torch.special.entr(use).sum() / math.log(LEVELS[-1]))
        arm.descend(loss, optimizer)
        schedule.step()
    network.eval()


@torch.no_grad()
def _look(lab: Lab, config: Config, arm: Arm, network: nn.Module, test: tuple[Tensor, Tensor]) -> None:
    """What a trained network gets right, costs, and sends where."""
    x, labels = test
    arm.metric("parameters", _size(network), better="lower")
    arm.metric("multiply-adds", discrete.expected_macs(network, x[:2]).mean, better="lower")
    if isinstance(network, Trellis):
        share = float(arm.name == "random routes")
        logits, routings = network(x, random=share, generator=lab.fork("routes of the test"))
    else:
        logits, routings = network(x), ()
    arm.metric("test accuracy", 100 * (logits.argmax(-1) == labels).float().mean(), better="higher", unit="%")
    for level, (count, routing) in enumerate(zip(LEVELS, routings, strict=False), 1):
        taken = nn.functional.one_hot(routing.index[:, 0], count).float()
        use = taken.mean(0)
        arm.metric(f"gain of level {level}", information_gain(taken, labels, 10) / math.log(count), better="higher")
        arm.metric(f"entropy of use, level {level}", torch.special.entr(use).sum() / math.log(count), better="higher")
        arm.metric(f"smallest share, level {level}", 100 * use.min(), better="higher", unit="%")
        arm.metric(f"largest share, level {level}", 100 * use.max(), better="lower", unit="%")


def _judge(lab: Lab, ours: Arm) -> None:
    use = "entropy of use, level {}"
    thin, thick, anywhere, gumbel = (lab.arms[name] for name in ("thin", "thick", "random routes", "Gumbel routes"))
    lab.claim(
        "the trellis is at least 1 point more accurate than the thin network of its multiply-adds, and at most 3 "
        "points less than the thick network of its parameters, at 45 % or less of the thick one's multiply-adds",
        ours["test accuracy"] >= thin["test accuracy"] + 1,
        ours["test accuracy"] >= thick["test accuracy"] - 3,
        ours["multiply-adds"] <= 0.45 * thick["multiply-adds"],
        ours["multiply-adds"] <= 1.1 * thin["multiply-adds"],
    )
    lab.claim(
        "routes by information are at least 2 points more accurate than random ones, and at most half a point less "
        "than Gumbel routes that learn from the loss, with experts that are used more evenly (entropy of both levels)",
        ours["test accuracy"] >= anywhere["test accuracy"] + 2,
        ours["test accuracy"] >= gumbel["test accuracy"] - 0.5,
        ours[use.format(1)] + ours[use.format(2)] >= gumbel[use.format(1)] + gumbel[use.format(2)] + 0.1,
    )
    lab.claim(
        "on unseen images the route holds at least 0.6 of the information that so many experts can hold at each level, "
        "random routes at most 0.05; no expert serves less than 5 %, none of four more than 60 %",
        *(ours[f"gain of level {level}"] >= 0.6 for level in (1, 2)),
        *(anywhere[f"gain of level {level}"] <= 0.05 for level in (1, 2)),
        *(ours[f"smallest share, level {level}"] >= 5 for level in (1, 2)),
        ours["largest share, level 2"] <= 60,
    )


def _exact(lab: Lab) -> None:
    """Information gain against scikit-learn, dispatch against all experts and a mask."""
    stream, off, bounded = lab.fork("exact"), 0.0, True
    for _ in range(20):
        labels, groups = (torch.randint(count, (50,), generator=stream) for count in (5, 4))
        gain = information_gain(nn.functional.one_hot(groups, 4).double(), labels, 5).item()
        off = max(off, abs(gain - mutual_info_score(labels.numpy(), groups.numpy())))
        soft = torch.softmax(3 * torch.randn(50, 4, generator=stream, dtype=torch.float64), -1)
        most = min(math.log(4), torch.special.entr(labels.bincount() / 50).sum().item())
        bounded = bounded and -1e-12 <= information_gain(soft, labels, 5).item() <= most
    scores = torch.randn(8, 4, generator=stream, dtype=torch.float64, requires_grad=True)
    lab.claim(
        "information gain is scikit-learn's mutual information to 1e-9 on certain groups, between 0 and the smaller of "
        "the entropy of the classes and log 4, and passes gradcheck",
        off <= 1e-9,
        bounded,
        torch.autograd.gradcheck(lambda s: information_gain(torch.softmax(s, -1), labels[:8], 5), scores),
        scale="smoke",
        largest_difference=off,
    )
    experts, x, index = _experts(stream)
    difference = float((discrete.dispatch(x, index, experts) - _masked(experts, x, index)).detach().abs().max())
    lab.claim("dispatch equals masks to 1e-6", difference <= 1e-6, scale="smoke", difference=difference)


def _experts(stream: torch.Generator) -> tuple[list[nn.Module], Tensor, Tensor]:
    experts = [_convolution(8, 8) for _ in range(4)]
    for expert in experts:
        for parameter in expert.parameters():
            nn.init.uniform_(parameter, -0.3, 0.3, generator=stream)
    x = torch.randn(128, 8, 14, 14, generator=stream)
    return experts, x, torch.randint(4, (128,), generator=stream)


def _masked(experts: list[nn.Module], x: Tensor, index: Tensor) -> Tensor:
    mask = nn.functional.one_hot(index, len(experts)).to(x)
    return sum(mask[:, e].reshape(-1, 1, 1, 1) * expert(x) for e, expert in enumerate(experts))


def _cost(lab: Lab) -> None:
    experts, x, index = _experts(lab.fork("cost"))
    race = lab.race(
        {
            "dispatch": lambda: discrete.dispatch(x, index, experts).sum().backward(),
            "masks": lambda: _masked(experts, x, index).sum().backward(),
        }
    )
    lab.claim(
        "four experts, 128 samples, forward and backward, one thread: dispatch is at least 1.5 times as fast as masks",
        race.ratio("masks", "dispatch") >= 1.5,
    )


@torch.no_grad()
def _draw(lab: Lab, trellis: Trellis, test: tuple[Tensor, Tensor]) -> None:
    first, second = (routing.index[:, 0].cpu() for routing in trellis(test[0]).routings)
    labels = nn.functional.one_hot(test[1].cpu(), 10).float()
    figure, (*tables, paths) = lab.subplots(1, 3, figsize=(10, 4.2), width_ratios=(2, 4, 6))
    for axis, chosen, count in zip(tables, (first, second), LEVELS, strict=True):
        share = labels.T @ nn.functional.one_hot(chosen, count).float() / labels.sum(0).clamp(min=1)[:, None]
        axis.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        axis.grid(visible=False)
        axis.set(xticks=range(count), title=f"level {1 if axis is tables[0] else 2}", xlabel="expert")
        axis.set_yticks(range(10), GARMENTS if axis is tables[0] and test[0].shape[-1] == 28 else " " * 10)
    places = [[4 * (node + 0.5) / count for node in range(count)] for count in (1, *LEVELS)]
    flows = first.bincount(minlength=2)[None], (4 * first + second).bincount(minlength=8).view(2, 4)
    for column, flow in enumerate(flows):
        for (i, j), count in zip(flow.new_ones(flow.shape).nonzero().tolist(), flow.flatten().tolist(), strict=True):
            line = (places[column][i], places[column + 1][j])
            paths.plot((column, column + 1), line, lab.arm("CIGT").colour, linewidth=30 * count / len(first), alpha=0.5)
    for column, nodes in enumerate(places):
        for number, height in enumerate(nodes):
            paths.text(column, height, number if column else "stem", bbox={"boxstyle": "round", "fc": "white"})
    paths.set(ylim=(0, 4), title="paths")
    paths.set_axis_off()
    caption = "Share of each class of the test images that an expert gets, and of all that take a path; last replicate."
    lab.figure("what goes where", figure, caption)
    lab.curves("entropy of use", log=False, caption="Of mean probabilities of the second router, as a share of log 4.")
    lab.bars("test accuracy", caption="Accuracy on the test images.")
