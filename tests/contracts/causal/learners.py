"""Contracts of ``pullback.causal``: the structure learners."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pullback import causal
from tests.contracts.contract import Bad, Exempt, Learner


def _planted(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A chain with a shortcut, in random order, of equal noise."""
    place = torch.randperm(4, generator=generator)
    weights = torch.zeros(4, 4, dtype=torch.float64)
    for i, j, weight in ((0, 1, 1.5), (1, 2, -1.2), (0, 2, 1.0), (2, 3, 0.8)):
        weights[place[i], place[j]] = weight
    return causal.LinearSCM(weights).rsample(1000, generator=generator), weights != 0


def _recovers(weights: Tensor, truth: Tensor) -> bool:
    return torch.equal(weights.cpu().abs() > 0.3, truth)


def _sets(generator: torch.Generator) -> list[Tensor]:
    """Dense graphs of few nodes, on which line searches go far; scales, fewer samples than nodes, two equal columns."""
    sets = []
    for _ in range(4):
        graph = causal.random_dag(4, 4, generator=generator)
        weights = causal.random_weights(graph, generator=generator).double()
        sets.append(causal.LinearSCM(weights).rsample(200, generator=generator))
    x = sets[0]
    return [*sets, x.float(), 1e8 * x, 1e-8 * x, x[:3], x.half(), torch.cat([x, x[:, :1]], 1), x[:, :1], x[:2, :2]]


def _enough(data: list[Tensor]) -> list[Tensor]:
    """Without those that determine no regression, which the search over orders refuses."""
    return [x for x in data if len(x) > x.shape[-1] and x.shape[-1] != 5]


_X = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
_CONSTANT = _X.clone()
_CONSTANT[:, 1] = 3.0
_NAN = _X.clone()
_NAN[2, 1] = torch.nan


def _bad_data(*options: tuple[dict[str, Any], type[Exception], str], batched: bool = True) -> list[Bad]:
    g = torch.Generator().manual_seed(0)
    data = [
        Bad((_NAN, g), {}, ValueError, r"data must be finite, got nan at index \(2, 1\)"),
        Bad((_CONSTANT, g), {}, ValueError, "data column 1 is constant"),
        Bad((_X[:1], g), {}, ValueError, "at least two samples"),
        Bad((_X[:, 0], g), {}, ValueError, "data must have shape"),
        Bad((_X[:, :0], g), {}, ValueError, "at least one column"),
        Bad((_X.long(), g), {}, TypeError, "data must be a floating tensor"),
        Bad((_X, g), {"covariance": True}, ValueError, "covariance must be square"),
        Bad((-torch.eye(3), g), {"covariance": True}, ValueError, "positive semi-definite"),
    ]
    if batched:
        data.append(Bad((torch.zeros(0, 20, 3), g), {}, ValueError, "data must hold at least one data set"))
    return [*data, *(Bad((_X, g), given, error, match) for given, error, match in options)]


def _whole(name: str, low: int) -> list[tuple[dict[str, Any], type[Exception], str]]:
    return [
        ({name: low - 1}, ValueError, f"{name} must be an integer >= {low}"),
        ({name: 2.5}, TypeError, f"{name} must be an integer"),
        ({name: torch.tensor(3)}, TypeError, f"{name} must be an integer"),
    ]


def _number(name: str) -> list[tuple[dict[str, Any], type[Exception], str]]:
    return [
        ({name: -1.0}, ValueError, f"{name} must be >"),
        ({name: torch.tensor(-1.0)}, ValueError, f"{name} must be >"),
        ({name: torch.ones(2)}, ValueError, f"{name} must be a number or a tensor without dimensions"),
        ({name: "1"}, TypeError, f"{name} must be a number"),
    ]


_KNOWN = torch.zeros(3, 3, dtype=torch.bool)
_CYCLE = torch.tensor([[0, 1, 0], [0, 0, 1], [1, 0, 0]]).bool()
KNOWLEDGE: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"allowed": _KNOWN.float()}, TypeError, "allowed must be a boolean tensor"),
    ({"allowed": _KNOWN[:2]}, ValueError, r"allowed must have shape \(3, 3\)"),
    ({"required": _CYCLE.int()}, TypeError, "required must be a boolean tensor"),
    ({"required": _CYCLE}, ValueError, "required has the cycle 0 -> 1 -> 2 -> 0"),
    ({"required": torch.eye(3).bool()}, ValueError, "required has the cycle 0 -> 0"),
    ({"allowed": _KNOWN, "required": _CYCLE.triu()}, ValueError, "required has the arc 0 -> 1, which allowed forbids"),
]


def _learner(function: Callable[..., causal.StructureResult], **fast: Any) -> Callable[..., causal.StructureResult]:
    def learn(data: Tensor, generator: torch.Generator, **options: Any) -> causal.StructureResult:
        return function(data, **{**fast, **options})

    return learn


def _cosmo(data: Tensor, generator: torch.Generator, **options: Any) -> causal.StructureResult:
    return causal.cosmo(data, **{"iterations": 1000, "lr": 3e-2, "generator": generator, **options})


def _swaps(data: Tensor, generator: torch.Generator, **options: Any) -> causal.StructureResult:
    return causal.topological_swaps(data, **{"generator": generator, **options})


