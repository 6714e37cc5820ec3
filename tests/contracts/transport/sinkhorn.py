"""Contracts of entropic transport: against scipy's minimum of the same objective, and Gibbs' form of a small plan."""

from __future__ import annotations

from functools import partial

import torch
from scipy.optimize import root
from torch import Tensor

from pullback import transport
from pullback.core.errors import ConvergenceError
from tests.contracts.contract import Bad, Call, Contract


def _cost(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def _masses(g: torch.Generator, *shape: int) -> Tensor:
    x = torch.rand(*shape, generator=g, dtype=torch.float64) + 0.1
    return x / x.sum(-1, keepdim=True)


def by_scipy(
    cost: Tensor,
    a: Tensor | None = None,
    b: Tensor | None = None,
    *,
    epsilon: float,
    reach: float | None = None,
    **options: object,
) -> tuple[Tensor, ...]:
    """The roots of both sums, with a general solver."""
    n, m = cost.shape[-2:]
    a = torch.full(cost.shape[:-1], 1 / n, dtype=cost.dtype) if a is None else a
    b = torch.full((*cost.shape[:-2], m), 1 / m, dtype=cost.dtype) if b is None else b
    if cost.ndim > 2:
        each = [by_scipy(*one, epsilon=epsilon, reach=reach) for one in zip(cost, a, b, strict=True)]
        return tuple(torch.stack(parts) for parts in zip(*each, strict=True))

    def plan(z: Tensor) -> Tensor:
        return a[:, None] * b * torch.exp((z[:n, None] + z[n:] - cost) / epsilon)

    def wrong(z: object) -> object:
        z = torch.as_tensor(z)
        p, wanted = plan(z), torch.cat([a, b])
        gap = torch.cat([p.sum(1), p.sum(0)]) - (wanted if reach is None else wanted * (-z / reach).exp())
        if reach is None:
            gap[0] += z[0]  # one potential is free
        return gap.numpy()

    p = plan(torch.as_tensor(root(wrong, torch.zeros(n + m).numpy(), tol=1e-13).x))
    if reach is None:
        return p, (p * cost).sum() + epsilon * (p * (p / (a[:, None] * b)).log()).sum()
    prices = [_divergence(p.sum(1), a), _divergence(p.sum(0), b)]
    return p, (p * cost).sum() + epsilon * _divergence(p, a[:, None] * b) + reach * sum(prices)


def _divergence(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p / q).log() - p + q).sum()


_OUT = {"implicit": lambda t: (t.plan, t.value), "envelope": lambda t: t.value, "unrolled": lambda t: (t.plan, t.value)}
_EPSILON = {"implicit": 4.0, "envelope": 1.0, "unrolled": 100.0}
"""Large where every sweep is differentiated twice, so that few are needed."""
_SWEEPS = {"implicit": 200, "envelope": 200, "unrolled": 6}


def _words(gradient: str) -> dict[str, object]:
    sweeps = {"epsilon": _EPSILON[gradient], "max_iterations": _SWEEPS[gradient]}
    return {"gradient": gradient, "tolerance": 1e-11, **sweeps}


