"""Contracts of weights for laws that have changed: against numpy, scikit-learn and scipy."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.optimize
import torch
from sklearn.neighbors import KernelDensity
from torch import Tensor

from pullback.uncertainty import (
    conditional_expectation_matrix,
    density_ratio,
    kernel_mean_matching,
    reference_bandwidth,
    target_shift_weights,
    tikhonov_solve,
)
from tests.contracts.contract import Bad, Call, Contract, HigherOrder

_NAN = float("nan")
_ROWS = torch.arange(24.0).reshape(12, 2).sin()


def _normal(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def _means(x: Tensor, query: Tensor | None = None, *, bandwidth: Any) -> Tensor:
    query = x if query is None else query
    if x.ndim > 2 or query.ndim > 2:
        batch = torch.broadcast_shapes(x.shape[:-2], query.shape[:-2])
        both = (t.expand(*batch, *t.shape[-2:]) for t in (x, query))
        return torch.stack([_means(*one, bandwidth=bandwidth) for one in zip(*both, strict=True)])
    h = torch.as_tensor(bandwidth).double()
    weights = np.exp(-(torch.cdist(query / h, x / h).numpy() ** 2) / 2)
    return torch.from_numpy(weights / weights.sum(1, keepdims=True))


def _tikhonov(operator: Tensor, adjoint: Tensor, right: Tensor, alpha: float = 0.1, iterated: int = 1) -> Tensor:
    normal = adjoint @ operator
    value = torch.zeros(*right.shape[:-1], operator.shape[-1], dtype=torch.float64)
    for _ in range(iterated):
        goal = (adjoint @ right.unsqueeze(-1)).squeeze(-1) + alpha * value
        inverse = torch.linalg.inv(normal + alpha * torch.eye(normal.shape[-1]).double())
        value = (inverse @ goal.unsqueeze(-1)).squeeze(-1)
    return value


def _problem(g: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    y = _normal(g, 14)
    return torch.stack([y, -y], 1) + _normal(g, 14, 2), y, 0.5 + _normal(g, 11, 2)


def _weights(x: Tensor, y: Tensor, z: Tensor, alpha: float = 0.1) -> Tensor:
    def width(t: Tensor) -> Tensor:
        return 1.06 * t.std(0) * len(t) ** -0.2

    def density(points: Tensor, at: Tensor) -> np.ndarray:
        h = width(points)
        log = KernelDensity(bandwidth=1.0).fit(points / h).score_samples(at / h)
        return np.exp(log) / float(h.prod())

    column = y[:, None]
    forward, back = _means(x, bandwidth=width(x)), _means(column, bandwidth=width(column))
    ratio = torch.from_numpy(density(z, x) / density(x, x))
    return (_tikhonov(forward, back, ratio - 1, alpha) + 1).clamp(min=0)


def _matched(x: Tensor, z: Tensor) -> Tensor:
    scale = 2**0.5 * x.std(0)
    own, cross = (np.exp(-(torch.cdist(x / scale, t / scale).numpy() ** 2) / 2) for t in (x, z))
    n = len(own)
    goal = cross.mean(1)
    found = scipy.optimize.minimize(
        lambda b: b @ own @ b / n**2 - 2 * b @ goal / n + 1e-8 * b @ b / n,
        np.ones(n),
        jac=lambda b: 2 * own @ b / n**2 - 2 * goal / n + 2e-8 * b / n,
        bounds=[(0, 10)] * n,
        constraints=[
            {"type": "ineq", "fun": lambda b: 1.05 - b.mean(), "jac": lambda b: -np.ones(n) / n},
            {"type": "ineq", "fun": lambda b: b.mean() - 0.95, "jac": lambda b: np.ones(n) / n},
        ],
        method="SLSQP",
        options={"ftol": 1e-16, "maxiter": 2000},
    )
    return torch.from_numpy(own @ found.x)


def _embedded(x: Tensor, z: Tensor) -> Tensor:
    """What the weights make of the kernel's features: flat directions of the weights do not show."""
    scale = 2**0.5 * x.std(0)
    own = torch.exp(-((x[:, None] - x) / scale).square().sum(-1) / 2)
    return own @ kernel_mean_matching(x, z)


_SAMPLES = "the dimensions are rows and columns of one sample, without a batch"

