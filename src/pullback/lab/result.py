"""What a run found out: a versioned record, written atomically while the run goes on.

``runs/<slug>/<time>/result.json`` holds one :class:`RunResult`; figures, sound and meshes are files beside it. A
process that works on the run holds the lock on ``lock`` there. A record is read as what anybody may have written: whole
and of the right types, or it is a :class:`DamagedRecord`.
"""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from pullback.core.files import is_held, write_atomically
from pullback.lab.decode import DecodeError, decode, encode, read_json

__all__ = [
    "SCALES",
    "SCHEMA_VERSION",
    "STATUSES",
    "VERDICTS",
    "Artifact",
    "Claim",
    "DamagedRecord",
    "Data",
    "Metric",
    "RunResult",
    "Series",
    "spread",
    "this_process",
]

SCHEMA_VERSION = 2

SCALES = ("smoke", "default", "full")
"""Seconds, about a minute on one core, the paper's sizes."""

VERDICTS = ("held", "failed", "not judged")

STATUSES = ("running", "complete", "out of time", "interrupted", "failed", "killed")
"""``killed`` is never written: it is a run that says ``running`` and whose lock nobody holds."""

LOCK = "lock"


class DamagedRecord(ValueError):
    """A directory of a store whose ``result.json`` is no whole record; ``problem`` says what is wrong in it."""

    def __init__(self, directory: Path, problem: str) -> None:
        super().__init__(f"{directory / 'result.json'} is no result of a run: {problem}")
        self.directory, self.problem = directory, problem


@dataclass(frozen=True)
class Metric:
    """A measured number: ``of`` an arm, ``better`` higher or lower (or neither), a ``baseline`` or the method.

    Over replicates ``values`` holds all of them and ``value`` is their mean.
    """

    name: str
    value: float
    of: str = ""
    better: str | None = None
    unit: str = ""
    baseline: bool = False
    values: tuple[float, ...] = ()

    @property
    def spread(self) -> float | None:
        """The standard deviation over the replicates; ``None`` where there are fewer than two."""
        return spread(self.values)


@dataclass(frozen=True)
class Claim:
    """A claim with its verdict (``held``, ``failed``, ``not judged`` below its scale) and the numbers behind it.

    ``spreads`` has the standard deviation of those numbers that are means over replicates.
    """

    statement: str
    verdict: str
    scale: str
    numbers: dict[str, bool | float | str] = field(default_factory=dict)
    spreads: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Data:
    """A data set that was used; ``origin`` is ``real``, ``simulated`` or ``stand-in``."""

    name: str
    origin: str


@dataclass(frozen=True)
class Artifact:
    """Something to look at or listen to: ``files`` are relative to the run's directory."""

    kind: str
    name: str
    files: tuple[str, ...]
    caption: str = ""
    content: Any = None


@dataclass
class Series:
    """Values recorded over steps, in one replicate where there are several."""

    name: str
    of: str = ""
    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    replicate: int | None = None


