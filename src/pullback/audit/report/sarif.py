"""Findings in the Static Analysis Results Interchange Format, which code scanning and editors read."""

from __future__ import annotations

from typing import Any

import pullback
from pullback.audit.report.findings import Audited, Finding
from pullback.audit.report.messages import describe
from pullback.audit.report.numbers import json_value
from pullback.audit.report.places import uri
from pullback.audit.report.remedy import Change, Remedy

__all__ = ["to_sarif"]

_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_LEVELS = {"error": "error", "warning": "warning", "info": "note"}


def to_sarif(report: Audited) -> dict[str, Any]:
    """Return the report as a SARIF 2.1.0 log of one run.

    A rule is a finding's code; a finding that carries remedies offers them as fixes. Lines and columns count from 1,
    columns in characters. Paths below the working directory are relative to it.

    Example:
        >>> finding = Finding("cut.index", "cut", "error", "net.py", 3, 5, 15, "k = x.argmax()", "argmax", "lost")
        >>> (run,) = to_sarif(Audited("net.py", findings=(finding,)))["runs"]
        >>> [(result["ruleId"], result["level"]) for result in run["results"]]
        [('cut.index', 'error')]

    References:
        OASIS, Static Analysis Results Interchange Format (SARIF) Version 2.1.0, sections 3.13 (log), 3.14 (run), 3.27
        (result), 3.30 (region), 3.55 (fix).
    """
    codes = list(dict.fromkeys(finding.code for finding in report.findings))
    invocation: dict[str, Any] = {"executionSuccessful": report.error is None}
    notifications = [{"level": "note", "message": {"text": note}} for note in report.notes]
    if report.error is not None:
        notifications.append({"level": "error", "message": {"text": report.error}})
    if notifications:
        invocation["toolExecutionNotifications"] = notifications
    driver = {
        "name": "pullback",
        "version": pullback.__version__,
        "semanticVersion": pullback.__version__,
        "rules": [_rule(code) for code in codes],
    }
    run = {
        "tool": {"driver": driver},
        "columnKind": "unicodeCodePoints",
        "invocations": [invocation],
        "results": [_result(finding, codes.index(finding.code)) for finding in report.findings],
    }
    return {"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}


def _rule(code: str) -> dict[str, Any]:
    words = code.replace(".", " ").replace("-", " ").replace("_", " ").split()
    return {
        "id": code,
        "name": "".join(word.capitalize() for word in words),
        "shortDescription": {"text": describe(code)},
        "help": {"text": f"`pullback find {code}` shows what fits in its place."},
    }


def _result(finding: Finding, index: int) -> dict[str, Any]:
    location: dict[str, Any] = {"artifactLocation": {"uri": uri(finding.file)}}
    if finding.line > 0:
        location["region"] = _region(finding)
    result: dict[str, Any] = {
        "ruleId": finding.code,
        "ruleIndex": index,
        "level": _LEVELS[finding.severity],
        "message": {"text": finding.message or finding.code},
        "locations": [{"physicalLocation": location}],
        # Stays the same when lines above are added: code scanning knows the finding again by it.
        "partialFingerprints": {"codeAndSource/v1": f"{finding.code}:{finding.operation}:{finding.source.strip()}"},
        "properties": {"operation": finding.operation, "evidence": json_value(finding.evidence)},
    }
    fixes = [_fix(remedy) for remedy in finding.remedies if remedy.changes]
    if fixes:
        result["fixes"] = fixes
    return result


def _region(finding: Finding) -> dict[str, Any]:
    region: dict[str, Any] = {"startLine": finding.line}
    if 0 < finding.column < finding.end_column:
        region |= {"startColumn": finding.column, "endColumn": finding.end_column}
    if finding.source:
        region["snippet"] = {"text": finding.source}
    return region


def _fix(remedy: Remedy) -> dict[str, Any]:
    change = {
        "artifactLocation": {"uri": uri(remedy.file)},
        "replacements": [_replacement(one) for one in remedy.changes],
    }
    return {"description": {"text": f"{remedy.what} {remedy.effect}".strip()}, "artifactChanges": [change]}


def _replacement(change: Change) -> dict[str, Any]:
    """Whole lines: from the first character of the first to that of the line behind the last."""
    start, end = change.line, change.line + change.count
    return {
        "deletedRegion": {"startLine": start, "startColumn": 1, "endLine": end, "endColumn": 1},
        "insertedContent": {"text": change.text},
    }
