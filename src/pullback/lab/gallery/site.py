"""The static site: built beside its place, then put there as a whole."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from pullback.core.errors import UsageError
from pullback.lab.gallery.pages import MOST_RUNS, Pages, assets
from pullback.lab.gallery.store import Entry, Store, artifact_files
from pullback.lab.result import RunResult

__all__ = ["build"]

_MARK = ".pullback-gallery"
"""A file by which a folder is known as a site that may be replaced."""


def build(runs: str | Path, out: str | Path) -> Path:
    """Build the site of all systems with the results in a store. It needs no server and no network.

    A build that fails leaves the site as it was.

    Args:
        runs: the results store; it need not exist.
        out: folder of the site: new, empty, or a site that was built before.

    Returns:
        The start page, ``out/index.html``.

    Raises:
        UsageError: ``out`` holds something else, overlaps with ``runs`` or cannot be written.
    """
    runs, target = Path(runs), Path(out).resolve()
    _check_target(runs.resolve(), target, out)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise UsageError(f"out must be a folder one can write to, got {str(out)!r}: {error}") from error
    try:
        _write(Store(runs), new)
        new.chmod(0o755)
        _put(new, target)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    return Path(out) / "index.html"


def _check_target(runs: Path, target: Path, out: str | Path) -> None:
    if target == runs or target in runs.parents or runs in target.parents:
        raise UsageError(f"out must not overlap with the results store {runs}, got {str(out)!r}")
    if not target.exists():
        return
    if not target.is_dir() or (any(target.iterdir()) and not (target / _MARK).is_file()):
        raise UsageError(f"out must be a new or empty folder, or a site built before, got {str(out)!r}")


def _write(store: Store, folder: Path) -> None:
    pages, entries = Pages(), store.entries()
    for name, content in assets().items():
        (folder / name).write_bytes(content)
    (folder / "index.html").write_text(pages.index(entries), encoding="utf-8")
    for entry in entries:
        _write_system(pages, entry, folder / "systems" / entry.slug)
    (folder / _MARK).touch()


def _write_system(pages: Pages, entry: Entry, folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "index.html").write_text(pages.system(entry), encoding="utf-8")
    kept = list(entry.runs[:MOST_RUNS])
    if entry.shown is not None and all(run is not entry.shown for run in kept):
        kept.append(entry.shown)
    for run in kept:
        assert run.directory is not None
        own = folder / run.directory.name
        own.mkdir()
        (own / "index.html").write_text(pages.system(entry, run), encoding="utf-8")
        _copy(run, own)


def _copy(run: RunResult, folder: Path) -> None:
    assert run.directory is not None
    for artifact in run.artifacts:
        for name in artifact_files(run, artifact):
            shutil.copyfile(run.directory / name, folder / name)


def _put(new: Path, target: Path) -> None:
    """Two renames; should the second fail, the first is taken back."""
    if not target.exists():
        new.rename(target)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent)) / "former"
    target.rename(old)
    try:
        new.rename(target)
    except BaseException:
        old.rename(target)
        raise
    finally:
        shutil.rmtree(old.parent, ignore_errors=True)
