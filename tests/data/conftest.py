"""A package index made on the spot: small wheels, a source that pins them, an empty cache."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pullback.data import cache, fetching, sources

Made = tuple[sources.Source, Path]


def make_wheel(folder: Path, name: str, files: dict[str, bytes]) -> Path:
    """Write a wheel that pip accepts, with the data ``files`` in it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        for member, content in files.items():
            wheel.writestr(member, content)
        wheel.writestr(f"{info}/LICENSE", "Permission is granted.")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Point the cache at an empty folder."""
    root = tmp_path / "cache"
    monkeypatch.setenv("PULLBACK_DATA", str(root))
    return root


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_cache: Path) -> Callable[..., Made]:
    """Return a function that makes a wheel in a local index, and the source ``planted`` that pins it."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))

    def make(sha256: str | None = None, **changes: object) -> Made:
        wheel = make_wheel(tmp_path / "index", "planted", {"planted/numbers.csv": b"a,b\n1,2\n3,4\n"})
        digest = sha256 or hashlib.sha256(wheel.read_bytes()).hexdigest()
        package = sources.Package("pip", "planted", "1.0", digest, wheel.stat().st_size)
        fields: dict[str, object] = {
            "name": "planted",
            "summary": "four numbers",
            "packages": (package,),
            "licence": "MIT",
            "origin": "made here",
            "families": ("core",),
            "members": {"table": sources.Member("planted", "planted/numbers.csv")},
            "licences": (sources.Member("planted", "planted-1.0.dist-info/LICENSE"),),
            "build": _build,
        }
        source = sources.Source(**{**fields, **changes})  # type: ignore[arg-type]
        for module in (sources, cache, fetching):
            monkeypatch.setattr(module, "SOURCES", {**sources.SOURCES, "planted": source})
        return source, wheel

    return make


def _build(members: dict[str, bytes]) -> dict[str, np.ndarray]:
    rows = members["table"].decode().splitlines()[1:]
    return {"values": np.array([[float(v) for v in row.split(",")] for row in rows])}
