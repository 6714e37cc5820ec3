"""Contracts of rationales: the tokens by which a model decides."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from sklearn.metrics import average_precision_score
from torch import Tensor, nn

from pullback import discrete
from tests.contracts.contract import Bad, Call, Contract, Edges, Exempt, HigherOrder, Measurement, Module

_PRESENT = torch.tensor([[True, True, True, True], [True, True, True, False]])
_HIGHLIGHTS = torch.tensor([[True, False, True, False], [False] * 4])
_RELEVANT = torch.tensor([[True, False, True, False], [False, False, True, False]])
_ZEROS = torch.zeros(2, 4)


def _pair(generator: torch.Generator) -> list[Call]:
    """Losses >= 0 of samples with all tokens, and of other readings of them."""
    full, other = (torch.rand(2, 3, generator=generator).double() for _ in range(2))
    return [Call((full, 2 * other), {"margin": 0.25}), Call((full, 2 * other))]


def _hinge_entry(name: str, block: Callable[..., Tensor], sign: int, margin: float, other: str) -> Contract:
    return Contract(
        f"discrete.{name}",
        block,
        _pair,
        reference=lambda full, rest, margin=margin: torch.clamp(sign * (full - rest) + margin, min=0),
        large=(0, 1),
        edges=Edges(
            lambda x: torch.clamp(sign * (x - 1) + margin, min=0),
            lambda x: (x, torch.ones_like(x)),
        ),
        bad=[
            Bad((torch.arange(3), torch.zeros(3)), {}, TypeError, "full must be a floating tensor"),
            Bad((torch.zeros(3), torch.arange(3)), {}, TypeError, f"{other} must be a floating tensor"),
            Bad((torch.zeros(3), torch.zeros(3).double()), {}, TypeError, "must have the same dtype|one dtype"),
            Bad((torch.zeros(3), torch.zeros(2)), {}, ValueError, "broadcast"),
            Bad((torch.zeros(3), torch.zeros(3)), {"margin": -1.0}, ValueError, "margin must be >= 0, got -1.0"),
        ],
    )


def _plausibility(scores: Tensor, highlights: Tensor = _HIGHLIGHTS, present: Tensor = _PRESENT) -> Tensor:
    device = scores.device if isinstance(scores, Tensor) else "cpu"
    return discrete.plausibility_loss(scores, highlights.to(device), present.to(device))


def _precision(scores: Tensor, relevant: Tensor | None = None, present: Tensor = _PRESENT) -> Tensor:
    device = scores.device if isinstance(scores, Tensor) else "cpu"
    relevant = _RELEVANT if relevant is None else relevant
    return discrete.average_precision(scores, relevant.to(device), present.to(device))


def _token_by_token(scores: Tensor) -> Tensor:
    rows = scores[0].tolist()
    terms = [math.log1p(math.exp(-rows[i])) if i in (0, 2) else math.log1p(math.exp(rows[i])) for i in range(4)]
    return scores.new_tensor(sum(terms) / 4)


def _probability(weights: Tensor) -> Tensor:
    w = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=weights.dtype, device=weights.device)
    return torch.sigmoid((weights * w).sum(-1))


def _measure(block: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def call(given: Any, scores: Tensor, present: Tensor = _PRESENT, **words: Any) -> Tensor:
        present = present.to(scores.device) if isinstance(scores, Tensor) else present
        return block(given, scores, present, **{"percents": (25, 50), **words})

    return call


def _area(removed: bool) -> Callable[..., Tensor]:
    def area(scores: Tensor) -> Tensor:
        found = []
        for row, present in zip(scores.tolist(), _PRESENT.tolist(), strict=True):
            tokens = [i for i in range(4) if present[i]]
            best = sorted(tokens, key=lambda i: -row[i])
            full = _of(tokens)
            sizes = [max(1, round(p * len(tokens))) for p in (0.25, 0.5)]
            found.append(sum(full - _of(best[size:] if removed else best[:size]) for size in sizes) / 3)
        return torch.tensor(found, dtype=torch.float64)

    return area


def _of(tokens: list[int]) -> float:
    return float(_probability(torch.tensor([float(i in tokens) for i in range(4)], dtype=torch.float64)))


def _measure_entry(name: str, block: Callable[..., Tensor], removed: bool) -> HigherOrder:
    return HigherOrder(
        f"discrete.{name}",
        _measure(block),
        lambda g: [Call((torch.randn(2, 4, generator=g, dtype=torch.float64),))],
        given=_probability,
        argument="probability",
        reference=_area(removed),
        bad=[
            Bad((torch.zeros(2, 4).long(),), {}, TypeError, "scores must be a floating tensor"),
            Bad((torch.zeros(2, 3),), {}, ValueError, r"present must have shape \(2, 3\), got \(2, 4\)"),
            Bad((_ZEROS,), {"percents": ()}, ValueError, "percents must not be empty"),
            Bad((_ZEROS,), {"percents": (101,)}, ValueError, r"percent must be in \[0.*, 100.*\], got 101"),
            Bad((_ZEROS,), {"percents": (0,)}, ValueError, "percent must be > 0, got 0"),
            Bad((_ZEROS, _PRESENT & False), {}, ValueError, "present must have at least one token in each sample"),
            Bad((_ZEROS, _PRESENT.long()), {}, TypeError, "present must hold booleans, got torch.int64"),
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
    )


class _Reader(nn.Module):
    """The weighted mean of embedded tokens, or a number for each."""

    def __init__(self, generator: torch.Generator, out: int, *, pooled: bool) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.randn(4, out, generator=generator))
        self.pooled = pooled

    def forward(self, tokens: Tensor, weights: Tensor) -> Tensor:
        rows = torch.tanh(self.rows[tokens] * weights.to(self.rows.dtype).unsqueeze(-1))
        return rows.sum(-2) if self.pooled else rows.squeeze(-1)


class _Scored(nn.Module):
    """An extractor whose scores are the input of the law."""

    def forward(self, tokens: Tensor, weights: Tensor) -> Tensor:
        return self.given  # type: ignore[no-any-return]


def _model(generator: torch.Generator) -> nn.Module:
    def select(scores: Tensor, k: Tensor) -> discrete.Subset:
        # no noise, so that the law sees one function
        return discrete.subset_sample(scores, k, method="gumbel_topk", noise=0.0, hard=False)

    return discrete.RationaleModel(_Reader(generator, 2, pooled=True), _Scored(), select)


_TOKENS = torch.tensor([[0, 1, 2, 3], [3, 1, 0, 0]])


def _read(module: Any, scores: Tensor) -> tuple[Tensor, ...]:
    module.extractor.given = scores
    found = module(_TOKENS.to(scores.device), _PRESENT.to(scores.device), percents=(25, 50))
    return found.full, found.removed, found.kept


def _read_by_hand(scores: Tensor) -> tuple[Tensor, ...]:
    rows = _model(torch.Generator().manual_seed(0)).double().state_dict()["task.rows"]
    soft = torch.zeros(2, 2, 4, dtype=torch.float64)
    for sample in range(2):
        left = _PRESENT[sample].double()
        for place in range(2):
            weights = left * scores[sample].exp()
            soft[sample, place] = weights / weights.sum()
            left = left * (torch.arange(4) != (weights * left).argmax())
    one, two = soft[:, 0], soft.sum(1)
    sizes = [[1, 1], [2, 2]]  # 25 and 50 % of 4 tokens and of 3
    masks = torch.stack([torch.stack([(one, two)[k - 1][i] for i, k in enumerate(ks)]) for ks in sizes])
    present = _PRESENT.double()

    def task(weights: Tensor) -> Tensor:
        return torch.tanh(rows[_TOKENS] * weights[..., None]).sum(-2)

    return task(present), task(present - masks), task(masks)


def _gains(values: Tensor) -> Tensor:
    """Of three metrics, the second reversed."""
    columns = []
    for number, column in enumerate(values.T.tolist()):
        low, high = min(column), max(column)
        columns.append([(high - v if number == 1 else v - low) / (high - low) for v in column])
    return torch.tensor(columns, dtype=torch.float64).T


CONTRACTS = [
    _hinge_entry("comprehensiveness_loss", discrete.comprehensiveness_loss, 1, 1.0, "removed"),
    _hinge_entry("sufficiency_loss", discrete.sufficiency_loss, -1, 0.1, "kept"),
    Contract(
        "discrete.plausibility_loss",
        _plausibility,
        lambda g: [Call((torch.randn(2, 4, generator=g, dtype=torch.float64),))],
        reference=_token_by_token,
        edges=Edges(
            torch.sum,
            lambda x: (torch.cat([x.flatten(), x.new_zeros(2)]),),
            lambda x: {
                "highlights": torch.arange(x.numel() + 2, device=x.device) == x.numel(),
                "present": torch.ones(x.numel() + 2, dtype=torch.bool, device=x.device),
            },
        ),
        infinite=True,
        batched=False,
        vmap=False,
        large_limit=1e8,
        bad=[
            Bad((torch.zeros(2, 4).long(),), {}, TypeError, "scores must be a floating tensor"),
            Bad((torch.zeros(2, 3),), {}, ValueError, r"present must have shape \(2, 3\), got \(2, 4\)"),
            Bad((_ZEROS, _HIGHLIGHTS[:1]), {}, ValueError, r"highlights must have shape \(2, 4\), got \(1, 4\)"),
            Bad((_ZEROS, _HIGHLIGHTS.long()), {}, TypeError, "highlights must hold booleans, got torch.int64"),
            Bad((_ZEROS, ~_PRESENT), {}, ValueError, "highlights must be where tokens are present"),
            Bad((_ZEROS, _HIGHLIGHTS, _PRESENT & False), {}, ValueError, "present must have at least one token"),
        ],
        why="highlights have no batch in front; losses grow as the scores do",
    ),
    _measure_entry("comprehensiveness", discrete.comprehensiveness, removed=True),
    _measure_entry("sufficiency", discrete.sufficiency, removed=False),
    Measurement(
        "discrete.average_precision",
        _precision,
        lambda g: [Call((torch.randint(5, (2, 4), generator=g).double(),))],
        reference=lambda scores: torch.tensor(
            [
                average_precision_score(r[p].numpy(), s[p].numpy())
                for r, s, p in zip(_RELEVANT, scores, _PRESENT, strict=True)
            ],
            dtype=torch.float64,
        ),
        bad=[
            Bad((_ZEROS.long(),), {}, TypeError, "scores must be a floating tensor"),
            Bad((_ZEROS, _RELEVANT.long()), {}, TypeError, "relevant must hold booleans, got torch.int64"),
            Bad((_ZEROS, ~_PRESENT), {}, ValueError, "relevant must be where tokens are present"),
            Bad((_ZEROS[:1],), {}, ValueError, r"present must have shape \(1, 4\), got \(2, 4\)"),
        ],
        edges=Edges(
            torch.sum,
            lambda x: (torch.cat([x.flatten(), x.new_zeros(2)]),),
            lambda x: {
                "relevant": torch.arange(x.numel() + 2, device=x.device) == x.numel(),
                "present": torch.ones(x.numel() + 2, dtype=torch.bool, device=x.device),
            },
        ),
    ),
    Exempt("discrete.rationale_losses", "takes a result", "discrete/test_rationales.py"),
    Exempt("discrete.rationale_metrics", "gives Python numbers", "discrete/test_rationales.py"),
    Exempt("discrete.rationale_size", "takes booleans to integers", "discrete/test_rationales.py"),
    Contract(
        "discrete.normalized_relative_gain",
        lambda values, reverse=(1,): discrete.normalized_relative_gain(values, reverse),
        lambda g: [Call((torch.randn(4, 3, generator=g, dtype=torch.float64),))],
        reference=_gains,
        tolerance=1e-6,
        edges=Edges(
            lambda x: torch.zeros(x.numel() + 1, 2),
            lambda x: (torch.cat([x.flatten(), x.new_zeros(1)]).unsqueeze(-1).expand(-1, 2),),
            nan=lambda x, options: bool(x.isinf().any()),
        ),
        batched=False,
        vmap=False,
        large_limit=1e8,
        bad=[
            Bad((torch.zeros(3),), {}, ValueError, r"values must be \[methods, metrics\] .*, got \(3,\)"),
            Bad((torch.zeros(3, 2).long(),), {}, TypeError, "values must be a floating tensor"),
            Bad((torch.zeros(3, 2), (2,)), {}, ValueError, r"reverse must name metrics in 0\.\.1, got \[2\]"),
        ],
        why="a table: no batch in front; the range of the largest numbers overflows",
    ),
    Module(
        "discrete.RationaleModel",
        _read,
        lambda g: [Call((torch.randn(2, 4, generator=g, dtype=torch.float64),))],
        reference=_read_by_hand,
        build=_model,
        batched=False,
        vmap=False,
        bad=[Bad((torch.zeros(2, 3),), {}, ValueError, r"extractor must return scores \(2, 4\), got \(2, 3\)")],
        why="tokens are those of a batch of two",
    ),
]
