"""What an audit hands back as data: findings, measurements of lines and parameters, and the record that holds them.

The JSON form (``Audited.to_dict``) has ``schema`` = :data:`SCHEMA_VERSION` and the keys below. A number that JSON lacks
is one of the strings "NaN", "Infinity" and "-Infinity"::

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
    landscape   null, or {offsets, along, across}: values of the loss, where they were asked for
    memory      list of {file, line, source, bytes}: what lines keep for the backward pass, where that was asked for
    layers      list of {name, kind, size, correlation, idle, cotangent}: what passes through layers, where that was
                asked for
    noise       list of {name, signal, noise, ratio}: of the gradients of a program that draws, where that was asked for
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from pullback.audit.report.numbers import from_json, json_value
from pullback.audit.report.remedy import Remedy
from pullback.core.choices import check_choice

__all__ = [
    "KINDS",
    "SCHEMA_VERSION",
    "SEVERITIES",
    "Audited",
    "Finding",
    "Landscape",
    "LayerRecord",
    "LineRecord",
    "NoiseRecord",
    "ParameterRecord",
    "SavedRecord",
]

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
        remedies: rewritings of the code that were tried and help.
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
    remedies: tuple[Remedy, ...] = ()

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
class Landscape:
    """The loss around the trained tensors, as a whole.

    Attributes:
        offsets: steps from where they are, relative to the Euclidean norm of all trained numbers.
        along: the loss there along the gradient; NaN where the program refused the values or time was up.
        across: the loss along a random direction.
    """

    offsets: tuple[float, ...]
    along: tuple[float, ...]
    across: tuple[float, ...]


@dataclass(frozen=True)
class SavedRecord:
    """What one source line keeps for the backward pass.

    Attributes:
        file: path.
        line: 1-based number.
        source: its text.
        bytes: of all storages that its operations were the first to save, parameters and inputs left out.
    """

    file: str
    line: int
    source: str
    bytes: int


@dataclass(frozen=True)
class LayerRecord:
    """What passes through one call of a layer.

    Attributes:
        name: path of the layer, as the user names its module.
        kind: its class.
        size: root mean square of its output.
        correlation: mean cosine between the outputs of two samples; NaN for a single one.
        idle: share of the units whose output is the same for all samples; NaN for a single one.
        cotangent: root mean square of the gradient that arrives at its output.
    """

    name: str
    kind: str
    size: float
    correlation: float
    idle: float
    cotangent: float


@dataclass(frozen=True)
class NoiseRecord:
    """How much of the gradient of one trained tensor is signal, over runs with other random numbers.

    Attributes:
        name: of the tensor.
        signal: ``||E g||^2``, estimated without bias: below 0 where noise is all there is.
        noise: ``E ||g - E g||^2``.
        ratio: signal over noise; infinite where the draws do not matter.
    """

    name: str
    signal: float
    noise: float
    ratio: float


@dataclass(frozen=True, repr=False)
class Audited:
    """All that one audit found, as data; :class:`~pullback.audit.report.report.Report` adds the forms to read it in.

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
        landscape: the loss along its gradient and across it, where it was asked for.
        memory: what lines keep for the backward pass, the largest first, where that was asked for.
        layers: what passes through each call of a layer, where that was asked for.
        noise: signal and noise of the gradients, where that was asked for and the program draws random numbers.
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
    landscape: Landscape | None = None
    memory: tuple[SavedRecord, ...] = ()
    layers: tuple[LayerRecord, ...] = ()
    noise: tuple[NoiseRecord, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether no finding is an error."""
        return not any(f.severity == "error" for f in self.findings)

    @property
    def counts(self) -> dict[str, int]:
        """Findings of each severity, the worst first."""
        return {s: sum(f.severity == s for f in self.findings) for s in reversed(SEVERITIES)}

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
        plain: dict[str, Any] = json_value(self)
        return {"schema": SCHEMA_VERSION, "ok": self.ok, **plain}

    def to_json(self, indent: int | None = 2) -> str:
        """Return :meth:`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=indent, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild a report from :meth:`to_dict`.

        Raises:
            ValueError: the schema version is another one.
        """
        if data.get("schema") != SCHEMA_VERSION:
            raise ValueError(f"schema must be {SCHEMA_VERSION}, got {data.get('schema')!r}")
        measured = ("gradient_norm", "gain", "evidence")
        in_tuples = ("operations", "marks", "shape")

        def fields(record: Mapping[str, Any]) -> dict[str, Any]:
            read = {name: from_json(value) if name in measured else value for name, value in record.items()}
            return {name: tuple(value) if name in in_tuples else value for name, value in read.items()}

        def finding(record: Mapping[str, Any]) -> Finding:
            remedies = tuple(Remedy.from_dict({**r, "numbers": from_json(r["numbers"])}) for r in record["remedies"])
            return Finding(**{**fields(record), "remedies": remedies})

        drawn = data.get("landscape")
        landscape = drawn and Landscape(**{name: tuple(from_json(values)) for name, values in drawn.items()})
        return cls(
            target=data["target"],
            findings=tuple(map(finding, data["findings"])),
            lines=tuple(LineRecord(**fields(record)) for record in data["lines"]),
            edges=tuple((int(i), int(j)) for i, j in data["edges"]),
            parameters=tuple(ParameterRecord(**fields(record)) for record in data["parameters"]),
            notes=tuple(data["notes"]),
            silenced=data["silenced"],
            steps=data["steps"],
            error=data["error"],
            landscape=landscape,
            memory=tuple(SavedRecord(**record) for record in data.get("memory", ())),
            layers=tuple(LayerRecord(**_numbers(record)) for record in data.get("layers", ())),
            noise=tuple(NoiseRecord(**_numbers(record)) for record in data.get("noise", ())),
        )


def _numbers(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value if name in ("name", "kind") else from_json(value) for name, value in record.items()}
