"""Solves with their gradients against torchdiffeq, torchode (a step for every sample) and torchsde."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pullback.dynamics import MassSpring, PeriodicController, StepControl, odeint, sdeint, steer, voxel_robot
from pullback.lab.bench import Case, Table
from pullback.lab.measure import race


class Problem(NamedTuple):
    field: nn.Module
    y0: Tensor
    t: Tensor


class Field(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(dim, hidden), nn.Tanh(), nn.Linear(hidden, dim))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(y)


def setup(batch: int, dim: int, hidden: int, times: int) -> Problem:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        field, y0 = Field(dim, hidden), torch.randn(batch, dim)
    return Problem(field, y0.requires_grad_(), torch.linspace(0, 1, times))


def ours(problem: Problem, **options: object) -> None:
    odeint(problem.field, problem.y0, problem.t, rtol=1e-5, atol=1e-7, **options).y.square().sum().backward()


def torchdiffeq(problem: Problem, *, adjoint: bool) -> None:
    import torchdiffeq as peer

    solve: Callable[..., Tensor] = peer.odeint_adjoint if adjoint else peer.odeint
    solve(problem.field, problem.y0, problem.t, rtol=1e-5, atol=1e-7).square().sum().backward()


BOUNDED = {"torchdiffeq odeint_adjoint": partial(torchdiffeq, adjoint=True)}
PLAIN = {"torchdiffeq odeint": partial(torchdiffeq, adjoint=False)}

# the same memory, the same control (one step for all samples, ten times the last at most), then what bounds the memory
# or gives each its step
LIKE_THEIRS = {"shared_step": True, "control": StepControl(grow=10.0)}
WAYS = (
    ("unrolled, shared step", {"adjoint": "unrolled", **LIKE_THEIRS}, PLAIN),
    ("unrolled", {"adjoint": "unrolled"}, PLAIN),
    ("checkpoint, shared step", {"adjoint": "checkpoint", **LIKE_THEIRS}, {**BOUNDED, **PLAIN}),
    ("checkpoint", {"adjoint": "checkpoint"}, {**BOUNDED, **PLAIN}),
    ("backsolve", {"adjoint": "backsolve"}, BOUNDED),
)


def oscillators(count: int) -> tuple[Callable[[Tensor, Tensor], Tensor], Tensor]:
    """Van der Pol's equation, its stiffness another for every sample."""
    generator = torch.Generator().manual_seed(0)
    stiffness = 5 * torch.rand(count, generator=generator) + 0.1

    def field(t: Tensor, y: Tensor) -> Tensor:
        x, v = y[:, 0], y[:, 1]
        return torch.stack([v, stiffness * (1 - x * x) * v - x], -1)

    return field, torch.randn(count, 2, generator=generator)


@torch.no_grad()
def own_steps(given: tuple[Callable[[Tensor, Tensor], Tensor], Tensor]) -> None:
    odeint(*given, [0.0, 2.0], rtol=1e-3, atol=1e-6)


@torch.no_grad()
def torchode(given: tuple[Callable[[Tensor, Tensor], Tensor], Tensor]) -> None:
    import torchode as peer

    field, y0 = given
    term = peer.ODETerm(field)
    control = peer.IntegralController(atol=1e-6, rtol=1e-3, term=term)
    times = torch.tensor([0.0, 2.0]).expand(len(y0), 2).contiguous()
    peer.AutoDiffAdjoint(peer.Dopri5(term=term), control).solve(peer.InitialValueProblem(y0=y0, t_eval=times))


class Stochastic(nn.Module):
    """As torchsde takes it."""

    noise_type = "diagonal"

    def __init__(self, sense: str) -> None:
        super().__init__()
        self.sde_type = sense
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.linear = nn.Linear(4, 4)

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(self.linear(y))

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        return 0.1 + 0.1 * torch.sin(y)


