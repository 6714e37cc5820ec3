"""Contracts of what looks for points without derivative."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor

from pullback.gradients import (
    clarke_contains,
    count_nondifferentiable,
    kink_report,
    minifloats,
    nonnegative_least_squares,
)
from tests.contracts.contract import Bad, Call, HigherOrder, Measurement
from tests.contracts.law import seeded

_VALUES = torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0], dtype=torch.float64)


def _normal(*shape: int) -> Any:
    return lambda g: [Call((torch.randn(*shape, generator=g, dtype=torch.float64),))]


def _systems(g: torch.Generator) -> list[Call]:
    return [
        Call((torch.randn(m, n, generator=g).double(), torch.randn(m, generator=g).double()))
        for m, n in ((4, 2), (3, 6), (1, 1), (5, 5))
    ]


def _scipy(matrix: Tensor, target: Tensor) -> Tensor:
    return torch.as_tensor(nnls(np.asarray(matrix.double()), np.asarray(target.double()))[0]).to(matrix)


def _count(x: Tensor, **words: Any) -> Tensor:
    found = count_nondifferentiable((1,), _VALUES, x, **words)
    return torch.tensor([found.total, found.nondifferentiable, found.by_slopes, found.incorrect])


def _enumerated(x: Tensor) -> Tensor:
    """Of ``relu(w . x + b)`` the parameters without derivative are those on the plane."""
    values = _VALUES
    grid = torch.cartesian_prod(*[values] * (len(x) + 1))
    singular = int((grid[:, :-1] @ x + grid[:, -1] == 0).sum())
    return torch.tensor([len(grid), singular, singular, 0])


def _contains(x: Tensor, gradient: Any = None, fn: Any = None, **words: Any) -> Tensor:
    """The distance of a gradient beyond the corner of a cube, and the number of pieces."""
    fn = (lambda y: (y - x).abs().sum()) if fn is None else fn
    gradient = torch.full_like(x, 1.5) if gradient is None else gradient
    found = clarke_contains(fn, x, gradient, **{"samples": 64, "generator": seeded(), **words})
    return torch.tensor([found.distance, float(found.contains), len(found.pieces)])


def _reported(fn: Any, x: Tensor, **words: Any) -> Tensor:
    report = kink_report(fn, x, **{"generator": seeded(), **words})
    return torch.tensor(
        [len(report.kinks), *(kink.count for kink in report.kinks), *(bool(k.matters) for k in report.kinks)]
    )


def _half_on_kinks(g: torch.Generator) -> list[Call]:
    return [Call((torch.tensor([0.0, 1.0, -2.0, 0.0, 0.5], dtype=torch.float64),))]


def _e4m3() -> Tensor:
    """torch's format of 4 and 3 bits, whose largest code is NaN; here it is the number that it would be, 480."""
    codes = torch.arange(256).to(torch.uint8).view(torch.float8_e4m3fn).double()
    signs = torch.arange(256).lt(128).double() * 2 - 1
    return torch.where(codes.isnan(), 480 * signs, codes).unique()


CONTRACTS = [
    Measurement(
        "gradients.minifloats",
        lambda x: minifloats(4, 3) + 0 * x.double(),
        lambda g: [Call((torch.zeros(255, dtype=torch.float64),))],
        reference=lambda x: _e4m3(),
    ),
    Measurement(
        "gradients.nonnegative_least_squares",
        nonnegative_least_squares,
        _systems,
        outputs=lambda x: x,
        reference=_scipy,
        tolerance=1e-7,
        bad=[
            Bad((torch.ones(2), torch.ones(2)), {}, ValueError, r"matrix must have shape \(rows, columns\)"),
            Bad((torch.ones(2, 3), torch.ones(3)), {}, ValueError, r"target must have shape"),
            Bad((torch.ones(2, 2), torch.full((2,), torch.nan)), {}, ValueError, "matrix and target must be finite"),
            Bad((torch.ones(2, 2).long(), torch.ones(2)), {}, TypeError, "matrix must be a floating tensor"),
        ],
    ),
    Measurement(
        "gradients.clarke_contains",
        _contains,
        _normal(2),
        reference=lambda x: torch.tensor([0.5**0.5, 0.0, 4.0]),
        tolerance=1e-6,
        bad=[
            Bad((torch.ones(2),), {"radius": 0.0}, ValueError, "radius must be > 0"),
            Bad((torch.ones(2),), {"samples": 0}, ValueError, "samples must be an integer >= 1"),
            Bad((torch.ones(2),), {"gradient": torch.ones(3)}, ValueError, "gradient must have shape"),
            Bad((torch.ones(2),), {"fn": 3}, TypeError, "fn must be callable"),
        ],
    ),
    Measurement(
        "gradients.count_nondifferentiable",
        _count,
        lambda g: [Call((torch.tensor([1.0, 0.5], dtype=torch.float64),)), Call((torch.ones(1, dtype=torch.float64),))],
        reference=_enumerated,
        bad=[
            Bad(
                (torch.ones(2),),
                {"activation": "gelu"},
                ValueError,
                "activation must be one of .*its kinks are unknown",
            ),
            Bad((torch.ones(2).long(),), {}, TypeError, "inputs must be a floating tensor"),
            Bad((torch.ones(40),), {}, ValueError, "samples must be given for 5.41 parameters"),
            Bad((torch.ones(2),), {"samples": 0}, ValueError, "samples must be an integer >= 1"),
        ],
    ),
    HigherOrder(
        "gradients.kink_report",
        _reported,
        _half_on_kinks,
        given=lambda x: x.abs().sum() + 0 * x.relu().sum(),
        argument="fn",
        reference=lambda x: torch.tensor([2, 2, 2, 1, 0]),
        **{
            **dict.fromkeys(
                ("batched", "gradcheck", "gradgradcheck", "forward_mode", "vmap", "compile", "half"), False
            ),
            "large": (),
            "why": "a measurement: it is not differentiated",
        },
        bad=[
            Bad((torch.ones(2),), {"probes": -1}, ValueError, "probes must be an integer >= 0"),
            Bad((torch.ones(2),), {"tolerance_ulps": -1}, ValueError, "tolerance_ulps must be >= 0"),
            Bad((torch.ones(2).long(),), {}, ValueError, "inputs must hold a floating tensor"),
        ],
    ),
]
