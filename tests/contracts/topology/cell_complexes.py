"""Contracts of ``pullback.topology``: chordless cycles, cell complexes and message passing on them."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from pullback import topology
from tests.contracts.contract import Bad, Call, Contract, Measurement, Module

_EDGES = torch.tensor([[0, 0, 0, 1, 2, 3], [1, 2, 3, 2, 3, 4]])
_CYCLES = torch.tensor([[0, 1, 2], [0, 2, 3]])
_HOUSE = torch.tensor([[0, 1, 2, 0, 0, 1], [1, 2, 3, 3, 4, 4]])


def _complex(edge_weights: Tensor, cell_weights: Tensor) -> topology.CellComplex:
    device = edge_weights.device
    return topology.CellComplex(5, _EDGES.to(device), _CYCLES.to(device), edge_weights, cell_weights)


def _weights(g: torch.Generator) -> list[Call]:
    return [Call((0.1 + torch.rand(6, generator=g).double(), 0.1 + torch.rand(2, generator=g).double()))]


def _boundaries() -> tuple[Tensor, Tensor]:
    first, second = torch.zeros(5, 6).double(), torch.zeros(6, 2).double()
    place = {tuple(pair): e for e, pair in enumerate(_EDGES.mT.tolist())}
    for (i, j), e in place.items():
        first[i, e], first[j, e] = -1, 1
    for p, cycle in enumerate(_CYCLES.tolist()):
        for a, b in zip(cycle, cycle[1:] + cycle[:1], strict=True):
            second[place[min(a, b), max(a, b)], p] = 1 if a < b else -1
    return first, second


def _laplacians(edge_weights: Tensor, cell_weights: Tensor) -> tuple[Tensor, ...]:
    first, second = _boundaries()
    return (
        first @ torch.diag(edge_weights) @ first.T,
        first.T @ first + second @ torch.diag(cell_weights) @ second.T,
        second.T @ second,
        second.abs() @ torch.diag(cell_weights) @ second.abs().T * (1 - torch.eye(6)),
    )


def _by_subsets(edges: Tensor) -> Tensor:
    """Every set of three or four nodes in which each has two neighbours, all in one piece."""
    pairs = {frozenset(pair) for pair in edges.mT.tolist()}
    found = []
    for size in (3, 4):
        for nodes in itertools.combinations(range(5), size):
            for rest in itertools.permutations(nodes[1:]):
                walk = (nodes[0], *rest)
                sides = [frozenset((a, b)) for a, b in zip(walk, walk[1:] + walk[:1], strict=True)]
                inside = [pair for pair in pairs if pair <= set(nodes)]
                if rest[0] < rest[-1] and set(sides) == set(inside) and len(inside) == size:
                    found.append([*walk, *[-1] * (4 - size)])
    return torch.tensor(sorted(found))


def _convolved(module: Any, x: Tensor, edge_weights: Tensor, cell_weights: Tensor) -> Tensor:
    return module(x, _complex(edge_weights, cell_weights))


def _convolved_by_loops(module: Any, x: Tensor, edge_weights: Tensor, cell_weights: Tensor) -> Tensor:
    second, rows = _boundaries()[1].abs(), []
    for e in range(6):
        lower = [f for end in _EDGES[:, e] for f in range(6) if end in _EDGES[:, f]]
        upper = [(p, f) for p in range(2) if second[e, p] for f in range(6) if second[f, p]]
        down = sum(edge_weights[f] * x[f] for f in lower) / sum(edge_weights[f] for f in lower)
        up = sum((cell_weights[p] * x[f] for p, f in upper), torch.zeros(3).double())
        up = up / sum(cell_weights[p] for p, _ in upper) if upper else up
        rows.append(torch.relu(module.own(x[e]) + module.down(down) + module.up(up)))
    return torch.stack(rows)


def _convolution(g: torch.Generator) -> topology.CellConvolution:
    return topology.CellConvolution(3, 2, generator=g)


def _inferred(module: Any, x: Tensor) -> tuple[Tensor, ...]:
    cells = module(x)
    nodes = torch.arange(len(x), device=x.device)
    reward = topology.topology_reward(cells, nodes < 3, x.new_full((len(x),), 0.3))
    return cells.edge_weights, cells.cell_weights, reward


CONTRACTS = [
    Measurement(
        "topology.chordless_cycles",
        lambda edges, **kwargs: topology.chordless_cycles(edges, 5, **{"max_length": 4, **kwargs}),
        lambda g: [Call((_HOUSE,)), Call((_EDGES,))],
        reference=_by_subsets,
        layouts=False,
        why="integers in, integers out",
        bad=[
            Bad((_HOUSE,), {"max_length": 2}, ValueError, "max_length must be an integer >= 3"),
            Bad((torch.tensor([[0], [5]]),), {}, ValueError, "edges must be in 0..4"),
            Bad((torch.tensor([[1], [1]]),), {}, ValueError, "must join two different nodes"),
            Bad((torch.tensor([0, 1]),), {}, ValueError, "edges must have shape"),
            Bad((torch.tensor([[0.0], [1.0]]),), {}, TypeError, "edges must be an int64 tensor"),
        ],
    ),
    Contract(
        "topology.CellComplex",
        lambda e, c: (
            *[_complex(e, c).hodge_laplacian(k, weighted=True).to_dense() for k in range(3)],
            _complex(e, c).upper_adjacency().to_dense(),
        ),
        _weights,
        reference=_laplacians,
        batched=False,
        gradgradcheck=False,
        forward_mode=False,
        vmap=False,
        compile=False,
        half=False,
        large=(),
        bad=[
            Bad((torch.ones(5), torch.ones(2)), {}, ValueError, "edge_weights must have shape"),
            Bad((torch.ones(6), torch.ones(3)), {}, ValueError, "cell_weights must have shape"),
        ],
        why="linear in its weights, by torch's sparse products, of one complex",
    ),
    Module(
        "topology.CellConvolution",
        _convolved,
        lambda g: [Call((torch.randn(6, 3, generator=g).double(), *_weights(g)[0].args))],
        build=_convolution,
        reference=lambda x, e, c: _convolved_by_loops(_convolution(torch.Generator().manual_seed(0)).double(), x, e, c),
        batched=False,
        vmap=False,
        compile=False,
        half_tolerance=6e-2,
        large_limit=1e4,
        bad=[
            Bad((torch.ones(5, 3), torch.ones(6), torch.ones(2)), {}, ValueError, "x must have shape"),
            Bad((torch.ones(6, 4), torch.ones(6), torch.ones(2)), {}, ValueError, "x must have shape"),
        ],
        why="one complex a call, whose cells are checked; a linear map leaves the range of half precision",
    ),
    Module(
        "topology.DifferentiableCellComplex",
        _inferred,
        lambda g: [Call((torch.randn(7, 2, generator=g).double(),))],
        build=lambda g: topology.DifferentiableCellComplex(2, 4, scale=1.0, limit=9, generator=g),
        batched=False,
        vmap=False,
        compile=False,
        half=False,
        large=(),
        bad=[
            Bad((torch.ones(5, 3),), {}, ValueError, "x must have shape"),
            Bad((torch.ones(1, 2),), {}, ValueError, "a graph with no edge"),
            Bad((torch.full((4, 2), torch.nan),), {}, ValueError, "z must be finite"),
        ],
        why="which cells there are depends on the values: rounding or scale may add one",
    ),
    Contract(
        "topology.topology_reward",
        lambda e, c, expected: topology.topology_reward(_complex(e, c), torch.arange(5, device=e.device) < 2, expected),
        lambda g: [Call((*_weights(g)[0].args, torch.rand(5, generator=g).double()))],
        reference=lambda e, c, expected: (
            sum(
                (expected[i] - float(i < 2))
                * (e[(i == _EDGES).any(0)].log().sum() + c[(i == _CYCLES).any(1)].log().sum())
                for i in range(5)
            )
            / 5
        ),
        batched=False,
        vmap=False,
        compile=False,
        half_tolerance=6e-2,
        large=(),
        bad=[
            Bad((torch.ones(6), torch.ones(2), torch.ones(4)), {}, ValueError, "expected must have shape"),
        ],
        why="one complex a call; weights and accuracies are at most 1",
    ),
]
