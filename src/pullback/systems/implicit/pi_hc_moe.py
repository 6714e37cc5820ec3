"""Physics as the last layer of a network, solved by one expert for each part of the domain.

A network maps a starting concentration to basis functions on a grid of times and places. A hard constraint solves for
the combination of them that satisfies the equation of diffusion with sorption best, in training and on new problems,
and the network learns through that solution. With one problem of least squares a domain, the problems are small,
parallel, and each part of the field gets coefficients of its own (Chalapathi, Du, Krishnapriyan, ICLR 2024, arXiv
2402.13412). The baselines are one problem for the whole domain, and a linear layer whose only constraint is a penalty,
trained for longer with the best of five step sizes and three weights of the conditions, chosen on other starts.

Solutions come from an implicit finite-volume solver: simulated, as the data of PDEBench, whose equation this is. At the
right end what arrives leaves, ``u = -D du/dx``, as in the code of PDEBench: with the opposite sign, which is in print,
``exp((x - 1) / D)`` is a mode that grows at the rate ``1 / (R D)``.
Smaller than in the paper: a grid of 17 x 32 instead of 101 x 1 024, and a network of points with two hidden layers of
32 that knows the profiles of plain diffusion instead of a Fourier neural operator. The residual is that of steps of
Crank and Nicolson for the total concentration. An expert looks a column beyond its part on each side. Unlike in the
paper, experts within the range of training are no better than the penalty, have about twice the error of the one
problem, and their parts do not join exactly; the penalty, trained on the residual, leaves as little of it there as the
one problem. Beyond the range both constraints, solved anew, are far better than the penalty.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from pullback import implicit
from pullback.implicit import HardConstraint
from pullback.lab import Arm, Lab, above, at_least, system


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    times: Annotated[int, at_least(3)] = 17
    """Of the grid, dense where the concentration changes fast: their roots are equidistant."""
    places: Annotated[int, at_least(8)] = 32
    """Of the grid, equidistant, a multiple of the experts."""
    experts: Annotated[int, at_least(1)] = 8
    """Parts of the line, each for all times."""
    halo: Annotated[int, at_least(0)] = 1
    """Places beyond its part in which an expert looks at the equation."""
    functions: Annotated[int, at_least(2)] = 8
    """Basis functions, one of them constant."""
    starts: Annotated[int, at_least(1)] = 24
    """Starting concentrations to train with."""
    batch: Annotated[int, at_least(1)] = 4
    """Of them in a step."""
    steps: Annotated[int, at_least(1)] = 60
    """Steps of Adam with a hard constraint."""
    lr: Annotated[float, above(0)] = 1e-2
    """Step size of them, falling to 0 by a cosine."""
    soft_steps: Annotated[int, at_least(1)] = 1650
    """Steps of Adam with the penalty: more CPU time than those."""
    soft_lr: Annotated[float, above(0)] = 6e-2
    """Step size of them."""
    weight: Annotated[float, above(0)] = 3.0
    """Of the conditions against the equation."""
    grids: Annotated[tuple[tuple[int, int], ...], at_least(4)] = ((32, 32), (64, 64), (64, 128))
    """Times and places of the grids on which a solve is timed; the places are a multiple of the experts."""
    replicates: Annotated[int, at_least(1)] = 3
    """Initialisations and streams of batches."""


DIFFUSION, DURATION = 5e-4, 500.0
SECONDS = "CPU seconds of training"


class Physics:
    """The equation on a grid: linear terms of a field ``[*lead, times, places]``, what should be zero of them."""

    def __init__(self, times: int, places: int, weight: float) -> None:
        self.t = DURATION * torch.linspace(0, 1, times).double() ** 2
        self.x = torch.linspace(0, 1, places).double()
        self.weight = weight
        self.inner = pad(torch.ones(times - 1, places - 2).double(), (1, 1, 1, 0))

    def terms(self, u: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Return the field, that of the time before and the inflow of the step; start, left end and right end."""
        h = self.x[1]
        before = torch.cat([u[..., :1, :], u[..., :-1, :]], -2)
        second = pad((u[..., 2:] - 2 * u[..., 1:-1] + u[..., :-2]) / h**2, (1, 1))
        inflow = DIFFUSION * self.t.diff()[:, None] * (second[..., 1:, :] + second[..., :-1, :]) / 2
        slope = (3 * u[..., 1:, -1] - 4 * u[..., 1:, -2] + u[..., 1:, -3]) / (2 * h)
        inside = (u * self.inner, before * self.inner, pad(inflow, (0, 0, 1, 0)) * self.inner)
        return inside, (u[..., 0, 1:-1], u[..., 1:, 0], u[..., 1:, -1] + DIFFUSION * slope)

    def residual(self, inside: tuple[Tensor, ...], edges: tuple[Tensor, ...], start: Tensor) -> Tensor:
        """Return what does not fit, a quarter of the amount per duration, scaled to a sum of three mean squares."""
        now, before, inflow = inside
        amount = implicit.total_concentration(now) - implicit.total_concentration(before) - inflow
        conditions = (edges[0] - start, edges[1] - 1, edges[2])
        rows = [(len(self.t) - 1) / 4 * amount, *(self.weight * part for part in conditions)]
        return torch.cat([part / part.shape[-1] ** 0.5 for part in rows], -1)

    def solutions(self, start: Tensor) -> Tensor:
        """Solve on a grid four times as fine."""
        fine = start[:, None].expand(-1, 4 * (len(self.x) - 1) + 1)
        return implicit.solve_diffusion_sorption(fine, self.t, diffusion=DIFFUSION)[..., ::4]


