"""Tables on standard output, by rich."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["StandardOutput", "print_table"]


class StandardOutput(Console):
    """Rich on standard output; a reader that has left is for :func:`pullback.cli.app.main` to see.

    In a pipe nobody reads columns: no line is cut or wrapped to a made-up width.
    """

    def __init__(self) -> None:
        super().__init__(width=None if sys.stdout.isatty() else 2000)

    def on_broken_pipe(self) -> None:
        """Pass the error on (Rich itself would exit with status 1)."""
        raise BrokenPipeError


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
