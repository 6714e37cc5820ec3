"""Contracts of ``pullback.causal``: learners side by side, and the augmented Lagrangian that fits them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.stats import beta
from torch import Tensor

from pullback import causal
from tests.contracts.causal.learners import KNOWLEDGE, _bad_data, _number, _planted, _recovers, _sets, _whole
from tests.contracts.contract import Bad, Call, Contract, Exempt, Learner, Measurement, Module


def _graphs(generator: torch.Generator) -> list[Call]:
    graphs = torch.randn(3, 4, 4, generator=generator, dtype=torch.float64)
    shares = torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64)
    return [Call((graphs,)), Call((graphs,), {"weights": shares}), Call((graphs[:1],))]


def _apart(graphs: Tensor, weights: Tensor | None = None) -> Tensor:
    """Entry by entry."""
    shares = torch.ones(len(graphs)).to(graphs) if weights is None else weights
    total, nodes = graphs.new_zeros(()), graphs.shape[-1]
    for u in range(nodes):
        for v in range(nodes):
            mean = sum(shares[k] * graphs[k, u, v] for k in range(len(graphs))) / shares.sum()
            if u != v:
                total = total + sum((graph[u, v] - mean) ** 2 for graph in graphs) / (nodes * (nodes - 1))
    return total


def _drawn(values: Tensor) -> Tensor:
    return causal.beta_subsets(30, 3, size=7, sort_by=values, generator=torch.Generator().manual_seed(0))


def _by_scipy(values: Tensor) -> Tensor:
    """The released rule, its threshold moved until seven rows are kept."""
    drawn = torch.rand(3, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64).numpy()
    ranked, rows = np.argsort(values.cpu().numpy(), kind="stable"), []
    for uniform, (a, b) in zip(drawn, ((1, 3), (3, 3), (3, 1)), strict=True):
        density = beta(a, b).pdf(np.linspace(0, 1, 30))
        keep = (density - density.min()) / (density.max() - density.min())
        factor = next(f for f in np.geomspace(1e-3, 1e3, 100_000) if (uniform < f * keep).sum() >= 7)
        rows.append(ranked[uniform < factor * keep])
    return torch.from_numpy(np.stack(rows))


def _module(mechanism: str, **laws: Any) -> Module:
    return Module(
        f"causal.ParallelStructureLearner[{mechanism}]",
        lambda model, x: (model(x), model.adjacency(), model.acyclicity("polynomial")),
        lambda g: [Call((torch.randn(5, 3, generator=g, dtype=torch.float64),))],
        build=lambda g: _moved(causal.ParallelStructureLearner(3, 2, mechanism=mechanism, hidden=4, generator=g), g),
        bad=[
            Bad((torch.zeros(5, 4),), {}, ValueError, "x must have shape"),
        ],
        batched=False,
        half_tolerance=6e-2,
        **{"large_limit": 1e4, "why": _BATCHED, **laws},
    )


def _moved(model: causal.ParallelStructureLearner, generator: torch.Generator) -> causal.ParallelStructureLearner:
    """Away from zero, where linear models begin."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


def _fit(learners: int, mechanism: str) -> Any:
    def learn(data: Tensor, generator: torch.Generator, **options: Any) -> causal.StructureResult:
        rows = torch.stack([torch.arange(len(data)) for _ in range(learners)])
        fixed = {"learners": learners, "mechanism": mechanism, "hidden": 2, "subsets": rows, "generator": generator}
        return causal.d_struct(data, **{**fixed, **_FAST, **options})

    return learn


_BATCHED = "a batch of data needs a model with that batch; predictions leave the range of half"
_FAST = {"iterations": 40, "relative": 1e-3, "tolerance": 1e-4}
_MODELS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"mechanism": "mpl"}, ValueError, "did you mean 'mlp'"),
    ({"model": "poison"}, ValueError, "did you mean 'poisson'"),
    ({"model": "logistic"}, ValueError, "must be 0 or 1"),
    ({"model": "poisson"}, ValueError, "whole numbers >= 0"),
    ({"targets": torch.zeros(1, 3).bool()}, ValueError, "targets must have the shape of data"),
    ({"targets": torch.ones(20, 3)}, TypeError, "targets must be booleans"),
    ({"targets": torch.ones(20, 3).bool()}, ValueError, "free in some sample, got none of node"),
]


