"""Contracts of ``pullback.causal``: the differentiable blocks."""

from __future__ import annotations

import torch
from torch import Tensor

from pullback import causal
from tests.contracts.contract import Bad, Call, Contract


def _matrix(generator: torch.Generator, *, scale: float = 0.4) -> list[Call]:
    weights = scale * torch.randn(4, 4, generator=generator, dtype=torch.float64)
    return [Call((weights,)), Call((0.5 * weights,))]


def _covariance(generator: torch.Generator) -> Tensor:
    root = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    return root @ root.mT + torch.eye(4, dtype=torch.float64)


def _by_eigenvalues(function: object) -> object:
    def reference(weights: Tensor) -> Tensor:
        return function(torch.linalg.eigvals(weights * weights)).real  # type: ignore[operator]

    return reference


def _regressions(covariance: Tensor) -> Tensor:
    """Each node regressed on all others, one ridge system a node."""
    weights = torch.zeros_like(covariance)
    for node in range(4):
        others = [i for i in range(4) if i != node]
        system = covariance[others][:, others] + 0.1 * torch.eye(3, dtype=covariance.dtype)
        weights[others, node] = torch.linalg.solve(system, covariance[others, node])
    return weights


_NOT_SQUARE = Bad((torch.zeros(2, 3),), {}, ValueError, "weights must have shape")
_BAD_WEIGHTS = [
    _NOT_SQUARE,
    Bad((torch.zeros(2, 2),), {"method": "logdt"}, ValueError, "did you mean 'logdet'"),
    Bad((torch.zeros(2, 2),), {"scale": 0.0}, ValueError, "scale must be > 0"),
    Bad((torch.zeros(2, 2, dtype=torch.int64),), {}, TypeError, "weights must be a floating tensor"),
]
_LAPACK = "torch has no half-precision factorisation on the CPU"


def _method(name: str) -> object:
    return lambda weights, **kwargs: causal.acyclicity(weights, **{"method": name, **kwargs})


CONTRACTS = [
    Contract(
        "causal.acyclicity[logdet]",
        _method("logdet"),
        lambda g: _matrix(g, scale=0.25),
        reference=_by_eigenvalues(lambda e: -torch.log(1 - e).sum()),
        bad=_BAD_WEIGHTS,
        half=False,
        why=_LAPACK,
    ),
    Contract(
        "causal.acyclicity[exponential]",
        _method("exponential"),
        _matrix,
        reference=_by_eigenvalues(lambda e: e.exp().sum() - 4),
        half=False,
        why=_LAPACK,
    ),
    Contract(
        "causal.acyclicity[polynomial]",
        _method("polynomial"),
        _matrix,
        reference=_by_eigenvalues(lambda e: ((1 + e / 4) ** 4).sum() - 4),
    ),
    Contract(
        "causal.acyclicity[spectral]",
        _method("spectral"),
        _matrix,
        reference=_by_eigenvalues(lambda e: e.abs().max() + 0j),
        gradgradcheck=False,
        why="the Perron vectors are constants of the gradient: first order only, as documented",
    ),
    Contract(
        "causal.orientation",
        lambda p, **kwargs: causal.orientation(p, **{"temperature": 0.5, "shift": 0.1, **kwargs}),
        lambda g: [Call((torch.randn(4, generator=g, dtype=torch.float64),))],
        reference=lambda p: torch.sigmoid((p[None, :] - p[:, None] - 0.1) / 0.5).fill_diagonal_(0),
        hard=lambda p: ((p[None, :] - p[:, None]) > 0.1).double(),
        bad=[
            Bad((torch.zeros(3),), {"temperature": 0.0}, ValueError, "temperature must be > 0"),
            Bad((torch.zeros(3),), {"shift": -1.0}, ValueError, "shift must be > 0"),
            Bad((torch.zeros(3, dtype=torch.int64),), {}, TypeError, "priority must be a floating tensor"),
        ],
    ),
    Contract(
        "causal.least_squares_score",
        lambda w, c: causal.least_squares_score(w, c),
        lambda g: [Call((torch.randn(4, 4, generator=g, dtype=torch.float64), _covariance(g)))],
        reference=lambda w, c: torch.trace((torch.eye(4) - w).T @ c @ (torch.eye(4) - w)) / 4,
        half_tolerance=6e-2,
    ),
    Contract(
        "causal.ridge_weights",
        lambda c, **kwargs: causal.ridge_weights(c, **{"penalty": 0.1, **kwargs}),
        lambda g: [Call((_covariance(g),))],
        reference=_regressions,
        bad=[Bad((torch.eye(2),), {"penalty": 0.0}, ValueError, "penalty must be > 0")],
        half=False,
        why=_LAPACK,
    ),
    Contract(
        "causal.score_order",
        lambda c: causal.score_order(c, torch.tensor([2, 0, 3, 1])),
        lambda g: [Call((_covariance(g),))],
        reference=lambda c: causal.least_squares_score(
            causal.fit_order(c, torch.tensor([2, 0, 3, 1]), covariance=True), c
        ),
        bad=[Bad((torch.zeros(4, 4),), {}, ValueError, "covariance is singular")],
        gradcheck=False,
        gradgradcheck=False,
        forward_mode=False,
        vmap=False,
        compile=False,
        half=False,
        why="a search score: its checks read values, and it is symmetric only on symmetric matrices",
    ),
]
