"""Chordless cycles of a graph, one by one, compiled where numba is installed; the same loop in Python elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from pullback.kernels.compiled import compiled

__all__ = ["chordless_cycles"]


def chordless_cycles(start: Any, neighbors: Any, max_length: int, *, plain: bool = False) -> Any:
    """Return the chordless cycles of at most ``max_length`` nodes of a graph without loops or double edges.

    Args:
        start: ``[nodes + 1]`` int64: the neighbours of node ``v`` are ``neighbors[start[v]:start[v + 1]]``, ascending.
        neighbors: ``[2 * edges]`` int64.
        max_length: >= 3.
        plain: run the loop uncompiled.

    Returns:
        ``[cycles, max_length]`` int64, filled up with -1. A cycle begins at its smallest node and goes on to the
        smaller one of its two neighbours there; rows are in the order of their nodes.

    Example:
        >>> square = np.array([1, 3, 0, 2, 1, 3, 0, 2])
        >>> chordless_cycles(np.array([0, 2, 4, 6, 8]), square, 4).tolist()
        [[0, 1, 2, 3]]
    """
    search = _search if plain else _loop()
    found = np.empty((max(64, len(neighbors)), max_length), np.int64)
    while True:
        count = search(start, neighbors, max_length, found)
        if count <= len(found):
            return found[:count].copy()
        found = np.empty((count, max_length), np.int64)  # it counts on when the table is full


@cache
def _loop() -> Callable[..., int]:
    return (compiled() or (lambda function: function))(_search)


def _search(start: Any, neighbors: Any, max_length: int, found: Any) -> int:
    """Walk all paths without a chord that go up from their first, smallest node; write cycles as far as there is room.

    ``blocked[v]`` counts the nodes of the path, but its first and its last, that ``v`` is one of or is adjacent to:
    a node that is not blocked makes no chord. The depth-first search keeps, for each node of the path, the place in its
    list of neighbours.
    """
    nodes = len(start) - 1
    count = 0
    path = np.empty(max_length + 1, np.int64)
    place = np.empty(max_length + 1, np.int64)
    blocked = np.zeros(nodes, np.int64)
    closes = np.zeros(nodes, np.bool_)
    for first in range(nodes):
        for e in range(start[first], start[first + 1]):
            closes[neighbors[e]] = True
        for e in range(start[first], start[first + 1]):
            second = neighbors[e]
            if second < first:
                continue
            path[0], path[1] = first, second
            place[1] = start[second]
            depth = 1
            while depth > 0:
                last = path[depth]
                if place[depth] == start[last + 1]:
                    depth -= 1
                    if depth > 0:  # the node before is the last again: its neighbours may go on
                        freed = path[depth]
                        blocked[freed] -= 1
                        for f in range(start[freed], start[freed + 1]):
                            blocked[neighbors[f]] -= 1
                    continue
                v = neighbors[place[depth]]
                place[depth] += 1
                if v <= first or blocked[v] > 0:
                    continue
                if closes[v]:
                    if v > second:
                        if count < len(found):
                            for i in range(depth + 1):
                                found[count, i] = path[i]
                            found[count, depth + 1] = v
                            for i in range(depth + 2, max_length):
                                found[count, i] = -1
                        count += 1
                    continue
                if depth + 2 < max_length:
                    blocked[last] += 1
                    for f in range(start[last], start[last + 1]):
                        blocked[neighbors[f]] += 1
                    depth += 1
                    path[depth] = v
                    place[depth] = start[v]
        for e in range(start[first], start[first + 1]):
            closes[neighbors[e]] = False
    return count
