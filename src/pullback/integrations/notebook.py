"""The magics of a notebook: ``%load_ext pullback``, then ``%audit loss(x)`` or a cell that begins with ``%%audit``."""

from __future__ import annotations

import ast
import linecache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pullback.audit import Report

__all__ = ["load"]


def load(shell: Any) -> None:
    """Add the magics to an IPython shell."""

    def audit(line: str, cell: str | None = None) -> Report | None:
        """Audit an expression (``%audit loss(x)``) or what a cell runs (``%%audit``); the report is the result.

        The value of an expression is differentiated as that of a function is by ``pullback.audit``; a cell is audited
        at the backward passes it makes, and its names stay, as without the magic.
        """
        return _audit_line(shell, line) if cell is None else _audit_cell(shell, line, cell)

    shell.register_magic_function(audit, magic_kind="line_cell", magic_name="audit")


def _audit_line(shell: Any, line: str) -> Report:
    import pullback

    call = ast.parse(line.strip(), mode="eval").body
    scope = shell.user_ns
    if isinstance(call, ast.Call) and all(map(_is_named, [call.func, *call.args, *(k.value for k in call.keywords)])):
        # As a call of the user's function: its inputs are then known one by one, by the names of its arguments.
        inputs = [_value(argument, scope) for argument in call.args]
        keywords = {k.arg: _value(k.value, scope) for k in call.keywords if k.arg is not None}
        if len(keywords) == len(call.keywords):
            return pullback.audit(_value(call.func, scope), *inputs, kwargs=keywords, target=line.strip())
    name = f"<%audit {line.strip()}>"
    linecache.cache[name] = (len(line), None, [line.strip() + "\n"], name)  # so that the report can show it
    code = compile(ast.Expression(call), name, "eval")
    return pullback.audit(lambda: eval(code, scope), target=line.strip())


def _is_named(node: ast.expr) -> bool:
    """Whether an expression only names a value: nothing is computed that the audit would have to see."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return isinstance(node, ast.Name | ast.Constant)


def _value(node: ast.expr, scope: dict[str, Any]) -> Any:
    return eval(compile(ast.Expression(node), "<audit>", "eval"), scope)


def _audit_cell(shell: Any, line: str, cell: str) -> Report | None:
    from pullback.audit.block import AuditedBlock

    block = AuditedBlock(line.strip() or "cell")
    with block:
        result = shell.run_cell(cell)
    if not result.success:  # the shell has shown the traceback
        return None
    return block.report
