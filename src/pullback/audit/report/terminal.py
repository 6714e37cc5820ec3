"""The report as text: source excerpts with a gutter of marks and gradient norms, then the findings and their remedies.

Colours are escape sequences for a terminal; nothing but Python is needed.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterable, Iterator
from typing import TextIO

from pullback.audit.report.findings import Audited, Finding, LineRecord
from pullback.audit.report.numbers import largest_finite, level, number, says_something
from pullback.audit.report.source import MARKS, source_lines
from pullback.core.units import format_bytes

__all__ = ["print_report", "to_text"]

_CODES = {"bold": "1", "dim": "2", "error": "1;31", "warning": "33", "info": "36", "good": "32", "gone": "31"}

Span = tuple[str, str]
"""Text and its style: "" or words of ``_CODES``, "underline" among them."""


def print_report(report: Audited, stream: TextIO | None = None) -> None:
    """Print a report, in colours where the stream is a terminal (and the variable ``NO_COLOR`` is not set).

    Args:
        report: of :func:`pullback.audit`.
        stream: where to; standard output by default.
    """
    stream = sys.stdout if stream is None else stream
    colour = stream.isatty() and not os.environ.get("NO_COLOR")
    print(to_text(report, colour=colour), file=stream)


def to_text(report: Audited, *, colour: bool = False, context: int = 2, width: int = 12) -> str:
    """Return the report as lines of text.

    Args:
        report: of :func:`pullback.audit`.
        colour: with escape sequences for a terminal.
        context: source lines shown around a finding.
        width: characters of the gradient bars.

    Example:
        >>> print(to_text(Audited(target="f", steps=1)))
        audit of f
        <BLANKLINE>
        no findings  1 backward pass audited
    """
    return "\n".join("".join(_styled(span, colour) for span in line) for line in _lines(report, context, width))


def _styled(span: Span, colour: bool) -> str:
    text, style = span
    if not colour or not style or not text:
        return text
    codes = ";".join("4" if word == "underline" else _CODES[word] for word in style.split())
    return f"\x1b[{codes}m{text}\x1b[0m"


def _lines(report: Audited, context: int, width: int) -> Iterator[list[Span]]:
    yield [(f"audit of {report.target}", "bold")]
    by_file: dict[str, list[LineRecord]] = {}
    for record in report.lines:
        by_file.setdefault(record.file, []).append(record)
    largest = largest_finite(record.gradient_norm for record in report.lines)
    for file in dict.fromkeys([*by_file, *(finding.file for finding in report.findings)]):
        found = [f for f in report.findings if f.file == file and f.line > 0]
        if found:
            yield from _excerpt(file, by_file.get(file, []), found, largest, context, width)
    for finding in report.findings:
        yield from _finding(finding)
    yield from _parameters(report)
    yield from _memory(report)
    yield from _layers(report)
    yield from _noise(report)
    for note in report.notes:
        yield from _block(f"note: {note}", "", "dim")
    yield []
    yield _summary(report)
    if report.error is not None:
        yield []
        yield from _block(report.error.rstrip(), "", "gone")


def _block(text: str, indent: str, style: str) -> Iterator[list[Span]]:
    for line in text.splitlines():
        yield [(indent + line, style)]


def _excerpt(
    file: str, records: list[LineRecord], found: list[Finding], largest: float, context: int, width: int
) -> Iterator[list[Span]]:
    lines = source_lines(file)
    measured = {r.line: r for r in records}
    around = {n for f in found for n in range(f.line - context, f.line + context + 1)}
    wanted = sorted({n for n in around if 1 <= n <= len(lines)} | {f.line for f in found})
    yield []
    yield [(file, "bold")]
    last = wanted[0]
    for n in wanted:
        if n > last + 1:
            yield [("      ...", "dim")]
        last = n
        here = [f for f in found if f.line == n]
        worst = here[0].severity if here else ""
        record = measured.get(n)
        marks = "".join(dict.fromkeys(MARKS[f.kind] for f in here)) or " "
        shown = lines[n - 1] if n <= len(lines) else here[0].source
        yield [
            (f"{marks:>3} ", worst),
            (f"{n:>4} ", "dim"),
            (_bar(record, largest, width), worst or "good"),
            (" ", ""),
            *_marked(shown, here, "" if here or record else "dim"),
        ]


def _marked(text: str, found: Iterable[Finding], style: str) -> list[Span]:
    """Cut a line so that the very call of its first finding is underlined."""
    for finding in found:
        start, end = finding.column - 1, finding.end_column - 1
        if 0 <= start < end <= len(text):
            return [(text[:start], style), (text[start:end], f"underline {finding.severity}"), (text[end:], style)]
    return [(text, style)]


def _bar(record: LineRecord | None, largest: float, width: int) -> str:
    """A bar for the gradient's norm, or what stands in its place where that is not finite or none."""
    if record is None or record.gradient_norm is None:
        return " " * width
    norm = record.gradient_norm
    if not math.isfinite(norm):
        return ("nan" if math.isnan(norm) else "inf").ljust(width)
    if norm == 0:
        return "0".ljust(width)
    return ("=" * max(1, round(width * level(norm, largest)))).ljust(width)


