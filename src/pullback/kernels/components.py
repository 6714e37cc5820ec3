"""Connected components of the slices of a bifiltration: union-find over sorted simplices, once a level."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from pullback.kernels.compiled import compiled

__all__ = ["slice_components"]


def slice_components(
    ends: np.ndarray, heights: np.ndarray, starts: np.ndarray, levels: np.ndarray, level_starts: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the pairs of degree 0 of every slice ``heights <= level`` of every element of a batch.

    Args:
        ends: ``[s, 2]`` of vertices and edges in the order in which they enter, element after element: the places of
            the ends of an edge, a vertex' own place twice.
        heights: ``[s]`` the second coordinate of each.
        starts: ``[elements + 1]`` where each element begins in these.
        levels: levels of the elements, one element after the other.
        level_starts: ``[elements + 1]`` where each element begins in these.

    Returns:
        ``[m]`` places of the vertex that is born, of the edge that ends it (-1: none does), and of the level.

    Example:
        >>> ends = np.array([[0, 0], [1, 1], [0, 1]])
        >>> born, died, _ = slice_components(ends, np.zeros(3), np.array([0, 3]), np.zeros(1), np.array([0, 1]))
        >>> born.tolist(), died.tolist()
        ([1, 0], [2, -1])
    """
    vertices = np.diff(np.concatenate([[0], np.cumsum(ends[:, 0] == ends[:, 1])])[starts])
    size = int((vertices * np.diff(level_starts)).sum())
    born, died, at = (np.empty(size, np.int64) for _ in range(3))
    count = _loop()(ends, heights, starts, levels, level_starts, np.empty(len(ends), np.int64), born, died, at)
    return born[:count], died[:count], at[:count]


@cache
def _loop() -> Callable[..., int]:
    jit = compiled() or (lambda function: function)
    return jit(_pair)


def _pair(
    ends: Any, heights: Any, starts: Any, levels: Any, level_starts: Any, parent: Any, born: Any, died: Any, at: Any
) -> int:
    m = 0
    for e in range(len(starts) - 1):
        for level in range(level_starts[e], level_starts[e + 1]):
            for s in range(starts[e], starts[e + 1]):
                if heights[s] > levels[level]:
                    continue
                a, b = ends[s, 0], ends[s, 1]
                if a == b:
                    parent[s] = s
                    continue
                while parent[a] != a:
                    parent[a] = parent[parent[a]]
                    a = parent[a]
                while parent[b] != b:
                    parent[b] = parent[parent[b]]
                    b = parent[b]
                if a != b:  # the component of the later vertex ends
                    late = max(a, b)
                    parent[late] = min(a, b)
                    born[m], died[m], at[m] = late, s, level
                    m += 1
            for s in range(starts[e], starts[e + 1]):
                if heights[s] <= levels[level] and ends[s, 0] == ends[s, 1] and parent[s] == s:
                    born[m], died[m], at[m] = s, -1, level
                    m += 1
    return m
