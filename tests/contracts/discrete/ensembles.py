"""Contracts of ensembles found by keys, of truncated top-k masks and of learning from a stream of classes."""

from __future__ import annotations

import torch
from torch import Tensor

from pullback import discrete
from tests.contracts.contract import Bad, Call, Contract, Edges, Exempt, Measurement, Module

_X = torch.tensor([0.9, 0.1, 0.4, 0.6, 0.2])
_LABELS = torch.tensor([0, 2, 1])
_OPTIONS = {"temperature": 0.3, "iterations": 3}


def _samples(generator: torch.Generator) -> list[Call]:
    x = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    return [Call((x, 2), _OPTIONS), Call((x, 1), {**_OPTIONS, "dim": 0, "iterations": 0})]


def _swept(x: Tensor, k: int, dim: int = -1, *, temperature: float, iterations: int) -> Tensor:
    """Sinkhorn sweeps of the plan [n, 2] as one writes them: columns, then rows, which are left exact."""
    x = x.movedim(dim, -1)
    n = x.shape[-1]
    kernel = torch.exp(torch.stack([2 * x - 1, torch.zeros_like(x)], -1) / (2 * temperature))
    columns = torch.tensor([k / n, 1 - k / n], dtype=x.dtype)
    u = 1 / n / kernel.sum(-1, keepdim=True)
    v = torch.ones_like(columns)
    for _ in range(iterations):
        v = columns / (kernel * u).sum(-2, keepdim=True)
        u = 1 / n / (kernel * v).sum(-1, keepdim=True)
    return (n * u * kernel * v)[..., 0].movedim(-1, dim)


def _ensemble(generator: torch.Generator) -> discrete.KeyedEnsemble:
    return discrete.KeyedEnsemble(6, 3, experts=5, k=2, bound=2.0, temperature=0.2, generator=generator)


