"""What the gallery shows: every system of the registry, and every system that has results, with its runs."""

from __future__ import annotations

import ast
import importlib
import re
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pullback
from pullback.lab import registry
from pullback.lab.registry import System
from pullback.lab.result import SCALES, STATUSES, VERDICTS, Artifact, RunResult, run_directories

__all__ = ["VERDICTS", "Entry", "Store", "artifact_files", "block_summary", "family_summary"]

SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,120}")
"""Names of slugs, runs and files that become part of a page's address."""


@dataclass(frozen=True)
class Entry:
    """A system with its runs.

    Attributes:
        slug, family, title, paper: of the system.
        summary: its first sentence.
        description: the docstring of its file, without the summary.
        system: the system; ``None`` where it cannot be imported or is no longer part of the library.
        problem: why there is no ``system``, in one line.
        runs: its runs, newest first.
    """

    slug: str
    family: str
    title: str
    paper: str
    summary: str
    description: str
    system: System | None
    problem: str
    runs: tuple[RunResult, ...]

    @property
    def shown(self) -> RunResult | None:
        """The run that speaks for the system.

        A complete one before an unfinished one, one with the options of its scale before one with changed options, the
        largest scale, the newest.
        """
        ranked = [
            (run.status == "complete", not self.changes(run), SCALES.index(run.scale), -age)
            for age, run in enumerate(self.runs)
        ]
        return self.runs[ranked.index(max(ranked))] if ranked else None

    def changes(self, run: RunResult) -> dict[str, object]:
        """Return the options of a run that are not those of its scale."""
        if self.system is None:
            return dict(run.config)
        usual = {name: _plain(getattr(self.system.configure(run.scale), name)) for name in self.system.options}
        return {name: value for name, value in run.config.items() if name not in usual or usual[name] != value}

    def find(self, name: str) -> RunResult | None:
        """Return the run in the directory of that name."""
        return next((run for run in self.runs if run.directory is not None and run.directory.name == name), None)


class Store:
    """A results store; records that cannot change any more are read once."""

    def __init__(self, runs: Path) -> None:
        self.path = runs
        self._finished: dict[Path, tuple[int, RunResult]] = {}

    def entries(self) -> list[Entry]:
        """Return all systems by family, those that have results but are unknown to this version too."""
        known = set(registry.slugs())
        stored = {path.name for path in self.path.glob("*") if path.is_dir() and SAFE_NAME.fullmatch(path.name)}
        entries = [entry for slug in sorted(known | stored) if (entry := self.entry(slug)) is not None]
        order = {family: index for index, family in enumerate(pullback.FAMILIES)}
        return sorted(entries, key=lambda e: (order.get(e.family, len(order)), e.family, e.slug))

    def entry(self, slug: str) -> Entry | None:
        """Return one system, or ``None`` where neither the registry nor the store knows it."""
        if not SAFE_NAME.fullmatch(slug):
            return None
        runs = tuple(self._results(slug))
        if slug not in registry.slugs():
            return _unknown(runs[0], runs) if runs else None
        try:
            system = registry.load(slug)
        except Exception as error:
            # A missing extra or a broken file of one system is shown on its page; the others have theirs.
            return _broken(slug, error, runs)
        summary, _, description = system.description.partition("\n")
        return Entry(slug, system.family, system.title, system.paper, summary, description.strip(), system, "", runs)

    def _results(self, slug: str) -> Iterator[RunResult]:
        for directory in run_directories(self.path, slug):
            if not SAFE_NAME.fullmatch(directory.name):
                continue
            record = directory / "result.json"
            try:
                changed = record.stat().st_mtime_ns
                former = self._finished.get(directory)
                if former is not None and former[0] == changed:
                    yield former[1]
                    continue
                result = RunResult.read(directory)
            except FileNotFoundError:  # removed since the folder was listed
                continue
            except (ValueError, OSError) as error:
                warnings.warn(str(error), stacklevel=2)
                continue
            if result.slug != slug or not _is_sound(result):
                warnings.warn(f"{record} is no result of {slug}, or is damaged", stacklevel=2)
                continue
            if result.status != "running":
                self._finished[directory] = (changed, result)
            yield result


def _is_sound(run: RunResult) -> bool:
    """Whether the values of a record are of the kinds that a page shows."""
    tables = (run.config, run.versions, run.progress, run.counts, *(c.numbers for c in run.claims))
    if not all(isinstance(table, dict) for table in (*tables, *run.counts.values())):
        return False
    numbers = [run.started, run.seconds, *(m.value for m in run.metrics), *(v for s in run.series for v in s.steps)]
    numbers += [count for arms in run.counts.values() for count in arms.values()]
    texts = [run.title, run.paper, *run.notes, *(c.statement for c in run.claims), *(m.name for m in run.metrics)]
    return (
        run.scale in SCALES
        and run.status in STATUSES
        and all(claim.verdict in VERDICTS for claim in run.claims)
        and all(len(series.steps) == len(series.values) for series in run.series)
        and all(_is_table(a.content) for a in run.artifacts if a.kind == "table" and a.content is not None)
        and all(isinstance(number, int | float) for number in numbers)
        and all(isinstance(text, str) for text in [*texts, *(name for a in run.artifacts for name in a.files)])
    )


def _is_table(content: Any) -> bool:
    if not isinstance(content, dict) or not {"columns", "rows"} <= set(content):
        return False
    lines = [content["columns"], *content["rows"]]
    return all(isinstance(line, list) and len(line) == len(content["columns"]) for line in lines)


def artifact_files(run: RunResult, artifact: Artifact) -> list[str]:
    """Return the names of an artifact's files that lie in the run's directory."""
    if run.directory is None:
        return []
    return [
        name
        for name in artifact.files
        if SAFE_NAME.fullmatch(name)
        and not (run.directory / name).is_symlink()
        and (run.directory / name).is_file()
        and name not in ("result.json", "index.html")
    ]


def family_summary(family: str) -> str:
    """Return the first sentence of a family's docstring, without importing it."""
    path = Path(pullback.__file__).parent / family / "__init__.py"
    if family not in pullback.FAMILIES or not path.is_file():
        return ""
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]


def block_summary(block: str) -> str:
    """Return the first sentence of a block's docstring; empty where there is no such block.

    Example:
        >>> block_summary("discrete.no_such_block")
        ''
    """
    family, _, name = block.partition(".")
    if family not in pullback.FAMILIES:
        return ""
    value = getattr(importlib.import_module(f"pullback.{family}"), name, None)
    return (value.__doc__ or "").strip().partition("\n")[0] if value is not None else ""


def _unknown(latest: RunResult, runs: tuple[RunResult, ...]) -> Entry:
    problem = "This version of the library has no system of that name; the results are of another one."
    return Entry(latest.slug, latest.family, latest.title or latest.slug, latest.paper, "", "", None, problem, runs)


def _broken(slug: str, error: Exception, runs: tuple[RunResult, ...]) -> Entry:
    problem = "".join(traceback.format_exception_only(error)).strip().splitlines()[-1]
    title = runs[0].title if runs else slug.replace("-", " ").capitalize()
    family = registry.family_of(slug)
    return Entry(
        slug, family, title, runs[0].paper if runs else "", "", "", None, f"It cannot be imported: {problem}", runs
    )


def _plain(value: object) -> object:
    """As the value looks after a round through JSON."""
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
