"""Following an instruction through a map is tracking a ghost that follows it: a Bayes filter, trained end to end.

The words of an instruction become, step by step, a motion and something to be seen. The motion is a kernel over
displacements, the product of what the words say (from where the ghost looks) and of what each place of the map allows;
what is seen becomes a likelihood of every cell, by a U-Net whose filters the words write. Both move the belief about
the ghost's pose, whose divergence from the true way trains everything (Anderson, Shrivastava, Parikh, Batra, Lee,
NeurIPS 2019). Room-to-Room is not available offline: walks through real streets, told by templates, with landmarks
in the colours and textures of photographs, stand in for it; landmarks that look the same lie off the way, so that none
is found by its looks alone. Smaller than in the paper: 16 x 16 cells, no navigation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from pullback import data, uncertainty
from pullback.lab import Arm, Lab, above, at_least, system


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    walks: Annotated[int, at_least(2)] = 3000
    """To learn from."""
    tested: Annotated[int, at_least(2)] = 800
    """In a part of the quarter that training does not see."""
    steps: Annotated[int, at_least(1)] = 250
    """Adam steps of each arm."""
    batch: Annotated[int, at_least(1)] = 16
    """Walks a step."""
    lr: Annotated[tuple[float, float], above(0)] = (1e-2, 1e-2)
    """Largest step size of Adam, of the filters and of the single look."""
    channels: Annotated[int, at_least(1)] = 12
    """Of the maps inside of the networks."""
    hidden: Annotated[int, at_least(2)] = 24
    """Of the decoder of words."""


SIDE, KERNEL, MOVES = 16, 7, 6
LEAST = math.log(0.004)
"""Of a likelihood: no cell is ever ruled out."""


@system(
    "chasing-ghosts",
    family="uncertainty",
    title="Chasing Ghosts: Instruction Following as Bayesian State Tracking",
    paper="Anderson, Shrivastava, Parikh, Batra, Lee, NeurIPS 2019, arXiv 1907.02022",
    config=Config,
    smoke={"walks": 20, "tested": 6, "steps": 2, "batch": 2},
    full={"walks": 50_000, "steps": 20_000, "batch": 64, "lr": (1e-3, 1e-3), "channels": 64, "hidden": 128},
    data=("buildings", "pictures"),
    blocks=(
        *(f"uncertainty.{b}" for b in ("histogram_filter", "shift_belief", "motion_kernel", "egocentric_kernels")),
        *(f"uncertainty.{b}" for b in ("LingUNet", "InstructionDecoder", "attend", "belief_loss", "expected_distance")),
    ),
)
def run(lab: Lab, config: Config) -> None:
    """Train the filter, the same without one of its parts, and a network that looks once."""
    walks = data.instructed_walks("train", config.walks, generator=lab.fork("walks"))
    unseen = data.instructed_walks("test", config.tested, generator=lab.fork("unseen walks"))
    lab.data("walks told by templates through the streets of Prague, painted with real textures", origin="stand-in")
    _exact(lab)
    filters: dict[Arm, dict[str, bool]] = {
        lab.arm("filter"): {},
        lab.arm("without motion words", baseline=True): {"motion": False},
        lab.arm("without observation", baseline=True): {"observation": False},
        lab.arm("without map kernel", baseline=True): {"walls": False},
    }
    look = lab.arm("single look", baseline=True)
    found: dict[Arm, Any] = {}
    for arm in (*filters, look):
        with arm.weights():
            found[arm] = Look(config) if arm is look else Ghost(config, **filters[arm])
        _train(lab, config, arm, found[arm], walks)
        _judge(arm, found[arm], unseen)
    ours, motion, observation, walls = filters
    lab.claim(
        "the filter puts its goal within two cells of the true one on 5 % more of the unseen walks than a single look "
        "with no fewer weights, and on 2 % more than without motion words or without observation",
        ours["goals found"] >= look["goals found"] + 0.05,
        ours["goals found"] >= motion["goals found"] + 0.02,
        ours["goals found"] >= observation["goals found"] + 0.02,
    )
    lab.claim(
        "its log mass at the true goal is higher than that of the single look by 0.2 nats",
        ours["log mass at the goal"] >= look["log mass at the goal"] + 0.2,
    )
    lab.claim(
        "the map kernel keeps the belief out of buildings: at most 0.3 times the mass that is in them without it",
        ours["mass in buildings"] <= 0.3 * walls["mass in buildings"],
    )
    _draw(lab, unseen, found[ours])


class MapEncoder(nn.Sequential):
    """Colours of 2 x 2 pixels to features of a cell."""

    def __init__(self, channels: int) -> None:
        super().__init__(nn.Conv2d(3, channels, 2, stride=2), nn.ReLU(), nn.Conv2d(channels, channels, 1), nn.ReLU())


class Ghost(nn.Module):
    """The belief about a ghost, after each of its moves."""

    turns: Tensor

    def __init__(self, config: Config, *, motion: bool = True, observation: bool = True, walls: bool = True) -> None:
        super().__init__()
        self.motion, self.observation, self.walls = motion, observation, walls
        words = 4 * config.hidden
        self.decoder = uncertainty.InstructionDecoder(len(data.WALK_WORDS), config.hidden)
        self.see = MapEncoder(config.channels)
        self.told = nn.Sequential(nn.Linear(words, words // 2), nn.ReLU(), nn.Linear(words // 2, KERNEL**2))
        self.allowed = nn.Sequential(
            nn.Conv2d(config.channels, 2, 1), nn.Conv2d(2, KERNEL**2, KERNEL, padding=KERNEL // 2)
        )
        channels = config.channels
        self.look = uncertainty.LingUNet(channels, channels, words, outputs=4, levels=2, normalize=True)
        self.register_buffer("turns", uncertainty.compass_turns(KERNEL))

    def forward(self, maps: Tensor, words: Tensor, start: Tensor) -> uncertainty.FilteredBeliefs:
        """Return the beliefs after each move from a known pose."""
        said, seen = self.decoder(words, MOVES), self.see(maps)
        told = self.told(torch.cat([said.action, said.state], -1)).unflatten(-1, (KERNEL, KERNEL))
        kernels = uncertainty.motion_kernel(uncertainty.egocentric_kernels(told if self.motion else 0 * told))
        local = None
        if self.walls:
            local = self.allowed(seen).movedim(1, -1).log_softmax(-1).unflatten(-1, (KERNEL, KERNEL))
        if self.observation:
            looked = self.look(seen[:, None], _both(said.observation, said.state, self.look.levels))
            likelihoods = nn.functional.logsigmoid(looked).clamp_min(LEAST)
        else:
            likelihoods = seen.new_zeros(len(maps), MOVES, 1, SIDE, SIDE)
        prior = (0.999 * _at(start) + 0.001 / _at(start)[0].numel()).log()
        return uncertainty.histogram_filter(prior, kernels, likelihoods, local=local, turns=self.turns)

    def loss(self, walks: data.Walks) -> Tensor:
        """Return the mean divergence from the poses of the way."""
        beliefs = self(walks.maps, walks.words, walks.poses[:, 0]).log_belief
        return uncertainty.belief_loss(beliefs, walks.poses[:, 1:], smoothing=0.01)

    def goal(self, walks: data.Walks) -> Tensor:
        """Logarithms of the mass of each cell in the end, ``[n, 16, 16]``."""
        return self(walks.maps, walks.words, walks.poses[:, 0]).log_belief[:, -1].logsumexp(1)


class Look(nn.Module):
    """The goal from the whole instruction at once: a U-Net over the map with the start drawn into it."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        words, channels = 4 * config.hidden, config.channels + 4
        self.decoder = uncertainty.InstructionDecoder(len(data.WALK_WORDS), config.hidden)
        self.see = MapEncoder(config.channels)
        self.look = uncertainty.LingUNet(channels, channels, words, levels=3, normalize=True)

    def goal(self, walks: data.Walks) -> Tensor:
        """Return logarithms of the probability of each cell, ``[n, 16, 16]``."""
        said = self.decoder(walks.words, 1)
        words = _both(said.observation[:, 0], said.state[:, 0], self.look.levels)
        heat = self.look(torch.cat([self.see(walks.maps), _at(walks.poses[:, 0])], 1), words)
        return heat.flatten(1).log_softmax(-1).view(-1, SIDE, SIDE)

    def loss(self, walks: data.Walks) -> Tensor:
        """Return the mean divergence from the true goal."""
        end = walks.poses[:, -1].clone()
        end[:, 0] = 0
        return uncertainty.belief_loss(self.goal(walks)[:, None], end, smoothing=0.01)


