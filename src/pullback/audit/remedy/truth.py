"""Truth values that Python decides and writes on: ``keep[i] = not bool(near.any())`` as tensor code.

``bool(a)`` becomes ``a``, ``not a`` ``torch.logical_not(a)``, ``a and b`` ``torch.logical_and(a, b)``: with the same
values, and in reach of ``relaxed`` and of every block for truth values, which a decision of Python is not.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator

from pullback.audit.remedy.departures import joined
from pullback.audit.remedy.draft import Draft
from pullback.audit.remedy.syntax import called
from pullback.audit.remedy.template import EXACT, Place, Template

__all__ = ["TEMPLATES"]

_WRITES = ast.Assign | ast.AugAssign | ast.AnnAssign | ast.Return | ast.Expr


def _as_tensor(place: Place) -> Iterator[Draft]:
    """The line's truth values as tensors; then also the tensors that the function builds from them."""
    statement = place.source.statement(place.node)
    if not isinstance(statement, _WRITES):
        return
    draft = Draft(place.source)
    _tensors(draft, statement)
    if draft.empty:
        return
    yield draft
    whole = Draft(place.source)
    scope = place.source.scope(place.node)
    _tensors(whole, scope)
    for call in ast.walk(scope):
        if isinstance(call, ast.Call) and called(call) in ("tensor", "as_tensor") and call.args:
            joined(whole, call)
    yield whole


def _tensors(draft: Draft, node: ast.AST) -> None:
    """Rewrite every truth value below a node that Python makes and hands on, the outermost with all inside it."""
    for statement in ast.walk(node):
        if not isinstance(statement, _WRITES):
            continue
        for part in ast.walk(statement):
            if not isinstance(part, ast.expr) or draft.changed(part) or not _decides(part):
                continue
            made = _text(draft, part)
            if made is not None:
                draft.put(part, made)


def _decides(node: ast.expr) -> bool:
    """Whether a node is ``bool(...)`` or ``.item()``, or ``not``, ``and``, ``or`` of such."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return _decides(node.operand) or isinstance(node.operand, ast.Call | ast.Compare)
    if isinstance(node, ast.BoolOp):
        return all(map(_decides, node.values))
    return isinstance(node, ast.Call) and (_is_bool(node) or _is_item(node))


def _is_bool(node: ast.Call) -> bool:
    return isinstance(node.func, ast.Name) and node.func.id == "bool" and len(node.args) == 1 and not node.keywords


def _is_item(node: ast.Call) -> bool:
    return called(node) == "item" and isinstance(node.func, ast.Attribute) and not node.args


def _text(draft: Draft, node: ast.expr) -> Callable[[], str] | None:
    torch = draft.module("torch")
    if isinstance(node, ast.UnaryOp):
        return lambda: f"{torch}.logical_not({_inner(draft, node.operand)})"
    if isinstance(node, ast.BoolOp):
        name = "logical_and" if isinstance(node.op, ast.And) else "logical_or"

        def chained() -> str:
            text = _inner(draft, node.values[0])
            for value in node.values[1:]:
                text = f"{torch}.{name}({text}, {_inner(draft, value)})"
            return text

        return chained
    return lambda: _inner(draft, node)


def _inner(draft: Draft, node: ast.expr) -> str:
    """The text of a truth value as a tensor."""
    if isinstance(node, ast.Call) and _is_bool(node):
        return draft.text(node.args[0])
    if isinstance(node, ast.Call) and _is_item(node):
        assert isinstance(node.func, ast.Attribute)
        return draft.text(node.func.value)
    if isinstance(node, ast.UnaryOp | ast.BoolOp) and _decides(node):
        made = _text(draft, node)
        assert made is not None
        return made()
    return draft.text(node)


TEMPLATES = {
    "truth value": Template(
        "torch.logical_not",
        "The truth value stays a tensor; where `relaxed` runs the line, it has a gradient.",
        ("control-flow",),
        ("__bool__", "bool", "not", "and", "or"),
        "keep[i] = not bool((keep & near).any())",
        _as_tensor,
        EXACT,
    ),
}
