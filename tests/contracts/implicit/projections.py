"""Contracts of projections and proximal operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pullback import implicit
from tests.contracts.contract import Bad, Call, Contract


def _points(generator: torch.Generator) -> list[Call]:
    return [Call((2 * torch.randn(*shape, generator=generator, dtype=torch.float64),)) for shape in ((3, 5), (4,))]


def _nearest(x: Tensor, constraints: list[dict[str, object]], bounds: object = None) -> Tensor:
    """Project each row with scipy's general solver."""
    import scipy.optimize

    rows = []
    for row in x.reshape(-1, x.shape[-1]).numpy():
        found = scipy.optimize.minimize(
            lambda y, row=row: 0.5 * np.sum((y - row) ** 2),
            np.full(len(row), 0.1),
            jac=lambda y, row=row: y - row,
            method="SLSQP",
            constraints=constraints,
            bounds=None if bounds is None else [bounds] * len(row),
            options={"ftol": 1e-15, "maxiter": 500},
        )
        rows.append(found.x)
    return torch.tensor(np.array(rows)).reshape(x.shape)


def _split_l1(x: Tensor) -> Tensor:
    """Project on the l1 ball with scipy, ``x = p - q``, ``p, q >= 0``."""
    import scipy.optimize

    rows = []
    for row in x.reshape(-1, x.shape[-1]).numpy():
        n = len(row)
        found = scipy.optimize.minimize(
            lambda y, row=row, n=n: 0.5 * np.sum((y[:n] - y[n:] - row) ** 2) + 1e-9 * y.sum(),
            np.full(2 * n, 0.01),
            method="SLSQP",
            bounds=[(0, None)] * (2 * n),
            constraints=[{"type": "ineq", "fun": lambda y: 1 - y.sum()}],
            options={"ftol": 1e-15, "maxiter": 1000},
        )
        rows.append(found.x[:n] - found.x[n:])
    return torch.tensor(np.array(rows)).reshape(x.shape)


