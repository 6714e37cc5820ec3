"""Contracts of ``pullback.topology``: generalised norms, pooling modules, random graphs and networks on them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import scipy.sparse
import torch
from scipy.sparse import csgraph
from torch import Tensor, nn

from pullback import topology
from tests.contracts.contract import Bad, Call, Contract, Exempt, Measurement, Module

_INDEX = torch.tensor([2, 0, 2, 2])
_MASK = torch.tensor([True, True, False, True])


def _items(*shape: int, place: int = 0) -> Any:
    """Entries of both signs, away from the kink at 0."""

    def samples(generator: torch.Generator) -> list[Call]:
        size = 0.2 + torch.rand(*shape, generator=generator, dtype=torch.float64)
        sign = 2.0 * torch.randint(2, shape, generator=generator) - 1
        return [Call((size * sign,))]

    return samples


def _exponents(p: Any, q: Any) -> Any:
    def samples(generator: torch.Generator) -> list[Call]:
        (call,) = _items(4, len(p))(generator)
        return [Call((*call.args, torch.as_tensor(p).double(), torch.as_tensor(q).double()))]

    return samples


def _in_segments(x: Tensor, p: Any = 2.0, q: Any = 0.0, count: int = 3) -> Tensor:
    index = _INDEX.to(x.device) if isinstance(x, Tensor) else _INDEX
    return topology.norm_pool(x, index, count, p=p, q=q)


def _in_a_row(x: Tensor, p: Any = 2.0, q: Any = 0.0, **options: Any) -> Tensor:
    if options.get("mask") is None:
        options["mask"] = _MASK.to(x.device)
    return topology.norm_pool(x, p=p, q=q, **options)


def _by_definition(rows: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """Equation 3, with the three limits spelled out; the empty set is 0."""
    size = rows.abs()
    if len(size) == 0:
        return torch.zeros_like(rows.sum(0))
    columns = []
    for column, a, b in zip(size.unbind(-1), p.expand(size.shape[-1]), q.expand(size.shape[-1]), strict=True):
        whole = column.max() if a == math.inf else column.min() if a == -math.inf else (column**a).sum() ** (1 / a)
        columns.append(whole / len(column) ** b)
    return torch.stack(columns)


def _segments_by_definition(x: Tensor, p: Any = 2.0, q: Any = 0.0, count: int = 3) -> Tensor:
    p, q = torch.as_tensor(p).double(), torch.as_tensor(q).double()
    return torch.stack([_by_definition(x[s == _INDEX], p, q) for s in range(count)])


def _row_by_definition(x: Tensor, p: Any = 2.0, q: Any = 0.0) -> Tensor:
    p, q = torch.as_tensor(p).double(), torch.as_tensor(q).double()
    return _by_definition(x[_MASK], p, q)


def _number_row(name: str, p: float, q: float) -> Contract:
    """Exponents as numbers, those at infinity included."""
    return Contract(
        f"topology.norm_pool[{name}]",
        lambda x: _in_a_row(x, p, q),
        _items(4, 2),
        lambda x: _row_by_definition(x, p, q),
        large_limit=1e4,
        why="a norm of the largest numbers is their largest: it saturates",
    )


_X = torch.ones(4, 2)
_BAD = [
    Bad((_X, 0.0), {}, ValueError, "p must be a number other than 0, got 0"),
    Bad((_X, math.nan), {}, ValueError, "p must be a number other than 0"),
    Bad((_X, torch.tensor([1.0, 0.0])), {}, ValueError, "p must be a number other than 0, got 0"),
    Bad((_X, 2.0, math.inf), {}, ValueError, "q must be finite, got inf"),
    Bad((_X, 2.0, torch.tensor(math.nan)), {}, ValueError, "q must be finite"),
    Bad((_X, "2"), {}, TypeError, "p must be a number or a floating tensor"),
    Bad((_X, torch.ones(3)), {}, ValueError, "p must broadcast against the result"),
    Bad((_X.long(),), {}, TypeError, "x must be a floating tensor"),
]


def _graphs(generator: torch.Generator) -> list[Call]:
    kinds = [("er", (4, 9)), ("ba", 9), ("tree", (2, 8)), ("ladder", 7), ("path", 2), ("complete", 5)]
    return [Call((topology.random_graphs(kind, 3, n, generator=generator),)) for kind, n in kinds]


def _by_networkx(graphs: topology.GraphBatch) -> Tensor:
    degrees = []
    for graph in range(graphs.count):
        own = (graphs.index == graph).nonzero().flatten().tolist()
        degrees.append(max(int((graphs.edges[0] == node).sum()) for node in own))
    return torch.tensor(degrees)


_NET = topology.batch_graphs(
    [torch.tensor([[0, 1], [1, 2], [0, 2], [2, 3]]), torch.tensor([[0, 1], [1, 2], [0, 3], [3, 2]])], [4, 4]
)
_ENDS = (torch.tensor([0, 4]), torch.tensor([3, 6]))


def _paths(lengths: Tensor, ends: tuple[Tensor, Tensor] = _ENDS) -> Tensor:
    graphs = topology.GraphBatch(_NET.edges.to(lengths.device), _NET.index.to(lengths.device), _NET.count)
    return topology.shortest_path_length(graphs, *(end.to(lengths.device) for end in ends), lengths=lengths)


def _by_dijkstra(lengths: Tensor) -> Tensor:
    (rows, columns), n = _NET.edges.numpy(), len(_NET.index)
    matrix = scipy.sparse.csr_matrix((lengths.numpy(), (rows, columns)), shape=(n, n))
    found = csgraph.dijkstra(matrix, indices=_ENDS[0].numpy())
    return torch.from_numpy(found[np.arange(2), _ENDS[1].numpy()])


def _pool(split: bool, p_init: float = 2.0) -> Any:
    return lambda g: topology.GeneralizedNormPool(2, split=split, p_init=p_init, q_init=0.3, generator=g)


def _seeded(module: nn.Module, generator: torch.Generator) -> nn.Module:
    for parameter in module.parameters():
        nn.init.uniform_(parameter, 0.1, 1, generator=generator)
    return module


_GRAPHS = topology.batch_graphs([torch.tensor([[0, 1], [1, 2], [0, 2]]), torch.tensor([[0, 1]])], [3, 2])


_V = torch.tensor([[1.0, -2.0, 0.5], [0.3, 1.0, -1.0]], dtype=torch.float64)
_W = torch.tensor([[1.0, 0.2], [-0.5, 1.0], [0.3, 0.4]], dtype=torch.float64)


def _set_network(generator: torch.Generator) -> nn.Module:
    module = topology.SetNetwork(2, 3, 2, pool="max", generator=generator).double()
    with torch.no_grad():
        module.item.weight.copy_(_V.T)
        module.head.weight.copy_(_W.T)
        module.head.bias.fill_(0.5)
    return module


def _network(module: nn.Module, x: Tensor) -> Tensor:
    graphs = topology.GraphBatch(_GRAPHS.edges.to(x.device), _GRAPHS.index.to(x.device), _GRAPHS.count)
    return module(x, graphs)


def _nodes(generator: torch.Generator) -> list[Call]:
    return [Call((torch.rand(5, 2, generator=generator, dtype=torch.float64),))]


CONTRACTS = [
    Contract(
        "topology.norm_pool[an exponent a feature]",
        _in_segments,
        _exponents([-7.0, -1.0, 0.5, 2.0, 30.0], [0.3, 0.0, 1.0, -0.5, 0.3]),
        _segments_by_definition,
        bad=_BAD,
        batched=False,
        large_limit=1e4,
        half_tolerance=0.1,
        why="with an index the first dimension is that of the rows; a norm of the largest numbers saturates",
    ),
    Contract(
        "topology.norm_pool[exponents of a feature and infinity]",
        lambda x: _in_segments(x, torch.tensor([math.inf, -2.0]).to(x), 0.5),
        _items(4, 2),
        lambda x: _segments_by_definition(x, [math.inf, -2.0], 0.5),
        batched=False,
        large_limit=1e4,
        why="with an index the first dimension is that of the rows; a norm of the largest numbers saturates",
    ),
    Contract(
        "topology.norm_pool[masked]",
        _in_a_row,
        _items(4, 3),
        _row_by_definition,
        scalars={"p": 0.7, "q": -0.4},
        large_limit=1e4,
        why="a norm of the largest numbers is their largest: it saturates",
    ),
    *(
        _number_row(name, p, q)
        for name, p, q in (("sum", 1, 0), ("mean", 1, 1), ("max", math.inf, 0), ("min", -math.inf, 0.5))
    ),
    *(
        Module(
            f"topology.GeneralizedNormPool[{name}]",
            lambda module, x, count=3: module(x, _INDEX.to(x.device), count),
            _items(4, 2),
            build=_pool(split, p_init),
            batched=False,
            bad=[
                Bad((torch.ones(4, 3),), {}, ValueError, r"x must have shape \(\.\.\., any, 2\)"),
                Bad((torch.ones(2),), {}, ValueError, r"x must have shape \(\.\.\., any, 2\)"),
            ],
            large_limit=1e4,
            half_tolerance=0.1,
            why="the first dimension is that of the rows; norms of large numbers leave the range of half",
        )
        for name, split, p_init in (("split", True, 2.0), ("one norm", False, 2.0), ("one negative", False, -2.0))
    ),
    Contract(
        "topology.SegmentPool",
        lambda x, count=3: topology.SegmentPool("mean")(x, _INDEX.to(x.device), count),
        _items(4, 2),
        lambda x: torch.stack([x[s == _INDEX].mean(0) if s != 1 else torch.zeros_like(x[0]) for s in range(3)]),
        bad=[Bad((_X, 2), {}, ValueError, r"index must be in 0\.\.1, got 2")],
        batched=False,
        why="the first dimension is that of the rows",
    ),
    Module(
        "topology.SetNetwork",
        lambda module, x, count=3: module(x, _INDEX.to(x.device), count),
        _items(4, 2),
        lambda x: torch.stack(
            [
                (x[s == _INDEX] @ _V).abs().amax(0) @ _W + 0.5 if s != 1 else torch.full((2,), 0.5).to(x)
                for s in range(3)
            ]
        ),
        build=_set_network,
        bad=[
            Bad((torch.ones(4, 3),), {}, ValueError, r"x must have shape \(\.\.\., any, 2\)"),
            Bad((torch.ones(4, 2), 2), {}, ValueError, r"index must be in 0\.\.1, got 2"),
        ],
        batched=False,
        large_limit=1e4,
        half_tolerance=0.1,
        why="the first dimension is that of the rows; sums of large numbers leave the range of half",
    ),
    Module(
        "topology.GraphNetwork",
        _network,
        _nodes,
        build=lambda g: _seeded(topology.GraphNetwork(2, 3, 2, layers=2, aggregate="mean", readout="max"), g),
        bad=[
            Bad((torch.ones(5, 3),), {}, ValueError, r"x must have shape \(5, 2\), got \(5, 3\)"),
            Bad((torch.ones(4, 2),), {}, ValueError, r"x must have shape \(5, 2\), got \(4, 2\)"),
        ],
        batched=False,
        large_limit=1e4,
        half_tolerance=0.1,
        why="the first dimension is that of the nodes; sums of large numbers leave the range of half",
    ),
    Contract(
        "topology.shortest_path_length",
        _paths,
        lambda g: [Call((0.1 + torch.rand(_NET.edges.shape[1], generator=g, dtype=torch.float64),))],
        _by_dijkstra,
        bad=[
            Bad((-torch.ones(16),), {}, ValueError, "lengths must be >= 0, got -1"),
            Bad((torch.ones(3),), {}, ValueError, r"lengths must have shape \(16,\)"),
            Bad((torch.ones(16), (torch.zeros(3, dtype=int), _ENDS[1])), {}, ValueError, "source must have shape"),
            Bad(
                (torch.ones(16), (_ENDS[0], torch.tensor([0, 8]))), {}, ValueError, r"target must name nodes in 0\.\.7"
            ),
            Bad((torch.ones(16).long(),), {}, TypeError, "lengths must be a floating tensor"),
        ],
        batched=False,
        vmap=False,
        compile=False,
        large_limit=1e4,
        why="lengths of one batch of graphs; it looks whether a round still changed something; sums overflow",
    ),
    Measurement("topology.max_degree", topology.max_degree, _graphs, _by_networkx),
    Exempt(
        "topology.random_graphs", "draws graphs: counted, compared with definitions", "topology/test_graph_families.py"
    ),
    Exempt("topology.batch_graphs", "integers in, integers out", "topology/test_graph_families.py"),
    Exempt("topology.replace_pooling", "changes a module in place", "topology/test_pooling.py"),
]