def _search(data: Tensor, generator: torch.Generator, **options: Any) -> causal.StructureResult:
    return causal.order_search(data, **{"generator": generator, **options})


_WEIGHTS: dict[str, Any] = {"answer": lambda result: result.weights, "planted": _planted, "recovers": _recovers}

CONTRACTS = [
    Learner(
        "causal.notears",
        _learner(causal.notears),
        **_WEIGHTS,
        sets=_sets,
        bad=_bad_data(
            *_number("penalty"),
            *_number("tolerance"),
            *_number("max_penalty"),
            *_whole("steps", 1),
            *_whole("iterations", 1),
            *KNOWLEDGE,
            ({"mechanism": "mpl"}, ValueError, "did you mean 'mlp'"),
        ),
    ),
    Learner(
        "causal.dagma",
        _learner(causal.dagma, iterations=5000, lr=1e-3),
        **_WEIGHTS,
        sets=_sets,
        bad=_bad_data(
            *_number("penalty"),
            *_number("lr"),
            *_number("tolerance"),
            *_whole("check_every", 1),
            *_whole("iterations", 1),
            ({"path": ()}, ValueError, "path must have at least one pair"),
            ({"path": ((1.0, -1.0),)}, ValueError, "s of path must be > 0"),
            *KNOWLEDGE,
            ({"mechanism": "sobolov"}, ValueError, "did you mean 'sobolev'"),
        ),
    ),
    Learner(
        "causal.cosmo",
        _cosmo,
        **_WEIGHTS,
        sets=_sets,
        bad=_bad_data(
            *_number("lr"),
            *_number("l1"),
            *_number("l2"),
            *_number("priority_penalty"),
            *_number("shift"),
            *_whole("iterations", 1),
            *_whole("restarts", 1),
            *_whole("minibatch", 1),
            *_whole("hidden", 1),
            ({"temperature": (0.5, 0.0)}, ValueError, "end of temperature must be > 0"),
        ),
        tolerance=2e-2,  # annealing amplifies the rounding of the moments
    ),
    Learner(
        "causal.cosmo[nonlinear]",
        lambda data, generator, **options: _cosmo(data, generator, **{"hidden": 3, "iterations": 20, **options}),
        answer=lambda result: result.restart_scores,
        planted=lambda g: (_planted(g)[0], None),
        recovers=lambda scores, _: bool(scores.isfinite().all()),
        sets=lambda g: _sets(g)[:6],
        bad=[Bad((torch.eye(3), torch.Generator()), {"covariance": True}, ValueError, "need samples")],
        tolerance=1e-4,
    ),
    Learner(
        "causal.topological_swaps",
        _swaps,
        **_WEIGHTS,
        sets=lambda g: _enough(_sets(g)),
        bad=[
            Bad((_X[:3], torch.Generator()), {}, ValueError, "more samples than nodes"),
            *_bad_data(
                *_whole("restarts", 1),
                *_whole("small", 1),
                *_whole("large", 1),
                *_whole("large_searches", 0),
                ({"order": torch.tensor([0, 1, 1])}, ValueError, r"missing \[2\]"),
                ({"order": torch.tensor([0.0, 1.0, 2.0])}, TypeError, "order must be an integer tensor"),
                *KNOWLEDGE,
                (
                    {"order": torch.arange(3), "required": _CYCLE.tril()},
                    ValueError,
                    "order must have every required arc forward",
                ),
                batched=False,
            ),
        ],
    ),
    Learner(
        "causal.order_search",
        _search,
        **_WEIGHTS,
        sets=lambda g: _enough(_sets(g)),
        bad=[
            Bad((_X[:3], torch.Generator()), {}, ValueError, "more samples than nodes"),
            *_bad_data(
                *_whole("restarts", 1),
                *_whole("moves", 1),
                *_number("penalty"),
                ({"order": torch.tensor([0, 1, 1])}, ValueError, r"missing \[2\]"),
                ({"order": torch.tensor([0.0, 1.0, 2.0])}, TypeError, "order must be an integer tensor"),
                ({"targets": torch.ones(20, 3).bool()}, ValueError, "targets must leave every node free"),
                *KNOWLEDGE,
                (
                    {"order": torch.arange(3), "required": _CYCLE.tril()},
                    ValueError,
                    "order must have every required arc forward",
                ),
            ),
        ],
    ),
    Exempt("causal.COSMO", "causal.cosmo runs it to its end", "causal/test_learners.py"),
    Exempt("causal.DAGMA", "causal.dagma runs it to its end", "causal/test_learners.py"),
    Exempt("causal.NOTEARS", "causal.notears runs it to its end", "causal/test_learners.py"),
    Exempt("causal.OrderSearch", "causal.order_search runs it to its end", "causal/test_order_search.py"),
    Exempt("causal.StructureEstimator", "fits the learners, which have entries", "causal/test_estimator.py"),
    Exempt("causal.StructureLearner", "abstract: the loop of the learners", "causal/test_learners.py"),
    Exempt(
        "causal.StructureResult", "what learners return, with a method that refuses cycles", "causal/test_structure.py"
    ),
]