def _of_samples(bad: list[Bad]) -> list[Bad]:
    """Without those of covariances, which these learners do not take."""
    return [each for each in bad if "covariance" not in each.kwargs]


CONTRACTS = [
    Contract(
        "causal.consensus_penalty",
        causal.consensus_penalty,
        _graphs,
        reference=_apart,
        bad=[
            Bad((torch.zeros(2, 2),), {}, ValueError, r"\(..., learners, d, d\)"),
            Bad((torch.zeros(2, 2, 3),), {}, ValueError, "adjacencies must have shape"),
            Bad((torch.zeros(2, 3, 3).int(),), {}, TypeError, "adjacencies must be a floating tensor"),
            Bad((torch.zeros(2, 3, 3),), {"weights": torch.zeros(2)}, ValueError, ">= 0 and not all zero"),
            Bad((torch.zeros(2, 3, 3),), {"weights": torch.ones(3)}, ValueError, "weights must have shape"),
        ],
        large_limit=1e4,
        why="a mean of squares leaves the range of the dtype",
    ),
    Measurement(
        "causal.beta_subsets",
        _drawn,
        lambda g: [Call((torch.randn(30, generator=g, dtype=torch.float64),))],
        reference=lambda values: _by_scipy(values),
        bad=[
            Bad((torch.zeros(29),), {}, ValueError, "sort_by must have shape"),
            Bad((torch.full((30,), torch.nan),), {}, ValueError, "sort_by must be finite"),
            Bad((torch.zeros(30).long(),), {}, TypeError, "sort_by must be a floating tensor"),
        ],
    ),
    _module("linear"),
    _module("mlp"),
    _module(
        "sobolev", large=(), why="a batch of data needs a model with that batch; a sine of a large number is noise"
    ),
    Learner(
        "causal.d_struct",
        _fit(2, "linear"),
        answer=lambda result: result.weights,
        planted=_planted,
        recovers=_recovers,
        sets=lambda g: [x[:50] for x in _sets(g)[3:7]],
        bad=_of_samples(
            _bad_data(
                *_number("penalty"),
                *_number("ridge"),
                *_number("consensus"),
                *_number("tolerance"),
                *_whole("hidden", 1),
                *_whole("steps", 1),
                *_whole("iterations", 1),
                ({"learners": 21}, ValueError, "learners must be at most the number of samples"),
                ({"subsets": torch.zeros(3, 5).long()}, ValueError, r"subsets must have shape \(..., 2, size\)"),
                ({"subsets": torch.full((2, 5), 20)}, ValueError, r"indices in 0..19"),
                ({"subsets": torch.zeros(2, 5)}, TypeError, "subsets must be an integer tensor"),
                *KNOWLEDGE,
                *_MODELS,
            )
        ),
        permute=None,
        why="subsets are given by the numbers of samples",
    ),
    Learner(
        "causal.notears[mlp]",
        lambda data, generator, **options: causal.notears(
            data, **{"mechanism": "mlp", "hidden": 4, "generator": generator, **_FAST, **options}
        ),
        answer=lambda result: result.weights,
        planted=lambda g: _sines(g),
        recovers=_recovers,
        sets=lambda g: [x[:50] for x in _sets(g)[3:4]],
        bad=[
            Bad((torch.eye(3), torch.Generator()), {"covariance": True}, ValueError, "need samples"),
            Bad((torch.eye(3), torch.Generator()), {"mechanism": "mpl"}, ValueError, "did you mean 'mlp'"),
        ],
        tolerance=1e-2,  # a minimum of a network is found to the tolerance of the loop
    ),
    Exempt("causal.AugmentedLagrangian", "augmented_lagrangian_fit runs it to its end", "causal/test_parallel.py"),
    Exempt("causal.augmented_lagrangian_fit", "takes functions of a batch of problems", "causal/test_parallel.py"),
    Exempt("causal.SampledDAGMA", "causal.dagma runs it to its end", "causal/test_learners.py"),
    Exempt("causal.DStruct", "causal.d_struct runs it to its end", "causal/test_learners.py"),
]


def _sines(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """An arc that no linear model fits."""
    noise = torch.randn(150, 2, generator=generator, dtype=torch.float64)
    cause = 2 * noise[:, 0]
    effect = 2 * torch.sin(cause) + 0.5 * noise[:, 1]
    return torch.stack([effect, cause], 1), torch.tensor([[0, 0], [1, 0]]).bool()
