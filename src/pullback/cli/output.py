"""What every command prints: lines for people on standard output, or JSON and nothing else there."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path
from typing import Any

from pullback.core.errors import UsageError
from pullback.lab.decode import encode

__all__ = [
    "UserCodeError",
    "check_file",
    "check_folder",
    "complain",
    "prepare_streams",
    "print_json",
    "print_line",
]


class UserCodeError(RuntimeError):
    """Code that the user gave raised.

    Args:
        message: one line.
        trace: its traceback, to be shown above that line; empty where only ``--debug`` shows it.
    """

    def __init__(self, message: str, trace: str = "") -> None:
        super().__init__(message)
        self.trace = trace


def check_folder(name: str, path: Path) -> None:
    """Raise ``UsageError`` unless ``path`` is a folder or can become one."""
    existing = path.absolute()
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        raise UsageError(f"{name} must be a folder, got {str(path)!r}: {existing} is a file")


def prepare_streams() -> None:
    """Make standard output and error writable whatever the process was started with.

    A closed descriptor is nobody reading; a character that the reader's encoding lacks is shown as ``?``.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (until the process ends)
        elif isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")


def check_file(name: str, path: str | Path) -> None:
    """Raise ``UsageError`` unless ``path`` can be written as a file in an existing folder."""
    path = Path(path)
    # Not a device either: it would be replaced by a file.
    if (path.exists() and not path.is_file()) or not path.absolute().parent.is_dir():
        raise UsageError(f"{name} must be a file in an existing folder, got {str(path)!r}")


def complain(message: str) -> None:
    """Print one line on standard error."""
    print("pullback: " + " ".join(message.split()), file=sys.stderr)


def print_json(value: Any) -> None:
    """Print a JSON value on standard output; what strict JSON has no number for is a string, as in a record."""
    print(json.dumps(encode(value), indent=2, allow_nan=False))


def print_line(text: str = "") -> None:
    """Print a line on standard output as it is."""
    print(text)
