"""Turn a trace into findings."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pullback.audit import operations as ops
from pullback.audit.findings import SEVERITIES, Finding, LineRecord, ParameterRecord, Report
from pullback.audit.flow import flow_findings
from pullback.audit.graph import TraceGraph
from pullback.audit.intent import intended, wasted
from pullback.audit.messages import explain
from pullback.audit.remedies import with_remedies
from pullback.audit.sites import Place, Site, in_branch_test, place, silenced
from pullback.audit.tracer import Exit, Leaf, Origin, Tracer

__all__ = ["Verdicts", "analyse"]


@dataclass
class Verdicts:
    """What the probes measured; keys are (code object, instruction, operation).

    Attributes:
        exits: for a value that left for Python: whether changing it changes the loss.
        branches: for a branch on a value: whether taking the other side changes the loss.
        gaps: for a stop: the share of the smoothed derivative that it hides (0: none).
        agree: whether autograd agrees with the smoothed derivative as a whole; ``None`` if not measured.
        biased: custom functions whose backward disagrees with their forward, with the numbers.
        evidence: further numbers of the whole function.
    """

    exits: dict[tuple[Any, int, str], bool] = field(default_factory=dict)
    branches: dict[tuple[Any, int, str], bool] = field(default_factory=dict)
    gaps: dict[tuple[Any, int, str], float] = field(default_factory=dict)
    agree: bool | None = None
    biased: list[tuple[Site, str, dict[str, float]]] = field(default_factory=list)
    evidence: dict[str, float] = field(default_factory=dict)


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
    """
    return _Analysis(tracer, wrt, {**tracer.names, **(names or {})}, ignore, verdicts or Verdicts()).report(
        target, notes, error
    )


def site_key(site: Site, op: str) -> tuple[Any, int, str]:
    """Return the key under which probes file what they measured."""
    return site.code, site.instruction, op


