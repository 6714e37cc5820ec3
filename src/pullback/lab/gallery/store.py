"""What the gallery shows: every system of the registry, and every system that has results, with its runs."""

from __future__ import annotations

import ast
import importlib
import re
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pullback
from pullback.lab import registry
from pullback.lab.config import plain
from pullback.lab.registry import System
from pullback.lab.result import SCALES, Artifact, DamagedRecord, RunResult
from pullback.lab.store import read_record, run_directories

__all__ = ["Entry", "Store", "artifact_files", "block_summary", "family_summary"]

SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,120}")
"""Names of slugs, runs and files that become part of a page's address."""

ENDINGS = {
    "figure": (".png", ".svg"),
    "image": (".png",),
    "animation": (".png",),
    "audio": (".wav",),
    "mesh": (".ply",),
    "table": (".csv",),
}
"""Of the files of an artifact: nothing else in a run's directory, such as a script or a page, is shown or copied."""


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
        damaged: directories of runs whose record is not whole, newest first.
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
    damaged: tuple[DamagedRecord, ...] = ()

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
        settings = self.system.configure(run.scale)
        usual = {name: plain(getattr(settings, name)) for name in self.system.options}
        return {name: value for name, value in run.config.items() if name not in usual or usual[name] != value}

    def find(self, name: str) -> RunResult | None:
        """Return the run in the directory of that name."""
        return next((run for run in self.runs if run.directory is not None and run.directory.name == name), None)


class Store:
    """A results store; records that have not changed since are not read again."""

    def __init__(self, runs: Path) -> None:
        self.path = runs
        self._known: dict[Path, tuple[tuple[int, int], RunResult | DamagedRecord]] = {}

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
        found = list(self._records(slug))
        runs = tuple(record for record in found if isinstance(record, RunResult))
        damaged = tuple(record for record in found if isinstance(record, DamagedRecord))
        if slug not in registry.slugs():
            return _unknown(slug, runs, damaged) if found else None
        try:
            system = registry.load(slug)
        except Exception as error:
            # A missing extra or a broken file of one system is shown on its page; the others have theirs.
            return _broken(slug, error, runs, damaged)
        summary, _, description = system.description.partition("\n")
        about = (slug, system.family, system.title, system.paper, summary, description.strip())
        return Entry(*about, system, "", runs, damaged)

    def _records(self, slug: str) -> Iterator[RunResult | DamagedRecord]:
        for directory in run_directories(self.path, slug):
            if not SAFE_NAME.fullmatch(directory.name):
                continue
            try:
                state = (directory / "result.json").lstat()
                mark = (state.st_mtime_ns, state.st_size)
                former = self._known.get(directory)
                if former is None or former[0] != mark or _may_end(former[1]):
                    former = self._known[directory] = (mark, read_record(directory))
            except FileNotFoundError:  # removed since the folder was listed
                continue
            yield former[1]


def _may_end(record: RunResult | DamagedRecord) -> bool:
    """Whether the same file can mean another status later: its process may die."""
    return isinstance(record, RunResult) and record.status in ("running", "killed")


def artifact_files(run: RunResult, artifact: Artifact) -> list[str]:
    """Return the names of an artifact's files that lie in the run's directory."""
    if run.directory is None:
        return []
    return [
        name
        for name in artifact.files
        if SAFE_NAME.fullmatch(name)
        and Path(name).suffix in ENDINGS.get(artifact.kind, ())
        and not (run.directory / name).is_symlink()
        and (run.directory / name).is_file()
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


def _unknown(slug: str, runs: tuple[RunResult, ...], damaged: tuple[DamagedRecord, ...]) -> Entry:
    if not runs:
        return Entry(slug, "other", slug, "", "", "", None, "There is no system of that name.", (), damaged)
    problem = "This version of the library has no system of that name; the results are of another one."
    latest = runs[0]
    return Entry(slug, latest.family, latest.title or slug, latest.paper, "", "", None, problem, runs, damaged)


def _broken(slug: str, error: Exception, runs: tuple[RunResult, ...], damaged: tuple[DamagedRecord, ...]) -> Entry:
    line = "".join(traceback.format_exception_only(error)).strip().splitlines()[-1]
    title, paper = (runs[0].title, runs[0].paper) if runs else (slug.replace("-", " ").capitalize(), "")
    problem = f"It cannot be imported: {line}"
    return Entry(slug, registry.family_of(slug), title, paper, "", "", None, problem, runs, damaged)
