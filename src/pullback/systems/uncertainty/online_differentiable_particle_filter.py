"""A particle filter that goes on learning while it runs, from the observations alone.

The filter is cut into blocks of ten steps. Each begins with the particles that the last one left, and ends with one
gradient step on the estimated evidence of its observations: parameters follow maximum likelihood when the world
changes, and no state is ever seen (Li, Chen, Li, Asilomar 2023, arXiv 2312.05955). What its gradient is worth depends
on what resampling does to it, so that is measured first, where the exact gradient is known from Kalman's filter.

Smaller than in the paper: 2 and 10 dimensions instead of up to 25, no images; the normalising flows are affine, and the
offline stage is replaced by what it can reach at best: the true parameters before the change. Linear streams are
simulated. The GPS ride is real; what changes in it is our doing: the logger keeps each third point from some point on.
Without that, nothing is gained from going on to learn (reported). Step sizes were chosen on seeds 0 to 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from pullback import data
from pullback.lab import Lab, above, at_least, system
from pullback.uncertainty import (
    LinearGaussian,
    OnlineFilter,
    ParticleFiltered,
    kalman_evidence,
    kalman_filter,
    particle_filter,
)

RATIO, GRADIENT, FEW = "evidence / Kalman's", "gradient / exact", "stop-gradient, a tenth of the particles"


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    filters: Annotated[int, at_least(2)] = 400
    """Filters of which the evidence and its gradient are averaged; a twentieth of them for transport."""
    particles: Annotated[int, at_least(2)] = 1000
    """Of each of these filters; a tenth of them for transport."""
    steps: Annotated[int, at_least(10)] = 2000
    """Length of the linear streams."""
    streams: Annotated[int, at_least(2)] = 5
    """Streams, each with parameters of its own; as many copies of the ride."""
    followed: Annotated[int, at_least(2)] = 100
    """Particles of each stream."""
    block: Annotated[int, at_least(1)] = 10
    """Steps between two updates."""
    lr: Annotated[float, above(0)] = 0.01
    """Of Adam, on linear streams."""
    passes: Annotated[int, at_least(1)] = 12
    """Over the beginning of the ride, in its offline stage."""
    known: Annotated[int, at_least(10)] = 200
    """Points of the ride before its change."""


class _Linear(nn.Module):
    """x' = A x + noise with A_ij = a^(|i-j|+1), y = c x + r noise; a proposal that pulls towards y / c."""

    def __init__(self, dim: int, streams: int, a: float, c: float = 1.0, r: float = 1.0, guided: bool = False) -> None:
        super().__init__()
        self.dim = dim
        self.powers = (torch.arange(dim)[:, None] - torch.arange(dim)).abs() + 1
        self.a = nn.Parameter(torch.full((streams,), a))
        shared = torch.tensor([c, r, c**2 / r**2, 1 / (1 + c**2 / r**2) ** 0.5]).log()  # the best proposal
        self.rest = nn.Parameter(shared.repeat(streams, 1), requires_grad=guided)

    def matrix(self) -> Tensor:
        return self.a[:, None, None] ** self.powers

    def scales(self) -> tuple[Tensor, ...]:
        """Return c, r, how far the proposal goes towards y / c, and its spread: ``[streams, 1, 1]`` each."""
        c, r, odds, spread = self.rest[:, None, None].unbind(-1)
        return c.exp(), r.exp(), odds.sigmoid(), spread.exp()

    def initial(self) -> Independent:
        return _normal(self.a.new_zeros(len(self.a), self.dim), self.a.new_ones(1))

    def transition(self, x: Tensor) -> Independent:
        return _normal(x @ self.matrix().mT, x.new_ones(1))

    def observation(self, x: Tensor) -> Independent:
        c, r, *_ = self.scales()
        return _normal(c * x, r)

    def proposal(self, x: Tensor | None, y: Tensor) -> Independent | None:
        if not self.rest.requires_grad:
            return None
        c, _, pull, spread = self.scales()
        if x is None:  # one law for all particles of a stream
            c, pull, spread, y = c[:, 0], pull[:, 0], spread[:, 0], y[:, 0]
        prior = torch.zeros_like(y) if x is None else x @ self.matrix().mT
        return _normal(prior + pull * (y / c - prior), spread)

    def exact(self) -> LinearGaussian:
        """Return the same model for Kalman's filter."""
        (c, r, *_), eye = self.scales(), torch.eye(self.dim)
        return LinearGaussian(self.matrix(), c * eye, eye, r**2 * eye, torch.zeros(self.dim), eye)