class _Analysis:
    def __init__(
        self,
        tracer: Tracer,
        wrt: set[int] | None,
        names: Mapping[int, str],
        ignore: tuple[str, ...],
        verdicts: Verdicts,
    ) -> None:
        self.tracer = tracer
        self.nodes = tracer.nodes
        self.graph = TraceGraph(tracer)
        self.ignore = ignore
        self.names = names
        self.verdicts = verdicts
        self.certain = wrt is not None
        self.found: list[Finding] = []
        self.silenced = 0
        self.blame: dict[int, Finding] = {}
        self.trained = {i for i, leaf in tracer.leaves.items() if wrt is None or id(leaf.reference()) in wrt}
        self.dead = {i for i in self.trained if i in self.graph.reached and not tracer.leaves[i].norm}

    def report(self, target: str, notes: Iterable[str], error: str | None) -> Report:
        self._stops()
        self._exits()
        self._not_finite()
        if not any(f.kind == "nan" for f in self.found):
            self._zeros()
            for code, node, evidence, leaves in flow_findings(self.graph, self.trained):
                if self._add(code, node.site, node.op, "error" if leaves else "warning", evidence, **evidence):
                    self._blame(leaves & self.dead)
            self._kinks()
        for site, op, evidence in self.verdicts.biased:
            if any(f.kind == "zero" and f.operation == op for f in self.found):
                continue
            self._add("biased.custom", site, op, "error", evidence)
        self._branches()
        self._unused()
        self.found.sort(key=lambda f: (-SEVERITIES.index(f.severity), f.file, f.line, f.code))
        lines, edges = self._lines()
        parameters = tuple(self._parameter(i, self.tracer.leaves[i]) for i in sorted(self.trained))
        every = (*self.tracer.notes, *notes, *self._blind_spots())
        report = Report(
            target=target,
            findings=tuple(self.found),
            lines=lines,
            edges=edges,
            parameters=parameters,
            notes=every,
            silenced=self.silenced,
            steps=len(self.tracer.events),
            error=error,
        )
        return with_remedies(report)

    def _add(
        self, code: str, site: Site | None, op: str, severity: str, evidence: Mapping[str, Any], **words: Any
    ) -> Finding | None:
        where = place(site.code, site.instruction, site.line) if site else Place("<unknown>", 0, 0, 0, 0, "")
        if silenced(where, self.ignore):
            self.silenced += 1
            return None
        for old in self.found:
            if (old.file, old.line, old.code) == (where.file, where.line, code) and old.operation == op:
                if SEVERITIES.index(severity) > SEVERITIES.index(old.severity):
                    self.found[self.found.index(old)] = replace(old, severity=severity, evidence=dict(evidence))
                return old
        facts = dict(evidence)
        if site and site.library:
            facts["library"] = f"{site.library[0]}:{site.library[1]}"
        finding = Finding(
            code=code,
            kind=code.partition(".")[0],
            severity=severity,
            file=where.file,
            line=where.line,
            column=where.column,
            end_column=where.end_column,
            source=where.source,
            operation=op,
            message=explain(code, **{"op": op, **words}),
            evidence=facts,
        )
        self.found.append(finding)
        return finding

    def _blame(self, leaves: Iterable[int], finding: Finding | None = None) -> None:
        finding = finding or (self.found[-1] if self.found else None)
        for leaf in leaves:
            if finding is not None:
                self.blame.setdefault(leaf, finding)

    def _stops(self) -> None:
        """Cuts and steps whose value flows into a loss."""
        graph = self.graph
        flowing: set[int] = set()
        dead_losses: set[int] = set()
        for event in graph.events:
            assert event.node is not None
            flowing |= self.nodes[event.node].origins
            if not event.live:
                dead_losses |= self.nodes[event.node].origins
        terms = [(event, graph.summands(event)) for event in graph.events]
        groups: dict[tuple[Any, ...], list[int]] = defaultdict(list)
        for index in sorted(flowing):
            origin = self.tracer.origins[index]
            region = origin.region if origin.code in ("cut.no_grad", "cut.inference") else 0
            key = (origin.code, region) if region else (origin.code, origin.site.code, origin.site.instruction)
            groups[key].append(index)
        for members in groups.values():
            self._stop(members, dead_losses, terms)

    def _stop(self, members: list[int], dead_losses: set[int], terms: list[Any]) -> None:
        graph, origin = self.graph, self.tracer.origins[members[0]]
        sources = [s for m in members for s in self.tracer.origins[m].sources]
        above = graph.upstream(sources, live=True)
        leaves = graph.leaves(above) & self.trained
        if not leaves:
            return
        dead = leaves & self.dead
        upstream = {o for s in sources for o in self.nodes[s].origins if self.tracer.origins[o].code != origin.code}
        if upstream and dead and not (dead - set(self.blame)):  # a later link of a chain that is already reported
            return
        code = self._code(origin)
        stop = code.partition(".")[2] in ("detach", "data", "no_grad", "inference", "create_graph")
        anew = not set(members) - self.tracer.handled  # torch.func differentiates the detached value anew
        fatal = bool(dead_losses & set(members)) and not anew
        evidence: dict[str, Any] = {"parameters without gradient": [self._name(i) for i in sorted(dead)][:20]}
        gap = self.verdicts.gaps.get(site_key(origin.site, origin.op))
        if gap is not None:
            evidence["hidden share of the derivative"] = gap
        meant = "" if fatal else intended(graph, members[0], origin, starved=bool(dead) and self.certain)
        term = any(self._is_term(m, events) for m in members for events in terms)
        if code.startswith("zero.") and not fatal:
            visited = [self.nodes[self.tracer.origins[m].node] for m in members]
            if not any(n.cotangent for n in visited) and not dead:
                return
        if fatal or (term and meant not in ("score function", "sample")):
            severity = "error"
        elif dead:
            frozen = stop and all(self.tracer.leaves[i].frozen for i in dead) and len(dead) < len(self.trained)
            severity = "info" if meant or frozen else "error"
        elif meant:
            severity = "info"
        elif code == "cut.sampling":
            severity = "error"
        elif gap is not None:
            chosen = origin.code == "cut.comparison" and all(
                live.op in ("where", "masked_fill", "masked_fill_", "masked_scatter", "__getitem__", "__setitem__")
                for _, live in self.graph.merges(members[0], origin.node)
            )
            severity = "error" if gap > 0.1 and not stop and not chosen else "info"
        elif (code.startswith("zero.") and not self._wraps(members)) or wasted(self.graph, members):
            severity = "warning"
        else:
            severity = "info"
        if meant:
            evidence["intended"] = meant
        added = self._add(code, origin.site, origin.op, severity, evidence)
        if added is not None and severity == "error":
            self._blame(dead, added)
        elif added is None or meant or severity == "info":
            for leaf in dead:
                self.blame.setdefault(leaf, added) if added else self.blame.setdefault(leaf, _SILENT)

    def _code(self, origin: Origin) -> str:
        """A detach on the way to NumPy or to a number on the same line is that exit."""
        if origin.code not in ("cut.detach", "cut.data", "cut.no_grad"):
            return origin.code
        for exit_ in self.tracer.exits:
            if exit_.linked and exit_.site.line == origin.site.line and exit_.site.code is origin.site.code:
                return "cut.numpy" if exit_.op in ("numpy", "__array__") else "cut.item"
        return origin.code

    def _is_term(self, member: int, event_terms: Any) -> bool:
        event, summands = event_terms
        if not event.live or member not in self.nodes[event.node].origins:
            return False
        joined = {c for i in summands for c in self.graph.children[i] if c in summands and self.nodes[c].op in ops.SUMS}
        if any(live.index not in joined for _, live in self.graph.merges(member, self.tracer.origins[member].node)):
            return False
        for index in summands:
            if member not in self.nodes[index].origins or self.nodes[index].straight:
                continue
            joins = [c for c in self.graph.children[index] if c in summands and self.nodes[c].op in ops.SUMS]
            joins = [c for c in joins if self.graph.downstream([c]) & self.graph.ancestry_of(event.node) <= summands]
            if any(self.nodes[c].live for c in joins) and not self._learns(index):
                return True
        return False

    def _learns(self, index: int) -> bool:
        """Whether a gradient from this node reaches a trained tensor without passing a step."""
        steps = {o.node for o in self.tracer.origins if o.code.startswith("zero.") or self.nodes[o.node].live}
        seen: set[int] = set()
        stack = [index]
        while stack:
            current = stack.pop()
            if current in seen or not self.nodes[current].live or current in steps:
                continue
            if current in self.trained:
                return True
            seen.add(current)
            stack += self.nodes[current].parents
        return False

    def _wraps(self, members: list[int]) -> bool:
        """``x - floor(x)`` and interpolation weights: the step only moves the origin of a remainder."""
        for member in members:
            origin = self.tracer.origins[member]
            for child in self.graph.children[origin.node]:
                node = self.nodes[child]
                if node.op in ("sub", "rsub", "add", "add_", "sub_") and set(node.parents) & set(origin.sources):
                    return True
        return False

    def _exits(self) -> None:
        """Values that left for Python and are the only explanation of a missing gradient."""
        graph = self.graph
        lost = [e for e in graph.events if not e.live and not self.nodes[e.node].origins]  # type: ignore[index]
        lost += [e for e in self.tracer.events if e.node is None]
        constants = () if self.verdicts.exits else [i for e in graph.events for i in graph.summands(e)]
        rebuilt = [i for i in constants if self.nodes[i].constant]  # a term of the loss that came from nowhere
        for exit_ in self.tracer.exits:
            if exit_.linked or exit_.op == "__bool__":
                continue
            if rebuilt and exit_.node < min(rebuilt) and self.nodes[exit_.node].origins and exit_.direct:
                same = [
                    e for e in self.tracer.exits if e.site.line == exit_.site.line and e.site.code is exit_.site.code
                ]
                self._rebuilt(min(same, key=lambda e: min(e.upstream, default=len(self.tracer.origins))))
                rebuilt = []
            verdict = self.verdicts.exits.get(site_key(exit_.site, exit_.op))
            above = graph.upstream([exit_.source])
            leaves = graph.leaves(above) & self.trained
            silent = {i for i in leaves if not self.tracer.leaves[i].norm} - set(self.blame)
            if verdict is False or not leaves or not (lost or verdict):
                continue
            origin = self._first(exit_)
            code, op, site = (self._code_of_exit(exit_), exit_.op, exit_.site) if origin is None else origin
            gone = [self._name(i) for i in sorted(silent)][:20]
            evidence = {"parameters without gradient": gone, "confirmed": verdict is True}
            in_test = exit_.direct and in_branch_test(place(exit_.site.code, exit_.site.instruction, exit_.site.line))
            if in_test or exit_.op in ("__int__", "__index__"):
                code = code if origin is not None and origin[0] != "cut.number" else "control-flow.number"
            self._blame(silent, self._add(code, site, op, "error" if silent or verdict else "warning", evidence))

    def _rebuilt(self, exit_: Exit) -> None:
        """Blame the head of the chain that ends in a number, from which a constant term of the loss was made."""
        if not self.graph.leaves(self.graph.upstream([exit_.source])) & self.trained:
            return
        code, op, site = self._first(exit_) or (self._code_of_exit(exit_), exit_.op, exit_.site)
        where = place(exit_.site.code, exit_.site.instruction, exit_.site.line)
        self._add(code, site, op, "error", {"a constant term of the loss is made from": f"{where.file}:{where.line}"})

    def _first(self, exit_: Exit) -> tuple[str, str, Site] | None:
        """Return the stop at the head of the chain that ends in an exit."""
        if exit_.live or not exit_.upstream:
            return None
        origin = self.tracer.origins[min(exit_.upstream)]
        same_line = origin.site.line == exit_.site.line and origin.site.code is exit_.site.code
        if same_line and origin.code in ("cut.detach", "cut.data"):
            return None
        return origin.code, origin.op, origin.site

    @staticmethod
    def _code_of_exit(exit_: Exit) -> str:
        return "cut.numpy" if exit_.op in ("numpy", "__array__") else "cut.item"

    def _not_finite(self) -> None:
        bad = [e for e in self.graph.events if not e.finite]
        for event in bad:
            inside = self.graph.upstream([event.node])  # type: ignore[list-item]
            first = next((n for n in sorted(inside) if self.nodes[n].first_bad), None)
            if first is not None:
                node = self.nodes[first]
                evidence = {"what": node.forward, **self._values(node.values)}
                self._add("nan.forward", node.site, node.op, "error", evidence)
                return
        for entry in self.tracer.not_finite:
            node = self.nodes[entry.node]
            code = "nan.where" if entry.masked else "nan.backward"
            evidence = {"function": entry.function, "what": entry.what, **self._values(node.values)}
            self._add(code, node.site, node.op, "error", evidence)
            return

    @staticmethod
    def _values(values: tuple[float, float, float] | None) -> dict[str, float]:
        if values is None:
            return {}
        return {"input minimum": values[0], "input maximum": values[1], "input nearest to zero": values[2]}

    def _zeros(self) -> None:
        """Lines that receive a cotangent and pass on exactly zero."""
        for node in self.nodes:
            if node.op == "softmax" and node.index in self.graph.reached and node.cotangent:
                users = {self.nodes[c].op for c in self.graph.children[node.index] if c in self.graph.reached}
                faint = node.zero_out or (node.gain_count and node.gain_log / node.gain_count < -11.5)
                if users <= {"sum", "mean"} and faint and self.graph.leaves(self.graph.upstream([node.index])):
                    self._add("zero.softmax", node.site, node.op, "error", {"reason": "its sum is always one"})
        customs = {call.function.__name__ for call in self.tracer.custom_calls.values()}
        for leaf in sorted(self.dead - set(self.blame)):
            below = self.graph.downstream([leaf]) & self.graph.reached
            stuck = [self.nodes[i] for i in sorted(below) if self.nodes[i].zero_out and not self._at_rest(i)]
            stuck = stuck or [
                self.nodes[i] for i in sorted(below) if self.nodes[i].op in customs and self.nodes[i].cotangent
            ]
            if not stuck:
                continue
            node = stuck[-1]
            if node.kinks and node.kinks >= node.size:
                code = f"kink.{node.op.strip('_')}"
                words = {"count": node.kinks, "size": node.size}
                finding = self._add(code, node.site, node.op, "warning", dict(words), **words)
            else:
                name = "custom" if node.op == "untraced" or node.op in customs else node.op.strip("_")
                evidence = {"cotangent norm": node.cotangent, "visits": node.zero_out}
                finding = self._add(f"zero.{name}", node.site, node.op, "error", evidence)
            self._blame([leaf], finding)
            if finding is None:
                self.blame[leaf] = _SILENT

    def _at_rest(self, index: int) -> bool:
        """A comparison at its minimum (a teacher equal to its student) has gradient zero and nothing wrong with it."""
        node = self.nodes[index]
        product = node.op in ("mul", "__mul__", "mul_") and all(self.nodes[p].live for p in node.parents)
        return product or node.leaf is not None or node.op in ops.LOSSES or node.op.strip("_") in ops.RESIDUAL

    def _kinks(self) -> None:
        for node in self.nodes:
            if not node.kinks or not node.cotangent or node.index not in self.graph.reached:
                continue
            if any(self.nodes[p].leaf is not None and self.nodes[p].leaf.parameter for p in node.parents):  # type: ignore[union-attr]
                continue
            whole = node.kinks >= node.size
            if not whole and node.op.strip("_") in ("relu", "leaky_relu", "clamp", "clamp_min", "relu6", "hardtanh"):
                continue
            if not self.graph.leaves(self.graph.upstream([node.index], live=True)) & self.trained:
                continue
            words = {"count": node.kinks, "size": node.size}
            severity = "warning" if whole else "info"
            self._add(f"kink.{node.op.strip('_')}", node.site, node.op, severity, dict(words), **words)

    def _branches(self) -> None:
        """Python branches on values that depend on what is trained."""
        for exit_ in self.tracer.exits:
            if not exit_.direct or exit_.op not in ("__bool__", "item", "__int__", "__index__", "__float__", "tolist"):
                continue
            where = place(exit_.site.code, exit_.site.instruction, exit_.site.line)
            if exit_.op != "__bool__" and not in_branch_test(where):
                continue
            leaves = self.graph.leaves(self.graph.upstream([exit_.source])) & self.trained
            verdict = self.verdicts.branches.get(site_key(exit_.site, exit_.op))
            if not leaves or verdict is False or self._guards(exit_.source):
                continue
            silent = {i for i in leaves if not self.tracer.leaves[i].norm} - set(self.blame)
            if any(b is not None and b.severity == "error" for b in (self.blame.get(i) for i in leaves)):
                continue  # a later link of a chain that is already reported
            if verdict:
                severity = "error" if silent else "warning"
            else:
                severity = "info"
            finding = self._add("control-flow.branch", exit_.site, exit_.op, severity, {"confirmed": bool(verdict)})
            if verdict and finding is not None:
                self._blame(silent, finding)

    def _guards(self, source: int) -> bool:
        """``if not isfinite(loss)``: a guard against broken numbers, not a choice."""
        stack = [source]
        while stack:
            node = self.nodes[stack.pop()]
            if node.op in ("isfinite", "isnan", "isinf", "allclose", "equal"):
                return True
            stack += [p for p in node.parents if not self.nodes[p].live]
        return False

    def _unused(self) -> None:
        for index in sorted(self.trained - self.graph.reached):
            leaf = self.tracer.leaves[index]
            if leaf.norm or index in self.blame or not self.graph.events:
                continue
            users = [self.nodes[c] for c in self.graph.children[index] if self.nodes[c].site is not None]
            users = [
                u for u in users if u.op not in ("clone", "detach", "get data", "copy_", "to")
            ]  # copies of a module
            if users:
                evidence = {"shape": list(leaf.shape)}
                self._blame(
                    [index],
                    self._add("unused.value", users[0].site, users[0].op, "info", evidence, name=self._name(index)),
                )

    def _name(self, index: int) -> str:
        leaf = self.tracer.leaves[index]
        known = self.names.get(id(leaf.reference()))
        return known or f"{'parameter' if leaf.parameter else 'tensor'} {leaf.shape}"

    def _parameter(self, index: int, leaf: Leaf) -> ParameterRecord:
        finding = self.blame.get(index)
        blame = None
        if finding is not None and finding is not _SILENT:
            blame = {"file": finding.file, "line": finding.line, "code": finding.code}
        return ParameterRecord(self._name(index), leaf.shape, leaf.norm, index in self.graph.reached, blame)

    def _lines(self) -> tuple[tuple[LineRecord, ...], tuple[tuple[int, int], ...]]:
        rows: dict[tuple[str, int], list[int]] = {}
        for node in self.nodes:
            if node.site is not None:
                rows.setdefault((node.site.code.co_filename, node.site.line), []).append(node.index)
        marks: dict[tuple[str, int], list[str]] = defaultdict(list)
        for finding in self.found:
            if finding.kind not in marks[finding.file, finding.line]:
                marks[finding.file, finding.line].append(finding.kind)
        order = {key: i for i, key in enumerate(rows)}
        records = []
        edges: set[tuple[int, int]] = set()
        for (file, line), members in rows.items():
            nodes = [self.nodes[i] for i in members]
            norms = [n.cotangent for n in nodes if n.cotangent is not None]
            count = sum(n.gain_count > 0 for n in nodes)
            gain = _exp(sum(n.gain_log for n in nodes) / count) if count else None
            operations = tuple(dict.fromkeys(n.op for n in nodes))
            source = place(nodes[0].site.code, nodes[0].site.instruction, line).source  # type: ignore[union-attr]
            norm = max(norms) if norms else None
            records.append(LineRecord(file, line, source, len(nodes), operations, norm, gain, tuple(marks[file, line])))
            for node in nodes:
                for parent in node.parents:
                    site = self.nodes[parent].site
                    if site is not None and (site.code.co_filename, site.line) != (file, line):
                        edges.add((order[site.code.co_filename, site.line], order[file, line]))
        return tuple(records), tuple(sorted(edges))

    def _blind_spots(self) -> list[str]:
        notes = []
        left = {e.op for e in self.tracer.exits if e.op in ("numpy", "__array__", "tolist")}
        if left and not self.verdicts.exits:
            notes.append("values left for NumPy or Python lists; what happens to them there is not seen")
        if any(n.op == "untraced" for n in self.nodes):
            names = sorted(
                {os.path.basename(n.site.code.co_filename) for n in self.nodes if n.op == "untraced" and n.site}
            )
            notes.append(
                f"some tensors were made by code that is not seen (C++ or compiled), used in {', '.join(names)}"
            )
        return notes


def _exp(value: float) -> float:
    import math

    return math.exp(min(max(value, -700.0), 700.0))


_SILENT = Finding("cut.silenced", "cut", "info", "", 0, 0, 0, "", "", "")
