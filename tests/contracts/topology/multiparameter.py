"""Contracts of ``pullback.topology``: bifiltrations, Hilbert functions, signed measures and what is made of them."""

from __future__ import annotations

import itertools
import math
from typing import Any

import networkx as nx
import torch
from scipy.optimize import linear_sum_assignment
from scipy.stats import wasserstein_distance
from torch import Tensor

from pullback import topology
from tests.contracts.contract import Bad, Call, Contract, Exempt, Measurement

_EDGES = torch.tensor([[0, 1], [1, 2], [2, 3], [0, 3], [1, 3], [4, 5]])
_TABLES = (torch.arange(4)[:, None], torch.tensor(list(itertools.combinations(range(4), 2))), torch.tensor([[0, 1, 2]]))
_SHAPES = "which points there are depends on values: no shapes to map over or to compile"
_OPEN = {"batched": False, "vmap": False, "compile": False}


def _inverted(rank: Any, x: list[float], y: list[float]) -> tuple[Tensor, Tensor]:
    """Points and weights by Moebius inversion of ranks on the grid."""
    ranks = {(i, j): rank(a, b) for i, a in enumerate(x) for j, b in enumerate(y)}
    points, weights = [], []
    for (i, j), value in ranks.items():
        weight = value - ranks.get((i - 1, j), 0) - ranks.get((i, j - 1), 0) + ranks.get((i - 1, j - 1), 0)
        if weight:
            points.append([x[i], y[j]])
            weights.append(weight)
    return torch.tensor(points, dtype=torch.float64).view(-1, 2), torch.tensor(weights)


def _components(values: Tensor) -> tuple[Tensor, Tensor]:
    def rank(x: float, y: float) -> int:
        graph = nx.Graph()
        inside = [v for v, (a, b) in enumerate(values.tolist()) if a <= x and b <= y]
        graph.add_nodes_from(inside)
        graph.add_edges_from(e for e in _EDGES.tolist() if set(e) <= set(inside))
        return nx.number_connected_components(graph) if inside else 0

    return _inverted(rank, *(sorted(column) for column in values.T.tolist()))


def _cycles(values: Tensor) -> tuple[Tensor, Tensor]:
    def rank(x: float, y: float) -> int:
        graph = nx.Graph()
        inside = [v for v, (a, b) in enumerate(values.tolist()) if a <= x and b <= y]
        graph.add_nodes_from(inside)
        graph.add_edges_from(e for e in _EDGES.tolist() if set(e) <= set(inside))
        return len(nx.cycle_basis(graph))

    return _inverted(rank, *(sorted(column) for column in values.T.tolist()))


def _loops_of_square(points: Tensor, function: Tensor) -> tuple[Tensor, Tensor]:
    """Four points have a loop where the sides are there and no diagonal is: from the longest side to a diagonal."""
    d = (points[:, None] - points).norm(dim=-1)
    sides, diagonals = max(d[i, (i + 1) % 4] for i in range(4)), min(d[0, 2], d[1, 3])
    last = function.max()
    return torch.stack([torch.stack([sides, last]), torch.stack([diagonals, last])]), torch.tensor([1, -1])


def _square(g: torch.Generator) -> list[Call]:
    corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    noise, function = (0.1 * torch.rand(s, generator=g, dtype=torch.float64) for s in ((4, 2), (4,)))
    return [Call((corners + noise, function))]


def _nodes(g: torch.Generator) -> list[Call]:
    return [Call((torch.rand(6, 2, generator=g, dtype=torch.float64),))]


def _filled(values: Tensor, **kwargs: Any) -> topology.SignedMeasure:
    return topology.signed_measure(topology.Bifiltration(_TABLES, values), degree=1, **kwargs)


def _one_triangle(values: Tensor) -> tuple[Tensor, Tensor]:
    """Four nodes, all six edges, one of the four triangles filled: edges less a forest, less the triangle."""

    def rank(x: float, y: float) -> int:
        inside = [bool(v[0] <= x and v[1] <= y) for v in values.tolist()]
        graph = nx.Graph()
        graph.add_nodes_from(v for v in range(4) if inside[v])
        graph.add_edges_from(e for e, there in zip(_TABLES[1].tolist(), inside[4:], strict=False) if there)
        return len(nx.cycle_basis(graph)) - inside[10]

    return _inverted(rank, *(sorted(set(column)) for column in values.T.tolist()))


def _monotone(g: torch.Generator) -> list[Call]:
    values = torch.rand(11, 2, generator=g, dtype=torch.float64)
    return [Call((values + torch.tensor([0] * 4 + [1] * 6 + [2])[:, None],))]


_WEIGHTS = (torch.tensor([2, 1, -1]), torch.tensor([1, 1]))


def _pair(a: Tensor, b: Tensor) -> list[topology.SignedMeasure]:
    return [
        topology.SignedMeasure(x, w.to(x.device), torch.zeros(len(w), dtype=torch.int64, device=x.device), 1)
        for x, w in zip((a, b), _WEIGHTS, strict=True)
    ]


