"""Text against text: the changed lines of a rewriting, their diff, and the patch of several rewritings."""

from __future__ import annotations

import ast
import difflib
import os
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path

from pullback.audit.report.remedy import Change, Remedy
from pullback.core.files import write_atomically

__all__ = ["applied", "changes_between", "diff_of", "patch", "write"]


def changes_between(old: str, new: str, imports: Iterable[str] = ()) -> tuple[Change, ...]:
    """Return the changed lines from ``old`` to ``new``, from the top down, with import lines that come on top.

    Example:
        >>> changes_between("a = 1\\nb = 2\\n", "a = 1\\nb = 3\\n")
        (Change(line=2, count=1, text='b = 3\\n'),)
    """
    found = _changed(old, new)
    text = "".join(f"{line}\n" for line in imports)
    return (Change(_below_imports(old), 0, text), *found) if text else found


@lru_cache(maxsize=16)
def _changed(old: str, new: str) -> tuple[Change, ...]:
    before, after = old.splitlines(keepends=True), new.splitlines(keepends=True)
    # A rewriting leaves most of a file alone: what is alike at both ends is not compared line against line.
    first = _alike(before, after)
    last = _alike(
        before[: first - 1 : -1] if first else before[::-1], after[: first - 1 : -1] if first else after[::-1]
    )
    before, after = before[first : len(before) - last], after[first : len(after) - last]
    matcher = difflib.SequenceMatcher(None, before, after, autojunk=False)
    codes = matcher.get_opcodes()
    return tuple(Change(first + i + 1, j - i, "".join(after[k:m])) for tag, i, j, k, m in codes if tag != "equal")


def _alike(a: list[str], b: list[str]) -> int:
    """How many lines two lists begin with alike."""
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _below_imports(text: str) -> int:
    """The line below the last import at the top level, else below the docstring, else the first statement."""
    tree = ast.parse(text)
    last = 0
    for index, statement in enumerate(tree.body):
        docstring = index == 0 and isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        if isinstance(statement, ast.Import | ast.ImportFrom) or docstring:
            last = statement.end_lineno or statement.lineno
        elif last:
            break
    return last + 1


def diff_of(old: str, changes: Iterable[Change]) -> str:
    """Return the changes as ``-`` and ``+`` lines, apart from each other by ``@@`` lines with their line number."""
    lines = old.splitlines()
    parts = []
    for change in changes:
        parts.append(f"@@ line {change.line} @@")
        parts += [f"-{line}" for line in lines[change.line - 1 : change.line - 1 + change.count]]
        parts += [f"+{line}" for line in change.text.splitlines()]
    return "\n".join(parts)


def applied(text: str, changes: Iterable[Change]) -> str:
    """Return a text with changes made; of changes that meet, the first is made.

    Example:
        >>> applied("a\\nb\\n", [Change(2, 1, "c\\n")])
        'a\\nc\\n'
    """
    lines = text.splitlines(keepends=True)
    kept: list[Change] = []
    for change in changes:
        if change not in kept and not any(_meet(change, other) for other in kept):
            kept.append(change)
    for change in sorted(kept, key=lambda c: (c.line, c.count), reverse=True):
        if change.line > 1 and lines[change.line - 2 : change.line - 1] and not lines[change.line - 2].endswith("\n"):
            lines[change.line - 2] += "\n"
        lines[change.line - 1 : change.line - 1 + change.count] = [change.text]
    return "".join(lines)


def _meet(a: Change, b: Change) -> bool:
    return a.line < b.line + b.count and b.line < a.line + a.count


def patch(remedies: Iterable[Remedy], root: str | os.PathLike[str] = ".") -> str:
    """Return remedies as one unified diff that ``git apply`` and ``patch -p1`` take.

    Args:
        remedies: of any files; of two that change the same line the first is taken.
        root: folder to which the names of the files are relative where they lie below it.
    """
    texts = []
    for file, (old, new) in _texts(remedies).items():
        path = Path(file).resolve()
        base = Path(root).resolve()
        name = path.relative_to(base).as_posix() if path.is_relative_to(base) else path.as_posix().lstrip("/")
        lines = difflib.unified_diff(
            old.splitlines(keepends=True), new.splitlines(keepends=True), f"a/{name}", f"b/{name}"
        )
        for line in lines:
            texts.append(line if line.endswith("\n") else line + "\n\\ No newline at end of file\n")
    return "".join(texts)


def write(remedies: Iterable[Remedy]) -> list[str]:
    """Change the files themselves, each atomically; return their names."""
    texts = _texts(remedies)
    for file, (_, new) in texts.items():
        write_atomically(Path(file), new.encode())
    return list(texts)


def _texts(remedies: Iterable[Remedy]) -> Mapping[str, tuple[str, str]]:
    """The old and the new text of every file."""
    changes: dict[str, list[Change]] = {}
    for remedy in remedies:
        known = changes.setdefault(remedy.file, [])
        if not any(_meet(a, b) for a in remedy.changes for b in known if a != b):
            known += [c for c in remedy.changes if c not in known]
    texts = {}
    for file, found in changes.items():
        old = Path(file).read_text(encoding="utf-8")
        texts[file] = (old, applied(old, found))
    return texts
