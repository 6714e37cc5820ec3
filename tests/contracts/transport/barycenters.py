"""Contracts of barycentres and of partial plans: against scipy's minimum, and against all plans of a linear program."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment, linprog, minimize
from torch import Tensor

from pullback import transport
from tests.contracts.contract import Bad, Call, Contract
from tests.contracts.transport.exact import _best

_NAN, _INF = float("nan"), float("inf")


def _masses(g: torch.Generator, *shape: int) -> Tensor:
    x = torch.rand(*shape, generator=g, dtype=torch.float64) + 0.1
    return x / x.sum(-1, keepdim=True)


def _points(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def _grid(m: int) -> Tensor:
    place = torch.arange(m, dtype=torch.float64)
    return (place[:, None] - place).square()


def _on_grid(a: Tensor, cost: Tensor, weights: Tensor | None = None, **words: Any) -> Tensor:
    square = cost.shape[-1:] == cost.shape[-2:-1]
    symmetric = (cost + cost.mT) / 2 if square else cost  # finite differences move one entry alone
    return transport.barycenter(a, symmetric, weights, max_iterations=45, tolerance=1e-10, **words).masses


def _entropic(a: Tensor, b: Tensor, cost: Tensor, epsilon: float) -> tuple[float, Tensor]:
    """The entropic value and its potential of b, by many plain sweeps."""
    kernel, u = torch.exp(-cost / epsilon), torch.ones_like(a)
    for _ in range(3000):
        v = 1 / (kernel.mT @ (u * a))
        u = 1 / (kernel @ (v * b))
    return float(epsilon * ((a * u.log()).sum() + (b * v.log()).sum())), epsilon * v.log()


def _by_scipy(
    a: Tensor, cost: Tensor, weights: Tensor | None = None, *, epsilon: float, debiased: bool = True
) -> Tensor:
    """Minimise the sum of the costs over softmaxes.

    Sweeps price ``KL(P | a b^T)``; against uniform masses the entropy of b comes on top, and what is debiased takes off
    half of the cost of b to itself.
    """
    if a.ndim > 2:
        return torch.stack([_by_scipy(one, cost, weights, epsilon=epsilon, debiased=debiased) for one in a])
    shares = torch.full((len(a),), 1 / len(a), dtype=a.dtype) if weights is None else weights / weights.sum()

    def objective(z: np.ndarray) -> tuple[float, np.ndarray]:
        b = torch.softmax(torch.from_numpy(z), 0)
        values, slopes = zip(*[_entropic(one, b, cost, epsilon) for one in a], strict=True)
        value = sum(float(s) * v for s, v in zip(shares, values, strict=True))
        slope = sum(s * t for s, t in zip(shares, slopes, strict=True))
        if debiased:
            own, half = _entropic(b, b, cost, epsilon)
            value, slope = value - own / 2, slope - half
        else:
            value, slope = value + epsilon * float((b * b.log()).sum()), slope + epsilon * (b.log() + 1)
        return value, (b * (slope - (b * slope).sum())).numpy()

    found = minimize(objective, np.zeros(a.shape[-1]), jac=True, method="BFGS", options={"gtol": 1e-9})
    return torch.softmax(torch.from_numpy(found.x), 0)


def _free(y: Tensor, weights: Tensor, start: Tensor, **words: Any) -> tuple[Tensor, Tensor]:
    found = transport.free_support_barycenter(y, weights=weights, start=start.detach(), **words)
    return found.points, found.value


def _matched(y: Tensor, weights: Tensor, start: Tensor, max_iterations: int) -> tuple[Tensor, Tensor]:
    """The same updates, with scipy's assignment."""
    shares = weights / weights.sum()
    if y.ndim > 3:
        parts = [_matched(one, weights, start, max_iterations) for one in y]
        return tuple(torch.stack(p) for p in zip(*parts, strict=True))  # type: ignore[return-value]
    x = start
    for _ in range(max_iterations + 1):
        rows = []
        for cloud in y:
            rows.append(cloud[linear_sum_assignment(torch.cdist(x, cloud).square().numpy())[1]])
        x = (shares[:, None, None] * torch.stack(rows)).sum(0)
    value = sum(s * _best(torch.cdist(x, cloud).square()) / len(x) for s, cloud in zip(shares, y, strict=True))
    return x, torch.as_tensor(value)


def _part(cost: Tensor, a: Tensor, b: Tensor, mass: float = 0.6) -> Tensor:
    if cost.ndim > 2:
        return torch.stack([_part(*one, mass) for one in zip(cost, a, b, strict=True)])
    n, m = cost.shape
    sums = np.vstack([np.kron(np.eye(n), np.ones(m)), np.kron(np.ones(n), np.eye(m))])
    upper = np.concatenate([a.numpy(), b.numpy()])
    found = linprog(cost.numpy().ravel(), A_ub=sums, b_ub=upper, A_eq=np.ones((1, n * m)), b_eq=[mass])
    return torch.tensor(found.fun, dtype=cost.dtype)


