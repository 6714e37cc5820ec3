"""Contracts of vehicles in traffic: the bicycle against an ODE solved in many steps, the driver against its formula."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pullback import dynamics
from tests.contracts.contract import Bad, Call, Contract, Exempt


def _rolling(g: torch.Generator) -> list[Call]:
    state = torch.randn(3, 4, generator=g, dtype=torch.float64)
    state[:, 3] = 3 + state[:, 3].abs()
    pedal, wheel = torch.randn(2, 3, generator=g, dtype=torch.float64)
    return [Call((state, pedal, 0.3 * wheel))]


def _bicycle_by_steps(state: Tensor, acceleration: Tensor, steering: Tensor) -> Tensor:
    rows = []
    for (x, y, heading, speed), a, wheel in zip(state.tolist(), acceleration.tolist(), steering.tolist(), strict=True):
        n, h = 4000, 0.25 / 4000
        for _ in range(n):  # midpoint rule
            middle = speed + 0.5 * h * a
            turned = heading + 0.5 * h * middle * math.tan(wheel) / 2.7
            x, y = x + h * middle * math.cos(turned), y + h * middle * math.sin(turned)
            heading, speed = heading + h * middle * math.tan(wheel) / 2.7, speed + h * a
        rows.append([x, y, heading, speed])
    return torch.tensor(rows, dtype=torch.float64)


def _following(g: torch.Generator) -> list[Call]:
    speed, gap, closing, desired = torch.rand(4, 5, generator=g, dtype=torch.float64)
    return [Call((1 + 9 * speed, 2 + 20 * gap, 2 * closing, 5 + 5 * desired))]


def _driver_by_hand(speed: Tensor, gap: Tensor, closing: Tensor, desired: Tensor) -> Tensor:
    found = []
    for v, s, dv, v0 in zip(*(x.tolist() for x in (speed, gap, closing, desired)), strict=True):
        wanted = 2.0 + max(0.0, v * 1.2 + v * dv / (2 * math.sqrt(2.0 * 3.0)))
        found.append(2.0 * (1 - (v / v0) ** 4 - (wanted / s) ** 2))
    return torch.tensor(found, dtype=torch.float64)


ROUNDED = "metres of a small difference, powers of speeds: rounded away or out of range at extreme sizes"

CONTRACTS = [
    Contract(
        "dynamics.bicycle_step",
        dynamics.bicycle_step,
        _rolling,
        reference=_bicycle_by_steps,
        tolerance=1e-7,
        large_limit=1e2,
        why="an angle of any size times a speed of any size is none to be computed with",
        bad=[
            Bad((torch.zeros(3), torch.zeros(()), torch.zeros(())), {}, ValueError, "state must have shape"),
            Bad((torch.zeros(4), torch.zeros(()), torch.zeros(())), {"dt": 0.0}, ValueError, "dt must be"),
        ],
    ),
    Contract(
        "dynamics.intelligent_driver",
        dynamics.intelligent_driver,
        _following,
        reference=_driver_by_hand,
        large_limit=30.0,
        why=ROUNDED,
        bad=[
            Bad((torch.zeros(()),) * 4, {"braking": 0.0}, ValueError, "braking must be"),
            Bad((torch.zeros(2), torch.zeros(3), *[torch.ones(2)] * 2), {}, ValueError, "broadcast"),
        ],
    ),
    Contract(
        "dynamics.with_speed",
        lambda speed, masks: dynamics.with_speed(masks, speed, fastest=5.0),
        lambda g: [Call((torch.rand(2, generator=g).double(), torch.rand(2, 1, 2, 3, generator=g).double()))],
        reference=lambda speed, masks: torch.cat([masks, (speed / 5)[:, None, None, None] * torch.ones(2, 1, 2, 3)], 1),
        batched=False,
        vmap=False,
        large_limit=1e4,
        why="a speed a sample: no further batch; masks are of the size of 1",
        bad=[Bad((torch.zeros(3), torch.zeros(2, 1, 2, 2)), {}, ValueError, "speed must have shape")],
    ),
    Exempt("dynamics.perceive", "thresholds what a module tells", "dynamics/test_driving.py"),
    Exempt("dynamics.StudentPlanner", "a planner, its adapters or its copy", "dynamics/test_driving.py"),
    Exempt("dynamics.DrivingAgent", "a planner's loop with a memory", "dynamics/test_driving.py"),
    Exempt("dynamics.DrivingPlanner", "layers of torch, one after the other", "dynamics/test_driving.py"),
    Exempt("dynamics.GroundPerception", "layers of torch on fixed sizes", "dynamics/test_driving.py"),
    Exempt("dynamics.DrivingCamera", "scenes in, pictures out", "dynamics/test_driving.py"),
    Exempt("dynamics.DrivingWorld", "draws scenes and moves them", "dynamics/test_driving.py"),
]
