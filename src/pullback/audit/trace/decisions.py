"""What Python decides with a value at a place in the source: an ``if``, a loop, an index, and on which lines."""

from __future__ import annotations

import ast
import linecache
from dataclasses import dataclass
from functools import cache

from pullback.audit.trace.sites import Place

__all__ = ["Decision", "decision_at", "readers_of"]


@dataclass(frozen=True)
class Decision:
    """A statement or expression whose course depends on a value.

    Attributes:
        kind: ``"if"``, ``"while"``, ``"for"`` (the number of rounds), or ``"value"`` (a bound, an index, a flag).
        lines: first and last line of what is run or not, the statement itself for a value.
        leaves: whether one side ends a loop or a round of it, or returns.
        rounds: the lines of the loop around a decision that leaves.
    """

    kind: str
    lines: tuple[tuple[int, int], ...]
    leaves: bool = False
    rounds: tuple[int, int] | None = None


def decision_at(where: Place) -> Decision:
    """Return what the value at a place decides."""
    at = (where.line, max(where.column - 1, 0))
    best: tuple[int, Decision] | None = None
    for start, end, decision in _decisions(where.file):
        inside = start <= at <= end if where.column else start[0] <= at[0] <= end[0]
        size = (end[0] - start[0]) * 1000 + end[1] - start[1]
        if inside and (best is None or size < best[0]):
            best = (size, decision)
    return best[1] if best is not None else Decision("value", ((where.line, where.line),))


@cache
def readers_of(where: Place) -> tuple[tuple[int, int], ...]:
    """Return the first and last lines of the statements that read what the statement at a place computes.

    Names are followed from assignment to assignment, downwards within the function.
    """
    try:
        tree = ast.parse("".join(linecache.getlines(where.file)))
    except (SyntaxError, ValueError):
        return ()
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    around = [f for f in functions if f.lineno <= where.line <= (f.end_lineno or f.lineno)]
    scope: ast.AST = max(around, key=lambda f: f.lineno) if around else tree
    simple = ast.Assign | ast.AugAssign | ast.AnnAssign | ast.Expr | ast.Return
    statements = sorted((n for n in ast.walk(scope) if isinstance(n, simple)), key=lambda n: (n.lineno, n.col_offset))
    names: set[str] = set()
    found = []
    for statement in statements:
        first, last = statement.lineno, statement.end_lineno or statement.lineno
        here = first <= where.line <= last
        reads = any(
            isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load) and n.id in names for n in ast.walk(statement)
        )
        if reads and first > where.line:
            found.append((first, last))
        if here or reads:
            names |= {n.id for n in ast.walk(statement) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return tuple(found)


_Entry = tuple[tuple[int, int], tuple[int, int], Decision]


@cache
def _decisions(filename: str) -> tuple[_Entry, ...]:
    try:
        tree = ast.parse("".join(linecache.getlines(filename)))
    except (SyntaxError, ValueError):  # a notebook cell with magics, or no source at all
        return ()
    found: list[_Entry] = []
    rounds: dict[ast.AST, tuple[int, int]] = {}
    for node in ast.walk(tree):  # from the outside in: the innermost loop has the last word
        if isinstance(node, ast.For | ast.While):
            rounds |= dict.fromkeys((n for n in ast.walk(node) if isinstance(n, ast.If)), _span(node.body))
        if isinstance(node, ast.If):
            sides = (_span(node.body), *((_span(node.orelse),) if node.orelse else ()))
            leaves = _leaves(node.body) or _leaves(node.orelse)
            found.append(_entry(node.test, Decision("if", sides, leaves, rounds.get(node) if leaves else None)))
        elif isinstance(node, ast.While):
            found.append(_entry(node.test, Decision("while", (_span(node.body),))))
        elif isinstance(node, ast.For):
            found.append(_entry(node.iter, Decision("for", (_span(node.body),))))
        elif isinstance(node, ast.IfExp):
            found.append(_entry(node.test, Decision("if", ((node.lineno, node.end_lineno or node.lineno),))))
        elif isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign | ast.Expr | ast.Return):
            found.append(_entry(node, Decision("value", ((node.lineno, node.end_lineno or node.lineno),))))
    return tuple(found)


def _entry(node: ast.expr | ast.stmt, decision: Decision) -> _Entry:
    end = (node.end_lineno or node.lineno, node.end_col_offset or node.col_offset)
    return (node.lineno, node.col_offset), end, decision


def _span(body: list[ast.stmt]) -> tuple[int, int]:
    return body[0].lineno, body[-1].end_lineno or body[-1].lineno


def _leaves(body: list[ast.stmt]) -> bool:
    return any(isinstance(statement, ast.Break | ast.Continue | ast.Return | ast.Raise) for statement in body)
