"""A source file as text and tree at once: which characters a node covers, who its parent is, what a name stands for."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cached_property

__all__ = ["Source", "bound", "called", "spelled"]

_COMPARISONS: dict[type[ast.cmpop], tuple[str, ...]] = {
    ast.Gt: ("gt", "greater"),
    ast.GtE: ("ge", "greater_equal"),
    ast.Lt: ("lt", "less"),
    ast.LtE: ("le", "less_equal"),
    ast.Eq: ("eq", "equal"),
    ast.NotEq: ("ne", "not_equal"),
}
_OPERATORS: dict[type[ast.operator], tuple[str, ...]] = {
    ast.Div: ("div", "truediv", "rtruediv", "true_divide", "rdiv", "itruediv"),
    ast.FloorDiv: ("floordiv", "floor_divide", "rfloordiv", "div"),
    ast.Pow: ("pow", "rpow"),
    ast.Mod: ("remainder", "mod", "fmod"),
}
_BUILTINS = {"float": "float", "int": "int", "bool": "bool", "round": "round", "abs": "abs", "complex": "complex"}
_MODULES = frozenset({"torch", "F", "nn", "np", "numpy", "math", "linalg", "scipy", "torchvision"})


class Source:
    """A Python file.

    Args:
        text: its text.

    Raises:
        SyntaxError: it cannot be parsed.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.tree = ast.parse(text)
        self._lines = text.splitlines(keepends=True)
        self._starts = [0]
        for line in self._lines:
            self._starts.append(self._starts[-1] + len(line))
        self._parents = {child: node for node in ast.walk(self.tree) for child in ast.iter_child_nodes(node)}

    def parent(self, node: ast.AST) -> ast.AST | None:
        """Return the node that ``node`` is a child of."""
        return self._parents.get(node)

    def ancestors(self, node: ast.AST) -> Iterator[ast.AST]:
        """Yield the parents, from the nearest on."""
        while (above := self._parents.get(node)) is not None:
            yield above
            node = above

    def statement(self, node: ast.AST) -> ast.stmt:
        """Return the statement that a node stands in, or the node itself if it is one."""
        if isinstance(node, ast.stmt):
            return node
        return next(above for above in self.ancestors(node) if isinstance(above, ast.stmt))

    def scope(self, node: ast.AST) -> ast.AST:
        """Return the function that a node stands in, else the module."""
        kinds = ast.FunctionDef | ast.AsyncFunctionDef
        return next((above for above in self.ancestors(node) if isinstance(above, kinds)), self.tree)

    def start(self, node: ast.AST) -> int:
        """Return the place of a node's first character in the text."""
        return self.offset(node.lineno, node.col_offset)  # type: ignore[attr-defined]

    def end(self, node: ast.AST) -> int:
        """Return the place after a node's last character in the text."""
        return self.offset(node.end_lineno, node.end_col_offset)  # type: ignore[attr-defined]

    def offset(self, line: int, column: int) -> int:
        """Return the place in the text of a line and a column in bytes, as trees and code objects count."""
        if line > len(self._lines):
            return len(self.text)
        text = self._lines[line - 1]
        return self._starts[line - 1] + (column if text.isascii() else len(text.encode()[:column].decode()))

    def line_start(self, line: int) -> int:
        """Return the place of a line's first character; that after the last line for the line after it."""
        return self._starts[min(line, len(self._starts)) - 1]

    def segment(self, node: ast.AST) -> str:
        """Return the text of a node as the user wrote it."""
        return self.text[self.start(node) : self.end(node)]

    def indent(self, statement: ast.stmt) -> str:
        """Return what stands before a statement on its line."""
        return self.text[self.line_start(statement.lineno) : self.start(statement)]

    @cached_property
    def modules(self) -> dict[str, str]:
        """Names that imports bind, with the dotted name of what they stand for."""
        found: dict[str, str] = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                for name in node.names:
                    found[name.asname or name.name.partition(".")[0]] = (
                        name.name if name.asname else name.name.partition(".")[0]
                    )
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                for name in node.names:
                    found[name.asname or name.name] = f"{node.module}.{name.name}"
        return found

    @cached_property
    def bound_names(self) -> frozenset[str]:
        """Every name that the file binds anywhere."""
        found = set(self.modules)
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                found.add(node.id)
            elif isinstance(node, ast.arg):
                found.add(node.arg)
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found.add(node.name)
        return frozenset(found)

    def is_module(self, node: ast.AST) -> bool:
        """Whether an expression such as ``torch.linalg`` names a module, so that its attributes are functions."""
        while isinstance(node, ast.Attribute):
            node = node.value
        return isinstance(node, ast.Name) and (
            node.id in _MODULES - (self.bound_names - set(self.modules)) or node.id in self.modules
        )

    def loads(self, name: str, after: ast.stmt) -> list[ast.Name]:
        """Return where a name is read in the same function after a statement that binds it, until it is bound anew."""
        found: list[ast.Name] = []
        for node in sorted(
            (n for n in ast.walk(self.scope(after)) if isinstance(n, ast.Name) and n.id == name),
            key=lambda n: (n.lineno, n.col_offset),
        ):
            if self.start(node) < self.end(after):
                continue
            if isinstance(node.ctx, ast.Store):
                # `x = f(x)`: what is read on the right is still the old value.
                last = self.statement(node)
                found += [
                    n
                    for n in ast.walk(last)
                    if isinstance(n, ast.Name) and n.id == name and n not in found and isinstance(n.ctx, ast.Load)
                ]
                return found
            if node not in found:
                found.append(node)
        return found

    def definition(self, name: str, before: ast.AST) -> ast.Assign | None:
        """Return the last plain assignment ``name = ...`` above a node in the same function."""
        found: ast.Assign | None = None
        for node in ast.walk(self.scope(before)):
            if not isinstance(node, ast.Assign) or len(node.targets) != 1 or node.lineno >= before.lineno:  # type: ignore[attr-defined]
                continue
            target = node.targets[0]
            if isinstance(target, ast.Name) and target.id == name and (found is None or node.lineno > found.lineno):
                found = node
        return found


