"""Runs the code blocks of a page of the guide in order, as its reader would.

=======================  ==========================================================================
block                    what happens
=======================  ==========================================================================
``python``               runs, in one namespace for the whole page
``text``                 is what the block before it printed, with ``...`` for whatever varies
``{code-block}`` with    is written to a file of that name
``:caption: NAME``
``console``              each ``$ command`` runs in the page's folder; what follows is its output. A
                         command that fails on purpose ends in ``# exit status N``
=======================  ==========================================================================

Any other block is an error: nothing on a page is untested.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_FENCE = re.compile(r"^```(\S[^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_NOT_CODE = ("{toctree}", "{figure}", "{image}", "{note}", "{tip}", "{literalinclude}")
_SAME = doctest.OutputChecker()
_FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@dataclass(frozen=True)
class Block:
    """One block of a page: its kind, the name of its file if it has one, its text, its line in the page."""

    kind: str
    name: str | None
    text: str
    line: int


def blocks(page: str) -> list[Block]:
    """Return the code blocks of a page."""
    found = []
    for match in _FENCE.finditer(page):
        kind, text = match[1].strip(), match[2]
        if kind.startswith(_NOT_CODE):
            continue
        name = None
        if kind.startswith("{code-block}"):
            caption = re.match(r":caption: (\S+)\n\n?", text)
            assert caption is not None, f"a code-block needs a caption: {match[0]}"
            kind, name, text = "file", caption[1], text[caption.end() :]
        found.append(Block(kind, name, text, page[: match.start()].count("\n") + 1))
    return found


def run(page: Path, folder: Path) -> None:
    """Run every block of ``page`` in ``folder``.

    Raises:
        AssertionError: a block printed something else, a command ended otherwise, or a block is of an unknown kind.
    """
    scope: dict[str, Any] = {"__name__": "page"}
    printed = ""
    for block in blocks(page.read_text(encoding="utf-8")):
        where = f"{page.name}:{block.line}"
        if block.kind == "python":
            printed = _execute(block, folder / f"{page.stem}_{block.line}.py", scope)
        elif block.kind == "text":
            _compare(block.text, printed, where)
        elif block.kind == "file":
            (folder / str(block.name)).write_text(block.text, encoding="utf-8")
        elif block.kind == "console":
            _converse(block, folder, where)
        else:
            raise AssertionError(f"{where}: a block of kind {block.kind!r} is not run")


def _execute(block: Block, file: Path, scope: dict[str, Any]) -> str:
    """Run a block from a file of its own, whose source audit can read, and return what it prints."""
    file.write_text(block.text, encoding="utf-8")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(block.text, str(file), "exec"), scope)
    return printed.getvalue()


def _converse(block: Block, folder: Path, where: str) -> None:
    """Run the commands of a block and compare what each prints with the lines below it."""
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        command, _, expected = part.partition("\n")
        while command.endswith("\\"):
            more, _, expected = expected.partition("\n")
            command = f"{command[:-1]} {more.strip()}"
        status = re.search(r"# exit status (\d+)$", command)
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=folder,
            env={
                **os.environ,
                "PATH": f"{folder}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
                "COLUMNS": "120",
                "OMP_NUM_THREADS": "1",
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == int(status[1] if status else 0), f"{where}: {command}\n{done.stdout}{done.stderr}"
        if expected.strip():
            _compare(expected, done.stdout, f"{where}: {command}")


def _compare(expected: str, printed: str, where: str) -> None:
    assert _SAME.check_output(expected, printed, _FLAGS), f"{where} should print\n{expected}\nbut prints\n{printed}"
