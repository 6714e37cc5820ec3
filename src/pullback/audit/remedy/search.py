"""Find the rewriting that cures a finding: what the templates propose is run until one does."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from types import CodeType
from typing import Any, Protocol

from pullback.audit.remedy.match import places
from pullback.audit.remedy.patch import changes_between, diff_of
from pullback.audit.remedy.syntax import Source
from pullback.audit.remedy.table import answers
from pullback.audit.report.findings import Audited, Finding
from pullback.audit.report.remedy import Remedy

__all__ = ["Candidate", "Outcome", "Trial", "compiled", "remedy_for", "with_remedies"]

MOST_TRIALS = 24
"""Runs for one finding."""
DEPTH = 3
"""Stops in a row that one remedy may take away: an index behind a comparison behind a detach."""
ALIVE = 1e-9
"""Share of the largest gradient from which on a trained tensor counts as reached."""


@dataclass(frozen=True)
class Candidate:
    """A changed file.

    Attributes:
        file: which.
        old: its text.
        new: its text with the changes, without the imports that they need.
        imports: those: the import line by the name that it binds.
        unwrapped: names of functions whose decorator is taken away.
        wrapped: names of functions that are decorated with ``relaxed``.
        blocks: what the new lines use.
        what: one sentence on what changes.
        change: largest relative change of the loss that is allowed.
    """

    file: str
    old: str
    new: str
    imports: dict[str, str] = field(default_factory=dict)
    unwrapped: tuple[str, ...] = ()
    wrapped: tuple[str, ...] = ()
    blocks: tuple[str, ...] = ()
    what: str = ""
    change: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """What a run gave.

    Attributes:
        report: its findings and gradients; the changed file goes by the name ``file``.
        loss: the first value that was differentiated, ``None`` if there was none.
        file: name of the changed file in the report.
    """

    report: Audited
    loss: float | None
    file: str = ""


class Trial(Protocol):
    """Runs a program, as it is or with a file changed."""

    def run(self, candidate: Candidate | None) -> Outcome | None:
        """Return what the run gave, ``None`` if it raised."""

    def text(self, file: str) -> str | None:
        """Return the text of a file of the user's, ``None`` if it is none or cannot be read."""


def with_remedies(report: Any, trial: Trial, seconds: float) -> Any:
    """Return a report whose errors and warnings carry the remedies that were found in the time given.

    Args:
        report: of the program as it is.
        trial: runs it.
        seconds: for all trials together; one that has begun is finished.
    """
    wanted = [f for f in report.findings if f.severity != "info" and f.line and not f.remedies]
    if not wanted:
        return report
    until = time.monotonic() + seconds
    before = trial.run(None)
    if before is None:
        return report
    found = {}
    for finding in wanted:
        if time.monotonic() > until:
            break
        remedy = remedy_for(finding, before, trial, until, report)
        if remedy is not None:
            found[id(finding)] = remedy
    return replace(
        report,
        findings=tuple(replace(f, remedies=(found[id(f)],)) if id(f) in found else f for f in report.findings),
    )


def remedy_for(finding: Finding, before: Outcome, trial: Trial, until: float, report: Audited) -> Remedy | None:
    """Return the first rewriting that cures a finding, ``None`` if none does."""
    text = trial.text(finding.file)
    if text is None:
        return None
    try:
        _parsed(text)
    except SyntaxError:
        return None
    search = _Search(finding, before, trial, until, _blamed(report, finding))
    start = Candidate(finding.file, text, text)
    return search.deepen(start, finding, before, 0)


@lru_cache(maxsize=4)
def compiled(text: str, file: str) -> CodeType:
    """Compile the text of a file, once for all that look at it.

    Raises:
        SyntaxError: it cannot be compiled.
    """
    return compile(text, file, "exec", dont_inherit=True)


@lru_cache(maxsize=4)
def _parsed(text: str) -> Source:
    return Source(text)


def _blamed(report: Audited, finding: Finding) -> set[str]:
    """Names of the trained tensors that are without a gradient because of a finding."""
    names = {p.name for p in report.parameters if p.blame and _same_place(p.blame, finding)}
    named = finding.evidence.get("parameters without gradient")
    return names | set(named if isinstance(named, list | tuple) else ())


def _same_place(blame: Any, finding: Finding) -> bool:
    return (blame.get("file"), blame.get("line"), blame.get("code")) == (finding.file, finding.line, finding.code)


