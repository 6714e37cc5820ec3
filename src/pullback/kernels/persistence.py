"""Loops of persistent homology over Z/2: spanning trees, cycles of a Rips complex, reduction of any filtered complex.

They return which simplices form a pair. Values and gradients are gathered by the caller.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pullback.kernels.compiled import compiled, over_rows

__all__ = ["pair_cells", "rips_cycles", "spanning_tree", "spanning_tree_reference", "spanning_trees"]


def spanning_tree(distances: Tensor, ties: bool = False) -> tuple[Tensor, Tensor]:
    """Return the edges of a minimum spanning tree by Prim's algorithm, and whether another tree is as short.

    Args:
        distances: ``[b, n, n]`` symmetric, detached; what stands on the diagonal is not read.
        ties: whether to look for other trees, for half as much work again.

    Returns:
        ``[b, n - 1, 2]`` int64, in the order in which the tree grows, and ``[b]`` bool (``False`` without ``ties``).
        Loops over rows on the CPU, compiled and in threads where numba is installed (one
        copy of matrices from another device); elsewhere :func:`spanning_tree_reference`.
    """
    if compiled() is None:
        return spanning_tree_reference(distances, ties)
    narrow = distances if distances.dtype in (torch.float32, torch.float64) else distances.float()
    edges, tied = spanning_trees(narrow.detach().cpu().resolve_neg().contiguous().numpy(), ties)
    return torch.from_numpy(edges).to(distances.device), torch.from_numpy(tied).to(distances.device)


def spanning_trees(distances: np.ndarray, ties: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """:func:`spanning_tree` of arrays, in loops with or without numba."""
    b, n = distances.shape[:2]
    edges, tied = np.empty((b, max(n - 1, 0), 2), np.int64), np.zeros(b, bool)
    if distances.size:
        over_rows(_loops()[0], distances, edges, tied, ties)
    return edges, tied


def spanning_tree_reference(distances: Tensor, ties: bool = False) -> tuple[Tensor, Tensor]:
    """:func:`spanning_tree` in torch, all rows at once, on any device."""
    b, n = distances.shape[:2]
    rows = torch.arange(b, device=distances.device)
    order = torch.zeros(b, n, dtype=torch.int64, device=distances.device)
    parents = torch.zeros_like(order)
    inside = torch.zeros(b, n, dtype=torch.bool, device=distances.device)
    longest = distances.new_zeros(b, n)  # on the path from the newest node to the one at a place of the order
    tied = torch.zeros(b, dtype=torch.bool, device=distances.device)
    if not distances.numel():
        return order.new_zeros(b, max(n - 1, 0), 2), tied
    inside[:, 0] = True
    nearest, parent = distances[:, 0].clone(), torch.zeros_like(order)
    for step in range(1, n):
        new = torch.where(inside, torch.inf, nearest).argmin(-1)
        length, row = nearest[rows, new], distances[rows, new]
        order[:, step], parents[:, step] = new, parent[rows, new]
        if ties:
            longest[:, :step] = torch.maximum(longest[:, :step], length[:, None])
            earlier = order[:, :step]
            as_short = (row.gather(1, earlier) <= longest[:, :step]) & (earlier != parents[:, step, None])
            tied |= as_short.any(-1)
        inside[rows, new] = True
        closer = row < nearest
        nearest, parent = torch.where(closer, row, nearest), torch.where(closer, new[:, None], parent)
    return torch.stack([parents, order], -1)[:, 1:], tied


def rips_cycles(distances: np.ndarray) -> tuple[np.ndarray, bool]:
    """Return the pairs of degree 1 of the Rips complex of one symmetric matrix ``[n, n]`` with zeros on its diagonal.

    Cohomology, columns from the longest edge down. An edge that is the longest of some triangle forms a pair of no
    persistence with the first of those triangles; what is left are edges of the relative neighbourhood graph outside
    of the spanning tree, few, and their columns alone are reduced. Above the smallest radius of a ball around a point
    that contains all, the complex is a cone: nothing lives there. Most cycles die long before: edges up to twice the
    longest of the spanning tree are sorted first, and more only if a cycle is still open, or begins above.

    Returns:
        ``[m, 5]`` int64: the two ends of the edge that gives birth, and the death triangle's longest edge and its
        third corner; and whether one of these edges is as long as another edge.

    References:
        Bauer (2021), Ripser: efficient computation of Vietoris-Rips persistence barcodes, sections 3 and 4.
    """
    n = len(distances)
    if n < 4:
        return np.empty((0, 5), np.int64), False
    _, cycles, _, begins_above = _loops()
    tree = spanning_trees(distances[None])[0][0]
    whole = distances.max(1).min()
    reach = 2 * distances[tree[:, 0], tree[:, 1]].max()
    if reach < whole and begins_above(distances, reach, whole):
        reach = whole
    while True:
        last = reach >= whole or not reach > 0
        first, second = np.nonzero(np.triu(distances <= (whole if last else reach), 1))
        lengths = distances[first, second]
        order = np.argsort(lengths)
        first, second, lengths = first[order], second[order], lengths[order]
        ranks = np.full((n, n), len(order), np.int32)
        ranks[first, second] = ranks[second, first] = np.arange(len(order), dtype=np.int32)
        pairs, open_ = cycles(ranks, first, second)
        if last or not open_:
            equal = np.pad(lengths[1:] == lengths[:-1], 1)
            critical = np.concatenate([ranks[pairs[:, 0], pairs[:, 1]], ranks[pairs[:, 2], pairs[:, 3]]])
            return pairs, bool((equal[critical] | equal[critical + 1]).any())
        reach = 2 * reach


def pair_cells(starts: np.ndarray, faces: np.ndarray, dims: np.ndarray, orders: np.ndarray) -> np.ndarray:
    """Pair the cells of a complex by reduction of its boundary matrix, from the highest dimension down.

    Args:
        starts: ``[s + 1]``: the faces of cell ``c``, one dimension lower, are ``faces[starts[c] : starts[c + 1]]``.
        faces: see there.
        dims: ``[s]`` of the cells.
        orders: ``[b, s]`` int64: cells in the order of a filtration, faces before cofaces.

    Returns:
        ``[b, s]`` int64: the cell that each one is paired with, or -1.

    References:
        Chen, Kerber (2011), Persistent homology computation with a twist.
    """
    partners = np.full(orders.shape, -1, np.int64)
    if orders.size:
        over_rows(_loops()[2], orders, partners, starts, faces, dims)
    return partners


@cache
def _loops() -> tuple[Callable[..., Any], ...]:
    """Return the loops, compiled where numba is installed."""
    jit = compiled() or (lambda function: function)
    return jit(_prim), jit(_cycles), jit(_pair), jit(_begins_above)


def _prim(distances: Any, edges: Any, tied: Any, ties: bool) -> None:
    b, n, _ = distances.shape
    outside, parent = np.empty(n, np.int64), np.empty(n, np.int64)
    nearest = np.empty(n, distances.dtype)
    order, length = np.empty(n, np.int64), np.empty(n, distances.dtype)
    for row in range(b):
        d = distances[row]
        new = 0
        order[0] = 0
        for i in range(n - 1):
            outside[i], parent[i], nearest[i] = i + 1, 0, d[0, i + 1]
        for step in range(1, n):
            count, at = n - step, 0
            for i in range(count):
                w = d[new, outside[i]]
                if w < nearest[i]:
                    nearest[i] = w
                    parent[i] = new
                if nearest[i] < nearest[at]:
                    at = i
            new, root, m = outside[at], parent[at], nearest[at]
            edges[row, step - 1, 0], edges[row, step - 1, 1] = root, new
            order[step], length[step] = new, m
            outside[at], parent[at], nearest[at] = outside[count - 1], parent[count - 1], nearest[count - 1]
            if ties and not tied[row]:
                # The longest edge between two nodes of the tree is the longest of those that came after the elder.
                for i in range(step - 1, -1, -1):
                    if order[i] != root and d[new, order[i]] <= m:
                        tied[row] = True
                        break
                    m = max(m, length[i])


def _cycles(ranks: Any, first: Any, second: Any) -> Any:
    """A triangle is the number ``r n + w`` of its longest edge's rank and the corner opposite."""
    n, count = ranks.shape[0], first.shape[0]

    def push(heap: Any, size: int, value: int) -> Any:
        if size == heap.shape[0]:
            larger = np.empty(2 * size, np.int64)
            larger[:size] = heap
            heap = larger
        i = size
        while i > 0 and heap[(i - 1) // 2] > value:
            heap[i] = heap[(i - 1) // 2]
            i = (i - 1) // 2
        heap[i] = value
        return heap

    def pop(heap: Any, size: int) -> int:
        top, last, i = heap[0], heap[size - 1], 0
        while 2 * i + 1 < size - 1:
            child = 2 * i + 1
            if child + 1 < size - 1 and heap[child + 1] < heap[child]:
                child += 1
            if heap[child] >= last:
                break
            heap[i] = heap[child]
            i = child
        heap[i] = last
        return top

    # Union-find: edges of the spanning tree end a component, and no cycle begins with them.
    root = np.arange(n)
    apex = np.full(count, -1, np.int64)
    columns = np.empty(count, np.int64)
    left = 0
    for r in range(count):
        a, b = first[r], second[r]
        u, v = a, b
        while root[u] != u:
            root[u] = root[root[u]]
            u = root[u]
        while root[v] != v:
            root[v] = root[root[v]]
            v = root[v]
        if u != v:
            root[u] = v
            continue
        for w in range(n):
            if ranks[a, w] < r and ranks[b, w] < r and w != a and w != b:
                apex[r] = w
                break
        if apex[r] < 0:
            columns[left] = r
            left += 1

    pairs = np.empty((left, 5), np.int64)
    head = np.full(count, -1, np.int64)  # the newest column whose pivot has that longest edge, others behind it
    behind = np.empty(left, np.int64)
    corner = np.empty(left, np.int64)
    starts = np.zeros(left + 1, np.int64)
    pool = np.empty(1024, np.int64)  # edges of the reduced columns, one after the other
    heap = np.empty(4 * n, np.int64)
    found = 0
    for c in range(left):
        edge = columns[left - 1 - c]
        size, used, begin = 0, starts[c], -1
        todo_from, todo_to, single = 0, 1, edge
        while True:
            for k in range(todo_from, todo_to):
                e = single if single >= 0 else pool[k]
                if used == pool.shape[0]:
                    larger = np.empty(2 * used, np.int64)
                    larger[:used] = pool
                    pool = larger
                pool[used] = e
                used += 1
                a, b = first[e], second[e]
                for w in range(n):
                    if w in (a, b):
                        continue
                    p, q = ranks[a, w], ranks[b, w]
                    if p >= count or q >= count:
                        continue
                    if e > p and e > q:
                        key = e * n + w
                    elif p > q:
                        key = p * n + b
                    else:
                        key = q * n + a
                    heap = push(heap, size, key)
                    size += 1
            pivot = -1
            while size > 0:
                pivot = pop(heap, size)
                size -= 1
                if size > 0 and heap[0] == pivot:
                    pop(heap, size)
                    size -= 1
                    pivot = -1
                else:
                    break
            if pivot < 0:
                break
            heap = push(heap, size, pivot)
            size += 1
            r, w = pivot // n, pivot % n
            if apex[r] == w:
                single, todo_from, todo_to = r, 0, 1
                continue
            k = head[r]
            while k >= 0 and corner[k] != w:
                k = behind[k]
            if k >= 0:
                single, todo_from, todo_to = -1, starts[k], starts[k + 1]
                continue
            behind[c], corner[c], head[r] = head[r], w, c
            begin = r
            break
        # Edges that were added twice are not in the column.
        own = np.sort(pool[starts[c] : used])
        used, i = starts[c], 0
        while i < own.shape[0]:
            if i + 1 < own.shape[0] and own[i] == own[i + 1]:
                i += 2
            else:
                pool[used] = own[i]
                used += 1
                i += 1
        starts[c + 1] = used
        if begin >= 0:
            pairs[found, 0], pairs[found, 1] = first[edge], second[edge]
            pairs[found, 2], pairs[found, 3] = first[begin], second[begin]
            pairs[found, 4] = corner[c]
            found += 1
    return pairs[:found], found < left


def _begins_above(distances: Any, low: float, high: float) -> bool:
    """Whether some edge of such a length is not the longest of any triangle."""
    n = distances.shape[0]
    for a in range(n):
        for b in range(a):
            length = distances[a, b]
            if low < length <= high:
                inside = False
                for w in range(n):
                    if distances[a, w] < length and distances[b, w] < length and w not in (a, b):
                        inside = True
                        break
                if not inside:
                    return True
    return False


def _pair(orders: Any, partners: Any, starts: Any, faces: Any, dims: Any) -> None:
    """Columns are places in the order, descending, one after the other in a pool."""
    b, s = orders.shape
    place = np.empty(s, np.int64)
    begin, end = np.empty(s, np.int64), np.empty(s, np.int64)
    top = 0
    for c in range(s):
        top = max(top, dims[c])
    pool = np.empty(4 * s + 16, np.int64)
    for row in range(b):
        order, partner = orders[row], partners[row]
        for i in range(s):
            place[order[i]] = i
        for dim in range(top, 0, -1):
            used = 0
            for j in range(s):
                cell = order[j]
                if dims[cell] != dim or partner[cell] >= 0:
                    continue
                column = -np.sort(-place[faces[starts[cell] : starts[cell + 1]]])
                while column.shape[0] > 0:
                    low = order[column[0]]
                    other = partner[low]
                    if other < 0:
                        break
                    merged = np.empty(column.shape[0] + end[other] - begin[other], np.int64)
                    size, x, y = 0, 0, begin[other]
                    while x < column.shape[0] or y < end[other]:
                        if y == end[other] or (x < column.shape[0] and column[x] > pool[y]):
                            merged[size] = column[x]
                            size += 1
                            x += 1
                        elif x == column.shape[0] or pool[y] > column[x]:
                            merged[size] = pool[y]
                            size += 1
                            y += 1
                        else:
                            x += 1
                            y += 1
                    column = merged[:size]
                if column.shape[0] == 0:
                    continue
                size = column.shape[0]
                if used + size > pool.shape[0]:
                    larger = np.empty(2 * (used + size), np.int64)
                    larger[:used] = pool[:used]
                    pool = larger
                pool[used : used + size] = column
                begin[cell], end[cell] = used, used + size
                used += size
                low = order[column[0]]
                partner[low], partner[cell] = cell, low