class Basis(nn.Module):
    """Basis functions ``[batch, n, times, places]`` of starting concentrations ``[batch]``, the last one constant."""

    places: Tensor

    def __init__(self, physics: Physics, functions: int) -> None:
        super().__init__()
        root = (physics.t / DURATION).sqrt()[:, None].expand(-1, len(physics.x))
        x = physics.x.expand_as(root)
        fronts = [2 * torch.erfc(2 * distance / (root + 1e-3)) - 1 for distance in (x, 1 - x)]
        self.register_buffer("places", torch.stack([2 * root - 1, 2 * x - 1, *fronts], -1))
        layers = [nn.Linear(5, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, functions - 1), nn.Tanh()]
        self.net = nn.Sequential(*layers).double()

    def forward(self, start: Tensor) -> Tensor:
        """Evaluate the network at every point."""
        shape = (len(start), *self.places.shape[:-1])
        level = (10 * start - 1)[:, None, None, None].expand(*shape, 1)
        values = self.net(torch.cat([self.places.expand(*shape, -1), level], -1))
        return torch.cat([values, torch.ones_like(level)], -1).movedim(-1, 1)


class Model(nn.Module):
    """A network and its last layer."""

    def __init__(self, physics: Physics, functions: int, experts: int, halo: int = 0, *, soft: bool = False) -> None:
        super().__init__()
        self.basis = Basis(physics, functions)
        self.layer = HardConstraint(
            physics.terms,
            physics.residual,
            functions,
            partition=implicit.partition_domain((len(physics.t), len(physics.x)), (1, experts), halo=(0, halo)),
            ridge=1e-6,
            tolerance=1e-4,
            max_iterations=15,
            soft=soft,
        ).double()

    def forward(self, start: Tensor) -> Tensor:
        """Return the field ``[batch, times, places]``."""
        return self.layer(self.basis(start), start[:, None]).field


