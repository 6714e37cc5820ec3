"""Ties along a dimension: entries of equal value among which ``amax``, ``median``, ``sort`` and their like choose."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pullback.audit.trace import operations as ops
from pullback.audit.trace.records import Node
from pullback.audit.trace.tensor_table import TensorTable

__all__ = ["count_ties"]


def count_ties(table: TensorTable, node: Node, name: str, args: Any, kwargs: Any, out: Tensor) -> int:
    """Count the entries beyond the first that are equal to a chosen one, in each row along the dimension.

    Not where all of them come from a plateau (zeros of a relu, filled or dropped entries): none of them has a slope.
    """
    x = args[0]
    dim = _dim(name, args, kwargs, x, out)
    if dim is None or not x.is_floating_point() or x.dim() == 0 or x.numel() > MOST:
        return 0
    ordered = x.detach().sort(dim).values
    equal = ordered.narrow(dim, 1, x.shape[dim] - 1) == ordered.narrow(dim, 0, x.shape[dim] - 1)
    if not bool(equal.any()) or _on_plateau(table, node):
        return 0
    if name in ("sort", "msort"):
        return int(equal.sum())
    values = out.detach()
    if values.dim() < x.dim():
        values = values.unsqueeze(dim)
    first = values.narrow(dim, values.shape[dim] - 1, 1) if name == "topk" else values
    beyond = (x == first).sum(dim) - (values == first).sum(dim)  # of the chosen ones, how many were left out
    within = (values.diff(dim=dim) == 0).sum() if name == "topk" else 0
    return int(beyond.clamp(min=0).sum() + within)


MOST = 100_000
"""Elements up to which ties are looked for."""


def _dim(name: str, args: Any, kwargs: Any, x: Tensor, out: Tensor) -> int | None:
    """Return the dimension that is reduced or ordered; ``None`` for two tensors, for all entries, for several."""
    if not isinstance(x, Tensor) or (len(args) > 1 and isinstance(args[1], Tensor)):
        return None
    place = 2 if name in ("topk", "kthvalue") else 1
    given = args[place] if len(args) > place else kwargs.get("dim", kwargs.get("axis"))
    if name in ("sort", "topk", "kthvalue", "msort") and given is None:
        given = 0 if name == "msort" else -1
    if isinstance(given, list | tuple):
        given = given[0] if len(given) == 1 else None
    return given if isinstance(given, int) and not isinstance(given, bool) else None


def _on_plateau(table: TensorTable, node: Node) -> bool:
    """Whether every entry comes from an operation that makes equal values without a slope."""
    stack, seen = list(node.parents), set()
    while stack:
        index = stack.pop()
        if index in seen:
            continue
        seen.add(index)
        source = table.nodes[index]
        narrowed = source.op == "__getitem__" and source.size <= table.nodes[source.parents[0]].size
        if (source.op in ops.VIEWS or narrowed) and source.parents:
            stack += source.parents
        elif source.op not in ops.PLATEAUS:
            return False
    return True
