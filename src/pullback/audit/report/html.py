"""The report as one self-contained HTML page: findings, annotated source, and the way from the inputs to the loss."""

from __future__ import annotations

import math
from collections.abc import Iterable
from importlib import resources
from typing import TYPE_CHECKING, Any

from pullback.audit.report.findings import Audited, Finding, LineRecord
from pullback.audit.report.numbers import largest_finite, level, number, says_something
from pullback.audit.report.source import MARKS, source_lines
from pullback.core.units import format_bytes

if TYPE_CHECKING:
    from markupsafe import Markup

__all__ = ["to_html"]

_MOST_NODES = 80
"""Lines in the diagram; a longer program shows those that carry a gradient or a finding first."""

_MOST_CHARACTERS = 33
"""That fit into a box of the diagram."""


def to_html(report: Audited) -> str:
    """Return the page as text; it needs no other file and no network.

    Example:
        >>> "no findings" in to_html(Audited(target="f"))
        True
    """
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["number"] = number
    environment.tests["telling"] = says_something
    environment.filters["code"] = _with_code
    environment.filters["bytes"] = format_bytes
    environment.filters["change"] = {"+": "added", "-": "gone"}.get
    template = resources.files("pullback.audit.report").joinpath("report.html.jinja").read_text(encoding="utf-8")
    return environment.from_string(template).render(
        report=report,
        files=list(_files(report)),
        diagram=_diagram(report),
        marks=MARKS,
        landscape=_landscape(report),
        kept=sum(record.bytes for record in report.memory),
    )


def _files(report: Audited) -> Iterable[dict[str, Any]]:
    """Every file with traced lines or findings: its source lines with heat and marks, long untouched runs left out."""
    names = list(dict.fromkeys([r.file for r in report.lines] + [f.file for f in report.findings if f.line]))
    largest = _largest_norm(report)
    for index, name in enumerate(names):
        records = {r.line: r for r in report.lines if r.file == name}
        found: dict[int, list[Finding]] = {}
        for finding in report.findings:
            if finding.file == name and finding.line:
                found.setdefault(finding.line, []).append(finding)
        lines = source_lines(name)
        touched = set(records) | set(found)
        shown = sorted({n for t in touched for n in range(t - 3, t + 4) if n in touched or 1 <= n <= len(lines)})
        rows, last = [], 0
        for n in shown:
            record = records.get(n)
            text = lines[n - 1] if 1 <= n <= len(lines) else (record.source if record else found[n][0].source)
            rows.append(
                {
                    "gap": n > last + 1,
                    "number": n,
                    "id": f"f{index}-{n}",
                    "parts": _parts(text, found.get(n, [])),
                    "record": record,
                    "heat": _heat(record, largest),
                    "findings": found.get(n, []),
                    "severity": found[n][0].severity if n in found else "",
                }
            )
            last = n
        yield {"name": name, "index": index, "rows": rows}


def _with_code(text: str) -> Markup:
    """Escaped text; what stands between backticks becomes code."""
    from markupsafe import Markup, escape

    parts = [escape(part) for part in text.split("`")]
    if len(parts) % 2 == 0:  # one backtick belongs to nothing
        return escape(text)
    return Markup("").join(Markup("<code>{}</code>").format(part) if i % 2 else part for i, part in enumerate(parts))


def _parts(text: str, findings: list[Finding]) -> list[tuple[str, str]]:
    """Cut a line into (text, severity) so that the very call can be underlined."""
    for finding in findings:
        if finding.column and finding.column < finding.end_column <= len(text) + 1:
            start, end = finding.column - 1, finding.end_column - 1
            return [(text[:start], ""), (text[start:end], finding.severity), (text[end:], "")]
    return [(text, "")]


def _largest_norm(report: Audited) -> float:
    return largest_finite(record.gradient_norm for record in report.lines)


def _heat(record: LineRecord | None, largest: float) -> float | None:
    """The length of a line's bar: 1 the largest gradient of the program, 0 dead, ``None`` where none was measured."""
    if record is None or record.gradient_norm is None:
        return None
    heat = level(record.gradient_norm, largest)
    return max(heat, 0.05) if record.gradient_norm > 0 and heat < 0.05 and largest > 0 else heat