@system(
    "pi-hc-moe",
    family="implicit",
    title="Scaling physics-informed hard constraints with mixture-of-experts",
    paper="Chalapathi, Du, Krishnapriyan, ICLR 2024, arXiv 2402.13412",
    config=Config,
    smoke={"times": 5, "places": 16, "experts": 2, "steps": 2, "soft_steps": 3, "replicates": 1}
    | {"grids": ((8, 8), (8, 16))},
    full={"times": 65, "places": 128, "functions": 16, "steps": 1000, "soft_steps": 20_000, "batch": 6},
    blocks=("implicit.HardConstraint", "implicit.partition_domain", "implicit.solve_diffusion_sorption"),
)
def run(lab: Lab, config: Config) -> None:
    """Train with eight experts, with one and with the penalty; compare on starts within and beyond the range."""
    lab.data("diffusion with sorption by an implicit finite-volume solver", origin="simulated")
    ours, whole = lab.arm("an expert a part"), lab.arm("one for all", baseline=True)
    soft = lab.arm("penalty", baseline=True)
    starts = torch.linspace(0.005, 0.2, config.starts + config.starts // 3 + 1).double()
    held_out = torch.arange(len(starts)) % 4 == 2
    unseen = {"within": starts[held_out], "beyond": torch.linspace(0.25, 0.4, 4).double()}
    grid = Physics(config.times, config.places, config.weight)
    truth = {where: grid.solutions(start) for where, start in unseen.items()}
    fields = {"solution": truth["beyond"]}
    for replicate in lab.replicates(config.replicates):
        for arm, experts in ((ours, config.experts), (whole, 1), (soft, 1)):
            model = _train(lab, arm, config, starts[~held_out], experts)
            for where, start in unseen.items():
                field = _report(arm, where, model, start, truth[where])
                if replicate == 0 and where == "beyond":
                    fields[arm.name] = field
    gradients = _gradients(ours, config)
    slowest, whole_time = _race(lab, config, (ours, whole))
    lab.claim(
        "the penalty is given at least the CPU time of the experts and 1.2 times that of the one problem; beyond the "
        "range of training its error is at least twice that of both, within it 1.2 times that of the one problem",
        soft[SECONDS] >= ours[SECONDS],
        soft[SECONDS] >= 1.2 * whole[SECONDS],
        soft["error beyond"] >= 2 * ours["error beyond"],
        soft["error beyond"] >= 2 * whole["error beyond"],
        soft["error within"] >= 1.2 * whole["error within"],
    )
    lab.claim(
        "beyond the range the one problem leaves at most 0.7 of the residual of the equation that the penalty leaves",
        whole["residual beyond"] <= 0.7 * soft["residual beyond"],
    )
    lab.claim(
        "on the largest grid the slowest of the experts, each alone, takes at most 0.4 of the time of the one problem",
        slowest <= 0.4 * whole_time,
    )
    lab.claim(
        "the gradient through the coefficients is that of the unrolled solver to 1e-6",
        gradients <= 1e-6,
        scale="smoke",
    )
    _draw(lab, grid, fields)


def _train(lab: Lab, arm: Arm, config: Config, starts: Tensor, experts: int) -> Model:
    """Minimise what the field violates, borders of the parts included; the hard constraint solves it first."""
    soft = arm.name == "penalty"
    physics = Physics(config.times, config.places, config.weight)
    with arm.weights():
        model = Model(physics, config.functions, experts, config.halo if experts > 1 else 0, soft=soft)
    steps, lr = (config.soft_steps, config.soft_lr) if soft else (config.steps, config.lr)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    batches = lab.fork("batches")
    for _ in arm.steps(steps, model, optimizer, schedule, batches):
        with arm.cpu_time(SECONDS):
            start = starts[torch.randint(len(starts), (config.batch,), generator=batches)]
            loss = model.layer.violation(model(start), start[:, None]).square().sum(-1).mean()
            arm.descend(loss, optimizer, clip=1.0)
            schedule.step()
    return model


def _report(arm: Arm, where: str, model: Model, start: Tensor, truth: Tensor) -> Tensor:
    """Compare with the finite volumes behind the first time: the corners of the domain have no value there."""
    with torch.no_grad():
        field = model(start)
        rows = model.layer.violation(field, start[:, None])
    error, size = ((part[:, 1:].flatten(1).norm(dim=1)) for part in (field - truth, truth))
    arm.metric(f"error {where}", (error / size).mean(), better="lower")
    equation = rows[:, : field[0].numel()].square().sum(-1).mean().sqrt()  # of all rows, that of the points
    arm.metric(f"residual {where}", equation, better="lower")
    return field


def _gradients(arm: Arm, config: Config) -> float:
    """Compare the implicit gradient of a sum of squares with that through 40 steps of Gauss and Newton."""
    with arm.weights("gradients"):
        model = Model(Physics(5, 16, config.weight), 4, 1)
    layer, start = model.layer, torch.tensor([[0.1]]).double()
    layer.options |= {"tolerance": 1e-10, "max_iterations": 200}
    basis = model.basis(start[0]).detach().requires_grad_()

    def residual(omega: Tensor) -> Tensor:
        rows = layer.violation(torch.einsum("n,nij->ij", omega, basis[0]), start[0])
        return torch.cat([rows, layer.ridge**0.5 * omega])

    omega = torch.ones(4).double()
    for _ in range(40):
        jacobian = torch.func.jacrev(residual)(omega)
        omega = omega - torch.linalg.solve(jacobian.T @ jacobian, jacobian.T @ residual(omega))
    (unrolled,) = torch.autograd.grad(torch.einsum("n,nij->ij", omega, basis[0]).square().sum(), basis)
    (implied,) = torch.autograd.grad(layer(basis, start).field.square().sum(), basis)
    return arm.metric("error of the gradient", (implied - unrolled).norm() / unrolled.norm(), better="lower")


def _race(lab: Lab, config: Config, arms: tuple[Arm, Arm]) -> tuple[float, float]:
    """Time one solve of the whole and of each expert alone, as on a device of its own."""
    costs: dict[str, list[float]] = {"slowest expert": [], "one for all": [], "all experts in turn": []}
    parts = range(config.experts)
    for grid in config.grids:
        physics = Physics(*grid, config.weight)
        with arms[0].weights("timed"):
            model = Model(physics, config.functions, config.experts, config.halo)
        start = torch.linspace(0.05, 0.2, config.batch).double()[:, None]
        basis = model.basis(start[:, 0]).detach()
        contenders = {f"expert {k}": partial(model.layer.solve, basis, start, experts=[k]) for k in parts}
        contenders["one"] = partial(Model(physics, config.functions, 1).layer.solve, basis, start)
        race = lab.race(contenders, rounds=3)
        slowest = max((race[f"expert {k}"] for k in parts), key=float)
        costs["slowest expert"].append(slowest)
        costs["one for all"].append(race["one"])
        costs["all experts in turn"].append(sum(race[f"expert {k}"] for k in parts))
    lab.scaling(
        [times * places for times, places in config.grids], costs, xlabel="points", ylabel="CPU time of a solve (s)"
    )
    return slowest, race["one"]


def _draw(lab: Lab, grid: Physics, fields: dict[str, Tensor]) -> None:
    caption = "Of starts within and beyond the range of training; residual of the equation, across the parts."
    lab.bars("error within", "error beyond", "residual within", "residual beyond", caption=caption)
    figure, axes = lab.subplots(1, 4, figsize=(11, 3), sharey=True)
    truth = fields["solution"][-1]
    for axis, (name, field) in zip(axes, fields.items(), strict=True):
        values = truth if name == "solution" else (field[-1] - truth).abs().clamp(min=1e-4).log10()
        low, high = (0, 1) if name == "solution" else (-4, -1)
        drawn = axis.pcolormesh(grid.x, grid.t, values, vmin=low, vmax=high, cmap="viridis", shading="gouraud")
        axis.set(title=name, xlabel="x")
        axis.grid(visible=False)
        if name in ("solution", "penalty"):
            figure.colorbar(drawn, ax=axis, label="concentration" if name == "solution" else "log10 of the error")
    axes[0].set(ylabel="time")
    caption = "Left: concentration from a start beyond the range of training, 0.4. Right: size of the errors."
    lab.figure("fields", figure, caption)