class _Search:
    def __init__(self, finding: Finding, before: Outcome, trial: Trial, until: float, blamed: set[str]) -> None:
        self.finding = finding
        self.before = before
        self.trial = trial
        self.until = until
        self.blamed = blamed
        self.runs = 0
        self.seen: set[str] = set()

    def deepen(self, at: Candidate, finding: Finding, outcome: Outcome, depth: int) -> Remedy | None:
        """Try what fits ``finding`` in the text of ``at``; where a cure only uncovers the next stop, go on there."""
        halves: list[tuple[Candidate, Outcome]] = []
        for candidate in self._proposals(at, finding):
            if self.runs >= MOST_TRIALS or time.monotonic() > self.until:
                return None
            self.runs += 1
            after = self.trial.run(candidate)
            if after is None or not self._gone(finding, outcome, after, candidate) or not self._sound(after, candidate):
                continue
            if self._reached(after):
                return self._remedy(candidate, after)
            halves.append((candidate, after))
        if depth + 1 < DEPTH:
            for candidate, after in halves[:2]:
                for following in self._next(candidate, after):
                    remedy = self.deepen(candidate, following, after, depth + 1)
                    if remedy is not None:
                        return remedy
        return None

    def _proposals(self, at: Candidate, finding: Finding) -> Iterator[Candidate]:
        source = _parsed(at.new)
        found = list(places(source, finding))
        for template in answers(finding.code, finding.operation):
            for place in found:
                for draft in template.rewrite(place):
                    try:
                        new = draft.body()
                        if draft.empty or new == at.new or new in self.seen:
                            continue
                        compiled(new, at.file)
                    except SyntaxError:
                        continue
                    self.seen.add(new)
                    yield Candidate(
                        at.file,
                        at.old,
                        new,
                        {**at.imports, **draft.imports},
                        (*at.unwrapped, *draft.unwrapped),
                        (*at.wrapped, *draft.wrapped),
                        (*at.blocks, *(draft.blocks or [template.block])),
                        " ".join(dict.fromkeys([at.what, template.what])).strip(),
                        max(at.change, template.change),
                    )

    def _gone(self, finding: Finding, before: Outcome, after: Outcome, candidate: Candidate) -> bool:
        """Whether the finding is there no more, or only as information where it was more."""
        lines = _mapped(finding.line, before, after, candidate)
        for found in after.report.findings:
            same = (found.code, found.file, found.operation) == (finding.code, after.file, finding.operation)
            if same and found.line in lines and found.severity != "info":
                return False
        return True

    def _sound(self, after: Outcome, candidate: Candidate) -> bool:
        """Whether the run is finite where it was, keeps its loss as far as promised, and brings no new NaN."""
        old = {f.code for f in self.before.report.findings}
        if any(
            f.kind in ("nan", "exploding") and f.severity == "error" and f.code not in old
            for f in after.report.findings
        ):
            return False
        if any(p.gradient_norm is not None and not math.isfinite(p.gradient_norm) for p in after.report.parameters):
            return False
        a, b = self.before.loss, after.loss
        if b is None or not math.isfinite(b):
            return False
        if a is None or not math.isfinite(a):
            return True
        return abs(b - a) <= candidate.change * max(abs(a), abs(b), 1e-3) or candidate.change == math.inf

    def _reached(self, after: Outcome) -> bool:
        """Whether the gradient is where it belongs: at the tensors that had none, else another (finite) one."""
        rows = self._gradients(after)
        largest = max((new for _, _, new in rows), default=0.0)
        alive = [name for name, old, new in rows if not _usable(old) and new > ALIVE * largest]
        if self.blamed:
            dead = {name for name, _, new in rows if not new > ALIVE * largest}
            return bool(self.blamed - dead) if self.blamed & {r[0] for r in rows} else largest > 0
        if alive:
            return True
        dead_before = any(not _usable(old) for _, old, _ in rows)
        if self.finding.kind in ("nan", "kink") and largest > 0:  # a NaN that a later mask hid
            return True
        return not dead_before and any(abs(new - old) > 1e-6 * max(new, old) for _, old, new in rows)

    def _gradients(self, after: Outcome) -> list[tuple[str, float, float]]:
        """Names, old norms (NaN where not finite, 0 where none) and new norms."""
        known = {p.name: p.gradient_norm for p in self.before.report.parameters}
        return [(p.name, known.get(p.name) or 0.0, p.gradient_norm or 0.0) for p in after.report.parameters]

    def _next(self, candidate: Candidate, after: Outcome) -> list[Finding]:
        """Findings of the changed file that keep the gradient away now, as they stand in its text."""
        return [f for f in after.report.findings if f.severity != "info" and f.file == after.file and f.line][:3]

    def _remedy(self, candidate: Candidate, after: Outcome) -> Remedy:
        changes = changes_between(candidate.old, candidate.new, candidate.imports.values())
        every = self._gradients(after)
        rows = [r for r in every if not _usable(r[1]) and _usable(r[2])] or [r for r in every if _usable(r[2])]
        rows = sorted(rows, key=lambda r: -r[2])
        numbers = {
            "loss before": self.before.loss,
            "loss after": after.loss,
            "gradients": [{"name": n, "before": old, "after": new} for n, old, new in rows],
        }
        return Remedy(
            block=", ".join(dict.fromkeys(candidate.blocks)),
            what=candidate.what,
            file=candidate.file,
            diff=diff_of(candidate.old, changes),
            effect=_effect(rows, self.before.loss, after.loss),
            changes=changes,
            numbers=numbers,
        )


def _usable(norm: float) -> bool:
    return norm > 0 and math.isfinite(norm)


def _effect(rows: list[tuple[str, float, float]], before: float | None, after: float | None) -> str:
    """The numbers as one sentence.

    Example:
        >>> _effect([("enc.weight", 0.0, 0.3131)], 1.0, 1.002)
        'gradient norm of `enc.weight` 0 -> 0.313; loss changes by 0.002'
    """
    shown = [f"`{name}` {old:.3g} -> {new:.3g}" for name, old, new in rows[:3]]
    more = f" and {len(rows) - 3} more" if len(rows) > 3 else ""
    head = f"gradient norm of {', '.join(shown)}{more}" if shown else "every gradient is finite"
    if before is None or after is None:
        return head
    if not math.isfinite(before):
        return f"{head}; loss {before} -> {after:.3g}"
    change = after - before
    same = abs(change) <= 1e-6 * max(abs(before), 1e-6)
    return f"{head}; loss {'stays the same' if same else f'changes by {change:.2g}'}"


def _mapped(line: int, before: Outcome, after: Outcome, candidate: Candidate) -> range:
    """The lines of the changed text that stand for a line of the text it was made from."""
    changes = changes_between(candidate.old, candidate.new)
    shift = 0
    for change in changes:
        if change.line <= line < change.line + change.count:
            first = change.line + shift
            return range(first, first + max(change.text.count("\n"), 1))
        if change.line <= line:
            shift += change.text.count("\n") - change.count
    return range(line + shift, line + shift + 1)