def _vote(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    model = _ensemble(torch.Generator().manual_seed(0)).double()
    cosine = torch.nn.functional.cosine_similarity(z.unsqueeze(-2), model.keys, dim=-1)
    chosen = discrete.sinkhorn_topk(cosine, 2, temperature=0.2, iterations=500)
    chosen = chosen * (chosen >= 0.3)
    scores = torch.zeros(*z.shape[:-1], 3, dtype=z.dtype)
    for n in range(5):
        answer = 2 * torch.tanh((z @ model.weight[n].T + model.bias[n]) / 2)
        scores = scores + (chosen[..., n] ** 2 * cosine[..., n]).unsqueeze(-1) * answer
    return scores / (chosen * cosine).sum(-1, keepdim=True), cosine, chosen


def _inputs(generator: torch.Generator) -> list[Call]:
    return [Call((torch.randn(2, 6, generator=generator, dtype=torch.float64),))]


def _kept(r: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    count = r.shape[-1]
    final = [float(r[-1, j]) for j in range(count)]
    fall = [max(float(r[i, j]) for i in range(count - 1)) - final[j] for j in range(count - 1)]
    change = [final[j] - float(r[j, j]) for j in range(count - 1)]
    return tuple(torch.tensor(sum(v) / len(v), dtype=torch.float64) for v in (final, fall, change))


def _beside(labels: Tensor, scores: Tensor) -> Tensor:
    return labels.to(scores.device) if isinstance(scores, Tensor) else labels


def _row(x: Tensor) -> Tensor:
    """One row of at least one entry, whatever the shape."""
    return torch.cat([x.flatten(), x.new_zeros(1)])


CONTRACTS = [
    Contract(
        "discrete.sinkhorn_topk",
        discrete.sinkhorn_topk,
        _samples,
        reference=_swept,
        edges=Edges(
            lambda x: x,
            lambda x: (x, 1),
            words=lambda x: _OPTIONS,
            empty="k must be in",
            refuses=(lambda x: bool(x.isinf().any()), "x must be finite"),
        ),
        scalars={"temperature": 0.3},
        bad=[
            Bad((_X, 0), _OPTIONS, ValueError, "k must be in 1..4, got 0"),
            Bad((_X, 5), _OPTIONS, ValueError, "k must be in 1..4, got 5"),
            Bad((_X, 2.0), _OPTIONS, TypeError, "k must be an integer"),
            Bad((_X, 2), {**_OPTIONS, "iterations": -1}, ValueError, "iterations must be an integer >= 0"),
            Bad((_X, 2), {**_OPTIONS, "temperature": 0.0}, ValueError, "temperature must be > 0"),
            Bad((_X, 2), {**_OPTIONS, "dim": 1}, IndexError, "dim must be in"),
            Bad((_X / 0, 2), _OPTIONS, ValueError, "x must be finite"),
            Bad((_LABELS, 2), _OPTIONS, TypeError, "x must be a floating tensor"),
        ],
    ),
    Module(
        "discrete.KeyedEnsemble",
        lambda model, z: model(z),
        _inputs,
        build=_ensemble,
        reference=_vote,
        outputs=tuple,
        large_limit=1e4,
        why="weighted sums of half precision overflow beyond that",
        bad=[Bad((torch.zeros(2, 5),), {}, ValueError, r"z must have 6 features, got shape \(2, 5\)")],
    ),
    Contract(
        "discrete.score_loss",
        lambda scores, labels=None: discrete.score_loss(
            scores, _LABELS.to(scores.device) if labels is None else labels
        ),
        lambda g: [Call((torch.randn(3, 4, generator=g, dtype=torch.float64),))],
        edges=Edges(torch.sum, lambda x: (_row(x), torch.zeros((), dtype=torch.int64, device=x.device))),
        reference=lambda scores: -(scores[0, 0] + scores[1, 2] + scores[2, 1]) / 3,
        large_limit=1e8,
        batched=False,
        vmap=False,
        why="a mean over samples; the sum of the largest numbers overflows",
        bad=[
            Bad((torch.zeros(3, 2), _LABELS), {}, ValueError, r"labels must be in 0..1, got 0 to 2"),
            Bad((torch.zeros(2, 3), _LABELS), {}, ValueError, r"labels must be one of each .* \(2, 3\) and \(3,\)"),
            Bad((torch.zeros(0, 3), _LABELS[:0]), {}, ValueError, "labels must be one of each of at least one"),
            Bad((torch.zeros(3, 3), torch.zeros(3)), {}, TypeError, "labels must be integers, got torch.float32"),
            Bad((_LABELS, _LABELS), {}, TypeError, "scores must be a floating tensor"),
        ],
    ),
    Contract(
        "discrete.key_loss",
        discrete.key_loss,
        lambda g: [Call(tuple(torch.rand(2, 3, 4, generator=g, dtype=torch.float64).unbind()))],
        edges=Edges(torch.sum, lambda x: (_row(x), torch.ones_like(_row(x)))),
        reference=lambda similarity, selection: ((1 - similarity) * selection).sum() / 3,
        large=(),
        batched=False,
        vmap=False,
        why="a mean over samples, of cosines and shares",
        bad=[
            Bad((_X, _X[:2]), {}, ValueError, r"similarity and selection must be of the same samples, got .* \(2,\)"),
            Bad((_LABELS, _X), {}, TypeError, "similarity must be a floating tensor"),
        ],
    ),
    Measurement(
        "discrete.continual_metrics",
        discrete.continual_metrics,
        lambda g: [Call((torch.rand(4, 4, generator=g, dtype=torch.float64),))],
        reference=_kept,
        edges=Edges(torch.sum, lambda x: (_row(x).diag(),)),
        outputs=tuple,
        bad=[
            Bad((torch.zeros(2, 3),), {}, ValueError, r"accuracy must be a square matrix of tasks, got shape \(2, 3\)"),
            Bad((torch.zeros(0, 0),), {}, ValueError, "accuracy must be a square matrix"),
            Bad((_LABELS,), {}, TypeError, "accuracy must be a floating tensor"),
        ],
    ),
    Exempt("discrete.class_incremental_stream", "deals indices at random", "discrete/test_ensembles.py"),
]
