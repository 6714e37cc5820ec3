"""The findings of one trace as they are made, and which of them each trained tensor is charged to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from pullback.audit.judge.verdicts import Verdicts
from pullback.audit.report.findings import SEVERITIES, Finding
from pullback.audit.report.messages import explain
from pullback.audit.trace.graph import TraceGraph
from pullback.audit.trace.optimizers import Optimizers
from pullback.audit.trace.sites import Place, Site, place, silenced
from pullback.audit.trace.tracer import Tracer

__all__ = ["SILENT", "Ledger"]

SILENT = Finding("cut.silenced", "cut", "info", "", 0, 0, 0, "", "", "")
"""Charged where the user silenced the line or meant the stop."""


class Ledger:
    """A trace, its graph, what the probes say, and what was found so far."""

    def __init__(
        self,
        tracer: Tracer,
        wrt: set[int] | None,
        names: Mapping[int, str],
        ignore: tuple[str, ...],
        verdicts: Verdicts,
        optimizers: Optimizers | None = None,
    ) -> None:
        self.tracer = tracer
        self.nodes = tracer.nodes
        self.graph = TraceGraph(tracer)
        self.ignore = ignore
        self.names = names
        self.verdicts = verdicts
        self.optimizers = optimizers
        self.certain = wrt is not None
        self.found: list[Finding] = []
        self.silenced = 0
        self.blame: dict[int, Finding] = {}
        self.blame_of_tensors: dict[int, Finding] = {}
        """By id, of tensors that the program does not use."""
        self._leaf_of = {id(t): i for i, leaf in tracer.leaves.items() if (t := leaf.reference()) is not None}
        self.trained = {i for i, leaf in tracer.leaves.items() if wrt is None or id(leaf.reference()) in wrt}
        by_hand = set() if optimizers is None else optimizers.by_hand()
        dead = {i for i in self.trained if i in self.graph.reached and not tracer.leaves[i].norm}
        self.dead = {i for i in dead if id(tracer.leaves[i].reference()) not in by_hand}

    def add(
        self, code: str, site: Site | None, op: str, severity: str, evidence: Mapping[str, Any], **words: Any
    ) -> Finding | None:
        """Make a finding, or return the one that is there already; ``None`` if the user silenced the place."""
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

    def charge(self, leaves: Iterable[int], finding: Finding | None = None) -> None:
        """Charge trained tensors without gradient to a finding (default: the last), unless they are charged already.

        What was for information gives way to an error.
        """
        finding = finding or (self.found[-1] if self.found else None)
        for leaf in leaves:
            old = self.blame.get(leaf)
            if finding is not None and (old is None or (self.excused(leaf) and finding.severity == "error")):
                self.blame[leaf] = finding

    def excused(self, leaf: int) -> bool:
        """Whether a tensor is charged to a stop that may be meant, for information."""
        old = self.blame.get(leaf)
        return old is not None and old is not SILENT and old.severity == "info"

    def leaf_of(self, tensor: Tensor) -> int | None:
        """Return the node of a trained tensor, ``None`` if the program never used it."""
        return self._leaf_of.get(id(tensor))

    def blame_tensor(self, tensor: Tensor, finding: Finding) -> None:
        """Charge a tensor that the program may not use at all."""
        leaf = self.leaf_of(tensor)
        self.blame_of_tensors[id(tensor)] = finding
        if leaf is not None:
            self.charge([leaf], finding)

    def name_of(self, index: int) -> str:
        """Return the name of a trained tensor, or a description of it."""
        leaf = self.tracer.leaves[index]
        tensor = leaf.reference()
        if tensor is not None:
            return self.name_of_tensor(tensor)
        return f"{'parameter' if leaf.parameter else 'tensor'} {leaf.shape}"

    def name_of_tensor(self, tensor: Tensor) -> str:
        """Return the name of a tensor, or a description of it."""
        known = self.names.get(id(tensor))
        if known is None:
            reference, name = self.tracer.names.get(id(tensor), (None, ""))
            known = name if reference is not None and reference() is tensor else None
        return known or f"{'parameter' if isinstance(tensor, nn.Parameter) else 'tensor'} {tuple(tensor.shape)}"
