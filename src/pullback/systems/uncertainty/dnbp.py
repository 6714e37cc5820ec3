"""Tracking a double pendulum behind clutter by belief propagation whose factors are learned.

Each joint is a node with a cloud of particles. In each frame some are moved on and the rest is drawn anew; then each
node weighs its particles by its own unary factor, by those of its neighbours at draws of a learned sampler of their
difference, and by a learned density of that difference. Each kind of network has a loss of its own: the likelihood of
the true place under the particles, weighed by that kind alone (Opipari and others, arXiv 2303.04616). Such messages are
not belief propagation even in the limit: that is measured first, on Gaussian models.

Smaller than in the paper: 32 x 32 pixels, 50 particles, 300 simulated clips; unary factors see features at their place.
Factors made by hand know colours and lengths, in a second arm also where the base rests.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from pullback import audit, data, dynamics, gradients, uncertainty
from pullback.lab import Arm, Lab, at_least, system
from pullback.uncertainty import Beliefs, BeliefTracker, NormalPotential, PairwiseFactor, UnaryMaps, kernel_density

RODS, ROD, SEEN, KINDS = [(0, 1), (1, 2)], 0.45, ("base", "elbow", "tip"), ("unary", "sampler", "density")
ERROR, DOUBT, LENGTHS = "error of places", "spread against error", ("first rod / true", "second rod / true")
RINGS = ("first density, inside / on the ring", "second density, inside / on the ring")
BLOCKS = ("BeliefTracker", "pull_messages", "PairwiseFactor", "ImageFactors", "nonparametric_belief_propagation")
RATES = {"unary": 1e-2, "rods sampler": 8e-3, "rods density": 8e-3, "motion": 5e-3}  # of Adam
WIDTH, WINDOW, DRAWS, FLOOR = 0.05, 4, 5, 1e-3  # of kernels; frames; learned factors
LARGEST, SLOPE, ENDS, INNER = "worst error of a variance", "slope of error", "variance at ends", "variance elsewhere"


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    replicates: Annotated[int, at_least(1)] = 1
    """Clips, initialisations and draws; the same clips for all trackers."""
    clips: Annotated[int, at_least(30)] = 300
    """Of training; a fifth as many for the choice of the baselines' options, and as many for the test."""
    frames: Annotated[int, at_least(2)] = 12
    """Of a clip, 0.06 s apart."""
    particles: Annotated[int, at_least(4)] = 50
    """Of each node."""
    steps: Annotated[int, at_least(3)] = 400
    """Steps of Adam, one a frame; half as many for the regressor, at each of three rates."""
    batch: Annotated[int, at_least(1)] = 48
    """Clips of a step; a sixth of them, whole, for the regressor, which so sees as many frames at each rate."""


class Learned(nn.Module):
    """All factors: of each node, of each rod, and of each node's motion."""

    def __init__(self) -> None:
        super().__init__()
        encoder = _convolutions(1, 2, nn.Conv2d(16, 8, 3, 1, 1))
        self.unary = uncertainty.ImageFactors(encoder, len(SEEN), 8, scale=0.2, floor=FLOOR)
        words = dict[str, Any](hidden=24, noise=4, floor=FLOOR)
        self.rods: Any = nn.ModuleList(PairwiseFactor(2, scale=0.5, detail=0.1, **words) for _ in RODS)
        self.motion: Any = nn.ModuleList(PairwiseFactor(2, scale=0.2, **words) for _ in SEEN)
        for rod in list[Any](self.rods):  # draws that begin much shorter than a rod hear nothing of its other end
            rod.sampler[-1].weight.data *= 3

    def move(self, x: Tensor, draws: torch.Generator) -> Tensor:
        """Move points ``[batch, nodes, m, 2]`` by a frame."""
        return x + torch.stack([motion.sample(tuple(x[:, 0, :, 0].shape), draws) for motion in self.motion], 1)


