"""Contracts of graphs of point clouds and of gradients on them."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor

from pullback import implicit
from tests.contracts.contract import Bad, Call, Contract, Exempt, Measurement

_SCALE = 0.3
_Z = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 0.8], [0.2, 1.1], [2.1, 0.3], [1.9, 1.2]], dtype=torch.float64)
_GRAPH = implicit.point_cloud_laplacian(_Z, scale=_SCALE, neighbours=2)


def _on(graph: implicit.PointCloudGraph, like: Tensor) -> implicit.PointCloudGraph:
    return implicit.PointCloudGraph(*(part.to(like.device) for part in graph[:3]), graph.scale)


def _clouds(generator: torch.Generator) -> list[Call]:
    draw = {"generator": generator, "dtype": torch.float64}
    return [Call((torch.rand(9, d, **draw),), {"scale": 0.2, "neighbours": k}) for d, k in ((1, 4), (3, 3), (2, None))]


def _dense(z: Tensor, scale: float, neighbours: int | None) -> Tensor:
    """All weights of a graph, pair by pair."""
    w = torch.eye(len(z), dtype=z.dtype)
    rows = z.tolist()
    for i, j in itertools.permutations(range(len(z)), 2):
        nearer = [
            sum(math.dist(rows[a], p) < math.dist(rows[a], rows[b]) for p in rows) - 1 for a, b in ((i, j), (j, i))
        ]
        if neighbours is None or min(nearer) < neighbours:
            w[i, j] = math.exp(-(math.dist(rows[i], rows[j]) ** 2) / (4 * scale))
    return w


def _laplacian(z: Tensor, **options: Any) -> Tensor:
    graph = implicit.point_cloud_laplacian(z, **options)
    w = torch.diag(torch.ones_like(graph.degree)).index_put(tuple(graph.edges), graph.weights)
    return torch.diag(graph.degree) - w


def _values(generator: torch.Generator) -> list[Call]:
    return [Call((torch.randn(6, *more, generator=generator, dtype=torch.float64),)) for more in ((), (2,))]


def _energy(values: Tensor) -> Tensor:
    w = _dense(_Z, _SCALE, 2)
    rise = (values.view(6, 1, -1) - values.view(1, 6, -1)).square().sum(-1)
    return (w * rise).sum(1) / (2 * _SCALE * w.sum(1))


def _quadratic_form(values: Tensor, multipliers: Tensor) -> Tensor:
    w = _dense(_Z, _SCALE, 2)
    share = multipliers / (2 * _SCALE * w.sum(1))
    weighted = w * (share[:, None] + share)
    return (values * ((torch.diag(weighted.sum(1)) - weighted) @ values)).sum()


def _steepest_of_all_pairs(values: Tensor) -> Tensor:
    """By shortest paths between every two points."""
    w, inf = _dense(_Z, _SCALE, 2), math.inf
    length = torch.where(w > 0, torch.cdist(_Z, _Z), inf)
    for k in range(6):
        length = torch.minimum(length, length[:, k, None] + length[k])
    rise = torch.cdist(values.view(6, -1), values.view(6, -1))
    return (rise / length.fill_diagonal_(inf)).max()


_V = torch.zeros(6)
_PAIRS = torch.tensor([[0.0], [1.0], [9.0], [10.0]])
CONTRACTS = [
    Measurement(
        "implicit.point_cloud_laplacian",
        _laplacian,
        _clouds,
        reference=lambda z, scale, neighbours: (lambda w: torch.diag(w.sum(1)) - w)(_dense(z, scale, neighbours)),
        bad=[
            Bad((_V[:, None].long(),), {"scale": 1.0}, TypeError, "z must be a floating tensor"),
            Bad((_V,), {"scale": 1.0}, ValueError, r"z must be \[n, d\]"),
            Bad((_Z[:1],), {"scale": 1.0}, ValueError, "n >= 2"),
            Bad((_Z / 0,), {"scale": 1.0}, ValueError, "finite points"),
            Bad((_Z,), {"scale": 0.0}, ValueError, "scale must be > 0"),
            Bad((_Z,), {"scale": 1.0, "neighbours": 0}, ValueError, "neighbours must be an integer >= 1"),
            Bad((_PAIRS,), {"scale": 0.1, "neighbours": 1}, ValueError, "2 components with scale 0.1 and 1 neigh"),
            Bad((_Z[:4] * 9,), {"scale": 0.1}, ValueError, "4 components with scale 0.1 and all pairs"),
        ],
    ),
    Contract(
        "implicit.gradient_energy",
        lambda values, graph=_GRAPH: implicit.gradient_energy(values, _on(graph, values) if len(graph) == 4 else graph),
        _values,
        reference=_energy,
        batched=False,
        large=(),
        half_tolerance=6e-2,
        bad=[
            Bad((_V.long(),), {}, TypeError, "values must be a floating tensor"),
            Bad((_V[:2],), {}, ValueError, "values must have 6 rows"),
            Bad((_V, "graph"), {}, TypeError, "graph must be a PointCloudGraph"),
        ],
        why="batched: one function on one graph; large: a square",
    ),
    Contract(
        "implicit.weighted_laplacian_penalty",
        lambda values, multipliers: implicit.weighted_laplacian_penalty(values, _on(_GRAPH, values), multipliers),
        lambda generator: [Call(tuple(torch.randn(2, 6, generator=generator, dtype=torch.float64)))],
        reference=_quadratic_form,
        batched=False,
        large=(),
        half_tolerance=6e-2,
        bad=[
            Bad((_V, _V[:2]), {}, ValueError, r"multipliers must be \[6\]"),
            Bad((_V, _V.long()), {}, TypeError, "multipliers must be a floating tensor"),
        ],
        why="batched: one function on one graph; large: a square times a multiplier",
    ),
    Contract(
        "implicit.graph_lipschitz",
        lambda values, z=_Z: implicit.graph_lipschitz(values, z.to(values.device), _on(_GRAPH, values)),
        _values,
        reference=_steepest_of_all_pairs,
        batched=False,
        large_limit=3e4,
        bad=[
            Bad((_V, _Z[:2]), {}, ValueError, r"z must be \[6, d\]"),
            Bad((_V, _Z.long()), {}, TypeError, "z must be a floating tensor"),
        ],
        why="batched: one function on one graph; large: the norm of a difference",
    ),
    Exempt("implicit.SmoothManifoldLearning", "steps that change a model in place", "implicit/test_point_cloud.py"),
]
