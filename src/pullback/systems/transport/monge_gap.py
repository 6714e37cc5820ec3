"""A regularizer that makes any network an optimal map: the Monge gap.

A map T that carries one cloud onto another need not do so at the least cost. Its Monge gap is what it pays more than
the best matching of the points with their images; it is 0 if and only if T is optimal for its cost, whatever the
architecture of T and whatever the cost (Uscidda, Cuturi, ICML 2023). Here a plain network is trained to fit, with and
without the gap: to a linear map that is known to be optimal, and on the colours of two photographs under the distance
itself, which no gradient of a convex function is optimal for. Smaller than in the paper: 256 points a step, no single
cells. The photographs are real.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import torch
from torch import Tensor, nn

from pullback import data, transport
from pullback.lab import Arm, Lab, above, at_least, system


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    points: Annotated[int, at_least(4)] = 256
    """Points of a cloud, and of a batch of pixels."""
    steps: Annotated[int, at_least(1)] = 300
    """Adam steps of each arm on the known map."""
    pixel_steps: Annotated[int, at_least(1)] = 300
    """Adam steps of each arm on the colours."""
    pixels: Annotated[int, at_least(8)] = 2000
    """Pixels of each photograph to train on."""
    tested: Annotated[int, at_least(4)] = 500
    """Further points on which maps are judged."""
    lr: Annotated[float, above(0)] = 3e-3
    """Step size of Adam at the beginning, with the gap."""
    baseline_lr: Annotated[float, above(0)] = 1e-3
    """Without: the one that leaves least unexplained (larger ones fit better and turn farther from the optimal map)."""
    pixel_lr: Annotated[float, above(0)] = 3e-2
    """On the colours, of both arms, which fit best with it, of 0.003 to 0.03. With small ones a map stays near the
    identity where it began, which pays no excess: without the gap some 0.5 % with 0.003."""
    epsilon: Annotated[float, above(0)] = 0.05
    """Of the known map, as a part of the mean cost."""
    weight: Annotated[float, above(0)] = 1.0
    """Of the gap."""
    sweeps: tuple[Annotated[int, at_least(1)], Annotated[int, at_least(1)]] = (100, 1000)
    """Of the solver, between which the memory of its gradients is compared."""
    replicates: Annotated[int, at_least(1)] = 3
    """Clouds, initialisations and batches, each the same for both arms."""


@system(
    "monge-gap",
    family="transport",
    title="The Monge Gap: A Regularizer to Learn All Transport Maps",
    paper="Uscidda, Cuturi, ICML 2023, arXiv 2302.04953",
    config=Config,
    smoke={
        "points": 32,
        "steps": 3,
        "pixel_steps": 2,
        "pixels": 64,
        "tested": 16,
        "replicates": 1,
        "sweeps": (20, 200),
    },
    full={"points": 1024, "steps": 3000, "pixel_steps": 3000, "pixels": 100_000, "tested": 2000, "replicates": 5},
    data=("pictures",),
    blocks=tuple(
        f"transport.{b}"
        for b in ("sinkhorn", "sinkhorn_divergence", "monge_gap", "TransportMapFit", "unexplained_variance")
    ),
)
def run(lab: Lab, config: Config) -> None:
    """Measure gaps of known maps and gradients of the solver; train both maps on both problems."""
    _known_gaps(lab)
    _gradients(lab, config)
    lab.data("Gaussian clouds and a linear map that is optimal", origin="simulated")
    lab.data("colours of two photographs, coffee and astronaut", origin="real")
    ours, base = lab.arm("with the gap"), lab.arm("without", baseline=True)
    for _ in lab.replicates(config.replicates):
        shown = {}
        for arm in (ours, base):
            _linear(lab, config, arm)
            shown[arm.name] = _colours(lab, config, arm)
    error, excess, far = "unexplained variance", "excess over the best matching", "excess of the colours"
    lab.claim(
        "with the gap the variance that is not explained, on unseen points, is at most half of that without",
        ours[error] <= base[error] / 2,
    )
    lab.claim(
        "with the gap the map pays at most 0.5 % above the best matching, and at most a tenth of the excess without",
        ours[excess] <= 0.5,
        ours[excess] <= base[excess] / 10,
    )
    lab.claim(
        "colours, by distance: at most 0.5 % above the best matching, and at most half of the excess without the gap",
        ours[far] <= 0.5,
        ours[far] <= base[far] / 2,
    )
    fitting = "divergence of the colours"
    lab.claim("and the colours fit at most 1.5 times worse", ours[fitting] <= 1.5 * base[fitting])
    lab.bars(error, excess, far, fitting, caption="On points that no step has seen, in percent but for the divergence.")
    coffee, astronaut = (data.picture(n)[::3, ::3].movedim(-1, 0) for n in ("coffee", "astronaut"))
    astronaut = nn.functional.interpolate(astronaut[None], coffee.shape[1:], mode="area")[0]
    images = [coffee, *(shown[arm.name] for arm in (ours, base)), astronaut]
    lab.images([images], titles=["source", ours.name, base.name, "target"], name="colours", caption="Real photographs.")
    lab.curves("divergence of the known map", log=True, xlabel="step", caption="Both fit; only one is nearly optimal.")


class Displacement(nn.Module):
    """``x + N(x)`` with a plain network N that begins at 0: the identity."""

    def __init__(self, dim: int, width: int = 64) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(dim, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.last = nn.Linear(width, dim)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Move every point."""
        return x + self.last(self.network(x))


