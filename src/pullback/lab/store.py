"""The results store: ``runs/<slug>/<time>/``, one directory a run."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

from pullback.core.files import hold
from pullback.lab.result import LOCK, DamagedRecord, RunResult

__all__ = ["RunBusyError", "hold_run", "new_directory", "read_record", "read_results", "run_directories", "scan"]


class RunBusyError(RuntimeError):
    """Another process works on a run."""


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


@contextlib.contextmanager
def hold_run(directory: Path) -> Iterator[None]:
    """Work on a run: until the block ends or the process dies, nobody else can.

    Raises:
        RunBusyError: another process does.
        OSError: the file system has no locks.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(hold(directory / LOCK))
        except BlockingIOError:
            raise RunBusyError(f"another process works on {directory}") from None
        yield


def scan(runs: Path, slug: str | None = None) -> Iterator[RunResult | DamagedRecord]:
    """Yield the records in a store, newest first, and in their place those that are damaged.

    A directory without ``result.json`` is a run about to start.
    """
    for directory in run_directories(runs, slug):
        with contextlib.suppress(FileNotFoundError):  # removed since the folder was listed
            yield read_record(directory)


def read_record(directory: Path) -> RunResult | DamagedRecord:
    """Return the record in a directory of a store, which is called as its system, or what is wrong with it.

    Raises:
        FileNotFoundError: there is none.
    """
    try:
        result = RunResult.read(directory)
    except DamagedRecord as damaged:
        return damaged
    if result.slug != directory.parent.name:
        return DamagedRecord(directory, f"slug is that of {ascii(result.slug)[:40]}")
    return result


def read_results(runs: Path, slug: str | None = None) -> Iterator[RunResult]:
    """Yield the results in a store, newest first; a damaged record is passed over with a warning."""
    for found in scan(runs, slug):
        if isinstance(found, RunResult):
            yield found
        else:
            warnings.warn(str(found), stacklevel=2)


def run_directories(runs: Path, slug: str | None = None) -> list[Path]:
    """Return the directories in a store that hold a record, newest first."""
    directories = [path.parent for path in runs.glob(f"{slug or '*'}/*/result.json")]
    return sorted(directories, key=lambda d: (_natural(d.name), d.parent.name), reverse=True)


def _natural(name: str) -> tuple[str, int]:
    """``20260131-120000-10`` sorts after ``20260131-120000-9``."""
    day, _, rest = name.partition("-")
    clock, _, number = rest.partition("-")
    return f"{day}-{clock}", int(number) if number.isdecimal() else 1