def stochastic(sense: str) -> tuple[Stochastic, Tensor]:
    return Stochastic(sense), torch.randn(64, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()


def along_a_path(given: tuple[Stochastic, Tensor], method: str, adjoint: str) -> None:
    model, y0 = given
    sdeint(model.f, model.g, y0, [0.0, 1.0], step=0.01, method=method, adjoint=adjoint).y[-1].sum().backward()


def torchsde(given: tuple[Stochastic, Tensor], method: str, adjoint: str) -> None:
    import torchsde as peer

    model, y0 = given
    t = torch.tensor([0.0, 1.0])
    if adjoint == "unrolled":
        peer.sdeint(model, y0, t, dt=0.01, method=method)[-1].sum().backward()
        return
    words = {"adjoint_method": "adjoint_reversible_heun"} if adjoint == "reversible" else {}
    peer.sdeint_adjoint(model, y0, t, dt=0.01, method=method, **words)[-1].sum().backward()


SDE_CASES = [
    Case(
        f"sdeint forward+backward, {method}, {adjoint}, 64 x 4, 100 steps",
        partial(stochastic, sense),
        partial(along_a_path, method=method, adjoint=adjoint),
        {"torchsde": partial(torchsde, method=method, adjoint=adjoint)},
    )
    for method, sense, adjoint in (
        ("euler", "ito", "unrolled"),
        ("srk", "ito", "unrolled"),
        ("midpoint", "stratonovich", "backsolve"),
        ("reversible_heun", "stratonovich", "reversible"),
    )
]


class Robots(NamedTuple):
    body: MassSpring
    controller: PeriodicController
    positions: Tensor
    controls: Tensor
    goals: Tensor


def robots(steps: int, batch: int) -> Robots:
    """Of six cells, 14 masses and 31 springs."""
    generator = torch.Generator().manual_seed(0)
    robot = voxel_robot(torch.tensor([[True, True, True, True], [True, False, False, True]]))
    controller = PeriodicController(robot.positions.numel(), 2, len(robot.rest), generator=generator)
    controls = 2 * torch.rand(steps, batch, len(robot.rest), generator=generator) - 1
    body, goals = MassSpring(*robot[1:], dashpot=50.0), torch.ones(steps, batch, 2)
    return Robots(body, controller, robot.positions.expand(batch, -1, -1), controls.requires_grad_(), goals)


def commanded(given: Robots, method: str) -> None:
    still = torch.zeros_like(given.positions)
    given.body.simulate(given.positions, still, given.controls, method=method).positions[-1].mean().backward()


def steered(given: Robots, method: str) -> None:
    still = torch.zeros_like(given.positions)
    motion = steer(given.body, given.controller, given.positions, still, given.goals, method=method)
    motion.positions[-1].mean().backward()


SPRING_CASES = [
    Case(
        f"{name} forward+backward, 500 steps x 16 robots of 31 springs",
        partial(robots, 500, 16),
        partial(act, method="compiled"),
        {"eager torch": partial(act, method="reference")},
    )
    for name, act in (("MassSpring.simulate", commanded), ("steer", steered))
]


def alone(problem: Problem, count: int) -> None:
    """As many evaluations of the field in a row and the way back through them: what no solver can go below."""
    y = problem.y0
    for _ in range(count):
        y = problem.field(problem.t, y)
    y.square().sum().backward()


def _limits() -> list[tuple[str, float, float, str]]:
    rows = []
    for batch, dim, hidden, times in ((1, 4, 20, 2), (128, 16, 64, 2), (128, 16, 64, 20)):
        problem = setup(batch, dim, hidden, times)
        for name, options, _ in WAYS[:2]:
            count = odeint(problem.field, problem.y0, problem.t, rtol=1e-5, atol=1e-7, **options).evaluations
            work = {"ours": partial(ours, problem, **options), "alone": partial(alone, problem, count)}
            theirs = ""
            try:
                PLAIN["torchdiffeq odeint"](problem)
                work["theirs"] = partial(PLAIN["torchdiffeq odeint"], problem)
            except ModuleNotFoundError:
                theirs = "not installed"
            found = race(work, rounds=7, seconds=0.05)
            theirs = theirs or f"{float(found.ratio('theirs', 'alone')):.2f}"
            share = float(found.ratio("alone", "ours"))
            rows.append((f"{name}, {batch} x {dim}, {hidden} tanh, {times} times", count, share, theirs))
    return rows


def _adjoints() -> list[tuple[str, float, float, float]]:
    rows = []
    for times in (2, 20):
        problem, names = (
            setup(128, 16, 64, times),
            ("unrolled", "checkpoint", "symplectic", "interpolated", "backsolve"),
        )
        found = race({name: partial(ours, problem, adjoint=name) for name in names}, rounds=7, seconds=0.05)
        for name in names:
            solution = odeint(problem.field, problem.y0, problem.t, rtol=1e-5, atol=1e-7, adjoint=name)
            solution.y.square().sum().backward()
            counts = solution.evaluations, solution.backward_evaluations
            rows.append((f"{name}, {times} times", *counts, float(found.ratio(name, "unrolled"))))
    return rows


TABLES = [
    Table(
        "odeint forward + backward against its field alone, evaluated as often: share of the field in our time, and "
        "torchdiffeq's time over that of the field, the most that a solver with these evaluations could win by",
        ("case", ">evaluations", ">share", ">torchdiffeq / field"),
        _limits,
    ),
    Table(
        "adjoints of odeint, 128 x 16, 64 tanh, a step of its own for every sample: evaluations forward and backward "
        "(with a vector-Jacobian product but for the recomputed stages of symplectic), time over that of unrolled. "
        "Those of the continuous adjoint begin anew at every output time, which takes a step's evaluations",
        ("adjoint", ">forward", ">backward", ">of unrolled"),
        _adjoints,
    ),
]

CASES = [
    *SDE_CASES,
    *SPRING_CASES,
    Case(
        "odeint, 10^5 oscillators with steps of their own",
        partial(oscillators, 100_000),
        own_steps,
        {"torchode": torchode},
    ),
    *(
        Case(
            f"odeint forward+backward, {name}, {batch} x {dim}, {hidden} tanh, {times} times",
            partial(setup, batch, dim, hidden, times),
            partial(ours, **options),
            peers,
        )
        for batch, dim, hidden, times in ((1, 4, 20, 2), (128, 16, 64, 2), (128, 16, 64, 20))
        for name, options, peers in WAYS
    ),
]