class _Ride(nn.Module):
    """A point of a track to the next one: logarithm of the distance (it returns to a mean) and heading (it drifts)."""

    def __init__(self, copies: int) -> None:
        super().__init__()
        self.rest = nn.Parameter(torch.tensor([-0.3, 0.3, -0.5, -1.0, -1.0]).repeat(copies, 1))

    def initial(self) -> Independent:
        mean = self.rest[:, :1].detach()
        return _normal(torch.cat([mean, torch.zeros_like(mean)], 1), torch.tensor([1.0, 3.0]))

    def transition(self, x: Tensor) -> Independent:
        mean, keep, distance, heading, _ = self.rest[:, None].unbind(-1)
        after = torch.stack([mean + keep * (x[..., 0] - mean), x[..., 1]], -1)
        return _normal(after, torch.stack([distance, heading], -1).exp())

    def observation(self, x: Tensor) -> Independent:
        length, heading = x[..., 0].clamp(max=3.0).exp(), x[..., 1]
        step = torch.stack([length * heading.cos(), length * heading.sin()], -1)
        return _normal(step, self.rest[:, 4, None, None].exp())


@system(
    "online-differentiable-particle-filter",
    family="uncertainty",
    title="Learning Differentiable Particle Filter on the Fly",
    paper="Li, Chen, Li, Asilomar 2023, arXiv 2312.05955",
    config=Config,
    smoke={"filters": 60, "particles": 40, "steps": 40, "streams": 2, "followed": 10, "passes": 1, "known": 20},
    full={"filters": 4000, "steps": 5000, "streams": 20, "followed": 1000},
    data=("ride",),
    blocks=tuple(f"uncertainty.{name}" for name in ("particle_filter", "OnlineFilter", "resample", "kalman_evidence")),
)
def run(lab: Lab, config: Config) -> None:
    """Measure the gradients of resampling; then follow streams whose parameters change, and a ride."""
    lab.data("linear Gaussian streams", origin="simulated")
    lab.data("GPS track of a mountain bike marathon, 978 points; thinned from some point on", origin="real")
    _gradients(lab, config)
    for dim in (2, 10):
        _streams(lab, config, dim)
    _ride(lab, config)
    names = [f"{what} in {dim} dimensions" for dim in (2, 10) for what in ("squared error", "a")]
    lab.curves(*names, xlabel="block of ten steps", caption="Mean over streams, whose dynamics change after a tenth.")
    density = "log density of the next point"
    lab.curves(density, f"{density}, not thinned", xlabel="block of ten points", caption="Mean over copies of filters.")


