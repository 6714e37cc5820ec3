"""Contracts of ``pullback.topology``: learned graphs, neighbourhoods, graph convolution, distances."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pullback import topology
from tests.contracts.contract import Bad, Call, Contract, Module


def _points(generator: torch.Generator) -> list[Call]:
    return [Call((torch.randn(6, 3, generator=generator, dtype=torch.float64),))]


def _scored(generator: torch.Generator) -> list[Call]:
    scores = torch.rand(5, 5, generator=generator, dtype=torch.float64)
    k = 0.5 + 4 * torch.rand(5, generator=generator, dtype=torch.float64)
    return [Call((scores, k))]


def _sorted_and_cut(scores: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """As the paper writes it: sort, multiply by the step, put back; a row at a time."""
    weights, log_prob = torch.zeros_like(scores), torch.zeros_like(k)
    for i, row in enumerate(scores):
        for r, j in enumerate(sorted(range(len(row)), key=lambda j: -row[j])):
            weights[i, j] = row[j] * (1 - 0.5 * (1 + math.tanh((r - k[i]) / 0.7)))
            log_prob[i] += weights[i, j].log() if r < k[i] else 0.0
    return weights, log_prob


def _first(scores: Tensor, k: Tensor) -> Tensor:
    kept = torch.zeros_like(scores)
    for i, row in enumerate(scores):
        for j in row.topk(min(len(row), math.ceil(k[i]))).indices:
            kept[i, j] = row[j]
    return kept


def _all_pairs(x: Tensor) -> Tensor:
    return torch.stack([torch.stack([(a - b).norm() for b in x]) for a in x])


def _nearest(x: Tensor) -> Tensor:
    return torch.stack([row.sort().values[1:3] for row in _all_pairs(x)])


def _index(weights: Tensor) -> Tensor:
    """Each of six nodes is joined to the next two, so that lists of two are walked and lists of three made dense."""
    n, m = weights.shape[-2:]
    steps = torch.arange(1, m + 1, device=weights.device)
    return ((torch.arange(n, device=weights.device)[:, None] + steps) % n).expand(weights.shape)


def _listed(x: Tensor, weights: Tensor, weight: Tensor, **kwargs: Any) -> Tensor:
    degree = weights.sum(-1)
    return topology.graph_convolution(
        x, topology.LearnedGraph(weights, _index(weights), degree, degree), weight, **kwargs
    )


def _convolution_sample(n: int, m: int) -> Any:
    def sample(g: torch.Generator) -> list[Call]:
        x, weight = torch.randn(n, 3, generator=g).double(), torch.randn(3, 2, generator=g).double()
        return [Call((x, 0.1 + torch.rand(n, m, generator=g).double(), weight))]

    return sample


def _loops(x: Tensor, weights: Tensor, weight: Tensor) -> Tensor:
    adjacency = torch.eye(len(x)).double()
    for i, (row, index) in enumerate(zip(weights, _index(weights), strict=True)):
        for w, j in zip(row, index, strict=True):
            adjacency[i, j] += w
    return adjacency / adjacency.sum(1, keepdim=True) @ x @ weight


def _symmetric(x: Tensor, adjacency: Tensor, weight: Tensor) -> Tensor:
    a = adjacency + torch.eye(len(x)).double()
    return torch.diag(a.sum(1) ** -0.5) @ a @ torch.diag(a.sum(0) ** -0.5) @ x @ weight


_ONES = torch.ones(3, 3)
_TWO = torch.ones(2, 2)
_BAD_CONVOLUTION = [
    Bad((_ONES, _TWO, _ONES), {}, ValueError, "graph must have shape"),
    Bad((_ONES, _ONES, _TWO), {}, ValueError, "weight must have shape"),
    Bad((_ONES, _ONES, _ONES), {"normalize": "rows"}, ValueError, "normalize must be one of"),
    Bad((_ONES, torch.zeros(3, 3), _ONES), {"self_loop": False}, ValueError, "without an edge.*self_loop=True"),
    Bad((_ONES, _ONES.double(), _ONES), {}, TypeError, "must have the same dtype"),
    Bad((_ONES, _ONES, _ONES), {"bias": torch.ones(2)}, ValueError, "bias must have shape"),
]
_WEIGHTS_AND_LOG_PROB = {"outputs": lambda graph: (graph.weights, graph.log_prob)}

CONTRACTS = [
    Contract(
        "topology.smooth_first_k",
        lambda k, **kwargs: topology.smooth_first_k(k, 6, **{"width": 0.7, **kwargs}),
        lambda g: [Call((0.3 + 5 * torch.rand(4, generator=g, dtype=torch.float64),))],
        reference=lambda k: 1 - 0.5 * (1 + torch.tanh((torch.arange(6) - k[:, None]) / 0.7)),
        hard=lambda k: (torch.arange(6) < k[:, None]).double(),
        soft={"width": 1e-6},
        scalars={"width": 0.7},
        bad=[
            Bad((torch.ones(2),), {"width": 0.0}, ValueError, "width must be > 0"),
            Bad((torch.tensor([1.0, 0.0]),), {}, ValueError, "k must be > 0"),
            Bad((torch.ones(2),), {"method": "cosine"}, ValueError, "method must be one of"),
            Bad((torch.ones(2, dtype=torch.int64),), {}, TypeError, "k must be a floating tensor"),
        ],
    ),
    Contract(
        "topology.smooth_first_k[linear]",
        lambda k, **kwargs: topology.smooth_first_k(k, 6, **{"width": 1.3, "method": "linear", **kwargs}),
        lambda g: [Call((0.3 + 5 * torch.rand(4, generator=g, dtype=torch.float64),))],
        reference=lambda k: (0.5 - (torch.arange(6) - k[:, None]) / 2.6).clamp(0, 1),
        hard=lambda k: (torch.arange(6) < k[:, None]).double(),
        soft={"width": 1e-6},
        scalars={"width": 1.3},
    ),
    Contract(
        "topology.adaptive_neighborhood",
        lambda scores, k, **kwargs: topology.adaptive_neighborhood(scores, k, **{"width": 0.7, **kwargs}),
        _scored,
        reference=_sorted_and_cut,
        scalars={"width": 0.7},
        batched=False,
        bad=[
            Bad((torch.full((2, 2), torch.nan), torch.ones(2)), {}, ValueError, "scores must be >= 0.*NaN"),
            Bad((torch.full((2, 2), -1.0), torch.ones(2)), {}, ValueError, "scores must be >= 0"),
            Bad((torch.ones(2, 2), torch.zeros(2)), {}, ValueError, "k must be > 0"),
            Bad((torch.ones(2, 2), torch.ones(3)), {}, ValueError, "k must have"),
            Bad((torch.ones(2, 3), torch.ones(2)), {}, ValueError, "index must say which nodes"),
            Bad((torch.ones(2, 2), torch.ones(2)), {"width": 0.0}, ValueError, "width must be > 0"),
            Bad((torch.ones(2, 2), torch.ones(2)), {"index": torch.tensor([[0, 1], [2, 1]])}, ValueError, "index must"),
            Bad((torch.ones(2, 2), torch.ones(2).double()), {}, TypeError, "same dtype"),
        ],
        why="a batch of scores needs a batch of degrees",
        **_WEIGHTS_AND_LOG_PROB,
    ),
    Contract(
        "topology.adaptive_neighborhood[hard limit]",
        lambda scores, k, **kwargs: topology.adaptive_neighborhood(scores, k, **{"width": 0.7, **kwargs}).weights,
        _scored,
        hard=_first,
        soft={"width": 1e-6},
        batched=False,
        why="a batch of scores needs a batch of degrees",
    ),
    Contract(
        "topology.neighbor_candidates",
        lambda x: topology.neighbor_candidates(x, 2, block=4).distances,
        _points,
        reference=_nearest,
        compile=False,
        bad=[
            Bad((torch.zeros(2, 3),), {}, ValueError, "count must be in 1..1, got 2"),
            Bad((torch.full((4, 3), torch.inf),), {}, ValueError, "x must be finite"),
            Bad((torch.zeros(4),), {}, ValueError, "x must have shape"),
            Bad((torch.zeros(4, 2, dtype=torch.int64),), {}, TypeError, "x must be a floating tensor"),
        ],
        large_limit=1e8,
        why="distances of the largest numbers overflow; the order of the nearest is no graph that is compiled",
    ),
    Contract(
        "topology.pairwise_distances",
        topology.pairwise_distances,
        _points,
        reference=_all_pairs,
        bad=[
            Bad((torch.zeros(4),), {}, ValueError, "x must have shape"),
            Bad((torch.zeros(4, 2, dtype=torch.int64),), {}, TypeError, "x must be a floating tensor"),
        ],
        large_limit=1e38,
        why="distances of the largest numbers overflow",
    ),
    Contract(
        "topology.latent_graph_entmax",
        lambda z, **kwargs: topology.latent_graph_entmax(z, **{"scale": 1.0, **kwargs}),
        _points,
        scalars={"scale": 1.0, "alpha": 1.4},
        bad=[
            Bad((torch.zeros(1, 2),), {}, ValueError, "a graph with no edge"),
            Bad((torch.zeros(3, 2),), {"scale": 0.0}, ValueError, "scale must be > 0"),
            Bad((torch.zeros(3, 2),), {"alpha": 0.5}, ValueError, "alpha must be a finite number >= 1"),
            Bad((torch.full((3, 2), torch.nan),), {}, ValueError, "z must be finite"),
            Bad((torch.zeros(3, 2),), {"candidates": 2}, ValueError, "symmetric must be False"),
            Bad((torch.zeros(3, 2),), {"candidates": 3, "symmetric": False}, ValueError, "count must be in 1..2"),
        ],
        half_tolerance=6e-2,
        large_tolerance=1e-3,
        large_limit=1e8,
        why="distances of the largest numbers overflow",
        **_WEIGHTS_AND_LOG_PROB,
    ),
    Contract(
        "topology.graph_convolution",
        topology.graph_convolution,
        _convolution_sample(4, 4),
        reference=lambda x, a, w: (a + torch.eye(4).double()) / (a.sum(1, keepdim=True) + 1) @ x @ w,
        bad=_BAD_CONVOLUTION,
        half_tolerance=6e-2,
        large_limit=1e4,
        why="a linear map leaves the range of half precision",
    ),
    Contract(
        "topology.graph_convolution[symmetric]",
        lambda x, a, w: topology.graph_convolution(x, a, w, normalize="symmetric"),
        _convolution_sample(4, 4),
        reference=_symmetric,
        half_tolerance=6e-2,
        large_limit=1e4,
        why="a linear map leaves the range of half precision",
    ),
    Contract(
        "topology.graph_convolution[lists]",
        _listed,
        _convolution_sample(9, 2),
        reference=_loops,
        batched=False,
        half_tolerance=6e-2,
        large_limit=1e4,
        why="a batch needs lists of its own; a linear map leaves the range of half precision",
    ),
    Module(
        "topology.DifferentiableGraphGenerator",
        lambda module, x: module(x).weights,
        _points,
        build=lambda g: topology.DifferentiableGraphGenerator(3, 4, centre=2.0, generator=g).eval(),
        bad=[
            Bad((torch.zeros(4, 2),), {}, ValueError, "x must have shape"),
            Bad((torch.full((4, 3), torch.nan),), {}, ValueError, "x must be finite"),
        ],
        half=False,
        large=(),
        why="neighbours of nearly equal scores change places by rounding, and with them the weights",
    ),
    Module(
        "topology.DifferentiableGraphGenerator[distance, gaussian]",
        lambda module, x: module(x).weights,
        _points,
        build=lambda g: topology.DifferentiableGraphGenerator(
            3, 4, score="distance", degree="gaussian", candidates=3, centre=2.0, generator=g
        ).eval(),
        idle=(),
        compile=False,
        half_tolerance=1e-1,
        large_limit=10.0,
        why="as above; the order of the nearest is no graph that is compiled",
    ),
]