CONTRACTS = [
    Contract(
        "uncertainty.conditional_expectation_matrix",
        conditional_expectation_matrix,
        lambda g: [
            Call((_normal(g, 2, 4, 2), _normal(g, 3, 2)), {"bandwidth": 0.7}),
            Call((_normal(g, 4, 2),), {"bandwidth": torch.tensor([0.5, 2.0], dtype=torch.float64)}),
        ],
        reference=_means,
        large=(),
        why="far from all rows the nearest one counts alone, and which one that is depends on rounding",
        bad=[
            Bad((torch.zeros(3),), {"bandwidth": 1.0}, ValueError, r"x must have shape \(..., n, d\)"),
            Bad((torch.zeros(0, 2),), {"bandwidth": 1.0}, ValueError, "x and query must have rows of one length"),
            Bad((_ROWS,), {"bandwidth": 0.0}, ValueError, "bandwidth must be > 0"),
            Bad((_ROWS, _ROWS.double()), {"bandwidth": 1.0}, TypeError, "must have the same dtype"),
            Bad((_ROWS, torch.zeros(2, 3)), {"bandwidth": 1.0}, ValueError, "rows of one length"),
        ],
    ),
    Contract(
        "uncertainty.reference_bandwidth",
        reference_bandwidth,
        lambda g: [Call((_normal(g, 2, 5, 3),)), Call((_normal(g, 9, 1),))],
        reference=lambda x: torch.from_numpy(1.06 * x.numpy().std(-2, ddof=1) * x.shape[-2] ** -0.2),
        bad=[
            Bad((torch.zeros(1, 2),), {}, ValueError, "x must have shape"),
            Bad((torch.zeros(3, 2),), {}, ValueError, "x must vary in every column"),
            Bad((torch.tensor([[1.0], [_NAN]]),), {}, ValueError, "x must be finite"),
            Bad((torch.ones(3, 2).long(),), {}, TypeError, "x must be a floating tensor"),
        ],
    ),
    Contract(
        "uncertainty.tikhonov_solve",
        lambda t, s, eta, **words: tikhonov_solve(t, s, eta, **{"alpha": 0.1} | words).value,
        lambda g: [
            Call((_normal(g, 2, 4, 3), _normal(g, 3, 4), _normal(g, 4))),
            Call((_normal(g, 3, 3), _normal(g, 3, 3), _normal(g, 3)), {"iterated": 3}),
        ],
        reference=_tikhonov,
        scalars={"alpha": 0.2},
        large=(2,),
        large_limit=1e8,
        why="sums of products with the largest numbers overflow",
        half_tolerance=6e-2,
        bad=[
            Bad((_ROWS, _ROWS, _ROWS[0]), {}, ValueError, r"must be \[m, n\], \[n, m\] and \[m\]"),
            Bad((_ROWS, _ROWS.T, _ROWS[:, 0]), {"alpha": 0.0}, ValueError, "alpha must be > 0"),
            Bad((_ROWS, _ROWS.T, _ROWS[:, 0]), {"alpha": None}, ValueError, "alpha, or noise"),
            Bad((_ROWS, _ROWS.T, _ROWS[:, 0]), {"iterated": 0}, ValueError, "iterated must be an integer >= 1"),
            Bad((_ROWS, lambda v: v, _ROWS[:, 0]), {}, TypeError, "both be matrices or both functions"),
        ],
    ),
    HigherOrder(
        "uncertainty.tikhonov_solve[functions]",
        lambda f, matrix, eta: (
            tikhonov_solve(f, lambda v, a: a.mT @ v, eta, alpha=0.1, iterated=2, parameters=(matrix,)).value
        ),
        lambda g: [Call((_normal(g, 4, 3), _normal(g, 4)))],
        given=lambda v, a: a @ v,
        argument="operator",
        reference=lambda a, eta: _tikhonov(a, a.mT, eta, 0.1, 2),
        batched=False,
        large=(),
        half=False,
        vmap=False,
        compile=False,
        why="functions serve one problem, whose convergence is checked; Krylov methods need single precision",
    ),
    Contract(
        "uncertainty.target_shift_weights",
        lambda x, y, z, **words: target_shift_weights(x, y, z, **{"alpha": 0.1} | words).values,
        lambda g: [Call(_problem(g))],
        reference=_weights,
        scalars={"alpha": 0.1},
        batched=False,
        large=(),
        vmap=False,
        compile=False,
        half_tolerance=0.1,
        why=f"{_SAMPLES}; it looks at bandwidths and at the effective sample size to warn",
        bad=[
            Bad((_ROWS[:5], _ROWS[:5, 0], _ROWS), {}, ValueError, "x_source must have 2 dimensions and at least"),
            Bad((_ROWS, _ROWS, _ROWS), {}, ValueError, "y_source must have 1 dimensions"),
            Bad((_ROWS, _ROWS[:11, 0], _ROWS), {}, ValueError, r"must be \[n, p\], \[n\], \[m, p\]"),
            Bad((_ROWS, _ROWS[:, 0].double(), _ROWS), {}, TypeError, "must have the same dtype"),
            Bad((_ROWS, _ROWS[:, 0], _ROWS * _NAN), {}, ValueError, "x_target must be finite"),
            Bad((_ROWS, _ROWS[:, 0], _ROWS), {"alpha": -1.0}, ValueError, "alpha must be > 0"),
            Bad((_ROWS, _ROWS[:, 0], _ROWS), {"black_box": 3}, TypeError, "black_box must be callable"),
            Bad((_ROWS, _ROWS[:, 0], _ROWS), {"black_box": torch.sum}, ValueError, "black_box must return"),
        ],
    ),
    Contract(
        "uncertainty.density_ratio",
        lambda p, q, **words: density_ratio(p, q, **words),
        lambda g: [Call((_normal(g, 6, 2), _normal(g, 5, 2)), {"bandwidth": 0.7})],
        reference=lambda p, q, bandwidth: torch.from_numpy(
            np.exp(np.subtract(*(KernelDensity(bandwidth=bandwidth).fit(s).score_samples(q) for s in (p, q))))
        ),
        batched=False,
        large=(),
        why=_SAMPLES,
        bad=[
            Bad((_ROWS, _ROWS), {"method": "kd"}, ValueError, "method must be one of"),
            Bad((_ROWS[:1], _ROWS), {}, ValueError, r"numerator must have shape \[rows >= 2, d\]"),
            Bad((_ROWS, torch.zeros(3, 1)), {}, ValueError, "as many columns"),
            Bad((_ROWS, _ROWS), {"bandwidth": -1.0}, ValueError, "bandwidth must be > 0"),
            Bad((_ROWS, _ROWS), {"ridge": 0.0}, ValueError, "ridge must be > 0"),
            Bad((_ROWS, _ROWS), {"centres": 0}, ValueError, "centres must be an integer >= 1"),
        ],
    ),
    Contract(
        "uncertainty.density_ratio[ulsif]",
        lambda p, q, **words: density_ratio(p, q, method="ulsif", centres=4, bandwidth=1.0, **words),
        lambda g: [Call((_normal(g, 6, 2), _normal(g, 5, 2)))],
        reference=lambda p, q: _least_squares_ratio(p, q),
        scalars={"ridge": 0.1},
        batched=False,
        large=(),
        why=_SAMPLES,
    ),
    Contract(
        "uncertainty.kernel_mean_matching",
        _embedded,
        lambda g: [Call((_normal(g, 8, 2), 0.5 + _normal(g, 6, 2)))],
        reference=_matched,
        tolerance=1e-4,
        batched=False,
        large=(),
        gradgradcheck=False,
        vmap=False,
        half_tolerance=6e-2,
        why=f"{_SAMPLES}; it looks at the columns and at convergence; second derivatives are the quadratic program's",
        bad=[
            Bad((_ROWS[:1], _ROWS), {}, ValueError, r"source must have shape \[rows >= 2, d\]"),
            Bad((_ROWS, torch.zeros(3, 1)), {}, ValueError, "as many columns"),
        ],
    ),
]


def _least_squares_ratio(p: Tensor, q: Tensor) -> Tensor:
    of_p, of_q = (torch.exp(-(torch.cdist(s, p[:4]) ** 2) / 2) for s in (p, q))
    square = of_q.T @ of_q / len(q) + 0.1 * torch.eye(4).double()
    return (of_q @ torch.linalg.inv(square) @ of_p.mean(0)).clamp(min=0)
