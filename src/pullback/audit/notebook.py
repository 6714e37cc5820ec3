"""Notebooks as programs: their code cells in order, each with lines of its own."""

from __future__ import annotations

import json
import linecache
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import CodeType

__all__ = ["cell_path", "compile_cells", "read_cells"]

_WRAPPERS = frozenset({"time", "timeit", "capture", "prun", "python", "python3"})
"""Cell magics whose cell is Python all the same."""
_SHELL = re.compile(r"^\s*(?:[%!?]|[\w.]+\s*=\s*[%!]|[\w.]+\?{1,2}\s*$)")
"""A line that only IPython understands: a magic, a shell command, a question."""


def cell_path(path: str | os.PathLike[str], number: int) -> str:
    """Return the name under which a cell's lines are known.

    Args:
        path: the notebook.
        number: of the cell among its code cells, from 1.

    Example:
        >>> cell_path("train.ipynb", 3)
        'train.ipynb[3]'
    """
    return f"{os.fspath(path)}[{number}]"


def read_cells(path: str | os.PathLike[str]) -> list[str]:
    """Return the text of each code cell.

    Args:
        path: an ``.ipynb`` file.

    Raises:
        ValueError: the file is no notebook.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise _no_notebook(path, f"is not UTF-8: {error}") from error
    except json.JSONDecodeError as error:
        raise _no_notebook(path, f"is not JSON: {error}") from error
    cells = content.get("cells") if isinstance(content, Mapping) else None
    if not isinstance(cells, list):
        raise _no_notebook(path, "has no list of cells")
    texts: list[str] = []
    for number, cell in enumerate(cells, 1):
        if not isinstance(cell, Mapping):
            raise _no_notebook(path, f"has an entry {number} that is no cell")
        if cell.get("cell_type") == "code":
            source = cell.get("source")
            lines = [source] if isinstance(source, str) else source
            if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
                raise _no_notebook(path, f"has a cell {number} without text")
            texts.append("".join(lines))
    return texts


def _no_notebook(path: str | os.PathLike[str], fault: str) -> ValueError:
    return ValueError(f"path must be a notebook of format 4, got {os.fspath(path)!r}, which {fault}")


def compile_cells(path: str | os.PathLike[str], cells: Iterable[str]) -> Iterator[CodeType]:
    """Yield the code of each cell; magics and shell commands are left out, line numbers stay.

    ``linecache`` knows the cells' text, so that tracebacks and reports can show it.

    Args:
        path: the notebook.
        cells: the text of its code cells, from :func:`read_cells`.

    Raises:
        SyntaxError: a cell is not Python.
    """
    for number, source in enumerate(cells, 1):
        name = cell_path(path, number)
        linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
        yield compile(_without_magics(source), name, "exec")


def _without_magics(source: str) -> str:
    lines = source.split("\n")
    first = next((i for i, line in enumerate(lines) if line.strip()), 0)
    if lines[first].startswith("%%"):
        if lines[first][2:].split(maxsplit=1)[:1] not in [[word] for word in _WRAPPERS]:
            return ""
        lines[first] = ""
    plain = _try(lines)
    return plain if plain is not None else "\n".join(_quiet(line) for line in lines)


def _try(lines: list[str]) -> str | None:
    """Return the text if it is Python as it stands: then nothing in it is a magic, not even ``%`` at a line's start."""
    text = "\n".join(lines)
    try:
        compile(text, "<cell>", "exec")
    except SyntaxError:
        return None
    return text


def _quiet(line: str) -> str:
    return line[: len(line) - len(line.lstrip())] + "pass" if _SHELL.match(line) else line
