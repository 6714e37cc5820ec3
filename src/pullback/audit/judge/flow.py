"""Vanishing and exploding cotangents: measured along the backward pass, never guessed from the forward.

For a node ``n`` with cotangent norm ``c(n)``, the peak on the way from the loss is
``p(n) = min over users u of max(p(u), c(u))`` (the path with the smallest peak) and the bottleneck
``b(n) = max over users u of min(b(u), c(u))``. The cotangent vanishes at ``n`` if ``c(n) < 1e-6 p(n)`` and explodes if
``c(n) > 1e6 b(n)``. The line to blame is the one whose gains multiply to the largest part of the ratio.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterator
from typing import Any

from pullback.audit.trace import operations as ops
from pullback.audit.trace.graph import TraceGraph
from pullback.audit.trace.records import Node

__all__ = ["flow_findings"]

SMALL = 1e-6
SMALL_LINE = 1e-8
"""For what is not a loop: scaled residual branches start at 1e-6."""
LARGE = 1e6
_PRODUCTS = frozenset("mul mul_ __mul__ __rmul__ div div_ true_divide __truediv__ __rdiv__ __rtruediv__".split())
_LINKS = frozenset("log_softmax softmax logsumexp sigmoid logsigmoid exp log softplus clamp normalize".split())
LOOP = 8
"""Visits of one call in a chain from which it counts as a loop."""
BENDS = 6
"""Functions and products that a loss may be made of behind its last layer."""


def flow_findings(graph: TraceGraph, trained: set[int]) -> Iterator[tuple[str, Node, dict[str, Any], set[int]]]:
    """Yield (code, node, evidence, parameters hit) for each line that makes cotangents vanish or explode."""
    seen: set[tuple[str, Any, int]] = set()
    for event, inside in zip(graph.events, graph.ancestry, strict=True):
        if not event.live or not event.finite or event.node is None:
            continue
        chains = [visits for visits in _visits_of_calls(graph, inside).values() if _is_chain(graph, visits)]
        peak, bottleneck = _bounds(graph, inside, event.node, chains)
        for kind in ("vanishing", "exploding"):
            for code, node, evidence, leaves in _one(graph, trained, inside, peak, bottleneck, chains, kind):
                key = (code, node.site.code if node.site else None, node.site.line if node.site else 0)
                if key not in seen:
                    seen.add(key)
                    yield code, node, evidence, leaves


def _bounds(
    graph: TraceGraph, inside: set[int], loss: int, chains: list[list[int]]
) -> tuple[dict[int, float], dict[int, float]]:
    start = graph.nodes[loss].cotangent or 1.0
    peak: dict[int, float] = {loss: start}
    bottleneck: dict[int, float] = {loss: start}
    head = _head(graph, inside, loss, chains)
    for index in sorted(inside, reverse=True):
        if index == loss:
            continue
        users = [u for u in graph.children[index] if u in inside and graph.nodes[u].live and u in peak]
        if not users:
            continue
        norms = {u: graph.nodes[u].cotangent for u in users}
        used = [u for u in users if norms[u] != 0.0] or users
        peak[index] = min(0.0 if u in head else max(peak[u], norms[u] or peak[u]) for u in used)
        bottleneck[index] = max(math.inf if u in head else min(bottleneck[u], norms[u] or bottleneck[u]) for u in used)
    return peak, bottleneck


def _head(graph: TraceGraph, inside: set[int], loss: int, chains: list[list[int]]) -> set[int]:
    """Return the nodes between the loss and the first layer: a small residual there is a good fit, not a fault.

    A call that is repeated along the way, or a row of more than a few functions, is a chain whatever surrounds it.
    """
    chained = {i for visits in chains for i in visits}
    head: set[int] = set()
    stack = [(loss, 0)]
    while stack:
        index, bends = stack.pop()
        node = graph.nodes[index]
        if index in head or index not in inside or node.op in ops.WEIGHTED or node.leaf is not None:
            continue
        if node.op in _PRODUCTS and node.gain_count and abs(node.gain_log / node.gain_count) > math.log(LARGE):
            continue  # a factor of a million is not the size of a residual
        bent = node.op in _LINKS or node.op in _PRODUCTS
        bends += bent
        if bent and (index in chained or bends > BENDS):
            continue
        head.add(index)
        if node.op in _PRODUCTS:
            stack += [(p, bends) for p in node.parents] if len(node.parents) == 1 else ()
        elif node.op in ops.LINEAR | ops.LOSSES | _LINKS or node.op.strip("_") in ops.RESIDUAL:
            stack += [(p, bends) for p in node.parents]
    return head


def _is_chain(graph: TraceGraph, visits: list[int]) -> bool:
    """Whether the last visit of one call uses the result of its first."""
    if len(visits) < LOOP:
        return False
    first, seen, stack = visits[0], set(), [visits[-1]]
    while stack:
        index = stack.pop()
        if index == first:
            return True
        if index > first and index not in seen:
            seen.add(index)
            stack += graph.nodes[index].parents
    return False


def _one(
    graph: TraceGraph,
    trained: set[int],
    inside: set[int],
    peak: dict[int, float],
    bottleneck: dict[int, float],
    chains: list[list[int]],
    kind: str,
) -> Iterator[tuple[str, Node, dict[str, Any], set[int]]]:
    nodes = graph.nodes
    hit: set[int] = set()
    worst: dict[int, float] = {}
    for leaf in graph.leaves(inside) & trained:
        users = [u for u in graph.children[leaf] if u in inside and nodes[u].cotangent and u in peak]
        users = [u for u in users if kind == "exploding" or peak[u] > 0]
        ratios = {u: (nodes[u].cotangent or 0.0) / (peak[u] if kind == "vanishing" else bottleneck[u]) for u in users}
        if users and kind == "vanishing" and max(ratios.values()) < SMALL_LINE:
            hit.add(leaf)
            worst[leaf] = max(ratios.values())
        if users and kind == "exploding" and max(ratios.values()) > LARGE:
            hit.add(leaf)
            worst[leaf] = max(ratios.values())
    looped = _loops(graph, peak, bottleneck, chains, kind)
    rounded = {i for i in looped if nodes[i].cotangent == 0.0}  # smaller than the smallest number
    if rounded:
        below = {leaf for leaf in graph.leaves(inside) & trained if graph.downstream([leaf]) & rounded}
        worst |= dict.fromkeys(below - hit, 0.0)
        hit |= below
    if hit:
        between = graph.downstream(hit) & inside
        node, gain = _line(graph, between, looped, kind)
        if node is not None:
            extreme = min(worst.values()) if kind == "vanishing" else max(worst.values())
            evidence = {"factor": f"{extreme:.1e}", "gain of the line": gain, "loop": node.index in looped}
            detail = "loop" if node.index in looped else "line"
            yield f"{kind}.{detail}", node, evidence, hit
            bounded = node.index in looped and _bounded(graph, node)
            if kind == "exploding" and bounded and extreme > 1:
                visits = _visits(graph, between, node)
                rate = math.log(extreme) / max(visits, 1)  # not the line's gain, to which each operation adds its own
                # After so many visits a change of a thousandth is as large as the values.
                evidence = {"exponent": f"{rate:.3f}", "visits": visits, "horizon": math.log(1000) / rate}
                yield "chaotic.loop", node, evidence, set()
    elif looped:
        node = nodes[max(looped, key=lambda i: abs(nodes[i].gain_log))]
        extreme = (min if kind == "vanishing" else max)(looped.values())
        evidence = {"factor": f"{extreme:.1e}", "gain of the line": nodes[node.index].gain_log, "loop": True}
        discounted = node.op in _PRODUCTS and len(node.parents) == 1  # by a number, and nothing is short of gradient
        if kind == "exploding" or (extreme < SMALL**1.5 and not discounted):
            yield f"{kind}.loop", node, evidence, set()


def _line(graph: TraceGraph, between: set[int], looped: Collection[int], kind: str) -> tuple[Node | None, float]:
    """Return the node of the line with the most extreme product of gains, and the logarithm of that product.

    A loop that makes up for half of it goes first: the derivative of what is compared behind it is small or large
    because the loop made its values so.
    """
    total: dict[tuple[Any, int], float] = defaultdict(float)
    members: dict[tuple[Any, int], list[Node]] = defaultdict(list)
    for index in between:
        node = graph.nodes[index]
        if node.site is not None and node.gain_count:
            key = (node.site.code, node.site.line)
            total[key] += node.gain_log
            members[key].append(node)
    if not total:
        return None, 0.0
    extreme = min if kind == "vanishing" else max
    key = extreme(total, key=lambda k: total[k])
    loops = [k for k in total if any(n.index in looped for n in members[k])]
    if loops:
        loop = extreme(loops, key=lambda k: total[k])
        under = any(graph.nodes[i].cotangent == 0.0 for i in looped)  # its further gains were not seen
        key = loop if under or total[loop] / total[key] > 0.5 else key
    return extreme(members[key], key=lambda n: n.gain_log), total[key]


def _visits_of_calls(graph: TraceGraph, inside: set[int]) -> dict[tuple[Any, int, str], list[int]]:
    groups: dict[tuple[Any, int, str], list[int]] = defaultdict(list)
    for index in sorted(inside):
        node = graph.nodes[index]
        if node.site is not None and node.cotangent is not None:
            groups[node.site.code, node.site.instruction, node.op].append(index)
    return groups


def _loops(
    graph: TraceGraph, peak: dict[int, float], bottleneck: dict[int, float], chains: list[list[int]], kind: str
) -> dict[int, float]:
    """Return nodes of loops in which the cotangent decays or grows steadily, with the ratio at the first visit."""
    found: dict[int, float] = {}
    for visits in chains:
        norms = [graph.nodes[i].cotangent or 0.0 for i in visits]
        first, end = visits[0], norms[-1]
        if first not in peak or not peak[first] or not end:
            continue
        # Where the first is zero, the others say whether the loop led there or something in front of it.
        norm = norms[0] or min(n for n in norms if n)
        ratio = norm / (peak[first] if kind == "vanishing" else bottleneck[first])
        steady = norm / end
        if kind == "vanishing" and ratio < SMALL and steady < SMALL:
            found |= dict.fromkeys(visits, ratio)
        if kind == "exploding" and ratio > LARGE and steady > LARGE:
            found |= dict.fromkeys(visits, ratio)
    return found


def _visits(graph: TraceGraph, between: set[int], node: Node) -> int:
    assert node.site is not None
    return sum(
        1
        for i in between
        if (s := graph.nodes[i].site) and s.code is node.site.code and s.instruction == node.site.instruction
    )


def _bounded(graph: TraceGraph, node: Node) -> bool:
    """Whether the loop's values stay of one size although its derivatives grow."""
    assert node.site is not None
    scales = [
        n.scale
        for n in graph.nodes
        if n.site and n.site.code is node.site.code and n.site.instruction == node.site.instruction and n.scale
    ]
    return bool(scales) and max(scales) <= 100.0 * min(s for s in scales[: max(len(scales) // 2, 1)])
