"""Contracts of the masses and springs of ``pullback.dynamics``, their robots, controllers and losses."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from pullback import dynamics
from tests.contracts.contract import DEVICE, Bad, Call, Contract, Exempt, Measurement, Module

ANCHORS = torch.tensor([[0, 1], [1, 2], [2, 0]])
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
REST = torch.tensor([1.0, 1.2, 0.9])
STATE = (torch.rand(3, 2) + 1, torch.zeros(3, 2), torch.zeros(4, 3))


def _moved(friction: float | None) -> Callable[..., tuple[Tensor, ...]]:
    body = dynamics.MassSpring(ANCHORS, REST, 20.0, 0.3, friction=friction, drag=0.2, dashpot=1.0)
    bodies = {dtype: copy.deepcopy(body).to(DEVICE, dtype) for dtype in DTYPES}

    def move(x: Tensor, *args: Tensor, **words: float) -> tuple[Tensor, ...]:
        motion = bodies[x.dtype].simulate(x, *args, **{"dt": 0.05, **words})
        x, v = motion.positions[-1], motion.velocities[-1]
        return motion.positions[1], x, v, bodies[x.dtype].energy(x, v)

    return move


def _triangle(g: torch.Generator) -> list[Call]:
    """A triangle of which two masses fall to the ground within the two steps."""
    x = torch.tensor([[[0.0, 0.02], [1.0, 0.04], [0.5, 0.8]]], dtype=torch.float64)
    v = 0.3 * torch.randn(1, 3, 2, generator=g, dtype=torch.float64)
    v[..., 1] = -v[..., 1].abs() - 0.5
    return [Call((x, v, torch.rand(2, 1, 3, generator=g, dtype=torch.float64)))]


def _mass_by_mass(friction: float | None) -> Callable[..., tuple[Tensor, ...]]:
    def run(positions: Tensor, velocities: Tensor, controls: Tensor) -> tuple[Tensor, ...]:
        ends: tuple[list[Tensor], list[Tensor], list[float]] = ([], [], [])
        for x, v, us in zip(positions.tolist(), velocities.tolist(), controls.unbind(1), strict=True):
            path, speeds = [], []
            for u in us.tolist():
                force = [[0.0, -1.8] for _ in x]
                for s, (a, b) in enumerate(ANCHORS.tolist()):
                    length = math.dist(x[a], x[b])
                    e = [(x[a][k] - x[b][k]) / length for k in (0, 1)]
                    stretch = length - REST[s].item() * (1 + 0.3 * u[s])
                    pull = 20 * stretch + sum((v[a][k] - v[b][k]) * e[k] for k in (0, 1))
                    for k in (0, 1):
                        force[a][k] -= pull * e[k]
                        force[b][k] += pull * e[k]
                new = [[v[i][k] * math.exp(-0.01) + 0.05 * force[i][k] for k in (0, 1)] for i in range(3)]
                moved = [[x[i][k] + 0.05 * new[i][k] for k in (0, 1)] for i in range(3)]
                for i in range(3):
                    if moved[i][1] < 0 and new[i][1] < 0:
                        time = max(-x[i][1] / new[i][1], 0.0)
                        lost = math.inf if friction is None else -friction * new[i][1]
                        slid = math.copysign(max(abs(new[i][0]) - lost, 0.0), new[i][0])
                        moved[i] = [x[i][0] + time * new[i][0] + (0.05 - time) * slid, min(x[i][1], 0.0)]
                        new[i] = [slid, 0.0]
                x, v = moved, new
                path.append(x)
                speeds.append(v)
            springs = sum(
                10 * (math.dist(x[a], x[b]) - r) ** 2 for (a, b), r in zip(ANCHORS.tolist(), REST.tolist(), strict=True)
            )
            energy = springs + sum(0.5 * (p * p + q * q) for p, q in v) + sum(1.8 * y for _, y in x)
            for out, value in zip(ends, (path, speeds, energy), strict=True):
                out.append(value)
        path, speeds, energy = (torch.tensor(out, dtype=torch.float64) for out in ends)
        return path[:, 0], path[:, -1], speeds[:, -1], energy

    return run


def _driven() -> Callable[..., tuple[Tensor, ...]]:
    """The triangle, its springs commanded by a network."""
    body = dynamics.MassSpring(ANCHORS, REST, 20.0, 0.3, drag=0.2, dashpot=1.0)
    words = {"hidden": 5, "waves": 3, "period": 4.0, "repeat": 2}
    controller = dynamics.PeriodicController(6, 1, 3, generator=torch.Generator().manual_seed(0), **words)
    pairs = {
        dtype: [part.requires_grad_(False) for part in (copy.deepcopy(m).to(DEVICE, dtype) for m in (body, controller))]
        for dtype in DTYPES
    }

    def drive(x: Tensor, v: Tensor, goals: Tensor, noise: Tensor | None = None, **words: float) -> tuple[Tensor, ...]:
        motion = dynamics.steer(*pairs[x.dtype], x, v, goals, noise=noise, **{"dt": 0.05, "scale": 0.5, **words})
        return motion.positions[-1], motion.velocities[-1], motion.controls[0], motion.controls[-1]

    return drive


def _by_function(x: Tensor, v: Tensor, goals: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
    """Step after step, the controller called as the network it is."""
    body = dynamics.MassSpring(ANCHORS, REST, 20.0, 0.3, drag=0.2, dashpot=1.0).double()
    words = {"hidden": 5, "waves": 3, "period": 4.0, "repeat": 2}
    network = dynamics.PeriodicController(6, 1, 3, generator=torch.Generator().manual_seed(0), **words).double()
    xs, vs, us = [x], [v], []
    for t, goal in enumerate(goals):
        waves = torch.tensor([math.sin(2 * math.pi * (t / 4 + j / 3)) for j in range(3)]).double().expand(len(x), 3)
        seen = ((xs[-1] - xs[-1].mean(1, keepdim=True)) / 0.5).flatten(1)
        hidden = network.first(torch.cat([waves, seen, goal, goal], -1)).sin()
        us.append((network.second(hidden).sin() + noise[t]).clamp(-1, 1))
        found = body.step(xs[-1], vs[-1], us[-1], dt=0.05, method="reference")
        xs.append(found[0])
        vs.append(found[1])
    return xs[-1], vs[-1], us[0], us[-1]


def _steered(g: torch.Generator) -> list[Call]:
    start = _triangle(g)[0].args
    told = (torch.randn(2, 1, 1, generator=g, dtype=torch.float64), torch.randn(2, 1, 3, generator=g).double() / 4)
    return [Call((*start[:2], *told))]


def _lengths(mask: Tensor) -> Tensor:
    """Of all pairs of corners of each cell, each pair once."""
    pairs = set()
    for row, column in mask.nonzero().tolist():
        corners = [(row + i, column + j) for i in (0, 1) for j in (0, 1)]
        pairs |= {tuple(sorted(pair)) for pair in itertools.combinations(corners, 2)}
    return torch.tensor([0.05 * math.dist(*pair) for pair in pairs]).sort().values


def _waves(controller: dynamics.PeriodicController, state: Tensor, goal: Tensor) -> Tensor:
    return controller(3.0, state, goal)


def _series(g: torch.Generator) -> list[Call]:
    return [Call((torch.randn(8, 2, generator=g, dtype=torch.float64), torch.rand(7, 2, generator=g).double()))]


def _windows(center: Tensor, target: Tensor) -> Tensor:
    """Windows of two steps in goals of three: those that end after steps 2, 3, 5 and 6 lie in one goal."""
    return sum((center[t] - center[t - 2] - target[t - 1]) ** 2 for t in (2, 3, 5, 6)) / 4


def _jumps(lowest: Tensor, target: Tensor) -> Tensor:
    losses = []
    for column, wanted in zip(lowest.T, target.T, strict=True):
        terms = [
            (max(column[a + 1 : a + 4].tolist()) - wanted[a].item()) ** 2 if wanted[a] > 0.3 else 0 for a in (0, 3, 6)
        ]
        losses.append(sum(terms) / 3)
    return torch.tensor(losses, dtype=torch.float64)


GOALS = torch.zeros(3, 1)

SPRINGS = "positions lie in a scene; numbers without bound leave any stable step"

CONTRACTS = [
    *(
        Contract(
            f"dynamics.MassSpring{suffix}",
            _moved(friction),
            _triangle,
            reference=_mass_by_mass(friction),
            tolerance=1e-6,
            bad=[
                Bad((STATE[0][:2], STATE[1][:2], STATE[2]), {}, ValueError, "the same masses, at least 3, got 2 and 2"),
                Bad((*STATE[:2], torch.zeros(4, 2)), {}, ValueError, r"controls must have shape \(\.\.\., 3\), got"),
                Bad((STATE[0], STATE[1].double(), STATE[2]), {}, TypeError, "must have the same dtype"),
                Bad(STATE, {"dt": 0.0}, ValueError, "dt must be > 0"),
                Bad(STATE, {"method": "numba"}, ValueError, "method must be"),
                Bad((STATE[0] * math.nan, *STATE[1:]), {}, ValueError, "not finite from step 0 on, first at mass 0"),
            ],
            large=(),
            compile=friction is not None,
            why=f"{SPRINGS}; a step is compiled in the sliding form",
        )
        for suffix, friction in (("", 0.4), ("[sticking]", None))
    ),
    Contract(
        "dynamics.steer",
        _driven(),
        _steered,
        reference=_by_function,
        tolerance=1e-6,
        bad=[
            Bad((STATE[0][:2], STATE[1][:2], GOALS), {}, ValueError, r"x must have shape \(\.\.\., 3, 2\)"),
            Bad((*STATE[:2], torch.zeros(3, 2)), {}, ValueError, r"goals must have shape \(\.\.\., 1\)"),
            Bad((*STATE[:2], GOALS[:0]), {}, ValueError, "with steps >= 1"),
            Bad((*STATE[:2], GOALS, torch.zeros(2, 3)), {}, ValueError, "an entry for each of the 3 commands"),
            Bad((*STATE[:2], GOALS), {"hold": 0}, ValueError, "hold must be an integer >= 1"),
            Bad((*STATE[:2], GOALS), {"scale": 0.0}, ValueError, "scale must be > 0"),
            Bad((*STATE[:2], GOALS), {"dt": 0.0}, ValueError, "dt must be > 0"),
            Bad((*STATE[:2], GOALS), {"method": "numba"}, ValueError, "method must be"),
            Bad((STATE[0] * math.nan, STATE[1], GOALS), {}, ValueError, "not finite from step 0 on, first at mass"),
        ],
        large=(),
        compile=False,
        why=f"{SPRINGS}; what is compiled are plain steps and a controller: their entries do it",
    ),
    Measurement(
        "dynamics.voxel_robot",
        lambda mask, **words: dynamics.voxel_robot(mask, **words).rest.sort().values,
        lambda g: [Call((torch.rand(3, 5, generator=g) < 0.6,))],
        reference=_lengths,
        tolerance=1e-6,
        bad=[
            Bad((torch.zeros(2, 2).bool(),), {}, ValueError, "mask must be a matrix of booleans with a cell"),
            Bad((torch.ones(2).bool(),), {}, ValueError, "mask must be a matrix"),
            Bad((torch.ones(2, 2).bool(),), {"size": 0.0}, ValueError, "size must be > 0"),
            Bad((torch.ones(2, 2).bool(),), {"actuated": "some"}, ValueError, "actuated must be"),
            Bad((torch.ones(2, 2).bool(),), {"actuation": 1.5}, ValueError, "actuation must be in"),
        ],
    ),
    Module(
        "dynamics.PeriodicController",
        _waves,
        lambda g: [Call(tuple(torch.randn(2, n, generator=g, dtype=torch.float64) for n in (3, 2)))],
        build=lambda g: dynamics.PeriodicController(3, 2, 4, hidden=5, waves=3, period=10.0, repeat=2, generator=g),
        bad=[
            Bad((torch.zeros(2), torch.zeros(2)), {}, ValueError, r"state must have shape \(\.\.\., 3\)"),
            Bad((torch.zeros(3), torch.zeros(3)), {}, ValueError, r"goal must have shape \(\.\.\., 2\)"),
        ],
        large=(),
        why="the sine of a large number is another one in another dtype",
    ),
    Contract(
        "dynamics.velocity_loss",
        lambda *args, **words: dynamics.velocity_loss(*args, **{"window": 2, "period": 3, **words}),
        _series,
        reference=_windows,
        bad=[
            Bad((torch.zeros(3), torch.zeros(3)), {}, ValueError, "center must have shape"),
            Bad((torch.zeros(4), torch.zeros(3)), {"window": 4}, ValueError, r"window must be in 1\.\.3, got 4"),
            Bad((torch.zeros(2), torch.zeros(1)), {}, ValueError, "window must be at most the 1 steps, got 2"),
        ],
        batched=False,
        vmap=False,
        large=(),
        why="time comes first and batches are in the samples; a square of a large number leaves the range",
    ),
    Contract(
        "dynamics.height_loss",
        lambda *args, **words: dynamics.height_loss(*args, **{"period": 3, "least": 0.3, **words}),
        _series,
        reference=_jumps,
        bad=[
            Bad((torch.zeros(3), torch.zeros(3)), {}, ValueError, "lowest must have shape"),
            Bad((torch.zeros(4), torch.zeros(3)), {"period": 0}, ValueError, "period must be an integer >= 1"),
            Bad((torch.zeros(4), torch.zeros(3)), {"least": math.nan}, ValueError, "least must be finite"),
        ],
        batched=False,
        vmap=False,
        large=(),
        why="time comes first and batches are in the samples; a square of a large number leaves the range",
    ),
    Contract(
        "dynamics.crawl_loss",
        lambda *args, **words: dynamics.crawl_loss(*args, **{"ceiling": 0.2, **words}),
        _series,
        reference=lambda y, c: sum(c[t] * torch.relu(y[t + 1] - 0.2) ** 2 for t in range(7)) / 7,
        bad=[
            Bad((torch.zeros(3), torch.zeros(3)), {}, ValueError, "highest must have shape .* and crawling"),
            Bad((torch.zeros(4), torch.zeros(3)), {"ceiling": math.inf}, ValueError, "ceiling must be finite"),
        ],
        batched=False,
        vmap=False,
        large=(),
        why="time comes first and batches are in the samples; a square of a large number leaves the range",
    ),
    *(
        Contract(
            f"dynamics.pose_loss{suffix}",
            lambda *args, anchored=anchored, **words: dynamics.pose_loss(
                *args, anchored=anchored, **{"period": 3, **words}
            ),
            lambda g: [Call((torch.randn(8, 2, 4, 2, generator=g).double(), torch.randn(4, 2, generator=g).double()))],
            reference=lambda x, p, anchored=anchored: (
                sum(
                    (x[t, :, i] - p[i] - (0 if anchored else x[t].mean(1) - p.mean(0))).square().sum(-1)
                    for t in (3, 6)
                    for i in range(4)
                )
                / 2
            ),
            bad=[
                Bad((torch.zeros(3, 4, 2), torch.zeros(3, 2)), {}, ValueError, "positions must have shape"),
                Bad((torch.zeros(3, 4, 2), torch.zeros(4, 2)), {"period": 3}, ValueError, r"period must be in 1\.\.2"),
            ],
            batched=False,
            vmap=False,
            large=(),
            why="time comes first and batches are in the samples; a square of a large number leaves the range",
        )
        for suffix, anchored in (("", False), ("[anchored]", True))
    ),
    Contract(
        "dynamics.actuation_loss",
        dynamics.actuation_loss,
        lambda g: [
            Call((2 * torch.randn(3, 2, 4, generator=g).double(), 0.1 * torch.randn(3, 2, generator=g).double()))
        ],
        reference=lambda u, v: (
            sum(torch.relu(u[t, :, j].abs() - (v[t].abs() / 0.08) ** 0.5) for t in range(3) for j in range(4)) / 12
        ),
        bad=[
            Bad((torch.zeros(3, 2), torch.zeros(2)), {}, ValueError, "controls must have shape"),
            Bad((torch.zeros(3, 2), torch.zeros(3)), {"scale": 0.0}, ValueError, "scale must be > 0"),
        ],
        batched=False,
        vmap=False,
        large=(),
        why="time comes first and batches are in the samples; a sum of large numbers leaves the range",
    ),
    Exempt("dynamics.goal_schedule", "draws goals", "dynamics/test_locomotion.py"),
]
