"""Contracts of sampled subsets."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from pullback import discrete
from tests.contracts.contract import Bad, Call, Contract, Edges, Exempt, HigherOrder, Module


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


def _subset(logits: Tensor, k: Any = 2, **words: Any) -> Any:
    return discrete.subset_sample(logits, k, generator=torch.Generator().manual_seed(0), **words)


def _parts(logits: Tensor, k: Any = 2, **words: Any) -> tuple[Tensor, Tensor]:
    subset = _subset(logits, k, **words)
    return subset.rows, subset.mask


def _noisy(logits: Tensor) -> Tensor:
    exponential = torch.empty(logits.shape, dtype=torch.float64).exponential_(
        generator=torch.Generator().manual_seed(0)
    )
    return logits - torch.log(exponential)


def _soft_rows(logits: Tensor, k: Any, method: str, temperature: float, **_: Any) -> tuple[Tensor, Tensor]:
    """One row and one place at a time: what is drawn leaves the race, by parts or as a whole."""
    rows = torch.zeros(*logits.shape[:-1], 2, logits.shape[-1], dtype=torch.float64)
    for number, scores in enumerate(_noisy(logits)):
        left = torch.ones_like(scores)
        for place in range(int(k[number]) if isinstance(k, Tensor) else k):
            weights = left * torch.exp(scores / temperature)
            rows[number, place] = weights / weights.sum()
            if method == "relaxed_topk":
                left = left * (1 - rows[number, place]) ** (1 / temperature)
            else:
                left[torch.where(left > 0, scores, -torch.inf).argmax()] = 0
    return rows, rows.sum(-2)


def _drawn_rows(logits: Tensor, k: Any = 2, **_: Any) -> tuple[Tensor, Tensor]:
    rows = torch.eye(logits.shape[-1], dtype=torch.float64)[_noisy(logits).argsort(-1, descending=True)[..., :2]]
    used = torch.arange(2) < (k[:, None] if isinstance(k, Tensor) else k)
    rows = rows * used[..., None]
    return rows, rows.sum(-2)


def _top_two(x: Tensor) -> Tensor:
    return torch.zeros_like(x).scatter(-1, x.argsort(-1, descending=True)[..., :2], 1.0) if x.numel() else x


def _value(mask: Tensor) -> Tensor:
    w = torch.linspace(-1, 2, mask.shape[-1], dtype=mask.dtype, device=mask.device)
    return torch.cos((mask * w).sum(-1))


def _sum_over_orders(logits: Tensor, k: int) -> Tensor:
    totals = []
    for row in logits.exp().tolist():
        total = 0.0
        for order in itertools.permutations(range(len(row)), k):
            left, p = sum(row), 1.0
            for item in order:
                p, left = p * row[item] / left, left - row[item]
            total += p * float(_value(torch.tensor([float(i in order) for i in range(len(row))]).double()))
        totals.append(total)
    return torch.tensor(totals, dtype=torch.float64)


def _scores_of_draws(logits: Tensor, method: str) -> Tensor:
    """By hand: the derivative of the logarithm of a draw's probability, times what it brought above the others."""
    rows, values = [], []
    for scores in _noisy(logits.expand(3, -1)):
        left, gradient, mask = logits.exp(), torch.zeros_like(logits), torch.zeros_like(logits)
        for item in scores.argsort(descending=True)[:2].tolist():
            gradient = gradient - left / left.sum()
            gradient[item] += 1
            mask[item], left = 1, torch.where(torch.arange(4) == item, 0.0, left)
        rows.append(gradient)
        values.append(float(_value(mask)))
    gains = [values[i] - (sum(values) - values[i]) / 2 for i in range(3)]
    return torch.stack([gain * row for gain, row in zip(gains, rows, strict=True)])


_SEVERAL = torch.tensor([2, 1, 2])
_OF_A_DRAW = "the draws of a batch are not those of its rows; float32 noise is another draw than float64 noise"
_TWO_FUNCTIONS = "value and gradient belong to different functions, by design: tests/discrete/test_subset.py"


def _estimator(method: str, **words: Any) -> Contract:
    return Contract(
        f"discrete.subset_sample[{method}]",
        _parts,
        lambda g: [Call((torch.randn(3, 4, generator=g, dtype=torch.float64),), {"method": method, **words})],
        reference=_drawn_rows,
        gradcheck=False,
        gradgradcheck=False,
        forward_mode=False,
        batched=False,
        vmap=False,
        compile=method not in ("imle", "aimle"),
        half=False,
        why=f"{_OF_A_DRAW}; {_TWO_FUNCTIONS}; the implicit estimators have a backward pass only",
    )


