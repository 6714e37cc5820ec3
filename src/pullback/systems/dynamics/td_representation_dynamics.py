"""What TD learning does to a representation, and what random rewards make of it.

When features and weights of a linear value both follow the semi-gradient of TD, the flow has a potential, and falls,
where the chain is reversible; elsewhere a start can be found from which the error first rises. With the values of many
random rewards the flow ends at the leading eigenvectors of the transitions, so that predicting such values beside the
own task teaches a network the geometry of its states (Tang, Munos, ICML 2023). The flows are exact; the network sees
pictures of four rooms and is judged by linear fits to values of rewards that it never met. Smaller than in the paper: a
small convolution instead of DQN on Atari. Chains and rooms are simulated, the roads of Minneapolis are real.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

import numpy as np
import torch
from sklearn.linear_model import RidgeCV
from torch import Tensor, nn

from pullback import data, dynamics
from pullback.dynamics import MarkovChain, td_flow
from pullback.lab import Lab, above, at_least, below, system


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    chains: Annotated[int, at_least(2)] = 20
    """Chains of each kind, of 15 states."""
    discount: Annotated[float, above(0), below(1)] = 0.9
    """Of all chains, but not of the network."""
    rewards: Annotated[tuple[int, ...], at_least(1)] = (1, 4, 16, 64, 256)
    """Random rewards of the flows."""
    horizon: Annotated[int, at_least(1)] = 24
    """Time of these flows, in units of a visit of each state."""
    replicates: Annotated[int, at_least(2)] = 3
    """Draws of rewards and features; networks."""
    far: Annotated[float, above(0), below(1)] = 0.97
    """Discount of the rooms that a network sees."""
    steps: Annotated[int, at_least(1)] = 400
    """Adam steps of each network."""
    lr: Annotated[float, above(0)] = 3e-3
    """Step size of Adam, the best of 1e-3, 3e-3 and 1e-2 for the own task alone; the others change little."""
    batch: Annotated[int, at_least(1)] = 128
    """Transitions a step."""


BLOCKS = (
    "MarkovChain metropolis_walk four_rooms td_field td_flow lyapunov_value_error optimal_features subspace_alignment"
)
LEARNING = "td_loss RandomRewards AuxiliaryValueHeads"


@system(
    "td-representation-dynamics",
    family="dynamics",
    title="Towards a Better Understanding of Representation Dynamics under TD-learning",
    paper="Tang, Munos, ICML 2023, arXiv 2305.18491",
    config=Config,
    smoke={"chains": 2, "discount": 0.5, "rewards": (1, 4, 8), "horizon": 1, "replicates": 2, "steps": 2, "batch": 8},
    full={"chains": 1000, "replicates": 20, "steps": 20_000},
    data=("roads",),
    blocks=tuple(f"dynamics.{name}" for name in f"{BLOCKS} {LEARNING}".split()),
)
def run(lab: Lab, config: Config) -> None:
    """Follow the flow on chains with and without a potential, look for eigenvectors, then train networks."""
    lab.data("random chains, clusters and four rooms", origin="simulated")
    lab.data("a hundred junctions around Minneapolis, of the roads of Minnesota", origin="real")
    _energy(lab, config)
    _eigenvectors(lab, config)
    _networks(lab, config)


FORMS = ("both move", "fast weights")


def _energy(lab: Lab, config: Config) -> None:
    """Whether the energy falls: on reversible chains, on random ones, on ones that go round."""
    stream, n = lab.fork("chains"), config.chains
    drawn = torch.rand(3, n, 15, 15, generator=stream, dtype=torch.float64)
    ring = torch.eye(15, dtype=torch.float64).roll(1, -1)
    kinds = {"reversible": drawn[0] + drawn[0].mT, "random": drawn[1] ** 3, "cyclic": drawn[2]}
    transitions = {name: weights / weights.sum(-1, keepdim=True) for name, weights in kinds.items()}
    transitions["cyclic"] = 0.9 * ring + 0.1 * transitions["cyclic"]
    chain = MarkovChain(torch.cat(list(transitions.values())), config.discount)
    rewards = torch.randn(3 * n, 15, 1, generator=stream, dtype=torch.float64)
    features = torch.linalg.qr(torch.randn(3 * n, 15, 2, generator=stream, dtype=torch.float64)).Q
    weights = torch.randn(3 * n, 2, 1, generator=stream, dtype=torch.float64)
    gap = _distance_from_gradient(chain, rewards, features, weights)
    t = torch.cat([torch.zeros(1), torch.logspace(-1, 1.8, 40)]).double()
    with torch.no_grad():
        both = td_flow(chain, rewards, features, weights=weights, fast=False, t=t, rtol=1e-8, atol=1e-10)
        fast = td_flow(chain, rewards, features, t=t, rtol=1e-8, atol=1e-10)
        wrong, still = _uphill(chain, rewards), torch.zeros(3 * n, 1, 1, dtype=torch.float64)
        adverse = td_flow(chain, rewards, wrong, weights=still, fast=False, t=t, rtol=1e-8, atol=1e-10).energy
    kept = (fast.features.mT @ fast.features - torch.eye(2)).abs().amax((0, 2, 3))
    figure, panels = lab.subplots(1, 2, figsize=(11, 4))
    for number, name in enumerate(transitions):
        arm, mine = lab.arm(name, baseline=name != "reversible"), slice(number * n, (number + 1) * n)
        arm.metric("largest distance of the field from a gradient", gap[mine].max(), better="lower")
        arm.metric("smallest distance of the field from a gradient", gap[mine].min(), better="lower")
        arm.metric("largest change of the Gram matrix", kept[mine].max(), better="lower")
        for form, energy in zip(FORMS, (both.energy, fast.energy), strict=True):
            rises = ((energy[1:] - energy[:-1]).amax(0) / energy[0] > 1e-6)[mine]
            arm.metric(f"flows that rise, {form}", rises.sum(), better="lower")
        panels[0].plot(t[1:], (both.energy[1:] / both.energy[0])[:, mine], color=arm.colour, linewidth=0.6)
        panels[0].plot([], [], color=arm.colour, label=name)
        if name != "reversible":  # there the two directions are one, and no start is adverse
            rise = (adverse / adverse[0])[:, mine].amax(0) - 1
            arm.metric("adverse starts that rise", (rise > 1e-3).sum())
            arm.metric("median rise from adverse starts", rise.median())
            panels[1].plot(t[1:], (adverse[1:] / adverse[0])[:, mine], color=arm.colour, linewidth=0.6)
    ours, cyclic, field = lab.arm("reversible"), lab.arm("cyclic"), "distance of the field from a gradient"
    lab.claim(
        "the field of TD is minus the gradient of the energy to 1e-10 on reversible chains, off by 1e-3 on all others",
        ours[f"largest {field}"] <= 1e-10,
        *(lab.arm(name)[f"smallest {field}"] >= 1e-3 for name in ("random", "cyclic")),
        scale="smoke",
    )
    lab.claim(
        "on reversible chains the energy never rises by more than 1e-6 of its start, in both forms of the flow; fast "
        "weights keep the Gram matrix of the features to 1e-6 on chains of every kind",
        *(ours[f"flows that rise, {form}"] == 0 for form in FORMS),
        *(lab.arm(name)["largest change of the Gram matrix"] <= 1e-6 for name in transitions),
        scale="smoke",
    )
    lab.claim(
        "on every cyclic chain there is a start from which the energy rises, by 1 % or more in the median",
        cyclic["adverse starts that rise"] == n,
        cyclic["median rise from adverse starts"] >= 0.01,
    )
    panels[0].set(xscale="log", yscale="log", xlabel="time", ylabel="energy, part of the start", title="random starts")
    panels[1].set(xscale="log", xlabel="time", title="adverse starts", ylim=(0.8, None), xlim=(None, 30))
    panels[0].legend(loc="lower left")
    words = "Each line a chain; both move. By theorem the energy falls on reversible chains; elsewhere it need not."
    lab.figure("energy", figure, words)


def _distance_from_gradient(chain: MarkovChain, rewards: Tensor, features: Tensor, weights: Tensor) -> Tensor:
    """``[chains]`` how far the field of TD is from minus the gradient of the energy, as a part of it."""
    point = (features.clone().requires_grad_(), weights.clone().requires_grad_())
    slopes = torch.autograd.grad(dynamics.lyapunov_value_error(chain, rewards, *point).sum(), point)
    field = dynamics.td_field(chain, rewards, features, weights)
    off = torch.stack([(f + g).square().sum((-1, -2)) for f, g in zip(field, slopes, strict=True)])
    return (off.sum(0) / torch.stack([g.square().sum((-1, -2)) for g in slopes]).sum(0)).sqrt()


def _uphill(chain: MarkovChain, rewards: Tensor) -> Tensor:
    """``[chains, states, 1]`` a feature along which TD, from weights 0, moves against the slope of the energy."""
    matrix = torch.eye(rewards.shape[1]) - chain.discount * chain.transition
    matrix, values = chain.stationary()[..., None] * matrix, chain.values(rewards)
    slope, way = (matrix + matrix.mT) @ values / 2, matrix @ values
    feature = slope / slope.norm(dim=1, keepdim=True) - way / way.norm(dim=1, keepdim=True)
    return feature / feature.norm(dim=1, keepdim=True).clamp_min(1e-3)


def _places(lab: Lab, discount: float) -> dict[str, MarkovChain]:
    """Symmetric walks: in four clusters, in four rooms, along roads."""
    cluster = torch.arange(24) % 4
    links = torch.rand(24, 24, generator=lab.fork("clusters"), dtype=torch.float64)
    links = torch.where(cluster[:, None] == cluster, links, 0.03 * links)
    rooms = dynamics.four_rooms(discount=discount, dtype=torch.float64).process
    roads = data.roads()
    off = (roads.positions - torch.tensor([-93.27, 44.98])) * torch.tensor([0.707, 1.0])  # degrees, from the middle
    near = off.norm(dim=1).argsort()[:100]
    joined = torch.zeros(len(off), len(off), dtype=torch.float64)
    joined[roads.edges[:, 0], roads.edges[:, 1]] = 1.0
    return {
        "clusters": dynamics.metropolis_walk(links + links.mT, discount),
        "rooms": rooms.chain(torch.full_like(rooms.reward, 0.25)),
        "roads": dynamics.metropolis_walk((joined + joined.mT)[near][:, near], discount),
    }


def _eigenvectors(lab: Lab, config: Config) -> None:
    """How near the features come to the leading eigenvectors, by the number of random rewards."""
    figure, panel = lab.subplots()
    arms = [lab.arm(f"{h} rewards", baseline=h == config.rewards[0]) for h in config.rewards]
    for place, chain in _places(lab, config.discount).items():
        size, stream, bound = len(chain.transition), lab.fork(f"features of {place}"), []
        leading = torch.linalg.eigh(chain.transition).eigenvectors[:, -4:].flip(-1)
        pictures = {"eigenvectors": leading.T}
        start = torch.linalg.qr(torch.randn(config.replicates, size, 4, generator=stream, dtype=torch.float64)).Q
        for arm, h in zip(arms, config.rewards, strict=True):
            rewards = torch.randn(config.replicates, size, h, generator=stream, dtype=torch.float64) / h**0.5
            ended, t = start.clone(), torch.tensor([0.0, size])
            for _ in arm.steps(config.horizon, ended, name=place):
                with torch.no_grad():
                    flow = td_flow(chain, rewards, ended, t=t, rtol=1e-5, atol=1e-7)
                ended.copy_(flow.features[-1])
                if bool((flow.energy[-1] <= 1e-6).all()):  # no more than four rewards: they are fitted
                    break
            aligned = dynamics.subspace_alignment(ended, leading).mean(-1)
            arm.metric(f"alignment, {place}", aligned, better="higher", replicated=True)
            best = dynamics.optimal_features(chain, rewards, min(4, h))
            bound.append(float(dynamics.subspace_alignment(best, leading).sum(-1).mean() / 4))
            near = dynamics.subspace_alignment(ended, best).mean(-1)
            arm.metric(f"alignment with the optimum, {place}", near, better="higher", replicated=True)
            pictures[arm.name] = (ended[0] @ torch.linalg.pinv(ended[0]) @ leading).T
        found, colour = [arm[f"alignment, {place}"] for arm in arms], lab.colour(place)
        panel.plot(config.rewards, found, "o-", color=colour, label=place)
        panel.plot(config.rewards, bound, ":", color=colour)
        if place == "rooms":
            rows = {name: [_map(v) for v in vectors] for name, vectors in pictures.items()}
            words = "What the features hold of the four leading eigenvectors (first row); two of them are a pair."
            lab.images(rows, titles=["first", "second", "third", "fourth"], name="rooms", caption=words)
    fewest, *_, most = arms
    lab.claim(
        "clusters: with 256 rewards the features have 0.95 of the four leading eigenvectors, with one at most 0.6, and "
        "every number in between adds",
        most["alignment, clusters"] >= 0.95,
        fewest["alignment, clusters"] <= 0.6,
        *(more["alignment, clusters"] > less["alignment, clusters"] for less, more in pairwise(arms)),
    )
    lab.claim(
        "rooms and roads, whose eigenvalues lie closer: 256 rewards are aligned better than one, by 0.6 and 0.3",
        *(most[f"alignment, {p}"] >= fewest[f"alignment, {p}"] + more for p, more in (("rooms", 0.6), ("roads", 0.3))),
    )
    optimum = (arm[f"alignment with the optimum, {p}"] for p in ("clusters", "rooms", "roads") for arm in arms[1:])
    lab.claim(
        "four rewards or more: the flow ends within 0.01 of the optimum known in closed form, on all three",
        *(near >= 0.99 for near in optimum),
    )
    panel.plot([], [], "k:", label="optimum")
    panel.set(xscale="log", xlabel="random rewards", ylabel="mean squared cosine", ylim=(0, 1.02))
    panel.legend()
    lab.figure("alignment", figure, "Features at the end of the flow with the four leading eigenvectors, mean of draws")


def _map(values: Tensor) -> Tensor:
    """Values of cells of four rooms as a picture, grey where they are 0; walls are black."""
    free = dynamics.four_rooms().free
    return torch.zeros(free.shape).masked_scatter(free, (0.55 + 0.45 * values / values.abs().max()).float())


ARMS = ("64 random rewards", "8 random rewards", "own task only", "reconstruction", "untrained")
UNSEEN = "error of values of unseen "


def _networks(lab: Lab, config: Config) -> None:
    """TD on pictures of four rooms, alone or beside other tasks; then linear fits to values of unseen rewards."""
    world = dynamics.four_rooms(discount=config.far)
    count, uniform = len(world.cells), torch.full_like(world.process.reward, 0.25)
    chain = world.process.chain(uniform)
    pictures = torch.zeros(count, 2, *world.free.shape)
    pictures[:, 0] = (~world.free).float()
    pictures[torch.arange(count), 1, world.cells[:, 0], world.cells[:, 1]] = 1.0
    for _ in lab.replicates(config.replicates):
        unseen = lab.fork("unseen")
        told = torch.randperm(count, generator=unseen)[: 3 * count // 5]
        goals = 1 + torch.randperm(count - 1, generator=unseen)[:20]
        kinds = {"noise": torch.randn(count, 20, generator=unseen), "goals": torch.eye(count)[:, goals]}
        for name in ARMS:
            beside = int(name.split()[0]) if name.endswith("random rewards") else 0
            arm, draws = lab.arm(name, baseline=not beside), lab.fork("transitions")
            with arm.weights():
                layers = [nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, padding=1), nn.ReLU()]
                torso = nn.Sequential(*layers, nn.Flatten(), nn.Linear(576, 64), nn.ReLU())
                value, decoder = nn.Linear(64, 1), nn.Linear(64, pictures[0].numel())
            rewards = dynamics.RandomRewards(max(beside, 1), generator=lab.fork("random rewards"))
            heads = dynamics.AuxiliaryValueHeads(64, rewards, discount=config.far, generator=lab.fork("heads"))
            modules = nn.ModuleList([torso, value, decoder, heads])
            optimizer = torch.optim.Adam(modules.parameters(), lr=config.lr)
            for _ in arm.steps(0 if name == "untrained" else config.steps, modules, optimizer, draws):
                seen = world.process.sample(uniform, config.batch, steps=1, generator=draws)
                features, here, there = torso(pictures), seen.state, seen.next_state
                own = value(features)[:, 0]
                loss = dynamics.td_loss(own[here], seen.reward, own[there], discount=config.far)
                if name == "reconstruction":
                    loss = loss + nn.functional.mse_loss(decoder(features[here]), pictures[here].flatten(1))
                elif beside:
                    loss = loss + heads(here, features[here], features[there])
                arm.descend(loss, optimizer)
            with torch.no_grad():
                features = torso(pictures)
            for kind, rewards_of in kinds.items():
                arm.metric(UNSEEN + kind, _linear_fit(features, chain.values(rewards_of), told), better="lower")
    ours, _, *others = map(lab.arm, ARMS)
    for key in (UNSEEN + kind for kind in kinds):
        lab.claim(
            f"{key}, by linear fits: with 64 random rewards beside the own task it is in states that were not "
            "told at most half of what it is without, with reconstruction, or without training",
            *(ours[key] <= 0.5 * other[key] for other in others),
        )
    lab.bars(*(UNSEEN + kind for kind in kinds), arms=list(map(lab.arm, ARMS)))


def _linear_fit(features: Tensor, values: Tensor, told: Tensor) -> float:
    """Error of ridge regression on the states that it was not told, as a part of the variance; mean over tasks."""
    scaled = (features - features[told].mean(0)) / features[told].std().clamp_min(1e-9)
    x, y = scaled.double().numpy(), values.double().numpy()
    ridge = RidgeCV(alphas=np.logspace(-4, 6, 21), alpha_per_target=True).fit(x[told], y[told])
    rest = np.setdiff1d(np.arange(len(x)), told)
    return float((np.square(ridge.predict(x[rest]) - y[rest]).mean(0) / y[rest].var(0)).mean())