def _diagram(report: Audited) -> dict[str, Any] | None:
    """Lay the lines out in layers, inputs at the top and the loss at the bottom, as boxes and arrows of an SVG."""
    if not report.lines:
        return None
    order = sorted(
        range(len(report.lines)),
        key=lambda i: (not report.lines[i].marks, report.lines[i].gradient_norm is None, i),
    )
    kept = sorted(order[:_MOST_NODES])
    inside = set(kept)
    edges = [(i, j) for i, j in report.edges if i != j and i in inside and j in inside]
    layer = dict.fromkeys(kept, 0)
    for _ in range(len(kept)):  # longest path; the bound ends loops of lines that feed each other
        changed = False
        for i, j in edges:
            if i < j and layer[j] < layer[i] + 1:
                layer[j] = layer[i] + 1
                changed = True
        if not changed:
            break
    width, height, row = 260, 34, 62
    rows: dict[int, list[int]] = {}
    for i in kept:
        rows.setdefault(layer[i], []).append(i)
    widest = max(len(r) for r in rows.values())
    place: dict[int, tuple[float, float]] = {}
    for depth, members in sorted(rows.items()):
        members.sort(key=lambda i: _mean([place[a][0] for a, b in edges if b == i and a in place]))
        for slot, i in enumerate(members):
            offset = (widest - len(members)) / 2
            place[i] = ((slot + offset) * (width + 24) + 12, depth * row + 12)
    largest = _largest_norm(report)
    boxes = []
    for i in kept:
        record = report.lines[i]
        x, y = place[i]
        severity = next((f.severity for f in report.findings if (f.file, f.line) == (record.file, record.line)), "")
        boxes.append(
            {
                "x": x,
                "y": y,
                "record": record,
                "severity": severity,
                "heat": _heat(record, largest),
                "label": _label(record),
            }
        )
    arrows = []
    for i, j in edges:
        (x0, y0), (x1, y1) = place[i], place[j]
        alive = report.lines[i].gradient_norm is not None and report.lines[i].gradient_norm != 0
        if y1 > y0:
            middle = (y0 + height + y1) / 2
            points = [
                (x0 + width / 2, y0 + height),
                (x0 + width / 2, middle),
                (x1 + width / 2, middle),
                (x1 + width / 2, y1),
            ]
        else:  # back to an earlier line: a loop, drawn at the side
            here, there = y0 + height / 2, y1 + height / 2
            points = [(x0 + width, here), (x0 + width + 40, here), (x1 + width + 40, there), (x1 + width, there)]
        first, *others = (f"{x:.0f},{y:.0f}" for x, y in points)
        path = f"M{first} C{' '.join(others)}"
        arrows.append({"path": path, "alive": alive})
    return {
        "boxes": boxes,
        "arrows": arrows,
        "width": widest * (width + 24) + 60,
        "height": (max(rows) + 1) * row + 12,
        "box_width": width,
        "box_height": height,
        "left_out": len(report.lines) - len(kept),
    }


def _landscape(report: Audited) -> dict[str, Any] | None:
    """Lay out the two lines of the loss as paths of an SVG; gaps where it is not finite."""
    if report.landscape is None:
        return None
    lines = {"along the gradient": report.landscape.along, "along a random direction": report.landscape.across}
    finite = [v for values in lines.values() for v in values if math.isfinite(v)]
    if not finite:
        return None
    width, height, (low, high) = 520, 180, (min(finite), max(finite))
    first, last = report.landscape.offsets[0], report.landscape.offsets[-1]
    paths = {}
    for name, values in lines.items():
        path, pen = [], "M"
        for offset, value in zip(report.landscape.offsets, values, strict=True):
            if not math.isfinite(value):
                pen = "M"
                continue
            x = (offset - first) / (last - first) * width
            y = height * (0.5 if high == low else (high - value) / (high - low))
            path.append(f"{pen}{x:.1f},{y:.1f}")
            pen = "L"
        paths[name] = " ".join(path)
    return {"paths": paths, "width": width, "height": height, "low": low, "high": high, "extent": last}


def _label(record: LineRecord) -> str:
    """Marks, number and text of a line, as much as a box holds."""
    marks = "".join(MARKS.get(mark, "") for mark in record.marks)
    text = " ".join([*([marks] if marks else []), f"{record.line}:", record.source.strip()])
    return text if len(text) <= _MOST_CHARACTERS else text[: _MOST_CHARACTERS - 1] + "…"


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0
