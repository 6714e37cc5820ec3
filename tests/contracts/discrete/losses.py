"""Contracts of Fenchel-Young losses."""

from __future__ import annotations

import torch
from scipy.optimize import minimize
from torch import Tensor

from pullback import discrete
from tests.contracts.contract import Bad, Call, Contract, Edges

_Y = torch.tensor([[0.2, 0.8, 0.0], [0.0, 0.3, 0.7]], dtype=torch.float64)
_X = torch.zeros(2, 3)
_CLASSES = torch.tensor([2, 0])


def _omega(p: Tensor, alpha: float) -> Tensor:
    if alpha == 1:
        return torch.special.xlogy(p, p).sum(-1)
    return ((p**alpha).sum(-1) - 1) / (alpha * (alpha - 1))


def _by_definition(x: Tensor, alpha: float) -> Tensor:
    """The conjugate by a general solver over the simplex."""
    losses = []
    for row, y in zip(x, _Y, strict=True):
        found = minimize(
            lambda p, row=row: float(_omega(torch.from_numpy(p).clamp(min=0), alpha) - torch.from_numpy(p) @ row),
            [1 / 3] * 3,
            bounds=[(1e-12, 1)] * 3,
            constraints={"type": "eq", "fun": lambda p: p.sum() - 1},
            options={"ftol": 1e-14, "maxiter": 500},
        )
        losses.append(-found.fun + _omega(y, alpha) - row @ y)
    return torch.stack(losses)


def _beside(target: Tensor, scores: Tensor) -> Tensor:
    return target.to(scores.device) if isinstance(scores, Tensor) else target


CONTRACTS = [
    Contract(
        f"discrete.entmax_loss[{alpha}]",
        lambda x, target=_Y, **options: discrete.entmax_loss(x, _beside(target, x), **options),
        lambda g, alpha=alpha: [Call((torch.randn(2, 3, generator=g, dtype=torch.float64),), {"alpha": alpha})],
        reference=_by_definition,
        tolerance=1e-5,
        edges=Edges(
            torch.sum,
            lambda x: (torch.cat([x.flatten(), x.new_zeros(1)]), torch.zeros((), dtype=torch.int64, device=x.device)),
            nan=lambda x, options: bool((x == torch.inf).any()),
        )
        if alpha == 1.5
        else None,
        large_limit=1e8,
        batched=False,
        vmap=False,
        why="the target has no batch in front; losses grow as the scores do",
        bad=[
            Bad((_X.long(),), {}, TypeError, "scores must be a floating tensor, got torch.int64"),
            Bad((_X, _CLASSES + 1), {}, ValueError, "target must be in 0..2, got 1 to 3"),
            Bad((_X, _CLASSES[:1]), {}, ValueError, r"target must have shape \(2,\) .* got \(1,\)"),
            Bad((_X, _X), {}, ValueError, "target must be distributions: >= 0, with sum 1"),
            Bad((_X, _CLASSES > 1), {}, TypeError, "target must be classes or distributions, got torch.bool"),
            Bad((_X[:, :0], _CLASSES), {}, ValueError, "scores must have at least one class"),
            Bad((_X, _CLASSES), {"dim": 2}, IndexError, "dim must be in"),
            Bad((_X, _CLASSES), {"alpha": 0.0}, ValueError, "alpha must be a finite number > 0"),
            Bad((_X, _CLASSES), {"alpha": None}, TypeError, "alpha must be a number, got NoneType"),
        ]
        if alpha == 1.5
        else (),
    )
    for alpha in (0.7, 1.5)
]