_COST, _A = _grid(3).float(), torch.full((2, 3), 1 / 3)
_CLOUDS, _START = torch.zeros(2, 3, 2), torch.zeros(3, 2)

CONTRACTS = [
    *[
        Contract(
            f"transport.barycenter[{'debiased' if debiased else 'plain'}]",
            _on_grid,
            lambda g, debiased=debiased: [
                Call((_masses(g, 2, 2), _grid(2), _masses(g, 2)), {"epsilon": 1.0, "debiased": debiased}),
            ],
            reference=_by_scipy,
            tolerance=1e-6,
            scalars={"epsilon": 1.0},
            large=(),
            batched=debiased,
            gradgradcheck=debiased,
            compile=False,
            half_tolerance=5e-2,
            why="costs far beyond epsilon have no part in the barycentre, and no number of steps is enough; "
            "a compiler unrolls the steps, for minutes; batches and second derivatives are those of the debiased one",
            bad=[
                Bad((_A, _COST), {"epsilon": 0.0}, ValueError, "epsilon must be > 0"),
                Bad((_A, _COST[:2]), {"epsilon": 1.0}, ValueError, r"cost must have shape \(..., m, m\)"),
                Bad((_A[0], _COST), {"epsilon": 1.0}, ValueError, r"a must have shape \(..., inputs, 3\), got \(3,\)"),
                Bad((-_A, _COST), {"epsilon": 1.0}, ValueError, "a must be >= 0 and finite"),
                Bad((_A, _COST, torch.ones(3)), {"epsilon": 1.0}, ValueError, r"weights must have shape \(..., 2\)"),
                Bad((_A, _COST, -torch.ones(2)), {"epsilon": 1.0}, ValueError, "weights must be >= 0 and finite"),
                Bad((_A, _COST.double()), {"epsilon": 1.0}, TypeError, "cost and a must have the same dtype"),
                Bad((_A, _COST * _INF), {"epsilon": 1.0}, ValueError, "cost must"),
            ]
            if debiased
            else (),
        )
        for debiased in (True, False)
    ],
    Contract(
        "transport.free_support_barycenter",
        _free,
        lambda g: [Call((_points(g, 2, 3, 2), _masses(g, 2), _points(g, 3, 2)), {"max_iterations": 3})],
        reference=_matched,
        large=(0, 2),
        large_limit=1e2,
        bad=[
            Bad((torch.zeros(3, 2), None, _START), {}, ValueError, r"y must have shape \(..., inputs, points, dim"),
            Bad((_CLOUDS, torch.ones(3), _START), {}, ValueError, r"weights must have shape \(..., 2\)"),
            Bad((_CLOUDS, None, torch.zeros(3, 3)), {}, ValueError, "points of one dimension"),
            Bad((_CLOUDS * _NAN, None, _START), {}, ValueError, "y must be finite"),
            Bad((_CLOUDS, None, _START), {"max_iterations": 0}, ValueError, "max_iterations must be"),
            Bad((_CLOUDS, None, _START), {"a": torch.ones(2, 2)}, ValueError, r"a must have shape \(..., 2, 3\)"),
            Bad((_CLOUDS, None, _START), {"a": -torch.ones(2, 3)}, ValueError, "a must be >= 0 and finite"),
        ],
        why="the derivative along a weight is a square, which overflows in half precision",
    ),
    Contract(
        "transport.partial_transport",
        lambda cost, a, b, **words: transport.partial_transport(cost, a, b, **({"mass": 0.6} | words)),
        lambda g: [
            Call((_points(g, 2, 3, 4), _masses(g, 2, 3), _masses(g, 2, 4))),
            Call((_points(g, 4, 2), 3 * _masses(g, 4), 0.9 * _masses(g, 2)), {"mass": 0.8}),
        ],
        reference=_part,
        outputs=lambda found: found.value,
        scalars={"mass": 0.5},
        gradgradcheck=False,
        why="the plan is constant to autograd, so there is no mixed derivative in a cost and a mass",
        bad=[
            Bad(
                (_COST, None, None),
                {"mass": 1.5},
                ValueError,
                "mass must be > 0 and at most 1, the lesser sum, got 1.5",
            ),
            Bad((_COST, None, None), {"mass": 0.0}, ValueError, "mass must be > 0"),
            Bad((_COST, None, None), {"mass": "all"}, TypeError, "mass must be a number, got str"),
            Bad((_COST, None, None), {"mass": torch.ones(2)}, ValueError, "mass must be a number or a tensor without"),
            Bad((torch.zeros(2, 0), None, None), {}, ValueError, "cost must have at least one row and one column"),
            Bad((_COST, -torch.ones(3), None), {}, ValueError, "a must be >= 0 and finite"),
        ],
    ),
]
