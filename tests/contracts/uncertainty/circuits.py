"""Contracts of circuits: against sums over all states."""

from __future__ import annotations

import itertools
import math
from typing import Any

import networkx
import torch
from sklearn.metrics import mutual_info_score
from torch import Tensor

from pullback.uncertainty import (
    CircuitWeights,
    IntegralCircuit,
    TreeCircuit,
    chow_liu_tree,
    log_einsum_exp,
    quadrature,
)
from tests.contracts.contract import Bad, Call, Contract, Exempt, Measurement, Module

_PARENTS = [1, -1, 1, 2]
_PAIR = torch.zeros(2, 2)


def _normal(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def _density(x: Tensor, root: Tensor, sums: Tensor, leaves: Tensor) -> Tensor:
    """All states of all four latents, one by one: of the second variable, the root, then the first, third, fourth."""
    if x.ndim > 1:
        return torch.stack([_density(row, root, sums, leaves) for row in x])
    mean, log_scale = leaves.unbind(-1)
    law = torch.distributions.Normal(mean, log_scale.exp()).log_prob(x[:, None])
    terms = [
        root[a] + sums[0][a, b] + sums[1][a, c] + sums[2][c, d] + law[1, a] + law[0, b] + law[2, c] + law[3, d]
        for a, b, c, d in itertools.product(range(len(root)), repeat=4)
    ]
    whole = [
        root[a] + sums[0][a, b] + sums[1][a, c] + sums[2][c, d]
        for a, b, c, d in itertools.product(range(len(root)), repeat=4)
    ]
    return torch.stack(terms).logsumexp(0) - torch.stack(whole).logsumexp(0)


def _given(x: Tensor, root: Tensor, sums: Tensor, leaves: Tensor) -> Tensor:
    return TreeCircuit(_PARENTS, "gaussian", weights=CircuitWeights(root, sums, leaves)).log_prob(x)


def _free(g: torch.Generator) -> TreeCircuit:
    return TreeCircuit(_PARENTS, "gaussian", width=2, generator=g)


def _integral(model: IntegralCircuit, x: Tensor) -> Tensor:
    rule = quadrature("midpoint", 3, log=True, dtype=x.dtype, device=x.device)
    return model.materialize(*rule).log_prob(x)


def _same_density(x: Tensor) -> Tensor:
    """Of the networks that the law makes, materialised by hand."""
    model = IntegralCircuit(_PARENTS, "gaussian", units=4, generator=torch.Generator().manual_seed(0)).double()
    points = torch.tensor([[-2 / 3], [0.0], [2 / 3]], dtype=torch.float64)

    def net(nets: Any, k: int, z: Tensor) -> Tensor:
        angles = 2 * math.pi * z @ nets.frequencies[k]
        hidden = torch.cat([angles.cos(), angles.sin()], -1) @ nets.weight[k] + nets.bias[k]
        hidden = hidden * hidden.sigmoid() if nets is model.leaf_nets else hidden.tanh()
        return hidden @ nets.head[k] + nets.offset[k]

    def part(nets: Any, k: int, z: Tensor) -> Tensor:
        return 1 / (1 + net(nets, k, z).exp())

    root = part(model.root_net, 0, points).flatten()
    pairs = torch.stack([torch.cat([a, b]) for a in points for b in points])
    sums = [part(model.sum_nets, i, pairs).view(3, 3) for i in range(3)]
    sums = torch.stack([s / s.sum(1, keepdim=True) for s in sums]).log()
    leaves = torch.stack([net(model.leaf_nets, v, points) for v in range(4)])
    return _density(x, (root / root.sum()).log(), sums, leaves)


def _drawn(g: torch.Generator) -> Tensor:
    first = torch.randint(2, (200,), generator=g)
    flips = torch.rand(200, 4, generator=g) < torch.tensor([0.1, 0.15, 0.2, 0.25])
    columns = [first]
    for flip, parent in zip(flips.T, (0, 1, 2, 1), strict=True):
        columns.append(torch.where(flip, 1 - columns[parent], columns[parent]))
    return torch.stack(columns, 1)


def _best_tree(data: Tensor, **words: Any) -> Tensor:
    graph = networkx.Graph()
    for a, b in itertools.combinations(range(data.shape[1]), 2):
        if words.get("kind") == "gaussian":
            weight = -math.log(1 - float(torch.corrcoef(data[:, [a, b]].T)[0, 1]) ** 2) / 2
        else:
            weight = mutual_info_score(data[:, a], data[:, b])
        graph.add_edge(a, b, weight=weight)
    tree = networkx.maximum_spanning_tree(graph)
    root = min(networkx.center(tree))
    parents = torch.full((data.shape[1],), -1)
    for parent, child in networkx.bfs_edges(tree, root):
        parents[child] = parent
    return parents


CONTRACTS = [
    Contract(
        "uncertainty.log_einsum_exp",
        lambda x, w: log_einsum_exp(w, x),
        lambda g: [Call((_normal(g, 2, 3, 4), _normal(g, 2, 4))), Call((30 * _normal(g, 3, 2), _normal(g, 4, 2, 2)))],
        reference=lambda x, w: torch.logsumexp(x[..., None, :] + w[..., None, :, :], -1),
        large=(0, 1),
        bad=[
            Bad((torch.zeros(2), _PAIR), {}, ValueError, r"log_x must have shape \[\*batch, rows, m\]"),
            Bad((_PAIR, torch.zeros(2, 3)), {}, ValueError, "must end with the same m >= 1"),
            Bad((torch.zeros(2, 0), torch.zeros(2, 0)), {}, ValueError, "must end with the same m >= 1"),
            Bad((_PAIR, _PAIR.double()), {}, TypeError, "must have the same dtype"),
            Bad((_PAIR.long(), _PAIR), {}, TypeError, "log_x must be a floating tensor"),
            Bad((torch.zeros(3, 2, 2), torch.zeros(2, 2, 2)), {}, ValueError, "must have shapes that broadcast"),
        ],
    ),
    Contract(
        "uncertainty.TreeCircuit[given]",
        _given,
        lambda g: [Call((_normal(g, 2, 4), _normal(g, 2), _normal(g, 3, 2, 2), _normal(g, 4, 2, 2)))],
        reference=_density,
        large=(1, 2),
        large_limit=1e2,
        half_tolerance=6e-2,
        compile=False,
        why="what is large in weights cancels in the normalisation; a module is made in each call: the entry with free "
        "weights is compiled",
        bad=[
            Bad((torch.zeros(4), _PAIR, _PAIR, _PAIR), {}, ValueError, r"weights.root must have shape \[N\]"),
            Bad((torch.zeros(4), torch.zeros(2), _PAIR, _PAIR), {}, ValueError, r"weights.sums must have shape \(3, 2"),
        ],
    ),
    Module(
        "uncertainty.TreeCircuit",
        lambda module, x: module.log_prob(x),
        lambda g: [Call((_normal(g, 3, 4),))],
        build=_free,
        large_limit=1e8,
        why="a square of the largest numbers overflows by nature",
        half_tolerance=6e-2,
        bad=[
            Bad((torch.zeros(3),), {}, ValueError, r"x must have shape \(..., 4\), got \(3,\)"),
            Bad((torch.tensor([0.0, 1.0, math.nan, 0.0]),), {}, ValueError, "x must be finite where it is observed"),
        ],
    ),
    Module(
        "uncertainty.IntegralCircuit",
        _integral,
        lambda g: [Call((_normal(g, 2, 4),))],
        build=lambda g: IntegralCircuit(_PARENTS, "gaussian", units=4, generator=g),
        reference=_same_density,
        large_limit=1e8,
        compile=False,
        why="a module is made in each call; a square of the largest numbers overflows by nature",
        half_tolerance=6e-2,
    ),
    Measurement(
        "uncertainty.chow_liu_tree",
        chow_liu_tree,
        lambda g: [
            Call((_drawn(g),), {"smoothing": 0.0}),
            Call((_drawn(g),), {"kind": "categorical", "categories": 3, "smoothing": 0.0}),
            Call((_normal(g, 50, 6) @ _normal(g, 6, 6),), {"kind": "gaussian"}),
        ],
        reference=_best_tree,
        bad=[
            Bad((torch.zeros(1, 3),), {}, ValueError, r"data must have shape \[n >= 2, variables >= 1\]"),
            Bad((torch.full((3, 2), 0.5),), {}, ValueError, "data must hold 0 and 1 for binary"),
            Bad((torch.zeros(3, 2),), {"kind": "tree"}, ValueError, "kind must be one of"),
            Bad((torch.zeros(3, 2),), {"kind": "categorical"}, TypeError, "data must hold integers"),
            Bad((torch.tensor([[0, 3]] * 2),), {"kind": "categorical", "categories": 3}, ValueError, r"hold 0\.\.2"),
            Bad((torch.zeros(3, 2),), {"kind": "gaussian"}, ValueError, "column 0 is constant"),
            Bad((torch.zeros(3, 2),), {"smoothing": -1.0}, ValueError, "smoothing must be >= 0"),
        ],
    ),
    Exempt("uncertainty.quadrature", "takes no tensors", "uncertainty/test_circuits.py"),
    Exempt("uncertainty.circuit_em_step", "changes a module in place", "uncertainty/test_circuits.py"),
]