def _finding(finding: Finding) -> Iterator[list[Span]]:
    yield []
    yield [(f"{finding.severity} {finding.code}", finding.severity), (f"  {finding.file}:{finding.line}", "bold")]
    yield from _block(finding.message, "  ", "")
    evidence = [f"{name} = {number(value)}" for name, value in finding.evidence.items() if says_something(value)]
    if evidence:
        yield [("  " + ", ".join(evidence), "dim")]
    for remedy in finding.remedies:
        yield from _block(f"fits here: {remedy.block}. {remedy.what}", "  ", "")
        for line in remedy.diff.splitlines():
            yield [(f"      {line}", {"+": "good", "-": "gone"}.get(line[:1], "" if line[:1] == " " else "good"))]
        if remedy.effect:
            yield from _block(f"tried: {remedy.effect}", "      ", "dim")


def _parameters(report: Audited) -> Iterator[list[Span]]:
    """Every trained tensor without a gradient, with the line that is to blame where one is known."""
    dead = [p for p in report.parameters if p.blame or p.gradient_norm is None or p.gradient_norm == 0]
    if not dead or not report.steps:
        return
    yield []
    yield [("parameters without a gradient", "bold")]
    for parameter in dead:
        where = "never used" if not parameter.reached else "used, but no gradient arrives"
        if parameter.gradient_norm == 0:
            where = "its gradient is zero"
        if parameter.blame:
            where = f"line {parameter.blame.get('line')} of {parameter.blame.get('file')}"
        shape = "" if str(parameter.shape) in parameter.name else f" {list(parameter.shape)}"
        yield [(f"  {parameter.name}{shape}: {where}", "")]


def _memory(report: Audited, most: int = 8) -> Iterator[list[Span]]:
    """The lines that keep most for the backward pass."""
    if not report.memory:
        return
    total = sum(record.bytes for record in report.memory)
    yield []
    yield [("kept for the backward pass", "bold"), (f"  {format_bytes(total)}", "")]
    for record in report.memory[:most]:
        place = f"{os.path.basename(record.file)}:{record.line}"
        yield [(f"  {format_bytes(record.bytes):>10}  ", ""), (f"{place}  ", "dim"), (record.source.strip(), "")]
    if len(report.memory) > most:
        rest = sum(record.bytes for record in report.memory[most:])
        yield [(f"  {format_bytes(rest):>10}  in {len(report.memory) - most} more lines", "dim")]


def _layers(report: Audited, most: int = 24) -> Iterator[list[Span]]:
    """What passes through the layers, in the order of their calls."""
    if not report.layers:
        return
    yield []
    yield [("layers", "bold"), ("  size, cosine of two samples, idle units, size of the gradient", "dim")]
    for layer in report.layers[:most]:
        cells = [
            number(layer.size),
            *(_share(value) for value in (layer.correlation, layer.idle)),
            number(layer.cotangent),
        ]
        yield [("".join(f"{cell:>10}" for cell in cells), ""), (f"  {layer.name}  ", ""), (layer.kind, "dim")]
    if len(report.layers) > most:
        yield [(f"  and {len(report.layers) - most} more calls", "dim")]


def _share(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2f}"


def _noise(report: Audited, most: int = 12) -> Iterator[list[Span]]:
    """The trained tensors whose gradients are noisiest."""
    if not report.noise:
        return
    yield []
    yield [("signal over noise of the gradients", "bold"), ("  with other random numbers", "dim")]
    noisiest = sorted(report.noise, key=lambda record: record.ratio)
    for record in noisiest[:most]:
        yield [(f"{number(record.ratio):>10}  ", ""), (record.name, "")]
    if len(noisiest) > most:
        yield [(f"  and {len(noisiest) - most} with less noise", "dim")]


def _summary(report: Audited) -> list[Span]:
    spans: list[Span] = [] if report.findings else [("no findings", "good")]
    for severity, count in report.counts.items():
        if count:
            spans.append((f"{count} {severity}{'s' if count > 1 and severity != 'info' else ''}", severity))
    parts = [span for one in spans for span in (one, ("  ", ""))]
    passes = f"{report.steps} backward pass{'es' if report.steps != 1 else ''} audited"
    return [*parts, (passes + (f", {report.silenced} silenced" if report.silenced else ""), "dim")]
