"""Contract of relaxed subsets."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pullback import discrete
from tests.contracts.contract import Bad, Call, Contract, Edges


def _seeded(logits: Tensor, k: Any = 2, **words: Any) -> Tensor:
    return discrete.k_hot_sample(logits, k, generator=torch.Generator().manual_seed(0), **words)


def _perturbed(logits: Tensor) -> Tensor:
    """Two draws of noise from the definition, beside the logits."""
    shape = (*logits.shape[:-1], 2, logits.shape[-1])
    exponential = torch.empty(shape, dtype=torch.float64).exponential_(generator=torch.Generator().manual_seed(0))
    return logits.unsqueeze(-2) - torch.log(exponential)


def _relaxed(logits: Tensor, temperature: float) -> Tensor:
    weights = torch.exp(_perturbed(logits) / temperature)
    weights = weights / weights.sum(-1, keepdim=True)
    return torch.maximum(*weights.unbind(-2))


def _exact(logits: Tensor) -> Tensor:
    chosen = torch.zeros_like(logits)
    for draw in _perturbed(logits).argmax(-1).unbind(-1):
        chosen = chosen.scatter(-1, draw.unsqueeze(-1), 1.0)
    return chosen


def _largest(x: Tensor, dim: int) -> Tensor:
    return torch.zeros_like(x).scatter(dim, x.argmax(dim, keepdim=True), 1.0) if x.numel() else x


CONTRACTS = [
    Contract(
        "discrete.k_hot_sample",
        _seeded,
        lambda g: [Call((torch.randn(3, 4, generator=g, dtype=torch.float64),), {"temperature": 0.7})],
        reference=_relaxed,
        hard=_exact,
        scalars={"temperature": 0.7},
        edges=Edges(
            lambda x: _largest(x, -1),
            empty="logits must have at least one class",
            refuses=(lambda x: bool((x == torch.inf).any()), "logits must have a finite largest"),
        ),
        bad=[
            Bad((torch.arange(3),), {}, TypeError, "logits must be a floating tensor, got torch.int64"),
            Bad((torch.zeros(3),), {"temperature": -1.0}, ValueError, "temperature must be >"),
            Bad((torch.zeros(3),), {"k": 0}, ValueError, "k must be an integer >= 1, got 0"),
            Bad((torch.zeros(3),), {"k": 1.0}, TypeError, "k must be an integer"),
            Bad((torch.full((2,), -torch.inf),), {}, ValueError, "logits must have a finite largest entry"),
            Bad((torch.tensor(0.0),), {}, ValueError, "logits must have at least one dimension"),
        ],
        batched=False,
        vmap=False,
        half=False,
        why="the draws of a batch are not those of its rows; float32 noise is another draw than float64 noise",
    ),
]