def _both(words: Tensor, state: Tensor, levels: int) -> Tensor:
    """Words and the state of their reader, a part of each for every level."""
    return torch.cat([part.unflatten(-1, (levels, -1)) for part in (words, state)], -1).flatten(-2)


def _at(pose: Tensor) -> Tensor:
    """A pose drawn into four maps, one for each heading."""
    heading, row, column = pose.T
    drawn = torch.zeros(len(pose), 4, SIDE, SIDE)
    drawn[torch.arange(len(pose)), heading, row, column] = 1.0
    return drawn


def _train(lab: Lab, config: Config, arm: Arm, model: Any, walks: data.Walks) -> None:
    optimizer = torch.optim.Adam(model.parameters())
    lr = config.lr[isinstance(model, Look)]
    rising = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=config.steps + 10, pct_start=0.2)
    draws = lab.fork("batches")
    for _ in arm.steps(config.steps, model, optimizer, rising, draws):
        chosen = torch.randint(len(walks.maps), (config.batch,), generator=draws)
        arm.descend(model.loss(data.Walks(*(part[chosen] for part in walks))), optimizer, clip=2.0)
        rising.step()
    arm.metric("weights", float(sum(p.numel() for p in model.parameters())))


@torch.no_grad()
def _judge(arm: Arm, model: Any, walks: data.Walks) -> None:
    belief = torch.cat([model.goal(data.Walks(*part)) for part in zip(*(x.split(100) for x in walks), strict=True)])
    end = walks.poses[:, -1, 1:]
    best = belief.flatten(1).argmax(-1)
    off = torch.stack([best // SIDE, best % SIDE], -1) - end
    arm.metric("goals found", (off.double().norm(dim=-1) <= 2).double().mean(), better="higher")
    at = belief[torch.arange(len(end)), end[:, 0], end[:, 1]]
    arm.metric("log mass at the goal", at.mean(), better="higher", unit="nats")
    arm.metric("mass in buildings", (belief.exp() * walks.occupied).sum((1, 2)).mean(), better="lower")
    distance = uncertainty.expected_distance(belief[:, None], end.to(belief))
    arm.metric("distance", distance.mean(), better="lower", unit="cells")


@torch.no_grad()
def _exact(lab: Lab) -> None:
    """The filter of a random walk: by a matrix of all pairs of cells, and by Kalman's recursion."""
    g, n, noise = lab.fork("exact"), 32, 1.5
    step = torch.arange(KERNEL, dtype=torch.float64) - KERNEL // 2
    kernel = uncertainty.motion_kernel(-(step[:, None] ** 2 + step**2) / 2 / 0.8**2)
    place = torch.cartesian_prod(*[torch.arange(n, dtype=torch.float64)] * 2)
    seen = 16 + torch.randn(MOVES, 2, generator=g, dtype=torch.float64).cumsum(0)
    likelihoods = -((place - seen[:, None]) ** 2).sum(-1) / 2 / noise**2
    prior = (-((place - 16) ** 2).sum(-1) / 2 / 2.0**2).log_softmax(0)
    shape = (1, n, n)
    found = uncertainty.histogram_filter(
        prior.view(shape), kernel.expand(MOVES, 1, -1, -1), likelihoods.view(MOVES, *shape)
    )
    apart = (place - place[:, None] + KERNEL // 2).long()
    near = ((apart >= 0) & (apart < KERNEL)).all(-1)
    moves = torch.where(near, kernel.exp()[apart.clamp(0, KERNEL - 1).unbind(-1)], 0)
    belief, off, gaps = prior.exp(), [], []
    mean, variance = torch.full((2,), 16.0, dtype=torch.float64), 4.0
    spread = float((kernel.exp().sum(0) * step**2).sum())
    for t in range(MOVES):
        belief = belief @ moves * likelihoods[t].exp()
        belief = belief / belief.sum()
        off.append((found.log_belief[t].exp().flatten() - belief).abs().max())
        gain = (variance + spread) / (variance + spread + noise**2)
        mean, variance = mean + gain * (seen[t] - mean), (1 - gain) * (variance + spread)
        gaps.append(((found.log_belief[t].exp().flatten()[:, None] * place).sum(0) - mean).abs().max())
    lab.claim(
        "beliefs are those of the forward algorithm with the whole transition matrix to 1e-6 and sum to 1; of a random "
        "walk their mean is Kalman's to 0.1 cells",
        lab.metric("forward algorithm, largest difference", max(off)) <= 1e-6,
        lab.metric("sum, largest difference from 1", (found.log_belief.exp().sum((1, 2, 3)) - 1).abs().max()) <= 1e-6,
        lab.metric("Kalman, largest difference", max(gaps)) <= 0.1,
        scale="smoke",
    )


@torch.no_grad()
def _draw(lab: Lab, walks: data.Walks, model: Any) -> None:
    lab.bars("goals found", "log mass at the goal", "mass in buildings")
    figure, grid = lab.subplots(2, MOVES + 1, figsize=(13, 4.2))
    told = []
    for k, row in enumerate(grid):
        one = data.Walks(*(part[k : k + 1] for part in walks))
        beliefs = model(one.maps, one.words, one.poses[:, 0]).log_belief[0].logsumexp(1)
        row[0].imshow(one.maps[0].movedim(0, -1), extent=(-0.5, SIDE - 0.5, SIDE - 0.5, -0.5))
        row[0].plot(one.poses[0, :, 2], one.poses[0, :, 1], "o-", color="black", markersize=3)
        row[0].set(title="the way", xticks=[], yticks=[])
        for t, axes in enumerate(row[1:]):
            axes.imshow(beliefs[t].exp() ** 0.5, cmap="magma")
            axes.plot(*one.poses[0, t + 1, [2, 1]], "+", color="cyan")
            axes.set(title=f"move {t + 1}", xticks=[], yticks=[])
        told.append(" ".join(data.WALK_WORDS[i] for i in one.words[0] if i))
    lab.figure("beliefs", figure, f"Square roots of beliefs on unseen maps; the true place is cyan. {'; '.join(told)}.")
