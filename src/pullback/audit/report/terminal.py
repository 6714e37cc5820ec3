"""The report for a terminal: source excerpts with a gutter of marks and gradient norms, then the findings."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from pullback.audit.report.findings import Finding, LineRecord, Report

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

__all__ = ["MARKS", "print_report"]

MARKS = {
    "cut": "x",
    "zero": "0",
    "nan": "!",
    "vanishing": "v",
    "exploding": "^",
    "biased": "~",
    "chaotic": "*",
    "kink": "k",
    "control-flow": "?",
    "unused": "-",
}
"""The gutter's sign of each kind of finding."""

_COLOURS = {"error": "bold red", "warning": "yellow", "info": "cyan"}


def print_report(report: Report, console: Console | None = None, *, context: int = 2, width: int = 12) -> None:
    """Print a report with rich.

    Args:
        report: of :func:`pullback.audit`.
        console: where to; standard output by default.
        context: source lines shown around a finding.
        width: characters of the gradient bars.
    """
    from rich.console import Console as RichConsole

    console = console or RichConsole()
    for renderable in _body(report, context, width):
        console.print(renderable)


def _body(report: Report, context: int, width: int) -> Iterable[RenderableType]:
    from rich.text import Text

    yield Text(f"audit of {report.target}", style="bold reverse")
    by_file: dict[str, list[LineRecord]] = {}
    for record in report.lines:
        by_file.setdefault(record.file, []).append(record)
    for finding in report.findings:  # a line without traced operations still shows its finding
        by_file.setdefault(finding.file, [])
    for file, records in by_file.items():
        found = [f for f in report.findings if f.file == file and f.line > 0]
        if found:
            yield from _excerpt(file, records, found, context, width)
    for finding in report.findings:
        yield from _finding(finding)
    blamed = [p for p in report.parameters if p.blame]
    if blamed:
        yield Text("\nparameters without a gradient", style="bold")
        for parameter in blamed:
            blame = parameter.blame or {}
            yield Text(f"  {parameter.name} {list(parameter.shape)}: line {blame.get('line')} of {blame.get('file')}")
    for note in report.notes:
        yield Text(f"note: {note}", style="dim")
    yield _summary(report)
    if report.error:
        yield Text(report.error, style="red")


def _excerpt(
    file: str, records: list[LineRecord], found: list[Finding], context: int, width: int
) -> Iterable[RenderableType]:
    from rich.text import Text

    lines = source_lines(file)
    measured = {r.line: r for r in records}
    around = {n for f in found for n in range(f.line - context, f.line + context + 1)}
    wanted = sorted({n for n in around if 1 <= n <= len(lines)} | {f.line for f in found})
    yield Text(f"\n{file}", style="bold")
    norms = [r.gradient_norm for r in records if r.gradient_norm]
    largest = max(norms, default=0.0)
    last = wanted[0] if wanted else 0
    for number in wanted:
        if number > last + 1:
            yield Text("      ...", style="dim")
        last = number
        here = [f for f in found if f.line == number]
        marks = "".join(dict.fromkeys(MARKS[f.kind] for f in here)) or " "
        worst = here[0].severity if here else ""
        record = measured.get(number)
        text = Text()
        text.append(f"{marks:>3} ", style=_COLOURS.get(worst, ""))
        text.append(f"{number:>4} ", style="dim")
        text.append(_bar(record, largest, width), style="green" if not here else _COLOURS[worst])
        text.append(" ")
        shown = lines[number - 1] if number <= len(lines) else (here[0].source if here else "")
        start = len(text)
        text.append(shown, style="" if here or record else "dim")
        for f in here:
            if f.column and f.end_column > f.column:
                text.stylize(f"underline {_COLOURS[f.severity]}", start + f.column - 1, start + f.end_column - 1)
        yield text


def _bar(record: LineRecord | None, largest: float, width: int) -> str:
    """A bar on a logarithmic scale over eight decades below the largest norm."""
    if record is None or record.gradient_norm is None:
        return " " * width
    norm = record.gradient_norm
    if not math.isfinite(norm):
        return "nan".ljust(width)
    if norm == 0 or largest == 0:
        return "0".ljust(width)
    share = 1 + math.log10(norm / largest) / 8
    return ("=" * max(1, round(width * min(max(share, 0.0), 1.0)))).ljust(width)


def _finding(finding: Finding) -> Iterable[RenderableType]:
    from rich.text import Text

    head = Text("\n")
    head.append(f"{finding.severity} {finding.code}", style=_COLOURS[finding.severity])
    head.append(f"  {finding.file}:{finding.line}", style="bold")
    yield head
    yield Text(f"  {finding.message}")
    evidence = {name: value for name, value in finding.evidence.items() if value not in ([], ())}
    if evidence:
        yield Text("  " + ", ".join(f"{k} = {number(v)}" for k, v in evidence.items()), style="dim")
    for remedy in finding.remedies:
        yield Text(f"  fits here: {remedy['block']}. {remedy['what']}")
        yield Text("\n".join(f"      {line}" for line in remedy["code"].splitlines()), style="green")


def _summary(report: Report) -> Text:
    from rich.text import Text

    counts = {s: sum(f.severity == s for f in report.findings) for s in ("error", "warning", "info")}
    text = Text("\n")
    if not report.findings:
        text.append("no findings", style="bold green")
    for severity, count in counts.items():
        if count:
            text.append(
                f"{count} {severity}{'s' if count > 1 and severity != 'info' else ''}  ", style=_COLOURS[severity]
            )
    text.append(f"  {report.steps} backward pass{'es' if report.steps != 1 else ''} audited", style="dim")
    if report.silenced:
        text.append(f", {report.silenced} silenced", style="dim")
    return text


def source_lines(file: str) -> list[str]:
    """The file's lines, none if it cannot be read (an interactive cell, a deleted file)."""
    try:
        return Path(file).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def number(value: object) -> str:
    """A value of the evidence as text: four significant digits, lists in brackets."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(number(v) for v in value) + "]"
    return str(value)
