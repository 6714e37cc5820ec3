"""Contracts of ``pullback.implicit``."""

from __future__ import annotations

import numpy as np
import scipy.optimize
import torch
from torch import Tensor

from pullback import implicit
from pullback.core.errors import ConvergenceError
from tests.contracts.contract import Bad, Call, Contract

_NO_HALF = "half precision: a solver cannot reach a tolerance that its arithmetic cannot show"
_NO_COMPILE = "compile: the solver branches on its data"


def _randn(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def _points(generator: torch.Generator) -> list[Call]:
    return [Call((2 * _randn(generator, 3, 5),)), Call((2 * _randn(generator, 4),))]


def _nearest(x: Tensor, constraints: list[dict[str, object]], bounds: object = None) -> Tensor:
    """Project each row with scipy's general solver."""
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


def _prox(x: Tensor, penalty: object) -> Tensor:
    """Minimise ``|y - x|^2 / 2 + penalty(y)`` by brute force on a grid of the scaling of each row or entry."""
    grid = torch.linspace(0, 1, 200_001, dtype=torch.float64)
    candidates = x[..., None] * grid
    best = (0.5 * (candidates - x[..., None]) ** 2 + penalty(candidates)).argmin(-1)  # type: ignore[operator]
    return x * grid[best]


def _group_prox(x: Tensor) -> Tensor:
    grid = torch.linspace(0, 1, 200_001, dtype=torch.float64)
    length = x.norm(dim=-1, keepdim=True)
    best = (0.5 * (length * (grid - 1)) ** 2 + length * grid).argmin(-1, keepdim=True)
    return x * grid[best]


def _spd(a: Tensor) -> Tensor:
    return a @ a.mT + torch.eye(a.shape[-1], dtype=a.dtype)


def _system(generator: torch.Generator) -> list[Call]:
    return [Call((_randn(generator, 3, 3), _randn(generator, 3)))]


def _cubic(x: Tensor, a: Tensor) -> Tensor:
    return x**3 + x - a


def _cubic_root(a: Tensor) -> Tensor:
    real = torch.tensor(
        np.array([[np.roots([1, 0, 1, -v]) for v in row] for row in a.reshape(-1, a.shape[-1]).tolist()])
    )
    return real.real.gather(-1, real.imag.abs().argmin(-1, keepdim=True))[..., 0].reshape(a.shape)


def _contraction(x: Tensor, a: Tensor) -> Tensor:
    return torch.tanh(0.5 * x) + a


def _contraction_reference(a: Tensor) -> Tensor:
    x = torch.zeros_like(a)
    for _ in range(200):
        x = _contraction(x, a)
    return x


def _quartic(x: Tensor, a: Tensor) -> Tensor:
    return (x**4 / 4 + x**2 / 2 - a * x).sum()


_BAD_POINTS = [
    Bad((torch.tensor([1, 2]),), {}, TypeError, "x must be a floating tensor, got torch.int64"),
    Bad((torch.zeros(2, 0),), {}, ValueError, "last dimension of at least one entry"),
    Bad((torch.zeros(2),), {"radius": -1.0}, ValueError, "radius must be > 0, got -1.0"),
]
_BAD_WEIGHT = [
    Bad((torch.tensor([1, 2]),), {}, TypeError, "x must be a floating tensor"),
    Bad((torch.zeros(2),), {"weight": -1.0}, ValueError, "weight must be >= 0, got -1.0"),
]

CONTRACTS = [
    Contract(
        "implicit.projection_simplex",
        implicit.projection_simplex,
        _points,
        reference=lambda x: _nearest(x, [{"type": "eq", "fun": lambda y: y.sum() - 1}], (0, None)),
        tolerance=1e-6,
        bad=_BAD_POINTS,
    ),
    Contract(
        "implicit.projection_l1_ball",
        implicit.projection_l1_ball,
        _points,
        reference=_split_l1,
        tolerance=1e-5,
        bad=_BAD_POINTS,
    ),
    Contract(
        "implicit.projection_l2_ball",
        implicit.projection_l2_ball,
        _points,
        reference=lambda x: _nearest(x, [{"type": "ineq", "fun": lambda y: 1 - y @ y}]),
        tolerance=1e-5,
        bad=_BAD_POINTS,
    ),
    Contract(
        "implicit.projection_box",
        implicit.projection_box,
        _points,
        reference=lambda x: _nearest(x, [], (0, 1)),
        tolerance=1e-6,
        bad=[
            Bad((torch.tensor([1, 2]),), {}, TypeError, "x must be a floating tensor"),
            Bad((torch.zeros(2), 1.0, 0.0), {}, ValueError, "low must not exceed high, got 1.0 and 0.0"),
        ],
    ),
    Contract(
        "implicit.projection_affine",
        implicit.projection_affine,
        lambda g: [Call((_randn(g, 5), _randn(g, 2, 5), _randn(g, 2)))],
        reference=lambda x, a, b: _nearest(x, [{"type": "eq", "fun": lambda y: a.numpy() @ y - b.numpy()}]),
        tolerance=1e-6,
        half=False,
        why="half precision: torch has no linear solve in it",
        bad=[
            Bad((torch.zeros(3), torch.zeros(2, 4), torch.zeros(2)), {}, ValueError, "matrix must be .* got"),
        ],
    ),
    Contract(
        "implicit.prox_lasso",
        implicit.prox_lasso,
        _points,
        reference=lambda x: _prox(x, lambda y: y.abs()),
        tolerance=1e-4,
        bad=_BAD_WEIGHT,
    ),
    Contract(
        "implicit.prox_ridge",
        implicit.prox_ridge,
        _points,
        reference=lambda x: _prox(x, lambda y: 0.5 * y**2),
        tolerance=1e-4,
        bad=_BAD_WEIGHT,
    ),
    Contract(
        "implicit.prox_group_lasso",
        implicit.prox_group_lasso,
        _points,
        reference=_group_prox,
        tolerance=1e-4,
        bad=_BAD_WEIGHT,
    ),
    *(
        Contract(
            f"implicit.linear_solve[{method}]",
            lambda a, b, method=method, tolerance=1e-13: implicit.linear_solve(
                _spd(a), b, method=method, tolerance=tolerance
            ),
            _system,
            reference=lambda a, b: torch.linalg.solve(_spd(a), b),
            outputs=lambda solution: solution.value,
            batched=False,
            compile=False,
            half=False,
            why=f"{_NO_HALF}; {_NO_COMPILE}; batched: b has the batch shape of A",
            bad=[
                Bad((torch.eye(3), torch.ones(4)), {}, ValueError, r"matvec must be \[\*batch, n, n\] for b \(4,\)"),
                Bad((torch.eye(3), torch.ones(3)), {"tolerance": -1.0}, ValueError, "tolerance must be > 0"),
            ]
            if method == "lu"
            else [],
        )
        for method in ("lu", "cg", "normal_cg", "bicgstab", "gmres")
    ),
    Contract(
        "implicit.find_root",
        lambda a, **options: implicit.find_root(_cubic, torch.zeros_like(a), a, **options),
        lambda g: [Call((_randn(g, 2, 3),))],
        reference=_cubic_root,
        outputs=lambda solution: solution.value,
        compile=False,
        half=False,
        why=f"{_NO_HALF}; {_NO_COMPILE}",
        bad=[
            Bad((torch.zeros(2),), {"solve": "qr"}, ValueError, "method must be one of"),
            Bad((torch.full((2,), 5.0),), {"max_iterations": 1, "check": True}, ConvergenceError, "residual"),
        ],
    ),
    *(
        Contract(
            f"implicit.fixed_point[{method}]",
            lambda a, method=method, **options: implicit.fixed_point(
                _contraction, torch.zeros_like(a), a, method=method, tolerance=1e-12, **options
            ),
            lambda g: [Call((_randn(g, 2, 3),))],
            reference=_contraction_reference,
            outputs=lambda solution: solution.value,
            compile=False,
            half=False,
            why=f"{_NO_HALF}; {_NO_COMPILE}",
            bad=[
                Bad((torch.zeros(2),), {"damping": 0.0}, ValueError, "damping must be > 0"),
            ],
        )
        for method in ("picard", "anderson", "newton")
    ),
    *(
        Contract(
            f"implicit.minimize[{method}]",
            lambda a, method=method, **options: implicit.minimize(
                _quartic, torch.zeros_like(a), a, method=method, tolerance=1e-10, max_iterations=5000, **options
            ),
            lambda g: [Call((_randn(g, 2, 3),))],
            reference=_cubic_root,
            outputs=lambda solution: solution.value,
            compile=False,
            half=False,
            why=f"{_NO_HALF}; {_NO_COMPILE}",
            bad=[
                Bad((torch.zeros(2),), {"prox": lambda y, step, a: y}, ValueError, "do not go together"),
            ],
        )
        for method in ("lbfgs", "newton", "gradient", "fire")
    ),
    Contract(
        "implicit.minimize[proximal_gradient]",
        lambda a: implicit.minimize(
            lambda x, a: ((x - a) ** 2).sum() / 2,
            torch.zeros_like(a),
            a,
            prox=lambda y, step, a: implicit.prox_lasso(y, 0.3 * step),
            tolerance=1e-12,
        ),
        lambda g: [Call((_randn(g, 2, 3),))],
        reference=lambda a: implicit.prox_lasso(a, 0.3),
        outputs=lambda solution: solution.value,
        compile=False,
        half=False,
        why=f"{_NO_HALF}; {_NO_COMPILE}",
    ),
]