_ERRORS = [
    Bad((torch.zeros(2, 2, dtype=torch.int64),), {"epsilon": 1.0}, TypeError, "cost must be a floating tensor"),
    Bad((torch.zeros(2, 2),), {"epsilon": 0.0}, ValueError, "epsilon must be > 0, got 0.0"),
    Bad((torch.full((2, 2), torch.nan),), {"epsilon": 1.0}, ValueError, "cost must not be NaN"),
    Bad((torch.zeros(2, 0),), {"epsilon": 1.0}, ValueError, "cost must have at least one row and one column"),
    Bad((torch.zeros(2, 2), -torch.ones(2)), {"epsilon": 1.0}, ValueError, "a must be >= 0 and finite, got -1.0"),
    Bad((torch.zeros(2, 2), torch.ones(2), 2 * torch.ones(2)), {"epsilon": 1.0}, ValueError, "a and b must have equal"),
    Bad((torch.zeros(2, 2),), {"epsilon": 1.0, "tolerance": 0.0}, ValueError, "tolerance must be > 0"),
    Bad((torch.zeros(2, 2),), {"epsilon": 1.0, "gradient": "none"}, ValueError, "gradient must be one of 'implicit'"),
    Bad((torch.zeros(2, 2),), {"epsilon": 1.0, "max_iterations": -1}, ValueError, "max_iterations must be"),
    Bad(
        (torch.tensor([[0.0, 1e4], [1e4, 1.0]]), torch.tensor([0.9, 0.1]), torch.tensor([0.1, 0.9])),
        {"epsilon": 1.0, "max_iterations": 3},
        ConvergenceError,
        "sinkhorn: 1 of 1 problems have a residual above",
    ),
]

CONTRACTS = [
    *[
        Contract(
            f"transport.sinkhorn[{gradient}]",
            partial(transport.sinkhorn, check=True),
            lambda g, gradient=gradient: [
                Call((_cost(g, 2, 2, 2), _masses(g, 2, 2), _masses(g, 2, 2)), _words(gradient)),
                Call((_cost(g, 2, 3),), _words(gradient)),
            ],
            reference=by_scipy if gradient != "envelope" else lambda *args, **words: by_scipy(*args, **words)[1],
            tolerance=1e-7,
            outputs=_OUT[gradient],
            scalars={"epsilon": 50.0},
            bad=_ERRORS if gradient == "implicit" else (),
            gradgradcheck=gradient != "envelope",
            large=(0,),
            large_limit=10.0 if gradient == "unrolled" else 1e4,
            why="envelope: of first order, as documented; beyond 1e4 epsilons no number of sweeps is enough",
        )
        for gradient in ("implicit", "envelope", "unrolled")
    ],
    Contract(
        "transport.sinkhorn[reach]",
        partial(transport.sinkhorn, check=True),
        lambda g: [
            Call((_cost(g, 2, 2, 2), _masses(g, 2, 2), 2 * _masses(g, 2, 2)), _words("implicit") | {"reach": 3.0}),
            Call((_cost(g, 2, 3),), _words("implicit") | {"reach": 0.5}),
        ],
        reference=by_scipy,
        tolerance=1e-7,
        outputs=lambda t: (t.plan, t.value),
        scalars={"epsilon": 50.0, "reach": 2.0},
        large=(0,),
        large_limit=1e2,
        why="where costs are far beyond the reach nothing is shipped, and the residual of nothing is not a number",
        bad=[Bad((torch.zeros(2, 2),), {"epsilon": 1.0, "reach": -1.0}, ValueError, "reach must be > 0, got -1.0")],
    ),
    Contract(
        "transport.sinkhorn[relative, from a start]",
        lambda cost, start, **words: transport.sinkhorn(cost, start=start, **words),
        lambda g: [Call((_cost(g, 2, 2, 3), _cost(g, 3)), {"relative_epsilon": 4.0, "tolerance": 1e-11})],
        reference=lambda cost, start, relative_epsilon, tolerance: tuple(
            torch.stack(parts)
            for parts in zip(
                *(by_scipy(c, epsilon=relative_epsilon * float(c.abs().mean())) for c in cost), strict=True
            )
        ),
        tolerance=1e-7,
        outputs=lambda t: (t.plan, t.value),
        scalars={"relative_epsilon": 3.0},
        gradcheck=False,
        gradgradcheck=False,
        forward_mode=False,
        why="the mean of the costs is constant in derivatives, and no start changes a solution",
        bad=[
            Bad((torch.zeros(2, 2), torch.zeros(2)), {}, ValueError, "epsilon or relative_epsilon must be given"),
            Bad((torch.zeros(2, 2), torch.zeros(3)), {"epsilon": 1.0}, ValueError, r"start must have shape \(..., 2\)"),
        ],
    ),
]
