"""Contracts of the chaotic systems of ``pullback.dynamics``."""

from __future__ import annotations

import torch
from torch import Tensor

from pullback import dynamics
from tests.contracts.contract import Bad, Call, Contract, HigherOrder


def _states(*shape: int, scale: float = 1.0):
    return lambda g: [Call((scale * torch.randn(2, *shape, generator=g, dtype=torch.float64),))]


def _time(y: Tensor) -> Tensor:
    return y.new_zeros(1)


def _pendulum(y: Tensor, **words: float | Tensor) -> Tensor:
    return dynamics.double_pendulum(_time(y), y, **{"torque": 0.7, "friction": 0.2, **words})


def _mass_matrix(y: Tensor) -> Tensor:
    """The equations of motion as ``M accelerations = forces``, from the Lagrangian of two rods."""
    a, b, u, v = y.unbind(-1)
    c, n, g = (a - b).cos(), (a - b).sin(), 9.81
    matrix = torch.stack([torch.full_like(a, 2.0), c, c, torch.ones_like(a)], -1).unflatten(-1, (2, 2))
    forces = torch.stack([0.7 - n * v**2 - 2 * g * a.sin(), n * u**2 - g * b.sin()], -1)
    accelerations = torch.linalg.solve(matrix, forces)
    return torch.cat([y[..., 2:], accelerations - 0.2 * y[..., 2:]], -1)


def _discs(g: torch.Generator) -> list[Call]:
    """Two discs on a line, or apart: at most one contact each, none of them within reach of a finite difference."""
    state = torch.tensor([[[0.25, 0.5], [0.75, 0.45]], [[0.5, 0.1], [-0.4, 0.2]]], dtype=torch.float64)
    walls = torch.tensor([[[0.3, 0.3], [0.7, 0.7]], [[-1.1, 0.3], [0.2, 0.9]]], dtype=torch.float64)
    return [Call((torch.stack([state, walls]),))]


def _flown(state: Tensor, mass: float | Tensor = 1.5, **words: float) -> Tensor:
    return dynamics.colliding_discs(state, mass, **{"duration": 0.3, **words})


def _one_by_one(state: Tensor) -> Tensor:
    """Both samples by hand: the first pair meets once, in the second each disc meets one wall."""
    (x, v), (y, w) = state.unbind(0)
    apart, closing = x[1] - x[0], v[1] - v[0]
    a, b, c = closing @ closing, apart @ closing, apart @ apart - 0.09
    t = (-b - (b * b - a * c).sqrt()) / a
    met = x + t * v
    normal = (met[1] - met[0]) / (met[1] - met[0]).norm()
    exchange = 2 * (1.5 / 2.5) * (normal @ closing) * normal
    after = v + torch.stack([exchange, -exchange / 1.5])
    first = torch.stack([met + (0.3 - t) * after, after])
    bounced = w * torch.tensor([[-1.0, 1.0], [1.0, -1.0]], dtype=w.dtype)
    moved = y + 0.3 * w
    moved = torch.stack([torch.stack([0.3 - moved[0, 0], moved[0, 1]]), torch.stack([moved[1, 0], 1.7 - moved[1, 1]])])
    return torch.stack([first, torch.stack([moved, bounced])])


CONTRACTS = [
    Contract(
        "dynamics.lorenz",
        lambda y: dynamics.lorenz(_time(y), y),
        _states(3),
        reference=lambda y: torch.stack(
            [10 * (y[:, 1] - y[:, 0]), y[:, 0] * (28 - y[:, 2]) - y[:, 1], y[:, 0] * y[:, 1] - 8 * y[:, 2] / 3], 1
        ),
        bad=[Bad((torch.zeros(2),), {}, ValueError, r"y must have shape \(\.\.\., 3\)")],
        large_limit=100.0,
        why="a product of two coordinates leaves the range of half",
    ),
    Contract(
        "dynamics.double_pendulum",
        _pendulum,
        _states(4),
        reference=_mass_matrix,
        bad=[Bad((torch.zeros(3),), {}, ValueError, r"y must have shape \(\.\.\., 4\)")],
        large_limit=10.0,
        why="a square of a rate leaves the range of half",
    ),
    Contract(
        "dynamics.colliding_discs",
        _flown,
        _discs,
        reference=_one_by_one,
        scalars={"mass": 1.5},
        bad=[
            Bad((torch.zeros(2, 2),), {}, ValueError, r"state must have shape \(\.\.\., 2, 2, 2\)"),
            Bad((torch.rand(2, 2, 2),), {"mass": 0.0}, ValueError, "mass must be > 0"),
            Bad((torch.rand(2, 2, 2),), {"duration": 0.0}, ValueError, "duration must be > 0"),
            Bad((torch.rand(2, 2, 2),), {"radius": 0.3}, ValueError, "radius must be < 0.25, got 0.3"),
            Bad((torch.rand(2, 2, 2),), {"contacts": 0}, ValueError, "contacts must be an integer >= 1, got 0"),
        ],
        batched=False,
        vmap=False,
        large=(),
        why="positions lie in the unit box; batches are in the samples and in tests/dynamics",
    ),
    HigherOrder(
        "dynamics.rk4_step",
        lambda field, y: dynamics.rk4_step(field, _time(y), y, 0.2),
        _states(3),
        given=lambda t, y: -y,
        argument="field",
        reference=lambda y: (1 - 0.2 + 0.2**2 / 2 - 0.2**3 / 6 + 0.2**4 / 24) * y,
        large_limit=1e4,
        why="a sum of slopes of the largest numbers overflows",
    ),
]