class HandCrafted:
    """A spot of the right colour for a node, a length for a rod, a normal motion; the base may be known to rest."""

    def __init__(self, known: bool, colour: float, ring: float, motion: float) -> None:
        self.known, self.colour, self.motion = known, colour, motion
        self.rods = [uncertainty.DistancePotential(ROD, ring) for _ in RODS]

    def unary(self, frames: Tensor) -> UnaryMaps:
        """Return unary factors at the pixels of frames ``[batch, 3, 32, 32]``."""
        apart = frames.unsqueeze(1) - torch.tensor(data.BODY_COLOURS)[:, :, None, None]
        spots = nn.functional.avg_pool2d((-apart.square().sum(2) / (2 * self.colour**2)).exp(), 3, 1, 1)
        across = ((torch.arange(32) + 0.5) / 16 - 1).square()
        rest = (-(across + across[:, None]) / (2 * 0.1**2)).exp().expand(len(frames), 1, 32, 32)
        return UnaryMaps((0.005 + 0.995 * torch.cat([rest if self.known else spots[:, :1], spots], 1)).log())

    def move(self, x: Tensor, draws: torch.Generator) -> Tensor:
        """Move points by a frame."""
        return x + self.motion * torch.randn(x.shape, generator=draws)


@system(
    "dnbp",
    family="uncertainty",
    title="DNBP: Differentiable Nonparametric Belief Propagation",
    paper="Opipari, Pavlasek, Chen, Wang, Desingh, Jenkins, arXiv 2303.04616",
    config=Config,
    smoke={"replicates": 1, "clips": 30, "frames": 3, "steps": 6, "batch": 2, "particles": 10},
    full={"replicates": 5, "clips": 1024, "frames": 20, "steps": 20_000, "batch": 32, "particles": 100},
    blocks=tuple(f"uncertainty.{name}" for name in BLOCKS),
)
def run(lab: Lab, config: Config) -> None:
    """Measure what messages are worth where marginals are known; learn factors; track unseen clips."""
    lab.data("double pendulums behind clutter, and Gaussian models", origin="simulated")
    _gaussian(lab, config)
    ours, hands = lab.arm("DNBP"), [lab.arm(f"made by hand{s}", baseline=True) for s in ("", ", base known")]
    for _ in lab.replicates(config.replicates):
        fit, choice, test = (_clips(lab, config, name) for name in ("fit", "choice", "test"))
        model = _learn(ours, lab, config, fit)
        errors = _report(ours, test, found := _track(lab, config, model, test))
        spread = torch.stack([b.variances.sum(-1) for b in found], 1).flatten(0, 1)
        told = [gradients.rank_correlation(spread[:, [n]], errors[..., n].flatten()) for n in (1, 2)]
        ours.metric(DOUBT, torch.cat(told).mean(), better="higher")
        around = torch.polar(torch.tensor([[0.0], [0.25], [0.5], [1.0]]) * ROD, math.tau * torch.arange(64) / 64)
        for name, ring, rod in zip(LENGTHS, RINGS, model.rods, strict=True):
            ours.metric(name, rod.sample((2000,), lab.fork("rods")).norm(dim=-1).mean().detach() / ROD)
            *inside, on = rod.log_prob(torch.view_as_real(around)).detach().exp().mean(1)
            ours.metric(ring, sum(inside) / 3 / on, better="lower")
        for known, arm in enumerate(hands):
            tried = [HandCrafted(bool(known), *o) for o in itertools.product((0.1, 0.2), (0.02, 0.06), (0.06, 0.1))]
            told = [_errors(choice, _track(lab, config, factors, choice)).mean() for factors in tried]
            _report(arm, test, _track(lab, config, tried[int(torch.stack(told).argmin())], test))
        _regress(lab, config, model, fit, choice, test)
    lab.claim("its error is at most 0.8 of that of (tuned) factors made by hand", ours[ERROR] <= 0.8 * hands[0][ERROR])
    lab.claim("its error is also less where those are told where the base rests", ours[ERROR] < hands[1][ERROR])
    lab.claim("its particles tell how far off they are: rank correlation of spread and error 0.3", ours[DOUBT] >= 0.3)
    lab.claim("rods that are drawn are as long as true ones, within 15 %", *(abs(ours[n] - 1) <= 0.15 for n in LENGTHS))
    lab.claim("densities of rods are rings: inside at most 0.3 of what is on them", *(ours[n] <= 0.3 for n in RINGS))
    _separate(lab, model)
    lab.bars(ERROR, *(f"error, {n} shapes" for n in (0, 5)), caption="In lengths of a rod.")
    _draw(lab, test, found, model)