def _prox(penalty: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Minimise ``|y - x|^2 / 2 + penalty(y)`` by brute force on a grid of the scaling of each entry."""
    grid = torch.linspace(0, 1, 200_001, dtype=torch.float64)

    def reference(x: Tensor) -> Tensor:
        candidates = x[..., None] * grid
        return x * grid[(0.5 * (candidates - x[..., None]) ** 2 + penalty(candidates)).argmin(-1)]

    return reference


def _group_prox(x: Tensor) -> Tensor:
    grid = torch.linspace(0, 1, 200_001, dtype=torch.float64)
    length = x.norm(dim=-1, keepdim=True)
    best = (0.5 * (length * (grid - 1)) ** 2 + length * grid).argmin(-1, keepdim=True)
    return x * grid[best]


_ZEROS = torch.zeros(2)
_BAD_POINTS = [
    Bad((torch.tensor([1, 2]),), {}, TypeError, "x must be a floating tensor, got torch.int64"),
    Bad((torch.zeros(2, 0),), {}, ValueError, "last dimension of at least one entry"),
    Bad((_ZEROS,), {"radius": -1.0}, ValueError, "radius must be > 0, got -1.0"),
    Bad((_ZEROS,), {"radius": torch.tensor(-1.0)}, ValueError, "radius must be > 0 everywhere, got minimum -1.0"),
    Bad((_ZEROS,), {"radius": torch.tensor(True)}, TypeError, "radius must be a number or a real tensor"),
    Bad((torch.zeros(3, 2),), {"radius": torch.tensor([1.0, 0.0, 1.0])}, ValueError, "radius must be > 0 everywhere"),
]
_BAD_WEIGHT = [
    Bad((torch.tensor([1, 2]),), {}, TypeError, "x must be a floating tensor"),
    Bad((_ZEROS,), {"weight": -1.0}, ValueError, "weight must be >= 0, got -1.0"),
    Bad((_ZEROS,), {"weight": torch.tensor(-1.0)}, ValueError, "weight must be >= 0 everywhere, got minimum -1.0"),
    Bad((_ZEROS,), {"weight": torch.tensor(torch.nan)}, ValueError, "weight must be >= 0 everywhere"),
]


def _projection(block: Callable[..., Any], reference: Callable[[Tensor], Tensor], tolerance: float) -> Contract:
    return Contract(
        f"implicit.{block.__name__}",
        block,
        _points,
        reference=reference,
        tolerance=tolerance,
        scalars={"radius": 0.7},
        bad=_BAD_POINTS,
    )


def _proximal(block: Callable[..., Any], reference: Callable[[Tensor], Tensor]) -> Contract:
    return Contract(
        f"implicit.{block.__name__}",
        block,
        _points,
        reference=reference,
        tolerance=1e-4,
        scalars={"weight": 0.3},
        bad=_BAD_WEIGHT,
    )


CONTRACTS = [
    _projection(
        implicit.projection_simplex,
        lambda x: _nearest(x, [{"type": "eq", "fun": lambda y: y.sum() - 1}], (0, None)),
        1e-6,
    ),
    _projection(implicit.projection_l1_ball, _split_l1, 1e-5),
    _projection(
        implicit.projection_l2_ball, lambda x: _nearest(x, [{"type": "ineq", "fun": lambda y: 1 - y @ y}]), 1e-5
    ),
    Contract(
        "implicit.projection_box",
        implicit.projection_box,
        _points,
        reference=lambda x: _nearest(x, [], (0, 1)),
        tolerance=1e-6,
        scalars={"low": -0.4, "high": 0.6},
        bad=[
            Bad((torch.tensor([1, 2]),), {}, TypeError, "x must be a floating tensor"),
            Bad((_ZEROS, 1.0, 0.0), {}, ValueError, "low must not exceed high, got 1.0 and 0.0"),
            Bad((_ZEROS, torch.ones(2), 0.0), {}, ValueError, "low must not exceed high"),
            Bad((_ZEROS, torch.tensor(torch.nan)), {}, ValueError, "low must not exceed high"),
        ],
    ),
    Contract(
        "implicit.projection_affine",
        implicit.projection_affine,
        lambda g: [
            Call(tuple(torch.randn(*shape, generator=g, dtype=torch.float64) for shape in ((5,), (2, 5), (2,))))
        ],
        reference=lambda x, a, b: _nearest(x, [{"type": "eq", "fun": lambda y: a.numpy() @ y - b.numpy()}]),
        tolerance=1e-6,
        bad=[
            Bad((torch.zeros(3), torch.zeros(2, 4), _ZEROS), {}, ValueError, "matrix must be .* got"),
            Bad((_ZEROS, torch.ones(2, 2), _ZEROS), {}, ValueError, "matrix must have linearly independent rows"),
            Bad((_ZEROS, torch.eye(2).double(), _ZEROS), {}, TypeError, "must have the same dtype"),
        ],
    ),
    _proximal(implicit.prox_lasso, _prox(lambda y: y.abs())),
    _proximal(implicit.prox_ridge, _prox(lambda y: 0.5 * y**2)),
    _proximal(implicit.prox_group_lasso, _group_prox),
    _proximal(implicit.prox_l0, _prox(lambda y: (y != 0).to(y))),
    _proximal(implicit.prox_non_negative_lasso, _prox(lambda y: torch.where(y < 0, torch.inf, y))),
    _proximal(implicit.prox_non_negative_ridge, _prox(lambda y: torch.where(y < 0, torch.inf, 0.5 * y**2))),
    Contract(
        "implicit.prox_elastic_net",
        implicit.prox_elastic_net,
        _points,
        reference=_prox(lambda y: y.abs() + 0.5 * y**2),
        tolerance=1e-4,
        scalars={"weight": 0.3, "ridge": 0.6},
        bad=[*_BAD_WEIGHT[:2], Bad((_ZEROS,), {"ridge": -1.0}, ValueError, "ridge must be >= 0, got -1.0")],
    ),
]
