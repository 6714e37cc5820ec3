"""Values that left for Python: numbers, arrays, and conditions."""

from __future__ import annotations

import re
from bisect import bisect_right

from pullback.audit.judge.deliberate import kind_of
from pullback.audit.judge.ledger import Ledger
from pullback.audit.judge.verdicts import site_key
from pullback.audit.trace import operations as ops
from pullback.audit.trace.decisions import Decision, decision_at, readers_of
from pullback.audit.trace.records import Exit
from pullback.audit.trace.sites import Site, in_branch_test, place

__all__ = ["find_branches", "find_exits"]


_ORDERS = re.compile(r"(max|min|abs|sorted)\(")
"""Functions of Python that compare tensors and return them as they are."""


def find_exits(ledger: Ledger) -> None:
    """Values that left for Python and are the only explanation of a missing gradient."""
    graph = ledger.graph
    lost = [e for e in graph.events if not e.live and not ledger.nodes[e.node].origins]  # type: ignore[index]
    lost += [e for e in ledger.tracer.events if e.node is None]
    # `torch.tensor(number, requires_grad=True).backward()`: a tensor of its own, which nobody trains
    lost += [e for e in graph.events if e.node in ledger.tracer.leaves and e.node not in ledger.trained]
    constants = () if ledger.verdicts.exits else [i for e in graph.events for i in graph.summands(e)]
    rebuilt = [i for i in constants if ledger.nodes[i].constant]  # a term of the loss that came from nowhere
    for exit_ in ledger.tracer.exits:
        if exit_.linked or exit_.op == "__bool__":
            continue
        if rebuilt and exit_.node < min(rebuilt) and ledger.nodes[exit_.node].origins and exit_.direct:
            same = [e for e in ledger.tracer.exits if e.site.line == exit_.site.line and e.site.code is exit_.site.code]
            _rebuilt(ledger, min(same, key=lambda e: min(e.upstream, default=len(ledger.tracer.origins))))
            rebuilt = []
        verdict = ledger.verdicts.exits.get(site_key(exit_.site, exit_.op))
        above = graph.upstream([exit_.source])
        leaves = graph.leaves(above) & ledger.trained
        silent = {i for i in leaves if not ledger.tracer.leaves[i].norm} - set(ledger.blame)
        if verdict is False or not leaves or not (lost or verdict):
            continue
        origin = _first(ledger, exit_)
        code, op, site = (_code_of_exit(exit_), exit_.op, exit_.site) if origin is None else origin
        gone = [ledger.name_of(i) for i in sorted(silent)][:20]
        evidence = {"parameters without gradient": gone, "confirmed": verdict is True}
        in_test = exit_.direct and in_branch_test(place(exit_.site.code, exit_.site.instruction, exit_.site.line))
        rounds = decision_at(place(exit_.site.code, exit_.site.instruction, exit_.site.line)).kind == "for"
        if in_test or rounds or exit_.op in ("__int__", "__index__"):
            code = code if origin is not None and origin[0] != "cut.number" else "control-flow.number"
        ledger.charge(silent, ledger.add(code, site, op, "error" if silent or verdict else "warning", evidence))


def _rebuilt(ledger: Ledger, exit_: Exit) -> None:
    """Blame the head of the chain that ends in a number, from which a constant term of the loss was made."""
    if not ledger.graph.leaves(ledger.graph.upstream([exit_.source])) & ledger.trained:
        return
    code, op, site = _first(ledger, exit_) or (_code_of_exit(exit_), exit_.op, exit_.site)
    where = place(exit_.site.code, exit_.site.instruction, exit_.site.line)
    ledger.add(code, site, op, "error", {"a constant term of the loss is made from": f"{where.file}:{where.line}"})


def _first(ledger: Ledger, exit_: Exit) -> tuple[str, str, Site] | None:
    """Return the stop at the head of the chain that ends in an exit."""
    if exit_.live or not exit_.upstream:
        return None
    origin = ledger.tracer.origins[min(exit_.upstream)]
    same_line = origin.site.line == exit_.site.line and origin.site.code is exit_.site.code
    if same_line and kind_of(origin.code).value:
        return None
    return origin.code, origin.op, origin.site


def _code_of_exit(exit_: Exit) -> str:
    return "cut.numpy" if exit_.op in ("numpy", "__array__") else "cut.item"


