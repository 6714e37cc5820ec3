"""Truth values: comparisons, and what reads them (masks, ``where``, ``if``).

A comparison becomes a number in {0, 1} with a gradient; ``&`` is a product, ``~`` the complement, ``x[mask]`` under a
sum a product with the mask, ``where(mask, a, b)`` the blend of both.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from pullback.audit.remedy.draft import Draft
from pullback.audit.remedy.syntax import Source, bound, called
from pullback.audit.remedy.template import ANY, Place, Template, number

__all__ = ["TEMPLATES"]

_BLOCKS: dict[type[ast.cmpop], tuple[str, str]] = {
    ast.Gt: ("greater", "less"),
    ast.GtE: ("greater_equal", "less_equal"),
    ast.Lt: ("less", "greater"),
    ast.LtE: ("less_equal", "greater_equal"),
    ast.Eq: ("equal", "equal"),
    ast.NotEq: ("not_equal", "not_equal"),
}
"""The block for a comparison, and that for its sides exchanged."""
_CALLS = {
    **dict.fromkeys(("gt", "greater"), "greater"),
    **dict.fromkeys(("ge", "greater_equal"), "greater_equal"),
    **dict.fromkeys(("lt", "less"), "less"),
    **dict.fromkeys(("le", "less_equal"), "less_equal"),
    **dict.fromkeys(("eq", "equal"), "equal"),
    **dict.fromkeys(("ne", "not_equal"), "not_equal"),
    "isclose": "isclose",
}
_DROPPED = frozenset({"bool", "long", "int", "byte", "detach", "cpu"})


def compare(draft: Draft, node: ast.AST, exchanged: bool = False) -> bool:
    """Put the block in place of a comparison; whether it is one."""
    soft = "temperature=0.1, hard=True"
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        left, right = node.left, node.comparators[0]
        block, other = _BLOCKS.get(type(node.ops[0]), ("", ""))
        if not block:
            return False
        if number(left) is not None or exchanged:
            left, right, block = right, left, other
        draft.put(node, lambda: f"{draft.block(f'discrete.{block}')}({draft.text(left)}, {draft.text(right)}, {soft})")
        return True
    if isinstance(node, ast.Call) and called(node).strip("_") in _CALLS:
        found = bound(draft.source, node, "input", "other", "rtol", "atol")
        if found is None or "other" not in found or "out" in found:
            return False
        name = f"discrete.{_CALLS[called(node).strip('_')]}"
        more = [f"{k}={draft.source.segment(v)}" for k, v in found.items() if k in ("rtol", "atol")]
        texts = lambda: ", ".join([draft.text(found["input"]), draft.text(found["other"]), *more])  # noqa: E731
        draft.put(node, lambda: f"{draft.block(name)}({texts()}, {soft})")
        return True
    return False


def _names(node: ast.AST) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}


class _Mask:
    """Rewrites what reads a truth value that became a number in {0, 1}."""

    def __init__(self, draft: Draft) -> None:
        self.draft = draft
        self.source = draft.source
        self.seen: set[ast.AST] = set()

    def spread(self, node: ast.expr) -> None:
        """Rewrite the readers of ``node`` that a number does not suit; the others stay as they are."""
        if node in self.seen:
            return
        self.seen.add(node)
        parent, draft = self.source.parent(node), self.draft
        if isinstance(parent, ast.Assign) and parent.value is node and isinstance(parent.targets[0], ast.Name):
            for load in self.source.loads(parent.targets[0].id, parent):
                self.spread(load)
        elif isinstance(parent, ast.BinOp) and isinstance(parent.op, ast.BitAnd | ast.BitOr):
            self._join(parent)
            self._along(parent.right if parent.left is node else parent.left, node)
            self.spread(parent)
        elif isinstance(parent, ast.UnaryOp) and isinstance(parent.op, ast.Invert):
            draft.put(parent, lambda: f"(1 - {draft.operand(node)})")
            self.spread(parent)
        elif isinstance(parent, ast.Call) and (node in parent.args or node in [k.value for k in parent.keywords]):
            self._argument(node, parent)
        elif isinstance(parent, ast.Attribute) and isinstance(call := self.source.parent(parent), ast.Call):
            self._method(node, parent.attr, call)
        elif isinstance(parent, ast.Subscript) and parent.slice is node:
            self._selected(node, parent)

    def _join(self, node: ast.BinOp) -> None:
        """``&`` and ``|`` of numbers in {0, 1}."""
        a, b, draft = node.left, node.right, self.draft
        if isinstance(node.op, ast.BitAnd):
            draft.put(node, lambda: f"({draft.operand(a)} * {draft.operand(b)})")
        else:
            draft.put(node, lambda: f"(1 - (1 - 1 * {draft.operand(a)}) * (1 - 1 * {draft.operand(b)}))")

    def _along(self, other: ast.expr, node: ast.expr) -> None:
        """The other side of ``(x > a) & (x < b)``: comparisons of the same thing lose its gradient alike."""
        if isinstance(other, ast.BinOp) and isinstance(other.op, ast.BitAnd | ast.BitOr):
            self._along(other.left, node)
            self._along(other.right, node)
            if self.draft.changed(other.left) or self.draft.changed(other.right):
                self._join(other)
        elif not self.draft.changed(other) and _names(other) & _names(node):
            compare(self.draft, other)

    def _argument(self, node: ast.expr, call: ast.Call) -> None:
        draft, name = self.draft, called(call)
        where = bound(self.source, call, "condition", "input", "other") if name == "where" else None
        if where is not None and where.get("condition") is node and "other" in where:
            parts = [where[w] for w in ("condition", "input", "other")]
            words = lambda: ", ".join(map(draft.text, parts))  # noqa: E731
            draft.put(call, lambda: f"{draft.block('discrete.where')}({words()})")
        elif name in ("masked_fill", "masked_fill_"):
            found = bound(self.source, call, "input", "mask", "value")
            if found is not None and "value" in found:
                parts = [found[w] for w in ("input", "mask", "value")]
                words = lambda: ", ".join(map(draft.text, parts))  # noqa: E731
                draft.put(call, lambda: f"{draft.block('discrete.masked_fill')}({words()})")
        elif name == "masked_select":
            found = bound(self.source, call, "input", "mask")
            if found is not None:
                self._reduced(call, found["input"], node)
        elif name in ("logical_not", "logical_and", "logical_or", "logical_xor"):
            words = lambda: ", ".join(draft.text(a) for a in call.args)  # noqa: E731
            draft.put(call, lambda: f"{draft.block(f'discrete.{name}')}({words()})")
            self.spread(call)
        elif name in ("any", "all", "sum", "count_nonzero"):
            self._method(node, name, call)
        elif name in ("float", "int") and len(call.args) == 1:
            draft.put(call, lambda: draft.text(node))

    def _method(self, node: ast.expr, name: str, call: ast.Call) -> None:
        draft = self.draft
        if name in _DROPPED and not call.args:
            draft.put(call, lambda: draft.operand(node))
            self.spread(call)
        elif name in ("any", "all"):
            rest = [a for a in call.args if a is not node]
            words = lambda: ", ".join([draft.text(node), *map(draft.text, rest), *_keywords(draft, call)])  # noqa: E731
            draft.put(call, lambda: f"{draft.block(f'discrete.{name}')}({words()})")
        elif name == "count_nonzero":
            draft.put(call, lambda: f"{draft.operand(node)}.sum({', '.join(map(draft.text, call.args))})")
        elif name in ("logical_not", "logical_and", "logical_or"):
            words = lambda: ", ".join(draft.text(a) for a in [node, *call.args])  # noqa: E731
            draft.put(call, lambda: f"{draft.block(f'discrete.{name}')}({words()})")
            self.spread(call)

    def _selected(self, node: ast.expr, subscript: ast.Subscript) -> None:
        if isinstance(subscript.ctx, ast.Load):
            self._reduced(subscript, subscript.value, node)
            return
        statement = self.source.parent(subscript)
        if isinstance(statement, ast.Assign) and statement.targets == [subscript]:
            name, draft = self.source.segment(subscript.value), self.draft
            draft.put(
                statement,
                lambda: (
                    f"{name} = {draft.block('discrete.where')}("
                    f"{draft.text(node)}, {draft.text(statement.value)}, {name})"
                ),
            )

    def _reduced(self, selected: ast.expr, values: ast.expr, mask: ast.expr) -> None:
        """``x[mask].sum()`` and ``x[mask].mean()``."""
        draft, attribute = self.draft, self.source.parent(selected)
        call = self.source.parent(attribute) if isinstance(attribute, ast.Attribute) else attribute
        if not isinstance(call, ast.Call) or called(call) not in ("sum", "mean"):
            return
        if called(call) == "sum":
            draft.put(selected, lambda: f"({draft.operand(values)} * {draft.operand(mask)})")
        else:
            block = lambda: draft.block("discrete.masked_mean")  # noqa: E731
            draft.put(call, lambda: f"{block()}({draft.text(values)}, {draft.text(mask)})")


def _keywords(draft: Draft, call: ast.Call) -> list[str]:
    return [f"{k.arg}={draft.text(k.value)}" for k in call.keywords]


def _compared(place: Place) -> Iterator[Draft]:
    for nodes in ([place.node], [place.node, *place.alike]):
        for exchanged in (False, True):
            draft = Draft(place.source)
            mask = _Mask(draft)
            if not all(compare(draft, node, exchanged) for node in nodes):
                continue
            for node in nodes:
                mask.spread(node)  # type: ignore[arg-type]
            yield draft


def _branch(place: Place) -> Iterator[Draft]:
    """``if x > 0: y = a else: y = b``, and ``a if x > 0 else b``."""
    source = place.source
    for above in (place.node, *source.ancestors(place.node)):
        if isinstance(above, ast.IfExp):
            test = _bare(above.test)
            draft = Draft(source)
            if compare(draft, test):
                draft.put(above, _blend(draft, test, above.body, above.orelse))
                yield draft
            return
        if isinstance(above, ast.If):
            test, value = _bare(above.test), _assigned(above.body)
            other = _assigned(above.orelse)
            draft = Draft(source)
            if value is None or not compare(draft, test):
                return
            if other is None and above.orelse:
                return
            if other is not None and ast.dump(other.targets[0]) != ast.dump(value.targets[0]):
                return
            target = value.targets[0]
            text = _blend(draft, test, value.value, other.value if other else target)
            draft.put(above, lambda t=target, made=text: f"{source.segment(t)} = {made()}")  # type: ignore[misc]
            yield draft
            return


def _bare(test: ast.expr) -> ast.expr:
    """A condition without ``bool(...)``, ``float(...)`` and ``.item()`` around it or around its left side."""
    while isinstance(test, ast.Call) and called(test) in ("bool", "item"):
        test = test.args[0] if isinstance(test.func, ast.Name) and test.args else test.func.value  # type: ignore[attr-defined]
    return test


def _assigned(body: list[ast.stmt]) -> ast.Assign | None:
    if len(body) == 1 and isinstance(body[0], ast.Assign) and len(body[0].targets) == 1:
        return body[0] if isinstance(body[0].targets[0], ast.Name | ast.Attribute) else None
    return None


def _blend(draft: Draft, test: ast.expr, yes: ast.expr, no: ast.expr):  # type: ignore[no-untyped-def]
    def text() -> str:
        return f"{draft.block('discrete.where')}({draft.text(test)}, {draft.text(yes)}, {_load(draft.source, no)})"

    return text


def _load(source: Source, node: ast.expr) -> str:
    return source.segment(node)


def _suppressed(place: Place) -> Iterator[Draft]:
    """``nms``: the share to which each box is kept, not suppressed by a better one that overlaps it."""
    node, source = place.node, place.source
    if not isinstance(node, ast.Call) or called(node) != "nms":
        return
    found = bound(source, node, "boxes", "scores", "iou_threshold")
    if found is None or len(found) != 3:
        return
    draft = Draft(source)
    torch, block = draft.module("torch"), draft.block("discrete.greater")
    boxes, threshold = (source.segment(found[n]) for n in ("boxes", "iou_threshold"))
    scores = draft.operand(found["scores"])
    overlap = source.segment(node.func).replace("nms", "box_iou")
    draft.put(
        node,
        f"(1 - {block}({overlap}({boxes}, {boxes}), {threshold}, temperature=0.1) * "
        f"{block}({scores}.unsqueeze(-1), {scores}, temperature=0.1) * (1 - {torch}.eye(len({scores})))).prod(0)",
    )
    _Mask(draft).spread(node)
    yield draft


TEMPLATES = {
    "nms": Template(
        "discrete.greater",
        "The share to which each box is kept: one factor for every better box that overlaps it.",
        ("cut.operation", "cut.index"),
        ("nms", "suppression", "batched_nms"),
        "keep = torchvision.ops.nms(boxes, scores, 0.5)\ntotal = scores[keep].sum()",
        _suppressed,
        ANY,
    ),
    "comparison": Template(
        "discrete.greater",
        "The comparison as a number: exactly 0 or 1 forwards, a gradient backwards.",
        ("cut.comparison", "cut.cast", "cut.index"),
        (
            *(
                "gt",
                "ge",
                "lt",
                "le",
                "eq",
                "ne",
                "greater",
                "greater_equal",
                "less",
                "less_equal",
                "equal",
                "not_equal",
            ),
            *(
                "isclose",
                "comparison",
                "compare",
                "threshold",
                "mask",
                "bool",
                "masked_fill",
                "masked_select",
                "nonzero",
            ),
            *(
                "logical_and",
                "logical_or",
                "logical_not",
                "logical_xor",
                "any",
                "all",
                "count_nonzero",
                "isin",
                "signbit",
            ),
        ),
        "kept = (p > 0.5).float() * values",
        _compared,
    ),
    "where": Template(
        "discrete.where",
        "Both branches blended by the comparison, so that what is compared gets a gradient too.",
        ("cut.comparison",),
        ("where", "gt", "ge", "lt", "le"),
        "value = torch.where(x > threshold, a, b)",
        _compared,
    ),
    "branch": Template(
        "discrete.where",
        "Both branches are computed and blended; the value is that of the branch taken, the choice gets a gradient.",
        ("cut.control_flow", "control-flow"),
        ("if", "branch", "while", "bool", "__bool__", "item", "gt", "ge", "lt", "le"),
        "if score > 0.5:\n    value = a\nelse:\n    value = b",
        _branch,
        ANY,
    ),
}