def called(node: ast.AST) -> str:
    """Return the last name of what a call calls (``argmax`` of ``torch.argmax(x)`` and ``x.argmax()``), else ''."""
    if not isinstance(node, ast.Call):
        return ""
    if isinstance(node.func, ast.Attribute):
        return node.func.attr
    return node.func.id if isinstance(node.func, ast.Name) else ""


def bound(source: Source, call: ast.Call, *names: str) -> dict[str, ast.expr] | None:
    """Match the arguments of a call, method or function alike, to the parameters of torch's function.

    Args:
        source: the file of the call.
        call: the call.
        *names: the parameters in order; the first is the tensor, the receiver of a method.

    Returns:
        The expressions by parameter (``axis`` counts as ``dim``); ``None`` where they cannot be told: starred
        arguments, or more than there are parameters.
    """
    if any(isinstance(a, ast.Starred) for a in call.args) or any(k.arg is None for k in call.keywords):
        return None
    method = isinstance(call.func, ast.Attribute) and not source.is_module(call.func.value)
    values: list[ast.expr] = [call.func.value, *call.args] if method else list(call.args)  # type: ignore[attr-defined]
    if len(values) > len(names):
        return None
    found = dict(zip(names, values, strict=False))
    renamed = {"axis": "dim", "self": names[0], "a": names[0], "x": names[0]}
    for keyword in call.keywords:
        assert keyword.arg is not None
        name = keyword.arg if keyword.arg in names else renamed.get(keyword.arg, keyword.arg)
        found[name] = keyword.value
    return found if names[0] in found else None


def spelled(node: ast.AST, operation: str) -> bool:
    """Whether a node is a way of writing a torch operation: a call of that name, or an operator."""
    plain = operation.rpartition(".")[2].removeprefix("get ").removeprefix("linalg_").strip("_").lower()
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        return plain in _COMPARISONS.get(type(node.ops[0]), ())
    if isinstance(node, ast.BinOp):
        return plain in _OPERATORS.get(type(node.op), ())
    if isinstance(node, ast.AugAssign):
        return plain in _OPERATORS.get(type(node.op), ())
    if isinstance(node, ast.Attribute):
        return node.attr == plain and plain in ("data", "T", "mT")
    if isinstance(node, ast.Subscript):
        return plain == "getitem"
    name = called(node)
    if not name:
        return False
    written = name.strip("_").lower()
    alike = {"clip": "clamp", "absolute": "abs", "vector_norm": "norm", "array": "numpy"}
    return alike.get(written, written) == alike.get(plain, plain) or _BUILTINS.get(name) == plain