CONTRACTS = [
    Contract(
        "discrete.subset_sample",
        _parts,
        lambda g: [
            Call((torch.randn(3, 4, generator=g, dtype=torch.float64), k), {"method": m, "hard": False, **t})
            for m in ("gumbel_topk", "relaxed_topk")
            for k in (2, _SEVERAL)
            for t in ({"temperature": 0.7},)
        ],
        reference=_soft_rows,
        hard=_drawn_rows,
        scalars={"temperature": 0.7},
        edges=Edges(
            _top_two,
            empty="logits must have at least one class",
            refuses=(lambda x: bool((x == torch.inf).any()), "logits must have a finite largest"),
            outputs=lambda result: (result[1],),
        ),
        bad=[
            Bad((torch.arange(3),), {}, TypeError, "logits must be a floating tensor, got torch.int64"),
            Bad((torch.tensor(0.0),), {}, ValueError, "logits must have at least one dimension"),
            Bad((torch.full((2,), -torch.inf),), {}, ValueError, "logits must have a finite largest entry"),
            Bad((torch.zeros(3), 0), {}, ValueError, r"k must be in 1\.\.3, got 0"),
            Bad((torch.zeros(3), 4), {}, ValueError, r"k must be in 1\.\.3, got 4"),
            Bad((torch.zeros(3), 1.0), {}, TypeError, "k must be an integer"),
            Bad((torch.zeros(3), torch.tensor(1.0)), {}, TypeError, "k must hold integers, got torch.float32"),
            Bad((torch.zeros(2, 3), torch.tensor([1, 4])), {}, ValueError, r"k must be in 1\.\.3, got 1\.\.4"),
            Bad((torch.zeros(2, 3), torch.ones(3).long()), {}, ValueError, r"k must broadcast to \(2,\), got \(3,\)"),
            Bad((torch.tensor([0.0, 1.0, -torch.inf]), 3), {}, ValueError, "k must be at most the number of finite"),
            Bad((torch.zeros(3),), {"noise": -1.0}, ValueError, "noise must be >= 0, got -1.0"),
            Bad((torch.zeros(3),), {"method": "perturbed", "noise": 0.0}, ValueError, "noise must be > 0"),
            Bad((torch.zeros(3),), {"method": "imle", "perturbation": 0.0}, ValueError, "perturbation must be > 0"),
            Bad(
                (torch.zeros(3),),
                {"method": "aimle", "hard": False},
                ValueError,
                "hard must be true for",
            ),
            Bad(
                (torch.zeros(3),),
                {"method": "imle", "perturbation": discrete.AdaptivePerturbation()},
                TypeError,
                "perturbation must be a number for method 'imle'",
            ),
        ],
        batched=False,
        vmap=False,
        half=False,
        why=_OF_A_DRAW,
    ),
    _estimator("straight_through"),
    _estimator("identity"),
    _estimator("imle", perturbation=0.5),
    _estimator("aimle"),
    _estimator("perturbed"),
    HigherOrder(
        "discrete.subset_expectation",
        lambda given, logits, k=2: discrete.subset_expectation(given, logits, k),
        lambda g: [Call((torch.randn(2, 4, generator=g, dtype=torch.float64), k)) for k in (1, 2)],
        given=_value,
        argument="f",
        reference=_sum_over_orders,
        bad=[
            Bad((torch.zeros(3).long(),), {}, TypeError, "scores must be a floating tensor"),
            Bad((torch.zeros(3), 4), {}, ValueError, r"k must be in 1\.\.3, got 4"),
            Bad((torch.zeros(3), 1.0), {}, TypeError, "k must be an integer"),
            Bad((torch.zeros(40), 5), {}, ValueError, "k must leave at most 100000 orders"),
        ],
    ),
    HigherOrder(
        "discrete.subset_gradients",
        lambda given, logits, k=2, samples=3, **words: discrete.subset_gradients(
            given, logits, k, samples, **{"generator": torch.Generator().manual_seed(0), **words}
        ),
        lambda g: [Call((torch.randn(4, generator=g, dtype=torch.float64),), {"method": "score_function"})],
        given=_value,
        argument="f",
        reference=_scores_of_draws,
        bad=[
            Bad((torch.zeros(3).long(),), {}, TypeError, "logits must be a floating tensor"),
            Bad((torch.zeros(3),), {"k": 4}, ValueError, r"k must be in 1\.\.3, got 4"),
            Bad((torch.zeros(3),), {"samples": 0}, ValueError, "samples must be an integer >= 1, got 0"),
            Bad((torch.zeros(3),), {"samples": 1, "method": "score_function"}, ValueError, "samples must be .* >= 2"),
            Bad((torch.zeros(3),), {"method": "sum"}, ValueError, "method must be one of"),
        ],
        gradcheck=False,
        gradgradcheck=False,
        forward_mode=False,
        batched=False,
        vmap=False,
        compile=False,
        half=False,
        large=(),
        why="a measurement: it is not differentiated",
    ),
    Exempt("discrete.AdaptivePerturbation", "a state that a backward pass moves", "discrete/test_subset.py"),
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
    Module(
        "discrete.SubsetMask",
        lambda module, x: x * module(3, generator=torch.Generator().manual_seed(1)).to(x.device),
        lambda g: [Call((torch.randn(4, generator=g, dtype=torch.float64),))],
        build=lambda generator: discrete.SubsetMask(4, 2, temperature=0.7),
        batched=False,
        vmap=False,
        half=False,
        large=(),
        why="one mask for all inputs; noise is not drawn under vmap, other dtypes draw other noise",
    ),
]
