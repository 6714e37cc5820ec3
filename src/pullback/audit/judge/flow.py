"""Vanishing and exploding cotangents: measured along the backward pass, never guessed from the forward.

For a node ``n`` with cotangent norm ``c(n)``, the peak on the way from the loss is
``p(n) = min over users u of max(p(u), c(u))`` (the path with the smallest peak) and the bottleneck
``b(n) = max over users u of min(b(u), c(u))``. The cotangent vanishes at ``n`` if ``c(n) < 1e-6 p(n)`` and explodes if
``c(n) > 1e6 b(n)``. The line to blame is the one whose gains multiply to the largest part of the ratio.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
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


def flow_findings(graph: TraceGraph, trained: set[int]) -> Iterator[tuple[str, Node, dict[str, Any], set[int]]]:
    """Yield (code, node, evidence, parameters hit) for each line that makes cotangents vanish or explode."""
    seen: set[tuple[str, Any, int]] = set()
    for event, inside in zip(graph.events, graph.ancestry, strict=True):
        if not event.live or not event.finite or event.node is None:
            continue
        peak, bottleneck = _bounds(graph, inside, event.node)
        for kind in ("vanishing", "exploding"):
            for code, node, evidence, leaves in _one(graph, trained, inside, peak, bottleneck, kind):
                key = (code, node.site.code if node.site else None, node.site.line if node.site else 0)
                if key not in seen:
                    seen.add(key)
                    yield code, node, evidence, leaves


def _bounds(graph: TraceGraph, inside: set[int], loss: int) -> tuple[dict[int, float], dict[int, float]]:
    start = graph.nodes[loss].cotangent or 1.0
    peak: dict[int, float] = {loss: start}
    bottleneck: dict[int, float] = {loss: start}
    head = _head(graph, inside, loss)
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


def _head(graph: TraceGraph, inside: set[int], loss: int) -> set[int]:
    """Return the nodes between the loss and the first layer: a small residual there is a good fit, not a fault."""
    head: set[int] = set()
    stack = [loss]
    while stack:
        index = stack.pop()
        node = graph.nodes[index]
        if index in head or index not in inside or node.op in ops.WEIGHTED or node.leaf is not None:
            continue
        if node.op in _PRODUCTS and node.gain_count and abs(node.gain_log / node.gain_count) > math.log(LARGE):
            continue  # a factor of a million is not the size of a residual
        head.add(index)
        if node.op in _PRODUCTS:
            stack += node.parents if len(node.parents) == 1 else ()
        elif node.op in ops.LINEAR | ops.LOSSES | _LINKS or node.op.strip("_") in ops.RESIDUAL:
            stack += node.parents
    return head


def _one(
    graph: TraceGraph,
    trained: set[int],
    inside: set[int],
    peak: dict[int, float],
    bottleneck: dict[int, float],
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
    looped = _loops(graph, inside, peak, bottleneck, kind)
    if hit:
        between = graph.downstream(hit) & inside
        node, gain = _line(graph, between, kind)
        if node is not None:
            extreme = min(worst.values()) if kind == "vanishing" else max(worst.values())
            evidence = {"factor": f"{extreme:.1e}", "gain of the line": gain, "loop": node.index in looped}
            detail = "loop" if node.index in looped else "line"
            yield f"{kind}.{detail}", node, evidence, hit
            bounded = node.index in looped and _bounded(graph, node)
            if kind == "exploding" and bounded:
                visits = _visits(graph, between, node)
                rate = gain / max(visits, 1)
                yield "chaotic.loop", node, {"exponent": f"{rate:.3f}", "visits": visits}, set()
    elif looped:
        node = nodes[max(looped, key=lambda i: abs(nodes[i].gain_log))]
        extreme = looped[max(looped, key=lambda i: abs(math.log(looped[i])))]
        evidence = {"factor": f"{extreme:.1e}", "gain of the line": nodes[node.index].gain_log, "loop": True}
        if kind == "exploding" or extreme < SMALL**1.5:
            yield f"{kind}.loop", node, evidence, set()


def _line(graph: TraceGraph, between: set[int], kind: str) -> tuple[Node | None, float]:
    """Return the node of the line with the most extreme product of gains, and the logarithm of that product."""
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
    key = (min if kind == "vanishing" else max)(total, key=lambda k: total[k])
    pick = (min if kind == "vanishing" else max)(members[key], key=lambda n: n.gain_log)
    return pick, total[key]


def _groups(graph: TraceGraph, inside: set[int]) -> dict[tuple[Any, int, str], list[int]]:
    groups: dict[tuple[Any, int, str], list[int]] = defaultdict(list)
    for index in sorted(inside):
        node = graph.nodes[index]
        if node.site is not None and node.cotangent:
            groups[node.site.code, node.site.instruction, node.op].append(index)
    return groups


def _loops(
    graph: TraceGraph, inside: set[int], peak: dict[int, float], bottleneck: dict[int, float], kind: str
) -> dict[int, float]:
    """Return nodes of loops in which the cotangent decays or grows steadily, with the ratio at the first visit."""
    found: dict[int, float] = {}
    for members in _groups(graph, inside).values():
        if len(members) < LOOP or members[0] not in peak or (kind == "vanishing" and not peak[members[0]]):
            continue
        first, last = members[0], members[-1]
        if last not in graph.downstream([first]):
            continue
        norm, end = graph.nodes[first].cotangent or 0.0, graph.nodes[last].cotangent or 1.0
        ratio = norm / (peak[first] if kind == "vanishing" else bottleneck[first])
        steady = norm / end
        if kind == "vanishing" and ratio < SMALL and steady < SMALL:
            found |= dict.fromkeys(members, ratio)
        if kind == "exploding" and ratio > LARGE and steady > LARGE:
            found |= dict.fromkeys(members, ratio)
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
