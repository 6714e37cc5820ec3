"""Contracts of transport on a simplex of distributions: Gaussians, whose conditional means have a closed form."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pullback import transport
from tests.contracts.contract import Bad, Call, Contract, Exempt, HigherOrder, Module

_CENTRES = torch.tensor([[0.0, 0.0], [1.0, -1.0], [2.0, 1.0]], dtype=torch.float64)
_SPREAD = torch.tensor([1.0, 0.5, 2.0], dtype=torch.float64)
"""Standard deviations of three round Gaussians."""


def _weights(g: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=g, dtype=torch.float64).softmax(-1)


def _normal(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def _round_means(alpha: Tensor, x: Tensor) -> Tensor:
    """Conditional means of the three."""
    centres, variances = _CENTRES.to(x), _SPREAD.to(x) ** 2
    share = alpha * variances / (alpha.square() * variances).sum(-1, keepdim=True)
    return centres + share.unsqueeze(-1) * (x - alpha @ centres).unsqueeze(-2)


def _straight(t: Tensor) -> Tensor:
    """From the second to the third, by the Gaussian."""
    part = 0.5 * t * (1 - t)
    return torch.stack([2 * part, 1 - t - part, t - part], -1)


def _straight_rate(t: Tensor) -> Tensor:
    part = 0.5 * (1 - 2 * t)
    return torch.stack([2 * part, -1 - part, 1 - part], -1)


def _velocity(x: Tensor, t: float = 0.3) -> Tensor:
    at = torch.tensor(t, dtype=torch.float64)
    return (_straight_rate(at).unsqueeze(-1) * _round_means(_straight(at).expand(*x.shape[:-1], 3), x)).sum(-2)


def _energy(xs: Tensor, t: Tensor) -> Tensor:
    x = (_straight(t).unsqueeze(-1) * xs).sum(-2)
    moves = (_straight_rate(t).unsqueeze(-1) * _round_means(_straight(t), x)).sum(-2)
    return moves.square().sum(-1).mean()


def _carried(x: Tensor) -> Tensor:
    """Between round Gaussians by the affine map that keeps the standardised place."""
    return _CENTRES[2] + (x - _CENTRES[1]) * (_SPREAD[2] / _SPREAD[1])


def _path(path: Any, t: Tensor) -> Tensor:
    weights: Tensor = path(t)
    return weights


def _bent(g: torch.Generator) -> transport.SimplexPath:
    path = transport.SimplexPath(0, 2, 3, modes=2)
    with torch.no_grad():
        path.coefficients.copy_(0.2 + 0.1 * torch.rand(3, 2, generator=g))
    return path


def _bent_weights(t: Tensor) -> Tensor:
    a = _bent(torch.Generator().manual_seed(0)).double().coefficients.detach()
    bend = [a[k, 0] * (torch.pi * t).sin() + a[k, 1] * (2 * torch.pi * t).sin() for k in range(3)]
    raw = torch.stack([1 - t + bend[0] ** 2, bend[1] ** 2, t + bend[2] ** 2], -1)
    return raw / raw.sum(-1, keepdim=True)


_HALF = torch.tensor([0.5, 0.5])
_OFF = [
    Bad((torch.zeros(2, 2), torch.tensor([0.5, 0.6])), {}, ValueError, "alpha must sum to 1, got sums that are off by"),
    Bad((torch.zeros(2, 2), torch.tensor([-0.5, 1.5])), {}, ValueError, "alpha must be >= 0, got -0.5"),
    Bad((torch.zeros(1, 2), torch.tensor([1.0])), {}, ValueError, "with k >= 2, got"),
]
_CALLER = "the model is a function of the caller"

CONTRACTS = [
    Exempt("transport.uniform_simplex", "it draws, from nothing", "transport/test_simplex.py"),
    Contract(
        "transport.barycentric_interpolant",
        transport.barycentric_interpolant,
        lambda g: [Call((_normal(g, 3, 2), _weights(g, 3))), Call((_normal(g, 2, 3, 2), _weights(g, 2, 3)))],
        reference=lambda xs, alpha: torch.einsum("...k,...kd->...d", alpha, xs),
        batched=False,
        gradcheck=False,
        gradgradcheck=False,
        why="the law of batches enlarges the first argument alone; finite differences leave the simplex: see the entry "
        "with fixed weights",
        bad=[*_OFF, Bad((torch.zeros(3, 2), _HALF), {}, ValueError, r"xs must have shape \(\*batch, k, \*event\)")],
    ),
    Contract(
        "transport.barycentric_interpolant[weights]",
        lambda xs, scores: transport.barycentric_interpolant(xs, scores.softmax(-1).expand(xs.shape[:-1])),
        lambda g: [Call((_normal(g, 3, 2), _normal(g, 3)))],
        reference=lambda xs, scores: torch.einsum("k,...kd->...d", scores.softmax(-1), xs),
    ),
    Contract(
        "transport.gaussian_conditional_means",
        lambda x, scores: transport.gaussian_conditional_means(
            _CENTRES.to(x),
            torch.diag_embed((_SPREAD.to(x) ** 2)[:, None].expand(3, 2)),
            scores.softmax(-1).expand(*x.shape[:-1], 3),
            x,
        ),
        lambda g: [Call((_normal(g, 4, 2), _normal(g, 3)))],
        reference=lambda x, scores: _round_means(scores.softmax(-1).expand(*x.shape[:-1], 3), x),
        large_limit=1e4,
        forward_mode=False,
        why="torch's linear solves have wrong derivatives in nested forward modes; the largest numbers overflow",
        bad=[Bad((torch.zeros(2, 3), torch.zeros(3)), {}, ValueError, r"means, covariances and x must have shapes")],
    ),
    HigherOrder(
        "transport.multimarginal_loss",
        lambda given, xs, scores: transport.multimarginal_loss(given, xs, scores.softmax(-1)),
        lambda g: [Call((_normal(g, 4, 3, 2), _normal(g, 4, 3)))],
        given=_round_means,
        argument="model",
        reference=lambda xs, scores: (
            (_round_means(scores.softmax(-1), torch.einsum("bk,bkd->bd", scores.softmax(-1), xs)) - xs)
            .square()
            .sum((-2, -1))
            .mean()
        ),
        large_limit=50.0,
        batched=False,
        compile=False,
        why=f"the mean over a batch is one number, whose squares overflow; {_CALLER}",
    ),
    HigherOrder(
        "transport.simplex_velocity",
        lambda given, x: transport.simplex_velocity(
            given, _straight, torch.tensor(0.3, dtype=x.dtype, device=x.device), x
        ),
        lambda g: [Call((_normal(g, 4, 2),))],
        given=_round_means,
        argument="model",
        reference=_velocity,
        large_limit=1e4,
        forward_mode=False,
        compile=False,
        why=f"torch does not nest forward modes, by which the path is differentiated in time; {_CALLER}",
    ),
    HigherOrder(
        "transport.simplex_score",
        lambda given, x: transport.simplex_score(
            given, torch.tensor([0.5, 0.25, 0.25], dtype=x.dtype, device=x.device).expand(*x.shape[:-1], 3), x
        ),
        lambda g: [Call((_normal(g, 4, 2),))],
        given=_round_means,
        argument="model",
        # Of the normal with mean and variance of the weighted sum.
        reference=lambda x: (
            -(x - x.new_tensor([0.5, 0.25, 0.25]) @ _CENTRES)
            / (x.new_tensor([0.25, 0.0625, 0.0625]) * _SPREAD**2).sum()
        ),
        large_limit=1e4,
        compile=False,
        why=f"the largest numbers overflow in the mean of the caller; {_CALLER}",
        bad=[],
    ),
    Module(
        "transport.SimplexPath",
        _path,
        lambda g: [Call((0.05 + 0.3 * torch.rand(4, generator=g, dtype=torch.float64),))],
        build=_bent,
        reference=_bent_weights,
        large=(),
        why="times are in [0, 1]",
        bad=[Bad((torch.tensor([1.5]),), {}, ValueError, r"t must be in \[0, 1\], got 1.5")],
    ),
    HigherOrder(
        "transport.path_energy",
        lambda given, xs, t: transport.path_energy(given, _straight, xs, t=t),
        lambda g: [Call((_normal(g, 4, 3, 2), 0.1 + 0.8 * torch.rand(4, generator=g, dtype=torch.float64)))],
        given=_round_means,
        argument="model",
        reference=_energy,
        large_limit=50.0,
        batched=False,
        forward_mode=False,
        compile=False,
        why=f"the mean over a batch is one number, whose squares overflow; no nested forward modes; {_CALLER}",
        bad=[Bad((torch.zeros(2), torch.zeros(0)), {}, ValueError, "xs must have shape")],
    ),
    HigherOrder(
        "transport.transport_along",
        lambda given, x: transport.transport_along(given, transport.SimplexPath(1, 2, 3, modes=0).to(x), x, steps=8),
        lambda g: [Call((_normal(g, 2, 2),))],
        given=_round_means,
        argument="model",
        reference=lambda x: (x, _carried(x)),
        tolerance=1e-3,
        outputs=tuple,
        large_limit=1e3,
        forward_mode=False,
        compile=False,
        why=f"dynamics.odeint is not compiled, its steps depend on data; {_CALLER}",
        bad=[
            Bad((torch.zeros(0, 2),), {}, ValueError, "x must hold points of 1 dimensions, at least one"),
        ],
    ),
]
