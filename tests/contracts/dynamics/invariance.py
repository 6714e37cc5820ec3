"""Contracts of the filter, the barrier conditions, invariant ODEs and the vehicle of ``pullback.dynamics``."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from pullback import dynamics
from tests.contracts.contract import Bad, Call, Contract, Exempt, HigherOrder, Module
from tests.contracts.dynamics.models import seeded


def _program(m: int) -> Callable[[torch.Generator], list[Call]]:
    def draw(g: torch.Generator) -> list[Call]:
        shapes = ((2, 4), (2, m, 4), (2, m))
        return [Call(tuple(torch.randn(s, generator=g, dtype=torch.float64) for s in shapes))]

    return draw


def _best_active_set(
    nominal: Tensor, rows: Tensor, offsets: Tensor, weight: Tensor | None = None, price: float = math.inf
) -> Tensor:
    """Solve with the equations of every set of rows; keep the solution that satisfies all optimality conditions."""
    found = []
    for z0, a, c in zip(nominal, rows, offsets, strict=True):
        w = torch.ones_like(z0) if weight is None else weight
        for active in itertools.product((False, True), repeat=len(a)):
            chosen = a[list(active)]
            gramian = chosen / w @ chosen.T + torch.eye(len(chosen), dtype=a.dtype) / price
            multiplier = torch.linalg.solve(gramian, -(chosen @ z0 + c[list(active)]))
            z = z0 + chosen.T @ multiplier / w
            slack = torch.zeros_like(c).masked_scatter(torch.tensor(active), multiplier / price)
            if bool((multiplier >= 0).all() and (a @ z + c + slack >= -1e-9).all()):
                found.append(z)
                break
    return torch.stack(found)


WEIGHT = torch.tensor([0.5, 1.0, 2.0, 3.0])


def _quadratic(x: Tensor) -> Tensor:
    return 1 - x.square().sum(-1)


def _turning(x: Tensor) -> Tensor:
    return torch.stack([x[..., 1], -2 * x[..., 0]], -1)


def _pushed(x: Tensor, u: Tensor) -> Tensor:
    """x'' = -sin x + u."""
    return torch.stack([x[..., 1], u[..., 0] - x[..., 0].sin()], -1)


def _states_and_inputs(g: torch.Generator) -> list[Call]:
    return [Call(tuple(torch.randn(2, n, generator=g, dtype=torch.float64) for n in (2, 1)))]


def _second_order(x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """h = 2 - x: psi_2 = h'' + 3 h' + 3 (h' + 3 h), with h' = -x', h'' = sin x - u."""
    place, speed = x.unbind(-1)
    return -torch.ones_like(u)[..., None], (place.sin() - 6 * speed + 9 * (2 - place))[..., None]


def _held(model: dynamics.InvariantODE, y0: Tensor) -> Tensor:
    return model(y0, [0.0, 0.2]).y[-1]


def _starts(g: torch.Generator) -> list[Call]:
    return [Call((0.1 * torch.randn(2, 2, generator=g, dtype=torch.float64),))]


def _scene(g: torch.Generator) -> list[Call]:
    position = 0.1 * torch.randn(2, 2, generator=g, dtype=torch.float64)
    heading = 0.3 * torch.randn(2, generator=g, dtype=torch.float64)
    centers = torch.tensor([[2.0, 0.3], [1.0, 2.0]], dtype=torch.float64).expand(2, 2, 2)
    return [Call((position, heading, centers.clone()))]


def _marched(position: Tensor, heading: Tensor, centers: Tensor) -> Tensor:
    """Roots of ``|position + s e - centre|^2 = r^2`` by the formula of quadratic equations."""
    angles = heading[:, None] + torch.linspace(-1.0, 1.0, 5, dtype=heading.dtype)
    e = torch.stack([angles.cos(), angles.sin()], -1)[:, :, None]
    away = centers[:, None] - position[:, None, None]
    b, c = (away * e).sum(-1), away.square().sum(-1) - 0.49
    root = b - (b * b - c).clamp(min=0).sqrt()
    return torch.where((b * b > c) & (root > 0), root, 6.0).amin(-1)


SCANNER = {"radius": 0.7, "rays": 5, "view": 2.0, "reach": 6.0}
SCENE = (torch.zeros(2), torch.zeros(()), torch.zeros(1, 2))
BAD_PROGRAMS = [
    Bad((torch.zeros(2), torch.ones(1, 3), torch.zeros(1)), {}, ValueError, r"rows \[\*, m, n\] with n, m >= 1"),
    Bad((torch.zeros(2), torch.ones(1, 2), torch.zeros(2)), {}, ValueError, r"offsets must be \[\*, 1\]"),
    Bad((torch.zeros(2), torch.ones(1, 2).double(), torch.zeros(1)), {}, TypeError, "must have the same dtype"),
    Bad((torch.zeros(2), torch.ones(1, 2), torch.zeros(1)), {"slack": 0.0}, ValueError, "slack must be > 0"),
    Bad((torch.zeros(2), torch.ones(1, 2), torch.zeros(1)), {"weight": -torch.ones(2)}, ValueError, "weight must"),
    Bad((torch.full((2,), math.nan), torch.ones(1, 2), torch.zeros(1)), {}, ValueError, "nominal must be finite"),
]

CONTRACTS = [
    Contract(
        "dynamics.min_norm_filter",
        lambda *args, **words: dynamics.min_norm_filter(*args, **words).value,
        _program(3),
        reference=_best_active_set,
        bad=BAD_PROGRAMS,
        half_tolerance=5e-2,
    ),
    Contract(
        "dynamics.min_norm_filter[one row]",
        lambda *args: dynamics.min_norm_filter(*args).value,
        _program(1),
        reference=_best_active_set,
    ),
    Contract(
        "dynamics.min_norm_filter[weight, slack]",
        lambda z, *args: dynamics.min_norm_filter(z, *args, weight=WEIGHT.to(z), slack=2.0).value,
        _program(3),
        reference=lambda *args: _best_active_set(*args, WEIGHT.double(), 2.0),
    ),
    HigherOrder(
        "dynamics.lie_derivative",
        lambda h, x: dynamics.lie_derivative(h, _turning, x, 2),
        lambda g: [Call((torch.randn(3, 2, generator=g, dtype=torch.float64),))],
        given=_quadratic,
        argument="h",
        reference=lambda x: -2 * (x[:, 1] ** 2 - 2 * x[:, 0] ** 2) + 4 * (x[:, 1] ** 2 - 2 * x[:, 0] ** 2),
        forward_mode=False,
        large_limit=30.0,
        why="torch has no forward mode by dual tensors inside of forward mode; squares leave the range of half",
    ),
    HigherOrder(
        "dynamics.barrier_condition",
        lambda h, x, u: tuple(dynamics.barrier_condition(h, _pushed, x, u, classk=3.0, degree=2)),
        _states_and_inputs,
        given=lambda x: 2 - x[..., 0],
        argument="h",
        reference=_second_order,
        compile=False,
        large_limit=100.0,
        why="gradients inside: torch.compile does not trace them; sums of products leave the range of half",
    ),
    Module(
        "dynamics.InvariantODE",
        _held,
        _starts,
        build=seeded(
            lambda: dynamics.InvariantODE(
                dynamics.NeuralField(2, hidden=(4,)), lambda y: 0.1 + y, classk=2.0, start="recover", method="euler"
            )
        ),
        vmap=False,
        compile=False,
        half=False,
        large=(),
        why="a solve decides on its steps from data and differentiates inside; half is solved in single by layers "
        "that are then of another type; what holds a state back grows with it",
    ),
    Contract(
        "dynamics.vehicle",
        lambda z, change: dynamics.vehicle(z.new_zeros(1), z, change),
        lambda g: [Call(tuple(torch.randn(2, n, generator=g, dtype=torch.float64) for n in (6, 2)))],
        reference=lambda z, c: torch.stack(
            [z[:, 3] * z[:, 2].cos(), z[:, 3] * z[:, 2].sin(), z[:, 4], z[:, 5], c[:, 0], c[:, 1]], -1
        ),
        bad=[Bad((torch.zeros(5), torch.zeros(2)), {}, ValueError, r"z must have shape \(\.\.\., 6\)")],
        large=(),
        why="the sine of a large heading is another one in another dtype",
    ),
    Contract(
        "dynamics.disc_ranges",
        lambda *args, **words: dynamics.disc_ranges(
            *args, **{"radius": 0.7, "rays": 5, "view": 2.0, "reach": 6.0, **words}
        ),
        _scene,
        reference=_marched,
        bad=[
            Bad((torch.zeros(3), torch.zeros(()), torch.zeros(1, 2)), {}, ValueError, "position must have shape"),
            Bad((torch.zeros(2), torch.zeros(()), torch.zeros(0, 2)), {}, ValueError, "centers must hold at least one"),
            Bad(
                (torch.zeros(2), torch.zeros(()), torch.zeros(1, 2)), {"radius": 0.0}, ValueError, "radius must be > 0"
            ),
            Bad(
                (torch.zeros(2), torch.zeros(()), torch.zeros(1, 2)), {"rays": 1}, ValueError, "rays must be an integer"
            ),
            Bad(SCENE, {"view": 7.0}, ValueError, "view must be in"),
        ],
        large=(),
        why="rays end at the reach: a large scene has none of them left",
    ),
    Exempt("dynamics.DiscRoad", "draws scenes; its lidar is disc_ranges", "dynamics/test_invariance.py"),
]
