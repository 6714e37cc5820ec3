"""What the commands print: tables for people on standard output, or JSON and nothing else there."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pullback.core.errors import UsageError
from pullback.lab.decode import encode

__all__ = [
    "StandardOutput",
    "UserCodeError",
    "check_file",
    "check_folder",
    "complain",
    "prepare_streams",
    "print_json",
    "print_line",
    "print_table",
]


class UserCodeError(RuntimeError):
    """Code that the user gave raised."""


class StandardOutput(Console):
    """Rich on standard output; a reader that has left is for :func:`pullback.cli.app.main` to see.

    In a pipe nobody reads columns: no line is cut or wrapped to a made-up width.
    """

    def __init__(self) -> None:
        super().__init__(width=None if sys.stdout.isatty() else 2000)

    def on_broken_pipe(self) -> None:
        """Pass the error on (Rich itself would exit with status 1)."""
        raise BrokenPipeError


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


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[Any]], *, fold: Sequence[str] = (), width: int | None = None
) -> None:
    """Print a table on standard output.

    Args:
        columns: their headings; one that begins with ``>`` is right-aligned.
        rows: a value a column.
        fold: headings of the columns whose text may wrap; the others keep their width. None: all may wrap.
        width: most columns of text that it takes; by default those of the terminal, in a pipe as many as it needs.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        heading = column.removeprefix(">")
        table.add_column(
            heading,
            justify="right" if column.startswith(">") else "left",
            no_wrap=bool(fold) and heading not in fold,
            overflow="fold",
        )
    for row in rows:
        table.add_row(*[value if isinstance(value, Text) else Text(str(value)) for value in row])
    console = StandardOutput()
    console.print(table, width=None if width is None else min(width, console.width))