def find_branches(ledger: Ledger) -> None:
    """Decisions that Python takes on values that depend on what is trained, if the loss depends on how they fall.

    The probes say so where they ran; else the trace: what was run under the decision is part of a loss. What only
    counts, logs or stops is neither.
    """
    for exit_ in ledger.tracer.exits:
        if not exit_.direct or exit_.op not in ("__bool__", "item", "__int__", "__index__", "__float__", "tolist"):
            continue
        where = place(exit_.site.code, exit_.site.instruction, exit_.site.line)
        decision = decision_at(where)
        number = exit_.op in ("__int__", "__index__") and not in_branch_test(where)
        if exit_.op != "__bool__" and not in_branch_test(where) and not number:
            continue
        leaves = ledger.graph.leaves(ledger.graph.upstream([exit_.source])) & ledger.trained
        verdict = ledger.verdicts.branches.get(site_key(exit_.site, exit_.op))
        if not leaves or verdict is False or _guards(ledger, exit_.source) or _reported(ledger, exit_, decision):
            continue
        if _ORDERS.match(where.source[max(where.column - 1, 0) :]):
            continue  # the larger of two has the gradient of the larger
        if number and ledger.verdicts.exits:
            continue  # measured, and told as a value that left
        silent = {i for i in leaves if not ledger.tracer.leaves[i].norm} - set(ledger.blame)
        evidence: dict[str, object] = {"confirmed": bool(verdict)}
        if verdict:
            severity = "error" if silent else "warning"
        else:
            decided = _decided(ledger, exit_, decision)
            if not decided and number and decision.kind == "value":  # what it cuts out of the data is used further down
                decided = _decided(ledger, exit_, Decision("value", readers_of(where)))
            ends = decision.rounds is not None and bool(silent) and ledger.certain
            if not decided and ends:  # how often a loop runs is all that these tensors are for
                decided = _decided(ledger, exit_, Decision("if", (decision.rounds,)))  # type: ignore[arg-type]
            if not decided or (number and _goes_on(ledger, exit_, decision)):
                continue
            evidence["decides on lines"] = decided
            certain = decision.kind in ("if", "value", "for") and (ends or not decision.leaves)
            # A truth value that goes on as data: keep[i] = not bool(near.any())
            flag = exit_.op == "__bool__" and decision.kind == "value"
            chosen = _picked(ledger, exit_.source) or _drawn(ledger, exit_)
            severity = "warning" if certain and (flag or not chosen) else "info"
            if number and severity == "warning" and silent:
                severity = "error"
        code = "control-flow.number" if number else "control-flow.branch"
        finding = ledger.add(code, exit_.site, exit_.op, severity, evidence)
        if (verdict or (silent and severity != "info")) and finding is not None:
            ledger.charge(silent, finding)


def _reported(ledger: Ledger, exit_: Exit, decision: Decision) -> bool:
    """Whether the stop at the head of the chain that ends in the decision is an error already.

    A truth value that goes on as data is a stop of its own: once the head is cured, it still cuts.
    """
    own = (exit_.site.code.co_filename, exit_.site.line)
    places = {own}
    if exit_.op != "__bool__" or decision.kind != "value":
        heads = [ledger.tracer.origins[i] for i in exit_.upstream]
        places |= {(h.site.code.co_filename, h.site.line) for h in heads}
    return any(f.severity == "error" and (f.file, f.line) in places for f in ledger.found)


def _decided(ledger: Ledger, exit_: Exit, decision: Decision) -> list[int]:
    """Return the lines under a decision whose values entered the loss of the same pass."""
    graph = ledger.graph
    starts = [event.first for event in graph.events]
    number = bisect_right(starts, exit_.node) - 1
    if number < 0:
        return []
    end = starts[number + 1] if number + 1 < len(starts) else len(ledger.nodes)
    lines = set()
    for index in graph.ancestry[number]:
        site = ledger.nodes[index].site
        if site is None or site.code is not exit_.site.code or not exit_.node < index < end:
            continue
        if any(first <= site.line <= last for first, last in decision.lines):
            lines.add(site.line)
    return sorted(lines)


def _goes_on(ledger: Ledger, exit_: Exit, decision: Decision) -> bool:
    """Whether the tensor behind a number enters the same statement, as in a cut with the slope of what it cuts."""
    graph = ledger.graph
    for index in graph.children[exit_.source]:
        node = ledger.nodes[index]
        here = node.site is not None and node.site.code is exit_.site.code
        if here and node.live and any(first <= node.site.line <= last for first, last in decision.lines):  # type: ignore[union-attr]
            return True
    return False


def _picked(ledger: Ledger, source: int) -> bool:
    """Whether the value is a position: a token that ends a sentence is chosen, not computed."""
    above = ledger.graph.upstream([source])
    return any(ledger.nodes[i].op in ops.INDICES | ops.SPLIT_INDICES and not ledger.nodes[i].live for i in above)


def _drawn(ledger: Ledger, exit_: Exit) -> bool:
    """Whether the value is a draw: an action that the world answers with a reward."""
    heads = [ledger.tracer.origins[i] for i in exit_.upstream]
    return bool(heads) and all(kind_of(head.code).drawn for head in heads)


def _guards(ledger: Ledger, source: int) -> bool:
    """``if not isfinite(loss)``: a guard against broken numbers, not a choice."""
    stack = [source]
    seen: set[int] = set()
    while stack:
        node = ledger.nodes[stack.pop()]
        if node.index in seen:
            continue
        seen.add(node.index)
        if node.op in ("isfinite", "isnan", "isinf", "allclose", "equal"):
            return True
        stack += [p for p in node.parents if not ledger.nodes[p].live]
    return False
