"""Contracts of polygons as sequences: the pairwise network against pairs put together one at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from pullback import discrete
from tests.contracts.contract import Bad, Call, Exempt, Module


def _scores(g: torch.Generator) -> discrete.PairwiseScores:
    return discrete.PairwiseScores(3, (5, 4), generator=g)


def _pair_by_pair(vectors: Tensor) -> Tensor:
    module = _scores(torch.Generator().manual_seed(0)).double()
    if vectors.ndim > 2:
        return torch.stack([_pair_by_pair(v) for v in vectors])

    def one(network: torch.nn.Module, first: Tensor, second: Tensor) -> Tensor:
        weights = torch.cat([network.left.weight, network.right.weight], 1)
        return network.rest(weights @ torch.cat([first, second]) + network.left.bias)[0]

    first, second = module.networks
    rows = [torch.stack([one(first, v, w) + one(second, w, v) for w in vectors]) for v in vectors]
    return torch.stack(rows).detach()


CONTRACTS = [
    Module(
        "discrete.PairwiseScores",
        lambda module, vectors: module(vectors),
        lambda g: [Call((torch.randn(2, 3, 3, generator=g, dtype=torch.float64),))],
        reference=_pair_by_pair,
        build=_scores,
        large=(),
        forward_mode=False,
        why="inputs go through norms; torch's LayerNorm is wrong in nested forward mode",
        bad=[Bad((torch.zeros(2, 4),), {}, ValueError, r"vectors must have shape \(..., n, 3\)")],
    ),
    Exempt("discrete.CoordinateTokenizer", "turns lists of polygons into integers", "discrete/test_polygons.py"),
    Exempt("discrete.polygons_to_permutation", "takes a list of polygons", "discrete/test_polygons.py"),
    Exempt("discrete.permutation_to_polygons", "returns a list of polygons", "discrete/test_polygons.py"),
]
