"""Turn a trace into findings."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pullback.audit.judge.cancels import find_cancels
from pullback.audit.judge.exits import find_branches, find_exits
from pullback.audit.judge.flow import flow_findings
from pullback.audit.judge.ledger import SILENT, Ledger
from pullback.audit.judge.names import names_of
from pullback.audit.judge.starved import find_cleared, find_stale, find_starved, find_unregistered
from pullback.audit.judge.stops import find_stops
from pullback.audit.judge.values import find_kinks, find_not_finite, find_zeros
from pullback.audit.judge.verdicts import Verdicts
from pullback.audit.report.findings import SEVERITIES, Finding, LineRecord, ParameterRecord
from pullback.audit.report.report import Report
from pullback.audit.trace.optimizers import Optimizers
from pullback.audit.trace.sites import place
from pullback.audit.trace.tracer import Tracer

__all__ = ["analyse"]


def analyse(
    tracer: Tracer,
    *,
    target: str,
    wrt: set[int] | None = None,
    names: Mapping[int, str] | None = None,
    ignore: tuple[str, ...] = (),
    verdicts: Verdicts | None = None,
    notes: Iterable[str] = (),
    error: str | None = None,
    optimizers: Optimizers | None = None,
) -> Report:
    """Return the report of a trace.

    Args:
        tracer: the finished trace.
        target: what was audited, for the heading.
        wrt: ids of the tensors that are trained; ``None``: every leaf that requires grad.
        names: names of tensors by id.
        ignore: ``file.py:12`` or ``file.py``: places not to report.
        verdicts: results of the probes, where they ran.
        notes: what the audit did not see.
        error: traceback of the user's code, if it raised.
        optimizers: those that the program built and stepped.
    """
    unfed = set() if optimizers is None else optimizers.unfed()
    for leaf in tracer.leaves.values():
        if leaf.norm is None and id(leaf.reference()) not in unfed:
            leaf.norm = leaf.inner  # the program updates by hand what autograd.grad returned
    named = {} if optimizers is None else names_of(optimizers.modules.items(), optimizers.tensors.items())
    ledger = Ledger(tracer, wrt, {**named, **(names or {})}, ignore, verdicts or Verdicts(), optimizers)
    return _report(ledger, target, notes, error)


def _report(ledger: Ledger, target: str, notes: Iterable[str], error: str | None) -> Report:
    find_stops(ledger)
    find_exits(ledger)
    find_not_finite(ledger)
    if not any(f.kind == "nan" for f in ledger.found):
        find_cancels(ledger)
        find_zeros(ledger)
        for code, node, evidence, leaves in flow_findings(ledger.graph, ledger.trained):
            if ledger.add(code, node.site, node.op, "error" if leaves else "warning", evidence, **evidence):
                ledger.charge(leaves & ledger.dead)
        find_kinks(ledger)
    for site, op, evidence in ledger.verdicts.biased:
        if any(f.kind == "zero" and f.operation == op for f in ledger.found):
            continue
        ledger.add("biased.custom", site, op, "error", evidence)
    for site, op, evidence in ledger.verdicts.wrong:
        ledger.add("biased.operation", site, op, "error", evidence)
    find_branches(ledger)
    if ledger.optimizers is not None:
        find_stale(ledger, ledger.optimizers)
        find_unregistered(ledger, ledger.optimizers)
        find_cleared(ledger, ledger.optimizers)
    if not any(f.kind == "nan" for f in ledger.found):
        find_starved(ledger)
    _bias(ledger)
    _unused(ledger)
    ledger.found.sort(key=lambda f: (-SEVERITIES.index(f.severity), f.file, f.line, f.code))
    lines, edges = _lines(ledger)
    parameters = tuple(_parameters(ledger))
    every = (*ledger.tracer.notes, *notes, *_blind_spots(ledger))
    return Report(
        target=target,
        findings=tuple(ledger.found),
        lines=lines,
        edges=edges,
        parameters=parameters,
        notes=every,
        silenced=ledger.silenced,
        steps=ledger.tracer.steps_seen,
        error=error,
    )


def _bias(ledger: Ledger) -> None:
    """Say that the gradient is not that of the smoothed loss, unless an error says why.

    A stop that was meant (a target, a straight-through estimator) biases it on purpose: that is for information. With
    no stop in sight something unseen is wrong: a hook, compiled code.
    """
    bias = ledger.verdicts.bias
    if not bias or not all(b.biased for b in bias) or any(f.severity == "error" for f in ledger.found):
        return
    event = next((e for e in reversed(ledger.graph.events) if e.node is not None), None)
    if event is None or event.node is None:
        return
    narrow = bias[0]
    evidence = {
        "smoothed over autograd": narrow.ratio,
        "confidence interval": [narrow.ratio - 1.96 * narrow.error, narrow.ratio + 1.96 * narrow.error],
        "cosine": narrow.cosine,
        "smoothing": narrow.smoothing,
    }
    inside = ledger.graph.downstream(ledger.trained) & ledger.graph.reached
    meant = bool(ledger.tracer.exits) or any(not ledger.nodes[i].live for i in inside)
    loss = ledger.nodes[event.node]
    ledger.add("biased.gradient", loss.site, loss.op, "info" if meant else "warning", evidence)


def _unused(ledger: Ledger) -> None:
    for index in sorted(ledger.trained - ledger.graph.reached):
        leaf = ledger.tracer.leaves[index]
        if leaf.norm or index in ledger.blame or not ledger.graph.events:
            continue
        users = [ledger.nodes[c] for c in ledger.graph.children[index] if ledger.nodes[c].site is not None]
        users = [u for u in users if u.op not in ("clone", "detach", "get data", "copy_", "to")]  # copies of a module
        if users:
            evidence = {"shape": list(leaf.shape)}
            ledger.charge(
                [index],
                ledger.add("unused.value", users[0].site, users[0].op, "info", evidence, name=ledger.name_of(index)),
            )


def _parameters(ledger: Ledger) -> Iterator[ParameterRecord]:
    """Yield the trained tensors, each once; of what is not known to be trained, what a loss depends on."""
    seen: set[int] = set()
    for index in sorted(ledger.trained):
        leaf = ledger.tracer.leaves[index]
        reached = index in ledger.graph.reached
        if not reached and not ledger.certain and index not in ledger.blame:
            continue  # the template of a layer, copied and forgotten
        if leaf.reference() is not None and id(leaf.reference()) in seen:
            continue
        seen.add(id(leaf.reference()))
        yield ParameterRecord(ledger.name_of(index), leaf.shape, leaf.norm, reached, _blame(ledger.blame.get(index)))
    for tensor in ledger.optimizers.held() if ledger.optimizers is not None and ledger.certain else ():
        if id(tensor) not in seen and tensor.requires_grad:
            seen.add(id(tensor))
            blame = _blame(ledger.blame_of_tensors.get(id(tensor)))
            yield ParameterRecord(ledger.name_of_tensor(tensor), tuple(tensor.shape), None, False, blame)


def _blame(finding: Finding | None) -> dict[str, Any] | None:
    if finding is None or finding is SILENT:
        return None
    return {"file": finding.file, "line": finding.line, "code": finding.code}


def _lines(ledger: Ledger) -> tuple[tuple[LineRecord, ...], tuple[tuple[int, int], ...]]:
    rows: dict[tuple[str, int], list[int]] = {}
    for node in ledger.nodes:
        if node.site is not None:
            rows.setdefault((node.site.code.co_filename, node.site.line), []).append(node.index)
    marks: dict[tuple[str, int], list[str]] = defaultdict(list)
    for finding in ledger.found:
        if finding.kind not in marks[finding.file, finding.line]:
            marks[finding.file, finding.line].append(finding.kind)
    order = {key: i for i, key in enumerate(rows)}
    records = []
    edges: set[tuple[int, int]] = set()
    for (file, line), members in rows.items():
        nodes = [ledger.nodes[i] for i in members]
        norms = [n.cotangent for n in nodes if n.cotangent is not None]
        count = sum(n.gain_count > 0 for n in nodes)
        gain = _exp(sum(n.gain_log for n in nodes) / count) if count else None
        operations = tuple(dict.fromkeys(n.op for n in nodes))
        source = place(nodes[0].site.code, nodes[0].site.instruction, line).source  # type: ignore[union-attr]
        norm = max(norms) if norms else None
        records.append(LineRecord(file, line, source, len(nodes), operations, norm, gain, tuple(marks[file, line])))
        for node in nodes:
            for parent in node.parents:
                site = ledger.nodes[parent].site
                if site is not None and (site.code.co_filename, site.line) != (file, line):
                    edges.add((order[site.code.co_filename, site.line], order[file, line]))
    return tuple(records), tuple(sorted(edges))


def _blind_spots(ledger: Ledger) -> list[str]:
    notes = []
    left = {e.op for e in ledger.tracer.exits if e.op in ("numpy", "__array__", "tolist")}
    if left and not ledger.verdicts.exits:
        notes.append("values left for NumPy or Python lists; what happens to them there is not seen")
    if any(n.op == "untraced" for n in ledger.nodes):
        names = sorted(
            {os.path.basename(n.site.code.co_filename) for n in ledger.nodes if n.op == "untraced" and n.site}
        )
        notes.append(f"some tensors were made by code that is not seen (C++ or compiled), used in {', '.join(names)}")
    return notes


def _exp(value: float) -> float:
    return math.exp(min(max(value, -700.0), 700.0))
