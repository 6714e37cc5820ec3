"""Sums and differences of traced values, followed symbolically: what a straight-through estimator is made of."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pullback.audit.trace.private import is_wrapped, unseen
from pullback.audit.trace.records import Node
from pullback.audit.trace.tensor_table import TensorTable

__all__ = ["adds_constant", "follow_sum"]


def adds_constant(table: TensorTable, args: Any) -> bool:
    """Whether one summand is a single untraced number other than zero."""
    for value in args[:2]:
        single = isinstance(value, Tensor) and value.numel() == 1 and value.is_floating_point()
        if single and table.index_of(value) is None and not is_wrapped(value):
            with unseen():
                return float(value.detach()) != 0.0
    return False


def follow_sum(table: TensorTable, node: Node, name: str, args: Any, kwargs: Any) -> None:
    """Follow sums and differences: ``soft + (hard - soft).detach()`` passes soft's gradient on purpose."""
    if name in ("add", "add_", "sub", "sub_", "rsub", "neg", "__radd__", "__rsub__"):
        if kwargs.get("alpha", 1) != 1 or len(args) > 2:
            return
        sign = {"sub": (1, -1), "sub_": (1, -1), "rsub": (-1, 1), "__rsub__": (-1, 1), "neg": (-1, 0)}.get(name, (1, 1))
        terms = list(zip(args, sign, strict=False))
    elif name in ("detach", "get data", "clone", "contiguous", "to", "float", "double", "type_as"):
        terms = [(args[0], 1)]
    else:
        return
    total: dict[int, tuple[float, float]] = {}
    for value, factor in terms:
        index = table.index_of(value) if isinstance(value, Tensor) else None
        if index is None or index == node.index:
            continue
        parent = table.nodes[index]
        for base, (live, dead) in (parent.linear or {index: (1.0, 0.0) if parent.live else (0.0, 1.0)}).items():
            if not node.live:
                live, dead = 0.0, live + dead
            old = total.get(base, (0.0, 0.0))
            total[base] = (old[0] + factor * live, old[1] + factor * dead)
    if not total or len(total) > 8:
        return
    node.linear = total
    if not node.live:
        return
    passed = [base for base, (live, dead) in total.items() if live and live + dead == 0.0]
    if passed:
        node.straight = True
        dropped = [base for base, (live, _) in total.items() if not (live and base in passed)]
        table.handled |= frozenset().union(*(table.nodes[base].origins for base in dropped))
        kept = [base for base, (live, _) in total.items() if live and base in passed]
        node.origins = frozenset().union(*(table.nodes[base].origins for base in kept))
