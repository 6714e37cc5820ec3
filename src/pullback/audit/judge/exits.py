"""Values that left for Python: numbers, arrays, and conditions."""

from __future__ import annotations

from pullback.audit.judge.deliberate import kind_of
from pullback.audit.judge.ledger import Ledger
from pullback.audit.judge.verdicts import site_key
from pullback.audit.trace.records import Exit
from pullback.audit.trace.sites import Site, in_branch_test, place

__all__ = ["find_branches", "find_exits"]


def find_exits(ledger: Ledger) -> None:
    """Values that left for Python and are the only explanation of a missing gradient."""
    graph = ledger.graph
    lost = [e for e in graph.events if not e.live and not ledger.nodes[e.node].origins]  # type: ignore[index]
    lost += [e for e in ledger.tracer.events if e.node is None]
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
        if in_test or exit_.op in ("__int__", "__index__"):
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
    """Python branches on values that depend on what is trained."""
    for exit_ in ledger.tracer.exits:
        if not exit_.direct or exit_.op not in ("__bool__", "item", "__int__", "__index__", "__float__", "tolist"):
            continue
        where = place(exit_.site.code, exit_.site.instruction, exit_.site.line)
        if exit_.op != "__bool__" and not in_branch_test(where):
            continue
        leaves = ledger.graph.leaves(ledger.graph.upstream([exit_.source])) & ledger.trained
        verdict = ledger.verdicts.branches.get(site_key(exit_.site, exit_.op))
        if not leaves or verdict is False or _guards(ledger, exit_.source):
            continue
        silent = {i for i in leaves if not ledger.tracer.leaves[i].norm} - set(ledger.blame)
        if any(b is not None and b.severity == "error" for b in (ledger.blame.get(i) for i in leaves)):
            continue  # a later link of a chain that is already reported
        if verdict:
            severity = "error" if silent else "warning"
        else:
            severity = "info"
        finding = ledger.add("control-flow.branch", exit_.site, exit_.op, severity, {"confirmed": bool(verdict)})
        if verdict and finding is not None:
            ledger.charge(silent, finding)


def _guards(ledger: Ledger, source: int) -> bool:
    """``if not isfinite(loss)``: a guard against broken numbers, not a choice."""
    stack = [source]
    while stack:
        node = ledger.nodes[stack.pop()]
        if node.op in ("isfinite", "isnan", "isinf", "allclose", "equal"):
            return True
        stack += [p for p in node.parents if not ledger.nodes[p].live]
    return False
