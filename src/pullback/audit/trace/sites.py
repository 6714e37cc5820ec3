"""Where in the user's source an operation was called."""

from __future__ import annotations

import ast
import dis
import linecache
import os
import sys
import sysconfig
from dataclasses import dataclass
from functools import cache
from types import CodeType, FrameType
from typing import NamedTuple

import torch

import pullback

__all__ = [
    "Place",
    "Site",
    "behind_relaxed",
    "in_block",
    "in_branch_test",
    "is_user_file",
    "is_user_frame",
    "locate",
    "own_step",
    "place",
    "silenced",
]

_PACKAGE = os.path.dirname(os.path.abspath(pullback.__file__)) + os.sep
_TORCH = os.path.dirname(os.path.abspath(torch.__file__)) + os.sep
_PYTHON = tuple({sysconfig.get_paths()[k] + os.sep for k in ("stdlib", "platstdlib", "purelib", "platlib")})
_OWN_PROGRAMS = (os.path.join(_PACKAGE, "systems") + os.sep, os.path.join(_PACKAGE, "demo") + os.sep)
_RELAX = os.path.join(_PACKAGE, "relax") + os.sep


class Site(NamedTuple):
    """A call site: the code object and instruction of the user's frame, and of the library frame it went through."""

    code: CodeType
    instruction: int
    line: int
    library: tuple[str, int] | None


@dataclass(frozen=True)
class Place:
    """A call site in terms of source text; columns are 1-based, 0 where unknown."""

    file: str
    line: int
    column: int
    end_column: int
    end_line: int
    source: str


@cache
def _role(filename: str) -> int:
    """Return 0 for torch and this package, 1 for other libraries, 2 for the user's code."""
    if filename.startswith(_OWN_PROGRAMS):
        return 2
    if filename.startswith((_TORCH, _PACKAGE)) or filename.startswith(("<frozen", "<@beartype", "<eval_with_key")):
        return 0
    path = os.path.abspath(filename)
    if path.startswith(_PYTHON) or f"{os.sep}site-packages{os.sep}" in path:
        return 1
    return 2


def locate(frame: FrameType, libraries: bool = False) -> Site:
    """Walk outwards from ``frame`` to the user's call; with ``libraries`` to the innermost frame outside torch."""
    library: tuple[str, int] | None = None
    outermost: FrameType = frame
    walk: FrameType | None = frame
    while walk is not None:
        code = walk.f_code
        role = _role(code.co_filename)
        if role == 2 or (role == 1 and libraries):
            return Site(code, _instruction(walk), walk.f_lineno, library)
        if role == 1 and library is None:
            library = (code.co_filename, walk.f_lineno)
            outermost = walk
        walk = walk.f_back
    return Site(outermost.f_code, _instruction(outermost), outermost.f_lineno, library)


def behind_relaxed(frame: FrameType) -> FrameType:
    """Return the frame that made a call: what :func:`pullback.relaxed` passes it on through is passed over.

    What a soft counterpart calls for itself is its own call.
    """
    while frame.f_back is not None:
        code = frame.f_code
        if not code.co_filename.startswith(_RELAX) or code.co_name not in _PASSES_ON:
            break
        frame = frame.f_back
    return frame


_PASSES_ON = frozenset({"__torch_function__", "relax", "relax_call", "_relax", "_pass", "_through_subclass"})


def _instruction(frame: FrameType) -> int:
    """Return where a frame stands, the same at its first visit and at later ones.

    Python 3.11 calls a built-in function in the second of two instructions until the line is warm, and in the first,
    PRECALL, from then on.
    """
    code, last = frame.f_code, frame.f_lasti
    known = _precalls.get(id(code))
    if known is None:
        found = frozenset(i.offset for i in dis.get_instructions(code) if i.opname == "PRECALL")
        known = _precalls[id(code)] = (code, found)
    return last + _TO_CALL if last in known[1] else last


_precalls: dict[int, tuple[CodeType, frozenset[int]]] = {}
"""By id of the code, which is kept so that no other one gets its id."""
_TO_CALL = 4
"""Bytes from PRECALL, and its cache, to CALL."""


def is_user_frame(frame: FrameType) -> bool:
    """Whether the code of a frame is the user's, not torch's, a library's, or this package's."""
    return _role(frame.f_code.co_filename) == 2


