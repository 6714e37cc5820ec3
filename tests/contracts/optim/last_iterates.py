"""Contracts of mirror descent, of step sizes and of averages."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pullback.optim import (
    IterateAverage,
    LinearDecay,
    MirrorDescent,
    ScheduleFreeSGD,
    SqrtDecay,
    bregman,
    mirror_step,
    step_sizes,
    worst_case_subgradient,
)
from tests.contracts.contract import Bad, Call, Contract, Measurement, Optimizer

_ONE, _TWO = torch.ones(1, requires_grad=True), torch.ones(2)


def _steps(generator: torch.Generator) -> list[Call]:
    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return [Call((draw(3, 4), draw(3, 4))), Call((draw(5), draw(5)))]


def _positive(generator: torch.Generator) -> list[Call]:
    return [Call((torch.softmax(c.args[0], -1), c.args[1])) for c in _steps(generator)]


def _numerically(x: Tensor, gradient: Tensor, geometry: str) -> Tensor:
    """Minimise the definition by Newton's method on the potential's slope, entry by entry, bisecting the multiplier."""
    if geometry == "euclidean":
        return x - 0.3 * gradient
    if geometry == "power":
        low, high = torch.full_like(x, -100.0), torch.full_like(x, 100.0)
        for _ in range(200):
            u = (low + high) / 2
            short = u.sign() * u.abs() ** 2 - x.sign() * x.abs() ** 2 + 0.3 * gradient < 0
            low, high = torch.where(short, u, low), torch.where(short, high, u)
        return low
    low, high = torch.full_like(x[..., :1], -50.0), torch.full_like(x[..., :1], 50.0)
    for _ in range(200):
        shift = (low + high) / 2
        few = (x * torch.exp(-0.3 * gradient + shift)).sum(-1, keepdim=True) < x.sum(-1, keepdim=True)
        low, high = torch.where(few, shift, low), torch.where(few, high, shift)
    return x * torch.exp(-0.3 * gradient + low)


def _divergence(x: Tensor, y: Tensor, potential: Any) -> Tensor:
    """By the definition, with the gradient of the potential from autograd."""
    leaf = y.detach().clone().requires_grad_()
    (slope,) = torch.autograd.grad(potential(leaf).sum(), leaf)
    return (potential(x) - potential(y) - slope * (x - y)).sum(-1)


_POTENTIALS = {
    "euclidean": lambda u: u**2 / 2,
    "simplex": lambda u: u * u.log(),
    "power": lambda u: u.abs() ** 3 / 3,
}
_BAD_GEOMETRY = [
    Bad((_TWO.long(), _TWO), {}, TypeError, "x must be a floating tensor"),
    Bad((_TWO, _TWO.double()), {}, TypeError, "must have the same dtype"),
    Bad((_TWO, torch.ones(3)), {}, ValueError, "must have shapes that broadcast"),
    Bad((_TWO, _TWO), {"geometry": "ball"}, ValueError, "geometry must be one of"),
    Bad((_TWO, _TWO), {"geometry": "power", "exponent": 1.5}, ValueError, r"exponent must be in \[2"),
]


def _averaged(points: Tensor, **options: Any) -> Tensor:
    p = torch.nn.Parameter(points[0].detach().clone())
    average = IterateAverage([p], **options)
    for point in points:
        p.data.copy_(point)
        average.update()
    return average.average[0]


def _scheduled(sizes: Tensor, kind: Any, **options: Any) -> Tensor:
    optimizer = torch.optim.SGD([_ONE], lr=float(sizes[0]))
    scheduler, found = kind(optimizer, **options), []
    for _ in range(len(sizes)):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return torch.tensor(found, dtype=sizes.dtype)


def _worst(x: Tensor) -> tuple[Tensor, Tensor]:
    """The pieces one by one."""
    steps = len(x) - 1
    pieces = []
    for i in range(1, steps + 2):
        piece = torch.zeros_like(x)
        piece[: i - 1] = torch.tensor([1 / (8 * (steps - j + 1)) for j in range(1, i)], dtype=x.dtype)
        if i <= steps:
            piece[i - 1] = -math.sqrt(i) / (2 * math.sqrt(steps))
        pieces.append(piece)
    values = [float(piece @ x) for piece in pieces]
    return torch.tensor(max(values), dtype=x.dtype), pieces[values.index(max(values))]


CONTRACTS = [
    *(
        Contract(
            f"optim.mirror_step[{geometry}]",
            lambda x, g, geometry=geometry, **options: mirror_step(
                x, g, **{"step": 0.3, "geometry": geometry, "exponent": 3.0} | options
            ),
            _positive if geometry == "simplex" else _steps,
            reference=lambda x, g, geometry=geometry: _numerically(x, g, geometry),
            tolerance=1e-7,
            large=() if geometry != "euclidean" else (0,),
            why=""
            if geometry == "euclidean"
            else "the square of the largest number overflows; weights are of any scale",
            bad=[
                *_BAD_GEOMETRY,
                Bad((0 * _TWO, _TWO), {"geometry": "simplex"}, ValueError, "x must be > 0 everywhere on the simplex"),
                Bad((_TWO, _TWO), {"geometry": "power", "prox": torch.relu}, ValueError, "prox is for geometry"),
                Bad((_TWO, _TWO), {"geometry": "euclidean", "prox": lambda y, s: y[:1]}, ValueError, "keep the shape"),
            ],
        )
        for geometry in ("euclidean", "simplex", "power")
    ),
    *(
        Contract(
            f"optim.bregman[{geometry}]",
            lambda x, y, geometry=geometry, **options: bregman(
                x, y, **{"geometry": geometry, "exponent": 3.0} | options
            ),
            (lambda g: [Call(tuple(torch.softmax(a, -1) for a in c.args)) for c in _steps(g)])
            if geometry == "simplex"
            else _steps,
            reference=lambda x, y, geometry=geometry: _divergence(x, y, _POTENTIALS[geometry]),
            large=(),
            why="squares of large numbers overflow",
            bad=[
                *_BAD_GEOMETRY,
                Bad((_TWO, 0 * _TWO), {"geometry": "simplex"}, ValueError, "x must be > 0 everywhere on the simplex"),
            ],
        )
        for geometry in ("euclidean", "simplex", "power")
    ),
    Optimizer(
        "optim.MirrorDescent",
        MirrorDescent,
        {"lr": 0.1},
        bad=[
            Bad(([_ONE],), {"lr": 0.0}, ValueError, "lr must be > 0, got 0.0"),
            Bad(([_ONE],), {"geometry": "ball"}, ValueError, "geometry must be one of"),
            Bad(([torch.zeros(2)],), {"geometry": "simplex"}, ValueError, "a parameter must be > 0 everywhere"),
        ],
    ),
    Optimizer("optim.MirrorDescent[power]", MirrorDescent, {"lr": 0.1, "geometry": "power", "exponent": 3.0}),
    Optimizer(
        "optim.ScheduleFreeSGD",
        ScheduleFreeSGD,
        {"lr": 0.1, "weight_decay": 0.01},
        bad=[
            Bad(([_ONE],), {"lr": -1.0}, ValueError, "lr must be > 0"),
            Bad(([_ONE],), {"momentum": 1.0}, ValueError, r"momentum must be in \[0, 1\), got 1"),
            Bad(([_ONE],), {"weight_decay": -1.0}, ValueError, "weight_decay must be >= 0"),
        ],
    ),
    *(
        Measurement(
            f"optim.IterateAverage[{kind}]",
            lambda points, kind=kind, **options: _averaged(
                points, **{"kind": kind, "start": 2, "decay": 0.75} | options
            ),
            lambda g: [Call((torch.randn(5, 3, generator=g, dtype=torch.float64),))],
            reference=lambda points, weights=weights: (
                torch.tensor(weights, dtype=torch.float64)[:, None] * points
            ).sum(0),
            bad=[
                Bad((torch.ones(2, 1),), {"kind": "median"}, ValueError, "kind must be one of"),
                Bad((torch.ones(2, 1),), {"start": -1}, ValueError, "start must be an integer >= 0"),
                Bad((torch.ones(2, 1),), {"decay": 2.0}, ValueError, r"decay must be in \[0, 1\]"),
            ],
        )
        for kind, weights in (
            ("uniform", [0.2] * 5),
            ("suffix", [0, 0, 1 / 3, 1 / 3, 1 / 3]),
            ("linear", [1 / 15, 2 / 15, 3 / 15, 4 / 15, 5 / 15]),
            ("ema", [0.75**4, 0.25 * 0.75**3, 0.25 * 0.75**2, 0.25 * 0.75, 0.25]),
        )
    ),
    Measurement(
        "optim.step_sizes",
        lambda first, schedule="linear", steps=3, **options: (
            first * step_sizes(schedule, steps, **{"scale": 3.0, "smoothness": 0.4} | options)
        ),
        lambda g: [Call((torch.ones(1).double(),))],
        reference=lambda first: first * torch.tensor([1.25, 2 / math.sqrt(3), 1 / math.sqrt(3)], dtype=torch.float64),
        bad=[
            Bad((_ONE,), {"schedule": "cosine"}, ValueError, "schedule must be one of"),
            Bad((_ONE,), {"steps": 0}, ValueError, "steps must be an integer >= 1"),
            Bad((_ONE,), {"scale": 0.0}, ValueError, "scale must be > 0"),
            Bad((_ONE,), {"smoothness": -1.0}, ValueError, "smoothness must be >= 0"),
        ],
    ),
    Measurement(
        "optim.LinearDecay",
        lambda sizes, steps=4, **options: _scheduled(sizes, LinearDecay, steps=steps, **options),
        lambda g: [Call((torch.tensor([0.8, 0.6, 0.4, 0.2], dtype=torch.float64),))],
        reference=lambda sizes: sizes,
        bad=[
            Bad((torch.ones(3),), {"steps": 0}, ValueError, "steps must be an integer >= 1, got 0"),
            Bad((torch.ones(3),), {"steps": 2}, ValueError, "LinearDecay was made for 2 steps, step 3 is beyond"),
            Bad((torch.ones(3),), {"smoothness": -1.0}, ValueError, "smoothness must be >= 0"),
        ],
    ),
    Measurement(
        "optim.SqrtDecay",
        lambda sizes, **options: _scheduled(sizes, SqrtDecay, **{"smoothness": 0.0} | options),
        lambda g: [Call((torch.tensor([0.8, 0.8 / 2**0.5, 0.8 / 3**0.5, 0.4], dtype=torch.float64),))],
        reference=lambda sizes: sizes,
        bad=[Bad((torch.ones(3),), {"smoothness": -1.0}, ValueError, "smoothness must be >= 0")],
    ),
    Measurement(
        "optim.worst_case_subgradient",
        worst_case_subgradient,
        lambda g: [Call((torch.randn(n, generator=g, dtype=torch.float64) / 3,)) for n in (2, 6)],
        reference=_worst,
        bad=[
            Bad((torch.ones(3).long(),), {}, TypeError, "x must be a floating tensor"),
            Bad((torch.ones(1),), {}, ValueError, "x must be a vector of at least 2 entries"),
        ],
    ),
]
