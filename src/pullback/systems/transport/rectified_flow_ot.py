"""Rectified flows: straight paths between paired points, made into a flow, until the pairs are optimally matched.

Draw a line between the points of each pair, learn the mean velocity of all lines, follow it: the flow keeps both
distributions, and its pairs cost no more than the old ones, for every convex cost at once. Again and again this makes
paths straight, but not optimal: a rotation stays as it is. If the velocity is of the form grad c*(grad f), with one
potential f, trained by a loss made of the conjugate c* of one cost c, only the best coupling for that cost stays (Liu,
2022; distributions with gaps can need more: Hertrich, Chambolle, Delon, 2025). Smaller than in the paper: networks of
some 2 000 weights, three rounds. The photographs are real.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, NamedTuple

import torch
from torch import Tensor, nn

from pullback import data, dynamics, transport
from pullback.lab import Arm, Lab, Measured, above, at_least, system

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    pairs: Annotated[int, at_least(3)] = 4095
    """Of each coupling."""
    tested: Annotated[int, at_least(3)] = 999
    """Further points on which flows are judged."""
    steps: Annotated[tuple[int, ...], at_least(1)] = (2000, 400, 400)
    """Adam steps of each round; the network of one round goes on in the next."""
    batch: Annotated[int, at_least(1)] = 512
    """Pairs a step, each at a time of its own."""
    lr: Annotated[tuple[float, float, float], above(0)] = (0.03, 0.02, 0.02)
    """Step size of Adam at the beginning of a round, of each arm: the best of 0.003 to 0.1, by what is carried to the
    right places. It falls to 0 on a cosine."""
    width: Annotated[int, at_least(1)] = 32
    """Of three hidden layers."""
    flow_steps: Annotated[int, at_least(1)] = 25
    """Runge-Kutta steps of a flow."""
    pixel_steps: Annotated[tuple[int, ...], at_least(1)] = (1500, 300, 300)
    """Adam steps of each round on the colours."""


@system(
    "rectified-flow-ot",
    family="transport",
    title="Rectified Flow: A Marginal Preserving Approach to Optimal Transport",
    paper="Liu, 2022, arXiv 2209.14577",
    config=Config,
    smoke={"pairs": 60, "tested": 30, "steps": (3, 2), "pixel_steps": (2, 1), "flow_steps": 2},
    full={"pairs": 100_000, "steps": (20_000,) * 3, "pixel_steps": (20_000,) * 3, "batch": 1024, "width": 256},
    data=("pictures",),
    blocks=(
        *(f"transport.{b}" for b in ("flow_matching_loss", "conjugate_flow_loss", "PotentialVelocity", "PowerCost")),
        *(f"transport.{b}" for b in ("rectify", "straightness", "sliced_wasserstein", "exact_transport")),
    ),
)
def run(lab: Lab, config: Config) -> None:
    """Straighten a rotation, mixtures for two costs, and the colours of two photographs."""
    plain, *ours = (lab.arm(name, baseline=cost is None) for name, cost in ARMS.items())
    lab.data("a rotation, and mixtures of three Gaussians in two dimensions", origin="simulated")
    _rotation(lab, config, [plain, ours[0]])
    _mixture(lab, config, [plain, *ours])
    lab.data("colours of two photographs, coffee and astronaut", origin="real")
    _colours(lab, config, [plain, ours[0]])


class TimeNetwork(nn.Module):
    """A smooth perceptron of time and place: a velocity, or with one output a potential."""

    def __init__(self, dim: int, outputs: int, width: int) -> None:
        super().__init__()
        sizes = pairwise((dim + 1, width, width, width))
        layers = [layer for i, o in sizes for layer in (nn.Linear(i, o), nn.Tanh())]
        self.layers = nn.Sequential(*layers, nn.Linear(width, outputs))

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """Return ``[*batch, outputs]``, ``[*batch]`` for one output."""
        found: Tensor = self.layers(torch.cat([t.expand(*x.shape[:-1], 1), x], -1))
        return found.squeeze(-1)


COSTS = {"|z|²/2": transport.PowerCost(2), "|z|⁴/4": transport.PowerCost(4)}
ARMS = {"rectified": None} | {f"for {name}": cost for name, cost in COSTS.items()}
"""The cost that each is rectified for: none, or one of two."""


class Round(NamedTuple):
    """A trained flow: its velocity, and where it carries unseen points."""

    velocity: nn.Module
    unseen: transport.Coupling


def _rounds(
    lab: Lab,
    config: Config,
    arm: Arm,
    name: str,
    pairs: transport.Coupling,
    unseen: Tensor,
    steps: tuple[int, ...],
    independent: bool = True,
) -> Iterator[Round]:
    """Rectify a coupling again and again; pairs of the first may be drawn anew in each step."""
    cost, lr = ARMS[arm.name], config.lr[list(ARMS).index(arm.name)]
    dim = unseen.shape[-1]
    with arm.weights(name):
        network = TimeNetwork(dim, dim if cost is None else 1, config.width)
    velocity: nn.Module = network if cost is None else transport.PotentialVelocity(network, cost)
    loss = transport.flow_matching_loss if cost is None else partial(transport.conjugate_flow_loss, cost=cost)
    follow = partial(transport.rectify, velocity, steps=config.flow_steps)
    for k, count in enumerate(steps, 1):
        optimizer = torch.optim.Adam(network.parameters(), lr=lr)
        falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, count)
        draws = lab.fork(f"{name}, round {k}")
        for _ in arm.steps(count, network, optimizer, falling, draws, name=f"{name}, round {k}"):
            first, other = torch.randint(len(pairs.z0), (2, config.batch), generator=draws)
            partners = pairs.z1[other if independent and k == 1 else first]
            value = loss(network, pairs.z0[first], partners, generator=draws)
            arm.descend(value, optimizer, name=f"{name}, round {k}: loss")
            falling.step()
        with torch.no_grad():
            pairs, carried = follow(pairs.z0), follow(unseen)
        yield Round(velocity, carried)


def _paid(pairs: transport.Coupling, cost: transport.PowerCost) -> Tensor:
    return cost.value((pairs.z1 - pairs.z0).double()).mean()


def _least(x: Tensor, y: Tensor, cost: transport.PowerCost) -> Tensor:
    """What the best matching of two clouds costs."""
    return transport.exact_transport(cost(x.double(), y.double())).value


def _excess(pairs: transport.Coupling, cost: transport.PowerCost) -> Tensor:
    """What pairs pay more than the best matching of the same points, in percent of that."""
    return 100 * (_paid(pairs, cost) / _least(*pairs, cost) - 1)


def _sliced(lab: Lab, x: Tensor, y: Tensor) -> Tensor:
    return transport.sliced_wasserstein(x, y, projections=256, generator=lab.fork("projections"))


def _rotation(lab: Lab, config: Config, arms: list[Arm]) -> None:
    """One round for Gaussian points and the same a quarter turn on."""
    g = lab.fork("rotation")
    x, unseen = torch.randn(config.pairs, 2, generator=g), torch.randn(config.tested, 2, generator=g)
    turn, cost = torch.tensor([[0.0, 1.0], [-1.0, 0.0]]), COSTS["|z|²/2"]
    pairs = transport.Coupling(x, x @ turn)
    before = lab.metric("rotation: mean of |X1-X0|²", 2 * _paid(transport.Coupling(unseen, unseen @ turn), cost))
    for arm in arms:
        (found,) = _rounds(lab, config, arm, "rotation", pairs, unseen, config.steps[1:2], independent=False)
        arm.metric("rotation: mean of |Z1-Z0|²", 2 * _paid(found.unseen, cost))
    plain, ours = (arm["rotation: mean of |Z1-Z0|²"] for arm in arms)
    lab.claim(
        "what a quarter turn costs unseen points, about 4, the plain flow keeps to 5 %; one round for |z|²/2 leaves at "
        "most 0.2",
        abs(plain - before) <= 0.05 * before,
        ours <= 0.2,
    )


def _mixture(lab: Lab, config: Config, arms: list[Arm]) -> None:
    """Rounds for a cost between mixtures whose best matchings differ: the quartic one moves everybody a little."""

    def draw(angle: float, count: int, g: torch.Generator, even: bool = False) -> Tensor:
        """Points around the origin and two opposite centres at distance 2, by chance or as many of each."""
        way = 2 * torch.tensor([math.cos(angle), math.sin(angle)])
        which = torch.randperm(count, generator=g) % 3 if even else torch.randint(3, (count,), generator=g)
        return torch.stack([0 * way, way, -way])[which] + 0.5 * torch.randn(count, 2, generator=g)

    turned, g = math.radians(80), lab.fork("mixture")
    pairs = transport.Coupling(draw(0, config.pairs, g, even=True), draw(turned, config.pairs, g, even=True))
    sources, targets, *others = (draw(way, 8 * config.tested, g).view(8, -1, 2) for way in (0, *[turned] * 17))
    unseen, target = sources[:4], targets[:4]  # The quartic cost of one sample has a noise of 5 %.
    spread = torch.stack([_sliced(lab, *two).mean() for two in zip(others[::2], others[1::2], strict=True)]).mean()
    apart = lab.metric("mixture: SW² of two samples of the target, mean of 64", spread)
    matched = {name: _least(unseen, target, cost).mean() for name, cost in COSTS.items()}
    least = {name: lab.metric(f"mixture: least {name}", value) for name, value in matched.items()}
    figure, grid = lab.subplots(2, len(arms), figsize=(9, 6), sharex=True, sharey=True)
    for arm, (first, last) in zip(arms, grid.T, strict=True):
        for name, cost in COSTS.items():
            arm.metric(f"mixture: {name}, independent", _paid(transport.Coupling(unseen, target), cost))
        for k, found in enumerate(_rounds(lab, config, arm, "mixture", pairs, unseen, config.steps), 1):
            for name, cost in COSTS.items():
                arm.metric(f"mixture: {name}, round {k}", _paid(found.unseen, cost), better="lower")
            with torch.no_grad():
                bend = transport.straightness(found.velocity, unseen[0, :300], steps=config.flow_steps)
            arm.metric(f"mixture: bend, round {k}", bend, better="lower")
            if k in (1, len(config.steps)):
                _paths(first if k == 1 else last, found, f"{arm.name}, round {k}", arm.colour)
        for name, cost in COSTS.items():
            more = _excess(transport.Coupling(*(z[0] for z in found.unseen)), cost)
            arm.metric(f"mixture: excess of {name}", more, unit="%", better="lower")
        with torch.no_grad():
            carried = transport.rectify(found.velocity, sources, steps=config.flow_steps).z1
        arm.metric("mixture: SW² to the target, mean of 8", _sliced(lab, carried, targets).mean(), better="lower")
    lab.figure("paths", figure, "Of 60 unseen points; dots are where they end.")
    _mixture_claims(lab, config, arms, least, apart)


def _mixture_claims(lab: Lab, config: Config, arms: list[Arm], least: dict[str, Measured], apart: Measured) -> None:
    plain, *ours = arms
    own = list(zip(ours, COSTS, strict=True))
    labels = ["independent", *(f"round {k}" for k in range(1, len(config.steps) + 1))]
    for arm, name in own:
        paid = [arm[f"mixture: {name}, {label}"] for label in labels]
        lab.claim(
            f"{arm.name}: independent pairs cost at least 1.5 times the best matching of unseen points, each round at "
            "most 1.02 times the one before, the last within 10 % of the best matching",
            paid[0] >= 1.5 * least[name],
            *(after <= 1.02 * before for before, after in pairwise(paid)),
            abs(paid[-1] - least[name]) <= 0.1 * least[name],
        )
    for arm, name in own:
        lab.claim(
            f"{arm.name}: the last pairs cost at most 0.5 % more than their best matching, and a fifth of the excess "
            "of the plain flow",
            arm[excess := f"mixture: excess of {name}"] <= 0.5,
            arm[excess] <= plain[excess] / 5,
        )
    (squared, quartic), last = ours, f"mixture: |z|⁴/4, {labels[-1]}"
    lab.claim(
        "the quartic cost of the flow for it is at most 0.95 times that of the flow for the squared distance",
        quartic[last] <= 0.95 * squared[last],
    )
    lab.claim(
        "marginals are kept: the squared sliced distance to unseen points of the target is at most twice that of two "
        "samples of it, and 0.001; of the flow for |z|⁴/4, whose velocity is steep, at most three times",
        plain[left := "mixture: SW² to the target, mean of 8"] <= 2 * apart + 1e-3,
        squared[left] <= 2 * apart + 1e-3,
        quartic[left] <= 3 * apart + 1e-3,
    )
    lab.claim(
        "a second round makes paths straight: at most a twentieth of the bend is left",
        *(arm["mixture: bend, round 2"] <= arm["mixture: bend, round 1"] / 20 for arm in arms),
    )
    figure, grid = lab.subplots(1, len(COSTS), figsize=(9, 3.5))
    for axes, name in zip(grid, COSTS, strict=True):
        first, *_ = (float(arm[f"mixture: {name}, independent"]) for arm in arms)
        for arm in arms:
            costs = [float(arm[f"mixture: {name}, {label}"]) for label in labels[1:]]
            axes.plot(range(1, len(labels)), costs, "o-", color=arm.colour, label=arm.name)
        axes.axhline(float(least[name]), color="black", linestyle=":", label="best matching")
        axes.set(title=f"mean of {name} (independent pairs: {first:.3g})", xlabel="round", xticks=range(1, len(labels)))
    grid[1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5))
    lab.figure("costs", figure, "Of unseen points. Samples cost more to match than what they are drawn from.")


def _paths(axes: Axes, found: Round, title: str, colour: str) -> None:
    with torch.no_grad():
        start = found.unseen.z0[0, :60]
        way = dynamics.odeint(found.velocity, start, torch.linspace(0, 1, 21), method="rk4", step=0.05).y
    axes.plot(*way.movedim(-1, 0), color=colour, linewidth=0.6)
    axes.plot(*way[-1].T, ".", color="black", markersize=3)
    axes.set(title=title, aspect="equal")


def _colours(lab: Lab, config: Config, arms: list[Arm]) -> None:
    """Rounds between the colours of two photographs, which then turn one picture into the colours of the other."""
    pictures, g = [data.picture(name) for name in ("coffee", "astronaut")], lab.fork("colours")
    # Spread to about a unit, which suits a network.
    clouds = [4 * (p.flatten(0, 1)[torch.randperm(p[..., 0].numel(), generator=g)] - 0.5) for p in pictures]
    (x, unseen), (y, target) = (c[: config.pairs + config.tested].split([config.pairs, config.tested]) for c in clouds)
    before = lab.metric("colours: SW² before", _sliced(lab, unseen, target))
    small, shown = pictures[0][::3, ::3], []
    for arm in arms:
        *_, found = _rounds(lab, config, arm, "colours", transport.Coupling(x, y), unseen, config.pixel_steps)
        more = _excess(found.unseen, COSTS["|z|²/2"])
        arm.metric("colours: excess of |z|²/2", more, unit="%", better="lower")
        arm.metric("colours: SW² to the target", _sliced(lab, found.unseen.z1, target), better="lower")
        with torch.no_grad():
            moved = transport.rectify(found.velocity, 4 * (small.flatten(0, 1) - 0.5), steps=config.flow_steps).z1
        shown.append((moved / 4 + 0.5).clamp(0, 1).view_as(small).movedim(-1, 0))
    (plain, ours), excess, left = arms, "colours: excess of |z|²/2", "colours: SW² to the target"
    lab.claim(
        "colours: the last pairs for |z|²/2 cost at most 0.5 % more than their best matching, and a fifth of the "
        "excess of the plain flow",
        ours[excess] <= 0.5,
        ours[excess] <= plain[excess] / 5,
    )
    lab.claim(
        "and they have unseen colours of the target: at most 10 % of the squared sliced distance before is left",
        ours[left] <= 0.1 * before,
    )
    astronaut = nn.functional.interpolate(pictures[1][::3, ::3].movedim(-1, 0)[None], small.shape[:2], mode="area")[0]
    titles = ["source", *(arm.name for arm in arms), "target"]
    lab.images([[small.movedim(-1, 0), *shown, astronaut]], titles=titles, name="colours", caption="Real photographs.")