def is_user_file(filename: str) -> bool:
    """Whether code of a file is the user's: neither torch's, nor this package's, nor an installed library's."""
    return _role(filename) == 2


def own_step(frame: FrameType, name: str) -> tuple[bool, bool]:
    """Return whether this package called ``name`` for itself, inside a block, and whether ``relaxed`` was at work.

    What ``relaxed`` lets pass is the user's call.
    """
    walk: FrameType | None = frame
    while walk is not None and walk.f_code.co_filename.startswith((_TORCH, "<frozen", "<@beartype")):
        walk = walk.f_back
    if walk is None or not walk.f_code.co_filename.startswith(_PACKAGE):
        return False, False
    if walk.f_code.co_filename.startswith(_OWN_PROGRAMS):
        return False, False
    if not walk.f_code.co_filename.startswith(_RELAX):
        return True, False
    return getattr(walk.f_locals.get("func"), "__name__", None) != name, True


def place(code: CodeType, instruction: int, line: int) -> Place:
    """Return file, line, columns and text of an instruction."""
    return _place(code, code.co_filename, instruction, line)  # equal code of two files is equal to Python


@cache
def _place(code: CodeType, file: str, instruction: int, line: int) -> Place:
    column = end_column = 0
    end_line = line
    positions = list(code.co_positions())
    if 0 <= instruction // 2 < len(positions):
        start, end, first, last = positions[instruction // 2]
        if start is not None and first is not None and last is not None:
            end_line = end or line
            if start <= line <= end_line:
                column = first + 1 if start == line else 0
                end_column = last + 1 if end == line else 0
    source = linecache.getline(file, line).rstrip("\n")
    return Place(file, line, column, end_column, end_line, source)


def silenced(where: Place, ignore: tuple[str, ...]) -> bool:
    """Whether ``# audit: ok`` stands on a line of the call, or ``ignore`` names ``file.py:12``, a file, or a folder."""
    for line in range(where.line, max(where.end_line, where.line) + 1):
        text = linecache.getline(where.file, line)
        if "#" in text and "audit: ok" in text.split("#", 1)[1]:
            return True
    for entry in ignore:
        name, _, number = entry.rpartition(":")
        if not name or not number.isdigit():
            name, number = entry, ""
        if (where.file == name or where.file.endswith(os.sep + name)) and (not number or int(number) == where.line):
            return True
    return False


@cache
def _tests(filename: str) -> tuple[tuple[int, int, int, int], ...]:
    """Return the (line, column, end line, end column) of every condition of ``if``, ``while``, ``assert`` in a file."""
    text = "".join(linecache.getlines(filename))
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):  # a notebook cell with magics, or no source at all: then no condition is known
        return ()
    conditions = [n.test for n in ast.walk(tree) if isinstance(n, ast.If | ast.While | ast.IfExp)]
    return tuple((c.lineno, c.col_offset, c.end_lineno or c.lineno, c.end_col_offset or 0) for c in conditions)


def in_branch_test(where: Place) -> bool:
    """Whether the call is part of the condition of an ``if``, ``while`` or conditional expression."""
    for line, column, end_line, end_column in _tests(where.file):
        after = (where.line, where.column - 1) >= (line, column)
        if after and (where.line, where.column - 1) <= (end_line, end_column):
            return True
    return False


@cache
def _blocks(filename: str) -> tuple[tuple[int, int, int], ...]:
    """Return (first line, first line of the body, last line) of every ``with`` statement in a file."""
    text = "".join(linecache.getlines(filename))
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):  # as of _tests
        return ()
    found = [n for n in ast.walk(tree) if isinstance(n, ast.With | ast.AsyncWith)]
    return tuple((n.lineno, n.body[0].lineno, n.end_lineno or n.lineno) for n in found)


def in_block(opening: Site, site: Site) -> bool:
    """Whether ``site`` stands, in the same function, inside the ``with`` statement that begins at ``opening``."""
    if opening.code is not site.code:
        return False
    for first, body, last in _blocks(opening.code.co_filename):
        if first <= opening.line < max(body, first + 1) and body <= site.line <= last:
            return True
    return False


def caller(depth: int) -> FrameType:
    """Return the frame ``depth`` levels above the caller of this function."""
    return sys._getframe(depth + 1)
