"""Faults of values: not finite, derivative zero, exactly on a kink."""

from __future__ import annotations

import math
from collections import defaultdict
from itertools import pairwise
from typing import Any

from pullback.audit.judge.flow import LOOP
from pullback.audit.judge.ledger import SILENT, Ledger
from pullback.audit.trace import operations as ops
from pullback.audit.trace.records import Node

__all__ = ["find_kinks", "find_not_finite", "find_zeros"]


def find_not_finite(ledger: Ledger) -> None:
    """Find the first value, or the first cotangent, that is not finite."""
    bad = [e for e in ledger.graph.events if not e.finite]
    for event in bad:
        inside = ledger.graph.upstream([event.node])  # type: ignore[list-item]
        first = next((n for n in sorted(inside) if ledger.nodes[n].first_bad), None)
        if first is not None:
            node = ledger.nodes[first]
            grown = _growing_loop(ledger, inside, first)
            if grown is not None:
                looped, growth = grown
                evidence = {"what": node.forward, "growth of the value": f"{growth:.1e}", "loop": True}
                ledger.add("exploding.loop", looped.site, looped.op, "error", evidence, factor=f"{growth:.1e}")
                return
            evidence = {"what": node.forward, **_values(node.values)}
            ledger.add("nan.forward", node.site, node.op, "error", evidence)
            return
    for entry in ledger.tracer.not_finite:
        node = ledger.nodes[entry.node]
        code = "nan.where" if entry.masked else "nan.backward"
        evidence = {"function": entry.function, "what": entry.what, **_values(node.values)}
        ledger.add(code, node.site, node.op, "error", evidence)
        return


def _growing_loop(ledger: Ledger, inside: set[int], first: int) -> tuple[Node, float] | None:
    """Return the call of a loop whose values grew steadily until they overflowed, and by how much."""
    visits: dict[tuple[Any, int, str], list[Node]] = defaultdict(list)
    for index in sorted(inside):
        node = ledger.nodes[index]
        if index <= first and node.site is not None and node.live:
            visits[node.site.code, node.site.instruction, node.op].append(node)
    best: tuple[Node, float] | None = None
    for nodes in visits.values():
        sizes = [n.scale for n in nodes if n.scale > 0 and math.isfinite(n.scale)]
        if len(sizes) < LOOP or sizes[-1] < 1e15:  # the norm overflows in float32 from 1e19 on
            continue
        growth = sizes[-1] / sizes[0]
        rising = sum(a < b for a, b in pairwise(sizes)) >= 0.9 * (len(sizes) - 1)
        if rising and growth > 1e10 and (best is None or growth > best[1]):
            best = nodes[-1], growth
    return best


def _values(values: tuple[float, float, float] | None) -> dict[str, float]:
    if values is None:
        return {}
    return {"input minimum": values[0], "input maximum": values[1], "input nearest to zero": values[2]}


def find_zeros(ledger: Ledger) -> None:
    """Lines that receive a cotangent and pass on exactly zero."""
    for node in ledger.nodes:
        if node.op == "softmax" and node.index in ledger.graph.reached and node.cotangent:
            users = {ledger.nodes[c].op for c in ledger.graph.children[node.index] if c in ledger.graph.reached}
            faint = node.zero_out or (node.gain_count and node.gain_log / node.gain_count < -11.5)
            if users <= {"sum", "mean"} and faint and ledger.graph.leaves(ledger.graph.upstream([node.index])):
                ledger.add("zero.softmax", node.site, node.op, "error", {"reason": "its sum is always one"})
    customs = {call.function.__name__ for call in ledger.tracer.custom_calls.values()}
    for leaf in sorted(ledger.dead - set(ledger.blame)):
        below = ledger.graph.downstream([leaf]) & ledger.graph.reached
        stuck = [ledger.nodes[i] for i in sorted(below) if ledger.nodes[i].zero_out and not _at_rest(ledger, i)]
        stuck = stuck or [
            ledger.nodes[i] for i in sorted(below) if ledger.nodes[i].op in customs and ledger.nodes[i].cotangent
        ]
        if not stuck:
            continue
        node = stuck[-1]
        if node.kinks and node.kinks >= node.size:
            code = f"kink.{node.op.strip('_')}"
            words = {"count": node.kinks, "size": node.size}
            finding = ledger.add(code, node.site, node.op, "warning", dict(words), **words)
        else:
            name = "custom" if node.op == "untraced" or node.op in customs else node.op.strip("_")
            evidence = {"cotangent norm": node.cotangent, "visits": node.zero_out}
            finding = ledger.add(f"zero.{name}", node.site, node.op, "error", evidence)
        ledger.charge([leaf], finding)
        if finding is None:
            ledger.blame[leaf] = SILENT


def _at_rest(ledger: Ledger, index: int) -> bool:
    """A comparison at its minimum (a teacher equal to its student) has gradient zero and nothing wrong with it."""
    node = ledger.nodes[index]
    product = node.op in ("mul", "__mul__", "mul_") and all(ledger.nodes[p].live for p in node.parents)
    return product or node.leaf is not None or node.op in ops.LOSSES or node.op.strip("_") in ops.RESIDUAL


def find_kinks(ledger: Ledger) -> None:
    """Find operations whose input lies on a point without derivative while a cotangent passes."""
    for node in ledger.nodes:
        if not node.kinks or not node.cotangent or node.index not in ledger.graph.reached:
            continue
        if any(ledger.nodes[p].leaf is not None and ledger.nodes[p].leaf.parameter for p in node.parents):  # type: ignore[union-attr]
            continue
        whole = node.kinks >= node.size and not _same_sources(ledger, node)
        if not whole and node.op.strip("_") in ("relu", "leaky_relu", "clamp", "clamp_min", "relu6", "hardtanh"):
            continue
        if not ledger.graph.leaves(ledger.graph.upstream([node.index], live=True)) & ledger.trained:
            continue
        words = {"count": node.kinks, "size": node.size}
        severity = "warning" if whole else "info"
        ledger.add(f"kink.{node.op.strip('_')}", node.site, node.op, severity, dict(words), **words)


def _same_sources(ledger: Ledger, node: Node) -> bool:
    """A tie of two values made by the same tensors (a ratio and its clipped self): either side carries the gradient."""
    if node.op.strip("_") not in ("maximum", "minimum", "max", "min") or len(node.parents) < 2:
        return False
    leaves = [ledger.graph.leaves(ledger.graph.upstream([p], live=True)) for p in node.parents]
    return bool(leaves[0]) and all(found == leaves[0] for found in leaves)
