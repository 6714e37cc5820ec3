"""Simulated clusters of very different sizes, with noisy values whose mean over the cluster is to be found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pullback.core.checks import check_integer

__all__ = ["PlantedClusters", "planted_clusters"]


class PlantedClusters(NamedTuple):
    """Nodes of several graphs; there are no edges.

    Attributes:
        places: ``[graphs, n, 3]`` around the centre of the node's cluster, with deviation .3.
        values: ``[graphs, n, 1]`` the cluster's value with unit noise.
        truth: ``[graphs, n, 1]`` the cluster's value, of deviation 2.
        sizes: ``[graphs, n]`` how many nodes the cluster has.
    """

    places: Tensor
    values: Tensor
    truth: Tensor
    sizes: Tensor


def planted_clusters(
    graphs: int, nodes: int, sizes: Sequence[int], *, side: float = 10.0, generator: torch.Generator
) -> PlantedClusters:
    """Return graphs of clusters in a cube, of the given sizes, equally likely; the last one is cut off at ``nodes``.

    Args:
        graphs: number of graphs.
        nodes: of a graph.
        sizes: of clusters.
        side: of the cube in which the centres lie: the smaller, the more clusters meet.
        generator: of all draws.

    Raises:
        ValueError: an argument outside its range.

    Example:
        >>> planted_clusters(2, 30, (3, 12), generator=torch.Generator().manual_seed(0)).places.shape
        torch.Size([2, 30, 3])
    """
    check_integer("graphs", graphs, 1)
    check_integer("nodes", nodes, 1)
    for size in sizes:
        check_integer("sizes", size, 1)
    rows = []
    for _ in range(graphs):
        drawn = torch.tensor(sizes)[torch.randint(len(sizes), (nodes,), generator=generator)]
        member = torch.arange(nodes).repeat_interleave(drawn)[:nodes]
        centre = side * torch.rand(nodes, 3, generator=generator)
        mean = 2 * torch.randn(nodes, 1, generator=generator)
        place = centre[member] + 0.3 * torch.randn(nodes, 3, generator=generator)
        value = mean[member] + torch.randn(nodes, 1, generator=generator)
        rows.append((place, value, mean[member], member.bincount()[member]))
    return PlantedClusters(*map(torch.stack, zip(*rows, strict=True)))
