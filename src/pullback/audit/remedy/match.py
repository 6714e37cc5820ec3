"""The node of the user's syntax tree that a finding names."""

from __future__ import annotations

import ast
from collections import deque
from collections.abc import Iterator

from pullback.audit.remedy.syntax import Source, spelled
from pullback.audit.remedy.template import Place
from pullback.audit.report.findings import Finding

__all__ = ["places"]


def places(source: Source, finding: Finding) -> Iterator[Place]:
    """Yield the places that a finding may mean, the surest first.

    These are the expressions with the very columns of the finding, then those on its line that are written as its
    operation, then the line's statement as a whole.
    """
    here = list(_on_line(source.tree, finding.line))
    named = [n for n in here if isinstance(n, ast.expr | ast.AugAssign) and spelled(n, finding.operation)]
    exact = [n for n in here if isinstance(n, ast.expr) and _covers(source, n, finding)]
    exact.sort(key=lambda n: n not in named)
    statements = [n for n in here if isinstance(n, ast.stmt) and n.lineno == finding.line]
    decorators = [n for n in here if isinstance(n, ast.expr) and n.lineno == finding.line][:1]
    last = statements[-1:] or decorators or [n for n in here if isinstance(n, ast.stmt)][-1:]
    seen: set[ast.AST] = set()
    for node in [*exact, *named, *last]:
        if node not in seen:
            seen.add(node)
            alike = tuple(n for n in named if n is not node and type(n) is type(node))
            yield Place(source, node, finding.operation, alike if node in named else ())


def _on_line(tree: ast.AST, line: int) -> Iterator[ast.AST]:
    """The nodes that a line is of, in the order of ``ast.walk``; parts of a tree that are elsewhere are not walked."""
    waiting = deque([tree])
    while waiting:
        node = waiting.popleft()
        first = getattr(node, "lineno", None)
        if first is not None:
            within = first <= line <= (node.end_lineno or first)  # type: ignore[attr-defined]
            if within:
                yield node
            elif not any(d.lineno <= line for d in getattr(node, "decorator_list", ())):  # they stand above its line
                continue
        waiting.extend(ast.iter_child_nodes(node))


def _covers(source: Source, node: ast.expr, finding: Finding) -> bool:
    """Whether a node has the columns of a finding, which may count bytes or characters; 0 is unknown."""
    if not finding.column and not finding.end_column:
        return False
    line = source.line_start(finding.line)
    start, end = source.start(node) - line + 1, source.end(node) - line + 1
    starts = {start, node.col_offset + 1}
    ends = {end, (node.end_col_offset or 0) + 1}
    if finding.column and finding.end_column:
        return (
            node.lineno == node.end_lineno == finding.line and finding.column in starts and finding.end_column in ends
        )
    if finding.column:
        return node.lineno == finding.line and finding.column in starts and node.end_lineno != finding.line
    return node.end_lineno == finding.line and finding.end_column in ends
