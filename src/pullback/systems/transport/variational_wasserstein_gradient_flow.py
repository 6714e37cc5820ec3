"""Gradient flows of laws by implicit steps that need samples only.

The step of Jordan, Kinderlehrer and Otto moves a law a little so that a functional falls. Written as a maximum over a
witness function, entropies and divergences need no density of the law, and map and witness are trained against each
other (Fan, Zhang, Taghvaei, Chen, ICML 2022). Four flows: relaxation to a normal law, step by step against the exact
recursion; a porous medium with its front; a mixture of four; the posterior of a logistic regression, whose data is
real. The witness is compared with none, which leaves a normal law's entropy: that ruins the mixture, and is enough for
the posterior, which is near normal. On the mixture chains of Langevin do no worse with as many gradients. Smaller than
in the paper, and with larger steps, so the normal reference law is fitted anew while a map is trained.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from pullback import data, transport
from pullback.lab import Arm, Lab, above, at_least, system


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    steps: Annotated[int, at_least(2)] = 8
    """Implicit steps to the normal law and in the porous medium."""
    updates: Annotated[int, at_least(2)] = 100
    """Of the map, a step."""
    mixture_steps: Annotated[int, at_least(1)] = 12
    """Implicit steps to the mixture."""
    posterior_steps: Annotated[int, at_least(1)] = 4
    """Implicit steps to the posterior."""
    particles: Annotated[int, at_least(64)] = 2000
    """Of each law; five times as many in the porous medium, whose histogram is drawn."""
    chain: Annotated[int, at_least(10)] = 1200
    """Adjusted Langevin steps of 200 chains that sample the posterior."""
    langevin_step: Annotated[float, above(0)] = 0.05
    """Of the chains that sample the mixture: best of 0.02, 0.05, 0.1 and 0.2."""
    replicates: Annotated[int, at_least(1)] = 2
    """Particles, initial networks, draws and splits of the patients."""


BLOCKS = ("WassersteinGradientFlow", "jko_step", "RelativeEntropy", "GeneralizedEntropy", "barenblatt", "langevin")


@system(
    "variational-wasserstein-gradient-flow",
    family="transport",
    title="Variational Wasserstein gradient flow",
    paper="Fan, Zhang, Taghvaei, Chen, ICML 2022, arXiv 2112.02424",
    config=Config,
    smoke={"steps": 2, "updates": 4, "mixture_steps": 1, "posterior_steps": 1, "particles": 100, "chain": 10}
    | {"replicates": 1},
    full={"updates": 1000, "particles": 20_000, "chain": 10_000},
    data=("breast_cancer",),
    blocks=tuple(f"transport.{name}" for name in BLOCKS),
)
def run(lab: Lab, config: Config) -> None:
    """Run the four flows; the last replicate is drawn."""
    lab.data("a normal law, a mixture of four and a porous medium, in closed form", origin="simulated")
    lab.data("breast_cancer, 569 tumours", origin="real")
    figure, panels = lab.subplots(1, 2, figsize=(11, 4))
    scatter, clouds = lab.subplots(1, 3, figsize=(11, 4), sharex=True, sharey=True)
    for _ in lab.replicates(config.replicates):
        _normal(lab, config, panels[0])
        _porous(lab, config, panels[1])
        _mixture(lab, config, clouds)
        _posterior(lab, config)
    ours, silent, chains = _arms(lab)
    lab.claim(
        "normal law: mean and deviation after every step are within 2 % of the exact recursion, and the symmetric "
        "divergence from the target falls from at least 5 to at most 0.1",
        ours["normal: largest error of the mean"] <= 0.02,
        ours["normal: largest error of the deviation"] <= 0.02,
        ours["normal: divergence at the start"] >= 5,
        ours["normal: divergence at the end"] <= 0.1,
    )
    error = "porous medium: distance to the exact density"
    lab.claim(
        "porous medium: the histogram is within 0.1 of the exact density after every step, and at the end at most "
        "half as far as heat of the same variance",
        ours[f"{error}, largest"] <= 0.1,
        ours[error] <= lab.arm("heat")[error] / 2,
    )
    lab.claim(
        "mixture: each of the four gets 20 to 30 % of the particles, their deviation is within 5 % of the true one, of "
        "which without a witness at most half is left, and the distance to exact samples is at most a quarter of its",
        ours["mixture: smallest share"] >= 0.2,
        ours["mixture: largest share"] <= 0.3,
        abs(ours["mixture: deviation"] / WIDTH - 1) <= 0.05,
        silent["mixture: deviation"] <= WIDTH / 2,
        ours[FAR] <= silent[FAR] / 4,
    )
    lab.claim(
        "posterior: accuracy on unseen tumours is within 1 point of long chains, the log likelihood within 0.01, the "
        "deviation of the weights within 5 %",
        abs(ours["posterior: accuracy"] - chains["posterior: accuracy"]) <= 0.01,
        abs(ours["posterior: log likelihood"] - chains["posterior: log likelihood"]) <= 0.01,
        abs(ours["posterior: deviation"] / chains["posterior: deviation"] - 1) <= 0.05,
    )
    lab.figure("flows", figure, caption="Last replicate: particles against what is exact.")
    lab.figure("mixture", scatter, caption="Last replicate, at equal gradients of the log density; crosses: the four.")


Flow = transport.WassersteinGradientFlow
WIDTH = 0.7  # the deviation of each of the four
FAR = "mixture: sliced distance to exact samples at equal shares"
CENTRES = 3 * torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])


class Residual(nn.Module):
    """``x + A x + N(x)`` with a matrix and a plain network that begin at 0: the identity."""

    def __init__(self, dim: int, width: int = 64) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(dim, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.linear, self.last = nn.Linear(dim, dim, bias=False), nn.Linear(width, dim)
        for tensor in (*self.linear.parameters(), *self.last.parameters()):
            nn.init.zeros_(tensor)

    def forward(self, x: Tensor) -> Tensor:
        """Move every point."""
        moved: Tensor = x + self.linear(x) + self.last(self.hidden(x))
        return moved


class Silent(nn.Linear):
    """A witness that says 0 everywhere: of an entropy is left what a normal law of the same covariance has."""

    def forward(self, x: Tensor) -> Tensor:
        """Return 0."""
        return 0 * super().forward(x).squeeze(-1)


def _witness(dim: int, width: int = 64) -> nn.Module:
    """A number for each point, 0 at the beginning."""
    last = nn.Linear(width, 1)
    for tensor in last.parameters():
        nn.init.zeros_(tensor)
    hidden = [nn.Linear(dim, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()]
    return nn.Sequential(*hidden, last, nn.Flatten(0))


def _arms(lab: Lab) -> list[Arm]:
    return [lab.arm(name, baseline=name != "implicit steps") for name in ("implicit steps", "no witness", "Langevin")]


def _flow(lab: Lab, arm: Arm, name: str, x: Tensor, functional: Any, **options: Any) -> Flow:
    with arm.weights(name):
        map, witness = Residual(x.shape[-1]), Silent(x.shape[-1], 1) if arm.baseline else _witness(x.shape[-1])
    return Flow(map, witness, x, functional, generator=lab.fork(f"{name} draws"), **options)


def _end(lab: Lab, arm: Arm, name: str, x: Tensor, functional: Any, steps: int, **options: Any) -> Tensor:
    flow = _flow(lab, arm, name, x, functional, **options)
    for _ in arm.steps(steps, flow, name=name):
        flow.step()
    return flow.particles


def _normal(lab: Lab, config: Config, panel: Any) -> None:
    """Relax to N(b, 1) in eight dimensions, where each implicit step of a normal law is known."""
    arm, step, dim = lab.arm("implicit steps"), 0.4, 8
    b = torch.full((dim,), 3 / math.sqrt(dim))
    x = 0.3 * torch.randn(config.particles, dim, generator=lab.fork("normal"))
    target = transport.RelativeEntropy(lambda x: -(x - b).square().sum(-1) / 2 - dim / 2 * math.log(2 * math.pi))
    flow = _flow(lab, arm, "normal", x, target, step=step, updates=config.updates, lr=1e-2, witness_lr=2e-3, refit=1)
    exact = [transport.GaussianStep(x.mean(0), x.var(0).mean().sqrt())]
    for _ in range(config.steps):
        exact.append(transport.gaussian_jko_step(*exact[-1], target_mean=b, step=step))
    found = {"mean": torch.zeros(config.steps), "deviation": torch.zeros(config.steps)}
    for k in arm.steps(config.steps, flow, found, name="normal"):
        flow.step()
        (mean, deviation), now = exact[k + 1], flow.particles
        found["mean"][k], found["deviation"][k] = now.mean(0).norm(), now.var(0).mean().sqrt()
        arm.record("normal: error of the mean", (now.mean(0) - mean).norm() / mean.norm())
        arm.record("normal: error of the deviation", (found["deviation"][k] / deviation - 1).abs())
    for name in ("mean", "deviation"):
        largest = max(arm.series(f"normal: error of the {name}"))
        arm.metric(f"normal: largest error of the {name}", largest, better="lower")
    for name, points in (("start", x), ("end", flow.particles)):
        value = transport.symmetric_kl_gaussian(points.mean(0), torch.cov(points.mT), b, torch.eye(dim))
        arm.metric(f"normal: divergence at the {name}", value)
    panel.clear()
    times = step * torch.arange(config.steps + 1)
    for name, colour in (("mean", arm.colour), ("deviation", lab.colour("deviation"))):
        panel.plot(times, [float(getattr(e, name).norm()) for e in exact], color=colour, label=f"{name}, exact")
        panel.plot(times[1:], found[name], "o", color=colour, label=f"{name}, particles")
    panel.set(title="normal law", xlabel="time", ylabel="length of the mean, deviation")
    panel.legend()


def _porous(lab: Lab, config: Config, panel: Any) -> None:
    """Spread in a porous medium of power 2 from the law that a point has become at time 0.1."""
    arm, heat, step, start = lab.arm("implicit steps"), lab.arm("heat", baseline=True), 0.05, 0.1

    def density(x: Tensor, time: float) -> Tensor:
        return transport.barenblatt(x.unsqueeze(-1), time, power=2.0)

    line = torch.linspace(-2, 2, 20_001)
    mass = density(line, start).cumsum(0)
    uniform = torch.rand(5 * config.particles, generator=lab.fork("porous")) * mass[-1]
    x = line[torch.searchsorted(mass, uniform)].unsqueeze(-1)
    box = 2.1  # the front begins at 0.97 and ends at 1.65
    entropy = transport.GeneralizedEntropy(2.0, torch.tensor([-box]), torch.tensor([box]))
    rates = {"updates": config.updates, "lr": 2e-3, "witness_lr": 5e-3}
    flow = _flow(lab, arm, "porous medium", x, entropy, step=step, **rates)
    edges = torch.linspace(-box, box, 37)
    inner = (edges[:-1].unsqueeze(-1) + (edges[1] - edges[0]) * torch.linspace(0.05, 0.95, 10)).flatten()

    def histogram(x: Tensor) -> Tensor:
        return torch.histogram(x.flatten(), edges)[0] / len(x) / (edges[1] - edges[0])

    def distance(found: Tensor, time: float) -> Tensor:
        return (found - density(inner, time).view(-1, 10).mean(-1)).abs().sum() * (edges[1] - edges[0])

    name, seen = "porous medium: distance to the exact density", histogram(x).repeat(config.steps + 1, 1)
    for k in arm.steps(config.steps, flow, seen, name="porous medium"):
        flow.step()
        seen[k + 1] = histogram(flow.particles)
        arm.record(name, distance(seen[k + 1], start + (k + 1) * step))
    arm.metric(name, arm.last(name), better="lower")
    arm.metric(f"{name}, largest", max(arm.series(name)), better="lower")
    more = (flow.particles.var() - x.var()).clamp_min(0).sqrt()
    warm = histogram(x + more * torch.randn(x.shape, generator=lab.fork("heat")))
    heat.metric(name, distance(warm, start + config.steps * step), better="lower")
    panel.clear()
    for k, shade in ((0, 0.4), (config.steps // 2, 0.7), (config.steps, 1.0)):
        panel.stairs(seen[k], edges, color=arm.colour, alpha=shade, label="particles" if shade == 1 else None)
        exact = density(line, start + k * step)
        panel.plot(line, exact, "k", linewidth=0.8, label="exact" if shade == 1 else None)
    panel.stairs(warm, edges, color=heat.colour, label="heat at the end", linestyle="--")
    panel.set(title="porous medium, three times", xlabel="x", ylabel="density")
    panel.legend()


def _mixture(lab: Lab, config: Config, panels: Any) -> None:
    """Reach four normal laws from one in their middle, with a witness, without, and by as many gradients in chains."""
    x = torch.randn(config.particles, 2, generator=lab.fork("mixture"))

    def log_density(x: Tensor) -> Tensor:
        parts = -(x.unsqueeze(-2) - CENTRES).square().sum(-1) / (2 * WIDTH**2)
        return torch.logsumexp(parts, -1) - math.log(8 * math.pi * WIDTH**2)

    target = transport.RelativeEntropy(log_density)
    arms = _arms(lab)
    rates = {"step": 0.25, "updates": config.updates, "batch": 256, "lr": 3e-3, "witness_lr": 5e-3, "refit": 10}
    rates["restart"] = False  # what tears the cloud apart is not learned anew in each step
    ends = [_end(lab, arm, "mixture", x, target, config.mixture_steps, **rates) for arm in arms[:2]]
    options: dict[str, Any] = {"step": config.langevin_step, "generator": lab.fork("chains")}
    options["steps"] = max(1, config.mixture_steps * config.updates * 256 // len(x))  # as many gradients in all
    ends.append(transport.langevin(lambda x: -log_density(x), x, **options).theta)
    right = CENTRES.repeat(len(x), 1) + WIDTH * torch.randn(4 * len(x), 2, generator=lab.fork("exact samples"))
    for k, (arm, points) in enumerate(zip(arms, ends, strict=True)):
        off, nearest = (points.unsqueeze(-2) - CENTRES).square().sum(-1).min(-1)
        shares = torch.bincount(nearest, minlength=4) / len(x)
        arm.metric("mixture: smallest share", shares.min())
        arm.metric("mixture: largest share", shares.max())
        arm.metric("mixture: deviation", (off.mean() / 2).sqrt())
        even = 1 / shares[nearest]  # as if each of the four had a quarter
        far = transport.sliced_wasserstein(points, right, even / even.sum(), generator=lab.fork("slices"))
        arm.metric(FAR, far.sqrt(), better="lower")
        panels[k].clear()
        panels[k].plot(*points.T, ".", color=arm.colour, markersize=2)
        panels[k].plot(*CENTRES.T, "kx")
        panels[k].set(title=arm.name, aspect="equal")


def _posterior(lab: Lab, config: Config) -> None:
    """Sample the weights of a logistic regression of tumours, with a normal prior."""
    table = data.breast_cancer()
    order = torch.randperm(len(table.target), generator=lab.fork("patients"))
    x, y = table.features[order], 2.0 * table.target[order] - 1
    x = torch.cat([(x - x[:400].mean(0)) / x[:400].std(0), torch.ones(len(x), 1)], -1)

    def log_density(weights: Tensor) -> Tensor:
        return logsigmoid(y[:400] * (weights @ x[:400].mT)).sum(-1) - weights.square().sum(-1) / 2

    arms = _arms(lab)
    start = torch.randn(config.particles, x.shape[-1], generator=lab.fork("weights"))  # the prior
    target = transport.RelativeEntropy(log_density)
    rates = {"step": 0.5, "updates": config.updates, "lr": 1e-2, "witness_lr": 2e-3, "refit": 1}
    ends = [_end(lab, arm, "posterior", start, target, config.posterior_steps, **rates) for arm in arms[:2]]
    draws, long = lab.fork("chains of weights"), start[:200].clone()
    for _ in arms[2].steps(10, long, draws, name="posterior"):
        options: dict[str, Any] = {"step": 2e-3, "steps": config.chain // 10, "adjusted": True, "generator": draws}
        found = transport.langevin(lambda w: -log_density(w), long, **options)  # 5e-3: chains stay in the prior's tail
        long.copy_(found.theta)
        arms[2].record("posterior: part of the steps that were taken", found.accepted.mean())
    for arm, weights in zip(arms, (*ends, long), strict=True):
        right = torch.sigmoid(y[400:] * (weights @ x[400:].mT)).mean(0)
        arm.metric("posterior: accuracy", (right > 0.5).float().mean(), better="higher")
        arm.metric("posterior: log likelihood", right.log().mean(), better="higher")
        arm.metric("posterior: deviation", weights.std(0).mean())
