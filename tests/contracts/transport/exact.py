"""Contracts of exact transport: assignments and plans against a brute force over permutations and against scipy."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from scipy.optimize import linprog
from scipy.stats import wasserstein_distance
from torch import Tensor

from pullback import transport
from tests.contracts.contract import Bad, Call, Contract

_NAN, _INF = float("nan"), float("inf")


def _cost(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def _masses(g: torch.Generator, *shape: int) -> Tensor:
    x = torch.rand(*shape, generator=g, dtype=torch.float64) + 0.1
    return x / x.sum(-1, keepdim=True)


def _best(cost: Tensor, maximize: bool = False) -> Tensor:
    """Of all injective maps."""
    if cost.ndim > 2:
        return torch.stack([_best(c, maximize) for c in cost])
    cost = cost.mT if cost.shape[0] > cost.shape[1] else cost
    n, m = cost.shape
    totals = torch.stack([cost[range(n), list(columns)].sum() for columns in itertools.permutations(range(m), n)])
    return totals.max() if maximize else totals.min()


def _linear_program(cost: Tensor, a: Tensor, b: Tensor) -> Tensor:
    if cost.ndim > 2:
        return torch.stack([_linear_program(*one) for one in zip(cost, a, b, strict=True)])
    n, m = cost.shape
    rows, columns = np.kron(np.eye(n), np.ones(m)), np.kron(np.ones(n), np.eye(m))
    sums = np.concatenate([a.numpy(), b.numpy()])
    return torch.tensor(linprog(cost.numpy().ravel(), A_eq=np.vstack([rows, columns]), b_eq=sums).fun).double()


def _by_scipy(x: Tensor, y: Tensor, a: Tensor, b: Tensor, p: float) -> Tensor:
    if x.ndim > 1:
        return torch.stack([_by_scipy(*one, p) for one in zip(x, y, a, b, strict=True)])
    if p == 1:
        return torch.tensor(wasserstein_distance(x, y, a, b)).double()
    return _linear_program((x[:, None] - y).abs() ** p, a, b)


_FORBIDDEN = torch.tensor([[0.0, _INF], [1.0, _INF]])
_COST_ERRORS = [
    Bad((torch.zeros(2, 2, dtype=torch.int64),), {}, TypeError, "cost must be a floating tensor, got torch.int64"),
    Bad((torch.zeros(3),), {}, ValueError, r"cost must have shape \(..., n, m\), got \(3,\)"),
    Bad((torch.tensor([[0.0, _NAN]]),), {}, ValueError, r"cost must not be NaN or -inf, got nan at index \(0, 1\)"),
    Bad((torch.tensor([[-_INF]]),), {}, ValueError, "cost must not be NaN or -inf, got -inf"),
    Bad((torch.tensor([[_INF, _INF], [0, 0]]),), {}, ValueError, r"cost must have a finite entry in each row.* \(0,\)"),
    Bad((_FORBIDDEN,), {}, ValueError, r"cost must have a finite entry in each column.* \(1,\)"),
]
_PAIRED = torch.tensor([[0.0, _INF, _INF], [1.0, _INF, _INF], [0.0, 0.0, 0.0]])

CONTRACTS = [
    *[
        Contract(
            f"transport.assignment[{n} x {m}]",
            transport.assignment,
            lambda g, n=n, m=m: [Call((_cost(g, 2, n, m),)), Call((_cost(g, n, m),), {"maximize": True})],
            reference=_best,
            outputs=lambda found: found.value,
            bad=[
                *_COST_ERRORS,
                Bad((_PAIRED,), {}, ValueError, "cost must allow a matching, but its infinite entries leave none"),
                Bad((_PAIRED.expand(2, 3, 3),), {}, ValueError, r"leave none in problem \(0,\)"),
            ]
            if n == m
            else (),
        )
        for n, m in ((4, 4), (3, 5), (5, 2))
    ],
    Contract(
        "transport.exact_transport[uniform]",
        transport.exact_transport,
        lambda g: [Call((_cost(g, 2, 4, 4),)), Call((_cost(g, 1, 1),))],
        reference=lambda cost: _best(cost) / cost.shape[-1],
        outputs=lambda found: found.value,
        bad=[
            *_COST_ERRORS,
            Bad((torch.zeros(0, 2),), {}, ValueError, "cost must have at least one row and one column"),
            Bad((_PAIRED,), {}, ValueError, "cost must allow a plan, but its infinite entries leave none"),
        ],
    ),
    Contract(
        "transport.exact_transport",
        transport.exact_transport,
        lambda g: [
            Call((_cost(g, 2, 3, 4), _masses(g, 2, 3), _masses(g, 2, 4))),
            Call((_cost(g, 5, 2), 3 * _masses(g, 5), 3 * _masses(g, 2))),
        ],
        reference=_linear_program,
        outputs=lambda found: found.value,
        gradgradcheck=False,
        why="the plan is constant to autograd, so there is no mixed derivative in a cost and a mass",
        bad=[
            Bad((torch.zeros(2, 2), torch.ones(3)), {}, ValueError, r"a must have shape \(..., 2\), got \(3,\)"),
            Bad((torch.zeros(2, 2), torch.tensor([1.0, -1.0])), {}, ValueError, "a must be >= 0 and finite, got -1.0"),
            Bad((torch.zeros(2, 2), torch.zeros(2)), {}, ValueError, "a must have a positive sum"),
            Bad((torch.zeros(2, 2), torch.ones(2), torch.ones(2) / 2), {}, ValueError, "a and b must have equal sums"),
            Bad((torch.zeros(2, 2), torch.ones(2).double()), {}, TypeError, "cost and a must have the same dtype"),
            Bad((_PAIRED, torch.ones(3)), {}, ValueError, "cost must allow a plan"),
        ],
    ),
    Contract(
        "transport.wasserstein_1d[one mass]",
        transport.wasserstein_1d,
        lambda g: [Call((_cost(g, 2, 5), _cost(g, 2, 5)), {"p": p}) for p in (2.0, 1.0, 1.5, 3.0)],
        reference=lambda x, y, p: _best((x[..., :, None] - y[..., None, :]).abs() ** p) / 5,
        large=(0, 1),
        large_limit=1e8,
        bad=[
            Bad((torch.zeros(2), torch.zeros(2)), {"p": 0.5}, ValueError, r"p must be in \[1, 1000"),
            Bad((torch.zeros(0), torch.zeros(2)), {}, ValueError, "x must have at least one point"),
            Bad((torch.zeros(2), torch.zeros(2).double()), {}, TypeError, "x and y must have the same dtype"),
        ],
        why="a square of the largest numbers overflows by nature",
    ),
    Contract(
        "transport.wasserstein_1d[masses]",
        transport.wasserstein_1d,
        lambda g: [
            Call((_cost(g, 2, 3), _cost(g, 2, 4), _masses(g, 2, 3), _masses(g, 2, 4)), {"p": p}) for p in (1.0, 2.0)
        ],
        reference=_by_scipy,
        large=(0, 1),
        large_limit=1e8,
        bad=[
            Bad(
                (torch.zeros(2), torch.zeros(2), torch.ones(2), torch.ones(2) / 2), {}, ValueError, "a and b must have"
            ),
            Bad((torch.zeros(2), torch.zeros(2), torch.ones(3)), {}, ValueError, r"a must have shape \(..., 2\)"),
        ],
        why="a square of the largest numbers overflows by nature",
    ),
]
