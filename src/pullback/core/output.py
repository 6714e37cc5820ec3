"""Standard output and error while code of somebody else runs."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

__all__ = ["lend_output"]


@contextlib.contextmanager
def lend_output(*, to_stderr: bool = False) -> Iterator[None]:
    """Let code run that may close, replace or redirect standard output and error; afterwards they are as they were.

    Args:
        to_stderr: whatever is written to standard output inside the block goes to standard error: by ``print``, by
            ``os.write`` to descriptor 1, and by child processes.

    Example:
        >>> with lend_output(to_stderr=True):
        ...     print("for people")
        >>> with lend_output():
        ...     sys.stdout = None
        >>> print("here again")
        here again
    """
    former = sys.stdout, sys.stderr
    _flush(*former)
    saved = {number: handle for number in (1, 2) if (handle := _duplicate(number)) is not None}
    try:
        if to_stderr:
            if 2 in saved:
                os.dup2(2, 1)
            sys.stdout = sys.stderr
        yield
    finally:
        _flush(sys.stdout, sys.stderr, *former)
        for number, handle in saved.items():
            os.dup2(handle, number)
            os.close(handle)
        sys.stdout, sys.stderr = (_open_again(stream, number) for number, stream in enumerate(former, 1))


def _duplicate(number: int) -> int | None:
    try:
        return os.dup(number)
    except OSError:  # the process was started without it
        return None


def _flush(*streams: Any) -> None:
    for stream in streams:
        # Closed, detached or replaced by something else; a reader that has left shows when the next line is printed.
        with contextlib.suppress(ValueError, OSError, AttributeError):
            stream.flush()


def _open_again(stream: Any, number: int) -> Any:
    """The stream, or a new one on its descriptor where the code has closed or detached it."""
    try:
        stream.writable()
    except ValueError:
        return open(number, "w", encoding="utf-8", errors="replace", closefd=False)
    except AttributeError:  # none at all, or an object of a test that has only ``write``
        return stream
    return stream