def _convolutions(stride: int, reach: int, last: nn.Module) -> nn.Sequential:
    layers = [nn.Conv2d(3, 16, 5, 2, 2), *(nn.Conv2d(16, 16, 3, stride, r, dilation=r) for r in (1, reach))]
    return nn.Sequential(*(m for layer in layers for m in (layer, nn.BatchNorm2d(16), nn.ReLU(inplace=True))), last)


def _clips(lab: Lab, config: Config, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return frames ``[clips, frames, 3, 32, 32]``, places ``[clips, frames, 3, 2]`` and how many shapes each has."""
    draws, count = lab.fork(f"clips {name}"), config.clips if name == "fit" else config.clips // 5
    angles = math.pi * (2 * torch.rand(count, 2, generator=draws) - 1)
    start, times = torch.cat([angles, torch.randn(count, 2, generator=draws)], 1), 0.06 * torch.arange(config.frames)
    states = dynamics.odeint(dynamics.double_pendulum, start, times, method="rk4", step=0.02, adjoint="unrolled").y
    way = ROD * torch.stack([states[..., :2].sin(), -states[..., :2].cos()], -1).transpose(0, 1)
    places, shapes = torch.cat([torch.zeros_like(way[:, :, :1]), way.cumsum(2)], 2), torch.arange(count) % 6
    return data.body_clips(places, RODS, [0, 1], clutter=shapes, generator=draws).frames, places, shapes


def _learn(arm: Arm, lab: Lab, config: Config, fit: tuple[Tensor, ...]) -> Learned:
    """Track clips, and descend the losses of each frame; nothing is differentiated from frame to frame."""
    with arm.weights():
        model = Learned()
    named, rates = list(model.named_parameters()), RATES.items()
    groups = [{"params": [p for n, p in named if all(w in n for w in k.split())], "lr": r} for k, r in rates]
    optimizer, draws = torch.optim.Adam(groups, fused=True), lab.fork("learning")  # as good as one for each factor
    decays: Any = [lambda k, b=b: (k >= b) * (1 - k / config.steps) ** 0.5 for b in (0, config.steps // 4, 0, 0)]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, decays)  # samplers wait for what they are judged by
    tracker, window = _tracker(model, config, draws, samples=DRAWS), min(WINDOW, config.frames)
    chosen, first = torch.zeros(2, config.batch, dtype=torch.long)
    tracker.begin(config.batch)
    for step in arm.steps(config.steps, model, optimizer, schedule, draws, chosen, first, tracker):
        if step % window == 0:
            chosen.copy_(torch.randint(len(fit[0]), chosen.shape, generator=draws))
            first.copy_(torch.randint(config.frames - window + 1, chosen.shape, generator=draws))
            tracker.begin(config.batch)
        frame = first + tracker.frame
        unary, truth = model.unary(fit[0][chosen, frame]), fit[1][chosen, frame]
        found = tracker.step(unary, truth=truth, sender=unary.detach())
        losses = found.losses(truth, bandwidth=WIDTH)._asdict()
        if tracker.frame > 1:  # particles are no nearer to the truth than a kernel is wide
            last = fit[1][chosen, frame - 1].unsqueeze(2) + WIDTH * torch.randn(*truth.shape[:2], 1, 2, generator=draws)
            moved = model.move(last.expand(-1, -1, config.particles, -1), draws)
            losses["motion"] = -kernel_density(moved, None, truth.unsqueeze(2), bandwidth=WIDTH / 2).mean()
        for name, loss in losses.items():
            arm.record(name, loss.detach())
        arm.descend(torch.stack(list(losses.values())).sum(), optimizer)
        schedule.step()
    return model.eval()


def _tracker(model: Learned | HandCrafted, config: Config, draws: torch.Generator, **words: int) -> BeliefTracker:
    box, rods, move = torch.ones(len(SEEN), 2), list[Any](model.rods), partial(model.move, draws=draws)
    return BeliefTracker(rods, RODS, move, low=-box, high=box, particles=config.particles, generator=draws, **words)


@torch.no_grad()
def _track(lab: Lab, config: Config, model: Learned | HandCrafted, clips: tuple[Tensor, ...]) -> list[Beliefs]:
    (tracker := _tracker(model, config, lab.fork("tracking"))).begin(len(clips[0]))
    return [tracker.step(model.unary(frame)).beliefs for frame in clips[0].unbind(1)]


def _errors(clips: tuple[Tensor, ...], found: list[Beliefs] | Tensor) -> Tensor:
    means = found if isinstance(found, Tensor) else torch.stack([b.means for b in found], 1)
    return (means - clips[1]).norm(dim=-1) / ROD


def _report(arm: Arm, clips: tuple[Tensor, ...], found: list[Beliefs] | Tensor) -> Tensor:
    arm.metric(ERROR, (errors := _errors(clips, found)).mean(), better="lower")
    for n, rows in ((n, errors[clips[2] == n].mean((1, 2))) for n in (0, 5)):
        arm.metric(f"error, {n} shapes", rows.mean(), better="lower")
        arm.metric(f"standard error, {n} shapes", rows.std(correction=0) / len(rows) ** 0.5)
    return errors


def _regress(lab: Lab, config: Config, model: Learned, *clips: tuple[Tensor, ...]) -> None:
    """Train regressors of as many parameters at three rates; report test errors of the best on the other clips."""
    (fit, choice, test), arm, steps, said = clips, lab.arm("CNN + LSTM", baseline=True), config.steps // 2, []
    for rate in (0.003, 0.01, 0.03):
        with arm.weights():
            encoder, memory = _convolutions(2, 1, nn.Flatten()), nn.LSTM(256, 12, batch_first=True)
            net = nn.ModuleList([encoder, memory, nn.Linear(12, 2 * len(SEEN))])
        optimizer, draws = torch.optim.Adam(net.parameters(), lr=rate, fused=True), lab.fork("batches of clips")
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (1 - step / steps) ** 0.5)
        for _ in arm.steps(steps, net, optimizer, schedule, draws, name=f"rate {rate}"):
            chosen = torch.randint(len(fit[0]), (max(1, config.batch // 6),), generator=draws)
            arm.descend((_places(net, fit[0][chosen]) - fit[1][chosen]).square().mean(), optimizer)
            schedule.step()
        with torch.no_grad():
            said.append([_places(net.eval(), frames) for frames, *_ in (choice, test)])
    own, other = (sum(p.numel() for p in m.parameters()) for m in (net, model))
    arm.metric("parameters / those of DNBP", own / other)
    _report(arm, test, min(said, key=lambda pair: float(_errors(choice, pair[0]).mean()))[1])


def _places(net: nn.ModuleList, frames: Tensor) -> Tensor:
    seen = net[1](net[0](frames.flatten(0, 1)).unflatten(0, frames.shape[:2]))[0]
    return torch.as_tensor(net[2](seen)).unflatten(-1, (len(SEEN), 2))


def _gaussian(lab: Lab, config: Config) -> None:
    """Compare both kinds of messages with the exact marginals of a chain of five nodes and a star of four."""
    graph, own, one = [(0, 1), (1, 2), (2, 3), (3, 4), (5, 6), (5, 7), (5, 8)], torch.linspace(-1, 1, 9), torch.eye(9)
    join = one[[s for s, _ in graph]] - one[[t for _, t in graph]]
    model, end = (one + 2 * join.T @ join, own + 0.6 * join.sum(0)), join.abs().sum(0) == 1
    exact = uncertainty.gaussian_belief_propagation(*model, graph)
    spring, draws = NormalPotential(torch.tensor([0.3]), 0.5**0.5), lab.fork("Gaussian models")
    words = dict[str, Any](pairwise=spring, graph=graph, iterations=5, bandwidth=0.3, generator=draws)
    for method in ("exact", "pull"):
        arm, errors = lab.arm(f"{method} messages", baseline=method == "pull"), []
        for part in (9, 3, 1):
            shape = (10 * part, 9, 12 * config.particles // part)
            start = Beliefs(6 * torch.rand(*shape, 1, generator=draws) - 3, torch.zeros(shape).log_softmax(-1))
            unary = lambda s, x: -(x[..., 0] - own[s]).square() / 2  # noqa: E731
            found = uncertainty.nonparametric_belief_propagation(unary, beliefs=start, method=method, **words)
            errors.append(float((found.means[..., 0] - exact.means).square().mean().sqrt()))
        ratio = found.variances[..., 0].mean(0) / exact.variances
        arm.metric(ENDS, ratio[end].max())
        arm.metric(INNER, ratio[~end].max())
        arm.metric(LARGEST, (ratio - 1).abs().max(), better="lower")
        arm.metric(SLOPE, math.log(errors[-1] / errors[0], 9))
    right, pulled = lab.arm("exact messages"), lab.arm("pull messages")
    said = "exact messages have all variances within 10 %, and an error that falls as one over the root of their number"
    lab.claim(f"{said}: slope in -0.5 +- 0.2", right[LARGEST] <= 0.1, abs(right[SLOPE] + 0.5) <= 0.2)
    said = "pulled ones do not tend to them: at most 0.3 of the variance at ends, 0.97 elsewhere, an error that stays"
    lab.claim(said, pulled[ENDS] <= 0.3, pulled[INNER] <= 0.97, pulled[SLOPE] >= -0.2)


def second_frame(place: Tensor) -> Tensor:
    """Return a loss of the second frame, in what weighed the particles of the first."""
    points, draws = torch.linspace(-1, 1, 20).unsqueeze(1), torch.Generator().manual_seed(0)
    return (uncertainty.resample(points, -(points - place).square().sum(-1), generator=draws).points - 1).mean()


def _separate(lab: Lab, model: Learned) -> None:
    """Which factors have a gradient of which loss, and what audit says of a loss that reaches back a frame."""
    draws, reached = lab.fork("separate losses"), {}
    unary, truth = model.unary(torch.rand(2, 3, 32, 32, generator=draws)), torch.rand(2, 3, 2, generator=draws)
    points, words = torch.rand(2, 3, 20, 2, generator=draws), {"truth": truth, "sender": unary.detach()}
    found = uncertainty.pull_messages(unary, list[Any](model.rods), RODS, points, generator=draws, **words)
    for loss, value in zip(KINDS, found.losses(truth, bandwidth=WIDTH), strict=True):
        for kind in KINDS:
            owned = [p for n, p in model.named_parameters() if n.startswith(kind) or ("rods" in n and kind in n)]
            slopes = torch.autograd.grad(value, owned, retain_graph=True, allow_unused=True)
            reached[f"{loss}_to_{kind}"] = sum(float(g.abs().sum()) for g in slopes if g is not None)
    own, report = [reached[f"{k}_to_{k}"] for k in KINDS], audit(second_frame, torch.zeros(1).requires_grad_())
    apart, named = sum(reached.values()) == sum(own), any("resample(" in f.source for f in report.findings)
    said = "each loss has a gradient in its own kind of factor and in no other; audit names resampling as the end of it"
    lab.claim(said, min(own) > 0, apart, named, scale="smoke", **reached)


@torch.no_grad()
def _draw(lab: Lab, clips: tuple[Tensor, ...], found: list[Beliefs], model: Learned) -> None:
    figure, axes = lab.subplots(1, 5, figsize=(15, 3.8))
    for axis, frame in zip(axes, (0, len(found) // 2, len(found) - 1), strict=False):
        axis.imshow(clips[0][5, frame].permute(1, 2, 0), extent=(-1, 1, -1, 1), alpha=0.6)
        for node, seen in enumerate(SEEN):
            points, weights = (part[5, node] for part in found[frame])
            axis.scatter(*points.T, s=300 * weights.exp() + 2, alpha=0.8, linewidths=0, label=seen)
        axis.plot(*clips[1][5, frame].T, "w-o", lw=1, ms=4, mfc="none", label="true")
        axis.set(title=f"frame {frame + 1}", xticks=[], yticks=[], xlim=(-1, 1), ylim=(-1, 1))
    grid = torch.stack(torch.meshgrid(*[torch.linspace(-1, 1, 81)] * 2, indexing="xy"), -1)
    for axis, (a, b), rod in zip(axes[3:], RODS, model.rods, strict=True):
        axis.imshow(rod.log_prob(-grid).exp(), extent=(-1, 1, -1, 1), origin="lower", cmap="Greys")
        axis.scatter(*-rod.sample((200,), lab.fork("rods")).T, s=4, color=lab.colour("DNBP"))
        axis.set(title=f"{SEEN[b]}, seen from the {SEEN[a]}", xlim=(-1, 1), ylim=(-1, 1))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, facecolor="0.8")
    lab.figure("particles", figure, "A clip with five shapes; density of a rod (grey), and draws of it.")