def _gradients(lab: Lab, config: Config) -> None:
    """Compare evidence and gradient of many filters, at a = 0.42 where the truth is 0.6, with Kalman's."""
    stream = lab.fork("evidence")
    y = _simulate([_Linear(2, 1, a=0.6)] * 20, stream)[1]
    at = _Linear(2, 1, a=0.42)
    exact = kalman_evidence(at.exact(), y)
    (slope,) = torch.autograd.grad(exact.sum(), at.a)
    few, tenth = max(2, config.filters // 20), max(2, config.particles // 10)
    many = (config.filters, config.particles)
    compared = {"multinomial": many, "stop-gradient": many, "transport": (few, tenth), FEW: (config.filters, tenth)}
    for name, (count, particles) in compared.items():
        arm, method = lab.arm(name, baseline=name == "multinomial"), name.partition(",")[0]
        options = {"epsilon": 0.5} if method == "transport" else {}
        words = {"particles": particles, "resampling": method, "threshold": 1.0, "generator": stream, **options}
        model = _Linear(2, count, a=0.42)
        found = particle_filter(model, y.expand(count, *y.shape[1:]), **words)
        slopes = torch.autograd.grad(found.log_evidence.sum(), model.a)[0] / slope
        ratio = (found.log_evidence - exact).detach().exp()
        weight = torch.ones(count) if method == "transport" else ratio / ratio.mean()  # its evidence is biased
        mean = (weight * slopes).mean()  # a ratio of means; its error is that of what is added up next
        arm.metric(RATIO, ratio, replicated=True)
        arm.metric(GRADIENT, mean + weight * (slopes - mean), replicated=True)
        arm.metric("spread of the gradient", slopes.std())
    plain, ours, plan, rival = (lab.arm(name) for name in compared)
    error = config.filters**-0.5
    lab.claim(
        "the estimated evidence is unbiased: its mean ratio to Kalman's is 1 within 3 standard errors",
        *(abs(arm[RATIO] - 1) <= 3 * error * arm[RATIO].spread for arm in (plain, ours)),
    )
    lab.claim(
        "stop-gradient resampling has the exact gradient within 3 standard errors; the plain one of the paper is off "
        "by more than 5 %, and by more than 5 of them",
        abs(ours[GRADIENT] - 1) <= 3 * error * ours[GRADIENT].spread,
        abs(plain[GRADIENT] - 1) > max(0.05, 5 * error * plain[GRADIENT].spread),
    )
    lab.claim(
        "transport's gradient is within 25 % of the exact one, and varies less than stop-gradient's of as many",
        abs(plan[GRADIENT] - 1) <= 0.25,
        plan["spread of the gradient"] < rival["spread of the gradient"],
    )
    lab.bars(GRADIENT, RATIO, caption="Mean and standard deviation of single filters (gradients weighed).")


def _streams(lab: Lab, config: Config, dim: int) -> None:
    """Follow streams whose dynamics change; in ten dimensions observation and proposal are learned too."""
    guided, count, rmse = dim > 2, config.streams, f"RMSE in {dim} dimensions"
    before = {"a": 0.2, "r": 2.0 if guided else 1.0}
    after = before | {"a": 0.42 if guided else 0.6}
    old, new = (_Linear(dim, count, **p, guided=guided) for p in (before, after))
    x, y = _simulate([old if t < config.steps // 10 else new for t in range(config.steps)], lab.fork(f"streams {dim}"))
    for name in ("online", "online, stop-gradient", "supervised online", "frozen"):
        arm = lab.arm(name, baseline=name in ("supervised online", "frozen"))
        model = _Linear(dim, count, **before, guided=guided)
        learned = [p for p in model.parameters() if p.requires_grad]
        optimizer = None if name == "frozen" else torch.optim.Adam(learned, lr=config.lr)
        draws, resampling = lab.fork(f"particles {dim}"), "stop-gradient" if "stop" in name else "systematic"
        words = {"particles": config.followed, "resampling": resampling, "threshold": 1.0, "generator": draws}
        online = OnlineFilter(model, optimizer, **words)
        means = torch.zeros_like(x)
        kept = [k for k in (model, optimizer, draws, online) if k is not None]
        for block in arm.steps(-(-config.steps // config.block), *kept, means, name=f"stream {dim}"):
            part = slice(block * config.block, (block + 1) * config.block)

            def loss(found: ParticleFiltered, y: Tensor, part: slice = part) -> Tensor:
                return (found.means - x[:, part]).square().mean((1, 2)).sum()

            means[:, part] = online.update(y[:, part], loss if "supervised" in name else None).means
            arm.record(f"squared error in {dim} dimensions", (means - x)[:, part].square().mean())
            arm.record(f"a in {dim} dimensions", model.a.detach().mean())
        arm.metric(
            rmse, (means - x)[:, config.steps // 2 :].square().mean((1, 2)).sqrt(), better="lower", replicated=True
        )
        arm.metric(f"error of a in {dim} dimensions", (model.a.detach() / after["a"] - 1).abs(), replicated=True)
    for name, model in (("Kalman, true parameters", new), ("Kalman, old parameters", old)):
        error = (
            (kalman_filter(model.exact(), y).means.detach() - x)[:, config.steps // 2 :].square().mean((1, 2)).sqrt()
        )
        lab.arm(name, baseline=True).metric(rmse, error, better="lower", replicated=True)
    ours, frozen, told = (lab.arm(name) for name in ("online", "frozen", "supervised online"))
    part = 0.9 if guided else 0.8  # Kalman's filter with the true parameters: 0.84, 0.58
    lab.claim(
        f"in {dim} dimensions, after the change: online RMSE <= {part} x frozen and <= 1.15 x supervised online",
        ours[rmse] <= part * frozen[rmse],
        ours[rmse] <= 1.15 * told[rmse],
    )
    off = f"error of a in {dim} dimensions"
    lab.claim(f"in {dim} dimensions a is found within 15 %, without any state", ours[off] <= 0.15)


def _ride(lab: Lab, config: Config) -> None:
    """Learn from the beginning of a ride; then the logger keeps each third point."""
    track = (data.ride()[:, :2] / 30).float()
    parts = [track[: config.known], track[config.known :: 3], track[config.known :]]
    first, thinned, rest = (p.diff(dim=0).expand(config.streams, -1, -1) for p in parts)
    start, draws = _Ride(config.streams), lab.fork("ride")
    optimizer = torch.optim.Adam(start.parameters(), lr=0.03)
    words = {"particles": 2 * config.followed, "clip": 20.0}
    online, frozen = lab.arm("online"), lab.arm("frozen", baseline=True)
    for epoch in frozen.steps(config.passes, start, optimizer, draws, name="ride, offline"):
        optimizer.param_groups[0]["lr"] = 0.03 * (1 - epoch / config.passes)
        learner = OnlineFilter(start, optimizer, generator=draws, **words)
        told = [learner.update(part).increments for part in first.split(config.block, 1)]
        frozen.record("log density of the beginning", torch.cat(told, 1).mean())
    density = "log density of the next point"
    for name, steps, lr in (("", thinned, 0.03), (", not thinned", rest, 0.003)):
        for arm in (frozen, online):
            model, draws = _Ride(config.streams), lab.fork("further ride")
            model.load_state_dict(start.state_dict())
            learns = None if arm is frozen else torch.optim.Adam(model.parameters(), lr=lr)
            follower = OnlineFilter(model, learns, generator=draws, **words)
            told, blocks = torch.zeros(steps.shape[:2]), steps.split(config.block, 1)
            kept = [k for k in (model, learns, draws, follower) if k is not None]
            for i in arm.steps(len(blocks), *kept, told, name=f"ride{name}"):
                found = follower.update(blocks[i]).increments
                told[:, i * config.block : i * config.block + found.shape[1]] = found
                arm.record(density + name, found.mean())
            arm.metric(density + name, told.mean(1), better="higher", unit="nat", replicated=True)
    lab.claim(
        "once the logger keeps each third point, the online filter forecasts the next one by at least 0.5 nat better "
        "than the frozen one",
        online[density] >= frozen[density] + 0.5,
    )
    figure, axes = lab.subplots(1, 1, figsize=(6, 5))
    axes.plot(*(0.03 * parts[2]).T, color="0.8", lw=1)
    axes.plot(*(0.03 * parts[0]).T, ".", ms=3, color="0.4", label="offline stage: each point")
    axes.plot(*(0.03 * parts[1]).T, ".", ms=4, color=online.colour, label="then: each third")
    axes.set(xlabel="east [km]", ylabel="north [km]", aspect="equal")
    axes.legend(fontsize=8)
    lab.figure("ride", figure, "A real ride; its logger is made to keep each third point from some point on.")


def _simulate(models: list[_Linear], stream: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return states and observations ``[streams, steps, dim]`` of a model a step."""
    x, states, seen = torch.randn(len(models[0].a), models[0].dim, generator=stream), [], []
    with torch.no_grad():
        for t, model in enumerate(models):
            if t:
                x = (model.matrix() @ x[..., None])[..., 0] + torch.randn(x.shape, generator=stream)
            c, r, *_ = (s[:, 0] for s in model.scales())
            states.append(x)
            seen.append(c * x + r * torch.randn(x.shape, generator=stream))
    return torch.stack(states, 1), torch.stack(seen, 1)


def _normal(mean: Tensor, scale: Tensor) -> Independent:
    return Independent(Normal(mean, scale, validate_args=False), 1, validate_args=False)
