"""A bias that makes rare events happen, learned by differentiating through the simulation.

A molecule stays in one well for ages before it crosses to another. A bias potential is learned that makes Langevin
trajectories from either well reach the other and come back, from nothing but a distance: no reaction coordinate is
chosen. Its gradient goes back over the last steps before the nearest frame by an adjoint that takes positions as
constants ("partial backpropagation"), without a graph; the pairs of places and adjoints that it leaves feed many
optimizer steps a simulation (Sipka, Dietschreit, Grajciar, Gomez-Bombarelli, ICML 2023). Smaller than in the paper:
2 x 50 trajectories of 800 steps; the way back counts from where the other well was reached. Wells: Mueller and Brown,
300 K; beside three springs, mass 0.01, they take turns, less so as the rate falls after each round: the seed decides.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import torch
from matplotlib.axes import Axes
from torch import Tensor

from pullback import data, dynamics
from pullback.dynamics import Basin, GaussianGridBias, NeuralBias, approach, trajectory_adjoint, underdamped_langevin
from pullback.gradients import saved_bytes
from pullback.lab import Arm, Lab, above, at_least, system

BOLTZMANN, PICOSECOND = 0.001987204, 1000 / 48.88821  # kcal/mol/K; in the time of kcal/mol, g/mol and Angstrom
WELLS, ORIGIN, PLANE = torch.tensor([[23.07, 31.07], [41.97, 8.45]]), torch.tensor([32.0, 8.0]), torch.tensor([0, 2])
CROSSED, BACK, GROWTH = "crosses, {} dimensions", "comes back, {} dimensions", "growth of the adjoint, {}"
FREE, GAP, NEAR = "error of the free energy, {}", "relative difference, {}", "squared distance of the molecule"


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    trajectories: Annotated[int, at_least(2)] = 50
    """From each well."""
    steps: Annotated[int, at_least(50)] = 800
    """Of each trajectory; walkers that measure the free energy take four times as many, the molecule a fifth."""
    step: Annotated[float, above(0)] = 5.0
    """Of time [fs]; 1 in five dimensions, where the mass is 0.01."""
    backsteps: Annotated[int, at_least(1)] = 40
    """How far the adjoint goes back."""
    epochs: tuple[Annotated[int, at_least(1)], Annotated[int, at_least(1)]] = (10, 14)
    """Simulations that each bias is learned from, in two and in five dimensions."""
    batch: Annotated[int, at_least(1)] = 20
    """Adjoints in one optimizer step; a trajectory has two. In five dimensions three times as many places."""
    lr: Annotated[float, above(0)] = 0.2
    """Step of Adam for heights [kcal/mol], of one a simulation 5 times; times 0.3 when 0.71 and when 0.9 arrive."""
    network_lr: Annotated[float, above(0)] = 1e-3
    """Of the network in five dimensions; times 0.8 after each simulation in which a tenth arrived."""


class World(NamedTuple):
    """A force, where trajectories begin and in which basin that is, and the words of their dynamics."""

    force: Callable[[Tensor], Tensor]
    start: Tensor
    origin: Tensor
    words: dict[str, Any]
    basins: tuple[Basin, ...] = ()
    descriptors: Callable[[Tensor], Tensor] | None = None

    def pushed(self, bias: Any) -> Callable[[Tensor], Tensor]:
        """The force with that of a bias."""
        return self.force if bias is None else lambda x: self.force(x) + bias.force(x)

    def simulate(self, bias: Any, steps: int, draws: torch.Generator, repeats: int = 1, **other: Any) -> Tensor:
        """Positions of trajectories that begin with velocities of their temperature."""
        x, words = self.start.repeat(repeats, 1), {"temperature": 300 * BOLTZMANN, **self.words, **other}
        v = torch.randn(x.shape, generator=draws) * (words["temperature"] / words["mass"]).sqrt()
        with torch.no_grad():
            return underdamped_langevin(self.pushed(bias), x, v, steps=steps, generator=draws, **words).positions


def plane_force(x: Tensor) -> Tensor:
    """Mueller and Brown in the paper's units: lengths of 16, an energy of 0.0865."""
    return 0.0865 / 16 * dynamics.muller_brown_force((x - ORIGIN) / 16)


def space_force(x: Tensor) -> Tensor:
    """The same of the first and third coordinate, the others on springs."""
    return (-0.2 * (x - 25)).index_copy(-1, PLANE, plane_force(x[..., PLANE]))


