"""Chordless cycles: the polygons that a graph bounds."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from pullback.core.checks import check_integer, check_tensor
from pullback.core.shapes import Int, Tensor
from pullback.core.transforms import transform_running
from pullback.kernels.cycles import chordless_cycles as search

__all__ = ["chordless_cycles"]


def chordless_cycles(edges: Int[Tensor, "2 edges"], nodes: int, *, max_length: int) -> Int[Tensor, "cycles length"]:
    """Return every cycle of 3 to ``max_length`` nodes in which no two nodes are adjacent but its neighbours.

    The search goes along edges, never over sets of nodes: ``O(nodes * degree ** (max_length - 1))`` steps, of some
    nanoseconds where numba is installed.

    Args:
        edges: ``[2, edges]`` int64, undirected: the order of the two nodes and repeated edges do not matter.
        nodes: of the graph; an edge joins two different ones in ``0 .. nodes - 1``.
        max_length: >= 3.

    Returns:
        ``[cycles, max_length]`` int64: the nodes of each cycle once, in their order around it, filled up with -1. A
        cycle begins at its smallest node and goes on to the smaller one of that one's two neighbours.

    Raises:
        TypeError: ``edges`` is no int64 tensor.
        ValueError: ``max_length`` is below 3, ``edges`` has another shape, leaves the nodes, or joins one to itself.

    Example:
        >>> house = torch.tensor([[0, 1, 2, 3, 0, 1], [1, 2, 3, 0, 4, 4]])
        >>> chordless_cycles(house, 5, max_length=4).tolist()
        [[0, 1, 2, 3], [0, 1, 4, -1]]

    References:
        Dias, Castonguay, Longo, Jradi (2013), Efficient enumeration of chordless cycles, section 3.
    """
    check_integer("max_length", max_length, 3)
    edges = check_edges(edges, nodes)
    low, high = _array(edges.cpu().sort(0).values)
    pairs = np.unique(low * max(nodes, 1) + high)
    low, high = np.divmod(pairs, max(nodes, 1))
    source, target = np.concatenate([low, high]), np.concatenate([high, low])
    order = np.lexsort((target, source))
    start = np.concatenate([[0], np.bincount(source, minlength=nodes).cumsum()]).astype(np.int64)
    return torch.from_numpy(search(start, target[order], max_length)).to(edges.device)


def _array(index: Tensor) -> Any:
    """Return the integers; those of a derivative of a derivative have no memory that numpy could look at."""
    return np.array(index.tolist(), np.int64).reshape(index.shape) if transform_running() else index.numpy()


def check_edges(edges: Tensor, nodes: int) -> Tensor:
    """Return ``edges`` if it is ``[2, edges]`` int64 and joins different nodes in ``0 .. nodes - 1``, else raise.

    Example:
        >>> check_edges(torch.tensor([[0], [0]]), 1)
        Traceback (most recent call last):
        ValueError: edges must join two different nodes, got (0, 0) at position 0
    """
    check_integer("nodes", nodes, 0)
    if check_tensor("edges", edges).dtype != torch.int64:
        raise TypeError(f"edges must be an int64 tensor, got {edges.dtype}")
    if edges.ndim != 2 or edges.shape[0] != 2:
        raise ValueError(f"edges must have shape (2, any), got {tuple(edges.shape)}")
    if edges.numel() and not 0 <= int(edges.min()) <= int(edges.max()) < nodes:
        raise ValueError(f"edges must be in 0..{nodes - 1}, got {int(edges.min())}..{int(edges.max())}")
    loops = (edges[0] == edges[1]).nonzero()
    if len(loops):
        at, node = int(loops[0]), int(edges[0, loops[0]])
        raise ValueError(f"edges must join two different nodes, got ({node}, {node}) at position {at}")
    return edges
