"""Contracts of perturbed optimisers and of ensembles that choose their members."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pullback import implicit
from tests.contracts.contract import Bad, Call, Contract, Exempt, HigherOrder

_SCORES = torch.tensor([0.0, 2.0, 1.0])
_MONTE_CARLO: dict[str, Any] = {
    "batched": False,
    "gradcheck": False,
    "gradgradcheck": False,
    "forward_mode": False,
    "vmap": False,
    "compile": False,
    "why": "the gradient is that of the mean over all noise, not of the draws: tests/implicit/test_model_selection.py; "
    "a batch has other draws than its rows",
}


def _rows(generator: torch.Generator) -> list[Call]:
    return [Call((2 * torch.randn(3, 4, generator=generator, dtype=torch.float64),))]


def _one_hot(scores: Tensor) -> Tensor:
    return torch.zeros_like(scores).scatter(-1, scores.argmax(-1, keepdim=True), 1.0)


def _two(scores: Tensor) -> Tensor:
    """Try every pair."""
    n = scores.shape[-1]
    masks = torch.tensor([[float(i in (a, b)) for i in range(n)] for a in range(n) for b in range(a)])
    masks = masks.to(scores.dtype)
    return masks[(scores @ masks.T).argmax(-1)]


def _perturbed(solver: Any, scores: Tensor, temperature: Any = 1e-9, **options: Any) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    options = {"samples": 3, "generator": generator, **options}
    return implicit.perturbed_argmax(solver, scores, temperature=temperature, **options)


def _layer(scores: Tensor, k: int = 2, temperature: Any = 1e-9, **options: Any) -> Tensor:
    options = {"samples": 3, "generator": torch.Generator().manual_seed(0), **options}
    return implicit.knapsack_layer(scores, k, temperature=temperature, **options)


def _votes(logits: Tensor, weights: Tensor) -> Tensor:
    total = torch.zeros(*logits.shape[:-2], logits.shape[-1], dtype=logits.dtype)
    for i in range(logits.shape[-2]):
        for row in range(len(logits)):
            total[row, logits[row, i].argmax()] += weights[i] / weights.sum()
    return total


def _answers(generator: torch.Generator) -> list[Call]:
    weights = torch.rand(3, generator=generator, dtype=torch.float64) + 0.1
    return [Call((torch.randn(2, 3, 4, generator=generator, dtype=torch.float64), weights))]


_BAD_VOTES = [
    Bad((torch.zeros(3),), {}, ValueError, r"logits must be \[\*, members, classes\]"),
    Bad((torch.zeros(2, 3).long(),), {}, TypeError, "logits must be a floating tensor"),
    Bad((torch.zeros(2, 3), torch.ones(3)), {}, ValueError, r"weights must be \(2,\) or \(2,\), got \(3,\)"),
]
_BAD_NOISE = [
    Bad((_SCORES,), {"temperature": -1.0}, ValueError, "temperature must be >= 0"),
    Bad((_SCORES,), {"samples": 0}, ValueError, "samples must be an integer >= 1"),
    Bad((_SCORES,), {"noise": "uniform"}, ValueError, "noise must be one of 'normal', 'gumbel'"),
    Bad((_SCORES / 0,), {}, ValueError, "scores must be finite"),
    Bad((torch.tensor(1.0),), {}, ValueError, "scores must have a last dimension"),
    Bad((_SCORES.long(),), {}, TypeError, "scores must be a floating tensor"),
]

CONTRACTS = [
    HigherOrder(
        "implicit.perturbed_argmax",
        _perturbed,
        _rows,
        given=_one_hot,
        argument="solver",
        reference=_one_hot,
        hard=_one_hot,
        bad=_BAD_NOISE,
        **_MONTE_CARLO,
    ),
    Contract(
        "implicit.knapsack_layer",
        _layer,
        _rows,
        reference=_two,
        hard=_two,
        bad=[
            *_BAD_NOISE,
            Bad((_SCORES, 4), {}, ValueError, "k must be in 1..3, got 4"),
            Bad((_SCORES, 1.0), {}, TypeError, "k must be an integer"),
        ],
        **_MONTE_CARLO,
    ),
    Exempt(
        "implicit.SelectiveEnsemble",
        "it hands its input to modules of the user, whose errors are theirs",
        "implicit/test_model_selection.py",
    ),
    Contract(
        "implicit.majority_vote",
        lambda logits, *weights: implicit.majority_vote(logits, *weights),
        _answers,
        reference=_votes,
        bad=_BAD_VOTES,
    ),
    Contract(
        "implicit.average_vote",
        lambda logits, *weights: implicit.average_vote(logits, *weights),
        _answers,
        reference=lambda logits, weights: torch.einsum("bnc,n->bc", logits.softmax(-1), weights / weights.sum()),
        bad=_BAD_VOTES,
    ),
]