def wells(lab: Lab, config: Config, dimensions: int) -> World:
    """Two wells in two or five dimensions; how wide they are, trajectories without a bias tell."""
    origin, fs = torch.arange(2).repeat_interleave(config.trajectories), PICOSECOND / 1000
    start, words = WELLS[origin], {"mass": torch.ones(1), "friction": 1 / PICOSECOND, "step": config.step * fs}
    if dimensions == 5:
        start = torch.full((len(origin), 5), 25.0).index_copy(1, PLANE, start)
        words |= {"mass": torch.full((1,), 0.01), "step": fs}
    world = World(plane_force if dimensions == 2 else space_force, start, origin, words)
    free = world.simulate(None, config.steps, lab.fork("free"))[config.steps // 5 :]
    return world._replace(basins=tuple(dynamics.basin(free[:, origin == k].flatten(0, 1)) for k in range(2)))


@system(
    "rare-event-diffsim",
    family="dynamics",
    title="Differentiable Simulations for Enhanced Sampling of Rare Events",
    paper="Sipka, Dietschreit, Grajciar, Gomez-Bombarelli, ICML 2023, arXiv 2301.03480",
    config=Config,
    smoke={"trajectories": 2, "steps": 50, "backsteps": 6, "epochs": (2, 2), "batch": 8},
    full={"trajectories": 300, "steps": 6000, "step": 1.0, "backsteps": 190, "batch": 120},
    data=("alanine_dipeptide",),
    blocks=("dynamics.crossing_adjoints", "dynamics.metadynamics", "dynamics.free_energy", "dynamics.amber_energy"),
)
def run(lab: Lab, config: Config) -> None:
    """Learn biases in two and five dimensions, weigh the wells, follow gradients back, go on to a molecule."""
    lab.data("wells of Mueller and Brown, in 2 and 5 dimensions", origin="simulated")
    lab.data("alanine dipeptide: Amber's topology and frames of a simulation", origin="real")
    others = ("exact adjoint", "one step a simulation", "no bias", "hills on x, y", "hills on a spring")
    ours, (exact, single, free, hills, spring) = lab.arm("partial adjoint"), [lab.arm(n, baseline=True) for n in others]
    (figure, axes), two, five = lab.subplots(1, 3, figsize=(14, 4)), wells(lab, config, 2), wells(lab, config, 5)
    for arm, way in ((exact, {"partial": False}), (single, {"batch": 4 * config.trajectories}), (ours, {})):
        bias = GaussianGridBias((-10.0, -10.0), (55.0, 55.0), resolution=20, width=4.0, height=0.01)
        learn(arm, lab, config, two, bias, config.lr * (5 if arm is single else 1), **way)
        path = judge(arm, lab, config, two, bias)
    with ours.weights():
        network = NeuralBias(lambda x: x / 10 - 2.5, 5, hidden=64, layers=2)
    learn(ours, lab, config, five, network, config.network_lr, batch=3 * config.batch, epochs=config.epochs[1])
    judge(ours, lab, config, five, network)
    for world, arm, variables, epochs in zip((two, five), (hills, spring), ([0, 1], [1]), config.epochs, strict=True):
        evaluations = epochs * (config.steps + 2 * (1 + world.start.shape[1]) * config.backsteps)  # of forces
        judge(free, lab, config, world, None, math.ceil(evaluations / config.steps))
        judge(arm, lab, config, world, filled(lab, world, variables, evaluations))
    two_way, five_way = map(CROSSED.format, (2, 5))
    statement = "a learned bias takes 0.7 of fresh trajectories of the worse well to the other, none 0, hills 0.3 fewer"
    lab.claim(statement, ours[two_way] >= 0.7, free[two_way] <= 0, hills[two_way] <= ours[two_way] - 0.3)
    statement = "five dimensions, a network of all: at least 0.7; hills on one of the springs at most 0.2, without none"
    lab.claim(statement, ours[five_way] >= 0.7, spring[five_way] <= 0.2, free[five_way] <= 0)
    weigh(lab, config, two, bias, axes[1])
    norms(lab, config, axes[2])
    identities(lab)
    molecule(lab, config)
    grid = torch.cartesian_prod(torch.linspace(8, 52, 90), torch.linspace(-4, 42, 90))
    levels = (0.0865 * dynamics.muller_brown((grid - ORIGIN) / 16) + bias(grid).detach()).view(90, 90)
    place, heights = grid.view(90, 90, 2).unbind(-1), torch.arange(-36.0, 13.0, 4.0)
    figure.colorbar(axes[0].contourf(*place, levels, heights, cmap="Greys_r", extend="both"), label="U + B [kcal/mol]")
    axes[0].plot(*path[:, :: config.trajectories // 2].unbind(-1), lw=0.7)
    axes[0].plot(*WELLS.T, "r*", ms=10)
    axes[0].set(xlabel="x", ylabel="y", title="learned landscape", xlim=(8, 52), ylim=(-4, 42))
    lab.figure("landscapes", figure, "A learned landscape with two trajectories from either well (stars).")
    lab.bars(two_way, five_way, BACK.format(2))


def learn(arm: Arm, lab: Lab, config: Config, world: World, bias: Any, lr: float, **way: Any) -> None:
    """Simulate, take the nearest frames back, and step along random subsets of what comes back."""
    way = {"epochs": config.epochs[0], "batch": config.batch, "steps": config.steps, "passes": 1, "partial": True} | way
    optimizer, draws = torch.optim.Adam(bias.parameters(), lr), lab.fork("trajectories")
    words = {"steps": config.backsteps, "partial": way["partial"], "descriptors": world.descriptors, **world.words}
    name, goals, apart = f"{world.start.shape[1]} dimensions", 1 - world.origin, world.start.shape[1] == 5
    for _ in arm.steps(way["epochs"], bias, optimizer, draws, name=name):
        path = world.simulate(bias, way["steps"], draws)
        found = dynamics.crossing_adjoints(world.pushed(bias), path, world.basins, world.origin, goals, **words)
        x, a = found.positions, found.adjoints
        if apart:  # each by itself, without those of trajectories that arrived
            x, a = (part[a.abs().sum(-1) > 0][None] for part in (x, a))
        batch = min(way["batch"], x.shape[1])
        for _ in range(way["passes"] if batch else 0):
            for loss in dynamics.minibatch_parameter_gradient(bias.force, x, a, batch=batch, generator=draws):
                arm.descend(loss, optimizer, name=f"share of the gradient, {name}")
        arm.record(f"arrived, {name}", found.there.arrived.float().mean())
        arrived = arm.series(f"arrived, {name}")
        falls = sum(s > 0.1 for s in arrived) if apart else sum(max(arrived) > s for s in (0.71, 0.9))
        optimizer.param_groups[0]["lr"] = lr * (0.8 if apart else 0.3) ** falls


def judge(arm: Arm, lab: Lab, config: Config, world: World, bias: Any, repeats: int = 1) -> Tensor:
    """Fresh trajectories in a bias that stays: how many get inside the other well, from the well where fewer do."""
    path, origin = world.simulate(bias, config.steps, lab.fork("judged"), repeats), world.origin.repeat(repeats)
    there = approach(path, world.basins, 1 - origin)
    home = approach(path, world.basins, origin, first=(there.frame + 1).clamp(max=config.steps))
    least = min(there.arrived[origin == k].float().mean() for k in range(2))
    arm.metric(CROSSED.format(path.shape[-1]), least, better="higher")
    arm.metric(BACK.format(path.shape[-1]), (there.arrived & home.arrived).float().mean(), better="higher")
    return path


def filled(lab: Lab, world: World, variables: list[int], evaluations: int) -> dynamics.HillBias:
    """Hills on some of the coordinates, by four times as many walkers, at equal evaluations of the force."""
    low, high, steps = (-5.0,) * len(variables), (60.0,) * len(variables), 20 * max(1, evaluations // 80)
    words = dict[str, Any](height=0.01, width=2.0, every=20, temperature=300 * BOLTZMANN, **world.words)
    words |= {"low": low, "high": high, "steps": steps, "generator": lab.fork("hills")}
    return dynamics.metadynamics(world.force, world.start.repeat(4, 1), lambda x: x[..., variables], **words).bias


def weigh(lab: Lab, config: Config, world: World, bias: GaussianGridBias, axis: Axes) -> None:
    """The free energy of one well against the other, from hot walkers in the learned bias."""
    ours, kt = lab.arm("partial adjoint"), 3000 * BOLTZMANN
    path = world.simulate(bias, 4 * config.steps, lab.fork("hot"), 2, temperature=kt, friction=20 / PICOSECOND)
    path = path[config.steps // 2 :: 10].flatten(0, 1)
    edges = [torch.linspace(0.0, 60.0, 61), torch.linspace(-10.0, 50.0, 61)]
    fine = torch.cartesian_prod(*(torch.linspace(e[0] + 0.125, e[-1] - 0.125, 240) for e in edges))
    boxes = (-0.0865 * dynamics.muller_brown((fine - ORIGIN) / 16) / kt).exp().view(60, 4, 60, 4).sum((1, 3))
    square = torch.cdist(torch.cartesian_prod(*(e[1:] - 0.5 for e in edges)), WELLS).view(60, 60, 2)
    left, logs = square[..., 0] < square[..., 1], {"integrated": boxes.log() - boxes.sum().log()}
    for name, weight in (("weighted", 1.0), ("as they are", 0.0)):
        logs[name] = dynamics.free_energy(path, weight * bias(path).detach(), temperature=kt, bins=edges).values / -kt
        gap = [v[left].logsumexp(0) - v[~left].logsumexp(0) for v in (logs[name], logs["integrated"])]
        ours.metric(FREE.format(name), abs(gap[0] - gap[1]), better="lower", unit="kT")
    for (name, value), style in zip(logs.items(), ("k--", "C1-", "C2:"), strict=True):
        axis.plot(edges[1][1:] - 0.5, -value.logsumexp(0), style, label=name)
    axis.set(xlabel="y", ylabel="free energy [kT]", title="samples of the learned bias at 3000 K")
    axis.legend()
    statement = "weighted samples at 3000 K give the difference of the wells' free energies to 0.5 kT"
    lab.claim(statement, ours[FREE.format("weighted")] <= 0.5)


def norms(lab: Lab, config: Config, axis: Axes) -> None:
    """How adjoints grow on their way back along trajectories from beside the barrier, a femtosecond a step."""
    words: dict[str, Any] = {"mass": torch.ones(1), "friction": 0.1 / PICOSECOND, "step": PICOSECOND / 1000}
    start = torch.tensor([28.0, 20.0]).expand(2 * config.trajectories, 2)
    path = World(plane_force, start, PLANE, words).simulate(None, config.steps + 1, lab.fork("norms"))
    for name, partial in (("partial adjoint", True), ("exact adjoint", False)):
        arm, way = lab.arm(name), {"start": config.steps + 1, "steps": config.steps, "partial": partial, **words}
        size = trajectory_adjoint(plane_force, path, 2 * (path[-1] - WELLS[1]), **way).adjoints.norm(dim=-1)[9:]
        largest = (size / size[0]).amax(0)
        arm.metric(GROWTH.format("median"), largest.median(), better="lower", unit="x")
        arm.metric(GROWTH.format("largest"), largest.max(), better="lower", unit="x")
        axis.plot(torch.arange(10, config.steps + 1), (size / size[0])[:, :4], color=arm.colour, label=[name, *"___"])
    axis.set(yscale="log", xlabel="steps back [fs]", ylabel="norm over that after 10 steps", title="four adjoints")
    axis.legend(loc="upper left")
    kept, grown = (lab.arm(f"{n} adjoint")[GROWTH.format(k)] for n, k in (("partial", "largest"), ("exact", "median")))
    statement = "the norm of the partial adjoint never grows by more than 1.5, that of the exact one by 5 in the median"
    lab.claim(statement, kept <= 1.5, grown >= 5)


def identities(lab: Lab) -> None:
    """What holds to rounding: adjoints against automatic differentiation and differences, and what is kept for them."""
    bias = GaussianGridBias((-10.0, -10.0), (55.0, 55.0), resolution=6, width=8.0, height=0.5).double()
    words, start = {"friction": 0.2, "step": 0.1}, torch.tensor([[28.0, 20.0], [30.0, 18.0]], dtype=torch.float64)
    total = lambda x: plane_force(x) + bias.force(x)  # noqa: E731

    def simulated(steps: int, detached: bool) -> Tensor:
        way = dict[str, Any](detach_position=detached, temperature=0.6, generator=lab.fork("identity"), **words)
        return underdamped_langevin(total, start, 0 * start, steps=steps, **way).positions

    def returned(path: Tensor, steps: int, partial: bool) -> tuple[Tensor, Tensor]:
        way = dict[str, Any](start=len(path) - 1, steps=steps, partial=partial, **words)
        return trajectory_adjoint(total, path.detach(), 2 * path[-1].detach(), **way)

    loss = lambda adjoints, places: (bias.force(places) * adjoints).sum()  # noqa: E731
    path, ends, turned = simulated(60, True), [], torch.randn((6, 6), generator=lab.fork("turned"), dtype=torch.float64)
    (wanted,) = torch.autograd.grad(path[-1].square().sum(), bias.heights)
    found, exact = (
        torch.autograd.grad(loss(*returned(simulated(60, kind), 59, kind)), bias.heights)[0] for kind in (True, False)
    )
    for shift in (1e-4, -2e-4):
        bias.heights.data += shift * turned
        ends.append(simulated(60, False)[-1].square().sum().detach())
    partial = lab.metric(GAP.format("partial adjoint"), (found - wanted).abs().max() / wanted.abs().max())
    off = lab.metric(GAP.format("exact adjoint"), abs((exact * turned).sum() * 2e-4 / (ends[0] - ends[1]) - 1))
    kept = [saved_bytes(loss, *returned(simulated(n, True), 40, True)).total for n in (60, 120)]
    unrolled = [saved_bytes(simulated, n, True).total for n in (60, 120)]
    lab.claim(
        "the partial adjoint is the gradient with positions detached to 1e-8, the exact one agrees with differences to "
        "1e-5; twice the steps double what autograd keeps of a simulation, and add nothing to what 40 steps back keep",
        *(partial <= 1e-8, off <= 1e-5, kept[0] == kept[1], unrolled[1] >= 1.9 * unrolled[0]),
        scale="smoke",
    )


def molecule(lab: Lab, config: Config) -> None:
    """Alanine dipeptide: forces against differences, then a first push to its other well by two dihedrals."""
    (x, file), arm, free = data.alanine_dipeptide(), lab.arm("partial adjoint"), lab.arm("no bias")
    field, light = (dynamics.read_prmtop(file, dtype=dtype) for dtype in (torch.float64, torch.float32))
    turned = torch.randn((11, 22, 3), generator=lab.fork("directions"), dtype=torch.float64)
    ends = [dynamics.amber_energy(x + shift * turned, field) for shift in (1e-5, -1e-5)]
    slopes = (torch.func.grad(lambda z: dynamics.amber_energy(z, field).sum())(x) * turned).sum((-1, -2))
    off = lab.metric(GAP.format("forces"), (slopes - (ends[0] - ends[1]) / 2e-5).abs().max() / slopes.abs().max())
    lab.claim("forces in Amber's field agree with differences of its energy to 1e-6", off <= 1e-6, scale="smoke")
    energy = lambda z: dynamics.amber_energy(z.unflatten(-1, (-1, 3)), light).sum()  # noqa: E731

    def force(z: Tensor) -> Tensor:
        if torch.is_grad_enabled():  # it is differentiated again
            return -torch.func.grad(energy)(z)
        with torch.enable_grad():
            return -torch.autograd.grad(energy(leaf := z.detach().requires_grad_()), leaf)[0]

    def described(z: Tensor) -> Tensor:
        angles = dynamics.dihedrals(z.unflatten(-1, (-1, 3)), torch.tensor([[4, 6, 8, 14], [6, 8, 14, 16]]))
        return torch.cat([angles.cos(), angles.sin()], -1)

    words = {"mass": light.masses.repeat_interleave(3), "friction": 1 / PICOSECOND, "step": PICOSECOND / 1000}
    start, other = x.float().flatten(1), torch.tensor([60.0, -70.0]).deg2rad()
    means = (described(start).mean(0), torch.cat([other.cos(), other.sin()]))
    basins, origin = tuple(Basin(mean, 20 * torch.eye(4)) for mean in means), torch.zeros(len(start), dtype=torch.long)
    world = World(force, start, origin, words, basins, described)
    with arm.weights("molecule"):
        bias = NeuralBias(described, 4, hidden=32, layers=2)
    learn(arm, lab, config, world, bias, 1e-2, epochs=3, steps=config.steps // 5, batch=8, passes=5)
    for judged, push in ((arm, bias), (free, None)):
        path = world.simulate(push, config.steps // 5, lab.fork("molecule"))
        judged.metric(NEAR, (described(path) - means[1]).square().sum(-1).amin(0).mean(), better="lower")
    lab.claim("three simulations bring it nearer: at most half the squared distance", arm[NEAR] <= 0.5 * free[NEAR])
