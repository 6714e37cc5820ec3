"""Findings as annotations of GitHub Actions: lines that the runner shows at the source of a pull request."""

from __future__ import annotations

from pullback.audit.report.findings import Audited, Finding
from pullback.audit.report.places import relative

__all__ = ["to_annotations"]

_COMMANDS = {"error": "error", "warning": "warning", "info": "notice"}


def to_annotations(report: Audited) -> str:
    """Return one workflow command a finding, joined by line feeds.

    Example:
        >>> finding = Finding("cut.index", "cut", "error", "a,b.py", 3, 5, 9, "k = x.argmax()", "argmax", "50 % lost")
        >>> to_annotations(Audited("f", findings=(finding,)))
        '::error file=a%2Cb.py,line=3,col=5,endColumn=8,title=pullback cut.index::50 %25 lost'

    References:
        GitHub, Workflow commands for GitHub Actions, "Setting an error message".
    """
    return "\n".join(_annotation(finding) for finding in report.findings)


def _annotation(finding: Finding) -> str:
    properties: dict[str, object] = {"file": relative(finding.file)}
    if finding.line > 0:
        properties["line"] = finding.line
        if 0 < finding.column < finding.end_column:
            properties |= {"col": finding.column, "endColumn": finding.end_column - 1}  # the last one, not behind it
    properties["title"] = f"pullback {finding.code}"
    message = "\n".join([finding.message, *(f"{r.what}\n{r.diff}" for r in finding.remedies)])
    written = ",".join(f"{name}={_escaped(str(value), ':,')}" for name, value in properties.items())
    return f"::{_COMMANDS[finding.severity]} {written}::{_escaped(message)}"


def _escaped(text: str, more: str = "") -> str:
    """Percent-encode what would end a command, a property, or be read as an escape."""
    for character in "%\r\n" + more:
        text = text.replace(character, f"%{ord(character):02X}")
    return text