def _excess(x: Tensor, image: Tensor, cost: str) -> Tensor:
    """What the pairs pay more than the best matching of the same points, in percent of that; and its batch."""
    gap = transport.monge_gap(x.double(), image.double(), cost=cost, epsilon=0).value
    paid = transport.pairwise_cost(x.double(), image.double(), cost).diagonal(dim1=-2, dim2=-1).mean(-1)
    return 100 * gap / (paid - gap)


def _known_gaps(lab: Lab) -> None:
    """A symmetric positive map has no gap, a quarter turn one of almost all it pays, no map a negative one."""
    arm, g = lab.arm("known maps"), lab.fork("known maps")
    x = torch.randn(256, 8, generator=g, dtype=torch.float64)
    half = torch.randn(8, 8, generator=g, dtype=torch.float64)
    flat = x[:, :2]
    maps = {
        "symmetric positive": (x, x @ (half @ half.T)),
        "quarter turn": (flat, flat.flip(-1) * flat.new_tensor([-1, 1])),
    }
    for name, (points, image) in maps.items():
        gap = transport.monge_gap(points, image, epsilon=0).value
        arm.metric(f"gap of a {name} map, part of what it pays", gap / (points - image).square().sum(-1).mean())
    points, moves = torch.randn(2, 50, 32, 3, generator=g, dtype=torch.float64)
    images = points + torch.linspace(0, 1, 50, dtype=torch.float64)[:, None, None] * moves  # some near optimal ones
    least = arm.metric("least gap of 50 random maps", transport.monge_gap(points, images, epsilon=0).value.min())
    lab.claim(
        "exact gaps, as parts of what is paid: a symmetric positive map at most 1e-6, a quarter turn at least 0.8; "
        "none is below -1e-9",
        arm["gap of a symmetric positive map, part of what it pays"] <= 1e-6,
        arm["gap of a quarter turn map, part of what it pays"] >= 0.8,
        least >= -1e-9,
        scale="smoke",
    )


