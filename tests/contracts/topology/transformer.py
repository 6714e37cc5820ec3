"""Contracts of ``pullback.topology``: pruned tokens, attention whose heads close, graph transformers, encodings."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pullback import topology
from tests.contracts.contract import Bad, Call, Contract, Exempt, HigherOrder, Measurement, Module

_STRAIGHT = "the value is that of the kept tokens, the gradient that of a softmax: tested in topology/test_sparsity.py"
_MASK = torch.tensor([[True, True, True, True, False], [True, True, False, True, True]])


def _rand(*shape: int) -> Any:
    return lambda g: [Call((torch.randn(*shape, generator=g, dtype=torch.float64),))]


def _tokens(g: torch.Generator) -> list[Call]:
    x, scores = (torch.randn(*shape, generator=g, dtype=torch.float64) for shape in ((2, 5, 3), (2, 5)))
    return [Call((x, scores)), Call((x, scores, 0.5)), Call((x[0], scores[0], 0.9))]


def _prune(x: Tensor, scores: Tensor, keep: float = 0.7, **options: Any) -> Tensor:
    return topology.token_prune(x, scores, keep, **options).tokens


def _sorted_by_hand(x: Tensor, scores: Tensor, keep: float = 0.7) -> Tensor:
    count = int(x.shape[-2] * keep)
    rows = [
        r[sorted(s.tolist().index(v) for v in sorted(s.tolist())[-count:])]
        for r, s in zip(x.reshape(-1, *x.shape[-2:]), scores.reshape(-1, x.shape[-2]), strict=True)
    ]
    return torch.stack(rows).reshape(*x.shape[:-2], count, x.shape[-1])


def _attention_by_hand(x: Tensor) -> Tensor:
    module = topology.HeadAttention(4, 2, generator=torch.Generator().manual_seed(0)).double()
    out = module.bias.expand_as(x).clone()
    for head in range(2):
        q, k, v = (x @ module.project[part, head].T for part in range(3))
        shares = (q @ k.mT / 2**0.5).softmax(-1)
        out = out + shares @ v @ module.combine[head]
    return out.detach()


_GRAPHS = topology.batch_graphs([torch.tensor([[0, 1], [1, 2], [0, 2]]), torch.tensor([[0, 1]])], [3, 2])


def _on(x: Tensor) -> topology.GraphBatch:
    return topology.GraphBatch(_GRAPHS.edges.to(x.device), _GRAPHS.index.to(x.device), _GRAPHS.count)


def _importance_by_hand(x: Tensor) -> Tensor:
    module = topology.HeadAttention(4, 2, generator=torch.Generator().manual_seed(0)).double()
    found = torch.zeros(1, 2, dtype=torch.float64)
    for row in x:
        for head in range(2):
            scale = torch.ones(2, dtype=torch.float64, requires_grad=True)
            parts = []
            for h in range(2):
                q, k, v = (row @ module.project[part, h].T for part in range(3))
                parts.append(scale[h] * ((q @ k.T / 2**0.5).softmax(-1) @ v @ module.combine[h]))
            (slope,) = torch.autograd.grad((sum(parts) + module.bias).square().sum(), scale)
            found[0, head] += slope[head].abs() / len(x)
    return found


def _importance(loss: Any, x: Tensor) -> Tensor:
    module = topology.HeadAttention(4, 2, generator=torch.Generator().manual_seed(0)).to(x)
    return topology.head_importance(module, loss, [x])


def _removal_by_hand(x: Tensor) -> Tensor:
    module = topology.HeadAttention(4, 2, generator=torch.Generator().manual_seed(0)).double()
    full, found = module(x).square().sum((1, 2)), torch.zeros(1, 2, dtype=torch.float64)
    for head in range(2):
        module.outputs.keep([1 - head])
        found[0, head] = (module(x).square().sum((1, 2)) - full).abs().mean()
    return found.detach()


def _removal(loss: Any, x: Tensor) -> Tensor:
    module = topology.HeadAttention(4, 2, generator=torch.Generator().manual_seed(0)).to(x)
    return topology.head_importance(module, loss, [x], method="removal")


def _transformer(**options: Any) -> Any:
    return lambda g: topology.GraphTransformer(2, 4, 2, 2, 2, places=2, generator=g, **options)


def _places_by_hand(graphs: topology.GraphBatch, steps: int = 3) -> Tensor:
    rows = []
    for number in range(graphs.count):
        own = (graphs.index == number).nonzero().flatten()
        n, start = len(own), int(own[0])
        walk = torch.zeros(n, n, dtype=torch.float64)
        for source, target in graphs.edges.T.tolist():
            if start <= source < start + n:
                walk[source - start, target - start] = 1
        walk = walk / walk.sum(1, keepdim=True).clamp(min=1)
        rows.append(torch.stack([torch.linalg.matrix_power(walk, k).diagonal() for k in range(1, steps + 1)], -1))
    return torch.cat(rows).float()


_NODES = Call((torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], dtype=torch.float64), torch.tensor([0, 0, 2]), 3))
_X, _S = torch.zeros(2, 5, 3), torch.zeros(2, 5)

CONTRACTS = [
    Contract(
        "topology.token_prune",
        _prune,
        _tokens,
        _sorted_by_hand,
        bad=[
            Bad((_X, _S, 0.0), {}, ValueError, r"keep must be a share in \(0, 1\], got 0"),
            Bad((_X, _S, 1.2), {}, ValueError, r"keep must be a share in \(0, 1\], got 1\.2"),
            Bad((_X, _S, 0.1), {}, ValueError, "keep leaves fewer tokens than one and those protected: 0 of 5"),
            Bad((_X, _S, torch.tensor([2, 6])), {}, ValueError, "keep leaves more than it has: 6 of 5"),
            Bad((_X, _S, torch.tensor([2.0, 1.0])), {}, TypeError, "keep must be a number or an integer tensor"),
            Bad((_X, _S[0]), {}, ValueError, "scores must have the shape of x without its last dimension"),
            Bad((_X, _S), {"temperature": 0.0}, ValueError, "temperature must be > 0"),
            Bad((_X, _S), {"mask": _S}, TypeError, "mask must be a boolean tensor"),
            Bad((_X, _S), {"protect": _MASK[0]}, ValueError, r"protect must have shape \(2, 5\)"),
        ],
        batched=False,
        large=(0, 1),
        gradcheck=False,
        gradgradcheck=False,
        forward_mode=False,
        vmap=False,
        compile=False,
        why=f"{_STRAIGHT}; how many tokens are left depends on values",
    ),
    HigherOrder(
        "topology.stochastic_depth",
        lambda branch, x: topology.stochastic_depth(x, branch, rate=0.3, training=False),
        _rand(3, 2),
        lambda x: x + x.sin(),
        given=torch.sin,
        argument="branch",
    ),
    Module(
        "topology.HeadAttention",
        lambda module, x: module(x),
        _rand(2, 3, 4),
        _attention_by_hand,
        build=lambda g: topology.HeadAttention(4, 2, generator=g),
        bad=[Bad((torch.zeros(3, 5),), {}, ValueError, r"x must have shape \(\.\.\., n, 4\), got \(3, 5\)")],
        large_limit=10.0,
        vmap=False,
        compile=False,
        why="a softmax of large products is a choice; which heads are closed is looked at",
    ),
    Module(
        "topology.GraphTransformer",
        lambda module, x: module(x, _on(x)),
        _rand(5, 2),
        build=_transformer(),
        bad=[
            Bad((torch.zeros(4, 2),), {}, ValueError, r"x must have shape \(5, 2\), got \(4, 2\)"),
        ],
        idle=[f"stack.layers.{n}.score.{kind}" for n in range(2) for kind in ("weight", "bias")],
        batched=False,
        forward_mode=False,
        large_limit=10.0,
        vmap=False,
        compile=False,
        half=False,
        why="a batch of graphs is one list of nodes, whose sizes are looked at; torch's LayerNorm is wrong in nested "
        "forward mode; a LayerNorm of a short row is as steep as its row is short",
    ),
    *(
        HigherOrder(
            f"topology.head_importance[{method}]",
            block,
            _rand(2, 3, 4),
            by_hand,
            tolerance=1e-6,
            given=lambda module, x: module(x).square().sum((1, 2)),
            argument="loss",
            batched=False,
            gradcheck=False,
            gradgradcheck=False,
            forward_mode=False,
            vmap=False,
            compile=False,
            half=False,
            large=(),
            why="a measurement: it is not differentiated",
        )
        for method, block, by_hand in (
            ("gradient", _importance, _importance_by_hand),
            ("removal", _removal, _removal_by_hand),
        )
    ),
    Exempt("topology.head_similarity", "measures a module that it is given", "topology/test_sparsity.py"),
    Measurement(
        "topology.random_walk_encoding",
        lambda graphs, steps=3: topology.random_walk_encoding(graphs, steps),
        lambda g: [Call((topology.random_graphs(kind, 3, (2, 6), generator=g),)) for kind in ("er", "tree")],
        _places_by_hand,
        tolerance=1e-6,
        bad=[Bad((_GRAPHS, 0), {}, ValueError, "steps must be an integer >= 1")],
    ),
    Exempt("topology.laplacian_encoding", "its signs are drawn", "topology/test_sparsity.py"),
    Contract(
        "topology.pad_nodes",
        lambda values, index=_NODES.args[1], count=3: topology.pad_nodes(values, index.to(values.device), count).values,
        lambda g: [Call((torch.randn(3, 2, generator=g, dtype=torch.float64),))],
        lambda values: torch.stack(
            [values[:2], torch.zeros_like(values[:2]), torch.stack([values[2], torch.zeros_like(values[2])])]
        ),
        bad=[
            Bad((torch.zeros(3), torch.tensor([1, 0, 0])), {}, ValueError, "index must not decrease"),
            Bad((torch.zeros(2),), {}, ValueError, "index must have one entry a row"),
        ],
        batched=False,
        vmap=False,
        compile=False,
        why="the first dimension is that of the nodes; the size of the result depends on the index",
    ),
    Exempt("topology.LayerSelector", "runs modules that it is given", "topology/test_sparsity.py"),
    Exempt("topology.GradualMagnitudePruner", "changes weights in place", "topology/test_sparsity.py"),
    Exempt("topology.hub_colours", "draws colours: compared with networkx", "topology/test_graph_families.py"),
    Exempt("topology.join_graphs", "integers in, integers out", "topology/test_graph_families.py"),
]
