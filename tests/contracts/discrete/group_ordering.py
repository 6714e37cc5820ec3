"""Contracts of losses between two groups of scores."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pullback import discrete
from tests.contracts.contract import Bad, Call, Contract, Edges, Exempt

_SLOPE = {"steepness": 1.5}


def _cauchy(x: Tensor) -> Tensor:
    return torch.arctan(math.pi * x) / math.pi + 0.5


def _items(generator: torch.Generator) -> list[Call]:
    return [Call((torch.randn(*shape, generator=generator).double(), 2)) for shape in ((4,), (2, 3))]


def _groups(generator: torch.Generator) -> list[Call]:
    shapes = (((2,), (3,)), ((2, 1), (2, 2)))
    return [Call(tuple(torch.randn(*s, generator=generator).double() for s in pair)) for pair in shapes]


def _mass(x: Tensor, group: int) -> Tensor:
    """Sum the rows of the whole matrix that belong to the group, each layer a matrix."""
    rows = []
    for row in x.reshape(-1, x.shape[-1]):
        n = len(row)
        product = torch.eye(n, dtype=x.dtype)
        for layer in discrete.comparators(n, "odd_even"):
            mixing = torch.eye(n, dtype=x.dtype)
            for i, j in layer.T.tolist():
                w = _cauchy(1.5 * (row[j] - row[i]))
                mixing[i, i], mixing[i, j], mixing[j, i], mixing[j, j] = w, 1 - w, 1 - w, w
            product, row = mixing @ product, mixing @ row
        rows.append(product[n - group :].sum(0))
    return torch.stack(rows).view(x.shape)


def _ordering(positives: Tensor, negatives: Tensor) -> Tensor:
    ordered = torch.cat([negatives.sort(-1).values, positives.sort(-1).values], -1)
    mass = _mass(ordered, positives.shape[-1])
    belongs = (torch.arange(mass.shape[-1]) >= negatives.shape[-1]).to(mass).expand_as(mass)
    return torch.nn.functional.binary_cross_entropy(mass, belongs)


def _info_nce(positives: Tensor, negatives: Tensor) -> Tensor:
    losses = []
    for s in positives.unbind(-1):
        logits = torch.cat([s[..., None], negatives], -1) / 0.5
        losses.append(torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), _first(s)))
    return torch.stack(losses).mean()


def _first(s: Tensor) -> Tensor:
    return torch.zeros(s.numel(), dtype=torch.int64)


def _triplets(mining: str) -> Any:
    def reference(positives: Tensor, negatives: Tensor) -> Tensor:
        means = []
        for s, n in zip(
            positives.reshape(-1, positives.shape[-1]), negatives.reshape(-1, negatives.shape[-1]), strict=True
        ):
            pairs = torch.stack([(0.7 + near - far).clamp(min=0) for near in n for far in s])
            means.append(pairs.max() if mining == "hard" else pairs.mean())
        return torch.stack(means).mean()

    return reference


def _bad(options: dict[str, Any], *own: Bad) -> list[Bad]:
    x = torch.zeros(2, 3)
    return [
        Bad((x[:, :0], x), options, ValueError, r"positives must have entries .*, got shape \(2, 0\)"),
        Bad((x, x[:, :0]), options, ValueError, "negatives must have entries along their last dimension"),
        Bad((x, x[0]), options, ValueError, "positives and negatives must agree in all but the last dimension"),
        Bad((x, x.double()), options, TypeError, "positives and negatives"),
        Bad((x, x.long()), options, TypeError, "negatives must be a floating tensor"),
        Bad((x, x), {**options, "reduction": "men"}, ValueError, "did you mean 'mean'"),
        *own,
    ]


def _similarities(features: Tensor) -> tuple[Tensor, Tensor]:
    """One pair at a time."""
    views, n = features.shape[:2]

    def cosine(a: tuple[int, int], b: tuple[int, int]) -> Tensor:
        x, y = features[a], features[b]
        return x @ y / (x.norm() * y.norm())

    anchors = [(v, i) for v in range(views) for i in range(n)]
    positives = [cosine(a, b) for a in anchors for b in anchors if a[1] == b[1] and a != b]
    negatives = [cosine(a, b) for a in anchors for b in anchors if a[1] != b[1]]
    return torch.stack(positives).view(views, n, -1), torch.stack(negatives).view(views, n, -1)


_MEAN = "a mean over the batch"
_X = torch.zeros(2, 3)
# Of the negatives of two views of four samples, those of the anchor's view.
_SAME = (torch.arange(6) // 3 == torch.arange(2)[:, None, None]).expand(2, 4, 6)
_REFUSED = (lambda x: bool(x.isinf().any()), "positives must be finite")
_EDGES = {"hard": lambda x: x.new_zeros(()), "args": lambda x: (x, x * 0.5), "empty": "positives must have entries"}

CONTRACTS = [
    Contract(
        "discrete.group_mass",
        partial(discrete.group_mass, **_SLOPE),
        _items,
        _mass,
        hard=lambda x, k: (x.argsort(-1).argsort(-1) >= x.shape[-1] - k).double(),
        soft={"steepness": 1e8},
        scalars={"steepness": 2.0},
        edges=Edges(
            lambda x, dim: (x.argsort(dim=-1, stable=True).argsort(-1) == x.shape[-1] - 1).to(x),
            lambda x: (x, 1),
            along=True,
            empty="x must have entries",
        ),
        bad=[
            Bad((torch.zeros(2, 0), 0), {}, ValueError, r"x must have entries .*, got shape \(2, 0\)"),
            Bad((torch.tensor(1.0), 0), {}, ValueError, "x must have entries along its last dimension"),
            Bad((_X, 4), {}, ValueError, r"group must be in 0\.\.3, got 4"),
            Bad((_X, 1.0), {}, TypeError, "group must be an integer"),
            Bad((_X.long(), 1), {}, TypeError, "x must be a floating tensor"),
            Bad((_X * torch.nan, 1), {}, ValueError, "x must not be NaN"),
            Bad((_X, 1), {"steepness": 0.0}, ValueError, "steepness must be > 0"),
            Bad((_X, 1), {"distribution": "caucy"}, ValueError, "did you mean 'cauchy'"),
            Bad((_X, 1), {"network": "bitnic"}, ValueError, "did you mean 'bitonic'"),
        ],
    ),
    Contract(
        "discrete.group_ordering_loss",
        partial(discrete.group_ordering_loss, **_SLOPE),
        _groups,
        _ordering,
        scalars={"steepness": 2.0},
        batched=False,
        large=(0, 1),
        edges=Edges(**_EDGES, words=lambda x: _SLOPE),
        bad=_bad(
            _SLOPE,
            Bad((_X, _X), {"steepness": -1.0}, ValueError, "steepness must be > 0"),
            Bad((_X, _X * torch.nan), _SLOPE, ValueError, "negatives must not be NaN"),
            Bad((_X, _X), {**_SLOPE, "distribution": "x"}, ValueError, "distribution must be one of"),
        ),
        why=_MEAN,
    ),
    Contract(
        "discrete.info_nce",
        partial(discrete.info_nce, temperature=0.5),
        _groups,
        _info_nce,
        scalars={"temperature": 0.5},
        batched=False,
        large=(0, 1),
        large_limit=1e30,
        edges=Edges(**_EDGES, words=lambda x: {"temperature": 0.5}, refuses=_REFUSED),
        bad=_bad(
            {"temperature": 0.5},
            Bad((_X, _X), {"temperature": 0.0}, ValueError, "temperature must be > 0"),
            Bad((_X, _X + torch.inf), {"temperature": 0.5}, ValueError, "negatives must not be inf or NaN"),
            Bad((_X - torch.inf, _X), {"temperature": 0.5}, ValueError, "positives must be finite"),
        ),
        why=f"{_MEAN}; it grows with the scores",
    ),
    *(
        Contract(
            f"discrete.triplet_loss[{mining}]",
            partial(discrete.triplet_loss, margin=0.7, mining=mining),
            _groups,
            _triplets(mining),
            scalars={"margin": 0.7},
            batched=False,
            large=(0, 1),
            large_limit=1e30,
            edges=Edges(**_EDGES, refuses=_REFUSED) if mining == "hard" else None,
            bad=_bad(
                {},
                Bad((_X, _X), {"margin": -1.0}, ValueError, "margin must be >= 0"),
                Bad((_X, _X), {"mining": "semi"}, ValueError, "mining must be one of"),
                Bad((_X, _X * torch.nan), {}, ValueError, "negatives must not be inf or NaN"),
            ),
            why=f"{_MEAN}; it grows with the scores",
        )
        for mining in ("hard", "all")
    ),
    Contract(
        "discrete.view_similarities",
        discrete.view_similarities,
        lambda g: [Call((torch.randn(3, 4, 2, generator=g).double(),))],
        _similarities,
        outputs=tuple,
        edges=Edges(
            lambda x: x.new_zeros(*x.shape[:-1], 2, x.shape[-1], max(0, x.shape[-1] - 1)),
            lambda x: (torch.stack([x, 1 - x], -2).unsqueeze(-1),),
            empty="features must be",
            outputs=lambda result: result.negatives[..., : result.negatives.shape[-1] // 2],
            refuses=(lambda x: bool(x.isinf().any()), "features must be finite"),
        ),
        bad=[
            Bad((torch.zeros(2, 1, 3),), {}, ValueError, r"features must be .*views >= 2, n >= 2, d >= 1"),
            Bad((torch.zeros(1, 2, 3),), {}, ValueError, "features must be .*views >= 2"),
            Bad((torch.zeros(2, 3),), {}, ValueError, r"got \(2, 3\)"),
            Bad((torch.full((2, 2, 2), torch.nan),), {}, ValueError, "features must be finite"),
            Bad((torch.zeros(2, 2, 2),), {"hardest": 0}, ValueError, "hardest must be an integer >= 1, got 0"),
        ],
    ),
    Contract(
        "discrete.view_similarities[same view, hardest]",
        partial(discrete.view_similarities, same_view=True, hardest=2),
        lambda g: [Call((torch.randn(2, 4, 3, generator=g).double(),))],
        lambda x: (_similarities(x)[0], _similarities(x)[1].view(2, 4, -1)[_SAME].view(2, 4, 3).topk(2).values),
        outputs=tuple,
    ),
    Exempt("discrete.nearest_neighbour_accuracy", "gives a Python number", "discrete/test_group_ordering.py"),
]
