"""A rewriting of a file while it is made: nodes that get another text, spans that go, imports that come."""

from __future__ import annotations

import ast
from collections.abc import Callable

from pullback.audit.remedy.syntax import Source

__all__ = ["Draft"]

_ATOMS = ast.Name | ast.Attribute | ast.Call | ast.Subscript | ast.List | ast.Tuple | ast.Dict


class Draft:
    """Changes of one file. What is not changed keeps its characters: comments, line breaks, quotes.

    Args:
        source: the file.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self.blocks: list[str] = []
        self.unwrapped: list[str] = []
        """Names of functions whose decorators the draft takes away."""
        self.wrapped: list[str] = []
        """Names of functions that the draft decorates with ``relaxed``."""
        self._new: dict[ast.AST, Callable[[], str]] = {}
        self._spans: list[tuple[int, int, str]] = []
        self._imports: dict[str, str] = {}

    def put(self, node: ast.AST, text: str | Callable[[], str]) -> None:
        """Give a node another text; a function is asked at the end, when all parts of it are settled."""
        self._new[node] = text if callable(text) else (lambda: text)

    def cut(self, start: int, end: int, text: str = "") -> None:
        """Put ``text`` in place of a span of characters."""
        self._spans.append((start, end, text))

    @property
    def empty(self) -> bool:
        """Whether nothing was changed."""
        return not self._new and not self._spans

    def changed(self, node: ast.AST) -> bool:
        """Whether the node has another text already."""
        return node in self._new

    def text(self, node: ast.AST) -> str:
        """Return a node's text with all changes within it."""
        return self._new[node]() if node in self._new else self.old(node)

    def old(self, node: ast.AST) -> str:
        """Return a node's own text with the changes of its parts, but not its own."""
        start, end = self.source.start(node), self.source.end(node)
        return self._spliced(start, end, [n for n in ast.walk(node) if n in self._new and n is not node])

    def operand(self, node: ast.AST) -> str:
        """Return a node's text so that an operator or a ``.`` may follow."""
        text = self.text(node)
        if node in self._new:
            return text if _closed(text) else f"({text})"
        number = isinstance(node, ast.Constant) and isinstance(node.value, int) and not isinstance(node.value, bool)
        return text if isinstance(node, _ATOMS) or (isinstance(node, ast.Constant) and not number) else f"({text})"

    def block(self, name: str) -> str:
        """Return how the file writes a block such as ``discrete.round``, importing its family if it has to."""
        self.blocks.append(name)
        family, _, function = name.partition(".")
        return f"{self.module(family)}.{function}"

    def module(self, name: str) -> str:
        """Return how the file writes ``torch`` or a family of pullback."""
        full = name if name in ("torch", "pullback") else f"pullback.{name}"
        for written, stands_for in self.source.modules.items():
            if stands_for == full:
                return written
            if name not in ("torch", "pullback") and stands_for == "pullback" and written == "pullback":
                return f"pullback.{name}"
        if name in self.source.bound_names:
            self._imports[f"soft_{name}"] = f"from pullback import {name} as soft_{name}"
            return f"soft_{name}"
        whole = name in ("torch", "pullback")
        self._imports[name] = f"import {name}" if whole else f"from pullback import {name}"
        return name

    def functional(self) -> str:
        """Return how the file writes ``torch.nn.functional``."""
        for written, stands_for in self.source.modules.items():
            if stands_for == "torch.nn.functional":
                return written
        return f"{self.module('torch')}.nn.functional"

    @property
    def imports(self) -> dict[str, str]:
        """The imports that the new lines need: the line by the name that it binds."""
        self.body()  # texts that are made only now ask for theirs
        return dict(self._imports)

    def body(self) -> str:
        """Return the file's new text without the imports."""
        return self._spliced(0, len(self.source.text), list(self._new))

    def _spliced(self, start: int, end: int, nodes: list[ast.AST]) -> str:
        """The text of a span with the outermost of the changed nodes (and the cut spans) replaced."""
        pieces = [(*self._extent(node), node) for node in nodes]
        parts: list[tuple[int, int, str | ast.AST]] = [*pieces]
        if (start, end) == (0, len(self.source.text)):
            parts += self._spans
        parts.sort(key=lambda p: (p[0], -p[1]))
        out, at = [], start
        for first, last, new in parts:
            if first < at:  # inside of one that is replaced as a whole
                continue
            out += [self.source.text[at:first], new if isinstance(new, str) else self._new[new]()]
            at = last
        return "".join([*out, self.source.text[at:end]])

    def _extent(self, node: ast.AST) -> tuple[int, int]:
        """A node's span, with the parentheses around it if its new text does not need them."""
        start, end = self.source.start(node), self.source.end(node)
        text = self.source.text
        while start > 0 and end < len(text) and text[start - 1] == "(" and text[end] == ")":
            before = text[start - 2] if start > 1 else ""
            if before.isalnum() or (before and before in "_)]") or not _closed(self._new[node]()):
                break
            start, end = start - 1, end + 1
        return start, end


def _closed(text: str) -> bool:
    """Whether an expression's text is a name, a call, a subscript or in parentheses as a whole."""
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError:
        return False
    return isinstance(tree, _ATOMS) or (text.startswith("(") and text.endswith(")") and _matched(text))


def _matched(text: str) -> bool:
    depth = 0
    for index, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if depth == 0 and index < len(text) - 1:
            return False
    return True
