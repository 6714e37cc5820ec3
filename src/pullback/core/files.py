"""Files that are never seen half written, and locks that the system drops when their holder dies."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

__all__ = ["hold", "is_held", "remove_partial", "write_atomically"]

_PARTIAL = ".partial"


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader, or a kill at any moment, sees the old content or the new, never a part.

    Args:
        path: the file; its folder must exist.
        content: all of it.

    Raises:
        OSError: the folder is missing or not writable.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_atomically(Path(folder) / "note", b"whole")
        ...     (Path(folder) / "note").read_bytes()
        b'whole'
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_PARTIAL)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def remove_partial(folder: Path) -> None:
    """Remove what :func:`write_atomically` leaves anywhere in a folder when it is killed; nobody may be writing there.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     (Path(folder) / ".note.x1y2.partial").touch()
        ...     remove_partial(Path(folder))
        ...     list(Path(folder).iterdir())
        []
    """
    for path in folder.rglob(f".*{_PARTIAL}"):
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def hold(path: Path) -> Iterator[None]:
    """Hold the lock on a file, which is made where it is missing, until the block ends or the process dies.

    The kernel keeps the lock (``flock``), not the file: no process number, host name or clock has to be trusted, and
    over a network file system it holds between machines.

    Args:
        path: the file; its folder must exist.

    Raises:
        BlockingIOError: somebody else, in this process or another, holds it.
        OSError: the file cannot be made, or its file system has no locks.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder, hold(Path(folder) / "lock"):
        ...     is_held(Path(folder) / "lock")
        True
    """
    import fcntl  # not on every system; only runs need it

    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        for attempt in range(20):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:  # perhaps only by `is_held`, for a moment
                if attempt == 19:
                    raise
                time.sleep(0.01)
        yield
    finally:
        os.close(handle)


def is_held(path: Path) -> bool:
    """Return whether somebody holds the lock on a file; a missing file is held by nobody."""
    import fcntl

    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False