def _distance(a: Tensor, b: Tensor, **kwargs: Any) -> Tensor:
    return topology.signed_measure_distance(*_pair(a, b), **kwargs)


def _sides(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    return torch.stack([a[0], a[0], a[1]]), torch.stack([b[0], b[1], a[2]])


def _assigned(a: Tensor, b: Tensor) -> Tensor:
    left, right = _sides(a, b)
    cost = (left[:, None] - right).abs().sum(-1)
    return cost[linear_sum_assignment(cost)].sum()[None]


def _sliced(a: Tensor, b: Tensor, lines: int = 4) -> Tensor:
    total = 0.0
    for k in range(lines):
        angle = (k + 0.5) * math.pi / lines
        line = torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
        total += 3 * wasserstein_distance(*(side @ line for side in _sides(a, b)))
    return torch.tensor([total / lines])


def _convolved(points: Tensor, queries: Tensor, **kwargs: Any) -> Tensor:
    batch = torch.tensor([0, 1, 1], device=points.device)
    measure = topology.SignedMeasure(points, _WEIGHTS[0].to(points.device), batch, 2)
    return topology.convolve_signed_measure(measure, queries, **{"bandwidth": 0.7, **kwargs})


def _kernels(points: Tensor, queries: Tensor) -> Tensor:
    each = [w * torch.exp(-(queries - p).square().sum(1) / 0.98) for p, w in zip(points, _WEIGHTS[0], strict=True)]
    return torch.stack([each[0], each[1] + each[2]])


def _density(points: Tensor) -> Tensor:
    return -torch.stack([sum(torch.exp(-2 * (p - q).square().sum()) for q in points) for p in points]) * 2 / math.pi / 5


def _two(*shapes: tuple[int, int]) -> Any:
    return lambda g: [Call(tuple(torch.randn(*shape, generator=g, dtype=torch.float64) for shape in shapes))]


_POINTS = {"outputs": lambda measure: (measure.points, measure.weights)}
_VALUES = {"outputs": lambda filtered: filtered.values}

CONTRACTS = [
    Contract(
        "topology.signed_measure",
        lambda values, **kwargs: topology.signed_measure(topology.graph_bifiltration(values, _EDGES), **kwargs),
        _nodes,
        reference=_components,
        bad=[
            Bad((torch.zeros(6, 2),), {"degree": 2}, ValueError, "degree must be in 0..1"),
            Bad((torch.zeros(6, 2),), {"degree": 0.5}, TypeError, "degree must be an integer"),
            Bad((torch.zeros(6, 2),), {"grid": "coarse"}, ValueError, "grid must be 'exact'"),
            Bad((torch.zeros(6, 2),), {"grid": (3, 0)}, ValueError, "grid must be an integer >= 1"),
        ],
        why=_SHAPES,
        **_OPEN,
        **_POINTS,
    ),
    Contract(
        "topology.signed_measure[cycles]",
        lambda values: topology.signed_measure(topology.graph_bifiltration(values, _EDGES), degree=1),
        _nodes,
        reference=_cycles,
        why=_SHAPES,
        **_OPEN,
        **_POINTS,
    ),
    Contract(
        "topology.signed_measure[rips]",
        lambda points, function: topology.signed_measure(topology.function_rips(points, function), degree=1),
        _square,
        reference=_loops_of_square,
        large=(1,),
        why=_SHAPES,
        **_OPEN,
        **_POINTS,
    ),
    Contract(
        "topology.signed_measure[reduced]",
        _filled,
        _monotone,
        reference=_one_triangle,
        large=(),
        layouts=False,
        bad=[Bad((torch.ones(11, 2).cumsum(0).flip(0),), {}, ValueError, r"at simplex \[0, 1\] \(place 4\)")],
        why=_SHAPES + "; rounding may put a simplex below a face, which is refused",
        **_OPEN,
        **_POINTS,
    ),
    Measurement(
        "topology.hilbert_function",
        lambda values, **kwargs: topology.hilbert_function(
            topology.graph_bifiltration(values, _EDGES), **kwargs
        ).ranks.sum(),
        _nodes,
        reference=lambda values: sum(
            w * (values[:, 0] >= p[0]).sum() * (values[:, 1] >= p[1]).sum()
            for p, w in zip(*_components(values), strict=True)
        ),
        bad=[
            Bad((torch.zeros(6, 2),), {"degree": -1}, ValueError, "degree must be in"),
            Bad(
                (torch.zeros(6, 2),), {"grid": (torch.zeros(2, 2), torch.zeros(1))}, ValueError, r"grid\[0\] must have"
            ),
        ],
    ),
    Contract(
        "topology.function_rips",
        lambda points, function, **kwargs: topology.function_rips(points, function, **kwargs),
        _square,
        reference=lambda points, function: torch.cat(
            [
                torch.stack([torch.zeros(4).double(), function], 1),
                *(
                    torch.stack([(points[i] - points[j]).norm(), max(function[i], function[j])])[None]
                    for i, j in itertools.combinations(range(4), 2)
                ),
            ]
        ),
        large=(1,),
        bad=[
            Bad((torch.zeros(3), torch.zeros(3)), {}, ValueError, "points must have shape"),
            Bad((torch.zeros(3, 2), torch.zeros(2)), {}, ValueError, "function must have shape"),
            Bad((torch.zeros(3, 2), torch.full((3,), torch.inf)), {}, ValueError, "function must be finite"),
            Bad((torch.zeros(3, 2), torch.zeros(3)), {"max_dim": 0}, ValueError, "max_dim must be"),
            Bad((torch.zeros(3, 2), torch.zeros(3)), {"max_edge": -1.0}, ValueError, "max_edge must be >= 0"),
            Bad((torch.zeros(3, 2), torch.zeros(3).double()), {}, TypeError, "same dtype"),
        ],
        why=_SHAPES,
        **_OPEN,
        **_VALUES,
    ),
    Contract(
        "topology.graph_bifiltration",
        lambda values, edges=_EDGES: topology.graph_bifiltration(values, edges),
        _nodes,
        reference=lambda values: torch.cat([values, values[_EDGES].amax(1)]),
        bad=[
            Bad((torch.zeros(6, 3),), {}, ValueError, "node_values must have shape"),
            Bad((torch.full((6, 2), torch.nan),), {}, ValueError, "values must be finite"),
            Bad((torch.zeros(6, 2), torch.tensor([[0, 6]])), {}, ValueError, "edges must name nodes in 0..5"),
            Bad((torch.zeros(6, 2), torch.tensor([[1, 1]])), {}, ValueError, "different vertices in a row"),
            Bad((torch.zeros(6, 2), torch.tensor([[1.0, 2.0]])), {}, TypeError, "edges must be an int64 tensor"),
            Bad((torch.zeros(0, 2), torch.zeros(0, 2, dtype=torch.int64)), {}, ValueError, "at least one"),
        ],
        why=_SHAPES,
        **_OPEN,
        **_VALUES,
    ),
    Contract(
        "topology.codensity",
        lambda points, **kwargs: topology.codensity(points, **{"bandwidth": 0.5, **kwargs}),
        _two((5, 2)),
        reference=_density,
        scalars={"bandwidth": 0.5},
        batched=False,
        bad=[
            Bad((torch.zeros(3),), {}, ValueError, "points must have shape"),
            Bad((torch.zeros(3, 2),), {"bandwidth": 0.0}, ValueError, "bandwidth must be > 0"),
        ],
        why="points are one cloud",
    ),
    Contract(
        "topology.codensity[log]",
        lambda points, **kwargs: topology.codensity(points, log=True, **{"bandwidth": 0.5, **kwargs}),
        _two((5, 2)),
        reference=lambda points: -(-_density(points)).log(),
        batched=False,
        why="points are one cloud",
    ),
    Contract(
        "topology.signed_measure_distance",
        _distance,
        _two((3, 2), (2, 2)),
        reference=_assigned,
        large=(),
        bad=[
            Bad((torch.zeros(3, 2), torch.zeros(2, 2)), {"method": "slice"}, ValueError, "did you mean 'sliced'"),
            Bad((torch.zeros(3, 2), torch.zeros(2, 2)), {"lines": 0}, ValueError, "lines must be"),
            Bad((torch.zeros(3, 2), torch.zeros(2, 2).double()), {}, TypeError, "same dtype"),
            Bad((torch.zeros(3, 3), torch.zeros(2, 2)), {}, ValueError, "a.points must have shape"),
        ],
        batched=False,
        why="a sum of distances overflows; measures are ragged",
    ),
    Contract(
        "topology.signed_measure_distance[sliced]",
        lambda a, b: _distance(a, b, method="sliced", lines=4),
        _two((3, 2), (2, 2)),
        reference=_sliced,
        large=(),
        batched=False,
        why="a sum of distances overflows; measures are ragged",
    ),
    Contract(
        "topology.convolve_signed_measure",
        _convolved,
        _two((3, 2), (4, 2)),
        reference=_kernels,
        scalars={"bandwidth": 0.7},
        batched=False,
        bad=[
            Bad((torch.zeros(3, 2), torch.zeros(4, 3)), {}, ValueError, "queries must have shape"),
            Bad((torch.zeros(3, 2), torch.zeros(4, 2)), {"bandwidth": -1.0}, ValueError, "bandwidth must be > 0"),
        ],
        why="measures are ragged",
    ),
    Exempt(
        "topology.Bifiltration",
        "a container: simplices with two values each, which carry the gradient",
        tested="topology/test_multiparameter.py",
    ),
]