@dataclass
class RunResult:
    """The record of one run.

    Attributes:
        slug, family, title, paper: of the system.
        status: one of ``STATUSES``.
        scale, seed, device, config: what was run.
        metrics, claims, data, series, artifacts, notes: what it reported, in order.
        arms: what was compared, in the order of their colours.
        counts: operations by kind and arm, ``{"evaluations": {"ours": 300}}``; ``"cpu seconds"`` is one of them.
        progress: the loop that runs, ``{"loop": name, "step": i, "steps": n}``.
        started, seconds: Unix time of the start, seconds of this process.
        cpu_seconds: CPU seconds of all processes that worked on the run, one after the other.
        threads: that torch computed with.
        peak_memory: largest resident memory of a process of the run, in bytes.
        resumed: how often the run was continued.
        versions: of pullback, torch and Python.
        error: one line, where the run failed.
        directory: where it lies; not part of the record.
    """

    slug: str
    family: str
    title: str = ""
    paper: str = ""
    status: str = "running"
    scale: str = "default"
    seed: int = 0
    device: str = "cpu"
    config: dict[str, Any] = field(default_factory=dict)
    metrics: list[Metric] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    data: list[Data] = field(default_factory=list)
    series: list[Series] = field(default_factory=list)
    artifacts: list[Artifact] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    arms: list[str] = field(default_factory=list)
    counts: dict[str, dict[str, float]] = field(default_factory=dict)
    progress: dict[str, int | str] = field(default_factory=dict)
    started: float = 0.0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    threads: int = 0
    peak_memory: int = 0
    resumed: int = 0
    versions: dict[str, str] = field(default_factory=dict)
    process: dict[str, int | str] = field(default_factory=dict)
    error: str = ""
    directory: Path | None = None

    @property
    def held(self) -> list[Claim]:
        """Claims that held."""
        return [claim for claim in self.claims if claim.verdict == "held"]

    @property
    def failed(self) -> list[Claim]:
        """Claims that failed."""
        return [claim for claim in self.claims if claim.verdict == "failed"]

    @property
    def verdicts(self) -> dict[str, int]:
        """How many claims held, failed and were not judged."""
        return {verdict: sum(claim.verdict == verdict for claim in self.claims) for verdict in VERDICTS}

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON values (strict: no NaN)."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "directory"}
        for name in ("metrics", "claims", "data", "series", "artifacts"):
            values[name] = [asdict(item) for item in values[name]]
        encoded: dict[str, Any] = encode({"schema_version": SCHEMA_VERSION, **values})
        return encoded

    @staticmethod
    def from_json(values: Any, directory: Path | None = None) -> RunResult:
        """Rebuild a record from what ``json.loads`` returned, whatever that is.

        Raises:
            DecodeError: another schema version, or not a whole record.
        """
        version = values.get("schema_version") if isinstance(values, dict) else None
        if version != SCHEMA_VERSION or isinstance(version, bool):
            raise DecodeError(f"must be {SCHEMA_VERSION}, got {ascii(version)[:40]}", "schema_version")
        if "directory" in values:
            raise DecodeError("is no part of a record", "directory")
        result: RunResult = decode(
            RunResult, {name: value for name, value in values.items() if name != "schema_version"}
        )
        _check(result)
        result.directory = directory
        return result

    def write(self) -> None:
        """Write ``result.json`` into the run's directory, atomically; nothing without a directory."""
        if self.directory is not None:
            text = json.dumps(self.to_json(), indent=1, allow_nan=False)
            self.directory.mkdir(parents=True, exist_ok=True)
            write_atomically(self.directory / "result.json", text.encode())

    @staticmethod
    def read(directory: Path) -> RunResult:
        """Read the record in a directory; a run that no process works on gets the status ``killed``.

        Raises:
            DamagedRecord: what is there is no record of this schema.
            FileNotFoundError: there is none.
        """
        result = _read(directory)
        if result.status == "running" and not is_held(directory / LOCK):
            result = _read(directory)  # it may have ended in between, and has then written how
            if result.status == "running":
                result.status = "killed"
        return result


def _read(directory: Path) -> RunResult:
    try:
        return RunResult.from_json(read_json(directory / "result.json"), directory)
    except DecodeError as error:
        raise DamagedRecord(directory, str(error)) from None


def _check(result: RunResult) -> None:
    """Raise ``DecodeError`` where values are of the right types and yet make no record."""
    words = [("status", result.status, STATUSES), ("scale", result.scale, SCALES)]
    for index, claim in enumerate(result.claims):
        words += [
            (f"claims[{index}].verdict", claim.verdict, VERDICTS),
            (f"claims[{index}].scale", claim.scale, SCALES),
        ]
    words += [(f"metrics[{i}].better", m.better, ("higher", "lower")) for i, m in enumerate(result.metrics) if m.better]
    for place, word, allowed in words:
        if word not in allowed:
            raise DecodeError(f"must be one of {', '.join(allowed)}, got {ascii(word)[:40]}", place)
    for index, series in enumerate(result.series):
        if len(series.steps) != len(series.values):
            raise DecodeError("must have as many steps as values", f"series[{index}]")
    for index, artifact in enumerate(result.artifacts):
        if artifact.kind == "table" and artifact.content is not None and not _is_table(artifact.content):
            raise DecodeError("must be columns and rows", f"artifacts[{index}].content")
    for name, number in (("started", result.started), ("seconds", result.seconds), ("cpu_seconds", result.cpu_seconds)):
        if not 0 <= number < 1e11:
            raise DecodeError(f"must be in [0, 1e11), got {number}", name)
    for name, count in (("seed", result.seed), ("resumed", result.resumed), ("peak_memory", result.peak_memory)):
        if count < 0:
            raise DecodeError(f"must be >= 0, got {count}", name)


def _is_table(content: Any) -> bool:
    if not isinstance(content, dict) or not {"columns", "rows"} <= set(content):
        return False
    if not isinstance(content["rows"], list):
        return False
    lines = [content["columns"], *content["rows"]]
    return all(isinstance(line, list) and len(line) == len(content["columns"]) for line in lines)


def spread(values: Sequence[float]) -> float | None:
    """Return the standard deviation (over n - 1), ``None`` of fewer than two values, NaN where it has no number.

    Example:
        >>> spread([1.0, 2.0, 3.0])
        1.0
    """
    if len(values) < 2:
        return None
    return statistics.stdev(values) if all(abs(value) < 1e150 for value in values) else math.nan


def this_process() -> dict[str, int | str]:
    """Return who works on a run, for people and for the launcher that has started it."""
    return {"pid": os.getpid(), "host": platform.node()}
