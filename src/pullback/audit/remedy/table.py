"""The one table of advice: which templates answer an operation, for findings and for ``pullback find``."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterator
from difflib import get_close_matches

from pullback.audit.remedy import choices, departures, derivatives, libraries, masks, singular, steps, training, truth
from pullback.audit.remedy.draft import Draft
from pullback.audit.remedy.syntax import Source
from pullback.audit.remedy.template import EXACT, Place, Template

__all__ = ["TEMPLATES", "answers", "example", "find", "suggest"]


def _relaxed_part(place: Place) -> Iterator[Draft]:
    """Decorate the function that a line stands in with ``relaxed``."""
    source = place.source
    function = source.scope(place.node)
    if not isinstance(function, ast.FunctionDef):
        return
    draft = Draft(source)
    at = source.line_start(function.lineno)
    indent = source.indent(function)
    draft.blocks.append("relaxed")
    draft.cut(at, at, f"{indent}@{draft.module('pullback')}.relaxed(temperature=0.1)\n")
    draft.wrapped.append(function.name)
    yield draft


_EVERYTHING_DISCRETE = (
    *(
        "argmax",
        "argmin",
        "argsort",
        "sort",
        "msort",
        "topk",
        "kthvalue",
        "median",
        "nanmedian",
        "mode",
        "cummax",
        "cummin",
    ),
    *(
        "nonzero",
        "argwhere",
        "searchsorted",
        "bucketize",
        "unique",
        "unique_consecutive",
        "bincount",
        "histc",
        "one_hot",
    ),
    *(
        "gt",
        "lt",
        "ge",
        "le",
        "eq",
        "ne",
        "isin",
        "any",
        "all",
        "count_nonzero",
        "logical_and",
        "logical_or",
        "logical_xor",
    ),
    *("amax", "amin", "allclose", "isnan", "isinf", "isfinite", "isposinf", "isneginf", "is_nonzero"),
    *("relaxed", "relax", "unchanged", "index", "comparison"),
)

TEMPLATES: dict[str, Template] = {
    **choices.TEMPLATES,
    **masks.TEMPLATES,
    **truth.TEMPLATES,
    **steps.TEMPLATES,
    **singular.TEMPLATES,
    **libraries.TEMPLATES,
    **departures.TEMPLATES,
    **training.TEMPLATES,
    **derivatives.TEMPLATES,
    "relaxed": Template(
        "relaxed",
        "The function keeps its code and its values; soft gradients pass back through all of it.",
        ("cut.index", "cut.comparison", "cut.cast", "cut.sampling", "zero"),
        _EVERYTHING_DISCRETE,
        "def pick(scores, table):\n    return table[scores.argmax()]",
        _relaxed_part,
        EXACT,
    ),
}
"""Every template by name, the more specific ones first."""


def answers(code: str, operation: str) -> list[Template]:
    """Return the templates for a finding: those of its code that name its operation.

    A cut may be named after another operation of the line (``detach`` on the way to NumPy): there the others follow.
    """
    plain = operation.rpartition(".")[2].removeprefix("get ").removeprefix("linalg_").strip("_").lower()
    fitting = [t for t in TEMPLATES.values() if any(_within(code, c) for c in t.codes)]
    named = [t for t in fitting if plain in {o.strip("_").lower() for o in t.operations}]
    last = [t for t in fitting if t.block == "relaxed"]
    others = (
        fitting if code.startswith(("cut.", "control-flow", "unused", "biased", "zero.custom", "zero.cancels")) else []
    )
    return list(dict.fromkeys([*(t for t in [*named, *others] if t not in last), *last]))


def find(word: str) -> list[Template]:
    """Return the advice for a word: a torch operation, a finding's code, a block.

    Args:
        word: such as ``"argmax"``, ``"torch.round"``, ``"cut.index"``.

    Returns:
        The fitting templates, the most specific first; empty if nothing fits (see :func:`suggest`).

    Example:
        >>> [template.block for template in find("torch.argsort")]
        ['discrete.argsort', 'relaxed']
    """
    plain = word.strip().removeprefix("torch.").removeprefix("Tensor.").removeprefix("nn.functional.")
    plain = plain.removeprefix("linalg.").removeprefix("linalg_").strip("_").lower()
    every = list(TEMPLATES.values())
    by_block = [t for t in every if t.block.rpartition(".")[2].lower() == plain]
    by_operation = [t for t in every if plain in {o.strip("_").lower() for o in t.operations}]
    by_code = [t for t in every if any(_within(code, plain) or _within(plain, code) for code in t.codes)]
    return list(dict.fromkeys([*by_operation, *by_block] or by_code))


def suggest(word: str) -> list[str]:
    """Return known words that are close to an unknown one.

    Example:
        >>> "argmax" in suggest("argmx")
        True
    """
    every = TEMPLATES.values()
    words = sorted({o for t in every for o in t.operations} | {c for t in every for c in t.codes})
    return get_close_matches(word, words, n=3)


def example(template: Template) -> str:
    """Return a template's example rewritten, as the lines of a diff.

    Example:
        >>> print(example(TEMPLATES["sign"]))
        +from pullback import discrete
        -bits = torch.sign(x)
        +bits = discrete.sign(x, temperature=0.1, hard=True)
    """
    source = Source("import torch\n" + template.example + "\n")
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.expr | ast.With | ast.If | ast.Assign | ast.Return):
            continue
        draft = next(template.rewrite(Place(source, node, "")), None)
        if draft is not None:
            new = draft.body().splitlines()[1:]
            lines = difflib.ndiff(template.example.splitlines(), new)
            imports = [f"+{line}" for line in draft.imports.values()]
            return "\n".join([*imports, *(line[0] + line[2:] for line in lines if line[0] != "?")])
    raise ValueError(f"the example of {template.block} is not rewritten by its own template: {template.example!r}")


def _within(code: str, asked: str) -> bool:
    return code == asked or code.startswith(asked + ".")
