"""Inputs at which torch's derivative of an operation does not hold: they are made ones at which it does."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from pullback.audit.remedy.draft import Draft
from pullback.audit.remedy.syntax import called
from pullback.audit.remedy.template import ANY, Place, Template

__all__ = ["TEMPLATES"]

_CODES = ("biased.operation",)


def _first(place: Place, *operations: str) -> ast.expr | None:
    """Return the first argument of a call of one of the operations, by a module of torch too."""
    node = place.node
    if not isinstance(node, ast.Call) or not node.args or isinstance(node.args[0], ast.Starred):
        return None
    known = called(node) in operations or place.operation.removeprefix("linalg_") in operations
    return node.args[0] if known else None


def _operand(place: Place, node: ast.expr) -> str:
    text = place.source.segment(node)
    return text if isinstance(node, ast.Name | ast.Attribute | ast.Call | ast.Subscript) else f"({text})"


def _normalised(place: Place) -> Iterator[Draft]:
    scores = _first(place, "ctc_loss")
    if scores is None:
        return
    draft = Draft(place.source)
    if isinstance(scores, ast.Call) and called(scores) == "softmax":
        function = place.source.segment(scores.func)
        draft.put(scores.func, function.removesuffix("softmax") + "log_softmax")
    else:
        draft.put(scores, f"{_operand(place, scores)}.log_softmax(-1)")
    yield draft


def _symmetric(place: Place) -> Iterator[Draft]:
    matrix = _first(place, "eigh", "eigvalsh", "cholesky")
    if matrix is None:
        return
    draft, text = Draft(place.source), _operand(place, matrix)
    draft.put(matrix, f"({text} + {text}.mT) / 2")
    yield draft


TEMPLATES: dict[str, Template] = {
    "log probabilities": Template(
        "torch.log_softmax",
        "The loss gets logarithms of probabilities, for which its derivative is right.",
        _CODES,
        ("ctc_loss",),
        "loss = torch.nn.functional.ctc_loss(scores, targets, lengths, target_lengths)",
        _normalised,
        ANY,
    ),
    "symmetric matrix": Template(
        "torch.Tensor.mT",
        "The matrix is made symmetric, which the operation takes it for.",
        _CODES,
        ("eigh", "eigvalsh", "cholesky"),
        "values = torch.linalg.eigvalsh(matrix)",
        _symmetric,
        ANY,
    ),
}
