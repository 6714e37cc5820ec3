"""What a run found out: a versioned record, written atomically while the run goes on.

``runs/<slug>/<time>/result.json`` holds one :class:`RunResult`; figures, sound and meshes are files beside it. JSON has
no NaN and infinities: they are the strings ``"NaN"``, ``"Infinity"``, ``"-Infinity"`` there, and numbers when read.
"""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from pullback.core.files import write_atomically

__all__ = [
    "SCALES",
    "SCHEMA_VERSION",
    "STATUSES",
    "VERDICTS",
    "Artifact",
    "Claim",
    "Data",
    "Metric",
    "RunResult",
    "Series",
    "new_directory",
    "read_results",
    "run_directories",
    "spread",
]

SCHEMA_VERSION = 2

SCALES = ("smoke", "default", "full")
"""Seconds, about a minute on one core, the paper's sizes."""

VERDICTS = ("held", "failed", "not judged")

STATUSES = ("running", "complete", "out of time", "interrupted", "failed", "killed")
"""``killed`` is never written: it is a run that says ``running`` and whose process is gone."""


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
    numbers: dict[str, Any] = field(default_factory=dict)
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
    counts: dict[str, dict[str, float]] = field(default_factory=dict)
    progress: dict[str, Any] = field(default_factory=dict)
    started: float = 0.0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    threads: int = 0
    peak_memory: int = 0
    resumed: int = 0
    versions: dict[str, str] = field(default_factory=dict)
    process: dict[str, Any] = field(default_factory=dict)
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

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON values (strict: no NaN)."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "directory"}
        for name in ("metrics", "claims", "data", "series", "artifacts"):
            values[name] = [asdict(item) for item in values[name]]
        encoded: dict[str, Any] = _encode({"schema_version": SCHEMA_VERSION, **values})
        return encoded

    @staticmethod
    def from_json(values: dict[str, Any], directory: Path | None = None) -> RunResult:
        """Rebuild a record.

        Raises:
            ValueError: another schema version, or not a record.
        """
        version = values.get("schema_version") if isinstance(values, dict) else None
        if version != SCHEMA_VERSION:
            raise ValueError(f"schema_version must be {SCHEMA_VERSION}, got {version!r}")
        values = {name: value for name, value in values.items() if name != "schema_version"}
        values["metrics"] = [
            Metric(**{**m, "value": _number(m["value"]), "values": tuple(_number(v) for v in m["values"])})
            for m in values["metrics"]
        ]
        values["claims"] = [
            Claim(**{**c, "numbers": _decode(c["numbers"]), "spreads": _decode(c["spreads"])}) for c in values["claims"]
        ]
        values["data"] = [Data(**d) for d in values["data"]]
        values["series"] = [Series(**{**s, "values": [_number(v) for v in s["values"]]}) for s in values["series"]]
        values["artifacts"] = [Artifact(**{**a, "files": tuple(a["files"])}) for a in values["artifacts"]]
        return RunResult(**values, directory=directory)

    def write(self) -> None:
        """Write ``result.json`` into the run's directory, atomically; nothing without a directory."""
        if self.directory is not None:
            text = json.dumps(self.to_json(), indent=1, allow_nan=False)
            self.directory.mkdir(parents=True, exist_ok=True)
            write_atomically(self.directory / "result.json", text.encode())

    @staticmethod
    def read(directory: Path) -> RunResult:
        """Read the record in a directory; a run whose process is gone gets the status ``killed``.

        Raises:
            ValueError: the file is no record of this schema.
            FileNotFoundError: there is none.
        """
        path = directory / "result.json"
        try:
            result = RunResult.from_json(json.loads(path.read_text()), directory)
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path} is no result of a run: {error}") from error
        if result.status == "running" and not _alive(result.process, path):
            result.status = "killed"
        return result


def spread(values: Sequence[float]) -> float | None:
    """Return the standard deviation (over n - 1), ``None`` of fewer than two values, NaN where one is not finite.

    Example:
        >>> spread([1.0, 2.0, 3.0])
        1.0
    """
    if len(values) < 2:
        return None
    return statistics.stdev(values) if all(map(math.isfinite, values)) else math.nan


_SPECIAL = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def _encode(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {str(key): _encode(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_encode(item) for item in value]
    return value


def _decode(value: Any) -> Any:
    if isinstance(value, str):
        return _SPECIAL.get(value, value)
    if isinstance(value, dict):
        return {key: _decode(item) for key, item in value.items()}
    return [_decode(item) for item in value] if isinstance(value, list) else value


def _number(value: Any) -> float:
    return _SPECIAL[value] if isinstance(value, str) else float(value)


def this_process() -> dict[str, Any]:
    """Return what tells later whether the process that writes a result still lives."""
    return {"pid": os.getpid(), "host": platform.node()}


def _alive(process: dict[str, Any], record: Path) -> bool:
    """Whether the process lives; one on another machine is believed to while its record is not older than an hour."""
    if process.get("host") != platform.node():
        return time.time() - record.stat().st_mtime < 3600
    try:
        os.kill(int(process["pid"]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def new_directory(runs: Path, slug: str) -> Path:
    """Create and return ``runs/<slug>/<time>``, with a number behind it where that second is taken."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for attempt in range(1, 10_000):
        directory = runs / slug / (stamp if attempt == 1 else f"{stamp}-{attempt}")
        try:
            directory.mkdir(parents=True)
        except FileExistsError:
            continue
        return directory
    raise RuntimeError(f"{runs / slug} has no room for another run at {stamp}")


def read_results(runs: Path, slug: str | None = None) -> Iterator[RunResult]:
    """Yield the results in a store, newest first.

    A directory without a result is a run about to start; a file that is no record of this schema (of an older release,
    or damaged) is passed over with a warning.
    """
    for directory in run_directories(runs, slug):
        try:
            yield RunResult.read(directory)
        except ValueError as error:
            warnings.warn(str(error), stacklevel=2)


def run_directories(runs: Path, slug: str | None = None) -> list[Path]:
    """Return the directories in a store that hold a record, newest first."""
    directories = [path.parent for path in runs.glob(f"{slug or '*'}/*/result.json")]
    return sorted(directories, key=lambda d: (_natural(d.name), d.parent.name), reverse=True)


def _natural(name: str) -> tuple[str, int]:
    """``20260131-120000-10`` sorts after ``20260131-120000-9``."""
    day, _, rest = name.partition("-")
    clock, _, number = rest.partition("-")
    return f"{day}-{clock}", int(number) if number.isdigit() else 1
