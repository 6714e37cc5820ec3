"""One piece of advice: which operation it answers, and how the user's syntax tree becomes another."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import inf

from pullback.audit.remedy.draft import Draft
from pullback.audit.remedy.syntax import Source

__all__ = ["ANY", "EXACT", "SMALL", "Place", "Template", "number"]

EXACT = 1e-4
"""The loss keeps its value up to rounding."""
SMALL = 0.1
"""The loss changes by at most a tenth."""
ANY = inf
"""The loss becomes another one (a draw, a smooth count): the report says by how much."""


@dataclass(frozen=True)
class Place:
    """Where a template is asked to rewrite.

    Attributes:
        source: the file.
        node: the expression (or statement) that the finding names.
        operation: torch's name of the operation.
        alike: other nodes of the same operation in the same statement; they are rewritten with it.
    """

    source: Source
    node: ast.AST
    operation: str
    alike: tuple[ast.AST, ...] = ()


@dataclass(frozen=True)
class Template:
    """One piece of advice.

    Attributes:
        block: dotted name under ``pullback``, or the torch function, that the new line is made of.
        what: one sentence on what changes.
        codes: codes of findings that it answers, or their first part.
        operations: torch names that it answers, also the words of ``pullback find``.
        example: lines in which the operation stands; ``pullback find`` shows them rewritten.
        rewrite: from a place to drafts, the best first; none where the syntax does not fit.
        change: largest relative change of the loss that it may cause.
    """

    block: str
    what: str
    codes: tuple[str, ...]
    operations: tuple[str, ...]
    example: str
    rewrite: Callable[[Place], Iterator[Draft]]
    change: float = EXACT


def number(node: ast.AST | None) -> int | float | None:
    """Return the number that an expression writes, ``None`` if it is none."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = number(node.operand)
        return None if value is None else -value
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        return node.value
    return None
