"""Faults of values: not finite, derivative zero, exactly on a kink."""

from __future__ import annotations

import math
from collections import defaultdict
from itertools import pairwise
from typing import Any

import torch

from pullback.audit.judge.flow import LOOP
from pullback.audit.judge.ledger import SILENT, Ledger
from pullback.audit.trace import operations as ops
from pullback.audit.trace.records import Node, NotFinite

__all__ = ["find_kinks", "find_not_finite", "find_zeros"]

ONE = "the sum of a softmax is always one"


def find_not_finite(ledger: Ledger) -> None:
    """Find the first value, or the first cotangent, that is not finite."""
    entries = {entry.event: entry for entry in reversed(ledger.tracer.not_finite)}  # the first of each pass
    before = entries.get(-1)  # a gradient that the program took on the way to its first loss
    if before is not None:
        _not_finite_backward(ledger, before)
        return
    for number, event in enumerate(ledger.tracer.events):
        if event.node is not None and not event.finite and _not_finite_forward(ledger, event.node, number):
            return
        if number in entries:
            _not_finite_backward(ledger, entries[number])
            return


def _not_finite_forward(ledger: Ledger, loss: int, number: int) -> bool:
    """Blame the operation that made the first bad value of a loss, or the loop that grew until it overflowed."""
    inside = ledger.graph.upstream([loss])
    first = _first_bad(ledger, inside)
    if first is None:
        return False
    grown = _growing_loop(ledger, inside, first.index)
    if grown is not None:
        looped, growth = grown
        evidence = {"what": first.forward, "growth of the value": f"{growth:.1e}", "loop": True}
        ledger.add("exploding.loop", looped.site, looped.op, "error", evidence, factor=f"{growth:.1e}")
        return True
    evidence = {"what": first.forward, "backward pass": ledger.tracer.events[number].number, **_values(first.values)}
    ledger.add("nan.forward", first.site, first.op, "error", evidence)
    return True


def _not_finite_backward(ledger: Ledger, entry: NotFinite) -> None:
    """Blame the operation whose backward made the first bad cotangent, or the one that made the value it met.

    Rows that a softmax made NaN and that were sliced away have the cotangent zero, and zero times NaN is NaN.
    """
    node = ledger.nodes[entry.node]
    evidence: dict[str, Any] = {"function": entry.function, "what": entry.what}
    if entry.event >= 0:
        evidence["backward pass"] = ledger.tracer.events[entry.event].number
    spoilt = [p for p in node.parents if ledger.nodes[p].forward == "nan"]
    made = _first_bad(ledger, ledger.graph.upstream(spoilt)) if spoilt else None
    if made is not None:
        ledger.add("nan.forward", made.site, made.op, "error", {**evidence, **_values(made.values)})
        return
    code = "nan.where" if entry.masked else "nan.backward"
    ledger.add(code, node.site, node.op, "error", {**evidence, **_values(node.values)})


def _first_bad(ledger: Ledger, inside: set[int]) -> Node | None:
    """Return the earliest node that made a value that is not finite; without one, the earliest that has one."""
    nodes = [ledger.nodes[i] for i in sorted(inside) if ledger.nodes[i].forward]
    return next((n for n in nodes if n.first_bad), nodes[0] if nodes else None)


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
        if len(sizes) < LOOP or sizes[-1] < 1e15:
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
                ledger.add("zero.softmax", node.site, node.op, "error", {"reason": ONE}, reason=ONE)
        if node.flat and node.op not in ops.PRODUCTS and node.cotangent and node.index in ledger.graph.reached:
            leaves = ledger.graph.leaves(ledger.graph.upstream([node.index], live=True)) & ledger.trained
            if leaves:
                finding = ledger.add(
                    f"zero.{node.op}", node.site, node.op, "error", {"reason": node.flat}, reason=node.flat
                )
                ledger.charge(leaves & ledger.dead, finding)
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
            counts = {"count": node.kinks, "size": node.size}
            finding = ledger.add(code, node.site, node.op, "warning", dict(counts), **counts)
        else:
            name = "custom" if node.op == "untraced" or node.op in customs else node.op.strip("_")
            evidence: dict[str, Any] = {"cotangent norm": node.cotangent, "visits": node.zero_out}
            words = {"reason": node.flat} if node.flat else {}
            finding = ledger.add(f"zero.{name}", node.site, node.op, "error", evidence | words, **words)
        ledger.charge([leaf], finding)
        if finding is None:
            ledger.blame[leaf] = SILENT


def _at_rest(ledger: Ledger, index: int) -> bool:
    """A comparison at its minimum (a teacher equal to its student) has gradient zero and nothing wrong with it."""
    node = ledger.nodes[index]
    product = node.op in ops.PRODUCTS and not node.flat and all(ledger.nodes[p].live for p in node.parents)
    return product or node.leaf is not None or node.op in ops.LOSSES or node.op.strip("_") in ops.RESIDUAL


_SIDES = frozenset("relu leaky_relu prelu relu6 hardtanh clamp clip clamp_min clamp_max".split())
"""Activations and bounds: a single entry on their kink is ordinary, all of them are not."""


def find_kinks(ledger: Ledger) -> None:
    """Find operations whose input lies on a point without derivative while a cotangent passes."""
    for node in ledger.nodes:
        if not node.cotangent or node.index not in ledger.graph.reached:
            continue
        if node.ties and ledger.graph.leaves(ledger.graph.upstream([node.index], live=True)) & ledger.trained:
            words = {"count": node.ties, "size": node.size}
            ledger.add(f"kink.{node.op.strip('_')}", node.site, node.op, "info", dict(words), **words)
        if not node.kinks:
            continue
        if any(ledger.nodes[p].leaf is not None and ledger.nodes[p].leaf.parameter for p in node.parents):  # type: ignore[union-attr]
            continue
        whole = node.kinks >= node.size and not _same_sources(ledger, node)
        if not whole and node.op.strip("_") in _SIDES:
            continue
        if not ledger.graph.leaves(ledger.graph.upstream([node.index], live=True)) & ledger.trained:
            continue
        words = {"count": node.kinks, "size": node.size}
        severity = "warning" if whole else "info"
        ledger.add(f"kink.{node.op.strip('_')}", node.site, node.op, severity, dict(words), **words)
    _find_penalties(ledger)


def _find_penalties(ledger: Ledger) -> None:
    """Find L1 penalties whose derivative plain gradient descent steps along: it makes no weight 0."""
    if ledger.optimizers is None:
        return
    descents = [s.optimizer for s in ledger.optimizers.stepped if type(s.optimizer) is torch.optim.SGD]
    held = {id(p) for descent in descents for group in descent.param_groups for p in group["params"]}
    for node in ledger.nodes:
        if (
            node.op.strip("_") not in ("abs", "absolute")
            or not node.cotangent
            or node.index not in ledger.graph.reached
        ):
            continue
        for parent in node.parents:
            leaf = ledger.nodes[parent].leaf
            if leaf is not None and id(leaf.reference()) in held:
                name = ledger.name_of(parent)
                ledger.add("kink.penalty", node.site, node.op, "info", {"size": node.size}, name=name)


def _same_sources(ledger: Ledger, node: Node) -> bool:
    """A tie of two values made by the same tensors (a ratio and its clipped self): either side carries the gradient."""
    if node.op.strip("_") not in ("maximum", "minimum", "max", "min") or len(node.parents) < 2:
        return False
    leaves = [ledger.graph.leaves(ledger.graph.upstream([p], live=True)) for p in node.parents]
    return bool(leaves[0]) and all(found == leaves[0] for found in leaves)
