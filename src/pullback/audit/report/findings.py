"""What an audit hands back: findings, per-line measurements, and the report that holds them.

The JSON form (``Report.to_dict``) has ``schema`` = :data:`SCHEMA_VERSION` and these keys::

    schema      int, raised when a key changes its meaning or goes away
    target      str, what was audited
    ok          bool, no finding of severity "error"
    findings    list of {kind, code, severity, file, line, column, end_column, source, operation, message,
                         evidence, remedies}; columns count characters from 1, 0 means unknown
    lines       list of {file, line, source, count, operations, gradient_norm, gain, marks}; gradient_norm and gain
                are null where no cotangent passed
    edges       list of [i, j]: values of lines[i] were used by lines[j]
    parameters  list of {name, shape, gradient_norm, reached, blame}; blame is {file, line} or null
    notes       list of str, what the audit cannot see
    silenced    int, findings silenced by `# audit: ok` or ignore=
    steps       int, backward passes audited
    error       str or null, the traceback of the user's code if it raised
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pullback.core.checks import check_choice

__all__ = ["KINDS", "SCHEMA_VERSION", "SEVERITIES", "Finding", "LineRecord", "ParameterRecord", "Report"]

SCHEMA_VERSION = 1
SEVERITIES = ("info", "warning", "error")
KINDS = ("cut", "zero", "vanishing", "exploding", "nan", "kink", "biased", "chaotic", "control-flow", "unused")


@dataclass(frozen=True)
class Finding:
    """One place where the gradient goes wrong.

    Attributes:
        code: ``kind.detail``, as ``cut.index``.
        kind: one of :data:`KINDS`.
        severity: ``"error"`` (confirmed), ``"warning"`` or ``"info"`` (a choice that may be intended).
        file: path of the user's source file.
        line: 1-based line number, 0 where unknown.
        column: 1-based first character of the call, 0 where unknown.
        end_column: 1-based character after the call, 0 where unknown.
        source: the line's text.
        operation: torch name of the operation, as ``argmax``.
        message: one sentence saying what happens and why it matters.
        evidence: the numbers (and names) behind it; JSON values only.
        remedies: what fits there, each ``{"block", "code", "what"}``; filled by ``pullback.audit.remedies``.
    """

    code: str
    kind: str
    severity: str
    file: str
    line: int
    column: int
    end_column: int
    source: str
    operation: str
    message: str
    evidence: Mapping[str, Any] = field(default_factory=dict)
    remedies: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, KINDS)
        check_choice("severity", self.severity, SEVERITIES)
        if not self.code.startswith(self.kind + "."):
            raise ValueError(f"code must be '{self.kind}.<detail>', got {self.code!r}")

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.severity}: {self.code}: {self.message}"


@dataclass(frozen=True)
class LineRecord:
    """What was measured at one source line.

    Attributes:
        file: path.
        line: 1-based number.
        source: its text.
        count: traced operations, over all visits.
        operations: their torch names, in order of first use.
        gradient_norm: largest Euclidean norm of a cotangent that reached an operation of the line, or ``None``.
        gain: geometric mean of ``||cotangent out|| / ||cotangent in||`` over the visits, or ``None``.
        marks: kinds of the findings on this line.
    """

    file: str
    line: int
    source: str
    count: int
    operations: tuple[str, ...]
    gradient_norm: float | None
    gain: float | None
    marks: tuple[str, ...] = ()


@dataclass(frozen=True)
class ParameterRecord:
    """The gradient of one trainable tensor.

    Attributes:
        name: qualified name where known, else a description such as ``Parameter(4, 3)``.
        shape: its shape.
        gradient_norm: Euclidean norm over the audited passes, ``None`` where there was no gradient.
        reached: whether its value was used by an audited program at all.
        blame: ``{"file", "line", "code"}`` of the finding that stops its gradient, or ``None``.
    """

    name: str
    shape: tuple[int, ...]
    gradient_norm: float | None
    reached: bool
    blame: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Report:
    """All that one audit found.

    Attributes:
        target: what was audited.
        findings: sorted by severity, then file and line.
        lines: measurements of each traced source line.
        edges: ``(i, j)``: values of ``lines[i]`` were used by ``lines[j]``.
        parameters: the trainable tensors and their gradients.
        notes: what the audit cannot see, or did not do.
        silenced: findings silenced by ``# audit: ok`` or ``ignore=``.
        steps: backward passes audited.
        error: the traceback of the user's code if it raised, else ``None``.

    Example:
        >>> report = Report(target="f")
        >>> report.ok, report.exit_code()
        (True, 0)
        >>> Report.from_dict(report.to_dict()) == report
        True
    """

    target: str
    findings: tuple[Finding, ...] = ()
    lines: tuple[LineRecord, ...] = ()
    edges: tuple[tuple[int, int], ...] = ()
    parameters: tuple[ParameterRecord, ...] = ()
    notes: tuple[str, ...] = ()
    silenced: int = 0
    steps: int = 0
    error: str | None = None

    @property
    def ok(self) -> bool:
        """Whether no finding is an error."""
        return not any(f.severity == "error" for f in self.findings)

    def exit_code(self, fail_on: str = "error") -> int:
        """Return 1 if a finding is at or above ``fail_on``, 3 if the user's code raised, else 0.

        Args:
            fail_on: ``"info"``, ``"warning"`` or ``"error"``.

        Raises:
            ValueError: ``fail_on`` is something else.
        """
        check_choice("fail_on", fail_on, SEVERITIES)
        if self.error is not None:
            return 3
        worst = SEVERITIES.index(fail_on)
        return int(any(SEVERITIES.index(f.severity) >= worst for f in self.findings))

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values (see the schema at the top of this module)."""
        plain: dict[str, Any] = _plain(asdict(self))
        return {"schema": SCHEMA_VERSION, "ok": self.ok, **plain}

    def to_json(self, indent: int | None = 2) -> str:
        """Return :meth:`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=indent, ensure_ascii=False)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Report:
        """Rebuild a report from :meth:`to_dict`.

        Raises:
            ValueError: the schema version is another one.
        """
        if data.get("schema") != SCHEMA_VERSION:
            raise ValueError(f"schema must be {SCHEMA_VERSION}, got {data.get('schema')!r}")
        return cls(
            target=data["target"],
            findings=tuple(Finding(**{**f, "remedies": tuple(f["remedies"])}) for f in data["findings"]),
            lines=tuple(
                LineRecord(**{**r, "operations": tuple(r["operations"]), "marks": tuple(r["marks"])})
                for r in data["lines"]
            ),
            edges=tuple((int(i), int(j)) for i, j in data["edges"]),
            parameters=tuple(ParameterRecord(**{**p, "shape": tuple(p["shape"])}) for p in data["parameters"]),
            notes=tuple(data["notes"]),
            silenced=data["silenced"],
            steps=data["steps"],
            error=data["error"],
        )

    def __str__(self) -> str:
        counts = [f"{sum(f.severity == s for f in self.findings)} {s}" for s in reversed(SEVERITIES)]
        head = f"audit of {self.target}: {', '.join(counts)}, {self.steps} backward passes"
        body = [f"{finding}\n    {finding.source.strip()}" for finding in self.findings]
        notes = [f"note: {note}" for note in self.notes]
        return "\n".join([head, *body, *notes])


def _plain(value: Any) -> Any:
    """Turn tuples into lists and non-finite numbers into text, so that the result is strict JSON."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