def _gradients(lab: Lab, config: Config) -> None:
    """Implicit gradients of a plan against finite differences, and what sweeps cost in memory."""
    implicit, unrolled = lab.arm("implicit"), lab.arm("unrolled", baseline=True)
    g = lab.fork("gradients")
    cost, weight, way = torch.rand(3, 24, 24, generator=g, dtype=torch.float64)

    def total(cost: Tensor, epsilon: float = 0.1, gradient: str = "implicit", count: int = 4000) -> Tensor:
        options = {"gradient": gradient, "max_iterations": count, "tolerance": 1e-12}
        found = transport.sinkhorn(cost, epsilon=epsilon, **options)  # type: ignore[arg-type]
        return (found.plan * weight).sum() + found.value + found.f.square().sum()

    live = cost.clone().requires_grad_()
    (slope,) = torch.autograd.grad(total(live), live)
    numerical = (total(cost + 1e-5 * way) - total(cost - 1e-5 * way)) / 2e-5
    off = implicit.metric("error of the slope, relative", abs((slope * way).sum() / numerical - 1), better="lower")
    few, many = config.sweeps
    for arm in (implicit, unrolled):
        for count in (few, many):
            slow = partial(total, live, 0.003, arm.name, count)
            memory = lab.peak_memory(partial(_derive, slow, live), of=arm.name)
            arm.metric(f"memory, {count} sweeps", memory, unit="bytes", better="lower")
    lab.claim("implicit gradients of plan, potentials and value are right to 1e-4", off <= 1e-4, scale="smoke")
    lab.claim(
        "their memory is the same after ten times the sweeps, that of unrolled ones grows at least fivefold",
        implicit[f"memory, {many} sweeps"] <= 1.01 * implicit[f"memory, {few} sweeps"],
        unrolled[f"memory, {many} sweeps"] >= 5 * unrolled[f"memory, {few} sweeps"],
        scale="smoke",
    )


def _derive(total: Callable[[], Tensor], x: Tensor) -> Tensor:
    return torch.autograd.grad(total(), x)[0]


def _linear(lab: Lab, config: Config, arm: Arm) -> None:
    """Fit samples of ``A x + b`` with A symmetric positive, which is the optimal map, and look at unseen points."""
    g = lab.fork("known map")
    x, other, unseen = (torch.randn(n, 8, generator=g) for n in (config.points, config.points, config.tested))
    half, shift = torch.randn(8, 8, generator=g) / 8**0.5, torch.randn(8, generator=g)
    matrix = half @ half.T + 0.3 * torch.eye(8)

    def optimal(x: Tensor) -> Tensor:
        return x @ matrix + shift

    with arm.weights("linear"):
        network = Displacement(8)
    weight = 0.0 if arm.baseline else config.weight
    fit = transport.TransportMapFit(
        network,
        x,
        optimal(other),
        regularization=weight,
        steps=config.steps,
        lr=config.baseline_lr if arm.baseline else config.lr,
        relative_epsilon=config.epsilon,
    )
    for _ in arm.steps(config.steps, fit, name="known map"):
        fit.step()
        arm.record("divergence of the known map", fit.result().fitting[-1])
    with torch.no_grad():
        error = transport.unexplained_variance(network, optimal, unseen)
        arm.metric("unexplained variance", error, unit="%", better="lower")
        excess = _excess(unseen, network(unseen), "sqeuclidean")
    arm.metric("excess over the best matching", excess, unit="%", better="lower")


def _colours(lab: Lab, config: Config, arm: Arm) -> Tensor:
    """Carry the colours of one photograph onto those of another, at the least sum of distances; return the picture."""
    g = lab.fork("colours")
    pictures = [data.picture(name) for name in ("coffee", "astronaut")]
    clouds = [p.flatten(0, 1)[torch.randperm(p[..., 0].numel(), generator=g)] for p in pictures]
    train, unseen = zip(*(c.split(config.pixels)[:2] for c in clouds), strict=True)
    with arm.weights("colours"):
        network = Displacement(3)
    weight = 0.0 if arm.baseline else config.weight
    fit = transport.TransportMapFit(
        network,
        *train,
        cost="euclidean",
        regularization=weight,
        steps=config.pixel_steps,
        lr=config.pixel_lr,
        relative_epsilon=0.02,
        batch=min(config.points, config.pixels),
        generator=lab.fork("batches"),
    )
    for _ in arm.steps(config.pixel_steps, fit, name="colours"):
        fit.step()
    x, y = (u[: config.tested] for u in unseen)
    with torch.no_grad():
        image = network(x)
        divergence = transport.sinkhorn_divergence(image, y, relative_epsilon=0.02, tolerance=1e-3).value
        arm.metric("excess of the colours", _excess(x, image, "euclidean"), unit="%", better="lower")
        arm.metric("divergence of the colours", divergence, better="lower")
        small = pictures[0][::3, ::3]
        return network(small.flatten(0, 1)).clamp(0, 1).view_as(small).movedim(-1, 0)
